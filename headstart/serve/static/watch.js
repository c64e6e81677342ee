// The live view of a run: the lines of its log and its live status, from server-sent events.

import { byId, copy, count, duration, follow, hasKey, imageAddress, json, make, notice, percent, say } from "./api.js";
import { chart, interval } from "./chart.js";

const WORDS = { starting: "Starting", running: "Training", finished: "Finished", stopped: "Stopped", gone: "Ended", closed: "Page closed" };
const SHOWN_MISTAKES = 24;

let log = emptyLog(), run = null, drawRequested = false, summaryShown = false;

function emptyLog() { return { images: null, engine: null, plan: [], stages: [], epochs: [], rungs: [], findings: null, mistakes: null, finished: null }; }

follow("watch/events", onEvent, onConnection);

function onEvent(kind, data) {
  if (kind === "reset") log = emptyLog();
  else if (kind === "state") state(data);
  else if (kind === "status") status(data);
  else if (kind === "log") entry(data);
  drawSoon();
}

function entry(data) {
  switch (data.event) {
    case "images": log = { ...emptyLog(), images: data }; break;  // a resumed run starts here
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
  let metrics = log.epochs.find((one) => one.stage === data.stage && one.epoch === data.epoch);
  if (!metrics) log.epochs.push(metrics = { stage: data.stage, epoch: data.epoch });
  metrics[data.event === "epoch" ? "shown" : "validation"] = data;
}

// A page that is opened late receives many events at once: they are drawn together.
function drawSoon() {
  if (drawRequested) return;
  drawRequested = true;
  requestAnimationFrame(() => { drawRequested = false; draw(); });
}

function onConnection(error) {
  if (!error) { notice(""); if (run) words(run.state); return; }
  if (error.kind && error.kind !== "away" && error.kind !== "busy") { notice(error.message); return; }
  if (!run) { notice("The server cannot be reached. Is it running?"); return; }
  byId("now").hidden = true;
  words(run.state === "running" ? "closed" : run.state);
  notice(run.state === "finished" || run.state === "stopped"
    ? `The server of this page has stopped; the page stays readable. To open it again: ${run.again}`
    : `The server of this page has stopped. The page reconnects when the server is running again. To start it: ${run.again}`);
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
  byId("to-images").hidden = !data.served;
  byId("again").replaceChildren("To open this page again: ", make("code", { text: data.again }));
  byId("stopped").hidden = data.state !== "stopped";
  byId("resume-command").textContent = data.resume;
  if (data.state === "gone") notice("The run ended before it wrote anything to its folder. The terminal has the reason.");
  if (before && before !== data.state) say(`State of the run: ${WORDS[data.state]}.`);
  if (data.state !== "running" && data.state !== "starting") byId("now").hidden = true;
  if (data.state === "finished" && !summaryShown) { summaryShown = true; summary(); }
}

function status(data) {
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
    if (task.seconds > 1 && task.done) parts.push(`${count(Math.round(rate))} ${task.unit}/s`, task.done < task.total ? `about ${duration(left)} left in this step` : "");
    byId("now-left").textContent = parts.filter(Boolean).join(" · ");
  } else {
    bar.removeAttribute("value");
    byId("now-left").textContent = "";
  }
  byId("said-box").hidden = !data.said.length;
  byId("said-lines").replaceChildren(...data.said.map(([, text]) => make("li", { text })));
}

function draw() {
  const { images, rungs, epochs, plan } = log;
  if (images) {
    const sizes = Object.entries(images.counts).map(([split, perClass]) => `${split} ${count(Object.values(perClass).reduce((a, b) => a + b, 0))}`);
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
  if (!summaryShown) mistakes(log.mistakes?.items, log.mistakes && `${count(log.mistakes.count)} of ${count(log.mistakes.of)} val images (${log.mistakes.stage})`);
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
  if (over() && !rungs.length) byId("ladder-empty").textContent = "This run has no ladder: its effort is probe.";
  const from = Math.max(0, Math.floor(10 * Math.min(1, ...rungs.map((rung) => rung.low))) / 10 - 0.05);
  const kept = log.finished?.best;
  byId("ladder").replaceChildren(...rungs.map((rung) => {
    const value = rung.correct / rung.count;
    return make("tr", { class: rung.name === kept ? "best" : null },
      make("th", { scope: "row", text: rung.name }), make("td", { "data-label": "accuracy", text: percent(value) }), make("td", { "data-label": "correct", text: `${count(rung.correct)}/${count(rung.count)}` }),
      make("td", { "data-label": "95 % CI" }, make("div", { class: "interval" }, interval({ low: rung.low, high: rung.high, value, from }), make("span", { text: `${(100 * rung.low).toFixed(1)}-${(100 * rung.high).toFixed(1)}` }))),
      make("td", { "data-label": "log loss", text: rung.name === "kNN" ? "-" : rung.log_loss.toFixed(3) }), make("td", { "data-label": "seconds", text: rung.seconds.toFixed(1) }), make("td", { class: "words", "data-label": "decision", text: rung.decision || (rung.name === kept ? "selected" : "") }));
  }));
}

function curves(epochs) {
  byId("curves").hidden = !epochs.length;
  byId("curves-empty").hidden = epochs.length > 0;
  if (over() && !epochs.length) byId("curves-empty").textContent = "No epochs: the classifier was fitted in one step.";
  if (!epochs.length) return;
  const names = [...new Set(epochs.map((one) => one.stage))];
  const stages = (train, val) => names.map((name) => {
    const ofStage = epochs.filter((one) => one.stage === name);
    const points = (kind, figure) => ofStage.filter((one) => one[kind]).map((one) => [one.epoch, one[kind][figure]]);
    return { name, train: points("shown", train), val: points("validation", val) };
  });
  const last = epochs.at(-1);
  byId("loss-chart").replaceChildren(chart(stages("loss", "log_loss"), { words: `Loss over ${count(epochs.length, "epoch")}; last epoch: ${figure(last.shown?.loss)} on train, ${figure(last.validation?.log_loss)} on val` }));
  byId("accuracy-chart").replaceChildren(chart(stages("accuracy", "accuracy"), { share: true, words: `Accuracy over ${count(epochs.length, "epoch")}; last epoch: ${share(last.shown?.accuracy)} on train, ${share(last.validation?.accuracy)} on val` }));
  byId("epochs").replaceChildren(...epochs.map((one) => make("tr", {}, make("th", { scope: "row", text: one.stage }), ...[one.epoch + 1, figure(one.shown?.loss), share(one.shown?.accuracy), figure(one.validation?.log_loss), share(one.validation?.accuracy)].map((text) => make("td", { text: String(text) })))));
}

const figure = (value) => (value === undefined ? "-" : value.toFixed(3));
const share = (value) => (value === undefined ? "-" : percent(value));
const over = () => run?.state === "finished";

let shownFindings = "";
function findings(found) {
  const empty = byId("findings-empty");
  empty.hidden = Boolean(found?.length);
  if (found && !found.length) empty.textContent = "No findings: the checks found no problem with the data.";
  const same = JSON.stringify(found);
  if (same === shownFindings) return;  // opened lists stay open
  shownFindings = same;
  byId("findings").replaceChildren(...(found ?? []).map((finding) => make("li", {}, make("span", { class: `severity ${finding.severity}`, text: finding.severity }), make("div", {}, make("span", { text: finding.message }), ...casesOf(finding)))));
}

// The images of a finding, fetched when the list is opened.
function casesOf({ message, cases, images = [] }) {
  if (!images.length) return [];
  const list = make("ul", { class: "tiles" });
  const box = make("details", { class: "cases" }, make("summary", { text: `Show ${count(images.length, "image")}`, "aria-label": `Show the images of this finding: ${message}` }), list);
  box.addEventListener("toggle", () => {
    if (!box.open || list.children.length) return;
    list.replaceChildren(...images.map(([path, words, key]) => make("li", { title: path }, thumb(path, key, true), make("span", { text: words }))));
    if (cases > images.length) list.append(make("li", { class: "soft", text: `findings.json in the run folder lists all ${count(cases)}` }));
  });
  return [box];
}

// A thumbnail of an image of the run; with `link`, a click opens it in a new tab.
function thumb(path, key, link = false) {
  const place = make("span", { class: "thumb", text: "…" }), name = path.split("/").at(-1);
  const shown = (address) => {
    const image = make("img", { class: "thumb", src: address, alt: name });
    place.replaceWith(link ? make("a", { href: address, target: "_blank", rel: "noopener" }, image) : image);
  };
  imageAddress(`watch/images/${key}`).then(shown, () => { place.textContent = "File not found"; });
  return place;
}

let shownMistakes = "";
function mistakes(items, about) {
  if (!items) return;
  const same = JSON.stringify([items, about]);
  if (same === shownMistakes) return;
  shownMistakes = same;
  byId("mistakes-empty").hidden = items.length > 0;
  byId("mistakes-empty").textContent = "No mistakes.";
  byId("mistakes-words").textContent = about;
  byId("mistakes").replaceChildren(...items.slice(0, SHOWN_MISTAKES).map(([path, right, given, chance, key]) => {
    return make("li", { title: path }, thumb(path, key), make("span", { class: "right", text: `label: ${right || "none"}` }), make("span", { class: "given", text: `predicted: ${given || "none"}${chance === null ? "" : `, ${percent(chance)}`}` }));
  }));
}

// The result of a finished run.
async function summary() {
  const reply = await json("watch/summary");
  byId("result").hidden = false;
  byId("result-scores").replaceChildren(...Object.values(reply.scores).map((scores) => make("p", { class: "score" }, make("strong", { text: percent(scores.correct / scores.count) }), make("span", { text: `${scores.name} accuracy (${count(scores.correct)}/${count(scores.count)}), 95 % CI ${(100 * scores.low).toFixed(1)}-${(100 * scores.high).toFixed(1)}` }))));
  const links = [];
  if (reply.report && !hasKey()) links.push(make("a", { href: "watch/report", target: "_blank", rel: "noopener", text: "Open the report" }));
  links.push(make("span", { class: "soft" }, "Selected: ", make("strong", { text: reply.best }), ` · ${duration(reply.seconds)} in total · model `, make("code", { text: reply.model })));
  byId("result-links").replaceChildren(...links);
  if (reply.mistakes) mistakes(reply.mistakes.items, `${count(reply.mistakes.count)} of ${count(reply.mistakes.of)} ${reply.mistakes.split} images${reply.mistakes.count ? ", most confident first" : ""}`);
  log.findings = reply.findings;
  drawSoon();
}

for (const [button, code] of [["copy-resume", "resume-command"]]) byId(button).addEventListener("click", (event) => copy(byId(code).textContent, event.target));
