// What a model can be asked, from its signatures.

const MAX_FEATURES = 64;
const NUMBERS = /^(half|bfloat16|float|double|u?int(8|16|32|64))$/;
const INTEGERS = /^u?int/;
const ACRONYMS = new Set(["cam", "ig", "lime", "lrp", "rise", "shap"]);

function readSignatures(definitions) {
  const callable = Object.entries(definitions).filter(([name]) => !name.startsWith("__"));
  return Object.fromEntries(callable.sort().map(([name, { inputs, outputs }]) => [
    name, { inputs: readTensors(inputs), outputs: readTensors(outputs) },
  ]));
}

function readTensors(infos) {
  return Object.fromEntries(Object.entries(infos ?? {}).sort().map(([name, info]) => {
    const shape = info.tensor_shape ?? {};
    const sizes = shape.unknown_rank ? null : (shape.dim ?? []).map(({ size }) => Number(size));
    return [name, { dtype: info.dtype.replace(/^DT_/, "").toLowerCase(), shape: sizes }];
  }));
}

const isMethod = (name) => name.startsWith("explain_");
const isNumeric = ({ dtype, shape }) => NUMBERS.test(dtype) && shape?.[0] === -1;
const isBytes = (name, { dtype, shape }) =>
  dtype === "string" && name.endsWith("_bytes") && shape?.length === 1;

// What a person gives for these inputs: the bytes of a picture, its pixels, numbers, or JSON.
function inputKind(inputs) {
  const entries = Object.entries(inputs);
  if (entries.length === 1) {
    const [[name, info]] = entries;
    if (isBytes(name, info)) return "bytes";
    const [height, width, channels] = info.shape?.slice(1) ?? [];
    const isImage = info.shape?.length === 4 && height > 0 && width > 0;
    if (isNumeric(info) && isImage && [1, 3].includes(channels)) return "pixels";
  }
  const fields = entries.every(([, info]) => isNumeric(info) && info.shape.length <= 2)
    ? featureFields(inputs) : [];
  return fields.length > 0 && fields.length <= MAX_FEATURES ? "features" : "json";
}

// [{ input, index, name, integer }]; the index is null where an input is one number.
function featureFields(inputs, names) {
  const fields = [];
  for (const [input, { dtype, shape }] of Object.entries(inputs)) {
    const integer = INTEGERS.test(dtype);
    if (shape.length === 1) fields.push({ input, index: null, name: input, integer });
    const width = Math.min(shape[1] ?? 0, MAX_FEATURES + 1);
    if (width < 0) return [];
    const prefix = Object.keys(inputs).length === 1 ? "x" : `${input} `;
    for (let index = 0; index < width; index++) {
      fields.push({ input, index, name: `${prefix}${index + 1}`, integer });
    }
  }
  if (names?.length === fields.length) fields.forEach((field, i) => (field.name = names[i]));
  return fields;
}

// The methods that can be asked with an input of `kind`: [{ name, signature, kind, missing }].
function methodsFor(signatures, kind, inputs) {
  return Object.keys(signatures)
    .filter((name) => isMethod(name) && !name.endsWith("_png"))
    .map((signature) => {
      const name = signature.slice("explain_".length);
      if (kind === "bytes" && signatures[`${signature}_png`]) signature += "_png";
      const own = givenInputs(signatures[signature].inputs);
      const given = inputKind(own);
      const pictures = ["bytes", "pixels"];
      const fits = pictures.includes(kind) ? pictures.includes(given)
        : Object.keys(own).every((input) => input in inputs);
      return { name, signature, kind: given, usable: fits };
    });
}

// What an explanation takes besides the model's inputs are integers of one row, which may be left
// to it as -1: the target, the number of steps.
const isChoice = (name, { dtype, shape }) =>
  name === "target" || (name === "steps" && INTEGERS.test(dtype) && shape?.length === 1);

function givenInputs(inputs) {
  return Object.fromEntries(Object.entries(inputs).filter((entry) => !isChoice(...entry)));
}

function choices(inputs, target) {
  const names = Object.entries(inputs).filter((entry) => isChoice(...entry)).map(([name]) => name);
  return Object.fromEntries(names.map((name) => [name, [name === "target" ? target : -1]]));
}

function methodTitle(name) {
  const capital = (word) => (ACRONYMS.has(word) ? word : word.slice(0, 1)).toUpperCase();
  return name.split("_").map((word) => capital(word) + word.slice(capital(word).length)).join(" ");
}
