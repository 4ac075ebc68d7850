// Pictures: from files to what a model takes.

const SENT_AS_THEY_ARE = ["image/png", "image/jpeg"];
const SAMPLE_SIZE = 96;

class Picture {
  constructor(name, bytes, bitmap) {
    this.name = name;
    this.bytes = bytes;
    this.bitmap = bitmap;
  }

  // Other formats than PNG and JPEG become PNG, and a turned photo is turned upright: models see
  // the pixels as they are stored.
  static async read(blob, name) {
    const bitmap = await createImageBitmap(blob);
    const bytes = new Uint8Array(await blob.arrayBuffer());
    if (SENT_AS_THEY_ARE.includes(blob.type) && !isTurned(bytes)) {
      return new Picture(name, bytes, bitmap);
    }
    const png = await toBlob(canvasOf(bitmap));
    const encoded = new Uint8Array(await png.arrayBuffer());
    return new Picture(name.replace(/\.\w+$/, "") + ".png", encoded, bitmap);
  }

  get grey() {
    return (this.drawn ??= greyCanvas(this.bitmap));
  }

  get base64() {
    const parts = [];
    for (let i = 0; i < this.bytes.length; i += 0x8000) {
      parts.push(String.fromCharCode(...this.bytes.subarray(i, i + 0x8000)));
    }
    return btoa(parts.join(""));
  }

  // Nested rows [height][width][channels] of scale * pixel + offset, resized as the exports do.
  pixels({ dtype, shape: [, height, width, channels] }, [scale, offset]) {
    const { width: fullWidth, height: fullHeight } = this.bitmap;
    const { data } = contextOf(canvasOf(this.bitmap)).getImageData(0, 0, fullWidth, fullHeight);
    const columns = resizeWeights(fullWidth, width), rows = resizeWeights(fullHeight, height);
    const narrow = weighted(channelsOf(data, channels), fullHeight, channels, columns);
    const values = weighted(narrow, 1, width * channels, rows);
    const finish = INTEGERS.test(dtype) ? Math.trunc : Math.fround;
    const cell = (i) => Array.from(values.subarray(i * channels, (i + 1) * channels),
      (value) => finish(scale * value + offset));
    return rows.map((_, y) => columns.map((_, x) => cell(y * width + x)));
  }
}

// RGBA as [pixels, channels], colours or their luminance.
function channelsOf(data, channels) {
  const values = new Float32Array((data.length / 4) * channels);
  for (let i = 0, j = 0; i < data.length; i += 4, j += channels) {
    if (channels === 3) values.set(data.subarray(i, i + 3), j);
    else values[j] = 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
  }
  return values;
}

// Weighted sums along one axis: [outer, from, inner] to [outer, spans, inner].
function weighted(values, outer, inner, spans) {
  const from = values.length / (outer * inner);
  const sums = new Float64Array(outer * spans.length * inner);
  for (let o = 0; o < outer; o++) {
    spans.forEach(({ start, weights }, j) => weights.forEach((weight, i) => {
      const source = (o * from + start + i) * inner, target = (o * spans.length + j) * inner;
      for (let k = 0; k < inner; k++) sums[target + k] += weight * values[source + k];
    }));
  }
  return sums;
}

// Bilinear with antialiasing: a triangle around each output pixel's centre, as wide as the output
// pixel where the picture shrinks.
function resizeWeights(from, to) {
  const scale = from / to, radius = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const start = Math.max(0, Math.ceil(centre - radius - 0.5));
    const stop = Math.min(from - 1, Math.floor(centre + radius - 0.5));
    const weights = [];
    for (let x = start; x <= stop; x++) weights.push(1 - Math.abs(x + 0.5 - centre) / radius);
    const total = weights.reduce((a, b) => a + b);
    return { start, weights: weights.map((weight) => weight / total) };
  });
}

// Whether the Exif data of a JPEG say that it must be turned or mirrored to be upright.
function isTurned(bytes) {
  const view = new DataView(bytes.buffer);
  if (bytes.length < 4 || view.getUint16(0) !== 0xffd8) return false;
  for (let at = 2; at + 18 < bytes.length && view.getUint16(at) !== 0xffda; ) {
    if (view.getUint16(at) === 0xffe1 && view.getUint32(at + 4) === 0x45786966) {
      return exifOrientation(view, at + 10) > 1;
    }
    at += 2 + view.getUint16(at + 2);
  }
  return false;
}

function exifOrientation(view, start) {
  const little = view.getUint16(start) === 0x4949;
  const directory = start + view.getUint32(start + 4, little);
  if (directory + 2 > view.byteLength) return 1;
  const count = view.getUint16(directory, little);
  for (let i = 0, at = directory + 2; i < count && at + 12 <= view.byteLength; i++, at += 12) {
    if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
  }
  return 1;
}

function canvasOf(source, width = source.width, height = source.height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  contextOf(canvas).drawImage(source, 0, 0, width, height);
  return canvas;
}

const contextOf = (canvas) => canvas.getContext("2d", { willReadFrequently: true });
const toBlob = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));

// Samples for models whose export brings none: { name: function that draws on a black square }.
const DRAWN = {
  three: (context) => drawText(context, "3"),
  seven: (context) => drawText(context, "7"),
  shapes: (context) => {
    const size = SAMPLE_SIZE;
    const sky = context.createLinearGradient(0, 0, 0, size);
    sky.addColorStop(0, "#4f86d9");
    sky.addColorStop(1, "#dfe9f7");
    context.fillStyle = sky;
    context.fillRect(0, 0, size, size);
    context.fillStyle = "#f2c230";
    context.beginPath();
    context.arc(0.7 * size, 0.3 * size, 0.14 * size, 0, 7);
    context.fill();
    context.fillStyle = "#2e7d4f";
    context.beginPath();
    context.moveTo(0, size);
    context.lineTo(0.4 * size, 0.4 * size);
    context.lineTo(0.85 * size, size);
    context.fill();
  },
};

function drawText(context, text) {
  context.fillStyle = "#fff";
  context.font = `bold ${0.95 * SAMPLE_SIZE}px sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, SAMPLE_SIZE / 2, 0.54 * SAMPLE_SIZE);
}

async function drawnSample(name) {
  const canvas = Object.assign(document.createElement("canvas"),
    { width: SAMPLE_SIZE, height: SAMPLE_SIZE });
  const context = contextOf(canvas);
  context.fillRect(0, 0, SAMPLE_SIZE, SAMPLE_SIZE);
  DRAWN[name](context);
  return Picture.read(await toBlob(canvas), `${name}.png`);
}

async function embeddedSample({ name, type, b64 }) {
  const bytes = Uint8Array.from(atob(b64), (letter) => letter.charCodeAt(0));
  return Picture.read(new Blob([bytes], { type }), name);
}
