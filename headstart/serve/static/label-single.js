// Panels that show one image at a time: "Ask", "Test sample" and "Second look".

import { count, make, percent, say } from "./api.js";
import { actionFor, inWords } from "./label-classes.js";
import { act, fetchJson, imageUrl, report, store } from "./label-store.js";
import { labelWords } from "./tiles.js";

const AHEAD = 5;

class OneByOne {
  constructor(given) {
    Object.assign(this, given);
    this.items = [];
    this.done = new Set();
    this.chosen = new Set();
    this.total = 0;
  }

  build(panel) {
    this.words = make("p", { class: "soft small" });
    this.figure = make("figure", { class: "one", tabindex: "0", id: `${this.id}-image` }, this.image = make("img", { alt: "" }), this.name = make("figcaption", { class: "soft small" }));
    this.image.addEventListener("error", () => { this.name.textContent = `${this.items[0]?.name ?? "The image"} cannot be shown: press s to skip it`; });
    this.question = make("h3", {});
    this.choices = make("div", { class: "chips choices", role: "group", "aria-label": "Suggestions" });
    this.empty = make("p", { class: "soft empty", text: this.keeps ? "Comparing the labels …" : "Loading …" });
    this.save = make("button", { type: "button", class: "main", hidden: true, onclick: () => this.finish() }, "Save labels ", make("kbd", { text: "Enter" }));
    panel.append(make("div", { class: "bar-line panel-bar" }, make("h2", { id: "panel-title", text: this.heading }), this.words),
      this.empty, this.body = make("div", { class: "one-box", hidden: true }, this.figure, make("div", { class: "one-words" }, this.question, this.choices, this.save, make("p", { class: "soft small for-keys", text: "Press the key of a class, or / and type a name; n none of these, u unsure, s skip." }))));
  }

  async shown() { await this.refill(); if (this.items.length) this.figure.focus({ preventScroll: true }); }

  update(state, before) {
    if (!before || before.revision !== state.revision) this.followUndo();
    if (!this.items.length && (!before || before.revision !== state.revision || before.work.stage !== state.work.stage || before.training.state !== state.training.state || before.learner.labels !== state.learner.labels)) this.refill();
    this.progress(state);
  }

  // An undone answer brings its image back; images that another window has answered leave.
  async followUndo() {
    if (store.state.redo !== this.redo) { this.redo = store.state.redo; this.done.clear(); if (this.redo && !document.body.dataset.waiting) await this.refill(); }
  }

  progress(state) { this.words.textContent = this.status(state, this.total); }

  async refill() {
    this.loading?.abort();
    const loading = (this.loading = new AbortController());
    let reply;
    try { reply = await fetchJson(`queue/${this.queue}?count=${AHEAD}`, loading.signal); }
    catch (error) { if (error.name !== "AbortError" && error.kind !== "away") report(error); return; }
    const first = this.items[0];
    this.total = reply.total;
    const fresh = reply.items.filter((item) => !this.done.has(item.id));
    // The image on the screen stays until it is answered.
    this.items = first && this.keepFirst && fresh.some((item) => item.id === first.id) ? [first, ...fresh.filter((item) => item.id !== first.id)] : fresh;
    this.keepFirst = false;
    for (const item of this.items.slice(0, 3)) new Image().src = imageUrl(item.id, 1024);
    this.draw();
  }

  draw() {
    const item = this.items[0], state = store.state;
    this.body.hidden = !item;
    this.empty.hidden = Boolean(item);
    if (!item) { this.empty.textContent = state ? this.emptyWords(state) : "Connecting …"; this.shownId = null; return; }
    if (this.shownId !== item.id) {
      this.shownId = item.id;
      this.image.src = imageUrl(item.id, 1024);
      this.image.alt = this.suggestions ? `Image ${item.name}` : "Image of the test sample";
      this.name.textContent = item.stack > 1 ? `${item.name} (and ${count(item.stack - 1, "near-duplicate")})` : item.name;
      this.chosen = new Set(Array.isArray(item.label) && this.queue !== "blind" ? item.label : []);
    }
    this.question.textContent = this.ask(item);
    this.drawChoices(item);
  }

  // Suggested classes; in a second look what contradicts the label comes first, and the label has a button already.
  guesses(item) {
    if (!this.suggestions) return [];
    const found = item.suggestions ?? [], first = item.suggestion;
    if (!this.keeps) return found.length ? found : first ? [first] : [];
    const others = found.filter((guess) => guess.label !== first?.label && !(item.label ?? []).includes(guess.label));
    return first ? [first, ...others.map(({ label }) => ({ label }))] : others;
  }

  drawChoices(item) {
    const guesses = this.guesses(item);
    const keyOf = (name) => store.state.classes.find((one) => one.name === name)?.key;
    const classes = store.state.multi_label ? store.state.classes.map((one) => ({ label: one.name, probability: guesses.find((guess) => guess.label === one.name)?.probability })) : guesses;
    this.choices.replaceChildren(...(this.keeps ? [make("button", { type: "button", class: "main", onclick: () => this.keep() }, `Keep ${labelWords(item.label) ?? ""} `, make("kbd", { text: "Enter" }))] : []),
      ...classes.map((guess, place) => make("button", { type: "button", "aria-pressed": store.state.multi_label ? String(this.chosen.has(guess.label)) : null, onclick: () => this.answer({ label: guess.label }) },
        `${guess.label} `, guess.probability === undefined ? "" : make("span", { class: "soft", text: `${percent(guess.probability)} ` }), make("kbd", { text: place === 0 && !this.keeps && !store.state.multi_label ? "Enter" : keyOf(guess.label) || "·" }))));
    this.save.hidden = !store.state.multi_label;
  }

  key(event) {
    if (event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return false;
    const item = this.items[0];
    if (!item || event.key !== "Enter") return false;
    if (this.keeps) this.keep();
    else if (store.state.multi_label) this.finish();
    else {
      const guess = this.suggestions ? item.suggestions?.[0] ?? item.suggestion : null;
      if (!guess) return false;
      this.answer({ label: guess.label });
    }
    return true;
  }

  answer(given) {
    const item = this.items[0];
    if (!item) return false;
    if (store.state.multi_label && given.label) {
      if (!this.chosen.delete(given.label)) this.chosen.add(given.label);
      if (!store.state.classes.some((one) => one.name === given.label)) act({ do: "add class", name: given.label }).then(() => this.draw());
      else this.draw();
      return true;
    }
    if (given.clear && item.label === null) return false;
    this.next([actionFor(given, [item.id], this.source)], inWords(given));
    return true;
  }

  finish() {
    const labels = [...this.chosen];
    if (!labels.length) { say("Choose at least one class, or press n for none of these."); return; }
    const actions = [{ do: "label", images: [this.items[0].id], label: labels, source: this.source }];
    this.next(actions, labels.join(", "));
  }

  keep() { this.next([{ do: "keep", images: [this.items[0].id] }], `kept ${labelWords(this.items[0].label)}`); }

  async next(actions, words) {
    const item = this.items.shift();
    this.done.add(item.id);
    this.total = Math.max(0, this.total - 1);
    this.draw();
    const replies = await Promise.all(actions.map(act));
    if (replies.every(Boolean)) say(`${item.name}: ${words}.`);
    else this.done.delete(item.id);
    if (this.items.length < AHEAD / 2) { this.keepFirst = true; await this.refill(); }
  }
}

const waitWords = (state, what) => state.work.stage === "ready" ? null : `${what} when the features of all images are computed.`;

export const ask = new OneByOne({
  id: "ask", title: "Ask me", heading: "Images whose labels help most", queue: "ask", source: "ask", suggestions: true,
  ask: (item) => item.suggestion || item.suggestions?.length ? "What is this? The classifier is uncertain." : "What is this?",
  status: (state) => `${count(state.labelled)} of ${count(state.images)} images labelled`,
  emptyWords: (state) => waitWords(state, "Images to ask about appear") ?? "No image is left to ask about.",
});

export const blind = new OneByOne({
  id: "blind", title: "Test sample", heading: "Test sample, without suggestions", queue: "blind", source: "blind", suggestions: false,
  ask: () => "What is this?",
  status: (state) => `${state.blind.wanted ? `${count(state.blind.labelled)} of ${count(state.blind.wanted)} labelled · ` : ""}drawn at random, kept out of training, so that the accuracy is honest`,
  emptyWords: (state) => state.blind.wanted && state.blind.labelled >= state.blind.wanted ? "The test sample is complete. The accuracy is under Accuracy." : "The test sample is drawn when all images have been read.",
});

export const mistakes = new OneByOne({
  id: "mistakes", title: "Second look", heading: "Possible mistakes", queue: "mistakes", source: "second look", suggestions: true, keeps: true,
  ask: (item) => `Labelled ${labelWords(item.label) ?? "nothing"}${item.suggestion ? `; the ${item.by_run ? "trained model" : "classifier"} says ${item.suggestion.label} (${percent(item.suggestion.probability)})` : ""}. Which is right?`,
  status: (_state, total) => total ? `${count(total)} to look at` : "",
  emptyWords: (state) => waitWords(state, "Labels are compared") ?? (state.learner.state === "too few labels" ? "Labels are compared when two classes have several." : "No label looks wrong to the classifier."),
});
