// Panel "Train": one button, the progress of the run, its result, and a trial of the model.

import { Trouble, count, duration, follow, json, make, percent, say } from "./api.js";
import { report, send, store } from "./label-store.js";

const TRIES = 6;

let box, button, live, result, trial, answers, files, following = null, log = null, status = null, shownRun = null;

export const train = {
  id: "train",
  title: "Train",

  build(panel) {
    button = make("button", { type: "button", class: "main", id: "train", text: "Train a model", onclick: start });
    live = make("section", { class: "panel", id: "training", "aria-label": "Training", hidden: true });
    result = make("section", { class: "panel", id: "trained", "aria-label": "Result", hidden: true });
    files = make("input", { type: "file", accept: "image/*", multiple: true, hidden: true, id: "try-files", "aria-label": "Images to try", onchange: () => { tryFiles(files.files); files.value = ""; } });
    answers = make("ul", { class: "tried", id: "tried" });
    trial = make("section", { class: "panel drop-zone", id: "try", "aria-labelledby": "try-title", hidden: true },
      make("h3", { id: "try-title", text: "Try the model" }),
      make("p", { class: "soft small", text: "Drop images here. If an answer is wrong, choose the right class: the image is added to the others, the suggestions learn from it, and the next training uses it." }),
      make("button", { type: "button", text: "Choose images", onclick: () => files.click() }), files, answers);
    for (const kind of ["dragenter", "dragover"]) trial.addEventListener(kind, (event) => { event.preventDefault(); trial.classList.add("over"); });
    for (const kind of ["dragleave", "drop"]) trial.addEventListener(kind, () => trial.classList.remove("over"));
    trial.addEventListener("drop", (event) => { event.preventDefault(); tryFiles(event.dataTransfer.files); });
    this.facts = make("p", { class: "soft" });
    panel.append(make("div", { class: "bar-line panel-bar" }, make("h2", { id: "panel-title", text: "Train" })),
      box = make("div", { class: "scroll-box train" }, make("p", { text: "Runs headstart train on your labels with its default options, and scores the model on the test sample. You can go on labelling meanwhile." }), this.facts, make("div", { class: "row" }, button), live, result, trial));
  },

  shown() { button.focus({ preventScroll: true }); watch(store.state); },

  update(state) {
    const training = state.training, classes = state.classes.filter((one) => one.labelled).length;
    this.facts.textContent = `${count(state.labelled, "labelled image")} of ${count(classes, "class", "classes")}; ${count(state.blind.labelled)} in the test sample.${classes < 2 ? " A model needs labelled images of two classes." : ""}`;
    button.disabled = training.state === "running" || classes < 2;
    button.textContent = { none: "Train a model", running: "Training …" }[training.state] ?? "Train again";
    live.hidden = training.state !== "running" && training.state !== "failed";
    if (training.state === "failed") live.replaceChildren(make("h3", { text: "The training failed" }), make("p", { text: training.message }));
    result.hidden = trial.hidden = training.state !== "finished";
    if (training.state === "finished" && shownRun !== training.run) finished(training);
    watch(state);
  },

  hidden() { following?.abort(); following = null; },
  key: () => false,
  answer: () => false,
};

async function start() {
  button.disabled = true;
  const reply = await send("train");
  if (reply) say("The training has started.");
  else button.disabled = false;
}

// Follows the run with the events of the watch page while the panel is on the screen.
function watch(state) {
  const running = state?.training.state === "running" && document.body.dataset.panel === "train";
  if (!running) { following?.abort(); following = null; return; }
  if (following) return;
  following = new AbortController();
  log = { rungs: [], stages: [], epoch: null };
  status = null;
  drawLive();
  follow("watch/events", onEvent, () => {}, following.signal);
}

function onEvent(kind, data) {
  if (kind === "status") status = data;
  else if (kind === "reset") log = { rungs: [], stages: [], epoch: null };
  else if (kind === "log") {
    if (data.event === "rung") log.rungs.push(data);
    else if (data.event === "stage") log.stages.push(data);
    else if (data.event === "validation") log.epoch = data;
    else if (data.event === "images") log.images = data;
  }
  drawLive();
}

function drawLive() {
  if (store.state?.training.state !== "running") return;
  const task = status?.task, last = status?.said?.at(-1)?.[1];
  const bar = make("progress", { "aria-label": "Progress of this step" });
  const words = [];
  if (task) {
    bar.max = Math.max(1, task.total);
    bar.value = task.done;
    words.push(`${count(task.done)} of ${count(task.total)} ${task.unit}`);
    if (task.seconds > 1 && task.done && task.done < task.total) words.push(`about ${duration(((task.total - task.done) * task.seconds) / task.done)} left in this step`);
  }
  live.replaceChildren(
    make("div", { class: "bar-line" }, make("h3", { text: task?.name ?? "Preparing the training" }), make("p", { class: "soft small", text: words.join(" · ") })), bar,
    make("p", { class: "soft small", text: last ?? "The process starts, which takes a few seconds." }),
    make("ul", { class: "advice" }, ...log.rungs.map((rung) => make("li", { text: `${rung.name}: ${rungWords(rung)}` }))),
    make("p", { class: "small" }, make("a", { href: "watch", target: "_blank", rel: "noopener", text: "Open the page of the run" })));
}

function rungWords(rung) {
  const scores = rung.scores ?? rung.val ?? rung;
  return scores.count ? `accuracy ${percent(scores.correct / scores.count)} (${count(scores.correct)}/${count(scores.count)})` : "evaluated";
}

async function finished(training) {
  shownRun = training.run;
  let summary = null;
  try { summary = await json("watch/summary"); } catch (error) { if (!(error instanceof Trouble)) throw error; }
  const open = make("a", { class: "button main", id: "report", href: "watch/report", target: "_blank", rel: "noopener", text: "Open the report" });
  result.replaceChildren(make("h3", { text: "The model is trained" }),
    ...Object.values(summary?.scores ?? {}).map((scores) => make("p", { class: "score" }, make("strong", { text: percent(scores.correct / scores.count) }), make("span", { text: `${scores.name} accuracy (${count(scores.correct)}/${count(scores.count)}), 95 % CI ${(100 * scores.low).toFixed(1)}-${(100 * scores.high).toFixed(1)}` }))),
    make("div", { class: "row" }, open, make("a", { class: "button", href: "watch", target: "_blank", rel: "noopener", text: "Open the page of the run" }), make("a", { class: "button", href: "#mistakes", text: "Review labels that it contradicts" })),
    make("p", {}, "To serve it: ", make("code", { text: training.serve })));
  say("The model is trained.");
  if (document.body.dataset.panel === "train") open.focus();
}

// ---- Trial -----------------------------------------------------------------------------------------------------------

async function tryFiles(chosen) {
  for (const file of [...chosen].slice(0, 50)) await tryFile(file);
}

async function tryFile(file) {
  const address = URL.createObjectURL(file), words = make("div", { class: "tried-words" }, make("p", { class: "soft", text: "The model classifies the image …" }));
  const row = make("li", {}, make("img", { src: address, alt: file.name }), words);
  answers.prepend(row);
  const body = new FormData();
  body.append("file", file, file.name || "image");
  for (let tried = 1; ; tried += 1) {
    try { showAnswer(file, words, await json("v1/label/try", { method: "POST", body })); return; } catch (error) {
      if (!(error instanceof Trouble)) throw error;
      if (error.kind !== "busy" || tried >= TRIES) { words.replaceChildren(make("p", { text: error.message })); return; }
    }
  }
}

function showAnswer(file, words, answer) {
  if (answer.error) { words.replaceChildren(make("p", { text: `The image cannot be read: ${answer.error}.` })); return; }
  const choose = make("select", { "aria-label": `Right class of ${file.name}` }, make("option", { value: "", text: answer.answer && answer.answer !== answer.label ? "Choose the class" : "Wrong? Choose the class" }), ...store.state.classes.map((one) => make("option", { value: one.name, text: one.name })));
  choose.addEventListener("change", () => { if (choose.value) correct(file, choose.value, words); });
  words.replaceChildren(make("p", {}, make("strong", { text: answer.answer || answer.label }), answer.answer && answer.answer !== answer.label ? ` (most probable: ${answer.label}, ${percent(answer.probability)})` : ` ${percent(answer.probability)}`), make("p", { class: "soft small", text: file.name }), choose);
  say(`${file.name}: ${answer.answer || answer.label}.`);
}

async function correct(file, label, words) {
  const body = new FormData();
  body.append("file", file, file.name || "image");
  body.append("label", label);
  body.append("session", store.state.session);
  try {
    const reply = await json("v1/label/correct", { method: "POST", body });
    words.replaceChildren(make("p", {}, "Among the images, labelled ", make("strong", { text: label }), ". The suggestions learn from it in a few seconds, the next training uses it."));
    say(`${file.name} was added as ${label}.`);
  } catch (error) { report(error); }
}
