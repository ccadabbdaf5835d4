// A rectangle to look at and polygons to ignore, drawn on the last frame, in its pixels. The server keeps them as a new version of the recipe.
import { ask, at, drawn } from "./asking.js";

const NEAR_PX = 12; // of the screen: a click this near to the first point closes the polygon
const draft = { station: null, state: null, tool: "roi", roi: null, ignore: [], open: [], from: null };

// `address(name, rest)` is the path of a station's routes.
export function areasOf(address, station) {
  at("areas").addEventListener("click", () => begin(address, station()?.name));
  at("editor").addEventListener("click", (event) => {
    const name = event.target.closest("button[data-area]")?.dataset.area;
    if (name) ACTIONS[name](address);
  });
  const sheet = at("sheet");
  sheet.addEventListener("pointerdown", down);
  sheet.addEventListener("pointermove", (event) => { if (draft.from) { draft.roi = [draft.from, place(event)]; draw(); } });
  sheet.addEventListener("pointerup", () => { draft.from = null; });
}

const ACTIONS = {
  roi: () => use("roi"),
  mask: () => use("mask"),
  close: () => { finish(); draw(); },
  undo: () => {
    if (draft.open.length) draft.open.pop();
    else if (draft.tool === "mask" && draft.ignore.length) draft.ignore.pop();
    else draft.roi = null;
    draw();
  },
  clear: () => { Object.assign(draft, { roi: null, ignore: [], open: [] }); draw(); },
  cancel: () => leave(),
  save,
};

async function begin(address, name) {
  if (!name) return;
  try {
    const state = await (await ask(address(name, "areas"))).json();
    const picture = await ask(address(name, "newest?mask=false"));
    if (picture.status === 204 || !state.frame) throw new Error("there is no picture to draw on yet");
    const url = URL.createObjectURL(await picture.blob());
    at("paper").src = url;
    await at("paper").decode();
    URL.revokeObjectURL(url);
    Object.assign(draft, { station: name, state, roi: state.roi, ignore: state.ignore, open: [], from: null });
    at("sheet").setAttribute("viewBox", `0 0 ${state.frame.join(" ")}`);
    at("editor").hidden = false;
    at("box").hidden = true;
    say(`Drawn on ${state.frame.join(" x ")} px; recipe ${state.recipe_name}.`);
    use("roi");
  } catch (error) {
    at("editor").hidden = false;
    say(error.message, true);
  }
}

function leave() {
  at("editor").hidden = true;
  at("box").hidden = false;
}

function use(tool) {
  finish();
  draft.tool = tool;
  for (const name of ["roi", "mask"]) document.querySelector(`[data-area=${name}]`).setAttribute("aria-pressed", name === tool);
  draw();
}

function finish() {
  if (draft.open.length > 2) draft.ignore = [...draft.ignore, draft.open];
  draft.open = [];
}

function place(event) {
  const box = at("sheet").getBoundingClientRect(), [width, height] = draft.state.frame;
  const inside = (value, most) => Math.round(10 * Math.min(most, Math.max(0, value * most))) / 10;
  return [inside((event.clientX - box.left) / box.width, width), inside((event.clientY - box.top) / box.height, height)];
}

function down(event) {
  if (event.button !== 0 || !draft.state) return;
  event.preventDefault();
  const here = place(event);
  if (draft.tool === "roi") {
    at("sheet").setPointerCapture(event.pointerId);
    draft.from = here;
    return;
  }
  const box = at("sheet").getBoundingClientRect(), [first] = draft.open, scale = box.width / draft.state.frame[0];
  if (draft.open.length > 2 && Math.hypot(here[0] - first[0], here[1] - first[1]) * scale < NEAR_PX) finish();
  else draft.open.push(here);
  draw();
}

function draw() {
  const points = (polygon) => polygon.map((point) => point.join(",")).join(" ");
  const shapes = draft.ignore.map((polygon) => drawn("polygon", { points: points(polygon), class: "ignored" }));
  if (draft.open.length) shapes.push(drawn("polyline", { points: points(draft.open), class: "opened" }));
  for (const [x, y] of draft.open) shapes.push(drawn("circle", { cx: x, cy: y, r: draft.state.frame[0] / 150, class: "opened" }));
  if (draft.roi) {
    const [[x0, y0], [x1, y1]] = draft.roi;
    shapes.push(drawn("rect", { x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0), class: "looked" }));
  }
  at("sheet").replaceChildren(...shapes);
}

async function save(address) {
  finish();
  draw();
  const body = JSON.stringify({ recipe: draft.state.recipe, frame: draft.state.frame, roi: draft.roi, ignore: draft.ignore });
  try {
    const reply = await ask(address(draft.station, "areas"), { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const saved = await reply.json();
    say([`Saved as ${saved.path}; it does not go yet: ${saved.command}`, saved.note].filter(Boolean).join(". "));
  } catch (error) {
    say(error.message, true);
  }
}

function say(text, wrong = false) {
  at("editor-words").textContent = text;
  at("editor-words").classList.toggle("wrong", wrong);
}
