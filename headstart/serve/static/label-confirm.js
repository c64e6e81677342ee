// Panel "Confirm": images of one predicted class, ticked. Untick the wrong ones and confirm, or swipe one by one.

import { count, make, pause, percent, say } from "./api.js";
import { actionFor, inWords } from "./label-classes.js";
import { act, fetchJson, imageUrl, report, store } from "./label-store.js";
import { ImageTile } from "./label-tiles.js";

const SWIPE = 70, FIT_MS = 1500;
const PAGE_KEYS = ["Enter", " ", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];
const narrow = matchMedia("(max-width: 40rem)"), pageSize = () => (narrow.matches ? 24 : 60);

let chips, heading, box, buttons, empty, hint;
let wanted = null, label = null, total = 0, items = [], next = [], rejected = new Set(), active = 0, tiles = [], loading = null, single = narrow.matches, busy = false;

export const confirm = {
  id: "confirm",
  title: "Confirm",
  source: "confirm",

  build(panel) {
    heading = make("h2", { id: "panel-title", text: "Confirm suggestions" });
    hint = make("p", { class: "soft small" });
    chips = make("div", { class: "chips", role: "group", "aria-label": "Predicted class" });
    empty = make("p", { class: "soft empty" });
    box = make("div", { class: "confirm-box", id: "confirm", role: "listbox", tabindex: "0", "aria-multiselectable": "true", "aria-label": "Suggested images" });
    box.addEventListener("click", (event) => { const place = tiles.findIndex((tile) => tile.element.contains(event.target)); if (place >= 0 && !single && !busy) { active = place; toggle(place); } });
    box.addEventListener("pointermove", point);
    box.addEventListener("focus", mark);
    box.addEventListener("pointerdown", swipe);
    buttons = make("div", { class: "row confirm-buttons" });
    panel.append(make("div", { class: "bar-line panel-bar" }, heading, hint, make("button", { type: "button", class: "quiet", id: "confirm-mode", text: "One by one", onclick: () => { single = !single; draw(); box.focus(); } })), chips,
      make("div", { class: "scroll-box" }, empty, box), buttons);
    narrow.addEventListener("change", () => { single = narrow.matches; draw(); });
  },

  async shown() { await refill(); box.focus({ preventScroll: true }); },

  update(state, before) {
    drawChips(state);
    if (!items.length && (!before || before.learner.labels !== state.learner.labels || before.learner.state !== state.learner.state)) refill();
    if (items.length && label !== null && !state.classes.some((one) => one.name === label)) { wanted = null; refill(); }
  },

  key(event) {
    if (event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return false;
    if (!items.length) return false;
    if (busy && PAGE_KEYS.includes(event.key)) return true; // the page that is shown was sent already
    if (single) {
      if (event.key === "ArrowRight" || event.key === "Enter") { decide(true); return true; }
      if (event.key === "ArrowLeft") { decide(false); return true; }
      return false;
    }
    if (event.key === "Enter") { send(); return true; }
    if (event.key === " ") { toggle(active); return true; }
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(), Home: -active, End: items.length - 1 - active }[event.key];
    if (step === undefined) return false;
    if (active + step >= 0 && active + step < items.length) active += step;
    mark();
    return true;
  },

  // An answer other than the suggested class applies to the active image.
  answer(given) {
    const item = items[active];
    if (!item) return false;
    if (busy) return true;
    act(actionFor(given, [item.id], "confirm"));
    say(`${item.name}: ${inWords(given)}.`);
    remove(active);
    return true;
  },
};

const columns = () => Math.max(1, tiles.filter((tile) => tile.element.offsetTop === tiles[0].element.offsetTop).length);

function drawChips(state) {
  const offered = state.classes.filter((one) => one.suggested > 0);
  const same = JSON.stringify([offered.map((one) => [one.name, one.suggested]), label]);
  if (same === drawChips.same) return;
  drawChips.same = same;
  const focused = chips.contains(document.activeElement) ? document.activeElement.dataset.label : null;
  chips.replaceChildren(...offered.map((one) => make("button", { type: "button", "data-label": one.name, "aria-pressed": String(one.name === label), onclick: () => { wanted = one.name; refill().then(() => box.focus()); } }, `${one.name} `, make("span", { class: "soft", text: count(one.suggested), title: "Images with a probability of 50 % or more" }))));
  if (focused) [...chips.children].find((chip) => chip.dataset.label === focused)?.focus();
}

async function refill() {
  loading?.abort();
  loading = new AbortController();
  try {
    const query = wanted === null ? "" : `&label=${encodeURIComponent(wanted)}`;
    const reply = await fetchJson(`queue/confirm?count=${2 * pageSize()}${query}`, loading.signal);
    if (!reply.items.length && wanted !== null) { wanted = null; await refill(); return; }
    [label, total] = [reply.label, reply.total];
    items = reply.items.slice(0, pageSize());
    next = reply.items.slice(pageSize());
    for (const item of next) new Image().src = imageUrl(item.id, 256);
  } catch (error) {
    if (error.name !== "AbortError" && error.kind !== "away") report(error);
    return;
  }
  rejected = new Set();
  active = 0;
  draw();
}

function draw() {
  const state = store.state;
  if (state) drawChips(state);
  for (const tile of tiles) tile.free();
  tiles = [];
  box.classList.toggle("single", single);
  box.hidden = buttons.hidden = !items.length;
  empty.hidden = items.length > 0;
  document.getElementById("confirm-mode").hidden = !items.length;
  if (!items.length) {
    heading.textContent = "Confirm suggestions";
    hint.textContent = "";
    empty.textContent = emptyWords(state);
    return;
  }
  heading.replaceChildren("Is this ", make("em", { text: label }), "?");
  const ways = single ? "Swipe right for yes, left for no" : narrow.matches ? "Untick the wrong ones, then confirm" : "Untick the wrong ones, or point at one and press the key of its class; then confirm";
  hint.textContent = `${count(total, "image")}. ${ways}.`;
  document.getElementById("confirm-mode").textContent = single ? "Show a page" : "One by one";
  const shownItems = single ? items.slice(0, 1) : items;
  tiles = shownItems.map((item, place) => {
    const tile = new ImageTile();
    tile.element.id = `confirm-${place}`;
    tile.showImage(item.id, single ? 512 : 256);
    tile.describe(item);
    tile.tag.textContent = item.suggestion ? percent(item.suggestion.probability) : "";
    tile.tag.hidden = !item.suggestion;
    tile.element.setAttribute("aria-posinset", place + 1);
    tile.element.setAttribute("aria-setsize", items.length);
    return tile;
  });
  box.replaceChildren(...tiles.map((tile) => tile.element));
  buttons.replaceChildren(...(single
    ? [make("button", { type: "button", id: "swipe-no", onclick: () => decide(false) }, "✗ No ", make("kbd", { class: "for-keys", text: "←" })), make("button", { type: "button", class: "main", id: "swipe-yes", onclick: () => decide(true) }, `✓ ${label} `, make("kbd", { class: "for-keys", text: "→" }))]
    : [make("button", { type: "button", class: "main", id: "confirm-page", onclick: send }), make("button", { type: "button", onclick: () => { if (busy) return; for (const item of items) rejected.add(item.id); mark(); } }, "Untick all"), make("button", { type: "button", class: "quiet", onclick: () => { if (busy) return; rejected.clear(); mark(); } }, "Tick all")]));
  mark();
}

function emptyWords(state) {
  if (!state) return "Connecting …";
  if (state.work.stage !== "ready") return "Suggestions appear when the features of all images are computed.";
  if (state.learner.state === "too few labels") return "Suggestions appear as soon as two classes have labelled images. Name two groups, or label a few images in the grid.";
  if (state.learner.state === "fitting") return "The classifier is being fitted …";
  return "No suggestion is left to confirm. Continue with Ask, or train.";
}

function mark({ scroll = true } = {}) {
  tiles.forEach((tile, place) => {
    const good = !rejected.has(items[place].id);
    tile.select(good);
    tile.tick.textContent = single ? "" : good ? "✓" : "✗";
    tile.element.classList.toggle("active", place === active && !single);
    tile.element.setAttribute("aria-label", single ? `${items[place].name}, suggested ${label}` : `${items[place].name}, suggested ${label}: ${good ? "ticked" : "not ticked"}`);
  });
  if (tiles[active]) { box.setAttribute("aria-activedescendant", tiles[active].element.id); if (!single && scroll) tiles[active].element.scrollIntoView({ block: "nearest" }); }
  const page = document.getElementById("confirm-page"), good = items.length - rejected.size;
  if (page) page.replaceChildren(good ? `Confirm ${count(good)} as ${label} ` : "None is right ", make("kbd", { text: "Enter" }));
}

// The image under the pointer is the one that a class key labels; a page that moves under a resting pointer changes nothing.
let pointer = "";
function point(event) {
  const now = `${event.clientX} ${event.clientY}`, moved = pointer !== "" && pointer !== now;
  pointer = now;
  if (!moved) return;
  const place = single || event.pointerType !== "mouse" ? -1 : tiles.findIndex((tile) => tile.element.contains(event.target));
  if (place >= 0 && place !== active) { active = place; mark({ scroll: false }); }
}

function toggle(place) {
  const id = items[place]?.id;
  if (id === undefined) return;
  if (!rejected.delete(id)) rejected.add(id);
  mark();
}

async function send() {
  if (busy || !items.length) return;
  busy = true;
  const good = items.filter((item) => !rejected.has(item.id)).map((item) => item.id), bad = [...rejected];
  const words = `${count(good.length, "image")} confirmed as ${label}${bad.length ? `, ${count(bad.length)} rejected` : ""}.`;
  wanted = label;
  box.classList.add("sent");
  try {
    const reply = await act({ do: "confirm", label, images: good, rejected: bad });
    if (reply) { say(words); await fitted(reply.revision); }
    await refill();
  } finally { busy = false; box.classList.remove("sent"); }
}

// Waits until the next page can come from the classifier that has learnt this one, but not long.
async function fitted(revision) {
  const end = performance.now() + FIT_MS;
  while (performance.now() < end && (store.state.revision < revision || store.state.learner.state === "fitting")) await pause(0.05);
}

function decide(good) {
  const item = items[0];
  if (!item || busy) return;
  act({ do: "confirm", label, images: good ? [item.id] : [], rejected: good ? [] : [item.id] });
  say(`${item.name}: ${good ? label : `not ${label}`}.`);
  wanted = label;
  remove(0);
}

function remove(place) {
  const [item] = items.splice(place, 1);
  rejected.delete(item.id);
  total = Math.max(0, total - 1);
  if (next.length) items.push(next.shift());
  active = Math.min(active, Math.max(0, items.length - 1));
  if (items.length) draw();
  else refill();
}

// Swiping moves the card with the finger; far enough it answers.
function swipe(event) {
  if (!single || event.pointerType === "mouse" || !tiles[0]) return;
  const card = tiles[0].element, start = event.clientX;
  const move = (moved) => {
    const way = moved.clientX - start;
    card.style.transform = `translateX(${way}px) rotate(${way / 30}deg)`;
    card.classList.toggle("yes", way > SWIPE);
    card.classList.toggle("no", way < -SWIPE);
  };
  const up = (end) => {
    for (const [name, handler] of [["pointermove", move], ["pointerup", up], ["pointercancel", up]]) removeEventListener(name, handler);
    const way = end.clientX - start;
    card.style.transform = "";
    card.classList.remove("yes", "no");
    if (end.type === "pointerup" && Math.abs(way) > SWIPE) decide(way > 0);
  };
  for (const [name, handler] of [["pointermove", move], ["pointerup", up], ["pointercancel", up]]) addEventListener(name, handler);
}
