// Two charts, drawn again with each state: yield and parts of the last hour, and the time from trigger to verdict.
import { at, drawn } from "./asking.js";

const WIDTH = 440;
const LEFT = 38, RIGHT = 8;

const x = (share) => LEFT + share * (WIDTH - LEFT - RIGHT);

function label(text, where, anchor = "end") {
  return drawn("text", { ...where, "text-anchor": anchor }, text);
}

export const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(share > 0.9995 && share < 1 ? 2 : 1)} %`);

export function drawHour(svg, minutes) {
  const height = 150, top = 10, middle = 78, bars = 96, bottom = 134;
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  const yields = minutes.map(([pass, fail, none]) => (pass + fail + none ? pass / (pass + fail + none) : null));
  const known = yields.filter((share) => share !== null);
  const floor = known.length ? Math.max(0, Math.floor(Math.min(...known, 0.95) * 10 - 0.2) / 10) : 0;
  const y = (share) => middle - ((share - floor) / (1 - floor)) * (middle - top);
  const parts = [drawn("defs", {}, hatch())];
  for (const share of [floor, (1 + floor) / 2, 1]) {
    parts.push(drawn("path", { d: `M${LEFT} ${y(share)}H${WIDTH - RIGHT}`, class: "grid" }));
    parts.push(label(`${Math.round(share * 100)} %`, { x: LEFT - 5, y: y(share) + 4 }));
  }
  let path = "", before = null;
  yields.forEach((share, minute) => {
    if (share !== null) {
      const [px, py] = [x((minute + 0.5) / minutes.length), y(share)];
      path += `${before === null ? "M" : "L"}${px.toFixed(1)} ${py.toFixed(1)}`;
      parts.push(drawn("circle", { cx: px, cy: py, r: 2, class: "point" }));
    }
    before = share;
  });
  parts.push(drawn("path", { d: path || "M0 0", class: "yield" }));
  const most = Math.max(1, ...minutes.map(([pass, fail, none]) => pass + fail + none));
  const wide = (WIDTH - LEFT - RIGHT) / minutes.length;
  minutes.forEach((counts, minute) => {
    let from = bottom;
    ["PASS", "FAIL", "NO_VERDICT"].forEach((verdict, index) => {
      const tall = (counts[index] / most) * (bottom - bars);
      if (!tall) return;
      from -= tall;
      const name = verdict === "FAIL" ? "edge-FAIL" : `bar-${verdict}`;
      parts.push(drawn("rect", { x: x(minute / minutes.length) + 0.6, y: from, width: wide - 1.2, height: tall, class: name }));
    });
  });
  parts.push(drawn("path", { d: `M${LEFT} ${bottom}H${WIDTH - RIGHT}`, class: "grid" }));
  parts.push(label(`${most}`, { x: LEFT - 5, y: bars + 6 }), label("0", { x: LEFT - 5, y: bottom + 2 }));
  parts.push(label("1 h ago", { x: LEFT, y: height - 2 }, "start"), label("now", { x: WIDTH - RIGHT, y: height - 2 }));
  svg.replaceChildren(...parts);
  const sum = [0, 1, 2].map((index) => minutes.reduce((all, counts) => all + counts[index], 0));
  svg.setAttribute("aria-label", `Yield and parts of each minute. In all ${sum[0]} PASS, ${sum[1]} FAIL, ${sum[2]} NO VERDICT.`);
  at("hour-words").textContent = `Line: share of PASS. Bars: parts a minute; full ${sum[0]} PASS, hatched ${sum[1]} FAIL, hollow ${sum[2]} NO VERDICT.`;
}

function hatch() {
  return drawn("pattern", { id: "hatch", class: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    drawn("rect", { width: 5, height: 5 }), drawn("path", { d: "M1 0V5" }));
}

export const time = (ms) => (ms === null ? "–" : ms >= 10000 ? `${(ms / 1000).toFixed(0)} s` : ms >= 1000 ? `${(ms / 1000).toFixed(1)} s` : `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`);

export function drawTimes(svg, latency, deadline) {
  const height = 112, top = 24, bottom = 92;
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  const bounds = latency.bounds_ms, bars = bounds.length + 1;
  const most = Math.max(1, ...latency.counts);
  const wide = (WIDTH - LEFT - RIGHT) / bars;
  const parts = [];
  latency.counts.forEach((count, index) => {
    const tall = (count / most) * (bottom - top);
    if (tall) parts.push(drawn("rect", { x: x(index / bars) + 1, y: bottom - tall, width: wide - 2, height: tall, class: "time" }));
  });
  parts.push(drawn("path", { d: `M${LEFT} ${bottom}H${WIDTH - RIGHT}`, class: "grid" }));
  bounds.forEach((bound, index) => {
    if (String(bound)[0] === "1") parts.push(label(time(bound).replace(".0", ""), { x: x((index + 1) / bars), y: height - 5 }, "middle"));
  });
  const end = x(place(deadline, bounds) / bars);
  parts.push(drawn("path", { d: `M${end} ${top - 16}V${bottom}`, class: "deadline" }));
  parts.push(label("deadline", { x: end - 5, y: top - 9 }));
  parts.push(label(`${most}`, { x: LEFT - 5, y: top + 6 }), label("0", { x: LEFT - 5, y: bottom + 3 }));
  svg.replaceChildren(...parts);
  const words = `Half of the parts within ${time(latency.p50_ms)}, 99 of 100 within ${time(latency.p99_ms)}; deadline ${time(deadline)}.`;
  svg.setAttribute("aria-label", words);
  at("times-words").textContent = latency.p50_ms === null ? "No part yet." : words;
}

export function drawTrend(svg, parts) {
  const height = 112, top = 10, bottom = 96;
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  const highest = Math.max(0.01, ...parts.flatMap(([score, limit]) => [score, limit])) * 1.1;
  const y = (value) => bottom - (value / highest) * (bottom - top);
  const across = (index) => x((index + 0.5) / Math.max(parts.length, 20));
  const marks = [drawn("path", { d: `M${LEFT} ${bottom}H${WIDTH - RIGHT}`, class: "grid" })];
  parts.forEach(([score, , verdict], index) => marks.push(drawn("circle", { cx: across(index), cy: y(score), r: 2.6, class: `score-${verdict}` })));
  const limit = parts.map(([, value], index) => `${index ? "L" : "M"}${across(index).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  marks.push(drawn("path", { d: limit || "M0 0", class: "limit" }));
  marks.push(label(highest.toFixed(2), { x: LEFT - 5, y: top + 4 }), label("0", { x: LEFT - 5, y: bottom + 3 }));
  svg.replaceChildren(...marks);
  const passed = parts.filter(([, , verdict]) => verdict === "PASS").map(([score, value]) => value - score);
  const words = passed.length
    ? `Dots: score of each part. Dashed: the threshold. Least margin of ${passed.length} PASS ${Math.min(...passed).toFixed(3)}, of the last ${passed.at(-1).toFixed(3)}.`
    : "No PASS yet.";
  svg.setAttribute("aria-label", words);
  at("trend-words").textContent = words;
}

// Where a time stands among the bars, in bars; their ends are spaced by logarithms.
function place(ms, bounds) {
  const after = bounds.findIndex((bound) => ms <= bound);
  if (after < 0) return bounds.length + 0.5;
  const from = after ? bounds[after - 1] : bounds[0] / 2;
  return after + Math.log(ms / from) / Math.log(bounds[after] / from);
}
