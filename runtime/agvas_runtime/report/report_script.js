"use strict";
// Everything that comes from outside (names, messages, prompts) enters the page as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const CARDS = 48, ROWS = 200, BINS = 40, ERRORS = 50;
const WORDS = { FAIL: "FAIL", PASS: "PASS", NO_VERDICT: "NO VERDICT" };
const VERDICTS = ["FAIL", "PASS", "NO_VERDICT"];
const state = { verdict: null, words: "", order: "suspect", shown: [], cards: 0, rows: 0, open: -1 };

const $ = (id) => document.getElementById(id);
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
function draw(tag, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
function icon(verdict) {
  const svg = draw("svg", { class: "icon", "aria-hidden": "true" });
  svg.append(draw("use", { href: "#icon-" + verdict }));
  return svg;
}
const badge = (verdict) => make("span", { class: verdict }, icon(verdict), " " + WORDS[verdict]);
const count = (number) => number.toLocaleString("en");
const score = (row) => (row.s === null ? "–" : row.s.toFixed(3));
const milliseconds = (ms) => (ms === null ? "–" : ms >= 100 ? count(Math.round(ms)) : ms.toPrecision(2));
function area(row) {
  if (row.a === null) return "–";
  const percent = row.a * 100;
  return percent === 0 ? "0" : percent < 0.01 ? "<0.01" : percent.toFixed(2);
}

// The folder that all names share says nothing about any of them: it is left out of captions.
function sharedFolder(names) {
  if (names.length < 2) return "";
  let prefix = names[0];
  for (const name of names) while (!name.startsWith(prefix)) prefix = prefix.slice(0, -1);
  return prefix.slice(0, prefix.lastIndexOf("/") + 1);
}
const shared = sharedFolder(data.rows.map((row) => row.n));
const short = (row) => (shared ? row.n.slice(shared.length) : row.n.split("/").slice(-2).join("/"));

function header() {
  $("headline").textContent = data.headline;
  const keys = ["model", "prompt", "mode", "threshold", "date"].filter((key) => data.facts[key]);
  $("summary").textContent = keys.map((key) => (key === "prompt" ? `“${data.facts[key]}”` : key === "threshold" ? `threshold ${data.facts[key]}` : data.facts[key])).join(" · ");
  $("notes").hidden = data.notes.length === 0;
  $("notes").append(...data.notes.map((note) => make("li", {}, note)));
  const total = VERDICTS.reduce((sum, verdict) => sum + data.counts[verdict], 0);
  for (const [verdict, number] of [[null, total], ...VERDICTS.map((verdict) => [verdict, data.counts[verdict]])]) {
    const label = verdict ? [icon(verdict), WORDS[verdict]] : ["Inspected"];
    const tile = make("button", { class: "tile", "aria-pressed": verdict === null, onclick: () => { state.verdict = verdict; update(); } },
      make("b", {}, count(number)), make("span", { class: verdict || "" }, ...label));
    tile.verdict = verdict;
    $("tiles").append(tile);
  }
  for (const [label, value] of Object.entries(data.facts)) $("facts").append(make("dt", {}, label), make("dd", {}, value));
  if (data.errors.length) {
    $("errors").hidden = false;
    $("errors").querySelector("h2").append(icon("NO_VERDICT"), ` Could not be judged: ${count(data.errors_total)}`);
    const list = $("errors").querySelector("dl");
    for (const [name, message] of data.errors.slice(0, ERRORS)) list.append(make("dt", {}, name), make("dd", {}, message));
    const left = data.errors_total - Math.min(ERRORS, data.errors.length);
    if (left > 0) list.append(make("dt", {}, `and ${count(left)} more`), make("dd", {}, "see the table and results.jsonl"));
  }
}

function histogram() {
  const place = $("histogram"), scored = data.rows.filter((row) => row.s !== null);
  place.replaceChildren();
  if (!scored.length) { place.append(make("p", { class: "nothing" }, "No scores")); return; }
  const width = Math.max(240, place.clientWidth), height = 150, left = 30, bottom = 22, top = 16, plot = width - left - 6;
  const bins = { FAIL: new Array(BINS).fill(0), PASS: new Array(BINS).fill(0) };
  for (const row of scored) bins[row.v][Math.min(BINS - 1, Math.floor(row.s * BINS))] += 1;
  const highest = Math.max(...bins.FAIL.map((number, bin) => number + bins.PASS[bin]));
  const x = (value) => left + value * plot, y = (number) => height - bottom - (number / highest) * (height - bottom - top);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": "Histogram of the scores" });
  for (const tick of new Set([highest, Math.round(highest / 2)])) {
    svg.append(draw("line", { x1: left, x2: width - 6, y1: y(tick), y2: y(tick), stroke: "var(--rule)" }), draw("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, count(tick)));
  }
  for (let bin = 0; bin < BINS; bin += 1) {
    let base = 0;
    for (const verdict of ["PASS", "FAIL"]) {
      const number = bins[verdict][bin];
      if (!number) continue;
      const bar = draw("rect", { x: x(bin / BINS) + 0.75, width: plot / BINS - 1.5, y: y(base + number), height: y(base) - y(base + number), fill: `var(--${verdict})`, rx: 1 });
      bar.append(draw("title", {}, `${WORDS[verdict]}: ${number} between ${bin / BINS} and ${(bin + 1) / BINS}`));
      svg.append(bar);
      base += number;
    }
  }
  svg.append(draw("line", { x1: left, x2: width - 6, y1: height - bottom, y2: height - bottom, stroke: "var(--quiet)" }));
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) svg.append(draw("text", { x: x(tick), y: height - 6, "text-anchor": tick === 1 ? "end" : "middle" }, tick));
  if (data.threshold !== null) {
    const at = x(data.threshold);
    svg.append(draw("line", { x1: at, x2: at, y1: 4, y2: height - bottom, stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": "4 3" }),
      draw("text", { x: at + (data.threshold > 0.7 ? -5 : 5), y: 11, "text-anchor": data.threshold > 0.7 ? "end" : "start", fill: "var(--ink)" }, `threshold ${+data.threshold.toFixed(3)}`));
  }
  place.append(svg, make("ul", { class: "legend" }, make("li", {}, badge("PASS")), make("li", {}, badge("FAIL"))));
}

function stages() {
  const place = $("stages"), times = Object.entries(data.stages).filter(([stage]) => stage !== "total");
  place.replaceChildren();
  $("rate").textContent = data.rate ? `${data.rate >= 10 ? Math.round(data.rate) : data.rate.toPrecision(2)} images/s overall; median per stage:` : "";
  const sum = times.reduce((total, [, ms]) => total + ms, 0);
  if (!sum) { place.append(make("p", { class: "nothing" }, "No timings")); return; }
  const width = Math.max(240, place.clientWidth), height = 34;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": "Share of each stage" });
  const legend = make("ul", { class: "legend" });
  const shade = (at) => `color-mix(in oklab, var(--PASS) ${90 - (70 * at) / Math.max(1, times.length - 1)}%, var(--paper))`;
  let x = 0;
  times.forEach(([stage, ms], at) => {
    const share = (ms / sum) * width;
    const bar = draw("rect", { x, y: 0, width: Math.max(0.5, share - 1), height, style: `fill:${shade(at)}`, rx: 2 });
    bar.append(draw("title", {}, `${stage}: ${milliseconds(ms)} ms`));
    svg.append(bar);
    const swatch = make("i");
    swatch.style.background = shade(at);
    legend.append(make("li", {}, swatch, stage, make("b", {}, `${milliseconds(ms)} ms`)));
    x += share;
  });
  if (data.stages.total) legend.append(make("li", {}, make("i"), "total", make("b", {}, `${milliseconds(data.stages.total)} ms`)));
  place.append(svg, legend);
}

function picture(row, large) {
  const thumbnail = data.thumbnails[row.i];
  if (!thumbnail) {
    const why = row.e || "This picture was left out to keep the report small; the saved overlay has it.";
    return make("div", { class: "empty" }, row.e ? icon("NO_VERDICT") : null, why);
  }
  const frame = make("div", { class: "picture" });
  frame.style.setProperty("--ratio", thumbnail.w / thumbnail.h);
  frame.append(make("img", { src: thumbnail.src, alt: large ? row.n : "", loading: "lazy" }));
  if (large && $("viewer-layer").value === "scores" && thumbnail.p) frame.append(scoreMap(thumbnail));
  else if (thumbnail.d) {
    const svg = draw("svg", { class: "marks", viewBox: `0 0 ${thumbnail.w} ${thumbnail.h}`, preserveAspectRatio: "none" });
    svg.append(draw("path", { d: thumbnail.d }), draw("path", { d: thumbnail.d }));
    frame.append(svg);
  }
  if (frame.children.length > 1) frame.append(make("div", { class: "edge" }));
  return frame;
}

// Dark over orange to near white: brighter is more anomalous, readable without colour vision.
const HEAT = [[20, 16, 40], [110, 40, 50], [214, 90, 20], [255, 170, 40], [255, 250, 220]];
function scoreMap(thumbnail) {
  const canvas = make("canvas", { class: "scores" }), grey = new Image();
  grey.onload = () => {
    canvas.width = grey.width; canvas.height = grey.height;
    const pen = canvas.getContext("2d");
    pen.drawImage(grey, 0, 0);
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < pixels.data.length; at += 4) {
      const value = (pixels.data[at] / 255) * (HEAT.length - 1), low = HEAT[Math.floor(value)], high = HEAT[Math.ceil(value)];
      for (let channel = 0; channel < 3; channel += 1) pixels.data[at + channel] = low[channel] + (high[channel] - low[channel]) * (value % 1);
      pixels.data[at + 3] = 225;
    }
    pen.putImageData(pixels, 0, 0);
  };
  grey.src = thumbnail.p;
  return canvas;
}

function wipe(element, value) {
  element.style.setProperty("--wipe", value);
  const edge = element.querySelector(".edge");
  if (edge) edge.hidden = +value <= 0 || +value >= 100;
}

function card(row, at) {
  const box = make("div", { class: "box" }, picture(row, false));
  const article = make("article", { class: "card is-" + row.v },
    make("button", { "aria-label": `Enlarge ${row.n}`, onclick: () => view(at) }, box));
  if (box.querySelector(".marks")) {
    article.append(make("input", { type: "range", min: 0, max: 100, value: $("wipe-all").value, "aria-label": `Marks of ${row.n}`, oninput: (event) => wipe(box, event.target.value) }));
    wipe(box, $("wipe-all").value);
  }
  article.append(make("div", { class: "caption" }, make("div", {}, badge(row.v), row.s === null ? null : make("b", {}, score(row))), make("p", { title: row.n }, short(row)), row.t ? make("q", {}, row.t) : null));
  return article;
}

const COLUMNS = [["Verdict", "v"], ["Name", "n"], ["Score", "s"], ["Regions", "r"], ["Area %", "a"], ["Size px", "px"], ["ms", "ms"]];
function tableRow(row, at) {
  const cell = (text, kind) => make("td", { class: kind }, text);
  return make("tr", { onclick: () => view(at) }, make("td", {}, badge(row.v)),
    make("td", { class: "name", title: row.n }, make("button", {}, short(row)), row.e || row.t ? make("small", {}, row.e || row.t) : null),
    cell(score(row), "number"), cell(row.w ? count(row.r) : "–", "number"), cell(area(row), "number"),
    cell(row.w ? `${row.w}×${row.h}` : "–", "number wide"), cell(milliseconds(row.ms), "number wide"));
}
function columns() {
  $("columns").replaceChildren(...COLUMNS.map(([label, key]) => {
    const sorted = state.order === key ? "ascending" : state.order === "-" + key ? "descending" : null;
    const kind = key === "v" || key === "n" ? "" : key === "px" || key === "ms" ? "number wide" : "number";
    // A first click on a number puts the largest on top.
    const turn = () => { state.order = state.order === "-" + key ? key : state.order === key ? "-" + key : kind ? "-" + key : key; update(); };
    return make("th", { "aria-sort": sorted, class: kind }, make("button", { onclick: turn }, label));
  }));
}

const RANK = { FAIL: 2, NO_VERDICT: 1, PASS: 0 };
function ordered(rows) {
  const key = state.order.replace("-", ""), sign = state.order.startsWith("-") ? -1 : 1;
  const value = (row) => (key === "px" ? row.w * row.h : key === "v" ? -RANK[row.v] : row[key]);
  return rows.sort((one, other) => {
    if (key === "index") return one.i - other.i;
    if (key === "suspect") return RANK[other.v] - RANK[one.v] || (other.s ?? -1) - (one.s ?? -1) || one.i - other.i;
    const a = value(one), b = value(other);
    if (a === null || b === null) return (a === null) - (b === null) || one.i - other.i;
    return sign * (key === "n" ? a.localeCompare(b, "en", { numeric: true }) : a - b) || one.i - other.i;
  });
}

function update() {
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  state.shown = ordered(data.rows.filter((row) => (!state.verdict || row.v === state.verdict) && words.every((word) => `${row.n} ${row.t || ""}`.toLowerCase().includes(word))));
  for (const tile of $("tiles").children) tile.setAttribute("aria-pressed", tile.verdict === state.verdict);
  $("order").value = state.order;
  $("shown").textContent = `${count(state.shown.length)} shown`;
  columns();
  state.cards = state.rows = 0;
  $("cards").replaceChildren(); $("rows").replaceChildren();
  moreCards(); moreRows();
  if (!state.shown.length) $("cards").append(make("p", { class: "nothing" }, data.rows.length ? "Nothing matches the filter." : "There are no results."));
}
function moreCards() {
  const next = state.shown.slice(state.cards, state.cards + CARDS);
  $("cards").append(...next.map((row, at) => card(row, state.cards + at)));
  state.cards += next.length;
  more("more-cards", state.shown.length - state.cards, CARDS);
}
function moreRows() {
  const next = state.shown.slice(state.rows, state.rows + ROWS);
  $("rows").append(...next.map((row, at) => tableRow(row, state.rows + at)));
  state.rows += next.length;
  more("more-rows", state.shown.length - state.rows, ROWS);
}
function more(id, left, step) {
  $(id).hidden = left <= 0;
  $(id).textContent = `Show ${count(Math.min(step, left))} more of ${count(left)}`;
}

function view(at) {
  if (at < 0 || at >= state.shown.length) return;
  state.open = at;
  const row = state.shown[at], thumbnail = data.thumbnails[row.i];
  $("viewer-verdict").replaceChildren(badge(row.v));
  $("viewer-name").textContent = row.n;
  $("viewer-box").replaceChildren(picture(row, true));
  wipe($("viewer-box"), $("viewer-wipe").value);
  $("viewer-previous").disabled = at === 0;
  $("viewer-next").disabled = at === state.shown.length - 1;
  const facts = [];
  if (row.w) facts.push(make("p", {}, `Score ${score(row)} · ${row.r} ${row.r === 1 ? "region" : "regions"} · ${area(row)} % of the area · ${row.w}×${row.h} px · ${milliseconds(row.ms)} ms · ${at + 1} of ${count(state.shown.length)}`));
  if (row.t) facts.push(make("p", {}, make("q", {}, row.t)));
  if (row.e && thumbnail) facts.push(make("p", {}, row.e));
  const regions = thumbnail ? thumbnail.r : [];
  regions.slice(0, 6).forEach(([x, y, w, h, px, mean], number) => facts.push(make("p", {}, `Region ${number + 1}: ${count(px)} px in a box of ${w}×${h} px at (${x}, ${y}), mean score ${mean.toFixed(2)}`)));
  if (row.r > 6) facts.push(make("p", {}, `and ${row.r - 6} more regions`));
  if (row.f) {
    const links = make("p", {}, "Files: ");
    for (const [kind, path] of Object.entries(row.f)) links.append(make("a", { href: path.split("/").map(encodeURIComponent).join("/"), target: "_blank", rel: "noopener" }, kind), " ");
    facts.push(links);
  }
  $("viewer-facts").replaceChildren(...facts);
  if (!$("viewer").open) $("viewer").showModal();
}
function tab(name) {
  for (const other of ["pictures", "table"]) {
    $(other).hidden = other !== name;
    $("tab-" + other).setAttribute("aria-selected", other === name);
  }
}

header(); update(); histogram(); stages(); tab(location.hash === "#as-table" ? "table" : "pictures");
$("tab-pictures").onclick = () => tab("pictures");
$("tab-table").onclick = () => tab("table");
$("search").oninput = (event) => { state.words = event.target.value; update(); };
$("order").onchange = (event) => { state.order = event.target.value; update(); };
$("wipe-all").oninput = (event) => {
  for (const box of document.querySelectorAll(".card .box")) wipe(box, event.target.value);
  for (const slider of document.querySelectorAll(".card input")) slider.value = event.target.value;
};
$("more-cards").onclick = moreCards;
$("more-rows").onclick = moreRows;
// Near its end the list grows by itself; the buttons remain for the keyboard.
const near = new IntersectionObserver((entries) => { for (const entry of entries) if (entry.isIntersecting) entry.target.click(); }, { rootMargin: "200px" });
near.observe($("more-rows"));
$("viewer-wipe").oninput = (event) => wipe($("viewer-box"), event.target.value);
$("viewer-layer").onchange = () => view(state.open);
$("viewer-close").onclick = () => $("viewer").close();
$("viewer-previous").onclick = () => view(state.open - 1);
$("viewer-next").onclick = () => view(state.open + 1);
$("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
$("viewer").addEventListener("keydown", (event) => {
  if (event.target.type === "range" || event.target.tagName === "SELECT") return;
  if (event.key === "ArrowRight") view(state.open + 1);
  else if (event.key === "ArrowLeft") view(state.open - 1);
});
addEventListener("resize", () => { histogram(); stages(); });
// report.html#3 opens frame 3, report.html#as-table the table.
const wanted = /^#(\d+)$/.exec(location.hash);
if (wanted) view(state.shown.findIndex((row) => row.i === +wanted[1]));
