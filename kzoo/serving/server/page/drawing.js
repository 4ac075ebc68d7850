// Attributions as colours: maps over a picture, and bars of features.

// From the lowest value to the highest: RdBu (blue to red, safe for colour-blind eyes) for maps
// with a sign, inferno (evenly brighter) for maps without. `kzoo.plots` has the same.
const SIGNED_COLORS = readColors(
  "053061 2267ac 4393c3 90c4dd d1e5f0 f7f6f6 fddbc7 f4a683 d6604d b1182b 67001f");
const UNSIGNED_COLORS = readColors(
  "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d04545 e35933 f1711f f98c0a "
  + "fcaa0f f9c932 f2e865 fcffa4");
const PERCENTILE = 0.99;
const CANVAS_SIZE = 448;
const SMALL = 64;
const ROW = 30;

function readColors(text) {
  return text.split(" ").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
}

function colorAt(table, place) {
  const position = Math.min(Math.max(place, 0), 1) * (table.length - 1);
  const i = Math.min(Math.floor(position), table.length - 2), part = position - i;
  return table[i].map((value, c) => Math.round(value + part * (table[i + 1][c] - value)));
}

const isSigned = (values, mode) => (mode === "auto" ? hasNegative(values) : mode === "signed");
const hasNegative = (values) =>
  Array.isArray(values) ? values.some(hasNegative) : values < 0;

// Rows of numbers from [height][width] or [height][width][channels]: with a sign the sum over the
// channels, else the largest.
function planeOf(attribution, signed) {
  const reduce = (cell) => {
    if (!Array.isArray(cell)) return signed ? cell : Math.abs(cell);
    return signed ? cell.reduce((a, b) => a + b) : Math.max(...cell.map(Math.abs));
  };
  return attribution.map((row) => row.map(reduce));
}

// The magnitude with the strongest colour; a few outliers must not darken the rest.
function levelOf(values) {
  const ordered = values.map(Math.abs).sort((a, b) => a - b);
  const place = PERCENTILE * (ordered.length - 1), low = Math.floor(place);
  const high = ordered[Math.min(low + 1, ordered.length - 1)];
  return ordered[low] + (place - low) * (high - ordered[low]) || ordered.at(-1) || 1;
}

// { colors: canvas of the map's own size, signed }
function colorMap(attribution, mode) {
  const signed = isSigned(attribution, mode), plane = planeOf(attribution, signed);
  const level = levelOf(plane.flat());
  const image = new ImageData(plane[0].length, plane.length);
  plane.flat().forEach((value, i) => {
    const place = signed ? 0.5 + (0.5 * value) / level : value / level;
    const table = signed ? SIGNED_COLORS : UNSIGNED_COLORS;
    image.data.set([...colorAt(table, place), 255], 4 * i);
  });
  const canvas = Object.assign(document.createElement("canvas"),
    { width: image.width, height: image.height });
  contextOf(canvas).putImageData(image, 0, 0);
  return { colors: canvas, signed };
}

// Small pictures keep their pixels; larger ones are drawn smoothly.
function fit(canvas, source) {
  const scale = CANVAS_SIZE / Math.max(source.width, source.height);
  canvas.width = Math.max(1, Math.round(source.width * scale));
  canvas.height = Math.max(1, Math.round(source.height * scale));
}

function paint(canvas, source) {
  const context = contextOf(canvas);
  context.imageSmoothingEnabled = Math.max(source.width, source.height) > SMALL;
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
}

function drawPicture(canvas, bitmap) {
  fit(canvas, bitmap);
  paint(canvas, bitmap);
}

// The picture without its colours, as large as maps are drawn.
function greyCanvas(bitmap) {
  const canvas = document.createElement("canvas"), context = contextOf(canvas);
  drawPicture(canvas, bitmap);
  const image = context.getImageData(0, 0, canvas.width, canvas.height), { data } = image;
  for (let i = 0; i < data.length; i += 4) {
    data.fill((data[i] + data[i + 1] + data[i + 2]) / 3, i, i + 3);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function drawOverlay(canvas, grey, colors, opacity) {
  const context = contextOf(canvas);
  Object.assign(canvas, { width: grey.width, height: grey.height });
  context.drawImage(grey, 0, 0);
  context.globalAlpha = opacity;
  paint(canvas, colors);
  context.globalAlpha = 1;
}

// Bars to the right of zero speak for the target, bars to its left against it.
function drawBars(canvas, bars, mode) {
  const width = 560, names = 170, numbers = 80;
  const signed = isSigned(bars.map(({ value }) => value), mode);
  const level = Math.max(...bars.map(({ value }) => Math.abs(value))) || 1;
  Object.assign(canvas, { width, height: ROW * bars.length + 16 });
  const context = contextOf(canvas), room = width - names - numbers - 16;
  const zero = names + 8 + (signed ? room / 2 : 0);
  context.fillStyle = colorOf("--card");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = "15px system-ui, 'DejaVu Sans', sans-serif";
  context.textBaseline = "middle";
  bars.forEach(({ name, value }, i) => {
    const middle = 8 + ROW * (i + 0.5), shown = signed ? value : Math.abs(value);
    const length = (shown / level) * (signed ? room / 2 : room);
    context.fillStyle = colorOf(!signed ? "--strength" : shown < 0 ? "--against" : "--for");
    context.fillRect(Math.min(zero, zero + length), middle - 9, Math.abs(length), 18);
    context.fillStyle = colorOf("--text");
    context.textAlign = "right";
    context.fillText(name, names, middle, names - 8);
    context.fillText(shortNumber(value), width - 8, middle, numbers - 12);
  });
  context.fillStyle = colorOf("--control");
  context.fillRect(zero - 0.5, 4, 1, canvas.height - 8);
  return signed;
}

// The colour that a custom property stands for now; canvases know no light-dark().
function colorOf(property) {
  const probe = colorOf.probe ??= document.body.appendChild(
    Object.assign(document.createElement("span"), { hidden: true }));
  probe.style.color = `var(${property})`;
  return getComputedStyle(probe).color;
}

function shortNumber(value) {
  return value === null ? "NaN" : Number(value.toPrecision(3)).toString().replace("-", "−");
}

// Where in the picture a map is strongest, in words for those who do not see it.
function strongestPlace(attribution) {
  const plane = planeOf(attribution, false), sums = Array(9).fill(0);
  plane.forEach((row, y) => row.forEach((value, x) => {
    sums[3 * Math.floor((3 * y) / plane.length) + Math.floor((3 * x) / row.length)] += value;
  }));
  const best = sums.indexOf(Math.max(...sums));
  const row = ["upper", "middle", "lower"][Math.floor(best / 3)];
  const column = ["left", "centre", "right"][best % 3];
  return row === "middle" && column === "centre" ? "centre" : `${row} ${column}`;
}
