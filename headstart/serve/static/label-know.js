// Panel "Accuracy": the accuracy on the test sample, its curve over the number of labels, and what more labels bring.

import { count, make, percent } from "./api.js";
import { draw } from "./chart.js";
import { act, fetchJson, report, store } from "./label-store.js";

const WIDTH = 620, HEIGHT = 260, LEFT = 46, RIGHT = 14, TOP = 12, BOTTOM = 38;

let box;

export const know = {
  id: "know",
  title: "Accuracy",

  build(panel) {
    box = make("div", { class: "scroll-box know" });
    panel.append(make("div", { class: "bar-line panel-bar" }, make("h2", { id: "panel-title", text: "Accuracy" }), make("p", { class: "soft small", text: "Measured on the test sample: images drawn at random, labelled without suggestions and kept out of training." })), box);
  },

  async shown() { await this.load(); },

  update(state, before) {
    if (!before || before.revision !== state.revision || before.learner.labels !== state.learner.labels) this.load();
  },

  async load() {
    try { show(await fetchJson("knowledge")); } catch (error) { if (error.kind !== "away") report(error); }
  },

  key: () => false,
  answer: () => false,
};

const isComplete = () => store.state.blind.wanted > 0 && store.state.blind.labelled >= store.state.blind.wanted;

function show(known) {
  const accuracy = known.accuracy, curve = known.curve ?? [];
  box.replaceChildren(
    accuracy
      ? make("div", { class: "panel accuracy" }, make("strong", { class: "figure", text: percent(accuracy.correct / accuracy.count) }), make("p", { text: `${count(accuracy.correct)}/${count(accuracy.count)} images of the test sample; 95 % interval ${(100 * accuracy.low).toFixed(1)} to ${(100 * accuracy.high).toFixed(1)} %` }))
      : make("p", { class: "empty soft", text: "The accuracy is shown when the test sample has labels and the classifier has been fitted." }),
    make("ul", { class: "advice" }, ...[known.words ?? []].flat().filter(Boolean).map((text) => make("li", { text }))),
    make("div", { class: "row" },
      make("button", { type: "button", text: "Label the test sample", hidden: isComplete(), onclick: () => { location.hash = "blind"; } }),
      make("button", { type: "button", text: "Enlarge the test sample by 20 images", onclick: () => act({ do: "more blind", count: 20 }) }),
      make("button", { type: "button", text: "Look at possible mistakes", onclick: () => { location.hash = "mistakes"; } })),
    curve.length > 1 ? make("figure", { class: "charts curve" }, make("figcaption", { text: "Accuracy against the number of labels" }), curveChart(curve, known.forecast), legend(known.forecast)) : "",
    curve.length > 1 ? make("details", {}, make("summary", { text: "The curve as a table" }), table(curve)) : "");
}

function legend(forecast) {
  return make("ul", { class: "legend" }, make("li", {}, make("i", { class: "line" }), "accuracy, with its 95 % interval"), forecast ? make("li", {}, make("i", { class: "line train" }), "forecast") : null);
}

const table = (curve) => make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Accuracy by number of labels" }, make("table", {},
  make("thead", {}, make("tr", {}, ...["labels", "accuracy", "correct", "95 % interval"].map((text) => make("th", { scope: "col", text })))),
  make("tbody", {}, ...curve.map((point) => make("tr", {}, make("th", { scope: "row", text: count(point.labels) }), ...[percent(point.correct / point.count), `${count(point.correct)}/${count(point.count)}`, `${(100 * point.low).toFixed(1)}-${(100 * point.high).toFixed(1)}`].map((text) => make("td", { text })))))));

function curveChart(curve, forecast) {
  const points = curve.map((point) => ({ x: point.labels, y: point.correct / point.count, low: point.low, high: point.high }));
  const last = points.at(-1), base = forecast ? forecast.accuracy - forecast.gain : 0, within = (share) => Math.max(0, Math.min(1, share));
  const ahead = forecast ? { x: forecast.labels, y: within(forecast.accuracy), low: within(base + forecast.low), high: within(base + forecast.high) } : null;
  const all = ahead ? [...points, ahead] : points;
  const right = Math.max(...all.map((point) => point.x)), left = Math.min(...all.map((point) => point.x));
  const bottom = Math.max(0, Math.floor(10 * Math.min(...all.map((point) => point.low)) - 0.2) / 10);
  const x = (labels) => LEFT + (WIDTH - LEFT - RIGHT) * ((labels - left) / Math.max(1, right - left));
  const y = (share) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (share - bottom) / (1 - bottom));
  const path = (list, get) => list.map((point, i) => `${i ? "L" : "M"}${x(point.x).toFixed(1)} ${y(get(point)).toFixed(1)}`).join("");
  const said = `Accuracy ${percent(last.y)} with ${count(last.x, "label")}${ahead ? `; forecast ${percent(ahead.y)} with ${count(ahead.x)}` : ""}`;
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": said });
  const step = 1 - bottom > 0.5 ? 0.2 : 0.1;
  for (let share = 1; share >= bottom - 1e-9; share -= step) {
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(share), y2: y(share) }));
    svg.append(draw("text", { x: LEFT - 7, y: y(share) + 4, "text-anchor": "end", text: `${Math.round(100 * share)} %` }));
  }
  for (const labels of ticks(left, right)) svg.append(draw("text", { x: x(labels), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle", text: count(labels) }));
  svg.append(draw("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle", text: "labels" }));
  svg.append(draw("path", { class: "spread", d: `${path(points, (point) => point.high)}L${[...points].reverse().map((point) => `${x(point.x).toFixed(1)} ${y(point.low).toFixed(1)}`).join("L")}Z` }));
  svg.append(draw("path", { class: "val", d: path(points, (point) => point.y) }));
  for (const point of points) svg.append(draw("circle", { class: "val", cx: x(point.x), cy: y(point.y), r: 3 }, draw("title", { text: `${count(point.x, "label")}: ${percent(point.y)}` })));
  if (ahead) {
    svg.append(draw("path", { class: "train", d: path([last, ahead], (point) => point.y) }));
    svg.append(draw("line", { class: "forecast", x1: x(ahead.x), x2: x(ahead.x), y1: y(ahead.low), y2: y(ahead.high) }));
    svg.append(draw("circle", { class: "train", cx: x(ahead.x), cy: y(ahead.y), r: 3.5 }));
  }
  return svg;
}

function ticks(left, right) {
  const raw = Math.max(1, (right - left) / 5), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((part) => part * power).find((part) => part >= raw);
  const found = [];
  for (let labels = Math.ceil(left / step) * step; labels <= right; labels += step) found.push(labels);
  return found;
}
