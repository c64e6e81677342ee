// Panel "Images": the virtual grid, and the groups of similar images to start from.

import { byId, count, make, percent, say } from "./api.js";
import { actionFor, inWords } from "./label-classes.js";
import { Grid } from "./label-grid.js";
import { act, fetchJson, imageUrl, report, store } from "./label-store.js";
import { ImageTile } from "./label-tiles.js";
import { words } from "./tiles.js";

const VIEWS = [["all", "All images"], ["unlabelled", "Unlabelled"], ["labelled", "Labelled"], ["none", "None of these"], ["unsure", "Unsure"], ["skip", "Skipped"]];

let grid, picker, status, title, back;

export const images = {
  id: "images",
  title: "Images",
  source: "grid",

  build(panel) {
    title = make("h2", { id: "panel-title", text: "Images" });
    status = make("p", { class: "soft small", id: "grid-status", role: "status" });
    picker = make("select", { "aria-label": "Images to show", id: "view", onchange: () => show(picker.value) });
    back = make("button", { type: "button", class: "quiet", text: "Back to all groups", hidden: true, onclick: () => { location.hash = "groups"; } });
    const size = make("input", { type: "range", min: 72, max: 260, value: 132, "aria-label": "Size of the images", id: "tile-size", oninput: (event) => { grid.target = Number(event.target.value); grid.measure(); } });
    const all = make("button", { type: "button", text: "Select all", onclick: () => grid.selectAll() });
    const none = make("button", { type: "button", class: "quiet", text: "Clear selection", onclick: () => grid.clear() });
    const scroller = make("div", { class: "grid-box", id: "grid", role: "listbox", tabindex: "0", "aria-multiselectable": "true", "aria-label": "Images" });
    panel.append(make("div", { class: "bar-line panel-bar" }, title, picker, back, status, make("span", { class: "row tools" }, size, all, none)), scroller);
    grid = new Grid(scroller, { opened: openLarge, changed: summary });
    grid.setView("all", store.state?.stacks ?? 0);
    this.grid = grid;
  },

  shown() { grid.measure(); grid.refresh(); byId("grid").focus({ preventScroll: true }); },

  update(state, before) {
    const options = [...VIEWS, ...state.classes.map((one) => [`class:${one.name}`, `Class: ${one.name}`])];
    if (grid.view.startsWith("cluster:")) options.push([grid.view, "One group"]);
    const same = JSON.stringify(options);
    if (same !== this.options) {
      this.options = same;
      picker.replaceChildren(...options.map(([value, text]) => make("option", { value, text })));
      if (options.some(([value]) => value === grid.view)) picker.value = grid.view;
      else show("all");
    }
    const changed = !before || before.revision !== state.revision || before.images !== state.images || before.learner?.labels !== state.learner?.labels || before.work?.stage !== state.work?.stage;
    if (changed) grid.refresh(grid.view === "all" ? state.stacks : null);
    summary();
  },

  key: (event) => grid.key(event),

  answer(given) {
    if (grid.selecting) { grid.selecting.then(() => this.answer(given)); return true; }
    const targets = grid.targets();
    if (!targets.length) return false;
    act(actionFor(given, targets, grid.view.startsWith("cluster:") ? "cluster" : "grid")).then((reply) => {
      if (reply) say(`${count(reply.changed.length, "image")}: ${inWords(given)}.`);
    });
    if (grid.selected.size) grid.clear();
    return true;
  },
};

// Shows a view of the grid, such as "unlabelled" or "cluster:3".
export function show(view, text = null) {
  grid.setView(view);
  const known = [...picker.options].some((option) => option.value === view);
  if (!known) picker.append(make("option", { value: view, text: text ?? view }));
  picker.value = view;
  back.hidden = !view.startsWith("cluster:");
  byId("grid").focus({ preventScroll: true });
}

function summary() {
  if (!grid) return;
  const chosen = grid.selected.size;
  status.textContent = chosen ? `${count(chosen)} of ${count(grid.total)} selected` : grid.total ? shownWords() : store.state?.work?.stage === "listing" ? "Looking for images …" : "No image in this view.";
}

function shownWords() {
  const stacked = grid.view === "all" ? (store.state?.images ?? 0) - grid.total : 0;
  return count(grid.total, "image") + (stacked > 0 ? ` and ${count(stacked, "near-duplicate")}` : "");
}

export function openLarge(id, item) {
  byId("large-title").textContent = item?.name ?? `Image ${id + 1}`;
  byId("large-image").src = imageUrl(id, 1024);
  const guess = item?.suggestion;
  byId("large-words").textContent = [words(item) && `Label: ${words(item)}`, guess && `suggestion: ${guess.label}, ${percent(guess.probability)}`].filter(Boolean).join(" · ") || "No label.";
  byId("large").showModal();
}

// ---- Groups ----------------------------------------------------------------------------------------------------------

let list, empty, groupsState = [], current = 0;

export const groups = {
  id: "groups",
  title: "Groups",
  source: "cluster",

  build(panel) {
    empty = make("p", { class: "soft empty" });
    list = make("ul", { class: "groups", id: "groups" });
    panel.append(
      make("div", { class: "bar-line panel-bar" }, make("h2", { id: "panel-title", text: "Groups of similar images" }), make("p", { class: "soft small", text: "Name a group: the images shown get the class, then the next ones appear. Click an image to leave it out; click the name or press Enter to open the group." })),
      make("div", { class: "scroll-box" }, empty, list));
  },

  async shown() { await this.load(); list.querySelector("button")?.focus({ preventScroll: true }); },

  update(state, before) {
    const ready = state.work.stage === "ready";
    empty.hidden = groupsState.length > 0;
    empty.textContent = ready ? "No groups yet." : "Groups appear when the features of all images are computed. Until then, label images in the grid.";
    if (!before || before.revision !== state.revision || before.work.stage !== state.work.stage) this.load();
  },

  async load() {
    const version = (this.version = (this.version ?? 0) + 1);
    let reply;
    try { reply = await fetchJson("clusters"); } catch (error) { if (error.kind !== "away") report(error); return; }
    if (version !== this.version) return;
    groupsState = reply.clusters;
    empty.hidden = groupsState.length > 0;
    drawGroups();
  },

  key(event) {
    const buttons = [...list.querySelectorAll(".open-group")], place = buttons.indexOf(document.activeElement);
    if (place < 0) return false;
    if (event.key === " ") {
      const group = groupsState[place];
      if (group?.suggested) labelGroup(group, { label: group.suggested });
      else say("This group has no suggestion. Press a class key, or / and type a name.");
      return true;
    }
    const columns = buttons.filter((button) => button.closest("li").offsetTop === buttons[0].closest("li").offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -place, End: buttons.length - 1 - place }[event.key];
    if (step === undefined) return false;
    buttons[Math.max(0, Math.min(buttons.length - 1, place + step))].focus();
    return true;
  },

  answer(given) {
    const group = groupsState[current];
    if (!group) return false;
    labelGroup(group, given);
    return true;
  },
};

const SHOWN = 9;              // images of a group that are shown, and labelled together: nothing unseen gets a label
const leftOut = new Set();

async function labelGroup(group, given) {
  const open = group.examples.slice(0, Math.min(SHOWN, group.unlabelled)), ids = given.clear ? group.examples.slice(0, SHOWN) : open.filter((id) => !leftOut.has(id));
  if (!ids.length) { say(open.length ? "All images shown are left out." : "All images of this group have labels."); return; }
  const out = given.label && !store.state.multi_label ? open.filter((id) => leftOut.has(id)) : [];
  for (const id of out) leftOut.delete(id);  // they come last from now on
  const reply = await act({ ...actionFor(given, ids, "cluster"), ...(out.length ? { rejected: out } : {}) });
  if (reply) say(`${count(reply.changed.length, "image")} of the group: ${inWords(given)}.`);
}

function leaveOut(entry, tile) {
  if (!leftOut.delete(tile.id)) leftOut.add(tile.id);
  drawLeftOut(entry);
}

function drawLeftOut(entry) {
  for (const tile of entry.tiles) {
    const out = leftOut.has(tile.id);
    tile.element.classList.toggle("out", out);
    tile.tick.textContent = out ? "✗" : "";
  }
}

const drawn = new Map();  // group -> the element that shows it
const shows = new WeakMap();
const visible = new IntersectionObserver((entries) => {
  for (const entry of entries.reverse()) if (entry.isIntersecting) { visible.unobserve(entry.target); shows.get(entry.target)?.(); }
}, { rootMargin: "200px" });

function drawGroups() {
  const focused = list.contains(document.activeElement) ? current : -1;
  for (const entry of drawn.values()) entry.used = false;
  groupsState.forEach((group, place) => {
    const key = `${group.id}:${group.examples.slice(0, SHOWN).join()}`;
    const entry = drawn.get(key) ?? groupTile(group);
    drawn.set(key, entry);
    entry.used = true;
    entry.place = place;
    const left = group.unlabelled ? `${count(group.unlabelled)} of ${count(group.size)} left` : `${count(group.size)} images, all labelled`;
    entry.name.textContent = group.suggested ? `${group.suggested} ?` : `Group ${place + 1}`;
    entry.left.textContent = left;
    entry.element.classList.toggle("done", !group.unlabelled);
    drawLeftOut(entry);
    entry.button.setAttribute("aria-label", `Group ${place + 1}: ${left}${group.suggested ? `, suggested ${group.suggested}: press Space to accept` : ""}. Press a class key to label it, Enter to open it.`);
    if (list.children[place] !== entry.element) list.insertBefore(entry.element, list.children[place] ?? null);
  });
  for (const [key, entry] of drawn) if (!entry.used) { visible.unobserve(entry.element); for (const tile of entry.tiles) tile.free(); entry.element.remove(); drawn.delete(key); }
  if (focused >= 0 && !list.contains(document.activeElement)) list.querySelectorAll(".open-group")[Math.min(focused, groupsState.length - 1)]?.focus();
}

function groupTile(group) {
  const tiles = group.examples.slice(0, SHOWN).map(() => new ImageTile(null));
  const entry = { tiles, place: 0 };
  entry.name = make("strong", {});
  entry.left = make("span", { class: "soft small" });
  entry.button = make("button", { type: "button", class: "open-group", onclick: () => openGroup(entry.place), onfocus: () => { current = entry.place; mark(); } },
    make("span", { class: "examples" }, ...tiles.map((tile) => tile.element)), make("span", { class: "group-words" }, entry.name, entry.left));
  for (const tile of tiles) tile.element.addEventListener("click", (event) => { event.preventDefault(); event.stopPropagation(); leaveOut(entry, tile); entry.button.focus({ preventScroll: true }); });
  entry.element = make("li", {}, entry.button);
  entry.show = () => { group.examples.slice(0, SHOWN).reverse().forEach((id, i, all) => tiles[all.length - 1 - i].showImage(id, 160)); drawLeftOut(entry); };
  visible.observe(entry.element);
  shows.set(entry.element, entry.show);
  entry.element.addEventListener("pointerenter", () => { current = entry.place; mark(); });
  return entry;
}

function mark() {
  [...list.children].forEach((element, place) => element.classList.toggle("current", place === current));
}

function openGroup(place) {
  current = place;
  const group = groupsState[place];
  location.hash = "images";
  show(`cluster:${group.id}`, `Group ${place + 1}`);
}
