// The whole page: one image, a dialogue about it, and the mask of the turn that is shown. Everything from outside is text, never markup.
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const HELP = {
  direct: "The mask alone, at once.",
  describe: "What is wrong, in words, then the mask.",
  "describe-plus": "As describe, told how a good part looks.",
  explain: "The mask, then why.",
};
const SIGN = { FAIL: "✕ FAIL", PASS: "✓ PASS", NO_VERDICT: "? NO VERDICT" };

const page = { facts: null, image: null, messages: [], running: null, shown: null };

function made(tag, text = "", name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}

function mode() {
  return document.querySelector("#modes input:checked").value;
}

function drawn(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

async function start() {
  page.facts = await (await fetch("page.json")).json();
  at("bundle").textContent = page.facts.bundle;
  at("key-field").hidden = !page.facts.needs_key;
  at("key").value = sessionStorage.getItem("agvas-key") ?? "";
  for (const name of page.facts.modes) {
    const label = made("label", name);
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "mode", value: name, checked: name === "direct" });
    label.prepend(input);
    at("modes").append(label);
  }
  at("threshold").value = page.facts.threshold;
  changeMode();
  ready();
}

function changeMode() {
  at("mode-help").textContent = HELP[mode()] ?? "";
  at("look-field").hidden = mode() !== "describe-plus";
  at("words").placeholder = page.facts.instructions[mode()];
}

function ready() {
  at("send").disabled = !page.image || page.running !== null;
  at("send").hidden = page.running !== null;
  at("stop").hidden = page.running === null;
}

async function take(file) {
  if (!file) return;
  if (file.size * 4 / 3 > page.facts.max_bytes) {
    say("error", `${file.name} has ${(file.size / 1e6).toFixed(1)} MB; this server takes ${(page.facts.max_bytes * 0.75 / 1e6).toFixed(0)}.`);
    return;
  }
  page.running?.abort();
  page.image = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(file);
  });
  page.messages = [];
  at("turns").replaceChildren();
  at("drop").hidden = true;
  at("viewer").hidden = false;
  at("image").alt = file.name;
  at("image").src = page.image;
  show(null);
  ready();
  at("words").focus();
}

function turn(kind, text) {
  const element = made("div", "", `turn ${kind}`);
  element.append(made("p", text));
  at("turns").append(element);
  at("turns").scrollTop = at("turns").scrollHeight;
  return element;
}

function say(kind, text) {
  return turn(`model ${kind}`, text);
}

// [mask] stands in the words where the mask belongs.
function write(element, text) {
  const words = element.querySelector("p");
  words.replaceChildren();
  text.split("[mask]").forEach((piece, index) => {
    if (index) words.append(made("span", "mask", "mask"));
    words.append(piece);
  });
  at("turns").scrollTop = at("turns").scrollHeight;
}

function show(entry, element = null) {
  page.shown = entry;
  document.querySelectorAll(".model.chosen").forEach((one) => one.classList.remove("chosen"));
  element?.classList.add("chosen");
  at("marks").replaceChildren();
  at("regions").replaceChildren();
  at("found").hidden = true;
  at("verdict").className = entry?.verdict ?? "";
  at("verdict").textContent = entry ? SIGN[entry.verdict] : "";
  if (!entry) return;
  at("verdict").append(made("small", `score ${entry.score.toFixed(2)}`));
  frame(entry.width, entry.height);
  entry.regions.forEach((region, index) => {
    const path = [region.polygon, ...region.holes].map((ring) => `M${ring.map((point) => point.join(" ")).join("L")}Z`).join("");
    const group = drawn("g", { id: `region-${index}` });
    group.append(drawn("path", { d: path, class: "halo" }), drawn("path", { d: path }));
    at("marks").append(group);
    at("regions").append(row(region, index));
  });
  const count = entry.regions.length;
  at("found").hidden = count === 0;
  at("found-title").textContent = count === 1 ? "1 region" : `${count} regions`;
}

function row(region, index) {
  const [x, y, width, height] = region.box;
  const item = document.createElement("li");
  const button = made("button");
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  button.append(made("b", region.max_score.toFixed(2)), made("span", `${region.area_px} px at ${Math.round(region.centroid[0])}, ${Math.round(region.centroid[1])}`));
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    document.querySelectorAll("#regions button").forEach((one) => one.setAttribute("aria-pressed", "false"));
    document.querySelectorAll("#marks g").forEach((one) => one.classList.remove("chosen"));
    document.querySelectorAll("#marks rect").forEach((one) => one.remove());
    if (!on) return;
    button.setAttribute("aria-pressed", "true");
    at(`region-${index}`).classList.add("chosen");
    at("marks").append(drawn("rect", { x: x - 4, y: y - 4, width: width + 8, height: height + 8, rx: 3 }));
  });
  item.append(button);
  return item;
}

function frame(width, height) {
  at("picture").style.setProperty("--ratio", width / height);
  at("marks").setAttribute("viewBox", `0 0 ${width} ${height}`);
}

async function ask() {
  if (!page.image || page.running) return;
  const words = at("words").value.trim();
  const options = { mode: mode(), include: ["polygons"] };
  if (mode() === "describe-plus") options.normal_look = at("look").value.trim() || null;
  if (at("threshold").dataset.moved) options.threshold = Number(at("threshold").value);
  const content = [{ type: "text", text: words }];
  if (!page.messages.length) content.push({ type: "image_url", image_url: { url: page.image } });
  const asking = turn("user", words || page.facts.instructions[mode()]);
  asking.append(made("small", mode()));
  const message = { role: "user", content };
  const answer = say("waiting", "");
  page.running = new AbortController();
  ready();
  try {
    const said = await listen([...page.messages, message], options, answer);
    page.messages.push(message, { role: "assistant", content: said });
    at("words").value = "";
  } catch (error) {
    answer.classList.add("error");
    write(answer, error.name === "AbortError" ? "Stopped." : error.message);
  }
  answer.classList.remove("waiting");
  page.running = null;
  ready();
}

async function listen(messages, options, element) {
  const headers = { "Content-Type": "application/json" };
  if (at("key").value) {
    headers.Authorization = `Bearer ${at("key").value}`;
    sessionStorage.setItem("agvas-key", at("key").value);
  }
  const reply = await fetch("v1/chat/completions", {
    method: "POST", headers, signal: page.running.signal, body: JSON.stringify({ messages, stream: true, agvas: options }),
  });
  if (!reply.ok) throw new Error((await reply.json()).error.message);
  let said = "";
  for await (const event of events(reply.body)) {
    if (event.error) throw new Error(event.error.message);
    said += event.choices[0].delta.content ?? "";
    write(element, said);
    if (event.agvas) finish(element, event.agvas);
  }
  return said;
}

function finish(element, entry) {
  const found = entry.regions.length;
  const what = found ? `${found} ${found === 1 ? "region" : "regions"}` : "nothing found";
  element.append(made("small", `${SIGN[entry.verdict]} · ${what} · ${Math.round(entry.timing_ms.total)} ms`));
  const again = made("button", "Show this mask");
  again.type = "button";
  again.addEventListener("click", () => show(entry, element));
  element.append(again);
  show(entry, element);
  at("turns").scrollTop = at("turns").scrollHeight;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) if (line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

at("file").addEventListener("change", () => { take(at("file").files[0]); at("file").value = ""; });
at("image").addEventListener("load", () => { at("picture").classList.remove("bare"); frame(at("image").naturalWidth, at("image").naturalHeight); });
at("image").addEventListener("error", () => { at("picture").classList.add("bare"); at("image").alt = "The browser cannot show this format; the mask is shown alone."; });
at("shown").addEventListener("change", () => { at("marks").style.visibility = at("shown").checked ? "visible" : "hidden"; });
at("modes").addEventListener("change", changeMode);
at("threshold").addEventListener("input", () => { at("threshold").dataset.moved = "1"; at("threshold-now").textContent = Number(at("threshold").value).toFixed(2); });
at("threshold-own").addEventListener("click", () => { delete at("threshold").dataset.moved; at("threshold").value = page.facts.threshold; at("threshold-now").textContent = "the model's own"; });
at("key-field").addEventListener("submit", (event) => event.preventDefault());
at("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
at("stop").addEventListener("click", () => page.running?.abort());
at("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); ask(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") page.running?.abort(); });
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) take(event.clipboardData.files[0]); });
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}
await start();
