"""What ``agvas profile --tune`` kept, and whether it holds here."""

from collections.abc import Iterator

from agvas_runtime.doctor.finding import Finding, State
from agvas_runtime.tuning import Place, Tuning, default_counts, kept_tunings, place_here, tunings_folder

__all__ = ["look_at_tunings"]

TUNE = "agvas profile --tune"


def look_at_tunings() -> Iterator[Finding]:
    """One finding for each file; one that says that there is none."""
    defaults = f"the defaults stand: {default_counts(('onnx', 'onnx', 'onnx'), None)}"
    folder = tunings_folder()
    kept = list(kept_tunings())
    if not kept:
        why = "AGVAS_TUNING is off" if folder is None else f"nothing was measured in {folder}"
        yield Finding("tuning", "counts", State.ABSENT, f"{why}; {defaults}", TUNE)
    for path, tuning in kept:
        if isinstance(tuning, str):
            yield Finding("tuning", path.name, State.WARN, f"{tuning}; {defaults}", f"{TUNE}, or remove {path}")
            continue
        yield _finding(tuning)


def _finding(tuning: Tuning) -> Finding:
    then = tuning.place
    now = place_here(then.bundle, then.backends, then.threads)
    threads = "all threads" if then.threads is None else f"{then.threads} thread{'s' if then.threads > 1 else ''}"
    what = f"{' '.join(dict.fromkeys(then.backends))}, {threads}: {tuning.counts}; measured {tuning.created}"
    if now == then:
        return Finding("tuning", then.bundle, State.OK, what)
    return Finding(
        "tuning",
        then.bundle,
        State.ABSENT,
        f"{what}, where {_changes(then, now)}: it does not hold here",
        f"{TUNE} measures again",
    )


def _changes(then: Place, now: Place) -> str:
    before, after = ({"device": each.device, "cores": str(each.cores), **each.versions} for each in (then, now))
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return ", ".join(f"{name} was {before.get(name)}, and is {after.get(name)}" for name in names)
