// Light and dark, the events, and the beginning.

const THEMES = ["system", "light", "dark"];

function storedTheme() {
  try {
    return THEMES.includes(localStorage.theme) ? localStorage.theme : "system";
  } catch {
    return "system"; // storage may be forbidden
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  try {
    localStorage.theme = theme;
  } catch {
    // then it holds for this visit
  }
  redraw();
}

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
}

function on(id, type, handle) {
  byId(id).addEventListener(type, handle);
}

const server = () => state.client?.server ?? byId("server").value;

on("model", "change", () => connect(server(), byId("model").value, ""));
on("version", "change", () => connect(server(), byId("model").value, byId("version").value));
on("signature", "change", chooseSignature);
on("connection", "submit", (event) => {
  event.preventDefault();
  connect(byId("server").value, byId("model-name").value.trim(), byId("version-name").value.trim());
});
on("file", "change", ({ target }) => {
  if (target.files.length) takePicture(Picture.read(target.files[0], target.files[0].name));
});
on("json", "input", readJsonIntoForm);
on("features-input", "submit", (event) => event.preventDefault());
on("features-input", "keydown", (event) => {
  if (event.key === "Enter" && event.target.type === "number") predict();
});
on("predict", "click", predict);
on("explain", "click", explain);
on("methods", "change", readyToExplain);
on("target", "change", markTarget);
on("more", "click", () => {
  state.expanded = !state.expanded;
  showScores();
});
on("cancel", "click", () => state.controller?.abort());
on("opacity", "input", redraw);
on("colors", "change", redraw);
on("download-all", "click", downloadAll);
on("call", "change", showCode);
on("tabs", "click", ({ target }) => target.role === "tab" && selectTab(target));
on("tabs", "keydown", moveTab);
on("copy", "click", copyCode);
on("save-input", "click", saveInput);
on("theme", "click", nextTheme);
on("help-button", "click", () => byId("help").showModal());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

const draggedFile = ({ dataTransfer }) => [...dataTransfer.files].find(({ type }) => type.startsWith("image/"));
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault(); // else the browser would leave the page for the file
    byId("drop").classList.toggle("over", type === "dragover");
    const file = type === "drop" && draggedFile(event);
    if (file && !byId("picture-input").hidden) takePicture(Picture.read(file, file.name));
  });
}
document.addEventListener("paste", ({ clipboardData }) => {
  const file = [...clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file && !byId("picture-input").hidden) takePicture(Picture.read(file, file.name || "pasted.png"));
});

function begin() {
  setTheme(storedTheme());
  const words = new URLSearchParams(location.search), names = Object.keys(hint.models);
  const server = words.get("server") ?? ownServer();
  const version = words.get("version") ?? words.get("label") ?? "";
  const model = words.get("model") ?? (isOwn(server) ? names[0] : undefined);
  const known = [...new Set(model ? [...names, model] : names)];
  fill("model", known.map((name) => [name, name]), model);
  if (model && isOwn(server)) return connect(server, model, version);
  // No link may make a page send pictures elsewhere: that takes a press of Connect.
  showChoice(server, model ?? "", version);
  byId("elsewhere").open = true;
}

begin();
