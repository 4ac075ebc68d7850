// What the model is asked with: a picture, a form, or JSON.

const signatureInputs = () => state.served.signatures[byId("signature").value].inputs;
const kind = () => inputKind(signatureInputs());
const takesPicture = () => ["bytes", "pixels"].includes(kind());

function chooseSignature() {
  forgetAnswers();
  const inputs = signatureInputs(), features = kind() === "features";
  byId("input-empty").hidden = true;
  byId("picture-input").hidden = !takesPicture();
  byId("features-input").hidden = !features;
  byId("json-input").hidden = takesPicture();
  byId("json-details").open = kind() === "json";
  byId("features").replaceChildren(...(features ? fields().map(featureField) : []));
  if (!takesPicture()) writeJson(exampleRow(inputs));
  showSamples();
  byId("predict").disabled = takesPicture() && !state.picture;
  showMethods();
  if (takesPicture() && state.picture) predict();
}

const fields = () => featureFields(signatureInputs(), state.card.feature_names);

function featureField({ name, integer }) {
  const input = element("input", { type: "number", step: integer ? "1" : "any", value: "0", required: true });
  input.addEventListener("input", () => writeJson(rowOfForm()));
  return element("label", {}, element("span", { title: name }, name), input);
}

const formInputs = () => [...byId("features").querySelectorAll("input")];

const rowOfForm = () => rowOf(formInputs().map((input) => input.valueAsNumber));

// { input: value } of the numbers in the order of the fields.
function rowOf(values) {
  const row = {};
  fields().forEach(({ input, index }, i) => {
    if (index === null) row[input] = values[i];
    else (row[input] ??= [])[index] = values[i];
  });
  return row;
}

function exampleRow(inputs) {
  const zeros = ([size, ...rest]) =>
    size === undefined ? 0 : Array.from({ length: Math.max(size, 1) }, () => zeros(rest));
  return Object.fromEntries(Object.entries(inputs).map(([name, { dtype, shape }]) => [
    name, dtype === "string" ? "" : dtype === "bool" ? false : zeros((shape ?? []).slice(1)),
  ]));
}

// A lone input goes without its name.
function writeJson(row) {
  const names = Object.keys(row);
  byId("json").value = JSON.stringify(names.length === 1 ? row[names[0]] : row);
  byId("json-label").textContent = names.length === 1
    ? `One row of ${names[0]}` : `One row with ${names.join(", ") || "no inputs"}`;
  byId("json-note").textContent = "";
}

// { input: value } from the text; with { feature: value } a form can be filled by name, too.
function readJson() {
  const names = Object.keys(signatureInputs());
  let row;
  try {
    row = JSON.parse(byId("json").value);
  } catch (problem) {
    throw new ServerError(`This is no JSON: ${problem.message}`);
  }
  const isRow = row !== null && typeof row === "object" && !Array.isArray(row);
  if (isRow && kind() === "features" && fields().every(({ name }) => name in row)) {
    return rowOf(fields().map(({ name }) => row[name]));
  }
  if (isRow && names.every((name) => name in row)) return row;
  if (names.length > 1) throw new ServerError(`The row must be an object with ${names.join(", ")}.`);
  return { [names[0]]: row };
}

function readJsonIntoForm() {
  try {
    const row = readJson();
    if (kind() === "features") fillForm(row);
    byId("json-note").textContent = "";
  } catch (problem) {
    byId("json-note").textContent = problem.message;
  }
}

function fillForm(row) {
  const inputs = formInputs();
  fields().forEach(({ input, index, name }, i) => {
    const value = index === null ? row[input] : row[input]?.[index];
    if (typeof value !== "number") throw new ServerError(`There is no number for ${name}.`);
    inputs[i].value = String(value);
  });
}

async function takePicture(reading) {
  try {
    state.picture = await reading;
  } catch {
    return showError(new ServerError("This file is not a picture that the browser can read."));
  }
  drawPicture(byId("preview"), state.picture.bitmap);
  byId("preview").hidden = false;
  byId("preview").setAttribute("aria-label", `The picture: ${state.picture.name}`);
  byId("drop-text").textContent =
    `${state.picture.name}, ${state.picture.bitmap.width} × ${state.picture.bitmap.height}`;
  byId("predict").disabled = false;
  await predict();
}

function showSamples() {
  const samples = state.card.samples ?? [];
  const pictures = samples.filter(({ type }) => type.startsWith("image/"));
  const rows = samples.filter(({ type }) => type === "application/json");
  const channels = Math.max(...Object.values(state.served.signatures).map(({ inputs }) =>
    Object.values(inputs)[0]?.shape?.[3] ?? 0));
  const drawn = channels === 1 ? ["three", "seven"] : ["shapes", "three"];
  byId("samples").replaceChildren(...(!takesPicture() ? [] : pictures.length
    ? pictures.map((sample) => pictureSample(sampleName(sample), () => embeddedSample(sample)))
    : drawn.map((name) => pictureSample(name, () => drawnSample(name)))));
  byId("samples-rows").replaceChildren(...(kind() !== "features" ? [] : rows.map((sample) =>
    element("button", { type: "button", onclick: () => takeRow(sample.row) }, sampleName(sample)))));
}

const sampleName = ({ name }) => name.replace(/\.\w+$/, "");

function pictureSample(name, make) {
  const canvas = element("canvas", { width: 52, height: 52 });
  canvas.setAttribute("aria-hidden", "true");
  make().then(({ bitmap }) => drawPicture(canvas, bitmap), () => canvas.remove());
  return element("button", {
    type: "button", className: "sample", ariaLabel: `Sample ${name}`, onclick: () => takePicture(make()),
  }, canvas, element("span", {}, name));
}

function takeRow(row) {
  byId("json").value = JSON.stringify(row);
  readJsonIntoForm();
  predict();
}

// The request's inputs, a batch of one; `to` may take the picture in another form.
function readInputs(to = signatureInputs()) {
  const given = givenInputs(to), [[name, info] = []] = Object.entries(given);
  if (inputKind(given) === "bytes") return { [name]: [{ b64: state.picture.base64 }] };
  if (inputKind(given) === "pixels") return { [name]: [state.picture.pixels(info, state.card.rescale)] };
  if (kind() === "features" && formInputs().some((input) => !input.checkValidity())) {
    formInputs().find((input) => !input.reportValidity());
    throw new ServerError("Every feature needs a number.");
  }
  const row = kind() === "features" ? rowOfForm() : readJson();
  return Object.fromEntries(Object.keys(given).map((each) => [each, [row[each]]]));
}
