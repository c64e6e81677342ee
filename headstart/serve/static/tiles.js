// A tile: a square thumbnail with its label, used by the labelling page and by the page of corrections. Thumbnails are
// loaded a few at a time, and cancelled when they leave the screen.

import { make, percent } from "./api.js";

const AT_ONCE = 4;
const queue = [];             // newest last, loaded first: what was asked for last is on the screen
const loading = new Set();
let isReady = () => true, isPumping = false;

// `find` returns the address of an image, or a promise of it.
export function load(image, find) {
  cancel(image);
  image.find = find;
  queue.push(image);
  pumpSoon();
}

export function cancel(image) {
  const place = queue.indexOf(image);
  if (place >= 0) queue.splice(place, 1);
  image.find = null;
  if (loading.delete(image)) image.removeAttribute("src");
  image.classList.remove("ready");
  pumpSoon();
}

// Thumbnails wait until `ready()` is true; call `pump` when that may have changed.
export function waitFor(ready) { isReady = ready; }

// After all images of a screen are in the queue, so that the last one asked for is the first.
function pumpSoon() {
  if (isPumping) return;
  isPumping = true;
  queueMicrotask(() => { isPumping = false; pump(); });
}

export function pump() {
  while (loading.size < AT_ONCE && queue.length && isReady()) {
    const image = queue.pop();
    loading.add(image);
    begin(image, image.find);
  }
}

async function begin(image, find) {
  image.onload = () => end(image, true);
  image.onerror = () => end(image, false);
  try {
    const found = find(), address = found instanceof Promise ? await found : found;
    if (image.find === find) image.src = address;
  } catch {
    if (image.find === find) end(image, false);
  }
}

function end(image, good) {
  if (!loading.delete(image)) return;
  image.classList.toggle("ready", good);
  image.parentElement?.classList.toggle("broken", !good);
  pump();
}

export const labelWords = (label) => (Array.isArray(label) ? label.join(", ") : label);

const ANSWERS = { none: "none of these", unsure: "unsure", skip: "skipped" };

export function words(item) {
  if (!item) return "";
  if (Array.isArray(item.label) && item.label.length) return item.label.join(", ");
  return ANSWERS[item.label] ?? "";
}

// What a screen reader says of an item.
export function description(item, fallback) {
  if (!item) return fallback;
  const given = words(item), guess = item.suggestion;
  const parts = [item.name, given ? `labelled ${given}` : guess ? `suggested ${guess.label}, ${percent(guess.probability)}` : "no label"];
  if (item.stack > 1) parts.push(`${item.stack} near-duplicates`);
  return parts.join(", ");
}

export class Tile {
  // `role`: "option" in a listbox, null elsewhere.
  constructor(role = "option") {
    this.image = make("img", { alt: "", decoding: "async", draggable: "false" });
    this.tag = make("span", { class: "tag", hidden: true });
    this.stack = make("span", { class: "stack", hidden: true });
    this.tick = make("span", { class: "tick", "aria-hidden": "true" });
    this.element = make("div", { class: "tile", role, "aria-selected": role === "option" ? "false" : null }, this.image, this.tag, this.stack, this.tick);
    this.key = null;
  }

  // Shows the image that `find` returns the address of; nothing happens if `key` is shown already.
  show(key, find) {
    if (this.key === key) return;
    this.key = key;
    this.element.classList.remove("broken");
    if (key === null) cancel(this.image);
    else load(this.image, find);
  }

  describe(item, fallback = "Image") {
    const given = words(item), guess = item?.suggestion;
    const text = given || (guess ? guess.label : "");
    if (this.tag.textContent !== text) this.tag.textContent = text;
    this.tag.className = given ? (Array.isArray(item.label) ? "tag given" : "tag other") : "tag guess";
    this.tag.hidden = !text;
    const many = item?.stack > 1 ? `${item.stack}×` : "";
    if (this.stack.textContent !== many) this.stack.textContent = many;
    this.stack.hidden = !many;
    const said = description(item, fallback);
    if (this.element.getAttribute("aria-label") !== said) this.element.setAttribute("aria-label", said);
  }

  select(selected) {
    const value = String(selected);
    if (this.element.getAttribute("aria-selected") !== value) this.element.setAttribute("aria-selected", value);
  }

  free() {
    this.key = null;
    cancel(this.image);
    this.element.remove();
  }
}
