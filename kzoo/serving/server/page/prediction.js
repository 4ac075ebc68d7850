// What the model says.

const TOP = 5;

function forgetAnswers() {
  Object.assign(state, { calls: [], scores: null, figures: [], expanded: false });
  byId("scores").replaceChildren();
  byId("maps").replaceChildren();
  byId("prediction-empty").hidden = byId("maps-empty").hidden = false;
  byId("raw").hidden = byId("more").hidden = true;
  byId("download-all").disabled = true;
  showCalls();
}

async function predict() {
  const signature = byId("signature").value;
  const outcome = await busy("Predicting", async (signal) => {
    const { call, row } = await ask("prediction", signature, readInputs(), signal);
    forgetAnswers();
    state.calls = [call];
    showPrediction(row);
    showCalls();
  });
  if (outcome === "failed") forgetAnswers();
  if (outcome === "done") byId("status").textContent = predictionText();
  return outcome;
}

// What a screen reader says when the answer is there.
function predictionText() {
  const rows = [...byId("scores").querySelectorAll("[data-value]")];
  const parts = rows.slice(0, 2).map((row) =>
    `${row.querySelector(".name").textContent} ${row.querySelector(".score").textContent}`);
  return parts.length ? `Prediction: ${parts.join(", ")}` : "Predicting: done";
}

function showPrediction(row) {
  byId("prediction-empty").hidden = byId("raw").hidden = true;
  const vectors = Object.entries(row).filter(([, value]) => isVector(value));
  const [name, values] = vectors.find(([each]) => each === "probabilities") ?? vectors[0] ?? [];
  state.scores = values ? { values, probabilities: name === "probabilities" } : null;
  byId("raw").hidden = false;
  byId("raw").open = !values;
  byId("raw-text").textContent = JSON.stringify(row, null, 2);
  fillTargets();
  showScores();
}

const isVector = (value) =>
  [value].flat().length > 0 && [value].flat(Infinity).length === [value].flat().length
  && [value].flat().every((each) => typeof each === "number" || each === null);

const className = (index) => state.card.class_names?.[index] ?? `class ${index}`;

function showScores() {
  if (!state.scores) return;
  const { probabilities } = state.scores, values = [state.scores.values].flat();
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const level = probabilities ? 1 : Math.max(...values.map(Math.abs)) || 1;
  const shown = state.expanded ? order : order.slice(0, TOP);
  byId("scores").replaceChildren(...shown.map((index) =>
    element("li", {}, scoreRow(index, values, level, probabilities))));
  byId("more").hidden = values.length <= TOP;
  byId("more").textContent = state.expanded ? `Top ${TOP} only` : `All ${values.length} classes`;
}

function scoreRow(index, values, level, probabilities) {
  const value = values[index], lone = values.length === 1;
  const name = lone ? state.card.class_names?.[0] ?? "output" : className(index);
  const text = probabilities && value !== null ? `${(100 * value).toFixed(1)} %` : shortNumber(value);
  const bar = element("span", { className: "bar" });
  bar.style.width = `${(100 * Math.max(value, 0)) / level}%`;
  const content = [bar, element("span", { className: "name" }, name),
    element("span", { className: "score", title: String(value) }, text)];
  const explainable = !lone && byId("target").querySelector(`[value="${index}"]`);
  const row = explainable ? element("button", {
    type: "button", ariaLabel: `${name}: ${text}. Explain this class`,
    onclick: () => explainClass(index),
  }, ...content) : element("div", {}, ...content);
  if (explainable) row.setAttribute("aria-pressed", String(byId("target").value === String(index)));
  row.dataset.value = value;
  return row;
}
