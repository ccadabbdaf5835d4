// The next version of the product: made on the server, tried on past parts, activated when a person says so.
import { WORDS, ask, at, made } from "./asking.js";

const PAUSE_MS = 300;
let shown = null;

const post = (path, body) => ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const score = (value) => (value === null ? "" : value.toFixed(3));

// `open` shows a part, by its number.
export async function showNext(open) {
  at("make").addEventListener("click", () => asked(() => post("v1/review/next", {}), open));
  at("activate").addEventListener("click", () => asked(() => post("v1/review/next/activate", { sha256: shown.sha256 }), open));
  await asked(() => ask("v1/review/next"), open);
}

async function asked(request, open) {
  try {
    for (let reply = await request(); ; reply = await ask("v1/review/next")) {
      draw(await reply.json(), open);
      if (shown.phase !== "working") return;
      await pause(PAUSE_MS);
    }
  } catch (error) {
    say(error.message, true);
  }
}

function say(text, wrong = false) {
  at("next-words").textContent = text;
  at("next-words").classList.toggle("wrong", wrong);
}

function draw(state, open) {
  shown = state;
  const { phase } = state, found = phase === "ready" || phase === "active";
  at("next").hidden = phase === "off";
  at("make").disabled = phase === "working";
  at("next-bar").hidden = phase !== "working";
  at("activate").hidden = !(phase === "ready" && state.store);
  at("next-found").hidden = !found;
  if (phase === "idle") say("The parts that are reviewed make a new product beside the one of now; nothing goes live by that.");
  if (phase === "failed") say(state.why, true);
  if (phase === "working") {
    say(state.total ? `${state.step}: ${state.done} of ${state.total}` : state.step);
    if (state.total) Object.assign(at("next-bar"), { max: state.total, value: state.done });
    else at("next-bar").removeAttribute("value");
  }
  if (!found) return;
  if (phase === "active") say(`${state.version} is active in ${state.store}: the station takes it with the next part.`);
  else if (state.store) say(`${state.version} is made and not active: ${state.product}`);
  else say(`${state.version} is made and not active; agvas recipe activate ${state.path} --store DIR activates it.`);
  at("next-found").replaceChildren(...results(state, open));
}

function results(state, open) {
  const { replayed, flips, reviewed } = state;
  const words = Object.entries(flips).map(([flip, count]) => `${count} ${flip}`).join(", ");
  const said = Object.entries(reviewed).map(([what, count]) => `${count} ${what.replace(" ", " parts now ")}`).join(", ");
  const rows = [
    made("p", state.statement),
    list(state.warnings),
    made("p", `Past parts: ${replayed.same} verdicts stay, ${replayed.changed} change${words && ` (${words})`}, ${replayed.skipped} not judged again.`),
  ];
  if (said) rows.push(made("p", `Of those that were reviewed: ${said}.`));
  if (state.changed.length) rows.push(table(state.changed, open));
  rows.push(made("p", `The recipe differs from ${state.base} in:`), list(state.changes));
  return rows;
}

function list(lines) {
  const box = made("ul");
  box.append(...lines.map((line) => made("li", line.length > 300 ? `${line.slice(0, 300)} ...` : line)));
  return box;
}

function table(changed, open) {
  const box = made("table"), head = made("tr");
  head.append(...["Part", "Before", "Next", "Score", "Next", "Reviewed as"].map((name) => made("th", name)));
  box.append(head, ...changed.map((one) => {
    const row = made("tr"), cell = made("td"), button = made("button", `${one.seq}`);
    button.type = "button";
    button.addEventListener("click", () => open(one.seq));
    cell.append(button);
    row.append(cell, made("td", WORDS[one.before], one.before), made("td", WORDS[one.now], one.now),
      made("td", score(one.score_before)), made("td", score(one.score)), made("td", one.said ?? ""));
    return row;
  }));
  return box;
}
