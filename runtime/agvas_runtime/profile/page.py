"""A profile as one HTML file: opens from disk, without a network and without scripts."""

import html

import numpy as np

from agvas_core.contract.pages.chart import Chart, number
from agvas_core.contract.pages.document import Tile, document, note_list, panel
from agvas_core.contract.pages.document import facts as named_facts
from agvas_runtime.profile.compare import Comparison, compare_profiles
from agvas_runtime.profile.record import NOT_SAID, Profile, Quantiles, counts_in_words

__all__ = [
    "gpu_plot",
    "latency_histogram",
    "latency_series",
    "offered_latency",
    "offered_rate",
    "render",
    "roofline",
    "stage_bars",
]


# The plots of a profile, each an SVG or nothing where the profile has no figures for it.


BINS = 40


def stage_bars(profile: Profile) -> str:
    """Median of each stage with its p99, and within it the floor."""
    names = list(profile.stages)
    top = max(each.p99 for each in profile.stages.values()) * 1.6  # room for the words
    chart = Chart(
        (0, top), (0, len(names)), "ms per frame", "", "Median and p99 of each stage, and its floor", y_names=names[::-1],
        left=96, height=46 + 34 * len(names),
    )  # fmt: skip
    for at, name in enumerate(reversed(names)):
        each, work = profile.stages[name], profile.work.get(name)
        chart.bar(0, each.p50, at + 0.2, at + 0.8, "measured", f"{name}: p50 {each.p50:.2f} ms, p99 {each.p99:.2f} ms")
        if work is not None and work.floor_ms is not None:
            chart.bar(
                0, min(work.floor_ms, each.p50), at + 0.2, at + 0.8, "floor", f"{name}: at best {work.floor_ms:.2f} ms here"
            )
        chart.line([(each.p50, at + 0.5), (each.p99, at + 0.5)], "whisker")
        chart.line([(each.p99, at + 0.3), (each.p99, at + 0.7)], "whisker")
        label = f"{number(each.p50)} ms" + (f", {work.share:.0%} of the limit" if work is not None and work.share else "")
        chart.word(each.p99, at + 0.5, label)
    return chart.render()


def latency_histogram(profile: Profile) -> str:
    """How many frames took how long."""
    values = np.asarray(profile.latencies_ms)
    edges = np.linspace(values.min() * 0.98, values.max() * 1.02, BINS + 1)
    counts, _ = np.histogram(values, edges)
    chart = Chart((edges[0], edges[-1]), (0, float(counts.max()) * 1.1), "ms per frame", "frames", "Histogram of latencies")
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            chart.bar(low, high, 0, float(count), "measured", f"{count} frames: {low:.1f} to {high:.1f} ms")
    for row, (name, value) in enumerate(
        (("p50", profile.latency.p50), ("p90", profile.latency.p90), ("p99", profile.latency.p99))
    ):
        chart.upright(value, f"{name} {number(value)}", "mark", row)
    return chart.render()


def latency_series(profile: Profile) -> str:
    """Latency over time: steps, drifts and bursts."""
    values = profile.latencies_ms
    chart = Chart(
        (0, max(1, len(values) - 1)), (0, max(values) * 1.05), "frame", "ms", "Latency of each frame in the order of measuring"
    )
    for index, ms in enumerate(values):
        chart.dot(index, ms, "measured", f"frame {index}: {ms:.1f} ms", radius=2)
    for name, value in (("p50", profile.latency.p50), ("p99", profile.latency.p99)):
        chart.line([(0, value), (max(1, len(values) - 1), value)], "mark", f"{name} {value:.1f} ms")
        chart.word(0, value, name, dx=4, dy=-4)
    return chart.render()


def roofline(profile: Profile) -> str | None:
    """What each stage reaches, against what the machine gives at that many FLOP per byte."""
    machine = profile.machine
    points = [
        (name, work.flop / max(1.0, work.weight_bytes + work.io_bytes), work.flop / 1e6 / profile.stages[name].p50)
        for name, work in profile.work.items()
        if name in profile.stages and work.flop and profile.stages[name].p50 > 0
    ]
    if machine.matmul_gflops is None or machine.copy_gbs is None or not points:
        return None
    ridge = machine.matmul_gflops / machine.copy_gbs
    low = min(0.5, *(intensity / 3 for _, intensity, _ in points))
    high = max(1000.0, ridge * 10, *(intensity * 3 for _, intensity, _ in points))
    floor_rate = min(machine.copy_gbs * low, *(rate / 3 for _, _, rate in points))
    chart = Chart(
        (low, high), (floor_rate, machine.matmul_gflops * 2), "FLOP per byte of weights, inputs and outputs", "GFLOP/s",
        "Roofline: rate of each stage against the limits of the machine", logarithmic=True,
    )  # fmt: skip
    chart.line([(low, machine.copy_gbs * low), (ridge, machine.matmul_gflops), (high, machine.matmul_gflops)], "roof")
    chart.word(ridge, machine.matmul_gflops, f"{machine.matmul_gflops:.0f} GFLOP/s", dx=8, dy=-6)
    chart.word(low, machine.copy_gbs * low, f"{machine.copy_gbs:.1f} GB/s", dx=10, dy=4)
    for row, (name, intensity, rate) in enumerate(sorted(points, key=lambda point: -point[2])):
        chart.dot(intensity, rate, "measured", f"{name}: {rate:.1f} GFLOP/s at {intensity:.1f} FLOP per byte", radius=6)
        chart.word(intensity, rate, f"{name} {number(rate)}", dx=10, dy=-10 + 15 * row)
    return chart.render()


def offered_rate(profile: Profile) -> str | None:
    """Frames that came against frames that were judged."""
    if not profile.offered:
        return None
    top = max(each.offered_per_s for each in profile.offered) * 1.1
    chart = Chart((0, top), (0, top), "offered, frames/s", "judged, frames/s", "Rate reached against rate offered")
    chart.line([(0, 0), (top, top)], "mark", "all that come")
    points = [(each.offered_per_s, each.achieved_per_s) for each in profile.offered]
    chart.line(points, "series")
    for offered, reached in points:
        chart.dot(offered, reached, "measured", f"{offered:.2f}/s offered, {reached:.2f}/s judged")
    return chart.render()


def offered_latency(profile: Profile) -> str | None:
    """How long after a frame was due its verdict came."""
    if not profile.offered:
        return None
    right = max(each.offered_per_s for each in profile.offered) * 1.1
    top = max(each.latency.p99 for each in profile.offered) * 1.1
    chart = Chart((0, right), (0, top), "offered, frames/s", "ms after due", "Latency against rate offered")
    for kind, key in (("series", "p50"), ("series second", "p99")):
        points = [(each.offered_per_s, getattr(each.latency, key)) for each in profile.offered]
        chart.line(points, kind)
        for offered, ms in points:
            chart.dot(offered, ms, "measured" if key == "p50" else "second", f"{key} {ms:.0f} ms at {offered:.2f}/s")
        chart.word(*points[-1], key, dx=8, dy=-6)
    return chart.render()


def gpu_plot(profile: Profile) -> str | None:
    """Temperature, power and clock as shares of their highest."""
    if len(profile.gpu) < 2:
        return None
    last = profile.gpu[-1].at_s
    chart = Chart((0, last), (0, 110), "s", "% of the highest", "Clock, power and temperature of the GPU")
    for kind, key, unit in (("series", "clock_mhz", "MHz"), ("series second", "power_w", "W"), ("mark", "temperature_c", "°C")):
        values = [float(getattr(sample, key)) for sample in profile.gpu]
        highest = max(*values, 1e-9)
        points = [(sample.at_s, value / highest * 100) for sample, value in zip(profile.gpu, values, strict=True)]
        chart.line(points, kind, f"{key}: at most {highest:g} {unit}")
        chart.word(*points[-1], f"{highest:.0f} {unit}", dx=8, dy=-4)
    return chart.render()


def render(profile: Profile, earlier: Profile | None = None) -> str:
    """The page; with ``earlier`` it begins with a comparison."""
    summary = f"{profile.bundle} on {profile.backend}, {profile.mode} mode: {profile.frames}. {profile.created}"
    return document(_headline(profile), _body(profile, earlier), summary=summary, notes=profile.notes, tiles=_tiles(profile))


def _headline(profile: Profile) -> str:
    if profile.line is not None:
        word = "Yes" if profile.line.held else "No"
        can = "holds" if profile.line.held else "does not hold"
        return f"{word}: this machine {can} {profile.line.rate_per_s * 60:,.0f} frames a minute"
    rate = max(profile.rate_per_s, profile.overlapped_per_s or 0)
    return f"{number(profile.latency.p50)} ms a frame, {number(rate)} frames a second"


def _tiles(profile: Profile) -> list[Tile]:
    latency = profile.latency
    tiles = [
        Tile(f"{number(latency.p50)} ms", "p50", f"mean {number(latency.mean)}, min {number(latency.min)}"),
        Tile(
            f"{number(latency.p99)} ms", "p99", f"{latency.p99 / max(latency.p50, 1e-9):.2f} times p50; max {number(latency.max)}"
        ),
        Tile(
            f"{number(profile.rate_per_s)}/s",
            "one after the other",
            f"overlapping {number(profile.overlapped_per_s)}/s" if profile.overlapped_per_s else "",
        ),
        Tile(
            f"{profile.peak_memory_mb:,.0f} MB", "peak memory", f"{profile.cores_used:.1f} of {profile.machine.cores} cores used"
        ),
    ]
    if profile.overhead is not None:
        over = profile.overhead
        tiles.append(
            Tile(f"{over.share:+.1%}", "over the graphs alone", f"{number(over.frame_ms)} against {number(over.graphs_ms)} ms")
        )
    floors = [work.floor_ms for work in profile.work.values() if work.floor_ms is not None]
    if floors:
        tiles.append(
            Tile(f"{sum(floors) / latency.p50:.0%}", "of the machine's limit", f"at best {number(sum(floors))} ms a frame")
        )
    return tiles


def _body(profile: Profile, earlier: Profile | None) -> str:
    limits = (
        f"the dark part is the floor: what {profile.machine.matmul_gflops:.0f} GFLOP/s and {profile.machine.copy_gbs:.1f} GB/s, both measured "
        f"here ({profile.machine.limits_of}), allow at best"
        if profile.machine.matmul_gflops is not None
        else "p50; the whisker ends at p99"
    )
    panels = [
        ("Stages", limits, stage_bars(profile)),
        ("Latencies", f"{profile.latency.count:,} frames", latency_histogram(profile)),
        ("Roofline", "how near each stage comes to the roof", roofline(profile)),
        (
            "Over time",
            f"jitter {number(profile.jitter_ms)} ms from frame to frame; drift {profile.drift:+.1%}",
            latency_series(profile),
        ),
        ("Judged against offered", "off the line, frames wait longer and longer", offered_rate(profile)),
        ("Waiting", "from when the frame was due to its verdict", offered_latency(profile)),
        ("GPU", profile.machine.gpu, gpu_plot(profile)),
    ]
    figures = "".join(
        f'<figure class="panel"><figcaption>{html.escape(name)} <span>{html.escape(about)}</span></figcaption>{plot}</figure>'
        for name, about, plot in panels
        if plot is not None
    )
    compared = _comparison(compare_profiles(earlier, profile)) if earlier is not None else ""
    return f'{_line(profile)}{compared}<section class="charts">{figures}</section>{_table(profile)}{_facts(profile)}'


def _line(profile: Profile) -> str:
    if profile.line is None:
        return ""
    line = profile.line
    kind = "yes" if line.held else "no"
    return (
        f'<section class="panel answer {kind}"><h2>{"Yes" if line.held else "No"}</h2><p>{line.rate_per_s * 60:,.0f} frames a minute for '
        f"{line.soak_s:,.0f} s, {line.latency.count:,} frames: {html.escape(line.reason)}. {line.late:,} verdicts came late, "
        f"{line.backlog:,} frames were waiting at the end.</p></section>"
    )


def _comparison(comparison: Comparison) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(row.name)}</td><td>{row.old:.1f} {row.unit}</td><td>{row.new:.1f} {row.unit}</td>"
        f'<td class="{"better" if row.ratio > 1.05 else "worse" if row.ratio < 0.95 else ""}">{row.ratio:.2f}</td></tr>'
        for row in comparison.rows
    )
    return (
        f'<section class="panel"><h2>Against an earlier profile</h2><p class="quiet">old: {html.escape(comparison.old)}<br>new: '
        f"{html.escape(comparison.new)}</p>{note_list(comparison.warnings)}<div class='scroll'><table><thead><tr><th></th><th>old</th><th>new</th>"
        f"<th>times better</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _table(profile: Profile) -> str:
    def row(name: str, each: Quantiles) -> str:
        work = profile.work.get(name)
        cells = [f"{value:.2f}" for value in (each.mean, each.p50, each.p90, each.p99, each.p999, each.max)]
        if work is None:
            cells += [""] * 5
        else:
            cells += [f"{work.calls}", f"{work.flop / 1e9:.3f}", f"{(work.weight_bytes + work.io_bytes) / 1e6:.1f}"]
            cells += [
                "" if work.floor_ms is None else f"{work.floor_ms:.2f} ({work.bound})",
                "" if work.share is None else f"{work.share:.0%}",
            ]
        return f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"

    head = ("", "mean", "p50", "p90", "p99", "p99.9", "max", "calls", "GFLOP", "MB", "floor, ms", "share")
    rows = "".join(row(name, each) for name, each in profile.stages.items()) + row("frame", profile.latency)
    rows += "".join(row(f"on the device: {name}", each) for name, each in profile.device.items())
    few = "; with fewer than 1,000 frames p99.9 is the slowest one" if profile.latency.count < 1000 else ""
    return (
        f'<section class="panel"><h2>All figures</h2><p class="quiet">Milliseconds{few}. GFLOP: twice the multiply-adds of matrix products and '
        "convolutions of a frame, at all its scales and tiles. MB: weights once a call, inputs and outputs of the graphs. Floor: the larger of the "
        "two at the machine's measured rates; share: floor over p50.</p>"
        f'<div class="scroll"><table><thead><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _facts(profile: Profile) -> str:
    machine = profile.machine
    facts = {
        "command": profile.command,
        "bundle": profile.bundle,
        "backend": profile.backend,
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:.0f} GB, {machine.system}; load {machine.load_before} before",
        "GPU": machine.gpu,
        "native core": profile.native or NOT_SAID,
        "at once": counts_in_words(profile.counts),
        "threads": "all" if profile.threads is None else str(profile.threads),
        "warm-up": f"{profile.warmup} frames; opening the bundle took {profile.load_s:.2f} s",
        "agvas": profile.agvas,
    }
    return panel("What was run", named_facts(facts))
