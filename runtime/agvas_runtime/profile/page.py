"""A profile as one HTML file: opens from disk, without a network and without scripts."""

import html
from importlib import resources

from agvas_runtime.profile.compare import Comparison, compare_profiles
from agvas_runtime.profile.plots import (
    gpu_plot,
    latency_histogram,
    latency_series,
    offered_latency,
    offered_rate,
    roofline,
    stage_bars,
)
from agvas_runtime.profile.record import NOT_SAID, Profile, Quantiles, counts_in_words
from agvas_runtime.report.chart import number

__all__ = ["render"]


def render(profile: Profile, earlier: Profile | None = None) -> str:
    """The page; with ``earlier`` it begins with a comparison."""
    package = resources.files("agvas_runtime.profile")
    page = package.joinpath("page_template.html").read_text(encoding="utf-8")
    for placeholder, value in (
        ("@@STYLE@@", package.joinpath("page_style.css").read_text(encoding="utf-8")),
        ("@@TITLE@@", html.escape(_headline(profile))),
        (
            "@@SUMMARY@@",
            html.escape(f"{profile.bundle} on {profile.backend}, {profile.mode} mode: {profile.frames}. {profile.created}"),
        ),
        ("@@NOTES@@", _notes(profile.notes)),
        ("@@TILES@@", _tiles(profile)),
        ("@@BODY@@", _body(profile, earlier)),
    ):
        page = page.replace(placeholder, value)
    return page


def _headline(profile: Profile) -> str:
    if profile.line is not None:
        word = "Yes" if profile.line.held else "No"
        can = "holds" if profile.line.held else "does not hold"
        return f"{word}: this machine {can} {profile.line.rate_per_s * 60:,.0f} frames a minute"
    rate = max(profile.rate_per_s, profile.overlapped_per_s or 0)
    return f"{number(profile.latency.p50)} ms a frame, {number(rate)} frames a second"


def _tiles(profile: Profile) -> str:
    latency = profile.latency
    tiles = [
        (f"{number(latency.p50)} ms", "p50", f"mean {number(latency.mean)}, min {number(latency.min)}"),
        (f"{number(latency.p99)} ms", "p99", f"{latency.p99 / max(latency.p50, 1e-9):.2f} times p50; max {number(latency.max)}"),
        (
            f"{number(profile.rate_per_s)}/s",
            "one after the other",
            f"overlapping {number(profile.overlapped_per_s)}/s" if profile.overlapped_per_s else "",
        ),
        (f"{profile.peak_memory_mb:,.0f} MB", "peak memory", f"{profile.cores_used:.1f} of {profile.machine.cores} cores used"),
    ]
    if profile.overhead is not None:
        over = profile.overhead
        tiles.append(
            (f"{over.share:+.1%}", "over the graphs alone", f"{number(over.frame_ms)} against {number(over.graphs_ms)} ms")
        )
    floors = [work.floor_ms for work in profile.work.values() if work.floor_ms is not None]
    if floors:
        tiles.append((f"{sum(floors) / latency.p50:.0%}", "of the machine's limit", f"at best {number(sum(floors))} ms a frame"))
    return "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span><small>{html.escape(more)}</small></div>'
        for value, name, more in tiles
    )


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
        f"{html.escape(comparison.new)}</p>{_notes(comparison.warnings)}<div class='scroll'><table><thead><tr><th></th><th>old</th><th>new</th>"
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
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    return f'<section class="panel"><h2>What was run</h2><dl>{rows}</dl></section>'


def _notes(notes: list[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{html.escape(note)}</li>" for note in notes)}</ul>' if notes else ""
