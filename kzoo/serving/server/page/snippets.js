// A request as it would be made from a shell or from Python. A request is
// { url, client, body, signature: { inputs, outputs }, picture }.

const INLINE_LETTERS = 4000;

const shellQuoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
const pythonText = (text) => JSON.stringify(text).replaceAll("\u007f", "\\u007f");

// The file that a snippet reads, where the input is too long to be in it: { name, kind }.
function inputFile({ body, picture }) {
  if (JSON.stringify(body).length <= INLINE_LETTERS) return null;
  return usesBytes(body) ? { name: picture.name, kind: "picture" }
    : { name: "request.json", kind: "request" };
}

const usesBytes = ({ inputs }) => Object.values(inputs).some(([row]) => row?.b64 !== undefined);

function curlSnippet(call) {
  const url = shellQuoted(`${call.client.url}:predict`), text = JSON.stringify(call.body);
  const file = inputFile(call);
  if (!file) return `curl ${url} \\\n  -d ${shellQuoted(text)}`;
  if (file.kind === "request") return `curl ${url} -d @${file.name}`;
  const [before, after] = text.split(call.picture.base64);
  return [
    "{",
    `  printf '%s' ${shellQuoted(before)}`,
    `  base64 < ${shellQuoted(file.name)} | tr -d '\\n'`,
    `  printf '%s' ${shellQuoted(after)}`,
    `} | curl ${url} -d @-`,
  ].join("\n");
}

// The inputs as Python: the lines that read them from a file, and { input: expression }.
function pythonInputs(call) {
  const file = inputFile(call), path = file && `pathlib.Path(${pythonText(file.name)})`;
  const entries = Object.entries(call.body.inputs);
  const expressions = (from) => Object.fromEntries(entries.map(([name, value]) => [
    name, from(name, value),
  ]));
  if (file?.kind === "request") {
    return {
      lines: [`document = json.loads(${path}.read_text())`],
      inputs: expressions((name) => `document["inputs"][${pythonText(name)}]`),
    };
  }
  const isPicture = (value) => file && value[0]?.b64 !== undefined;
  return {
    lines: file ? [`picture = ${path}.read_bytes()`] : [],
    inputs: expressions((_, value) => (isPicture(value) ? "[picture]" : pythonValue(value))),
  };
}

function pythonValue(value) {
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return pythonText(value);
  return `base64.b64decode(${pythonText(value.b64)})`;
}

// Python's standard modules that the lines use, as the first lines of a program.
function withImports(lines) {
  const used = ["base64", "json", "pathlib"].filter((module) =>
    lines.some((line) => line.includes(`${module}.`)));
  return [...used.map((module) => `import ${module}`), ...(used.length ? [""] : []), ...lines]
    .join("\n");
}

function pythonSnippet(call) {
  const { lines, inputs } = pythonInputs(call), { client, body } = call;
  const version = client.version === "" ? ""
    : client.isLabel ? `, label=${pythonText(client.version)}` : `, version=${client.version}`;
  return withImports([
    "from kzoo.client import Client",
    "",
    ...lines,
    "inputs = {",
    ...Object.entries(inputs).map(([name, value]) => `    ${pythonText(name)}: ${value},`),
    "}",
    `with Client(${pythonText(client.server)}, model=${pythonText(client.model)}${version}) as client:`,
    `    answer = client.predict(inputs, ${pythonText(body.signature_name)})`,
    "for name, value in answer.items():",
    "    print(name, value)",
  ]);
}

function grpcSnippet(call, address) {
  const { lines, inputs } = pythonInputs(call), { client, body, signature } = call;
  const version = client.version === "" ? []
    : client.isLabel ? [`request.model_spec.version_label = ${pythonText(client.version)}`]
    : [`request.model_spec.version.value = ${client.version}`];
  const tensors = Object.entries(inputs).map(([name, value]) => {
    const { dtype } = signature.inputs[name];
    const tensor = `tf.make_tensor_proto(${value}, tf.${dtype === "float" ? "float32" : dtype})`;
    return `request.inputs[${pythonText(name)}].CopyFrom(${tensor})`;
  });
  return withImports([
    "import grpc",
    "import tensorflow as tf",
    "from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc",
    "",
    ...lines,
    "request = predict_pb2.PredictRequest()",
    `request.model_spec.name = ${pythonText(client.model)}`,
    ...version,
    `request.model_spec.signature_name = ${pythonText(body.signature_name)}`,
    ...tensors,
    `with grpc.insecure_channel(${pythonText(address)}) as channel:`,
    "    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)",
    "    response = stub.Predict(request, timeout=60)",
    "for name, value in response.outputs.items():",
    "    print(name, tf.make_ndarray(value))",
  ]);
}
