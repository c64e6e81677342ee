// Line chart of a metric over the epochs of all stages, on train and val.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 520, HEIGHT = 240, LEFT = 44, RIGHT = 8, TOP = 22, BOTTOM = 26;

export function draw(tag, given = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "text") element.textContent = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// stages: [{name, train: [[epoch, value]], val: [[epoch, value]]}]
export function chart(stages, { words, share = false }) {
  const values = stages.flatMap((stage) => [...stage.train, ...stage.val].map(([, value]) => value)).filter(Number.isFinite);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (!share) low = Math.min(low, 0);
  const step = nice((high - low) / 3 || 0.1);
  low = Math.floor(low / step) * step;
  high = Math.ceil(high / step) * step;
  if (share) high = Math.min(high, 1);
  if (low === high) high = low + step;
  const lengths = stages.map((stage) => 1 + Math.max(0, ...[...stage.train, ...stage.val].map(([epoch]) => epoch)));
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const across = (WIDTH - LEFT - RIGHT) / Math.max(1, total);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low));
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words });
  for (let value = low; value <= high + step / 1e3; value += step) {
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: LEFT - 7, y: y(value) + 4, "text-anchor": "end", text: share ? `${Math.round(1000 * value) / 10} %` : trim(value, step) }));
  }
  let start = 0;
  stages.forEach((stage, place) => {
    const left = LEFT + across * start, x = (epoch) => left + across * (epoch + 0.5);
    if (place) svg.append(draw("line", { class: "part", x1: left, x2: left, y1: TOP - 8, y2: HEIGHT - BOTTOM }));
    const maxLetters = Math.floor((across * lengths[place]) / 6);
    svg.append(draw("text", { x: left + 3, y: TOP - 9, text: stage.name.length > maxLetters ? `${stage.name.slice(0, Math.max(1, maxLetters - 1))}…` : stage.name }));
    const every = Math.max(1, Math.ceil(26 / across));
    for (let epoch = 0; epoch < lengths[place]; epoch += every) svg.append(draw("text", { x: x(epoch), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle", text: epoch + 1 }));
    for (const kind of ["train", "val"]) {
      const points = stage[kind].filter(([, value]) => Number.isFinite(value));
      if (!points.length) continue;
      svg.append(draw("path", { class: kind, d: points.map(([epoch, value], i) => `${i ? "L" : "M"}${x(epoch).toFixed(1)} ${y(value).toFixed(1)}`).join("") }));
      for (const [epoch, value] of points) svg.append(draw("circle", { class: kind, cx: x(epoch), cy: y(value), r: 2.6 }, draw("title", { text: `${stage.name}, epoch ${epoch + 1}, ${kind}: ${share ? `${(100 * value).toFixed(1)} %` : value.toFixed(3)}` })));
    }
    start += lengths[place];
  });
  return svg;
}

// A point with its confidence interval on a scale from `from` to 1.
export function interval({ low, high, value, from }) {
  const x = (share) => 4 + 152 * ((share - from) / (1 - from || 1));
  const svg = draw("svg", { viewBox: "0 0 160 20", "aria-hidden": "true" });
  svg.append(draw("line", { class: "span", x1: x(low), x2: x(high), y1: 10, y2: 10 }), draw("circle", { class: "dot", cx: x(value), cy: 10, r: 4.5 }));
  return svg;
}

function nice(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return power * ([1, 2, 2.5, 5].find((part) => part * power >= step) ?? 10);
}

const trim = (value, step) => value.toFixed(Math.max(0, Math.min(4, Math.ceil(-Math.log10(step) + 0.2))));
