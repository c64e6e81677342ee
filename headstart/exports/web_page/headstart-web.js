/**
 * An image classifier exported by Headstart, run in the browser by ONNX Runtime Web.
 *
 *     import { load } from "./headstart-web.js";
 *     const model = await load("./");
 *     const prediction = await model.predict(blobOrImageBitmap);
 *
 * Types and documentation of what is exported: headstart-web.d.ts.
 */

const VERSION = 1;
const DOCUMENT = "headstart-web.json";
const STRIP_PIXELS = 2 ** 22; // pixels that are read from a canvas at once; some browsers limit a canvas to 16 million
const TRIALS = 3; // images that the GPU must answer like the CPU before it is used
const SAME = 2e-3; // largest difference of a probability between the two

const runtimes = new Map(); // URL of the script -> promise of ONNX Runtime, which has one state per page

export async function load(folder = new URL("./", import.meta.url), options = {}) {
  const base = new URL(folder, globalThis.document?.baseURI ?? location.href);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  const about = await readDocument(base);
  const progress = counter(about, options.onProgress);
  const [runtime, bytes] = await Promise.all([
    openRuntime(base, about, "wasm", progress),
    download(base, about, about.model_file, progress),
  ]);
  const model = new Model(about, runtime.env.wasm.numThreads, await openCpu(runtime, bytes));
  if (options.backend === "wasm") return model;
  const insists = options.backend === "webgpu";
  const opening = openGpu(base, about, runtime, bytes, insists).then((gpu) => model.tryGpu(gpu, insists));
  if (insists) await opening;
  else opening.catch(() => {}); // the CPU stays in use
  return model;
}

class Model {
  #engine;
  #gpu = null; // an engine that is compared with the CPU
  #insists = false;
  #trials = 0;
  #queue = Promise.resolve();

  constructor(about, threads, engine) {
    this.metadata = about.metadata;
    this.backend = "wasm";
    this.threads = threads;
    this.#engine = engine;
  }

  get classes() {
    return this.metadata.classes;
  }

  async predict(image) {
    const pixels = await readPixels(image, this.metadata);
    return toPrediction(await this.#inTurn(() => this.#run(pixels)), this.metadata);
  }

  async close() {
    await this.#inTurn(async () => {
      await Promise.all([this.#engine?.release(), this.#gpu?.release()]);
      this.#engine = this.#gpu = null;
    });
  }

  tryGpu(engine, insists) {
    if (!this.#engine) return engine.release(); // closed meanwhile
    this.#insists = insists;
    this.#gpu = engine;
  }

  #inTurn(work) { // an engine runs one image at a time
    const result = this.#queue.then(work);
    this.#queue = result.catch(() => {});
    return result;
  }

  async #run(pixels) {
    if (!this.#engine) throw new Error("The model is closed.");
    const started = performance.now();
    const outputs = await this.#engine.run(pixels);
    if (this.#gpu) await this.#compare(pixels, outputs, performance.now() - started);
    return outputs;
  }

  /** Moves to the GPU after it has given the same answers as the CPU, and faster, for the first images. */
  async #compare(pixels, expected, cpuTime) {
    const gpu = this.#gpu;
    try {
      const started = performance.now();
      const found = await gpu.run(pixels);
      if (differs(expected, found, this.metadata)) throw new Error("The GPU gives other answers.");
      this.#trials += 1;
      if (this.#trials < TRIALS) return;
      if (performance.now() - started >= cpuTime && !this.#insists) throw new Error("The GPU is slower.");
    } catch {
      this.#gpu = null;
      await gpu.release().catch(() => {});
      return;
    }
    const cpu = this.#engine;
    [this.#engine, this.#gpu, this.backend] = [gpu, null, "webgpu"];
    await cpu.release();
  }
}

function differs(expected, found, { thresholds }) {
  const pairs = [...expected.probabilities].map((p, i) => [p, found.probabilities[i], thresholds?.[i]]);
  if (pairs.some(([p, q]) => !(Math.abs(p - q) <= SAME))) return true;
  if (Math.abs((expected.outlier ?? 0) - (found.outlier ?? 0)) > 0.02) return true;
  if (thresholds) return pairs.some(([p, q, limit]) => (p >= limit) !== (q >= limit) && Math.abs(p - limit) > SAME);
  const [first, second] = ranked(expected.probabilities);
  const lead = second === undefined ? 1 : expected.probabilities[first] - expected.probabilities[second];
  return lead > SAME && ranked(found.probabilities)[0] !== first;
}

const ranked = (values) => [...values.keys()].sort((a, b) => values[b] - values[a]);

async function openCpu(runtime, bytes) {
  const session = await runtime.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return {
    run: async (pixels) => read(await session.run({ pixels: toTensor(runtime, pixels) })),
    release: () => session.release(),
  };
}

/** The resize on the CPU, as GPUs do not compute in float64; the network on the GPU. */
async function openGpu(base, about, cpu, bytes, acceptsSoftware) {
  if (!about.gpu_graphs) throw new Error("This export has no graphs for WebGPU.");
  if (!navigator.gpu || !("Suspending" in WebAssembly)) throw new Error("This browser has no WebGPU, or no JSPI.");
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter || (adapter.info?.isFallbackAdapter && !acceptsSoftware)) throw new Error("This device has no GPU.");
  const [gpu, first, second] = await Promise.all([
    openRuntime(base, about, "webgpu"),
    download(base, about, about.gpu_graphs.resize),
    download(base, about, about.gpu_graphs.network),
  ]);
  const resize = await cpu.InferenceSession.create(first, { executionProviders: ["wasm"] });
  const network = await gpu.InferenceSession.create(second, {
    executionProviders: ["webgpu"],
    externalData: [{ path: about.model_file, data: bytes }],
  });
  const run = async (pixels) => {
    const between = Object.entries(await resize.run({ pixels: toTensor(cpu, pixels) }));
    return read(await network.run(Object.fromEntries(
      between.map(([name, { type, data, dims }]) => [name, new gpu.Tensor(type, data, dims)]),
    )));
  };
  return { run, release: async () => { await Promise.all([resize.release(), network.release()]); } };
}

const toTensor = (runtime, { data, width, height }) => new runtime.Tensor("uint8", data, [1, height, width, 3]);

const read = ({ probabilities, outlier }) => ({
  probabilities: Float32Array.from(probabilities.data),
  outlier: outlier?.data[0],
});

function toPrediction({ probabilities, outlier }, metadata) {
  const { classes, thresholds } = metadata;
  const order = ranked(probabilities);
  const named = (place) => [classes[place], probabilities[place]];
  const label = classes[order[0]];
  const probability = probabilities[order[0]];
  const labels = thresholds && order.filter((place) => probabilities[place] >= thresholds[place]).map(named);
  const unsure = !thresholds && probability < metadata.unsure_below;
  const none = outlier !== undefined && metadata.none_above !== null && outlier > metadata.none_above;
  const answer = none ? metadata.none : labels ? "" : unsure ? metadata.unsure : label;
  return { answer, label, probability, top: order.slice(0, 5).map(named), labels, outlier, none, unsure, probabilities };
}

// ---- pixels -------------------------------------------------------------------------------------------------------

/** Upright RGB, as Headstart decodes it: no colour profile applied, transparency over white. */
async function readPixels(image, metadata) {
  if (!(image instanceof Blob)) return readRgb(image, ...sizeOf(image), 1);
  if (!image.size) throw new Error("The file is empty.");
  const head = new Uint8Array(await image.slice(0, 26).arrayBuffer());
  if (metadata.preprocessing.value_range && isDeepPng(head)) {
    throw new Error("This model scales images of more than 8 bits, which a browser cannot do. Use headstart predict.");
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(image, {
      imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none",
    });
  } catch {
    throw new Error("Not an image that this browser can decode.");
  }
  try {
    const isJpeg = head[0] === 0xff && head[1] === 0xd8;
    const reduction = isJpeg ? reductionOf(bitmap.width, bitmap.height, metadata.decode_at_least) : 1;
    return readRgb(bitmap, bitmap.width, bitmap.height, reduction);
  } finally {
    bitmap.close();
  }
}

const isDeepPng = (head) => head[0] === 0x89 && head[1] === 0x50 && head[24] === 16;

function sizeOf(image) {
  const width = image.videoWidth ?? image.naturalWidth ?? image.displayWidth ?? image.width;
  const height = image.videoHeight ?? image.naturalHeight ?? image.displayHeight ?? image.height;
  if (!(width > 0 && height > 0)) throw new Error("Expected an image file, a bitmap, or an image element with pixels.");
  return [width, height];
}

/** How far Headstart reduces a JPEG while it is decoded. */
function reductionOf(width, height, side) {
  const scale = Math.min(Math.floor(width / side), Math.floor(height / side));
  return [8, 4, 2].find((factor) => scale >= factor) ?? 1;
}

/** Reads pixels strip by strip, and averages squares of `factor` pixels, as a JPEG decoder does that reduces. */
function readRgb(source, width, height, factor) {
  const size = { width: Math.ceil(width / factor), height: Math.ceil(height / factor) };
  const data = new Uint8Array(3 * size.width * size.height);
  let isVisible = false;
  for (const strip of strips(source, width, height)) {
    isVisible ||= overWhite(strip.data);
    if (factor === 1) copyRgb(strip, data);
    else averageRgb(strip, data, factor, size.width);
  }
  if (isVisible) return { data, ...size };
  return { data: readBehindAlpha(source, width, height), width, height }; // zero everywhere: the file has no real alpha
}

function* strips(source, width, height) {
  if (source instanceof ImageData) {
    yield { data: Uint8ClampedArray.from(source.data), top: 0, width, height };
    return;
  }
  const rows = Math.min(height, 8 * Math.max(1, Math.floor(STRIP_PIXELS / width / 8)));
  const context = new OffscreenCanvas(width, rows).getContext("2d", { colorSpace: "srgb", willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.clearRect(0, 0, width, rows);
    context.drawImage(source, 0, top, width, count, 0, 0, width, count);
    yield { data: context.getImageData(0, 0, width, count).data, top, width, height: count };
  }
}

/** Composites RGBA over white in place; returns whether anything is visible. */
function overWhite(data) {
  let isVisible = false;
  for (let i = 3; i < data.length; i += 4) {
    const alpha = data[i];
    if (alpha) isVisible = true;
    if (alpha === 255) continue;
    for (let c = i - 3; c < i; c++) data[c] = Math.round((data[c] * alpha + 255 * (255 - alpha)) / 255);
  }
  return isVisible;
}

function copyRgb({ data, top, width }, rgb) {
  for (let from = 0, to = 3 * top * width; from < data.length; from += 4, to += 3) {
    rgb[to] = data[from];
    rgb[to + 1] = data[from + 1];
    rgb[to + 2] = data[from + 2];
  }
}

function averageRgb({ data, top, width, height }, rgb, factor, outWidth) {
  for (let y = 0; y < height; y += factor) {
    const rows = Math.min(factor, height - y);
    let to = (3 * outWidth * (top + y)) / factor;
    for (let x = 0; x < width; x += factor) {
      const columns = Math.min(factor, width - x);
      let red = 0, green = 0, blue = 0;
      for (let row = 0; row < rows; row++) {
        let from = 4 * ((y + row) * width + x);
        for (const end = from + 4 * columns; from < end; from += 4) {
          red += data[from];
          green += data[from + 1];
          blue += data[from + 2];
        }
      }
      const count = rows * columns;
      rgb[to++] = Math.round(red / count);
      rgb[to++] = Math.round(green / count);
      rgb[to++] = Math.round(blue / count);
    }
  }
}

/** Colours of pixels that are fully transparent, which a 2D canvas forgets. */
function readBehindAlpha(bitmap, width, height) {
  if (bitmap instanceof ImageData) return withoutAlpha(bitmap.data);
  const gl = new OffscreenCanvas(1, 1).getContext("webgl");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Error("Every pixel of this image is transparent, and this browser cannot read the colours behind.");
  }
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const data = new Uint8Array(4 * width * height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return withoutAlpha(data);
}

function withoutAlpha(data) {
  const rgb = new Uint8Array((data.length / 4) * 3);
  copyRgb({ data, top: 0, width: 0 }, rgb);
  return rgb;
}

// ---- files --------------------------------------------------------------------------------------------------------

async function readDocument(base) {
  const about = await (await fetchFile(base, DOCUMENT)).json();
  if (about.headstart_web > VERSION) throw new Error(`${DOCUMENT} is newer than headstart-web.js. Export again.`);
  return about;
}

async function fetchFile(base, name) {
  const response = await fetch(new URL(name, base)).catch((error) => ({ ok: false, status: error.message }));
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status}).`);
  return response;
}

/** The bytes of a file, which must be those that were exported. */
async function download(base, about, name, progress = () => {}) {
  const response = await fetchFile(base, name);
  const { size, sha256 } = about.files[name];
  let buffer = new Uint8Array(size);
  let length = 0;
  for (let reader = response.body.getReader(), part; !(part = await reader.read()).done; ) {
    if (length + part.value.length > buffer.length) {
      const larger = new Uint8Array(2 * (length + part.value.length));
      larger.set(buffer);
      buffer = larger;
    }
    buffer.set(part.value, length);
    length += part.value.length;
    progress(part.value.length);
  }
  const bytes = buffer.subarray(0, length);
  // A server may have decompressed a .gz file on the way: then the size tells nothing, and the hash is of other bytes.
  if (name.endsWith(".gz") && !isGzip(bytes)) return bytes;
  if (bytes.length !== size || !(await hasHash(bytes, sha256))) {
    throw new Error(`${name} is damaged or from another export. Copy the whole folder to the server again.`);
  }
  return bytes;
}

async function hasHash(bytes, sha256) {
  if (!globalThis.crypto?.subtle) return true; // only available on https and localhost
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("") === sha256;
}

const isGzip = (bytes) => bytes[0] === 0x1f && bytes[1] === 0x8b;

async function decompress(bytes) {
  if (!isGzip(bytes)) return bytes;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

function counter(about, onProgress) {
  const total = [about.model_file, about.runtimes.wasm.binary].reduce((sum, name) => sum + about.files[name].size, 0);
  let loaded = 0;
  return (count) => onProgress?.(Math.min((loaded += count), total), total);
}

function openRuntime(base, about, kind, progress) {
  const { script, glue, binary } = about.runtimes[kind];
  const address = new URL(script, base).href;
  if (!runtimes.has(address)) {
    const opened = startRuntime(address, base, about, glue, binary, progress);
    runtimes.set(address, opened);
    opened.catch(() => runtimes.delete(address));
  }
  return runtimes.get(address);
}

async function startRuntime(address, base, about, glue, binary, progress) {
  const [runtime, packed] = await Promise.all([import(address), download(base, about, binary, progress)]);
  runtime.env.logLevel = "error";
  runtime.env.wasm.wasmBinary = await decompress(packed);
  runtime.env.wasm.wasmPaths = { mjs: new URL(glue, base).href };
  // Threads share memory, which browsers allow on pages that are isolated from other sites.
  runtime.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  return runtime;
}
