// The labelling page: panels, keys, undo and progress.

import { byId, count, duration, make, notice, say } from "./api.js";
import { answerOf, inWords, showClasses, startClasses } from "./label-classes.js";
import { confirm } from "./label-confirm.js";
import { groups, images } from "./label-images.js";
import { keep } from "./label-keep.js";
import { know } from "./label-know.js";
import { ask, blind, mistakes } from "./label-single.js";
import { connect, onState, send, step, store } from "./label-store.js";
import { train } from "./label-train.js";

const PANELS = [images, groups, confirm, ask, blind, know, mistakes, train, keep];

const KEYS = [
  ["Everywhere", [["1-9, letters", "assign the class with this key"], ["/", "type a class name; Enter assigns it, and creates it if it is new"], ["n", "none of these"], ["u", "unsure"], ["s", "skip"], ["Del", "remove the label"], ["Ctrl Z", "undo"], ["Ctrl Shift Z", "redo"], ["[ and ]", "previous and next step"], ["?", "this help"]]],
  ["Images", [["Arrows", "move"], ["Space", "select"], ["Shift Arrows", "select a range"], ["a or Ctrl A", "select all"], ["Esc", "clear the selection"], ["Enter", "show the image large"]]],
  ["Groups", [["Arrows", "move"], ["1-9, letters", "label the images shown"], ["Space", "give them the suggested class"], ["Enter", "open the group"]]],
  ["Confirm", [["Arrows", "move"], ["Space", "tick or untick"], ["1-9, letters", "label the image you are at or point at"], ["Enter", "confirm the ticked images"], ["← →", "one by one: no, yes"]]],
  ["Ask me, Test sample, Second look", [["Enter", "the first suggestion; in a second look, keep the label; with several labels, save"]]],
];

let current = null;

// ---- Panels ----------------------------------------------------------------------------------------------------------

function build() {
  const panel = byId("panel");
  for (const one of PANELS) {
    one.element = make("div", { class: `panel-body panel-${one.id}`, hidden: true });
    one.build(one.element);
    one.title_ = one.element.querySelector("#panel-title");
    one.title_.id = `${one.id}-title`;
    panel.append(one.element);
    byId("tabs").append(make("button", { type: "button", role: "tab", id: `tab-${one.id}`, "aria-controls": "panel", "aria-selected": "false", tabindex: "-1", onclick: () => { location.hash = one.id; } }, one.title, make("span", { class: "badge" })));
  }
  byId("tabs").addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way) { event.preventDefault(); go(way); byId(`tab-${current.id}`).focus(); }
  });
  addEventListener("hashchange", open);
  open();
}

function open() {
  const next = PANELS.find((one) => `#${one.id}` === location.hash) ?? images;
  if (next === current) return;
  current?.hidden?.();
  current = next;
  document.body.dataset.panel = next.id;
  for (const one of PANELS) {
    one.element.hidden = one !== next;
    const tab = byId(`tab-${one.id}`);
    tab.setAttribute("aria-selected", String(one === next));
    tab.tabIndex = one === next ? 0 : -1;
  }
  byId("panel").setAttribute("aria-labelledby", `${next.id}-title`);
  byId(`tab-${next.id}`).scrollIntoView({ block: "nearest", inline: "nearest" });
  if (!store.state) return;
  next.update(store.state, null);
  next.shown();
}

function go(way) {
  const place = PANELS.indexOf(current) + way;
  if (place >= 0 && place < PANELS.length) { location.hash = PANELS[place].id; open(); }
}

// ---- State -----------------------------------------------------------------------------------------------------------

onState((state, before) => {
  showClasses(state);
  current.update(state, before);
  if (!before) { current.shown(); const name = state.source.replace(/\/+$/, "").split("/").at(-1); document.title = `${name} - Label - Headstart`; byId("source").textContent = name; byId("source").title = state.source; }
  for (const which of ["undo", "redo"]) {
    const button = byId(which), words = state[which];
    button.disabled = !words;
    button.querySelector(".what").textContent = words ?? "";
    button.title = words ? `${which === "undo" ? "Undo" : "Redo"}: ${words}` : "";
    button.setAttribute("aria-label", words ? `${which === "undo" ? "Undo" : "Redo"}: ${words}` : which === "undo" ? "Undo" : "Redo");
  }
  badges(state);
  work(state, before);
  if (state.edited_file && state.edited_file !== before?.edited_file) notice(`Another program changed the table of labels while this session was open. Its version is in ${state.edited_file}: to take its labels, import it under Save and load.`, "Close", () => notice(""));
  const lost = state.missing.count;
  if (lost && lost !== before?.missing.count) notice(`${count(lost, "label")} in the table ${lost === 1 ? "is" : "are"} for images that are not in the folder, for example ${state.missing.first}. Put the files back and start again, or remove these rows from the table while no session is open: training needs every image of the table.`, "Close", () => notice(""));
  offerFolders(state);
});

// While nothing is labelled, the names of folders are offered as labels.
let offered = null;
function offerFolders(state) {
  const folders = state.folders ?? [], same = folders.join("/");
  if (same === (offered ?? "")) return;
  offered = same;
  if (!folders.length) { notice(""); return; }
  const named = folders.length > 4 ? `${folders.slice(0, 3).join(", ")} and ${count(folders.length - 3)} more` : folders.join(", ");
  notice(`The images are in ${count(folders.length)} folders: ${named}. If these are their classes, take them as labels; otherwise start labelling.`, "Take them as labels", async () => {
    const reply = await send("import", { folder: state.source });
    if (reply) say(`${count(reply.changed.length, "label")} taken from the folders.`);
  });
}

function badges(state) {
  const badge = (id, text) => { const element = byId(`tab-${id}`).querySelector(".badge"); if (element.textContent !== text) element.textContent = text; };
  const suggested = state.classes.reduce((sum, one) => sum + one.suggested, 0);
  badge("images", state.images ? `${count(state.labelled)}/${count(state.images)}` : "");
  badge("confirm", suggested ? count(suggested) : "");
  badge("blind", state.blind.wanted ? `${count(state.blind.labelled)}/${count(state.blind.wanted)}` : "");
  badge("know", state.accuracy ? `${Math.round((100 * state.accuracy.correct) / state.accuracy.count)} %` : "");
  badge("train", { running: "running", finished: "done", failed: "failed" }[state.training.state] ?? "");
}

const STAGES = { listing: "Looking for images", reading: "Reading the images", features: "Computing features" };

function work(state, before) {
  const { stage, done, total, seconds_left: left, message, failures } = state.work, box = byId("work"), bar = byId("work-bar");
  const running = stage in STAGES;
  box.hidden = !running && stage !== "failed" && !failures?.length;
  bar.hidden = !running;
  if (running && total) { bar.max = total; bar.value = done; } else bar.removeAttribute("value");
  const words = stage === "failed" ? `The images cannot be analysed: ${message}`
    : running ? [STAGES[stage], total ? `${count(done)} of ${count(total)}` : "", left ? `about ${duration(left)} left` : "", "You can label meanwhile"].filter(Boolean).join(" · ")
    : failures?.length ? `${count(failures.length, "file")} cannot be read, for example ${failures[0].path}: ${failures[0].reason}` : "";
  if (byId("work-words").textContent !== words) byId("work-words").textContent = words;
  if (before && before.work.stage !== stage && stage === "ready") say("The features are ready. Groups and suggestions are available.");
}

// ---- Answers and keys --------------------------------------------------------------------------------------------------

function answer(given) {
  const done = current.answer(given);
  if (!done && !given.label) say(`Select an image first: ${inWords(given)} applies to the selected images.`);
  return done;
}

const isTyping = (element) => element instanceof HTMLElement && (element.matches("input:not([type=range]):not([type=checkbox]), textarea, select") || element.isContentEditable);

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || document.querySelector("dialog[open]") || !current || !store.state) return;
  const control = event.ctrlKey || event.metaKey;
  if (isTyping(event.target)) return;
  if (control && ["z", "y"].includes(event.key.toLowerCase())) {
    event.preventDefault();
    step(event.shiftKey || event.key.toLowerCase() === "y" ? "redo" : "undo");
    return;
  }
  if (event.altKey || (control && event.key.toLowerCase() !== "a")) return;
  if (current.key(event)) { event.preventDefault(); return; }
  if (control) return;
  if (event.key === "?") byId("help").showModal();
  else if (event.key === "/") byId("class-name").focus();
  else if (event.key === "[" || event.key === "]") go(event.key === "]" ? 1 : -1);
  else {
    const given = event.target.matches?.("[role=tab]") && event.key === "Delete" ? null : answerOf(event.key);
    if (!given) return;
    answer(given);
  }
  event.preventDefault();
});

// ---- Start -------------------------------------------------------------------------------------------------------------

byId("undo").addEventListener("click", () => step("undo"));
byId("redo").addEventListener("click", () => step("redo"));
byId("help-button").addEventListener("click", () => byId("help").showModal());
byId("help-close").addEventListener("click", () => byId("help").close());
byId("large-close").addEventListener("click", () => byId("large").close());
byId("large").addEventListener("close", () => byId("large-image").removeAttribute("src"));
byId("class-name").addEventListener("blur", () => { if (current && !document.querySelector("dialog[open]")) setTimeout(() => { if (document.activeElement === document.body) refocus(); }); });
addEventListener("error", (event) => notice(`The page has an error: ${event.message}`));

function refocus() {
  const box = current.element.querySelector("[role=listbox]:not([hidden]), figure.one, .open-group");
  (box ?? byId("panel")).focus({ preventScroll: true });
}

byId("help-keys").replaceChildren(...KEYS.map(([title, rows]) => make("section", {}, make("h3", { text: title }), make("dl", {}, ...rows.flatMap(([key, words]) => [make("dt", {}, ...key.split(" ").map((part) => (/^(and|or|letters|of)$/.test(part) ? `${part} ` : make("kbd", { text: part.replace(",", "") })))), make("dd", { text: words })])))));
startClasses(answer);
build();
connect();
