// One part after the other, by keys. A decision is on the server's disk before the page goes on; nothing is kept here.
import { WORDS, NoKey, ask, at, lamp, login } from "./asking.js";
import { Brush } from "./brush.js";
import { showNext } from "./next.js";

const SAID = { agree: "agreed", "false-reject": "false reject", escape: "escape", good: "good", bad: "not good" };
const page = { parts: [], index: -1, part: null, busy: false, zoom: 1 };
const brush = new Brush(at("mask"));

const path = (seq, rest = "") => `v1/review/parts/${seq}${rest}`;

async function refresh() {
  const overview = await (await ask("v1/review")).json();
  page.parts = overview.parts.map(([seq, verdict, said]) => ({ seq, verdict, said }));
  page.out = overview.out;
  at("kinds").replaceChildren(...overview.kinds.map((kind) => Object.assign(document.createElement("option"), { value: kind })));
  count();
}

function count() {
  const done = page.parts.filter((part) => part.said);
  const of = (said) => done.filter((part) => part.said === said).length;
  at("bar").max = Math.max(1, page.parts.length);
  at("bar").value = done.length;
  at("counts").textContent = `${done.length} of ${page.parts.length} reviewed: ${of("agree")} agreed, ${of("false-reject")} false rejects, ${of("escape")} escapes`;
}

function say(text) {
  at("banner").textContent = text;
  at("banner").hidden = !text;
}

async function show(index) {
  if (index < 0 || index >= page.parts.length) return;
  const { seq } = page.parts[index];
  page.index = index;
  page.part = await (await ask(path(seq))).json();
  history.replaceState(null, "", `#${seq}`);
  mode(false);
  describe();
  const [picture, mask] = await Promise.all([ask(path(seq, "/picture")), ask(path(seq, "/mask"))]);
  const bitmap = await createImageBitmap(await mask.blob());
  brush.load(bitmap);
  const url = URL.createObjectURL(await picture.blob());
  at("image").src = url;
  await at("image").decode();
  URL.revokeObjectURL(url);
  page.zoom = 1;
  fit();
}

function describe() {
  const { part } = page;
  at("light").replaceChildren(lamp(part.verdict));
  at("word").className = part.verdict;
  at("word").textContent = WORDS[part.verdict];
  at("why").textContent = part.why;
  const score = part.score === null ? "" : ` · score ${part.score.toFixed(2)}`;
  at("facts").textContent = `${page.index + 1} / ${page.parts.length} · part ${part.seq}${score} · ${part.station} · ${new Date(part.settled_utc).toLocaleString()}`;
  at("said").textContent = part.said ? `${SAID[part.said]}${part.kind ? `: ${part.kind}` : ""}` : "open";
  at("said").className = part.said ? "done" : "";
  at("image").alt = `Part ${part.seq}`;
  at("kind").value = part.kind;
  const none = part.verdict === "NO_VERDICT";
  label("agree", part.verdict === "FAIL" ? "Agree: it is bad" : "Agree: it is good", !none);
  label("good", none ? "It is good" : "False reject: it is good", part.verdict !== "PASS");
  label("bad", none ? "It is bad: paint" : "Escape: paint what was missed", part.verdict !== "FAIL");
}

function label(name, text, shown) {
  const button = document.querySelector(`#judge [data-do=${name}]`);
  button.hidden = !shown;
  button.querySelector("span").textContent = text;
}

// The picture as large as its place, or larger by the zoom.
function fit() {
  const { canvas } = brush, box = at("box");
  const scale = Math.min(box.clientWidth / canvas.width, box.clientHeight / canvas.height) * page.zoom;
  at("stage").style.width = `${Math.floor(canvas.width * scale)}px`;
  at("stage").style.height = `${Math.floor(canvas.height * scale)}px`;
  at("size").textContent = `${2 * brush.radius} px`;
}

function mode(painting) {
  brush.painting = painting;
  brush.erasing = false;
  document.querySelector('[data-do="erase"]').setAttribute("aria-pressed", false);
  at("stage").classList.toggle("painting", painting);
  at("stage").classList.remove("bare");
  at("brushes").hidden = !painting;
  at("judge").hidden = painting;
  fit();
}

async function decide(word) {
  const { seq } = page.part;
  const body = JSON.stringify(word);
  page.part = await (await ask(path(seq), { method: "POST", headers: { "Content-Type": "application/json" }, body })).json();
  page.parts[page.index].said = page.part.said;
  if (word.kind && ![...at("kinds").children].some((option) => option.value === word.kind)) {
    at("kinds").append(Object.assign(document.createElement("option"), { value: word.kind }));
  }
  count();
  const next = open(page.index + 1);
  if (next >= 0) return show(next);
  say(`Every part is reviewed; the folder is ${page.out}.`);
  mode(false);
  describe();
}

function open(from) {
  for (let step = 0; step < page.parts.length; step++) {
    const index = (from + step) % page.parts.length;
    if (!page.parts[index].said) return index;
  }
  return -1;
}

const ACTIONS = {
  agree: () => page.part.verdict !== "NO_VERDICT" && decide({ good: page.part.verdict === "PASS", kind: page.part.kind }),
  good: () => page.part.verdict !== "PASS" && decide({ good: true }),
  bad: () => page.part.verdict !== "FAIL" && mode(true),
  paint: () => mode(true),
  hide: () => at("stage").classList.toggle("bare"),
  back: () => show(page.index - 1),
  next: () => show(page.index + 1),
  async open() { await refresh(); await show(open(page.index + 1)); },
};
const PAINTING = {
  erase() {
    brush.erasing = !brush.erasing;
    document.querySelector('[data-do="erase"]').setAttribute("aria-pressed", brush.erasing);
  },
  smaller() { brush.scale(0.8); fit(); },
  larger() { brush.scale(1.25); fit(); },
  undo: () => brush.undo(),
  clear: () => brush.clear(),
  zoom() { page.zoom = page.zoom >= 4 ? 1 : page.zoom * 2; fit(); },
  cancel: () => show(page.index),
  save() {
    if (brush.empty) throw new Error("The mask is empty: paint what is wrong, or press Esc.");
    return decide({ good: false, kind: at("kind").value.trim(), mask: brush.url() });
  },
};
const KEYS = { a: "agree", f: "good", e: "bad", p: "paint", m: "hide", n: "open", b: "back", ArrowLeft: "back", ArrowRight: "next" };
const PAINT_KEYS = { x: "erase", "[": "smaller", "]": "larger", z: "undo", c: "clear", "+": "zoom", Enter: "save", Escape: "cancel" };

async function act(name) {
  const action = (brush.painting ? PAINTING : ACTIONS)[name];
  if (page.busy || !action || !page.part) return;
  busy(true);
  say("");
  try {
    await action();
  } catch (error) {
    say(error.message);
  } finally {
    busy(false);
  }
}

// Keys do nothing meanwhile: one that is held down decides once, and nobody decides about a part that is not shown yet.
function busy(is) {
  page.busy = is;
  at("view").setAttribute("aria-busy", is);
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input") && !["Enter", "Escape"].includes(event.key)) return;
  if (event.target.closest("#login") || (event.target.matches("button") && event.key === "Enter")) return;
  const name = (brush.painting ? PAINT_KEYS : KEYS)[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!name) return;
  event.preventDefault();
  act(name);
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (button) act(button.dataset.do);
});
addEventListener("resize", () => page.part && fit());

async function start() {
  try {
    await refresh();
  } catch (error) {
    if (!(error instanceof NoKey)) throw error;
    await login("v1/review");
    await refresh();
  }
  busy(true);
  at("page").hidden = false;
  showNext((seq) => show(page.parts.findIndex((part) => part.seq === seq)));
  if (!page.parts.length) {
    at("view").hidden = true;
    return say("No part has its image kept: see keep in the recipe.");
  }
  const asked = page.parts.findIndex((part) => `#${part.seq}` === location.hash);
  await show(asked >= 0 ? asked : Math.max(0, open(0)));
  busy(false);
}

start().catch((error) => {
  at("page").hidden = false;
  say(error.message);
});
