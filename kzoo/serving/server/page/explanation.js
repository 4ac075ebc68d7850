// Why the model says it.

function showMethods() {
  const methods = methodsFor(state.served.signatures, kind(), signatureInputs());
  byId("methods-empty").hidden = methods.length > 0;
  byId("methods-empty").textContent = "This model has no explanation methods.";
  byId("methods").hidden = byId("target-label").hidden = methods.length === 0;
  byId("explain").disabled = true;
  let chosen = 0;
  byId("method-list").replaceChildren(...methods.map(({ name, signature, usable }) => {
    const checked = usable && chosen++ < 2;
    const box = element("input", { type: "checkbox", value: signature, name, checked, disabled: !usable });
    return element("label", {}, box, element("span", {}, methodTitle(name)),
      ...(usable ? [] : [element("small", {}, "asks for more than this page can give")]));
  }));
  fillTargets();
}

function fillTargets() {
  const { signatures } = state.served, before = byId("target").value;
  const sizes = Object.values(signatures[byId("signature").value].outputs)
    .map(({ shape }) => (shape?.length === 2 ? shape[1] : 0));
  const classes = Math.max(0, ...sizes);
  const ranks = [["-1", "the top class"]];
  if (classes > 1) ranks.push(["-2", "the second class"]);
  const named = classes > 1 ? Array.from({ length: classes }, (_, i) => [String(i), className(i)]) : [];
  fill("target", [...ranks, ...named], "-1");
  if (byId("target").querySelector(`[value="${CSS.escape(before)}"]`)) byId("target").value = before;
  readyToExplain();
}

const chosenMethods = () => [...byId("method-list").querySelectorAll(":checked")];

function readyToExplain() {
  byId("explain").disabled = byId("predict").disabled || !chosenMethods().length;
}

async function explainClass(index) {
  byId("target").value = String(index);
  markTarget();
  if (chosenMethods().length) await explain();
}

function markTarget() {
  const focused = document.activeElement?.closest("#scores li");
  const place = [...byId("scores").children].indexOf(focused);
  showScores();
  if (place >= 0) byId("scores").children[place].firstChild.focus();
}

// Whether the prediction shown is that of the input as it is now.
async function isPredicted() {
  if (takesPicture() && state.calls.length) return true;
  try {
    const inputs = readInputs();
    if (JSON.stringify(inputs) === JSON.stringify(state.calls[0]?.body.inputs)) return true;
  } catch (problem) {
    showError(problem);
    return false;
  }
  return (await predict()) === "done";
}

async function explain() {
  if (!(await isPredicted())) return;
  const target = Number(byId("target").value), methods = chosenMethods();
  const plural = methods.length === 1 ? "" : "s";
  await busy(`Computing ${methods.length} explanation${plural}`, async (signal) => {
    const inputs = methods.map(({ value }) => {
      const wanted = state.served.signatures[value].inputs;
      return { ...readInputs(wanted), ...choices(wanted, target) };
    });
    const figures = beginFigures(methods.map(({ name }) => name));
    const outcomes = await Promise.allSettled(methods.map(({ value }, i) =>
      explainWith(figures[i], value, inputs[i], signal)));
    if (figures !== state.figures) return; // something else was asked meanwhile
    state.calls = [state.calls[0], ...figures.map(({ call }) => call).filter(Boolean)];
    showCalls();
    byId("download-all").disabled = !figures.some(({ draw }) => draw);
    const failed = outcomes.filter(({ status }) => status === "rejected");
    if (signal.aborted || failed.length === methods.length) throw failed[0].reason;
  });
}

async function explainWith(figure, signature, inputs, signal) {
  try {
    const { call, row } = await ask(figure.title, signature, inputs, signal);
    Object.assign(figure, { call, row });
    showFigure(figure);
  } catch (problem) {
    const text = problem.name === "AbortError" ? "Cancelled" : problem.message;
    figure.stage.replaceChildren(element("p", { className: "failed" }, text));
    throw problem;
  }
}

function beginFigures(names) {
  byId("maps-empty").hidden = true;
  byId("maps").classList.toggle("charts", !takesPicture());
  byId("opacity-label").hidden = !takesPicture();
  state.figures = names.map((name) => makeFigure(methodTitle(name), name));
  const originals = takesPicture() ? [pictureFigure()] : [];
  byId("maps").replaceChildren(...originals, ...state.figures.map(({ node }) => node));
  return state.figures;
}

function makeFigure(title, name) {
  const stage = element("div", { className: "stage" }, element("p", {}, "Computing …"));
  const legend = element("div", { className: "legend" });
  const caption = element("figcaption");
  const download = element("button", {
    type: "button", disabled: true, ariaLabel: `Download ${title} as PNG`,
  }, "Download PNG");
  const node = element("figure", {}, element("h3", { title }, title), stage, legend, caption, download);
  const figure = { title, name, node, stage, legend, caption, download, row: null, draw: null };
  download.addEventListener("click", () => downloadFigure(figure));
  return figure;
}

function pictureFigure() {
  const canvas = element("canvas", { role: "img", ariaLabel: `The picture: ${state.picture.name}` });
  canvas.setAttribute("role", "img");
  drawPicture(canvas, state.picture.bitmap);
  return element("figure", {}, element("h3", {}, "Picture"),
    element("div", { className: "stage" }, canvas),
    element("div", { className: "legend" }), element("figcaption", {}, state.picture.name));
}

function showFigure(figure) {
  const { row, stage } = figure, canvas = element("canvas");
  canvas.setAttribute("role", "img");
  const bars = takesPicture() ? null : featureBars(row);
  const map = row.attributions;
  const isMap = takesPicture() && isMapShaped(map);
  if (!isMap && !bars) {
    const text = JSON.stringify(row, null, 2);
    stage.replaceChildren(element("pre", { tabIndex: 0, ariaLabel: `Answer of ${figure.title}` }, text));
    return;
  }
  const picture = state.picture, target = targetName(row), maps = {};
  const { label, table } = isMap
    ? { label: `${figure.title} of ${target}; strongest at the ${strongestPlace(map)}` }
    : { label: `${figure.title} of ${target}, a bar for each feature`, table: barTable(bars) };
  canvas.setAttribute("aria-label", label);
  stage.replaceChildren(canvas, ...(table ? [table] : []));
  figure.canvas = canvas;
  figure.draw = () => {
    const mode = byId("colors").value;
    if (isMap) {
      const { colors, signed } = (maps[mode] ??= colorMap(map, mode));
      drawOverlay(canvas, picture.grey, colors, byId("opacity").value / 100);
      showLegend(figure.legend, mapColors(signed), signed);
    } else if (drawBars(canvas, bars, mode)) {
      showLegend(figure.legend, BAR_COLORS, true);
    } else {
      figure.legend.replaceChildren();
    }
  };
  figure.draw();
  figure.caption.textContent = captionOf(row, target);
  figure.download.disabled = false;
}

const targetName = ({ target }) => (target === undefined ? "the output"
  : [state.scores?.values].flat().length === 1 ? "the output" : className(target));

function captionOf(row, target) {
  const parts = [target];
  if (typeof row.score === "number") parts.push(`score ${shortNumber(row.score)}`);
  if (typeof row.convergence_delta === "number") {
    parts.push(`completeness off by ${shortNumber(row.convergence_delta)}`);
  }
  return parts.join(" · ");
}

const mapColors = (signed) =>
  (signed ? SIGNED_COLORS : UNSIGNED_COLORS).map((rgb) => `rgb(${rgb})`);
const BAR_COLORS = ["var(--against)", "var(--against) 50%", "var(--for) 50%", "var(--for)"];
const isMapShaped = (map) => Array.isArray(map?.[0]) && !Array.isArray([map[0][0]].flat()[0]);

function showLegend(legend, colors, signed) {
  const band = element("i");
  band.style.background = `linear-gradient(to right, ${colors.join(", ")})`;
  legend.replaceChildren(signed ? "against" : "none", band, signed ? "for" : "most");
}

// [{ name, value }], the strongest first; null if the answer has no number for each feature.
function featureBars(row) {
  const bars = kind() !== "features" ? [] : fields().map(({ input, index, name }) => {
    const values = row.attributions ?? row[`attributions_${input}`];
    const value = index === null ? [values].flat()[0] : values?.[index];
    return { name, value };
  });
  const complete = bars.length > 0 && bars.every(({ value }) => typeof value === "number");
  return complete ? bars.sort((a, b) => Math.abs(b.value) - Math.abs(a.value)) : null;
}

function barTable(bars) {
  const head = element("tr", {}, element("th", { scope: "col" }, "Feature"),
    element("th", { scope: "col" }, "Attribution"));
  const rows = bars.map(({ name, value }) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, shortNumber(value))));
  return element("table", { className: "hidden-table" }, element("thead", {}, head),
    element("tbody", {}, ...rows));
}

function redraw() {
  byId("opacity-value").textContent = `${byId("opacity").value} %`;
  for (const { draw } of state.figures) draw?.();
}
