// What the page knows, and how it asks.

const byId = (id) => document.getElementById(id);
const hint = JSON.parse(byId("hint").textContent); // what the embedded server says of itself
const NO_CARD = { rescale: [1 / 255, 0] };

const state = {
  client: null, // ModelClient, once its model is known
  served: null, // what metadata() says
  card: NO_CARD, // names of classes and features, if this page's own server serves the model
  picture: null,
  calls: [], // those answered, for the snippets: { title, ...request }
  scores: null, // of all classes, as they came
  figures: [], // { title, answer, draw }
  expanded: false,
  controller: null, // of the requests under way
};

function element(tag, properties = {}, ...content) {
  const { ariaLabel, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  if (ariaLabel) made.setAttribute("aria-label", ariaLabel);
  made.append(...content);
  return made;
}

// Runs work(signal) with the progress shown; returns "done", "failed" (also where it was
// cancelled), or "replaced" if something else was begun meanwhile.
async function busy(text, work) {
  state.controller?.abort();
  const controller = (state.controller = new AbortController());
  const start = performance.now();
  const seconds = () => Math.round((performance.now() - start) / 1000);
  byId("error").textContent = "";
  byId("activity").classList.add("busy");
  byId("status").textContent = `${text} …`;
  try {
    await work(controller.signal);
    if (controller !== state.controller) return "replaced";
    byId("status").textContent = `${text}: done`;
    return "done";
  } catch (problem) {
    if (controller !== state.controller) return "replaced";
    const cancelled = problem.name === "AbortError";
    byId("status").textContent = cancelled ? `${text}: cancelled after ${seconds()} s` : "";
    if (!cancelled) showError(problem);
    return "failed";
  } finally {
    if (controller === state.controller) byId("activity").classList.remove("busy");
  }
}

function showError(problem) {
  byId("error").textContent = problem.message;
}

async function ask(title, signature, inputs, signal) {
  const { client, served, picture } = state, definition = served.signatures[signature];
  const body = { signature_name: signature, inputs };
  const outputs = await client.predict(body, Object.keys(definition.outputs), signal);
  const call = { title, client, body, signature: definition, picture };
  return { call, row: Object.fromEntries(
    Object.entries(outputs).map(([name, value]) => [name, Array.isArray(value) ? value[0] : value])) };
}
