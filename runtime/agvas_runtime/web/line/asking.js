// Requests to our own server with the key that a person gave; the key stays in this tab.
export const at = (id) => document.getElementById(id);

export class NoKey extends Error {}

export async function ask(path, options = {}) {
  const key = sessionStorage.getItem("agvas-key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const reply = await fetch(path, { ...options, headers });
  if (reply.status === 401) throw new NoKey("a key is needed");
  if (!reply.ok) throw new Error((await reply.json()).error.message);
  return reply;
}

// Resolves once a key was typed that the server takes; shows the form meanwhile.
export function login(probe) {
  const form = at("login");
  form.hidden = false;
  at("key").focus();
  return new Promise((done) => {
    form.onsubmit = async (event) => {
      event.preventDefault();
      try {
        if (!/^[ -~]+$/.test(at("key").value)) throw new NoKey("no header carries it, and no server has it");
        sessionStorage.setItem("agvas-key", at("key").value);
        await ask(probe);
      } catch (error) {
        if (!(error instanceof NoKey)) throw error;
        at("wrong").hidden = false;
        at("key").select();
        return;
      }
      at("key").value = "";
      form.hidden = at("wrong").hidden = true;
      done();
    };
  });
}

export function made(tag, text = "", name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}

export function drawn(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Each verdict has its own shape: a disc with a tick, an octagon with a cross, a triangle with a question mark.
const SHAPES = {
  PASS: ["M24 3a21 21 0 1 0 0 42a21 21 0 1 0 0-42Z", "M14 25l7 7 13-15"],
  FAIL: ["M15.5 3h17L45 15.5v17L32.5 45h-17L3 32.5v-17Z", "M16 16l16 16m0-16L16 32"],
  NO_VERDICT: ["M24 3L47 44H1Z", "M18 24c0-9 12-9 12-1 0 5-6 5-6 9m0 5v2"],
};
export const WORDS = { PASS: "PASS", FAIL: "FAIL", NO_VERDICT: "NO VERDICT" };

export function lamp(verdict, name = "lamp") {
  const [body, sign] = SHAPES[verdict];
  return drawn("svg", { viewBox: "0 0 48 48", class: `${name} ${verdict}`, "aria-hidden": "true" },
    drawn("path", { d: body, class: "body" }), drawn("path", { d: sign, class: "sign" }));
}
