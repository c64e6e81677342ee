/** Images to upright 8-bit RGB, as Headstart decodes them: no colour profile applied, transparency over white. */

const STRIP_PIXELS = 2 ** 22; // pixels that are read from a canvas at once; some browsers limit a canvas to 16 million
const STRIP_ROWS = 32; // strips have a multiple of this, so that no averaged block is in two strips

/**
 * A JPEG of 16 x 16 pixels: a checkerboard of squares of 4 x 4, white with a black middle, or the reverse. A decoder
 * that averages gives the values 191 and 64 at a quarter of the size; a smaller or larger filter gives others.
 */
const CHECKERBOARD = `
/9j/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggLDAsKDAkKCgr/wAAL
CAAQABABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAAAAL/xAAfEAABAQkBAAAAAAAAAAAAAAAWFxIUFSE5QmRmh5X/2gAIAQEAAD8A
mq3vp73dLFP8IMHRPOdIxc1NVb3097ulin+EGDonnOkYuamqt76e93SxT/CDB0TznSMXNTVW99Pe7pYp/hBg6J5zpGLmp/
/Z`;

let canReduce; // promise: whether the browser's decoder reduces a JPEG as libjpeg does

export async function readPixels(image, metadata) {
  if (!(image instanceof Blob)) return readRgb(image, ...sizeOf(image));
  if (!image.size) throw new Error("The file is empty.");
  const head = new Uint8Array(await image.slice(0, 26).arrayBuffer());
  if (metadata.preprocessing.value_range && isDeepPng(head)) {
    throw new Error("This model scales images of more than 8 bits, which a browser cannot do. Use headstart predict.");
  }
  if (head[0] === 0xff && head[1] === 0xd8) return readJpeg(image, metadata.decode_at_least);
  return withBitmap(image, (bitmap) => readRgb(bitmap, ...sizeOf(bitmap)));
}

const isDeepPng = (head) => head[0] === 0x89 && head[1] === 0x50 && head[24] === 16;

async function withBitmap(file, read) {
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(file, options).catch(() => {
    throw new Error("Not an image that this browser can decode.");
  });
  try {
    return read(bitmap);
  } finally {
    bitmap.close();
  }
}

function sizeOf(image) {
  const width = image.videoWidth ?? image.naturalWidth ?? image.displayWidth ?? image.width;
  const height = image.videoHeight ?? image.naturalHeight ?? image.displayHeight ?? image.height;
  if (!(width > 0 && height > 0)) throw new Error("Expected an image file, a bitmap, or an image element with pixels.");
  return [width, height];
}

// ---- JPEG ---------------------------------------------------------------------------------------------------------

/** Headstart decodes a JPEG that is much larger than the model's input at 1/2, 1/4 or 1/8 of its size. */
async function readJpeg(file, side) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const header = readHeader(bytes);
  const factor = [8, 4, 2].find((one) => Math.min(header.width, header.height) >= one * side) ?? 1;
  canReduce ??= reducesLikeLibjpeg();
  if (factor > 1 && (await canReduce)) {
    const reduced = await decodeReduced(bytes, header, factor).catch(() => null);
    if (reduced) return reduced;
  }
  const read = (bitmap) => (factor > 1 ? average(bitmap, header, factor) : readRgb(bitmap, ...sizeOf(bitmap)));
  return withBitmap(file, read);
}

/** Size, and how many luma samples there are for a chroma sample, across and down. */
function readHeader(bytes) {
  for (let at = 2; at + 14 < bytes.length; ) {
    const marker = bytes[at + 1];
    if (bytes[at] !== 0xff || marker === 0xff) {
      at += 1;
    } else if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      const [height, width] = [256 * bytes[at + 5] + bytes[at + 6], 256 * bytes[at + 7] + bytes[at + 8]];
      const [luma, chroma] = [bytes[at + 11], bytes[at + 9] === 3 ? bytes[at + 14] : bytes[at + 11]];
      return { width, height, across: ratio(luma >> 4, chroma >> 4), down: ratio(luma & 15, chroma & 15) };
    } else {
      at += 2 + 256 * bytes[at + 2] + bytes[at + 3];
    }
  }
  return { width: 0, height: 0, across: 1, down: 1 };
}

const ratio = (luma, chroma) => (luma && luma % chroma === 0 ? luma / chroma : 1);

/** Pixels of the browser's decoder, which leaves out what a smaller image does not need. */
async function decodeReduced(data, { width, height }, factor) {
  const [desiredWidth, desiredHeight] = [Math.ceil(width / factor), Math.ceil(height / factor)];
  const options = { data, type: "image/jpeg", colorSpaceConversion: "none", desiredWidth, desiredHeight };
  const decoder = new ImageDecoder(options);
  try {
    const { image } = await decoder.decode();
    const isReduced = image.codedWidth === desiredWidth && image.codedHeight === desiredHeight;
    const pixels = isReduced ? readRgb(image, ...sizeOf(image)) : null;
    image.close();
    return pixels;
  } finally {
    decoder.close();
  }
}

/** Chromium's decoder does. Firefox resamples the full image, which differs more from libjpeg than an average. */
async function reducesLikeLibjpeg() {
  try {
    const file = Uint8Array.from(atob(CHECKERBOARD), (letter) => letter.charCodeAt(0));
    const { data } = await decodeReduced(file, readHeader(file), 4);
    const isLight = (i) => (Math.floor(i / 3) + Math.floor(i / 12)) % 2 === 0;
    return data.every((value, i) => Math.abs(value - (isLight(i) ? 191 : 64)) <= 2);
  } catch {
    return false;
  }
}

/** Averages the pixels of a whole JPEG as libjpeg does when it reduces: luma and chroma apart. */
function average(bitmap, header, factor) {
  const [width, height] = sizeOf(bitmap);
  let { across, down } = header;
  if (width !== header.width) [across, down] = [down, across]; // the bitmap is upright, the samples are not
  // libjpeg reduces chroma less, instead of enlarging it, where that works in both directions (jdmaster.c).
  let reduction = factor;
  const isDouble = (ratio) => ((ratio * reduction) / factor) % 2 === 0;
  while (reduction > 1 && isDouble(across) && isDouble(down)) reduction /= 2;
  const luma = { width: factor, height: factor };
  const chroma = { width: across * reduction, height: down * reduction };
  for (const block of [luma, chroma]) {
    block.columns = Math.ceil(width / block.width);
    block.means = new Float32Array(3 * block.columns * Math.ceil(height / block.height));
  }
  for (const strip of strips(bitmap, width, height)) {
    for (const block of [luma, chroma]) addMeans(strip, block);
  }
  return combine(luma, chroma, factor < 8);
}

/** Means of red, green and blue over blocks of pixels; those at the edges are smaller. */
function addMeans({ data, top, width, height }, block) {
  for (let y = 0; y < height; y += block.height) {
    const rows = Math.min(block.height, height - y);
    let to = (3 * block.columns * (top + y)) / block.height;
    for (let x = 0; x < width; x += block.width) {
      const columns = Math.min(block.width, width - x);
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
      block.means[to++] = red / count;
      block.means[to++] = green / count;
      block.means[to++] = blue / count;
    }
  }
}

/** Luma of small blocks and chroma of large ones to RGB; chroma is interpolated where libjpeg does so. */
function combine(luma, chroma, interpolates) {
  const rgb = new Uint8ClampedArray(luma.means.length);
  const across = chroma.width / luma.width;
  const down = chroma.height / luma.height;
  const lastRow = chroma.means.length / 3 / chroma.columns - 1;
  const mean = (means, i, r, g, b) => Math.round(r * means[i] + g * means[i + 1] + b * means[i + 2]);
  const neighbour = (place, ratio, last) => {
    const nearest = Math.floor(place / ratio);
    if (ratio !== 2 || !interpolates) return nearest;
    return Math.min(last, Math.max(0, nearest + (place % 2 ? 1 : -1)));
  };
  for (let i = 0; i < rgb.length; i += 3) {
    const x = (i / 3) % luma.columns;
    const y = Math.floor(i / 3 / luma.columns);
    const near = 3 * (Math.floor(y / down) * chroma.columns + Math.floor(x / across));
    const next = 3 * (neighbour(y, down, lastRow) * chroma.columns + neighbour(x, across, chroma.columns - 1));
    const blend = (...rgb) => Math.round((3 * mean(chroma.means, near, ...rgb) + mean(chroma.means, next, ...rgb)) / 4);
    const light = mean(luma.means, i, 0.299, 0.587, 0.114);
    const blue = blend(-0.168736, -0.331264, 0.5);
    const red = blend(0.5, -0.418688, -0.081312);
    rgb[i] = light + 1.402 * red; // rounded and limited to 0 to 255
    rgb[i + 1] = light - 0.344136 * blue - 0.714136 * red;
    rgb[i + 2] = light + 1.772 * blue;
  }
  return { data: new Uint8Array(rgb.buffer), width: luma.columns, height: rgb.length / 3 / luma.columns };
}

// ---- RGB ----------------------------------------------------------------------------------------------------------

function readRgb(source, width, height) {
  const data = new Uint8Array(3 * width * height);
  let isVisible = false;
  for (const strip of strips(source, width, height)) {
    isVisible = overWhite(strip.data) || isVisible;
    copyRgb(strip, data);
  }
  if (isVisible) return { data, width, height };
  return { data: readBehindAlpha(source, width, height), width, height }; // zero everywhere: the file has no real alpha
}

function* strips(source, width, height) {
  if (source instanceof ImageData) {
    yield { data: Uint8ClampedArray.from(source.data), top: 0, width, height };
    return;
  }
  const rows = Math.min(height, STRIP_ROWS * Math.max(1, Math.floor(STRIP_PIXELS / width / STRIP_ROWS)));
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
