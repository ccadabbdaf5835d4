"""The plots of a profile, each an SVG or nothing where the profile has no figures for it."""

import numpy as np

from agvas_runtime.profile.record import Profile
from agvas_runtime.report.chart import Chart, number

__all__ = ["gpu_plot", "latency_histogram", "latency_series", "offered_latency", "offered_rate", "roofline", "stage_bars"]

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
