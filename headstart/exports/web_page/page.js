/** The page of an exported classifier: images in, cards with answers out. */

import { load } from "./headstart-web.js";

const LIVE_PAUSE = 120; // milliseconds between two images of the camera
const STEADY = 3; // equal answers in a row before a live answer is read out

const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const waiting = []; // images that are classified in turn
let model;
let isBusy = false;

start();

async function start() {
  try {
    $("loading-words").textContent = "Loading the model.";
    model = await load("./", { onProgress: showProgress });
  } catch (error) {
    $("loading").hidden = true;
    notify(error.message);
    return;
  }
  $("loading").hidden = true;
  $("drop").hidden = false;
  describe();
  listen();
  say("The model is ready.");
  keepOffline();
}

function showProgress(loaded, total) {
  $("progress").value = loaded / total;
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  $("loading-words").textContent = loaded < total
    ? `Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB.`
    : "Starting the model.";
}

function describe() {
  const { metadata, classes } = model;
  document.title = `Image classifier: ${classes.slice(0, 3).join(", ")}${classes.length > 3 ? ", …" : ""}`;
  $("classes").replaceChildren(...classes.map((name) => element("li", "", name)));
  $("classes").tabIndex = $("classes").scrollHeight > $("classes").clientHeight ? 0 : -1;
  showAbout();
  if (metadata.thresholds) $("facts").textContent += " An image can have several labels.";
  if (navigator.mediaDevices?.getUserMedia) return;
  $("live").disabled = true;
  $("live").title = "Browsers allow the camera on https and on localhost only.";
  $("facts").textContent += ` ${$("live").title}`;
}

function showAbout(offline = false) {
  const { metadata, backend, threads } = model;
  const where = backend === "webgpu" ? "WebGPU" : threads > 1 ? `WebAssembly, ${threads} threads` : "WebAssembly";
  const parts = [metadata.backbone, metadata.precision, where, `exported by Headstart ${metadata.headstart}`];
  if (offline) parts.push("works offline");
  $("about").textContent = `${parts.join(" · ")}.`;
  $("about").dataset.offline = offline;
}

function keepOffline() {
  if (!navigator.serviceWorker) return;
  navigator.serviceWorker.register("service-worker.js").catch(() => {});
  navigator.serviceWorker.ready.then(() => showAbout(true));
}

// ---- images -------------------------------------------------------------------------------------------------------

function listen() {
  $("choose").onclick = () => $("files").click();
  $("photograph").onclick = () => $("shot").click();
  for (const input of [$("files"), $("shot")]) {
    input.onchange = () => {
      add([...input.files]);
      input.value = "";
    };
  }
  $("clear").onclick = clear;
  document.addEventListener("paste", (event) => add([...event.clipboardData.files]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => document.body.classList.remove("dragging"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const files = [...event.dataTransfer.files];
    if (files.length) add(files);
    else notify("That is not an image file. Save the image first, then drop the file.");
  });
  listenCamera();
}

function add(files) {
  if (!files.length) return;
  notify("");
  $("results").hidden = false;
  const added = files.map((file) => ({ file, card: newCard(file) }));
  $("cards").prepend(...added.map(({ card }) => card));
  waiting.push(...added);
  work();
}

async function work() {
  if (isBusy) return;
  isBusy = true;
  let done = 0;
  let words = "";
  while (waiting.length) {
    const { file, card } = waiting.shift();
    $("count").textContent = waiting.length ? `${waiting.length + 1} to classify` : "";
    await paint();
    try {
      const prediction = await model.predict(file);
      words = show(card, prediction);
    } catch (error) {
      words = fail(card, error.message);
    }
    done += 1;
  }
  isBusy = false;
  showCount();
  showAbout($("about").dataset.offline === "true");
  say(done > 1 ? `${done} images classified.` : words);
}

const paint = () => new Promise((resolve) => { setTimeout(resolve, 0); });

function newCard(file) {
  const card = element("li", "card waiting");
  const shown = element("div", "shown");
  const image = new Image();
  image.alt = "";
  image.onerror = () => shown.replaceChildren(element("span", "soft", "No preview"));
  image.src = URL.createObjectURL(file);
  shown.append(image);
  const body = element("div", "body");
  body.append(answerLine("Waiting", ""), element("p", "file", file.name || "Pasted image"));
  card.append(shown, body);
  return card;
}

function answerLine(words, chance) {
  const line = element("p", "answer");
  line.append(element("strong", "", words), element("span", "", chance));
  return line;
}

function show(card, prediction) {
  const { words, aside } = wordsOf(prediction);
  card.className = prediction.none || prediction.unsure ? "card doubt" : "card";
  card.dataset.answer = prediction.answer;
  const given = new Set((prediction.labels ?? prediction.top.slice(0, 1)).map(([name]) => name));
  const bars = element("ul", "bars");
  for (const [name, probability] of prediction.top) {
    const bar = element("li", given.has(name) && !prediction.none && !prediction.unsure ? "given" : "");
    const track = element("span", "track");
    const fill = element("span", "fill");
    fill.style.width = `${100 * probability}%`; // without the space of percent(), which CSS does not accept
    track.append(fill);
    track.ariaHidden = "true";
    const label = element("span", "name", name);
    label.title = name;
    bar.append(label, track, element("span", "value", percent(probability)));
    bars.append(bar);
  }
  const body = card.querySelector(".body");
  const file = body.querySelector(".file");
  const isPlain = !prediction.labels && !prediction.none && !prediction.unsure;
  const lines = [answerLine(words, isPlain ? percent(prediction.probability) : "")];
  if (aside) lines.push(element("p", "soft", aside));
  body.replaceChildren(...lines, bars, file);
  return `${file.textContent}: ${words}${isPlain ? `, ${percent(prediction.probability)}` : ""}. ${aside}`;
}

/** What is shown as the answer, and a sentence about it. */
function wordsOf(prediction) {
  const best = `${prediction.label}, ${percent(prediction.probability)}`;
  if (prediction.none) return { words: prediction.answer, aside: `Unlike the training images. Nearest class: ${best}.` };
  if (prediction.labels) return { words: prediction.labels.map(([name]) => name).join(", ") || "no label", aside: "" };
  if (prediction.unsure) return { words: prediction.answer, aside: `Most probable: ${best}.` };
  return { words: prediction.answer, aside: "" };
}

function fail(card, message) {
  card.className = "card fault";
  const body = card.querySelector(".body");
  body.replaceChildren(answerLine(message, ""), body.querySelector(".file"));
  return `${body.querySelector(".file").textContent}: ${message}`;
}

function clear() {
  waiting.length = 0;
  for (const image of $("cards").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  $("cards").replaceChildren();
  $("results").hidden = true;
  $("choose").focus();
  say("Results cleared.");
}

function showCount() {
  const count = $("cards").children.length;
  $("count").textContent = count ? `${count} ${count === 1 ? "image" : "images"}` : "";
}

// ---- live camera --------------------------------------------------------------------------------------------------

let stream = null;
let facing = "environment";

function listenCamera() {
  $("live").onclick = () => (stream ? stopCamera() : startCamera());
  $("stop").onclick = stopCamera;
  $("turn").onclick = () => {
    facing = facing === "environment" ? "user" : "environment";
    startCamera();
  };
  $("keep").onclick = () => {
    const canvas = element("canvas");
    [canvas.width, canvas.height] = [$("video").videoWidth, $("video").videoHeight];
    canvas.getContext("2d").drawImage($("video"), 0, 0);
    const name = `camera-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.png`;
    canvas.toBlob((blob) => add([new File([blob], name, { type: "image/png" })]));
  };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && stream) stopCamera(); });
}

async function startCamera() {
  stopTracks();
  notify("");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: facing, width: { ideal: 1280 } } });
  } catch (error) {
    const reasons = { NotAllowedError: "Access to it is blocked; allow it in the browser's settings for this page.", NotFoundError: "There is none." };
    stopCamera();
    notify(`The camera cannot be used. ${reasons[error.name] ?? error.message}`);
    return;
  }
  $("camera").hidden = false;
  $("camera").scrollIntoView({ block: "nearest" }); // its answer and buttons are below the video
  $("live").ariaExpanded = "true";
  $("video").srcObject = stream;
  const cameras = await navigator.mediaDevices.enumerateDevices().catch(() => []);
  $("turn").hidden = cameras.filter((device) => device.kind === "videoinput").length < 2;
  watch(stream);
}

async function watch(current) {
  let last = "";
  let equal = 0;
  while (stream === current) {
    await new Promise((resolve) => { setTimeout(resolve, LIVE_PAUSE); });
    if (stream !== current || document.hidden || !$("video").videoWidth) continue;
    const prediction = await model.predict($("video")).catch((error) => ({ error }));
    if (stream !== current) return;
    if (prediction.error) {
      $("seen").textContent = prediction.error.message;
      continue;
    }
    $("keep").disabled = false;
    const { words } = wordsOf(prediction);
    $("seen").textContent = prediction.none || prediction.unsure || prediction.labels ? words : `${words} ${percent(prediction.probability)}`;
    equal = words === last ? equal + 1 : 1;
    last = words;
    if (equal === STEADY) say(words);
  }
}

function stopTracks() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
}

function stopCamera() {
  stopTracks();
  $("video").srcObject = null;
  $("camera").hidden = true;
  $("keep").disabled = true;
  $("seen").textContent = "Waiting for the camera";
  $("live").ariaExpanded = "false";
  $("live").focus();
}

// ---- words --------------------------------------------------------------------------------------------------------

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function notify(message) {
  $("notice").textContent = message;
  $("notice").hidden = !message;
}

function say(words) {
  $("said").textContent = words;
}
