// Classes of the session: assign by key, click or name; add, rename, merge and delete.

import { byId, count, make, say } from "./api.js";
import { act, store } from "./label-store.js";

export const ANSWERS = [
  { key: "n", answer: "none", name: "None of these", words: "shows none of the classes" },
  { key: "u", answer: "unsure", name: "Unsure", words: "I cannot decide" },
  { key: "s", answer: "skip", name: "Skip", words: "not now" },
];

let answer = () => false, edited = null;

// `given` receives {label}, {answer} or {clear}; it returns whether there was an image to apply it to.
export function startClasses(given) {
  answer = given;
  byId("answer-list").replaceChildren(
    ...ANSWERS.map((one) => make("li", {}, make("button", { type: "button", class: "assign", id: `answer-${one.answer}`, title: one.words, onclick: () => answer({ answer: one.answer }) },
      make("kbd", { text: one.key }), make("span", { class: "name", text: one.name }), make("span", { class: "number", id: `count-${one.answer}` })))),
    make("li", {}, make("button", { type: "button", class: "assign", onclick: () => answer({ clear: true }) }, make("kbd", { text: "Del" }), make("span", { class: "name", text: "Remove label" }))),
  );
  byId("class-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const field = byId("class-name"), name = field.value.trim().replace(/\s+/g, " ");
    if (!name) return;
    field.value = "";
    if (!answer({ label: name })) addClass(name);
    field.blur();
  });
  byId("class-name").addEventListener("keydown", (event) => { if (event.key === "Escape") { event.target.value = ""; event.target.blur(); } });
  byId("rename-form").addEventListener("submit", (event) => edit(event, () => {
    const to = byId("rename-name").value.trim();
    return to && to !== edited ? { do: "rename class", name: edited, to } : null;
  }));
  byId("merge-form").addEventListener("submit", (event) => edit(event, () => ({ do: "merge class", name: edited, into: byId("merge-into").value })));
  byId("delete-class").addEventListener("click", (event) => edit(event, () => ({ do: "delete class", name: edited })));
  byId("class-dialog-close").addEventListener("click", () => byId("class-dialog").close());
}

async function addClass(name) {
  if (store.state.classes.some((one) => one.name === name)) { say(`The class ${name} exists.`); return; }
  if (await act({ do: "add class", name })) say(`Class ${name} added.`);
}

async function edit(event, action) {
  event.preventDefault();
  const given = action();
  byId("class-dialog").close();
  if (given && await act(given)) say("Classes changed. Undo restores them.");
}

let shown = "";
export function showClasses(state) {
  const same = JSON.stringify(state.classes);
  for (const one of ANSWERS) byId(`count-${one.answer}`).textContent = state.answers[one.answer] ? count(state.answers[one.answer]) : "";
  if (same === shown) return;
  shown = same;
  byId("classes-words").textContent = state.classes.length ? "" : "none yet";
  byId("class-names").replaceChildren(...state.classes.map((one) => make("option", { value: one.name })));
  const list = byId("class-list"), focused = document.activeElement?.dataset?.class;
  list.replaceChildren(...(state.classes.length ? state.classes.map(classRow) : [make("li", { class: "soft small empty", text: "Select images, type a name here and press Enter. The first class gets the key 1." })]));
  if (focused) [...list.querySelectorAll("button")].find((button) => button.dataset.class === focused)?.focus();
}

function classRow(one) {
  const suggested = one.suggested ? `${one.name}: ${count(one.suggested)} suggested` : one.name;
  return make("li", {},
    make("button", { type: "button", class: "assign", "data-class": one.name, title: suggested, onclick: () => answer({ label: one.name }) },
      make("kbd", { text: one.key || "·" }), make("span", { class: "name", text: one.name }), make("span", { class: "number", text: count(one.labelled) })),
    make("button", { type: "button", class: "quiet edit", "aria-label": `Edit class ${one.name}`, "data-class": `edit ${one.name}`, text: "⋯", onclick: () => openClass(one.name) }));
}

function openClass(name) {
  edited = name;
  const others = store.state.classes.filter((one) => one.name !== name);
  byId("class-dialog-title").textContent = `Class ${name}`;
  byId("rename-name").value = name;
  byId("merge-form").hidden = !others.length;
  byId("merge-into").replaceChildren(...others.map((one) => make("option", { value: one.name, text: one.name })));
  const labelled = store.state.classes.find((one) => one.name === name)?.labelled ?? 0;
  byId("delete-words").textContent = labelled ? `Its ${count(labelled, "image")} become unlabelled. Undo restores them.` : "";
  byId("class-dialog").showModal();
}

// The answer that a key stands for; null for another key.
export function answerOf(key) {
  if (key === "Delete" || key === "Backspace") return { clear: true };
  const other = ANSWERS.find((one) => one.key === key);
  if (other) return { answer: other.answer };
  const found = store.state?.classes.find((one) => one.key && one.key === key);
  return found ? { label: found.name } : null;
}

// The action for an answer to images.
export function actionFor(given, images, source) {
  if (given.clear) return { do: "clear", images };
  if (given.answer) return { do: "answer", images, answer: given.answer };
  if (store.state.multi_label) return { do: "toggle", images, label: given.label };
  return { do: "label", images, label: given.label, source };
}

export const inWords = (given) => given.clear ? "no label" : given.answer ? ANSWERS.find((one) => one.answer === given.answer).name : given.label;
