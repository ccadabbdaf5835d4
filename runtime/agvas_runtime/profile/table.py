"""A profile on the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agvas_core.contract.command_line import printable
from agvas_runtime.pipeline.batching import Tuning
from agvas_runtime.profile.compare import Comparison
from agvas_runtime.profile.record import NOT_SAID, Profile, Quantiles, counts_in_words

__all__ = ["print_comparison", "print_profile", "print_tuning"]

ALIKE = 0.05  # a ratio so near to 1 is no change


def print_profile(console: Console, profile: Profile) -> None:
    """Stages, quantiles, floors, rates, and the answer for a line."""
    console.print(Text(printable(f"{profile.bundle} on {profile.backend}, {profile.mode} mode: {profile.frames}"), style="bold"))
    console.print(
        Text(
            printable(
                f"{profile.machine.cpu}, {profile.machine.cores} cores; GPU {profile.machine.gpu}; native core {profile.native or NOT_SAID}"
            ),
            style="dim",
        )
    )
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("ms", no_wrap=True)
    for name in ("p50", "p90", "p99", "p99.9", "max", "of limit", "GFLOP"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage, each in profile.stages.items():
        work = profile.work.get(stage)
        share = f"{work.share:.0%}" if work is not None and work.share is not None else ""
        flop = f"{work.flop / 1e9:.2f}" if work is not None else ""
        table.add_row(stage, *_cells(each), share, flop)
    for name, each in profile.device.items():
        table.add_row(f"on the device: {name}", *_cells(each), "", "")
    table.add_section()
    table.add_row(Text("frame", style="bold"), *_cells(profile.latency))
    console.print(table)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("at once", counts_in_words(profile.counts))
    facts.add_row("rate, one after the other", f"{profile.rate_per_s:.2f} frames/s")
    if profile.overlapped_per_s is not None:
        facts.add_row("rate, stages overlapping", f"{profile.overlapped_per_s:.2f} frames/s")
    facts.add_row("jitter; p99 / p50", f"{profile.jitter_ms:.1f} ms; {profile.latency.p99 / max(profile.latency.p50, 1e-9):.2f}")
    if profile.overhead is not None:
        over = profile.overhead
        facts.add_row(
            "over the graphs alone",
            f"{over.share:+.1%} ({over.frame_ms:.1f} against {over.graphs_ms:.1f} ms, {over.pairs} pairs)"
            + (f"; CPU time {over.cpu_share:+.1%}" if over.cpu_share is not None else ""),
        )
    facts.add_row(
        "peak memory; cores used", f"{profile.peak_memory_mb:.0f} MB; {profile.cores_used:.1f} of {profile.machine.cores}"
    )
    if profile.machine.matmul_gflops is not None:
        facts.add_row(
            "the machine's limits",
            f"{profile.machine.matmul_gflops:.0f} GFLOP/s, {profile.machine.copy_gbs:.1f} GB/s (measured: {profile.machine.limits_of})",
        )
    for load in profile.offered:
        facts.add_row(
            f"offered {load.offered_per_s:.2f}/s",
            f"{load.achieved_per_s:.2f}/s; p50 {load.latency.p50:.0f} ms, p99 {load.latency.p99:.0f} ms after the frame was due",
        )
    if profile.gpu:
        hottest, power = max(sample.temperature_c for sample in profile.gpu), max(sample.power_w for sample in profile.gpu)
        clocks = [sample.clock_mhz for sample in profile.gpu]
        memory = max(sample.memory_mb for sample in profile.gpu)
        facts.add_row("GPU", f"{min(clocks)}-{max(clocks)} MHz, {power:.0f} W, {hottest} °C, {memory:.0f} MB at most")
    console.print(facts)
    for note in profile.notes:
        console.print(Text(printable(note), style="yellow"), soft_wrap=True)
    if profile.line is not None:
        line = profile.line
        style = "bold blue" if line.held else "bold dark_orange"
        console.print(
            Text.assemble(
                ("YES" if line.held else "NO", style),
                f"  {line.rate_per_s * 60:.0f} frames/min for {line.soak_s:.0f} s: {line.reason}; {line.late} of {line.latency.count} late",
            ),
            soft_wrap=True,
        )


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Old and new beside each other, and how many times better."""
    table = Table(box=box.SIMPLE, pad_edge=False, title=None)
    table.add_column("")
    for name in ("old", "new", "times better"):
        table.add_column(name, justify="right")
    for row in comparison.rows:
        style = "" if abs(row.ratio - 1) < ALIKE else "blue" if row.ratio > 1 else "dark_orange"
        table.add_row(row.name, f"{row.old:.1f} {row.unit}", f"{row.new:.1f} {row.unit}", Text(f"{row.ratio:.2f}", style=style))
    console.print(Text(printable(f"old: {comparison.old}\nnew: {comparison.new}"), style="dim"))
    console.print(table)
    for warning in comparison.warnings:
        console.print(Text(printable(warning), style="yellow"), soft_wrap=True)


def print_tuning(console: Console, tuning: Tuning) -> None:
    """Every count that was tried, and which are the fastest."""
    place = tuning.place
    backend = " ".join(dict.fromkeys(place.backends))
    console.print(Text(printable(f"{place.bundle} on {backend}: {tuning.frames}"), style="bold"), soft_wrap=True)
    console.print(Text(printable(f"{place.device}, {place.cores} cores"), style="dim"), soft_wrap=True)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    for name in ("frames/s", "slowest", "fastest", "times faster"):
        table.add_column(name, justify="right")
    table.add_column("")
    for what, chosen in (("tiles", tuning.tiles), ("ahead", tuning.ahead)):
        for tried in (one for one in tuning.tried if one.what == what):
            rates = (f"{rate:.2f}" for rate in (tried.frames_per_s, tried.least_per_s, tried.most_per_s, tried.times_faster))
            name = f"{tried.count} a launch" if what == "tiles" else f"{tried.count} ahead"
            table.add_row(name, *rates, "chosen" if tried.count == chosen else "", style="bold" if tried.count == chosen else "")
        table.add_section()
    console.print(table)
    if tuning.load_before > 0.5:
        busy = f"The machine was busy before we began (load {tuning.load_before:.1f} on {place.cores} cores): tune again when it is not."
        console.print(Text(busy, style="yellow"), soft_wrap=True)


def _cells(each: Quantiles) -> list[str]:
    return [f"{value:.1f}" for value in (each.p50, each.p90, each.p99, each.p999, each.max)]
