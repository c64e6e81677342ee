// State of the labelling session: follows the server, and sends actions one after another.

import { Trouble, follow, json, notice, pause, say } from "./api.js";

export const store = { state: null };
const listeners = [];
let sending = Promise.resolve(), waiting = 0, connection = null;

export function onState(listener) { listeners.push(listener); }

function receive(state) {
  const before = store.state;
  if (before && before.session !== state.session) { location.reload(); return; }  // ids of another process
  store.state = state;
  for (const listener of listeners) listener(state, before);
}

// Hidden tabs close their connection: a browser opens only six to one server.
export function connect() {
  connection?.abort();
  connection = null;
  if (document.hidden) return;
  connection = new AbortController();
  follow("v1/label/events", (kind, data) => { if (kind === "state") receive(data); }, onConnection, connection.signal);
}
document.addEventListener("visibilitychange", connect);

function onConnection(error) {
  document.body.classList.toggle("away", Boolean(error));
  if (error) notice("The server cannot be reached: what you label now is not saved, what you labelled before is. Start headstart label again; this page then continues.");
  else notice("");
}

// Sends JSON to the server; actions keep their order. Returns null if the server refused it.
export function send(path, body = {}) {
  waiting += 1;
  document.body.dataset.waiting = waiting;
  const result = sending.then(() => post(path, body));
  sending = result.catch(() => null);
  return result.catch(report).finally(() => { waiting -= 1; document.body.dataset.waiting = waiting; });
}

const REPEATABLE = new Set(["label", "answer", "clear", "confirm", "reject", "keep"]), TRIES = 5;

// An action that changes nothing the second time is sent again if the connection breaks.
async function post(path, body) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ session: store.state.session, ...body }) };
  for (let tried = 1; ; tried += 1) {
    try { return await json(`v1/label/${path}`, options); } catch (error) {
      if (error.kind !== "busy" && !(error.kind === "away" && REPEATABLE.has(body.action?.do)) || tried >= TRIES) throw error;
      await pause(0.5 * tried);
    }
  }
}

export function report(error) {
  if (!(error instanceof Trouble)) throw error;
  if (error.status === 409) notice(error.message, "Reload", () => location.reload());
  else notice(error.message, "Close", () => notice(""));
  say(error.message);
  return null;
}

export const act = (action) => send("actions", { action });

export async function step(which) {
  const words = store.state[which] ?? (await fetchJson("state"))[which];  // the events may lag behind fast keys
  if (!words) { say(`Nothing to ${which}.`); return; }
  if (await send(which)) say(`${which === "undo" ? "Undone" : "Done again"}: ${words}.`);
}

export const fetchJson = (path, signal) => json(`v1/label/${path}`, { signal });

export const imageUrl = (id, size) => `v1/label/images/${id}?size=${size}&session=${store.state.session}`;
