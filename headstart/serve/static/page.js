// The page that classifies images. It sends small batches, so that a hundred images neither freeze the page nor fill the
// queue of the server.

import { Trouble, byId, call, copy, count, imageAddress, json, make, notice, patiently, pause, percent, say } from "./api.js";
import { Tile } from "./tiles.js";

const BATCH_IMAGES = 8, BATCH_BYTES = 16e6, AT_ONCE = 2, TRIES = 6;
const SHOWN_WIDTH = 720, SHOWN_CLASSES = 5, CHOICES = 8, NAMES = 14;

const model = { classes: [], corrections: false, nearest: false };
const items = [];        // all images, newest first
const queue = [];        // images that have not been sent
const kept = new Map();  // content hash -> correction
let underWay = 0, asked = 0, answered = 0, away = false, numbers = 0, datalist = null;

// ---- The model -----------------------------------------------------------------------------------------------------

async function loadModel() {
  try {
    const reply = await json("v1/page");
    model.classes = reply.classes;
    model.corrections = reply.corrections;
    model.nearest = reply.nearest;
    byId("model-name").textContent = reply.name;
    document.title = `${reply.name} - Headstart`;
    byId("model-facts").textContent = reply.words;
    const shown = reply.classes.slice(0, NAMES).map((name) => make("li", { text: name }));
    if (reply.classes.length > NAMES) shown.push(make("li", { text: `and ${count(reply.classes.length - NAMES)} more` }));
    byId("model-classes").replaceChildren(...shown);
    byId("to-run").hidden = !reply.run;
    byId("version").textContent = `Model ${reply.version.slice(0, 12)} · ${reply.architecture}`;
    datalist?.remove();
    datalist = make("datalist", { id: "every-class" }, ...reply.classes.map((name) => make("option", { value: name })));
    document.body.append(datalist);
    notice("");
    await showCorrections();
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    notice(error.kind === "busy" ? `The server is not ready: ${error.message}` : error.message, "Try again", loadModel);
    if (error.kind === "busy") { await pause(error.wait); await loadModel(); }
  }
}

// ---- Adding images ----------------------------------------------------------------------------------------------

function add(files) {
  const fresh = [...files].map((file) => new Item(file));
  if (!fresh.length) return;
  byId("images").hidden = false;
  document.body.classList.add("has-images");
  // Newest first; images that were added together stay in their order.
  byId("cards").prepend(...fresh.map((item) => item.card));
  items.unshift(...fresh);
  queue.push(...fresh);
  asked += fresh.length;
  draw();
  progress();
  work();
}

// Previews are drawn one after another: decoding a photo takes about 50 MB.
const toDraw = [];
let drawing = false;
async function draw() {
  toDraw.push(...items.filter((item) => !item.drawn && !toDraw.includes(item)));
  if (drawing) return;
  drawing = true;
  while (toDraw.length) await toDraw.shift().draw();
  drawing = false;
}

async function work() {
  while (queue.length && underWay < AT_ONCE && !away) {
    const batch = [];
    let bytes = 0;
    while (queue.length && batch.length < BATCH_IMAGES && (!batch.length || bytes + queue[0].file.size <= BATCH_BYTES)) {
      bytes += queue[0].file.size;
      batch.push(queue.shift());
    }
    underWay += 1;
    ask(batch).finally(() => { underWay -= 1; progress(); work(); });
  }
}

async function ask(batch) {
  for (let tried = 0; ; tried += 1) {
    const body = new FormData();
    for (const item of batch) body.append("files", item.file, item.file.name || "image");
    try {
      const reply = await json("v1/predict", { method: "POST", body });
      batch.forEach((item, place) => item.answer(reply.predictions[place]));
      answered += batch.length;
      return;
    } catch (error) {
      if (error instanceof Trouble && error.kind === "busy" && tried < TRIES) {
        byId("status").textContent = `The server is busy. Next try in ${error.wait} s`;
        await pause(error.wait * (1 + Math.random() / 2));
      } else if (error instanceof Trouble && error.kind === "away") {
        queue.unshift(...batch);
        wait();
        return;
      } else if (batch.length > 1) {
        // The batch was refused, perhaps because of one image: send each image by itself.
        for (const item of batch) await ask([item]);
        return;
      } else {
        batch[0].fail(error instanceof Trouble ? error.message : `The browser can no longer read this file (${error.message}).`);
        answered += 1;
        return;
      }
    }
  }
}

async function wait() {
  if (away) return;
  away = true;
  const again = () => notice("The server cannot be reached. Is it running? Waiting images are sent as soon as it is back.", "Try now", look);
  const look = async () => {
    try { await call("healthz"); } catch (error) { if (error.kind === "away") return false; }
    away = false;
    notice("");
    work();
    return true;
  };
  again();
  while (away) { await pause(3); if (away) await look(); }
}

function progress() {
  const bar = byId("progress"), left = asked - answered;
  bar.hidden = !left;
  bar.max = Math.max(1, asked);
  bar.value = answered;
  const words = left ? `${count(answered)} of ${count(asked)}` : count(items.length, "image");
  byId("status").textContent = words;
}

byId("clear").addEventListener("click", () => {
  for (const item of items.splice(0)) item.forget();
  kept.clear();  // their addresses are gone: the server has the images
  queue.length = toDraw.length = 0;
  asked = answered = 0;
  byId("cards").replaceChildren();
  byId("images").hidden = true;
  document.body.classList.remove("has-images");
  byId("choose").focus();
  say("Cleared.");
});

// ---- One image ---------------------------------------------------------------------------------------------------

class Item {
  constructor(file) {
    this.file = file;
    this.number = numbers += 1;
    this.name = file.name || "an image";
    this.drawn = false;
    this.addresses = [];
    const title = `answer-${this.number}`;
    this.shown = make("div", { class: "shown" }, make("span", { class: "no-preview", text: "" }));
    this.head = make("p", { class: "answer", id: title }, make("span", { class: "label", text: "Waiting …" }));
    this.body = make("div", { class: "card-body" }, this.head, make("p", { class: "file", text: this.name, title: this.name }));
    this.card = make("li", { class: "card waiting", "aria-labelledby": title }, this.shown, this.body);
  }

  address(blob) {
    const made = URL.createObjectURL(blob);
    this.addresses.push(made);
    return made;
  }

  forget() { this.addresses.forEach((made) => URL.revokeObjectURL(made)); this.addresses = []; }

  async draw() {
    this.drawn = true;
    try {
      const bitmap = await createImageBitmap(this.file);
      const share = Math.min(1, SHOWN_WIDTH / bitmap.width, SHOWN_WIDTH / bitmap.height);
      const canvas = make("canvas");
      canvas.width = Math.max(1, Math.round(bitmap.width * share));
      canvas.height = Math.max(1, Math.round(bitmap.height * share));
      const paint = canvas.getContext("2d");
      paint.fillStyle = "#fff";  // transparent areas become white, as in the preprocessing of the model
      paint.fillRect(0, 0, canvas.width, canvas.height);
      paint.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      bitmap.close();
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.86));
      this.image = make("img", { src: this.address(blob), alt: this.name });
      this.shown.replaceChildren(this.image);
    } catch {
      this.shown.querySelector(".no-preview").textContent = "The browser cannot show this format";
    }
  }

  fail(reason) {
    this.card.classList.remove("waiting");
    this.head.className = "answer fault";
    this.head.replaceChildren(make("span", { class: "label", text: "Not classified" }));
    this.head.after(make("p", { class: "aside", text: reason }), make("div", { class: "tools" }, make("button", {
      type: "button", text: "Try again", onclick: () => {
        this.body.querySelector(".aside").remove();
        this.body.querySelector(".tools").remove();
        this.card.classList.add("waiting");
        this.head.className = "answer";
        this.head.replaceChildren(make("span", { class: "label", text: "Waiting …" }));
        asked += 1;
        queue.push(this);
        progress();
        work();
      },
    })));
  }

  answer(reply) {
    this.card.classList.remove("waiting");
    if (reply.error) {
      this.head.className = "answer fault";
      this.head.replaceChildren(make("span", { class: "label", text: "Cannot be read" }));
      this.head.after(make("p", { class: "aside", text: reply.error }));
      this.shown.querySelector(".no-preview")?.replaceChildren("No preview");
      return;
    }
    this.reply = reply;
    const best = reply.probabilities[0], words = headline(reply);
    this.head.classList.toggle("doubt", words.doubt);
    this.head.replaceChildren(make("span", { class: "label", text: words.label }), ...(words.chance ? [make("span", { class: "chance", text: words.chance })] : []));
    const parts = words.aside ? [make("p", { class: "aside", text: words.aside })] : [];
    const given = new Set((reply.labels ?? []).map((result) => result.label));
    const bars = reply.probabilities.slice(0, Math.max(SHOWN_CLASSES, given.size)).map((result) => {
      const fill = make("span", { class: "fill" });
      fill.style.width = `${Math.max(0.5, 100 * result.probability)}%`;
      return make("li", { class: given.has(result.label) ? "given" : null }, make("span", { class: "name", text: result.label, title: result.label }), make("span", { class: "track", "aria-hidden": "true" }, fill), make("span", { class: "value", text: percent(result.probability) }));
    });
    parts.push(make("ul", { class: "bars", "aria-label": "Probabilities" }, ...bars));
    this.tools = make("div", { class: "tools" });
    this.looked = this.tool("Heat map", () => this.heat(best.label), "pressed");
    if (model.nearest) this.alike = this.tool("Similar", () => this.near());
    if (model.corrections) this.fix = this.tool("Correct", () => this.correct());
    this.head.after(...parts, this.tools);
    this.describe();
  }

  tool(text, act, state = "expanded") {
    const button = make("button", { type: "button", text, [`aria-${state}`]: "false", "aria-describedby": `answer-${this.number}`, onclick: act });
    this.tools.append(button);
    return button;
  }

  describe() { if (this.image) this.image.alt = `${this.name}: ${this.head.textContent}`; }

  open(button, part) {
    this.panels ??= new Map();
    const there = this.panels.get(button);
    if (there) {
      there.remove();
      this.panels.delete(button);
      button.setAttribute("aria-expanded", "false");
      return null;
    }
    for (const other of [...this.panels.keys()]) this.open(other);
    this.panels.set(button, part);
    button.setAttribute("aria-expanded", "true");
    this.tools.after(part);
    return part;
  }

  // Shows the Grad-CAM heat map over the network input, in place of the image.
  async heat(label) {
    const on = this.looked.getAttribute("aria-pressed") === "true";
    if (on) {
      this.shown.replaceChildren(...(this.image ? [this.image] : [make("span", { class: "no-preview", text: "The browser cannot show this format" })]));
      this.looked.setAttribute("aria-pressed", "false");
      return;
    }
    this.looked.disabled = true;
    const progress = this.warm ? null : this.working("Computing the heat map");
    try {
      if (!this.warm) {
        const body = new FormData();
        body.append("file", this.file, this.name);
        body.append("label", label);
        const asked = () => call("v1/explain", { method: "POST", body });
        const blob = await (await patiently(asked, (wait) => progress.say(`The server is busy. Next try in ${count(wait)} s`))).blob();
        this.warm = make("img", { src: this.address(blob), alt: `Heat map of ${this.name} for the class ${label}: warm areas support it` });
      }
      this.shown.replaceChildren(this.warm, make("span", { class: "caption", text: `Warm areas support “${label}” (Grad-CAM)` }));
      this.looked.setAttribute("aria-pressed", "true");
      say(`Heat map for ${label} shown.`);
    } catch (error) { this.trouble(this.looked, error); }
    finally { progress?.end(); this.looked.disabled = false; this.looked.focus({ preventScroll: true }); }
  }

  // An indeterminate progress bar over the image, with the elapsed time.
  working(words) {
    const line = make("span", { text: `${words} …` });
    const box = make("div", { class: "working", role: "status" }, line, make("progress", { "aria-label": words }));
    const began = Date.now();
    const timer = setInterval(() => { line.textContent = `${words} … ${count(Math.round((Date.now() - began) / 1000))} s`; }, 1000);
    this.shown.append(box);
    return { say: (text) => { line.textContent = text; }, end: () => { clearInterval(timer); box.remove(); } };
  }

  async near() {
    const list = make("ul", { class: "near" });
    const words = make("h3", { text: "Searching the training images …" });
    const panel = this.open(this.alike, make("div", { class: "more" }, words, list));
    if (!panel) return;
    try {
      if (!this.neighbours) {
        const body = new FormData();
        body.append("file", this.file, this.name);
        this.neighbours = await patiently(() => json("v1/nearest", { method: "POST", body }));
      }
      const reply = this.neighbours;
      words.textContent = `Most similar of ${count(reply.among)} training images`;
      if (reply.among < reply.of) words.textContent += ` (a sample of ${count(reply.of)})`;
      list.replaceChildren(...reply.nearest.map((neighbour) => make("li", { title: neighbour.path },
        neighbour.image ? make("img", { src: neighbour.image, alt: `Training image of ${neighbour.label}` }) : make("span", { class: "gone", text: "File not found" }),
        make("strong", { text: neighbour.label }), make("span", { text: `similarity ${percent(neighbour.similarity)}` }))));
    } catch (error) { this.open(this.alike); this.trouble(this.alike, error); }
  }

  correct() {
    const chosen = this.correction?.label;
    const first = this.reply.probabilities.slice(0, CHOICES).map((result) => result.label);
    const names = model.classes.length <= CHOICES ? model.classes : first;
    const wrong = make("p", { class: "wrong", role: "alert", hidden: true });
    const id = `name-${this.number}`;
    const field = make("input", { id, type: "text", list: model.classes.length > names.length ? "every-class" : null, autocomplete: "off", maxlength: "100" });
    const keep = async (label) => {
      wrong.hidden = true;
      try { await this.keep(label); this.open(this.fix); this.fix.focus({ preventScroll: true }); }
      catch (error) { wrong.textContent = error.message; wrong.hidden = false; }
    };
    const choices = names.map((label) => make("button", { type: "button", text: label, "aria-pressed": String(label === chosen), onclick: () => keep(label) }));
    const form = make("form", { class: "row" }, field, make("button", { text: "Save" }));
    form.addEventListener("submit", (event) => { event.preventDefault(); keep(field.value); });
    const panel = this.open(this.fix, make("div", { class: "more", role: "group", "aria-label": `Correct label of ${this.name}` },
      make("h3", { text: "Correct label" }), make("div", { class: "choices" }, ...choices),
      make("label", { for: id, text: model.classes.length > names.length ? "Another class, or a new one" : "Or a new class" }), form, wrong));
    panel?.addEventListener("keydown", (event) => { if (event.key === "Escape") { this.open(this.fix); this.fix.focus(); } });
    if (panel) (choices[0] ?? field).focus({ preventScroll: true });
  }

  async keep(label) {
    const body = new FormData();
    body.append("file", this.file, this.name);
    body.append("label", label);
    const reply = await json("v1/corrections", { method: "POST", body });
    this.mark(reply);
    kept.delete(reply.key);
    kept.set(reply.key, { ...reply, address: this.image?.src });
    await showCorrections();
    say(`Saved as ${reply.label}.`);
  }

  mark(correction) {
    this.correction = correction;
    this.line?.remove();
    this.line = null;
    this.fix.textContent = correction ? "Change" : "Correct";
    if (!correction) return;
    this.line = make("p", { class: "corrected" }, make("span", {}, "✓ Saved as ", make("strong", { text: correction.label })),
      make("button", { type: "button", class: "quiet", text: "Undo", "aria-label": `Undo: ${this.name} saved as ${correction.label}`, onclick: () => undo(correction.key, this.fix) }));
    this.tools.before(this.line);
  }

  trouble(button, error) {
    const line = make("p", { class: "aside wrong", role: "alert", text: error.message });
    this.tools.after(line);
    setTimeout(() => line.remove(), 8000);
    button.disabled = false;
  }
}

function headline(reply) {
  const [best] = reply.probabilities, nearest = best ? `Most probable class: ${best.label}, ${percent(best.probability)}` : "";
  if (reply.none_of_these) return { label: "None of these", doubt: true, aside: `Unlike the training images. ${nearest}` };
  if (reply.labels) {
    const names = reply.labels.map((result) => result.label).join(", ");
    return names ? { label: names, doubt: false } : { label: "None of the labels", doubt: true, aside: nearest };
  }
  if (reply.unsure) return { label: "Unsure", doubt: true, aside: `The probability is too low: ask a person. ${nearest}` };
  return { label: reply.label, chance: percent(reply.probability), doubt: false };
}

// ---- Corrections ---------------------------------------------------------------------------------------------------

async function showCorrections() {
  const reply = await json("v1/corrections");
  const section = byId("corrections");
  section.hidden = !reply.count;
  const classes = Object.keys(reply.labels).length;
  byId("corrections-words").replaceChildren(`${count(reply.count, "image")} in ${count(classes, "class", "classes")}, on the server in `, make("code", { text: reply.folder }));
  byId("train-on").hidden = !reply.train;
  byId("train-command").textContent = reply.train ?? "";
  byId("train-words").textContent = reply.train_words ?? "";
  const list = byId("kept"), there = new Map([...list.children].map((line) => [`${line.dataset.key} ${line.dataset.label}`, line]));
  list.replaceChildren(...reply.items.map((item) => there.get(`${item.key} ${item.label}`) ?? keptTile(item)));
  if (reply.count > reply.items.length) list.append(make("li", { class: "soft", text: `and ${count(reply.count - reply.items.length)} more` }));
}

function keptTile(item) {
  const tile = new Tile(null);
  tile.describe({ label: [item.label] });
  tile.element.title = tile.image.alt = `Saved as ${item.label}`;
  tile.show(item.key, () => kept.get(item.key)?.address ?? imageAddress(`v1/corrections/${item.key}`));
  const remove = make("button", { type: "button", class: "quiet", text: "Undo", "aria-label": `Undo: saved as ${item.label}`, onclick: () => undo(item.key, byId("choose")) });
  return make("li", { "data-key": item.key, "data-label": item.label }, tile.element, remove);
}

async function undo(key, focus) {
  try {
    await call(`v1/corrections/${key}`, { method: "DELETE" });
    for (const item of items) if (item.correction?.key === key) item.mark(null);
    kept.delete(key);
    await showCorrections();
    say("Correction removed.");
    focus?.focus({ preventScroll: true });
  } catch (error) { notice(error.message, "Dismiss", () => notice("")); }
}

byId("copy-command").addEventListener("click", (event) => copy(byId("train-command").textContent, event.target));

// ---- Input: choose, drop, paste, camera ----------------------------------------------------------------------

byId("choose").addEventListener("click", () => byId("files").click());
for (const id of ["files", "shot"]) byId(id).addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });

let inside = 0;
const carries = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => { if (carries(event)) { inside += 1; document.body.classList.add("over"); } });
addEventListener("dragleave", (event) => { if (carries(event) && (inside -= 1) <= 0) { inside = 0; document.body.classList.remove("over"); } });
addEventListener("dragover", (event) => { if (carries(event)) { event.preventDefault(); event.dataTransfer.dropEffect = "copy"; } });
addEventListener("drop", async (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = [...event.dataTransfer.files];
  if (entries.some((entry) => entry.isDirectory)) add((await Promise.all(entries.map(within))).flat());
  else add(files);
});
addEventListener("paste", (event) => { if (event.clipboardData?.files.length) { event.preventDefault(); add(event.clipboardData.files); } });

// All files in a dropped folder and its subfolders, except hidden ones.
async function within(entry) {
  if (entry.name.startsWith(".")) return [];
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader(), inner = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    inner.push(...some);
  }
  return (await Promise.all(inner.map(within))).flat();
}

const camera = byId("camera"), view = byId("view");
let stream = null, cameras = [], current = 0;

byId("photograph").addEventListener("click", async () => {
  // Browsers allow camera access on https and localhost only; elsewhere the file dialog of a phone opens its camera app.
  if (!navigator.mediaDevices?.getUserMedia) { byId("shot").click(); return; }
  camera.showModal();
  await look({ facingMode: { ideal: "environment" } });
});

async function look(constraints) {
  stop();
  byId("snap").disabled = true;
  byId("camera-words").textContent = "Waiting for the camera …";
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { ...constraints, width: { ideal: 1920 } }, audio: false });
    if (!camera.open) { stop(); return; }
    view.srcObject = stream;
    await view.play();
    cameras = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "videoinput");
    byId("turn").hidden = cameras.length < 2;
    byId("camera-words").textContent = "The model receives what the camera shows.";
    byId("snap").disabled = false;
    byId("snap").focus();
  } catch (error) {
    byId("camera-words").textContent = error.name === "NotAllowedError"
      ? "Camera access was denied. Allow it in the address bar, or choose an image."
      : "No camera was found. Choose an image.";
  }
}

function stop() { stream?.getTracks().forEach((track) => track.stop()); stream = null; view.srcObject = null; }

byId("snap").addEventListener("click", async () => {
  const canvas = make("canvas");
  [canvas.width, canvas.height] = [view.videoWidth, view.videoHeight];
  canvas.getContext("2d").drawImage(view, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  camera.close();
  add([new File([blob], `photo ${new Date().toLocaleTimeString("en-GB").replaceAll(":", ".")}.jpg`, { type: "image/jpeg" })]);
});
byId("turn").addEventListener("click", () => { current = (current + 1) % cameras.length; look({ deviceId: { exact: cameras[current].deviceId } }); });
byId("close-camera").addEventListener("click", () => camera.close());
camera.addEventListener("close", () => { stop(); byId("photograph").focus(); });

loadModel();
