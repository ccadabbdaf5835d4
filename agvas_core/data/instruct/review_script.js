"use strict";
// Every decision is on the server's disk before the page goes on; nothing is kept here.
const FIELDS = ["expectation", "observation", "diagnosis", "summary", "explanation"];
const at = (id) => document.getElementById(id);
let states = [];
let entry = null;
let editing = false;
let busy = false;
const run = Date.now(); // so that pictures of an earlier review on this port are not taken from the cache

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The review server does not answer. Start agvas data review again; what you decided is kept.");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function say(text) {
  at("message").textContent = text || "";
  at("message").hidden = !text;
}

function count() {
  const of = (state) => states.filter((one) => one === state).length;
  const open = of("pending");
  at("bar").max = Math.max(1, states.length);
  at("bar").value = states.length - open;
  at("counts").textContent =
    `${states.length - open} of ${states.length} reviewed: ${of("accepted")} accepted, ${of("edited")} edited, ${of("rejected")} rejected`;
  at("done").hidden = open > 0 || states.length === 0;
}

function draw() {
  at("entry").hidden = false;
  at("number").textContent = `${entry.index + 1} / ${states.length}`;
  at("name").textContent = `${entry.category}${entry.kind ? `, ${entry.kind}` : ""} · ${entry.dataset}/${entry.image} · ${entry.model}`;
  at("review").textContent = entry.review;
  at("review").className = `state ${entry.review}`;
  at("image").src = `/images/${entry.index}?${run}`;
  at("overlay").src = `/overlays/${entry.index}?${run}`;
  at("texts").replaceChildren(...FIELDS.map(field));
  at("judge").hidden = at("walk").hidden = editing;
  at("edit").hidden = !editing;
}

function field(name) {
  const row = document.createElement("div");
  const label = document.createElement("label");
  const text = document.createElement(editing ? "textarea" : "p");
  label.textContent = name[0].toUpperCase() + name.slice(1);
  text.id = name;
  text[editing ? "value" : "textContent"] = entry.texts[name];
  if (editing) label.htmlFor = name;
  row.append(label, text);
  return row;
}

async function show(index) {
  entry = await ask(`/entries/${index}`);
  editing = false;
  history.replaceState(null, "", `#${index + 1}`);
  draw();
  for (const kind of ["images", "overlays"]) if (index + 1 < states.length) new Image().src = `/${kind}/${index + 1}?${run}`;
}

async function refresh() {
  const state = await ask("/state");
  states = state.states;
  at("file").textContent = state.file;
  document.title = `Review of ${state.file}`;
  count();
  if (!states.length) say("The file has no entries yet. Press P once agvas data instruct has written some.");
}

function nextPending(from) {
  for (let step = 0; step < states.length; step++) {
    const index = (from + step) % states.length;
    if (states[index] === "pending") return index;
  }
  return -1;
}

async function decide(verb, texts) {
  const here = entry.index;
  entry = await ask(`/entries/${here}`, { verb, key: entry.key, on: entry.on, texts: texts || null });
  states[here] = entry.review;
  count();
  const next = verb === "reset" ? -1 : nextPending(here + 1);
  if (next < 0) { editing = false; draw(); } else await show(next);
}

const ACTIONS = {
  accept: () => decide("accept"),
  reject: () => decide("reject"),
  reset: () => decide("reset"),
  edit() { editing = true; draw(); at("observation").focus(); },
  save: () => decide("accept", Object.fromEntries(FIELDS.map((name) => [name, at(name).value]))),
  cancel() { editing = false; draw(); },
  back: () => entry.index > 0 && show(entry.index - 1),
  next: () => entry.index + 1 < states.length && show(entry.index + 1),
  async pending() {
    await refresh();
    const index = nextPending(entry ? entry.index + 1 : 0);
    if (index >= 0) await show(index);
  },
};

async function act(name) {
  const allowed = editing ? ["save", "cancel"] : ["accept", "reject", "reset", "edit", "back", "next", "pending"];
  if (busy || !allowed.includes(name) || (!entry && name !== "pending")) return;
  busy = true; // a key that is held down decides once
  say("");
  try {
    await ACTIONS[name]();
  } catch (error) {
    say(error.message);
  } finally {
    busy = false;
  }
}

const KEYS = { a: "accept", e: "edit", r: "reject", u: "reset", b: "back", p: "pending", ArrowLeft: "back", ArrowRight: "next" };

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.repeat || event.altKey || event.metaKey) return;
  let name;
  if (editing) name = event.key === "Escape" ? "cancel" : event.key === "Enter" && event.ctrlKey ? "save" : null;
  else if (!event.ctrlKey) name = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!name) return;
  event.preventDefault();
  act(name);
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (button) act(button.dataset.do);
});
at("texts").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["image", "overlay"]) {
  at(id).addEventListener("error", () => say("A picture of this entry cannot be shown: it is missing or broken. Reject the entry, or pass --root."));
}

(async () => {
  try {
    await refresh();
    const asked = Number(location.hash.slice(1)) - 1;
    const first = Number.isInteger(asked) && asked >= 0 && asked < states.length ? asked : Math.max(0, nextPending(0));
    if (states.length) await show(first);
  } catch (error) {
    say(error.message);
  }
})();
