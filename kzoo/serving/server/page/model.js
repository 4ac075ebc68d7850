// Which model is asked.

const ownServer = () => (location.protocol.startsWith("http") ? location.origin : "http://localhost:8501");
const isOwn = (server) => server === ownServer();

function serverAddress(text) {
  const address = text.includes("://") ? text : `http://${text}`;
  const url = URL.canParse(address) ? new URL(address) : null;
  if (!/^https?:$/.test(url?.protocol)) {
    throw new ServerError(`The server address must be like http://host:8501, not ${text}`);
  }
  return url.origin + url.pathname.replace(/\/+$/, "");
}

async function connect(server, model, version) {
  forgetModel();
  showChoice(server, model, version);
  let client, versions, served;
  const outcome = await busy(`Asking for ${model}`, async (signal) => {
    client = new ModelClient(serverAddress(server), model, version);
    served = await client.metadata(signal);
    versions = await client.versions(signal);
  });
  if (outcome !== "done") return;
  const known = isOwn(client.server) && Object.hasOwn(hint.models, model) ? hint.models[model] : null;
  const card = { ...NO_CARD, ...known?.versions[served.version] };
  Object.assign(state, { client, served, card });
  showModel(versions, Object.keys(known?.labels ?? {}));
  rememberInAddress();
}

function showChoice(server, model, version) {
  byId("server").value = server;
  byId("model-name").value = model;
  byId("version-name").value = version;
}

function forgetModel() {
  Object.assign(state, { client: null, served: null, card: NO_CARD });
  byId("signature").replaceChildren();
  for (const id of ["picture-input", "features-input", "json-input", "methods", "target-label"]) {
    byId(id).hidden = true;
  }
  byId("input-empty").hidden = byId("methods-empty").hidden = false;
  byId("predict").disabled = byId("explain").disabled = true;
  byId("summary").textContent = "No model yet";
  forgetAnswers();
}

function showModel(versions, labels) {
  const { client, served } = state;
  const names = Object.keys(served.signatures).filter((name) => !isMethod(name));
  const methods = Object.keys(served.signatures).filter(
    (name) => isMethod(name) && !name.endsWith("_png"));
  const parts = [client.model, `version ${served.version}`];
  if (!isOwn(client.server)) parts.push(`at ${client.server}`);
  if (state.card.parameters) parts.push(`${state.card.parameters.toLocaleString("en")} parameters`);
  parts.push(`${methods.length} explanation method${methods.length === 1 ? "" : "s"}`);
  byId("summary").textContent = parts.join(" · ");
  const models = isOwn(client.server) ? Object.keys(hint.models) : [];
  fill("model", [...new Set([...models, client.model])].map((name) => [name, name]), client.model);
  const wanted = labels.map((label) => [label, label]);
  if (client.isLabel && !labels.includes(client.version)) wanted.push([client.version, client.version]);
  fill("version", [["", "Latest"], ...versions.map((each) => [each, each]), ...wanted], client.version);
  if (!names.length) return showError(new ServerError(`${client.model} has no signature to predict.`));
  const first = names.includes("predict_bytes") ? "predict_bytes" : "serving_default";
  fill("signature", names.map((name) => [name, name]), names.includes(first) ? first : names[0]);
  chooseSignature();
}

function fill(id, options, value) {
  byId(id).replaceChildren(...options.map(([key, text]) => element("option", { value: key }, text)));
  byId(id).value = value;
}

function rememberInAddress() {
  if (!location.protocol.startsWith("http")) return;
  const { client } = state, words = new URLSearchParams({ model: client.model });
  if (client.version) words.set("version", client.version);
  if (!isOwn(client.server)) words.set("server", client.server);
  history.replaceState(null, "", `?${words}`);
}
