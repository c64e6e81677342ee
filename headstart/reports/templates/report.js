"use strict";
const data = JSON.parse(document.getElementById("report-data").textContent);
const make = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (name) made.className = name;
  return made;
};

function tile(number, words) {
  const made = make("span", "", "tile");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", words);
  if (number < 0) {
    made.classList.add("gone");
    made.textContent = "no image";
    return made;
  }
  const place = number % data.sheet;
  made.classList.add("s" + Math.floor(number / data.sheet));
  made.style.backgroundPosition = `${-data.side * (place % data.across)}px ${-data.side * Math.floor(place / data.across)}px`;
  return made;
}

// Clicking a cell of the confusion matrix shows its images.
for (const button of document.querySelectorAll(".matrix button")) {
  button.addEventListener("click", () => {
    const place = document.getElementById(button.getAttribute("aria-controls"));
    const open = button.getAttribute("aria-expanded") === "true";
    for (const other of button.closest("table").querySelectorAll("button")) other.setAttribute("aria-expanded", "false");
    place.replaceChildren();
    if (open) return;
    button.setAttribute("aria-expanded", "true");
    const part = data.parts[button.dataset.part];
    const [label, predicted] = [Number(button.dataset.label), Number(button.dataset.predicted)];
    const images = part.cells[`${label}-${predicted}`];
    const count = Number(button.dataset.count);
    place.append(make("h4", `${part.classes[label]}, predicted ${part.classes[predicted]}: ${count} image${count > 1 ? "s" : ""}`));
    const list = make("ul", "", "tiles");
    for (const [number, path, chance] of images) {
      const item = make("li");
      item.append(tile(number, path), make("div", `${(100 * chance).toFixed(1)} %`), make("div", path));
      list.append(item);
    }
    place.append(list);
    if (count > images.length) place.append(make("p", `${count - images.length} more in predictions.csv`, "soft"));
    place.scrollIntoView({ block: "nearest" });
  });
}

// Image map: the pointer or the arrow keys select a point and show its image.
const drawing = document.getElementById("map-drawing");
if (drawing) {
  const { points, names } = data.map;
  const ring = document.getElementById("chosen");
  const words = document.getElementById("map-words");
  let chosen = -1;

  const choose = (number) => {
    chosen = number;
    const [x, y, label, split, mark, image, path] = points[number];
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    ring.removeAttribute("visibility");
    const text = make("div");
    text.append(make("strong", names[label]), make("span", ` (${split})`), make("div", mark), make("div", path, "path"));
    words.replaceChildren(tile(image, path), text);
  };
  const nearest = (x, y, allowed) => {
    let best = -1, least = Infinity;
    points.forEach((point, i) => {
      const far = (point[0] - x) ** 2 + (point[1] - y) ** 2;
      if (far < least && allowed(point, i)) [best, least] = [i, far];
    });
    return best;
  };
  const at = (event) => {
    const box = drawing.getBoundingClientRect();
    const [, , width, height] = drawing.getAttribute("viewBox").split(" ").map(Number);
    const [left, top] = drawing.getAttribute("viewBox").split(" ").map(Number);
    choose(nearest(left + width * (event.clientX - box.left) / box.width, top + height * (event.clientY - box.top) / box.height, () => true));
  };
  drawing.addEventListener("click", at);
  drawing.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") at(event); });
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    if (chosen < 0) return choose(points.length - 1);
    const [x, y] = points[chosen];
    const ahead = ([px, py], i) => {
      const along = (px - x) * step[0] + (py - y) * step[1];
      return i !== chosen && along > 0 && along >= Math.abs((px - x) * step[1] + (py - y) * step[0]);
    };
    const next = nearest(x, y, ahead);
    if (next >= 0) choose(next);
  });
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of document.querySelectorAll(".legend button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(on));
      for (const circle of drawing.querySelectorAll("circle.mark")) {
        const shown = !on || (button.dataset.odd ? circle.classList.contains("odd") : circle.dataset.label === button.dataset.label);
        circle.classList.toggle("faint", !shown);
      }
    });
  }
}

// Expand all details for printing.
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
