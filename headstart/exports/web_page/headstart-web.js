/**
 * An image classifier exported by Headstart, run in the browser by ONNX Runtime Web.
 *
 *     import { load } from "./headstart-web.js";
 *     const model = await load("./");
 *     const prediction = await model.predict(blobOrImageBitmap);
 *
 * Types and documentation of what is exported: headstart-web.d.ts.
 */

import { readPixels } from "./pixels.js";

const VERSION = 1;
const DOCUMENT = "headstart-web.json";
const REMEDY = "Copy the whole folder to the server again.";
const TRIALS = 3; // images that the GPU must answer like the CPU before it is used
const SAME = 2e-3; // largest difference of a probability between the two
const OUT_OF_MEMORY = /bad_alloc|integer overflow|out of memory|allocation failed|allocate/i; // of ONNX Runtime, and of browsers

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
  checkMetadata(about.metadata, bytes);
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
    try {
      const pixels = await readPixels(image, this.metadata);
      return toPrediction(await this.#inTurn(() => this.#run(pixels)), this.metadata);
    } catch (error) {
      if (!OUT_OF_MEMORY.test(error?.message ?? error)) throw error;
      throw new Error("The image has too many pixels for the memory of this browser. Reduce it first.", { cause: error });
    }
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

// ---- files --------------------------------------------------------------------------------------------------------

async function readDocument(base) {
  const about = await (await fetchFile(base, DOCUMENT)).json().catch(() => null);
  if (!about?.files || !about.metadata) throw new Error(`${DOCUMENT} is damaged. ${REMEDY}`);
  if (about.headstart_web > VERSION) throw new Error(`${DOCUMENT} is newer than headstart-web.js. Export again.`);
  return about;
}

/** The classes and thresholds of the document must be those at the end of the model, whose hash was checked. */
function checkMetadata(metadata, model) {
  const longest = 6 * JSON.stringify(metadata).length + 65536; // a character takes at most 6 bytes, as \u0041
  const end = new TextDecoder().decode(model.subarray(Math.max(0, model.length - longest)));
  const start = end.lastIndexOf('{"headstart_export"');
  if (start >= 0 && JSON.stringify(JSON.parse(end.slice(start))) === JSON.stringify(metadata)) return;
  throw new Error(`${DOCUMENT} is damaged or from another export. ${REMEDY}`);
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
    throw new Error(`${name} is damaged or from another export. ${REMEDY}`);
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
