// Shared by both pages: creating elements, formatting numbers, and requests to the server with its API key.

const KEY = "headstart-key";

export class Trouble extends Error {
  // kind: "away" (no answer), "busy" (503), "key" (401), "refused" (anything else).
  constructor(kind, reason, wait = 0) { super(reason); this.kind = kind; this.wait = wait; }
}

export const byId = (id) => document.getElementById(id);

export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1\u00a0%";
  if (share < 1 && share > 0.999) return "> 99.9\u00a0%";
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

const whole = new Intl.NumberFormat("en");
export const count = (number, one = "", many = `${one}s`) =>
  one ? `${whole.format(number)} ${number === 1 ? one : many}` : whole.format(number);

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function say(words) { byId("said").textContent = words; }

export function notice(words, action = "", act = null) {
  const box = byId("notice");
  box.hidden = !words;
  box.replaceChildren();
  if (!words) return;
  box.append(make("p", { text: words }));
  if (action) box.append(make("button", { type: "button", text: action, onclick: act }));
}

// Asks for the API key once; requests that need it wait.
let keyAsked = null;
export function askForKey() {
  keyAsked ??= new Promise((resolve) => {
    const field = make("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", required: true });
    const form = keyForm(field);
    byId("notice").after(form);
    field.focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, field.value.trim());
      form.remove();
      keyAsked = null;
      resolve();
    };
  });
  return keyAsked;
}

function keyForm(field) {
  const words = sessionStorage.getItem(KEY)
    ? "The server did not accept this key. Check it and try again."
    : "This server was started with an API key. The page stores the key in this tab until you close it.";
  return make("form", { class: "panel key", id: "key-form" },
    make("h2", { text: "API key required" }),
    make("p", { class: "soft", text: words }),
    make("div", { class: "row" },
      make("label", { for: "key", text: "Key" }), field, make("button", { class: "main", text: "Use this key" })));
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

export async function call(path, { method = "GET", body, headers = {}, signal, asked = false } = {}) {
  const key = sessionStorage.getItem(KEY);
  if (key) headers = { ...headers, Authorization: `Bearer ${key}` };
  let answer;
  try {
    answer = await fetch(path, { method, body, headers, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("away", "The server cannot be reached.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    await askForKey();
    return call(path, { method, body, headers, signal, asked: true });
  }
  const reason = await reasonOf(answer);
  if (answer.status === 503 || answer.status === 429) throw new Trouble("busy", reason, Number(answer.headers.get("Retry-After")) || 2);
  throw Object.assign(new Trouble("refused", reason), { status: answer.status });
}

async function reasonOf(answer) {
  try {
    const reply = await answer.json();
    return reply.error?.reason ?? reply.reason ?? reply.detail?.[0]?.msg ?? reply.detail ?? `The server answered ${answer.status}.`;
  } catch { return `The server answered ${answer.status}.`; }
}

export const json = async (path, options) => (await call(path, options)).json();

// Images are fetched, not linked, because a link cannot send the API key.
export async function imageAddress(path) { return URL.createObjectURL(await (await patiently(() => call(path))).blob()); }

// Retries while the server is busy.
export async function patiently(ask, busy = () => {}, tries = 6) {
  for (let tried = 1; ; tried += 1) {
    try { return await ask(); } catch (error) {
      if (!(error instanceof Trouble) || error.kind !== "busy" || tried >= tries) throw error;
      busy(error.wait);
      await pause(error.wait * (1 + Math.random() / 2));
    }
  }
}

export async function copy(text, button) {
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
  catch { button.textContent = "Copy failed: select the text"; }
  setTimeout(() => { button.textContent = "Copy"; }, 2500);
}

export const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// Server-sent events over fetch, which can send the API key. Reconnects with the last event id, until `signal` aborts.
export async function follow(path, onEvent, onConnection, signal) {
  let last = "", wait = 0.5;
  while (!signal?.aborted) {
    try {
      const answer = await call(path, { headers: last ? { "Last-Event-ID": last } : {}, signal });
      onConnection(null);
      wait = 0.5;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let held = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        held += value;
        let end;
        while ((end = held.indexOf("\n\n")) >= 0) {
          const event = parse(held.slice(0, end));
          held = held.slice(end + 2);
          if (!event) continue;
          if (event.id) last = event.id;
          if (event.kind === "reset") last = "";
          if (event.kind === "end") return;
          onEvent(event.kind, event.data);
        }
      }
    } catch (error) {
      if (signal?.aborted) return;
      if (!(error instanceof Trouble) && error.name !== "TypeError") throw error;
      onConnection(error);
    }
    await pause(wait);
    wait = Math.min(10, wait * 1.6);
  }
}

function parse(block) {
  const event = { kind: "message", data: "", id: "" };
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) event.kind = line.slice(7);
    else if (line.startsWith("data: ")) event.data += line.slice(6);
    else if (line.startsWith("id: ")) event.id = line.slice(4);
  }
  if (!event.data) return event.kind === "message" ? null : event;
  event.data = JSON.parse(event.data);
  return event;
}
