// Thumbnails, loaded a few at a time and cancelled when they leave the screen, and the tile that shows one.

import { make, percent } from "./api.js";
import { imageUrl, onState, store } from "./label-store.js";

const AT_ONCE = 4;
const queue = [];             // newest last, loaded first: what was asked for last is on the screen
const loading = new Set();

export function load(image, id, size) {
  cancel(image);
  image.wanted = [id, size];
  queue.push(image);
  pump();
}

export function cancel(image) {
  const place = queue.indexOf(image);
  if (place >= 0) queue.splice(place, 1);
  image.wanted = null;
  if (loading.delete(image)) image.removeAttribute("src");
  image.classList.remove("ready");
  pump();
}

function pump() {
  while (store.state && loading.size < AT_ONCE && queue.length) {  // addresses name the session
    const image = queue.pop();
    loading.add(image);
    image.onload = () => end(image, true);
    image.onerror = () => end(image, false);
    image.src = imageUrl(...image.wanted);
  }
}

onState(pump);

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
  constructor() {
    this.image = make("img", { alt: "", decoding: "async", draggable: "false" });
    this.tag = make("span", { class: "tag" });
    this.stack = make("span", { class: "stack" });
    this.tick = make("span", { class: "tick", "aria-hidden": "true" });
    this.element = make("div", { class: "tile", role: "option", "aria-selected": "false" }, this.image, this.tag, this.stack, this.tick);
    this.id = null;
  }

  // Shows an image; `item` may follow later.
  show(id, size) {
    if (this.id === id && this.size === size) return;
    [this.id, this.size] = [id, size];
    this.element.classList.remove("broken");
    if (id === null) cancel(this.image);
    else load(this.image, id, size);
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
    this.id = null;
    cancel(this.image);
    this.element.remove();
  }
}
