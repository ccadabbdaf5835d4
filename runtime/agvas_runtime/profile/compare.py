"""Two profiles side by side."""

from dataclasses import dataclass

from agvas_runtime.profile.record import Profile

__all__ = ["Comparison", "Row", "compare_profiles"]


@dataclass(frozen=True)
class Row:
    """One figure, before and after."""

    name: str
    unit: str
    old: float
    new: float
    less_is_better: bool = True

    @property
    def ratio(self) -> float:
        """How many times better the new one is; below 1 it is worse."""
        old, new = max(self.old, 1e-12), max(self.new, 1e-12)
        return old / new if self.less_is_better else new / old


@dataclass(frozen=True)
class Comparison:
    """All figures that both have, and what keeps the two from being comparable."""

    old: str
    new: str
    rows: list[Row]
    warnings: list[str]


def compare_profiles(old: Profile, new: Profile) -> Comparison:
    """Compares medians of stages, quantiles of the whole, rates and memory; says what else differs."""
    rows = [
        Row(f"{stage}, p50", "ms", old.stages[stage].p50, new.stages[stage].p50) for stage in new.stages if stage in old.stages
    ]
    rows += [
        Row(f"on the device: {name}, p50", "ms", old.device[name].p50, new.device[name].p50)
        for name in new.device
        if name in old.device
    ]
    rows += [
        Row(f"frame, {name}", "ms", getattr(old.latency, key), getattr(new.latency, key))
        for name, key in (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p99.9", "p999"), ("max", "max"))
    ]
    rows.append(Row("jitter", "ms", old.jitter_ms, new.jitter_ms))
    rows.append(Row("rate, one by one", "/s", old.rate_per_s, new.rate_per_s, less_is_better=False))
    if old.overlapped_per_s is not None and new.overlapped_per_s is not None:
        rows.append(Row("rate, overlapping", "/s", old.overlapped_per_s, new.overlapped_per_s, less_is_better=False))
    rows.append(Row("peak memory", "MB", old.peak_memory_mb, new.peak_memory_mb))
    warnings = [
        f"{what} differs: {before}, then {after}"
        for what, before, after in (
            ("the machine", old.machine.cpu, new.machine.cpu),
            ("the GPU", old.machine.gpu, new.machine.gpu),
            ("the native core", old.native or new.native, new.native or old.native),  # unknown is not different
            ("how many at once", *(str(each.counts or other.counts) for each, other in ((old, new), (new, old)))),
            ("the bundle", old.bundle, new.bundle),
            ("the backend", old.backend, new.backend),
            ("the mode", old.mode, new.mode),
            ("threads", old.threads, new.threads),
            ("what was looked at", old.frames, new.frames),
        )
        if before != after
    ]
    for name, each in (("old", old), ("new", new)):
        if each.machine.load_before > 0.5:
            warnings.append(f"the machine was busy before the {name} one began (load {each.machine.load_before:.1f})")
    return Comparison(
        f"{old.bundle} on {old.backend}, {old.created}", f"{new.bundle} on {new.backend}, {new.created}", rows, warnings
    )
