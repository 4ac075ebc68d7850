// One model behind TensorFlow Serving's REST API. The files of this folder are one script.

class ServerError extends Error {}

class ModelClient {
  // `version` is a number, a label, or empty for the version that the server prefers.
  constructor(server, model, version) {
    this.server = server;
    this.model = model;
    this.version = version;
  }

  get isLabel() {
    return this.version !== "" && !/^\d+$/.test(this.version);
  }

  get modelUrl() {
    return `${this.server}/v1/models/${encodeURIComponent(this.model)}`;
  }

  get url() {
    if (this.version === "") return this.modelUrl;
    return `${this.modelUrl}/${this.isLabel ? "labels" : "versions"}/${encodeURIComponent(this.version)}`;
  }

  // The versions that serve, newest first.
  async versions(signal) {
    const { model_version_status: states } = await request(this.modelUrl, { signal });
    return states.filter(({ state }) => state === "AVAILABLE").map(({ version }) => version);
  }

  // { version, signatures: { name: { inputs, outputs } } }
  async metadata(signal) {
    const answer = await request(`${this.url}/metadata`, { signal });
    return {
      version: String(answer.model_spec.version ?? ""),
      signatures: readSignatures(answer.metadata.signature_def.signature_def),
    };
  }

  // { output: value }, batch first; `outputs` are the names in the signature.
  async predict(body, outputs, signal) {
    const answer = await request(`${this.url}:predict`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    // A single output comes without its name.
    return outputs.length === 1 ? { [outputs[0]]: answer.outputs } : answer.outputs;
  }
}

async function request(url, options) {
  let response, text;
  try {
    response = await fetch(url, options);
    text = await response.text();
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new ServerError(
      `No answer from ${url}. Is the server running, and does it let this page ask (CORS)?`);
  }
  let answer;
  try {
    answer = parseJson(text);
  } catch {
    answer = null;
  }
  if (!response.ok) {
    const reason = answer?.error ?? (response.statusText || "the server gave no reason");
    throw new ServerError(`${response.status}: ${reason}`);
  }
  if (answer === null) throw new ServerError(`${url} did not answer with JSON.`);
  return answer;
}

// Servers write NaN and Infinity as they are, which JSON does not know.
function parseJson(text) {
  const words = { NaN: "null", Infinity: "1e999", "-Infinity": "-1e999" };
  const pattern = /"(?:[^"\\]|\\.)*"|-?Infinity|NaN/g;
  return JSON.parse(text.replace(pattern, (found) => words[found] ?? found));
}
