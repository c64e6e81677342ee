// A run as it goes: what stands in its log, as it comes, and what it is at in this moment.

import { byId, copy, count, duration, follow, hasKey, json, make, notice, percent, picture, say } from "./api.js";
import { chart, interval } from "./chart.js";

const WORDS = { starting: "Starting", running: "Training", finished: "Finished", stopped: "Stopped", gone: "Ended", closed: "Page closed" };
const SHOWN_MISTAKES = 24;

let log = fresh(), run = null, wanted = false, summed = false;

function fresh() { return { images: null, engine: null, plan: [], stages: [], epochs: [], rungs: [], findings: null, mistakes: null, finished: null }; }

follow("watch/events", told, broken);

function told(kind, data) {
  if (kind === "reset") log = fresh();
  else if (kind === "state") state(data);
  else if (kind === "now") now(data);
  else if (kind === "log") entry(data);
  later();
}

function entry(data) {
  switch (data.event) {
    case "images": log = { ...fresh(), images: data }; break;  // a run that is gone on with begins here
    case "engine": log.engine = data; break;
    case "plan": log.plan.push(data.text); break;
    case "stage": log.stages.push(data); break;
    case "epoch": case "validation": epoch(data); break;
    case "rung": log.rungs = [...log.rungs.filter((rung) => rung.name !== data.name), data]; break;
    case "findings": log.findings = data.found; break;
    case "mistakes": log.mistakes = data; break;
    case "finished": log.finished = data; break;
  }
}

function epoch(data) {
  let own = log.epochs.find((one) => one.stage === data.stage && one.epoch === data.epoch);
  if (!own) log.epochs.push(own = { stage: data.stage, epoch: data.epoch });
  own[data.event === "epoch" ? "shown" : "validation"] = data;
}

// Many events come at once where a page is opened late: what they change is drawn once.
function later() {
  if (wanted) return;
  wanted = true;
  requestAnimationFrame(() => { wanted = false; show(); });
}

function broken(error) {
  if (!error) { notice(""); if (run) words(run.state); return; }
  if (error.kind && error.kind !== "away" && error.kind !== "busy") { notice(error.message); return; }
  if (!run) { notice("The server cannot be reached. Is it still running?"); return; }
  byId("now").hidden = true;
  words(run.state === "running" ? "closed" : run.state);
  notice(run.state === "finished" || run.state === "stopped"
    ? `What stands here stays readable. To open it again: ${run.again}`
    : `The page's server is gone; this page looks for it. To open it again: ${run.again}`);
}

function words(state) {
  byId("state").dataset.state = state;
  byId("state-words").textContent = WORDS[state] ?? state;
  document.title = `${WORDS[state] ?? state}: ${run.name} - Headstart`;
}

function state(data) {
  const before = run?.state;
  run = data;
  words(data.state);
  byId("run-name").textContent = data.name;
  byId("to-pictures").hidden = !data.pictures;
  byId("again").replaceChildren("To open this page again: ", make("code", { text: data.again }));
  byId("stopped").hidden = data.state !== "stopped";
  byId("resume-command").textContent = data.resume;
  if (data.state === "gone") notice("This run ended before it had learnt anything, and left nothing behind. Its terminal says why.");
  if (before && before !== data.state) say(`The run: ${WORDS[data.state]}.`);
  if (data.state !== "running" && data.state !== "starting") byId("now").hidden = true;
  if (data.state === "finished" && !summed) { summed = true; summary(); }
}

function now(data) {
  const box = byId("now"), task = data?.task;
  box.hidden = !data || !run || run.state === "finished" || run.state === "stopped" || run.state === "gone";
  if (box.hidden) return;
  const bar = byId("now-bar"), last = data.said.at(-1);
  byId("now-title").textContent = task ? task.name : "Working";
  byId("now-words").textContent = last ? last[1] : "";
  if (task) {
    bar.max = Math.max(1, task.total);
    bar.value = task.done;
    const rate = task.done / Math.max(task.seconds, 1e-9), left = (task.total - task.done) / rate;
    const parts = [`${count(task.done)} of ${count(task.total)} ${task.unit}`];
    if (task.seconds > 1 && task.done) parts.push(`${count(Math.round(rate))} ${task.unit}/s`, task.done < task.total ? `about ${duration(left)} left of this step` : "");
    byId("now-left").textContent = parts.filter(Boolean).join(" · ");
  } else {
    bar.removeAttribute("value");
    byId("now-left").textContent = "";
  }
  byId("said-box").hidden = !data.said.length;
  byId("said-lines").replaceChildren(...data.said.map(([, text]) => make("li", { text })));
}

function show() {
  const { images, rungs, epochs, plan } = log;
  if (images) {
    const sizes = Object.entries(images.counts).map(([split, own]) => `${split} ${count(Object.values(own).reduce((a, b) => a + b, 0))}`);
    const classes = Object.keys(Object.values(images.counts)[0] ?? {}).length;
    byId("run-facts").textContent = `${count(classes, "class", "classes")} · ${sizes.join(", ")} images`;
  }
  steps();
  const lines = plan.map((text) => text.replace(/^Plan[:,] /, "")).map((text) => text[0].toUpperCase() + text.slice(1));
  if (log.engine) lines.push(`Frozen layers: ${log.engine.fast}`);
  byId("plan-empty").hidden = lines.length > 0;
  byId("plan").replaceChildren(...lines.map((text) => make("li", { text })));
  ladder(rungs);
  curves(epochs);
  findings(log.findings);
  if (!summed) mistakes(log.mistakes?.items, log.mistakes && `${count(log.mistakes.count)} of ${count(log.mistakes.of)} val images by ${log.mistakes.stage}`);
}

function steps() {
  const over = run?.state === "finished", last = log.stages.at(-1), judged = new Set(log.rungs.map((rung) => rung.name));
  const stages = log.stages.map((stage) => [stage.stage, stage !== last || judged.has(stage.stage) || log.finished]);
  const all = [["Read the images", log.images], ["Run the backbone", last], ...(last ? stages : [["Fit the head", null]]), ["Report", null]];
  const done = all.map(([, ready]) => over || Boolean(ready));
  const here = run?.state === "running" ? done.indexOf(false) : -1;
  byId("steps").replaceChildren(...all.map(([name], place) => make("li", { class: done[place] ? "done" : place === here ? "here" : null, "aria-current": place === here ? "step" : null, text: name })));
}

function ladder(rungs) {
  byId("ladder-empty").hidden = rungs.length > 0;
  byId("ladder-box").hidden = !rungs.length;
  if (over() && !rungs.length) byId("ladder-empty").textContent = "A probe is all that was asked for: there is no ladder.";
  const from = Math.max(0, Math.floor(10 * Math.min(1, ...rungs.map((rung) => rung.low))) / 10 - 0.05);
  const kept = log.finished?.best;
  byId("ladder").replaceChildren(...rungs.map((rung) => {
    const value = rung.correct / rung.count;
    return make("tr", { class: rung.name === kept ? "best" : null },
      make("th", { scope: "row", text: rung.name }), make("td", { "data-label": "right", text: `${count(rung.correct)} of ${count(rung.count)}` }), make("td", { "data-label": "accuracy", text: percent(value) }),
      make("td", { "data-label": "95 % interval" }, make("div", { class: "interval" }, interval({ low: rung.low, high: rung.high, value, from }), make("span", { text: `${(100 * rung.low).toFixed(1)}-${(100 * rung.high).toFixed(1)}` }))),
      make("td", { "data-label": "log loss", text: rung.name === "kNN" ? "-" : rung.log_loss.toFixed(3) }), make("td", { "data-label": "seconds", text: rung.seconds.toFixed(1) }), make("td", { class: "words", "data-label": "decision", text: rung.decision || (rung.name === kept ? "kept" : "") }));
  }));
}

function curves(epochs) {
  byId("curves").hidden = !epochs.length;
  byId("curves-empty").hidden = epochs.length > 0;
  if (over() && !epochs.length) byId("curves-empty").textContent = "Nothing was trained by steps: the classifier was fitted at once, so there are no epochs.";
  if (!epochs.length) return;
  const names = [...new Set(epochs.map((one) => one.stage))];
  const stages = (train, val) => names.map((name) => {
    const own = epochs.filter((one) => one.stage === name);
    const points = (kind, figure) => own.filter((one) => one[kind]).map((one) => [one.epoch, one[kind][figure]]);
    return { name, train: points("shown", train), val: points("validation", val) };
  });
  const last = epochs.at(-1);
  byId("loss-chart").replaceChildren(chart(stages("loss", "log_loss"), { words: `Loss over ${count(epochs.length, "epoch")}; the last: ${figure(last.shown?.loss)} on train, ${figure(last.validation?.log_loss)} on val` }));
  byId("accuracy-chart").replaceChildren(chart(stages("accuracy", "accuracy"), { share: true, words: `Accuracy over ${count(epochs.length, "epoch")}; the last: ${share(last.shown?.accuracy)} on train, ${share(last.validation?.accuracy)} on val` }));
  byId("epochs").replaceChildren(...epochs.map((one) => make("tr", {}, make("th", { scope: "row", text: one.stage }), ...[one.epoch + 1, figure(one.shown?.loss), share(one.shown?.accuracy), figure(one.validation?.log_loss), share(one.validation?.accuracy)].map((text) => make("td", { text: String(text) })))));
}

const figure = (value) => (value === undefined ? "-" : value.toFixed(3));
const share = (value) => (value === undefined ? "-" : percent(value));
const over = () => run?.state === "finished";

let shownFindings = "";
function findings(found) {
  const empty = byId("findings-empty");
  empty.hidden = Boolean(found?.length);
  if (found && !found.length) empty.textContent = "Nothing was found wrong with the data.";
  const same = JSON.stringify(found);
  if (same === shownFindings) return;  // what is open stays open
  shownFindings = same;
  byId("findings").replaceChildren(...(found ?? []).map((own) => make("li", {}, make("span", { class: `severity ${own.severity}`, text: own.severity }), make("div", {}, make("span", { text: own.message }), ...casesOf(own)))));
}

// The images of a finding, fetched when they are asked for; each opens by itself.
function casesOf({ message, cases, images = [] }) {
  if (!images.length) return [];
  const list = make("ul", { class: "tiles" });
  const box = make("details", { class: "cases" }, make("summary", { text: `Show ${count(images.length, "image")}`, "aria-label": `Show the images of: ${message}` }), list);
  box.addEventListener("toggle", () => {
    if (!box.open || list.children.length) return;
    list.replaceChildren(...images.map(([path, words, key]) => make("li", { title: path }, thumb(path, key, true), make("span", { text: words }))));
    if (cases > images.length) list.append(make("li", { class: "soft", text: `findings.json in the run's folder lists all ${count(cases)}` }));
  });
  return [box];
}

// A small picture of the run's data, once it is there; as a link it opens the same picture by itself.
function thumb(path, key, link = false) {
  const place = make("span", { class: "thumb", text: "…" }), name = path.split("/").at(-1);
  const shown = (address) => {
    const image = make("img", { class: "thumb", src: address, alt: name });
    place.replaceWith(link ? make("a", { href: address, target: "_blank", rel: "noopener" }, image) : image);
  };
  picture(`watch/pictures/${key}`).then(shown, () => { place.textContent = "The file is gone"; });
  return place;
}

let shownMistakes = "";
function mistakes(items, about) {
  if (!items) return;
  const same = JSON.stringify([items, about]);
  if (same === shownMistakes) return;
  shownMistakes = same;
  byId("mistakes-empty").hidden = items.length > 0;
  byId("mistakes-empty").textContent = "None: every one is right.";
  byId("mistakes-words").textContent = about;
  byId("mistakes").replaceChildren(...items.slice(0, SHOWN_MISTAKES).map(([path, right, given, chance, key]) => {
    return make("li", { title: path }, thumb(path, key), make("span", { class: "right", text: `is ${right || "none"}` }), make("span", { class: "given", text: `taken for ${given || "none"}${chance === null ? "" : `, ${percent(chance)}`}` }));
  }));
}

// What stands in a finished run's folder.
async function summary() {
  const told = await json("watch/summary");
  byId("result").hidden = false;
  byId("result-scores").replaceChildren(...Object.values(told.scores).map((own) => make("p", { class: "score" }, make("strong", { text: percent(own.correct / own.count) }), make("span", { text: `of ${own.name}: ${count(own.correct)} of ${count(own.count)} right, 95 % interval ${(100 * own.low).toFixed(1)}-${(100 * own.high).toFixed(1)}` }))));
  const links = [];
  if (told.report && !hasKey()) links.push(make("a", { href: "watch/report", target: "_blank", rel: "noopener", text: "Open the report" }));
  links.push(make("span", { class: "soft" }, "Kept: ", make("strong", { text: told.best }), ` · ${duration(told.seconds)} in all · model `, make("code", { text: told.model })));
  byId("result-links").replaceChildren(...links);
  if (told.mistakes) mistakes(told.mistakes.items, `${count(told.mistakes.count)} of ${count(told.mistakes.of)} ${told.mistakes.split} images, the surest first`);
  log.findings = told.findings;
  later();
}

for (const [button, code] of [["copy-resume", "resume-command"]]) byId(button).addEventListener("click", (event) => copy(byId(code).textContent, event.target));
