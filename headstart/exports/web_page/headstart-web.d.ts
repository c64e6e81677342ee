/** An image classifier exported by Headstart, run in the browser by ONNX Runtime Web. */

/** What `predict` accepts. A `Blob` or `File` is an image file; the others are pixels. */
export type ImageInput =
  | Blob
  | ImageBitmap
  | ImageData
  | HTMLImageElement
  | HTMLVideoElement
  | HTMLCanvasElement
  | OffscreenCanvas;

/** The answer for one image; the fields of Headstart's `Prediction`. */
export interface Prediction {
  /**
   * The answer to act on: the class, "none of these", or "unsure: ask a person".
   * For a model that gives an image several labels: "none of these" or "", and `labels` has the labels.
   */
  readonly answer: string;
  /** The most probable class. */
  readonly label: string;
  /** Calibrated probability of `label`, 0 to 1. */
  readonly probability: number;
  /** Up to five most probable classes with their probabilities, in descending order. */
  readonly top: ReadonlyArray<readonly [name: string, probability: number]>;
  /** Models with several labels: the labels whose probability reaches their threshold; null for other models. */
  readonly labels: ReadonlyArray<readonly [name: string, probability: number]> | null;
  /** Out-of-distribution score, 0 to 1; undefined if the model has no detector. */
  readonly outlier: number | undefined;
  /** Whether the image is flagged as out-of-distribution. */
  readonly none: boolean;
  /** Whether the probability is below the model's confidence threshold. */
  readonly unsure: boolean;
  /** Probabilities of all classes, in the order of `Model.classes`. */
  readonly probabilities: Float32Array;
}

/** The document that describes the model; see "What is in the file" in Headstart's documentation. */
export interface Metadata {
  readonly classes: readonly string[];
  readonly thresholds: readonly number[] | null;
  readonly unsure_below: number;
  readonly none_above: number | null;
  readonly unsure: string;
  readonly none: string;
  readonly precision: "float32" | "int8";
  readonly model: string;
  readonly backbone: string;
  readonly headstart: string;
  readonly [key: string]: unknown;
}

export interface LoadOptions {
  /**
   * "auto" (default): the CPU, and then the GPU where it gives the same answers for the first three images, and faster.
   * "wasm": the CPU only. "webgpu": the GPU where it gives the same answers; `load` rejects if there is none.
   */
  backend?: "auto" | "wasm" | "webgpu";
  /** Called while files are downloaded, with bytes. */
  onProgress?: (loaded: number, total: number) => void;
}

export interface Model {
  readonly metadata: Metadata;
  readonly classes: readonly string[];
  /** What computes at present. */
  readonly backend: "wasm" | "webgpu";
  /** Threads of the CPU; more than one only on a page that is cross-origin isolated. */
  readonly threads: number;
  /** Classifies an image. Rejects with an `Error` if the image cannot be decoded. */
  predict(image: ImageInput): Promise<Prediction>;
  /** Frees the memory of the model. */
  close(): Promise<void>;
}

/**
 * Loads a model.
 *
 * @param folder URL of the exported folder, relative to the page; by default the folder of this module.
 */
export function load(folder?: string | URL, options?: LoadOptions): Promise<Model>;
