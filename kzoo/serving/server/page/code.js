// The snippets, and what leaves the page as files.

function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function downloadFigure({ canvas, name }) {
  download(await toBlob(canvas), `${state.client.model}_${name}.png`);
}

async function downloadAll() {
  const drawn = [...byId("maps").children].filter((node) => node.querySelector("canvas"));
  const canvases = drawn.map((node) => node.querySelector("canvas")), gap = 16, head = 40;
  const sheet = element("canvas", {
    width: gap + canvases.reduce((sum, { width }) => sum + width + gap, 0),
    height: head + Math.max(...canvases.map(({ height }) => height)) + gap,
  });
  const context = contextOf(sheet);
  context.fillStyle = colorOf("--card");
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.fillStyle = colorOf("--text");
  context.font = "600 18px system-ui, 'DejaVu Sans', sans-serif";
  let x = gap;
  canvases.forEach((canvas, i) => {
    context.fillText(drawn[i].querySelector("h3").textContent, x, 27, canvas.width);
    context.drawImage(canvas, x, head);
    x += canvas.width + gap;
  });
  download(await toBlob(sheet), `${state.client.model}_explanations.png`);
}

function showCalls() {
  const { calls } = state, before = byId("call").selectedIndex;
  byId("call").disabled = byId("copy").disabled = !calls.length;
  fill("call", calls.length ? calls.map(({ title }, i) => [String(i), title]) : [["", "none yet"]],
    calls.length ? String(Math.min(Math.max(before, 0), calls.length - 1)) : "");
  readyToExplain();
  showCode();
}

const chosenCall = () => state.calls[byId("call").selectedIndex];

function showCode() {
  const call = chosenCall();
  byId("copied").textContent = "";
  const file = call && inputFile(call);
  byId("save-input").hidden = !file;
  byId("save-input").textContent = file ? `Save ${file.name}` : "";
  if (!call) {
    byId("code").textContent = "Ask the model something first.";
    return;
  }
  const snippets = {
    curl: () => curlSnippet(call),
    python: () => pythonSnippet(call),
    grpc: () => grpcSnippet(call, `${new URL(call.client.server).hostname}:${hint.grpc_port ?? 8500}`),
  };
  byId("code").textContent = snippets[byId("tabs").querySelector("[aria-selected=true]").dataset.kind]();
}

function selectTab(tab) {
  for (const each of byId("tabs").children) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
  }
  byId("code-panel").setAttribute("aria-labelledby", tab.id);
  showCode();
}

function moveTab(event) {
  const tabs = [...byId("tabs").children], at = tabs.indexOf(document.activeElement);
  const places = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 };
  if (!(event.key in places)) return;
  event.preventDefault();
  const next = tabs[(places[event.key] + tabs.length) % tabs.length];
  next.focus();
  selectTab(next);
}

// The clipboard's own interface is there in secure contexts only: https and this machine.
async function copyCode() {
  const text = byId("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const range = document.createRange();
    range.selectNodeContents(byId("code"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  byId("copied").textContent = "Copied";
}

function saveInput() {
  const call = chosenCall(), { name, kind } = inputFile(call);
  download(new Blob([kind === "picture" ? call.picture.bytes : JSON.stringify(call.body)]), name);
}
