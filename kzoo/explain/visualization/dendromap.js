"use strict";

const HEADER = 18;
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const count = data.names.length;
const root = 2 * count - 2;
const hasErrors = data.labels !== null && data.predictions !== null;
const sprite = new Image();

// The tree: node i < count is an image, the others are merges, in the order of their distances.
const start = new Int32Array(2 * count - 1);
const stop = new Int32Array(2 * count - 1);
const parent = new Int32Array(2 * count - 1).fill(-1);
const order = new Int32Array(count);
const wrongBefore = new Int32Array(count + 1);

const children = (node) => (node < count ? [] : data.merges[node - count].slice(0, 2));
const size = (node) => stop[node] - start[node];
const members = (node) => order.subarray(start[node], stop[node]);
const isWrong = (image) => hasErrors && data.labels[image] !== data.predictions[image];
const wrong = (node) => wrongBefore[stop[node]] - wrongBefore[start[node]];

function indexTree() {
  const sizes = (node) => (node < count ? 1 : data.merges[node - count][3]);
  stop[root] = count;
  for (let node = root; node >= count; node--) {
    const [left, right] = children(node);
    parent[left] = parent[right] = node;
    start[left] = start[node];
    stop[left] = start[right] = start[left] + sizes(left);
    stop[right] = stop[node];
  }
  for (let image = 0; image < count; image++) order[start[image]] = image;
  order.forEach((image, i) => (wrongBefore[i + 1] = wrongBefore[i] + isWrong(image)));
}

function cut(node, clusters) {
  // The latest merge has the highest number; there are at most 100 clusters to look through.
  const found = [node];
  while (found.length < clusters) {
    const latest = found.indexOf(Math.max(...found));
    if (found[latest] < count) break;
    found.splice(latest, 1, ...children(found[latest]));
  }
  return new Set(found);
}

// Two squarified rectangles divide the longer side; the larger one comes first.
function layOut(node, rect, visible, depth, placed) {
  placed.push({ node, rect, depth, leaf: visible.has(node) });
  if (visible.has(node)) return placed;
  let [first, second] = children(node);
  if (size(second) > size(first)) [first, second] = [second, first];
  const share = size(first) / size(node);
  const a = { ...rect }, b = { ...rect };
  if (rect.width >= rect.height) {
    a.width = rect.width * share;
    b.x = rect.x + a.width;
    b.width = rect.width - a.width;
  } else {
    a.height = rect.height * share;
    b.y = rect.y + a.height;
    b.height = rect.height - a.height;
  }
  layOut(first, a, visible, depth + 1, placed);
  return layOut(second, b, visible, depth + 1, placed);
}

const percent = (part, whole) => `${((100 * part) / whole).toFixed(part && part < whole ? 1 : 0)} %`;

function classMix(node) {
  const counts = new Map();
  for (const image of members(node)) {
    const name = data.class_names[data.labels[image]];
    counts.set(name, (counts.get(name) || 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1]);
}

function title(node) {
  if (node < count) return `Image ${data.names[node]}`;
  if (!data.labels) return `${size(node)} images`;
  const [name, n] = classMix(node)[0];
  return `${size(node)} images, ${Math.round((100 * n) / size(node))} % ${name}`;
}

const errorText = (node) => (wrong(node) ? `${percent(wrong(node), size(node))} errors` : "no errors");

function element(tag, properties = {}, ...content) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...content);
  return made;
}

function place(made, { x, y, width, height }) {
  Object.assign(made.style, {
    left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px`,
  });
  return made;
}

// State: the node that fills the map is in the address, so that "back" works.

const clampNode = (text) => {
  const node = Number(text);
  return text !== "" && Number.isInteger(node) && node >= 0 && node <= root ? node : root;
};
const current = () => clampNode(location.hash.slice(1));
const zoomTo = (node) => (location.hash = String(node));

function renderPath() {
  const path = [];
  for (let node = current(); node !== -1; node = parent[node]) path.unshift(node);
  const shown = path.length > 6 ? [path[0], ...path.slice(-5)] : path;
  byId("path").replaceChildren(...shown.map((node) => {
    const here = node === current();
    const made = element("button", { type: "button", onclick: () => zoomTo(node) }, title(node));
    if (here) made.setAttribute("aria-current", "page");
    return made;
  }));
}

// Columns fill the width; images that do not fit are left out at even distances.
function fitThumbnails(width, height, images, thumbnail) {
  const columns = Math.floor(width / thumbnail);
  const side = width / Math.max(columns, 1);
  const room = columns * Math.max(0, Math.floor(height / side));
  const shown = Math.min(images.length, room);
  const at = (i) => images[Math.floor((i * images.length) / shown)];
  return { columns, side, images: Array.from({ length: shown }, (_, i) => at(i)) };
}

function drawImage(context, image, x, y, side) {
  const { width, height, columns } = data.thumbnails;
  const left = (image % columns) * width;
  const top = Math.floor(image / columns) * height;
  const scale = side / Math.max(width, height);
  context.drawImage(sprite, left, top, width, height, x, y, width * scale, height * scale);
}

function drawThumbnails(node, rect) {
  const width = rect.width - 4, height = rect.height - HEADER - 4;
  // Areas go with the number of images, so that one size for all nearly fills every cluster.
  const filling = 0.8 * Math.sqrt((rect.width * rect.height) / size(node));
  const smallest = Math.min(width, Math.max(Number(byId("thumbnail").value), filling));
  const { columns, side, images } = fitThumbnails(width, height, members(node), smallest);
  const canvas = element("canvas");
  canvas.setAttribute("aria-hidden", "true");
  const rows = Math.ceil(images.length / Math.max(columns, 1));
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, columns * side * ratio);
  canvas.height = Math.max(1, rows * side * ratio);
  canvas.style.width = `${columns * side}px`;
  canvas.style.height = `${rows * side}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.imageSmoothingEnabled = side * ratio < data.thumbnails.width;
  context.lineWidth = 2;
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--error");
  images.forEach((image, i) => {
    const x = (i % columns) * side + 1, y = Math.floor(i / columns) * side + 1;
    drawImage(context, image, x, y, side - 2);
    if (byId("errors").checked && isWrong(image)) context.strokeRect(x, y, side - 2, side - 2);
  });
  canvas.addEventListener("mousemove", (event) => {
    const column = Math.floor(event.offsetX / side), line = Math.floor(event.offsetY / side);
    const image = column < columns ? images[line * columns + column] : undefined;
    if (image !== undefined) showDetails(node, image);
  });
  return canvas;
}

function clusterButton({ node, rect }) {
  const label = hasErrors ? `${title(node)}, ${errorText(node)}` : title(node);
  const heading = element("span", {}, title(node));
  if (hasErrors && wrong(node)) {
    heading.append(" ", element("b", { className: "share" }, errorText(node)));
  }
  const made = element("button", {
    type: "button", className: "cluster", title: label, ariaLabel: label,
    onclick: () => zoomTo(node),
    onfocus: () => showDetails(node),
    onmouseenter: () => showDetails(node),
  }, heading, drawThumbnails(node, rect));
  return place(made, rect);
}

function renderMap() {
  const map = byId("map");
  const rect = { x: 0, y: 0, width: map.clientWidth, height: map.clientHeight };
  const visible = cut(current(), Number(byId("clusters").value));
  const placed = layOut(current(), rect, visible, 0, []);
  const buttons = placed.filter((each) => each.leaf).map(clusterButton);
  const frames = placed.filter((each) => !each.leaf && each.depth < 3).map(({ rect, depth }) => {
    const frame = place(element("div", { className: "frame" }), rect);
    frame.style.borderWidth = `${3 - depth}px`;
    return frame;
  });
  map.replaceChildren(...buttons, ...frames);
}

function row(name, value) {
  return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, String(value)));
}

function imageDetails(image) {
  const canvas = element("canvas", {
    id: "preview", width: data.thumbnails.width, height: data.thumbnails.height,
  });
  drawImage(canvas.getContext("2d"), image, 0, 0, Math.max(canvas.width, canvas.height));
  const lines = [row("Image", data.names[image])];
  if (data.labels) lines.push(row("Label", data.class_names[data.labels[image]]));
  if (data.predictions) lines.push(row("Prediction", data.class_names[data.predictions[image]]));
  return [element("table", {}, ...lines), canvas];
}

function showDetails(node, image) {
  const lines = [row("Images", size(node))];
  if (node >= count) lines.push(row("Merged at distance", data.merges[node - count][2].toPrecision(4)));
  if (hasErrors) {
    lines.push(row("Accuracy", percent(size(node) - wrong(node), size(node))));
    lines.push(row("Errors", `${wrong(node)} (${percent(wrong(node), size(node))})`));
  }
  const content = [element("h2", {}, title(node)), element("table", {}, ...lines)];
  if (data.labels && node >= count) {
    const mix = classMix(node).map(([name, n]) => row(name, `${n} (${percent(n, size(node))})`));
    content.push(element("h2", {}, "Classes"), element("table", {}, ...mix));
  }
  const seen = image === undefined && node < count ? node : image;
  byId("details").replaceChildren(...content, ...(seen === undefined ? [] : imageDetails(seen)));
}

function renderSubgroups() {
  byId("subgroups-section").hidden = !data.subgroups.length;
  byId("errors-control").hidden = !hasErrors;
  byId("subgroups").replaceChildren(...data.subgroups.map(({ node }) => element("li", {},
    element("button", { type: "button", onclick: () => zoomTo(node) },
      `${title(node)}: ${errorText(node)}`))));
}

function render() {
  byId("clusters-value").textContent = byId("clusters").value;
  byId("thumbnail-value").textContent = `${byId("thumbnail").value} px`;
  renderPath();
  renderMap();
  showDetails(current());
}

function zoom() {
  const inMap = byId("map").contains(document.activeElement);
  render();
  if (inMap) byId("map").querySelector("button").focus();
}

function onKey(event) {
  if (event.key === "Escape" && parent[current()] !== -1) zoomTo(parent[current()]);
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  if (!(event.key in steps) || !byId("map").contains(document.activeElement)) return;
  const buttons = [...byId("map").querySelectorAll("button")];
  const next = buttons.indexOf(document.activeElement) + steps[event.key];
  buttons[(next + buttons.length) % buttons.length].focus();
  event.preventDefault();
}

indexTree();
renderSubgroups();
for (const id of ["clusters", "thumbnail", "errors"]) byId(id).addEventListener("input", render);
window.addEventListener("hashchange", zoom);
window.addEventListener("resize", render);
document.addEventListener("keydown", onKey);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
sprite.addEventListener("load", render);
sprite.src = data.thumbnails.sprite;
