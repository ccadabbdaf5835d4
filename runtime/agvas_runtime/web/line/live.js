// What the line's stations see and say, as the server tells it. Everything from outside is text, never markup.
import { WORDS, NoKey, ask, at, lamp, login, made } from "./asking.js";
import { areasOf } from "./areas.js";
import { drawHour, drawTimes, drawTrend, percent, time } from "./charts.js";

const OLD_MS = 4000; // without word from the server, what is shown is no longer true
const page = { state: null, station: null, chosen: null, masked: true, heard: 0, shown: "", fetching: false, said: 0 };
const views = new Map(); // station -> the small live picture in its tab
const VIEW_MS = 900;

const station = () => page.state?.stations.find((one) => one.name === page.station) ?? page.state?.stations[0];
const path = (one, rest) => `v1/line/${encodeURIComponent(one.name)}/${rest}`;
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

async function listen() {
  for (let after = -1; ;) {
    try {
      page.state = await (await ask(`v1/line?after=${after}`)).json();
      after = page.state.version;
      page.heard = Date.now();
      at("page").hidden = false;
      show();
    } catch (error) {
      if (error instanceof NoKey) {
        at("page").hidden = true;
        await login("v1/line");
      } else {
        after = -1;
        await pause(500);
      }
    }
    await pause(60);
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function show() {
  const one = station();
  age();
  if (!one) return;
  showStations();
  showVerdict(one);
  showTiles(one);
  showHealth(one);
  showRejects(one);
  drawHour(at("hour"), one.minutes);
  drawTrend(at("trend"), one.trend);
  drawTimes(at("times"), one.latency, one.facts.deadline_ms);
  at("events").replaceChildren(...page.state.events.map((event) => {
    const row = made("li");
    row.append(made("time", clock(Date.parse(event.utc) / 1000)), made("span", `${event.station}: ${event.kind} ${event.detail}`));
    return row;
  }));
  showPicture(one);
}

function age() {
  const gone = Date.now() - page.heard;
  const old = page.heard > 0 && gone > OLD_MS;
  document.body.classList.toggle("old", old);
  at("clock").textContent = page.state ? clock(page.state.now_s) : "";
  const one = station();
  const failure = one?.facts.failure ? `Station ${one.name} has failed and takes no more parts: ${one.facts.failure}` : "";
  const words = old ? `The server has not answered for ${Math.round(gone / 1000)} s: what you see is old.` : failure;
  if (at("banner").textContent !== words) at("banner").textContent = words;
  at("banner").hidden = !words;
}

function verdictOf(one) {
  return one.newest?.verdict ?? null;
}

function light(one, name) {
  const shape = lamp(verdictOf(one) ?? "NO_VERDICT", name);
  if (!one.facts.source_up || !verdictOf(one)) shape.classList.add("off");
  return shape;
}

function showStations() {
  const list = page.state.stations;
  at("stations").hidden = list.length < 2;
  const focused = document.activeElement?.closest?.("#stations button")?.dataset.name;
  at("stations").replaceChildren(...list.map((one) => {
    const button = made("button");
    const chosen = one === station();
    Object.assign(button, { type: "button", tabIndex: chosen ? 0 : -1 });
    button.dataset.name = one.name;
    button.setAttribute("role", "tab");
    button.setAttribute("aria-selected", chosen);
    const words = !one.facts.source_up ? "source lost" : verdictOf(one) ? WORDS[verdictOf(one)] : "waits";
    button.append(viewOf(one, list.length), light(one, "small"), made("span", `${one.name}: ${words}`));
    button.addEventListener("click", () => choose(one.name));
    return button;
  }));
  if (focused) [...at("stations").children].find((button) => button.dataset.name === focused)?.focus();
}

function viewOf(one, count) {
  if (!views.has(one.name)) {
    const image = Object.assign(document.createElement("img"), { alt: "", hidden: true });
    views.set(one.name, { image, shown: "", asked: 0 });
  }
  const view = views.get(one.name);
  const wanted = `${one.newest?.seq} ${page.masked}`;
  if (count > 1 && one.newest?.picture && wanted !== view.shown && Date.now() - view.asked > VIEW_MS) {
    view.asked = Date.now();
    ask(path(one, `newest?thumb=true&mask=${page.masked}`)).then(async (reply) => {
      if (reply.status === 204) return;
      view.image.src = await url(reply);
      view.image.hidden = false;
      view.shown = wanted;
    }, () => {}); // asked again with the next state
  }
  return view.image;
}

function choose(name) {
  Object.assign(page, { station: name, chosen: null, shown: "" });
  show();
}

function scoreOf(part) {
  if (part.score === null) return "";
  const margin = part.threshold === null ? "" : `, margin ${(part.threshold - part.score).toFixed(3)}`;
  return `score ${part.score.toFixed(3)}${margin} · `;
}

// What stands above the picture is of the part in the picture: the newest, or the reject that is held.
function showVerdict(one) {
  const { newest, facts } = one, shown = page.chosen ?? newest;
  at("now").classList.toggle("held", page.chosen !== null);
  at("light").replaceChildren(page.chosen ? lamp("FAIL", "lamp") : light(one, "lamp"));
  at("word").className = shown?.verdict ?? "NO_VERDICT";
  at("word").textContent = shown ? `${page.chosen ? "Held: " : ""}${WORDS[shown.verdict]}` : "No part yet";
  const why = shown?.why || (shown?.verdict === "PASS" ? "no rule is broken" : "");
  at("why").textContent = page.chosen || facts.source_up ? why : `The source is lost; this was the last part. ${why}`;
  at("part").textContent = shown ? `part ${shown.seq}\n${scoreOf(shown)}${time(shown.decided_ms)}` : "";
  if (newest?.verdict === "FAIL" && newest.seq !== page.said) {
    page.said = newest.seq;
    at("said").textContent = `Part ${newest.seq} is rejected: ${newest.why}`;
  }
}

function tile(name, value, more) {
  const box = made("div");
  const figure = made("dd", value);
  figure.append(made("small", more));
  box.append(made("dt", name), figure);
  return box;
}

function showTiles(one) {
  const { facts, run, hour, latency } = one;
  const all = hour.reduce((sum, count) => sum + count, 0);
  const causes = Object.entries(one.causes).map(([cause, count]) => `${cause} ${count}`).join(", ");
  const rate = one.per_minute;
  at("tiles").replaceChildren(
    tile("Yield, last hour", percent(one.yield), `${hour[0]} of ${all} parts`),
    tile("Rate", rate >= 120 ? `${(rate / 60).toFixed(1)} / s` : `${rate && rate < 10 ? rate.toFixed(1) : Math.round(rate)} / min`, "over the last minute"),
    tile("99 % within", time(latency.p99_ms), `deadline ${time(facts.deadline_ms)}`),
    tile("Rejects", `${run[1]}`, `of ${run[0] + run[1] + run[2]} since the start`),
    tile("No verdict", `${run[2]}`, causes || "since the start"),
    tile("Queue", `${facts.waiting} / ${facts.queue_parts}`, `${facts.dropped} frames dropped`),
  );
}

function showHealth(one) {
  const { facts } = one, { line } = page.state;
  const disk = line.disk_free_mb > 9999 ? `${(line.disk_free_mb / 1000).toFixed(0)} GB free` : `${Math.round(line.disk_free_mb)} MB free`;
  const rows = [
    ["Source", facts.source_up, facts.source_up ? "gives frames" : "is lost; it is opened again and again"],
    ["Drift", facts.drift === null, facts.drift ?? "no alarm"],
    ["Lens", !facts.dirty, facts.dirty ? "one place is anomalous on part after part: clean the lens" : "no place is anomalous on part after part"],
    ["Disk", line.disk_level === 0, [disk, `${disk}: no images are kept`, `${disk}: every part is NO VERDICT`][line.disk_level]],
    ...line.sinks.map((sink) => ["Sink", sink.error === null, `${sink.name}: ${sink.pending} wait${sink.error === null ? "" : `; ${sink.error}`}`]),
    ["Recipe", !facts.concern, facts.concern ? `${facts.recipe}: ${facts.concern}` : facts.recipe],
    ["Engine", true, facts.engine],
  ];
  at("health").replaceChildren(...rows.map(([what, fine, words]) => {
    const row = made("li", "", fine ? "fine" : "bad");
    row.append(made("span", fine ? "✓" : "▲"), made("span", what), made("span", words));
    return row;
  }));
}

function showRejects(one) {
  at("none").hidden = one.rejects.length > 0;
  const strip = at("strip"), rows = new Map([...strip.children].map((item) => [item.dataset.key, item]));
  strip.replaceChildren(...one.rejects.map((reject) => {
    const key = `${one.name}/${reject.seq}`;
    const item = rows.get(key) ?? rejectItem(one, reject, key);
    item.querySelector("button").setAttribute("aria-pressed", page.chosen?.seq === reject.seq);
    return item;
  }));
}

function rejectItem(one, reject, key) {
  const item = made("li"), button = made("button"), line = made("span", "", "line");
  item.dataset.key = key;
  button.type = "button";
  const thumb = made("span", reject.picture ? "" : "no image", "thumb");
  line.append(made("b", `✕ ${reject.seq}`, "FAIL"), `${clock(reject.at_s)}`);
  button.append(thumb, line);
  button.title = reject.why;
  button.setAttribute("aria-label", `Part ${reject.seq}, rejected at ${clock(reject.at_s)}: ${reject.why}`);
  button.addEventListener("click", () => inspect(page.chosen?.seq === reject.seq ? null : reject));
  item.append(button);
  if (reject.picture) fill(thumb, path(one, `parts/${reject.seq}?thumb=true`));
  return item;
}

async function fill(thumb, from) {
  for (const wait of [0, 300, 1500]) { // it is drawn while we ask
    await pause(wait);
    try {
      const picture = document.createElement("img");
      picture.alt = "";
      picture.src = await url(await ask(from));
      thumb.replaceChildren(picture);
      return;
    } catch {
      thumb.textContent = "no image";
    }
  }
}

async function url(reply) {
  const made = URL.createObjectURL(await reply.blob());
  setTimeout(() => URL.revokeObjectURL(made), 30000);
  return made;
}

function inspect(reject) {
  Object.assign(page, { chosen: reject, shown: "" });
  show();
}

async function showPicture(one) {
  const { chosen } = page;
  at("live").hidden = !chosen;
  at("box").classList.toggle("chosen", chosen !== null);
  const wanted = `${one.name} ${chosen ? `held ${chosen.seq}` : one.newest?.seq} ${page.masked}`;
  if (page.fetching || wanted === page.shown || !(chosen ?? one.newest)) return;
  page.fetching = true;
  try {
    const mask = `mask=${page.masked}`;
    const reply = await ask(chosen ? path(one, `parts/${chosen.seq}?${mask}`) : path(one, `newest?${mask}`));
    const seq = chosen ? chosen.seq : reply.headers.get("X-Agvas-Part");
    const verdict = chosen ? "FAIL" : reply.headers.get("X-Agvas-Verdict");
    if (reply.status === 204) without("This part came without a picture.");
    else {
      at("image").src = await url(reply);
      at("image").alt = `Part ${seq}, ${WORDS[verdict]}${page.masked ? ", with its mask" : ""}`;
      at("no-image").hidden = true;
      at("image").hidden = false;
    }
    at("caption").textContent = chosen ? `Part ${seq}, rejected at ${clock(chosen.at_s)}: ${chosen.why}` : `Live: part ${seq}, ${WORDS[verdict]}`;
    page.shown = `${one.name} ${chosen ? `held ${seq}` : seq} ${page.masked}`;
  } catch (error) {
    if (!(error instanceof NoKey)) without(error.message);
    page.shown = wanted;
  } finally {
    page.fetching = false;
  }
}

function without(words) {
  at("image").hidden = true;
  at("no-image").hidden = false;
  at("no-image").textContent = words;
}

function toggleMask() {
  page.masked = !page.masked;
  at("mask").setAttribute("aria-pressed", page.masked);
  show();
}

function step(by) {
  const list = page.state?.stations ?? [];
  if (list.length < 2) return;
  choose(list[(list.indexOf(station()) + by + list.length) % list.length].name);
  at("stations").querySelector('[aria-selected="true"]').focus();
}

areasOf((name, rest) => path({ name }, rest), station);
at("mask").addEventListener("click", toggleMask);
at("live").addEventListener("click", () => inspect(null));
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input") || event.ctrlKey || event.altKey || event.metaKey || !page.state) return;
  if (event.key === "m" || event.key === "M") toggleMask();
  else if (event.key === "Escape") inspect(null);
  else if (event.key === "ArrowRight" && event.target.closest("#stations")) step(1);
  else if (event.key === "ArrowLeft" && event.target.closest("#stations")) step(-1);
  else if (/^[1-9]$/.test(event.key) && page.state.stations[event.key - 1]) choose(page.state.stations[event.key - 1].name);
});
setInterval(age, 1000);
listen();
