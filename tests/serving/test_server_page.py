"""The page at `/` in a real browser: what it asks, what it shows, who can use it."""

import base64
import contextlib
import io
import json
import pathlib
import re
import shlex
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kzoo.explain import Saliency
from kzoo.plots import heat_map
from kzoo.serving.export import export
from kzoo.serving.server import ModelServer
from kzoo.serving.server.page import Page

CLASSES = ["circle", "</script><b>square", "star", "line", "cross", "dot", "ring"]
FEATURES = ["length", "width", "height"]
ROWS = {"small": [0.5, -1.0, 2.0], "large": [5.0, 3.0, -4.0]}
CONFIG = """
model_config_list {{
  config {{ name: "shapes" base_path: "{root}/shapes" model_platform: "tensorflow"
    version_labels {{ key: "stable" value: 1 }} }}
  config {{ name: "table" base_path: "{root}/table" model_platform: "tensorflow" }}
  config {{ name: "pair" base_path: "{pair}" model_platform: "tensorflow" }}
  config {{ name: "identity" base_path: "{identity}" model_platform: "tensorflow" }}
  config {{ name: "half" base_path: "{half}" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 2 versions: 7 }} }} }}
}}
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
CONTROLS = {
    "button", "checkbox", "combobox", "image", "img", "link", "progressbar", "slider",
    "spinbutton", "tab", "tablist", "tabpanel", "textbox", "region",
}  # fmt: skip

# Of a custom property, as [red, green, blue].
COLOR = """name => {
  document.body.style.color = `var(${name})`;
  return getComputedStyle(document.body).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory, base_paths):
    root = tmp_path_factory.mktemp("page")
    _export_shapes(root / "shapes")
    _export_table(root / "table")
    file = root / "models.config"
    file.write_text(CONFIG.format(root=root, **base_paths))
    with ModelServer(
        model_config_file=file,
        grpc_port=0,
        rest_port=0,
        rest_api_enable_cors_support=True,
        enable_model_warmup=False,
        allow_version_labels_for_unavailable_models=True,
    ) as server:
        yield server


def _export_shapes(path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(len(CLASSES), "softmax"),
        ]
    )
    return export(model, path, ["saliency", "grad_cam"], class_names=CLASSES, overlays=True)


def _export_table(path):
    inputs = keras.Input([3])
    hidden = keras.layers.Dense(4, "tanh")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, "softmax")(hidden))
    explainers = {"gradient": Saliency(model, absolute=False), "saliency": "saliency"}
    version = export(model, path, explainers, class_names=["no", "yes"])
    card = version / "assets.extra" / "card.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "feature_names": FEATURES}))
    samples = version / "assets.extra" / "samples"
    samples.mkdir()
    for name, row in ROWS.items():
        (samples / f"{name}.json").write_text(json.dumps(row))
    (samples / "huge.json").write_bytes(b" " * 2**20)
    (samples / "broken.json").write_text("{")
    (samples / "notes.txt").write_text("no sample")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tab(browser):
    """A page for all tests: to open one takes longer than most of them."""
    context = browser.new_context()
    context.set_default_timeout(10_000)
    page = context.new_page()
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: _record(page, request))
    return page


@pytest.fixture
def visit(tab, server):
    """visit(query): the page; at the end it must have done no harm."""
    tab.complaints, tab.asked, tab.posted = [], [], []
    tab.expected_errors = 0

    def go(query, expected_errors=0):
        tab.expected_errors = expected_errors
        tab.goto(f"http://127.0.0.1:{server.rest_port}/{query}")
        return tab

    yield go
    own = tuple(f"http://{host}:{server.rest_port}/" for host in ("127.0.0.1", "localhost"))
    assert len(tab.complaints) == tab.expected_errors, tab.complaints
    assert all(url.startswith((*own, "data:", "blob:")) for url in tab.asked), tab.asked
    tab.evaluate("() => localStorage.clear()")
    tab.unroute_all(behavior="ignoreErrors")
    tab.emulate_media(color_scheme="light", reduced_motion="no-preference")
    tab.set_viewport_size({"width": 1280, "height": 900})


def _record(page, request):
    page.asked.append(request.url)
    if request.method == "POST":
        page.posted.append((request.url, request.post_data_json))


@pytest.fixture
def expect():
    return pytest.importorskip("playwright.sync_api").expect


@pytest.fixture
def shapes(visit, expect):
    """The page with the model `shapes`, asked about a file."""
    page = visit("?model=shapes")
    ask_file(page, expect, png(picture()))
    return page


@pytest.fixture
def explained(shapes, expect):
    """... and both methods explained."""
    shapes.get_by_role("button", name="Explain", exact=True).click()
    expect(shapes.locator("#maps canvas")).to_have_count(3)
    expect(shapes.locator("#status")).to_contain_text("2 explanations: done")
    return shapes


def picture(size=(8, 8), seed=3):
    return np.random.default_rng(seed).integers(0, 256, size, "uint8")


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def ask_file(page, expect, content, name="spot.png", kind="image/png"):
    expect(page.locator("#signature")).not_to_have_value("")
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})
    expect(page.locator("#status")).to_contain_text("Prediction:")


def rest(client, model, signature, **inputs):
    """The first row of each output."""
    body = {"signature_name": signature, "inputs": inputs}
    status, answer = client.post(f"{model}:predict", body)
    assert status == 200, answer
    return {name: value[0] for name, value in answer["outputs"].items()}


def rest_image(client, signature, content, **inputs):
    encoded = base64.b64encode(content).decode()
    return rest(client, "shapes", signature, image_bytes=[{"b64": encoded}], **inputs)


def canvas_pixels(page, index):
    """What one of the figures shows, float [height, width, 3] in 0..1."""
    canvas = page.locator("#maps canvas").nth(index)
    url = canvas.evaluate("canvas => canvas.toDataURL('image/png')")
    return decode(base64.b64decode(url.split(",")[1]))


def decode(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) / 255


def cells(pixels):
    """The colours at the centres of 8 x 8 cells."""
    step = len(pixels) // 8
    return pixels[step // 2 :: step, step // 2 :: step]


def set_opacity(page, percent):
    page.locator("#opacity").fill(str(percent))


def shown_scores(page):
    rows = page.locator("#scores [data-value]")
    return [
        (row.locator(".name").inner_text(), float(row.get_attribute("data-value")))
        for row in rows.all()
    ]


# ---------------------------------------------------------------- the route


def test_page_is_at_the_root_alone(client):
    status, headers, text = client.http("GET", "/?model=shapes")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "script-src 'sha256-" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    head = client.http("HEAD", "/")
    assert (head[0], head[2]) == (200, "")
    assert head[1]["Content-Length"] == str(len(text.encode()))
    for method, path in (("POST", "/"), ("GET", "//"), ("GET", "/page.js"), ("PUT", "/")):
        assert client.http(method, path)[0] == 404


def test_hint_tells_what_the_exports_hold(server, client):
    text = client.http("GET", "/")[2]
    hint = json.loads(re.search(r'id="hint">(.*?)</script>', text).group(1))
    assert hint["models"].keys() == {"half", "identity", "pair", "shapes", "table"}
    shapes, table = hint["models"]["shapes"], hint["models"]["table"]
    assert shapes["labels"] == {"stable": 1}
    assert shapes["versions"]["1"]["class_names"] == CLASSES
    assert table["versions"]["1"]["feature_names"] == FEATURES
    samples = table["versions"]["1"]["samples"]
    assert [(each["name"], each["row"]) for each in samples] == [
        ("large.json", ROWS["large"]),
        ("small.json", ROWS["small"]),
    ]
    assert hint["models"]["half"]["versions"] == {"2": {}, "7": {}}


def test_hint_cannot_leave_its_element(server):
    class Manager:
        def serving(self):
            return {"</script><script>alert(1)</script>&amp;": ({}, {"<!--": 1})}

    text = Page(Manager(), server.options).render()
    assert text.count("<script") == 2
    assert "alert(1)</" not in text


# ---------------------------------------------------------------- pictures


def test_prediction_is_that_of_rest(shapes, client, expect):
    expected = rest_image(client, "predict_bytes", png(picture()))["probabilities"]
    shapes.get_by_role("button", name="All 7 classes").click()
    order = np.argsort(expected)[::-1]
    assert shown_scores(shapes) == [(CLASSES[i], pytest.approx(expected[i])) for i in order]
    top = shapes.locator("#scores .score").first
    expect(top).to_have_text(f"{100 * max(expected):.1f} %")
    shapes.get_by_text("All outputs").click()
    raw = json.loads(shapes.locator("#raw-text").inner_text())
    assert raw["probabilities"] == pytest.approx(expected)


def test_drop_and_sample(visit, client, expect):
    page, content = visit("?model=shapes"), png(picture(seed=9))
    expect(page.locator("#drop")).to_be_visible()
    transfer = page.evaluate_handle(
        """bytes => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "spot.png", { type: "image/png" }));
          return transfer;
        }""",
        list(content),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.locator("#status")).to_contain_text("Prediction:")
    expect(page.locator("#drop-text")).to_have_text("spot.png, 8 × 8")
    sent = page.posted[-1][1]
    assert base64.b64decode(sent["inputs"]["image_bytes"][0]["b64"]) == content
    assert shown_scores(page)[0][1] == pytest.approx(
        max(rest_image(client, "predict_bytes", content)["probabilities"])
    )
    page.get_by_role("button", name="Sample three").click()
    expect(page.locator("#drop-text")).to_have_text("three.png, 96 × 96")


def test_turned_photo_is_sent_upright(visit, expect):
    page, stream = visit("?model=shapes"), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(picture((16, 32))).save(stream, "jpeg", exif=exif)
    ask_file(page, expect, stream.getvalue(), "photo.jpg", "image/jpeg")
    sent = page.posted[-1][1]["inputs"]["image_bytes"][0]["b64"]
    assert decode(base64.b64decode(sent)).shape == (32, 16, 3)


def test_pixels_are_resized_as_the_exports_do(visit, expect):
    page, large = visit("?model=shapes"), picture((21, 13))
    expect(page.locator("#signature")).not_to_have_value("")
    page.select_option("#signature", "serving_default")
    ask_file(page, expect, png(large))
    sent = np.array(page.posted[-1][1]["inputs"]["inputs"])
    resized = tf.image.resize(large[None, ..., None].astype("float32"), [8, 8], antialias=True)
    np.testing.assert_allclose(sent, resized / 255, atol=1e-5)
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator("#maps canvas")).to_have_count(3)
    bodies = {body["signature_name"]: body for _, body in page.posted[-2:]}
    assert bodies.keys() == {"explain_grad_cam", "explain_saliency"}
    np.testing.assert_array_equal(bodies["explain_saliency"]["inputs"]["inputs"], sent)


# ---------------------------------------------------------------- explanations


def test_maps_have_the_colours_of_plots(explained, client):
    set_opacity(explained, 100)
    for index, method in enumerate(("grad_cam", "saliency"), 1):
        answer = rest_image(client, f"explain_{method}_png", png(picture()), target=[-1])
        for mode, signed in (("auto", None), ("signed", True)):
            explained.select_option("#colors", mode)
            expected = heat_map(answer["attributions"], signed=signed)
            np.testing.assert_allclose(
                cells(canvas_pixels(explained, index)), expected, atol=8 / 255
            )


def test_opacity_mixes_picture_and_map(explained):
    grey = np.repeat(picture()[..., None] / 255, 3, -1)
    np.testing.assert_allclose(cells(canvas_pixels(explained, 0)), grey, atol=1 / 255)
    set_opacity(explained, 0)
    np.testing.assert_allclose(cells(canvas_pixels(explained, 2)), grey, atol=1 / 255)
    set_opacity(explained, 100)
    colors = cells(canvas_pixels(explained, 2))
    explained.locator("#opacity").press("ArrowLeft")
    assert explained.locator("#opacity-value").inner_text() == "99 %"
    set_opacity(explained, 30)
    mixed = cells(canvas_pixels(explained, 2))
    np.testing.assert_allclose(mixed, 0.7 * grey + 0.3 * colors, atol=2 / 255)


def test_class_of_the_prediction_is_explained(explained, client, expect):
    row = explained.get_by_role("button", name="Explain this class").nth(2)
    name = row.locator(".name").inner_text()
    row.click()
    expect(explained.locator("figcaption").last).to_contain_text(name)
    target = CLASSES.index(name)
    posted = {body["signature_name"]: body for _, body in explained.posted[-2:]}
    assert posted.keys() == {"explain_grad_cam_png", "explain_saliency_png"}
    assert all(body["inputs"]["target"] == [target] for body in posted.values())
    answer = rest_image(client, "explain_saliency_png", png(picture()), target=[target])
    caption = explained.locator("figcaption").last.inner_text().replace("−", "-")
    assert float(caption.removeprefix(f"{name} · score ")) == pytest.approx(
        answer["score"], rel=0.01
    )
    expect(row).to_have_attribute("aria-pressed", "true")


def test_downloads_are_png(explained):
    with explained.expect_download() as download:
        explained.get_by_role("button", name="Download Saliency as PNG").click()
    assert download.value.suggested_filename == "shapes_saliency.png"
    saved = pathlib.Path(download.value.path()).read_bytes()
    np.testing.assert_array_equal(decode(saved), canvas_pixels(explained, 2))
    with explained.expect_download() as download:
        explained.get_by_role("button", name="Download all").click()
    sheet = decode(pathlib.Path(download.value.path()).read_bytes())
    assert sheet.shape[1] == 3 * 448 + 4 * 16


# ---------------------------------------------------------------- snippets


def snippet(page, call, language):
    page.select_option("#call", label=call)
    page.get_by_role("tab", name=language).click()
    return page.locator("#code").inner_text()


def run_python(code):
    """What a program prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    return printed.getvalue()


def numbers(text):
    return [float(each) for each in re.findall(r"-?\d+\.\d*(?:e[-+]\d+)?", text)]


def test_snippets_ask_the_same(explained, client, server):
    posted = {body["signature_name"]: (url, body) for url, body in explained.posted}
    calls = {"prediction": "predict_bytes", "Saliency": "explain_saliency_png"}
    for call, signature in calls.items():
        command = shlex.split(snippet(explained, call, "curl").replace("\\\n", ""))
        url, body = posted[signature]
        assert command[:2] == ["curl", url]
        assert (command[2], json.loads(command[3])) == ("-d", body)
    expected = rest_image(client, "explain_saliency_png", png(picture()), target=[-1])
    wanted = [*np.ravel(expected["attributions"]), *expected["probabilities"]]
    printed = numbers(run_python(snippet(explained, "Saliency", "Python")))
    assert np.isin(np.round(wanted, 4), np.round(printed, 4)).all()
    code = snippet(explained, "Saliency", "gRPC")
    assert '"127.0.0.1:8500"' in code  # REST does not tell the port
    printed = numbers(run_python(code.replace(":8500", f":{server.grpc_port}")))
    assert np.isin(np.round(wanted, 4), np.round(printed, 4)).all()


def test_snippets_of_large_pictures_read_a_file(visit, expect, client, tmp_path, monkeypatch):
    page, content = visit("?model=shapes"), png(picture((70, 70)))
    ask_file(page, expect, content, "it's large.png")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save it's large.png").click()
    download.value.save_as(tmp_path / "it's large.png")
    assert (tmp_path / "it's large.png").read_bytes() == content
    script = "curl() { cat; }\n" + snippet(page, "prediction", "curl")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(done.stdout) == page.posted[-1][1]
    monkeypatch.chdir(tmp_path)
    printed = numbers(run_python(snippet(page, "prediction", "Python")))
    expected = rest_image(client, "predict_bytes", content)["probabilities"]
    assert np.isin(np.round(expected, 4), np.round(printed, 4)).all()


def test_snippets_of_long_rows_read_the_request(visit, expect, tmp_path, monkeypatch):
    page, row = visit("?model=identity"), list(range(2000))
    expect(page.locator("#summary")).to_contain_text("identity")
    page.select_option("#signature", "int64")
    page.get_by_label("One row of x").fill(json.dumps(row))
    page.get_by_role("button", name="Predict").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save request.json").click()
    download.value.save_as(tmp_path / "request.json")
    assert json.loads((tmp_path / "request.json").read_text()) == page.posted[-1][1]
    assert snippet(page, "prediction", "curl") == f"curl '{page.posted[-1][0]}' -d @request.json"
    monkeypatch.chdir(tmp_path)
    check = "\nprint(answer['y'].tolist() == [list(range(2000))])"
    assert run_python(snippet(page, "prediction", "Python") + check).endswith("True\n")


def test_copy_fills_the_clipboard(shapes, expect):
    shapes.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shapes.get_by_role("button", name="Copy").click()
    expect(shapes.locator("#copied")).to_have_text("Copied")
    copied = shapes.evaluate("() => navigator.clipboard.readText()")
    assert copied == shapes.locator("#code").inner_text()


# ---------------------------------------------------------------- numbers and JSON


def test_table_form(visit, client, expect):
    page = visit("?model=table")
    page.get_by_role("button", name="large").click()
    expect(page.locator("#status")).to_contain_text("Prediction:")
    assert [page.get_by_label(name, exact=True).input_value() for name in FEATURES] == [
        "5", "3", "-4",
    ]  # fmt: skip
    page.get_by_label("width", exact=True).fill("1.25")
    page.get_by_label("width", exact=True).press("Enter")
    row = [5.0, 1.25, -4.0]
    expected = rest(client, "table", "serving_default", inputs=[row])["probabilities"]
    expect(page.locator("#scores .score").first).to_have_text(f"{100 * max(expected):.1f} %")
    assert page.posted[-1][1]["inputs"] == {"inputs": [row]}
    assert [score for _, score in shown_scores(page)] == pytest.approx(sorted(expected)[::-1])

    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator("#maps canvas")).to_have_count(2)
    answer = rest(client, "table", "explain_gradient", inputs=[row], target=[-1])["attributions"]
    lines = page.locator("#maps table").first.locator("tbody tr").all_inner_texts()
    shown = {name: float(value.replace("−", "-")) for name, value in map(str.split, lines)}
    assert shown == pytest.approx(dict(zip(FEATURES, answer, strict=True)), rel=0.01)
    assert list(shown) == sorted(shown, key=lambda name: -abs(shown[name]))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download Saliency as PNG").click()
    assert decode(pathlib.Path(download.value.path()).read_bytes()).shape[1] == 560


def test_explanation_of_a_changed_form_predicts_again(visit, client, expect):
    page = visit("?model=table")
    page.get_by_label("length", exact=True).fill("2")
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator("#maps canvas")).to_have_count(2)
    expected = rest(client, "table", "serving_default", inputs=[[2, 0, 0]])["probabilities"]
    assert shown_scores(page)[0][1] == pytest.approx(max(expected))
    page.get_by_label("length", exact=True).fill("")
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator("#error")).to_have_text("Every feature needs a number.")


def test_json_and_form_follow_each_other(visit, expect):
    page = visit("?model=table")
    page.get_by_label("height", exact=True).fill("7")
    page.get_by_text("As JSON", exact=True).click()
    text = page.get_by_label("One row of inputs")
    assert json.loads(text.input_value()) == [0, 0, 7]
    text.fill('{"height": 1, "width": 2, "length": 3.5}')
    assert page.get_by_label("length", exact=True).input_value() == "3.5"
    text.fill("[1, 2")
    expect(page.locator("#json-note")).to_contain_text("This is no JSON")
    text.fill("[1, 2]")
    expect(page.locator("#json-note")).to_have_text("There is no number for height.")


def test_other_models(visit, expect):
    page = visit("?model=pair")
    expect(page.locator("#signature")).to_have_value("serving_default")
    for name, value in {"a 1": "1.5", "a 2": "2", "b": "3"}.items():
        page.get_by_label(name, exact=True).fill(value)
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#status")).to_contain_text("Prediction:")
    shown = json.loads(page.locator("#raw-text").text_content())
    assert shown == {"sum": [4.5, 5.0], "double": 6, "first": 3}
    page.select_option("#model", "identity")
    expect(page.locator("#summary")).to_contain_text("identity")
    page.select_option("#signature", "int64")
    page.get_by_label("One row of x").fill("[[1, 2]]")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#raw-text")).to_contain_text('"y"')
    assert json.loads(page.locator("#raw-text").text_content()) == {"y": [[1, 2]]}


def test_signature_without_inputs(visit, expect):
    page = visit("?model=half&version=2", expected_errors=1)
    expect(page.locator("#signature")).to_have_value("serving_default")
    page.select_option("#signature", "total")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#error")).to_have_text("400: Failed to get input map for signature: total")


# ---------------------------------------------------------------- servers, versions and errors


def test_version_and_label(visit, expect):
    page = visit("?model=half")
    expect(page.locator("#summary")).to_contain_text("version 7")
    page.select_option("#version", "2")
    expect(page.locator("#summary")).to_contain_text("version 2")
    assert page.url.endswith("?model=half&version=2")
    page.select_option("#model", "shapes")
    expect(page.locator("#summary")).to_contain_text("shapes · version 1")
    page.select_option("#version", "stable")
    ask_file(page, expect, png(picture()))
    assert page.posted[-1][0].endswith("/v1/models/shapes/labels/stable:predict")
    assert 'label="stable"' in snippet(page, "prediction", "Python")


def test_server_of_another_origin(visit, server, client, expect):
    page = visit("?model=table")
    expect(page.locator("#summary")).to_contain_text("table")
    page.locator("#elsewhere summary").click()
    page.get_by_label("Server address").fill(f"localhost:{server.rest_port}")
    page.get_by_label("Model name").fill("shapes")
    page.get_by_role("button", name="Connect").click()
    expect(page.locator("#summary")).to_contain_text("shapes")
    ask_file(page, expect, png(picture()))
    assert page.posted[-1][0].startswith(f"http://localhost:{server.rest_port}/v1/models/shapes")
    expected = rest_image(client, "predict_bytes", png(picture()))["probabilities"]
    assert shown_scores(page)[0][0] == f"class {int(np.argmax(expected))}"


def test_no_link_connects_elsewhere(visit, server, expect):
    address = f"http://localhost:{server.rest_port}"
    page = visit(f"?model=shapes&server={address}")
    connect = page.get_by_role("button", name="Connect")
    expect(connect).to_be_visible()
    assert not [url for url in page.asked if url.startswith(address)]
    connect.click()
    expect(page.locator("#summary")).to_contain_text(f"shapes · version 1 · at {address}")


def test_errors_are_shown_in_words(visit, expect):
    page = visit("?model=nobody", expected_errors=3)  # the browser's own lines of what failed
    alert = page.locator("[role=alert]")
    expect(alert).to_have_text("404: Servable not found for request: Latest(nobody)")
    page.select_option("#model", "shapes")
    expect(page.locator("#summary")).to_contain_text("shapes")
    expect(alert).to_have_text("")
    ask_file(page, expect, png(picture()))
    broken = {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.set_input_files("#file", broken)
    expect(alert).to_contain_text("not a picture")
    refusal = {"status": 503, "json": {"error": "Too many concurrent requests"}}
    page.route("**/*:predict", lambda route: route.fulfill(**refusal))
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator(".stage .failed")).to_have_text(["503: Too many concurrent requests"] * 2)
    expect(alert).to_have_text("503: Too many concurrent requests")
    page.expected_errors += 1
    page.unroute("**/*:predict")
    page.route("**/*:predict", lambda route: route.abort())
    page.get_by_role("button", name="Predict").click()
    expect(alert).to_contain_text("No answer from")
    expect(page.locator("#scores li")).to_have_count(0)


def test_request_can_be_cancelled(shapes, expect):
    shapes.route("**/*:predict", lambda route: None)
    cancel = shapes.get_by_role("button", name="Cancel")
    expect(cancel).to_be_hidden()
    with shapes.expect_request("**/*:predict"):
        shapes.get_by_role("button", name="Predict").click()
    expect(shapes.get_by_role("progressbar")).to_be_visible()
    cancel.click()
    expect(shapes.locator("#status")).to_contain_text("Predicting: cancelled")
    expect(cancel).to_be_hidden()


def test_numbers_that_json_does_not_know(visit, expect):
    page = visit("?model=table")
    body = '{"outputs": {"probabilities": [[NaN, 0.5]], "logits": [[-Infinity, Infinity]]}}'
    page.route("**/*:predict", lambda route: route.fulfill(body=body))
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#scores .score").first).to_have_text("50.0 %")
    expect(page.locator("#scores .score").last).to_have_text("NaN")


# ---------------------------------------------------------------- for everybody


def tab_to(page, selector):
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not lead to {selector}")


def test_keyboard_alone(visit, expect):
    page = visit("?model=shapes")
    expect(page.locator("#summary")).to_contain_text("shapes")
    page.keyboard.press("Tab")
    assert page.locator(".skip:focus").count() == 1
    tab_to(page, "#help-button")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    tab_to(page, ".sample")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Prediction:")
    tab_to(page, "#method-list input")
    page.keyboard.press("Space")
    tab_to(page, "#explain")
    page.keyboard.press("Enter")
    expect(page.locator("#maps canvas")).to_have_count(2)
    tab_to(page, "#scores button")
    page.keyboard.press("Enter")
    expect(page.locator("#scores button").first).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#scores button").first).to_be_focused()
    tab_to(page, "#opacity")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#opacity-value")).to_have_text("61 %")
    tab_to(page, "#tab-curl")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Python")).to_have_attribute("aria-selected", "true")
    assert "kzoo.client" in page.locator("#code").inner_text()
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_every_control_has_a_name(explained):
    explained.locator("#elsewhere summary").click()
    session = explained.context.new_cdp_session(explained)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in CONTROLS
    ]
    assert {"button", "checkbox", "combobox", "slider", "tab"} <= {role for role, _ in named}
    assert [each for each in named if not each[1]] == []
    buttons = [name for role, name in named if role == "button"]
    assert len(buttons) == len(set(buttons)), buttons
    images = [name for role, name in named if role in ("image", "img")]
    assert any(re.match("Saliency of .*; strongest at the", name) for name in images)
    identifiers = explained.evaluate(
        "() => [...document.querySelectorAll('[id]')].map(({ id }) => id)"
    )
    assert len(identifiers) == len(set(identifiers))


def test_contrast(visit):
    page = visit("?model=table")
    pairs = {
        "--text": ("--card", "--well", "--bar"),
        "--quiet": ("--page", "--card", "--well"),
        "--accent": ("--card",),
        "--on-accent": ("--accent",),
        "--error": ("--card", "--error-well"),
    }
    names = sorted({*pairs, *(ground for grounds in pairs.values() for ground in grounds)})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        shown = page.evaluate(f"names => names.map({COLOR})", names)
        levels = {name: luminance(rgb) for name, rgb in zip(names, shown, strict=True)}
        for text, grounds in pairs.items():
            for ground in grounds:
                dark, light = sorted((levels[text], levels[ground]))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, text, ground)


def luminance(rgb):
    """As WCAG 2 defines it."""
    x = np.divide(rgb, 255)
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_light_and_dark(visit, expect):
    page = visit("?model=table")
    page.emulate_media(color_scheme="dark")
    dark, light = "rgb(16, 18, 24)", "rgb(244, 245, 248)"
    expect(page.locator("body")).to_have_css("background-color", dark)
    toggle = page.get_by_role("button", name="Theme")
    toggle.click()
    expect(page.locator("body")).to_have_css("background-color", light)
    page.reload()
    expect(page.locator("body")).to_have_css("background-color", light)
    toggle.click()
    expect(page.locator("body")).to_have_css("background-color", dark)
    page.emulate_media(color_scheme="light")
    expect(page.locator("body")).to_have_css("background-color", dark)
    toggle.click()
    expect(page.locator("body")).to_have_css("background-color", light)


def test_narrow_screen(visit, expect):
    page = visit("?model=shapes")
    page.emulate_media(reduced_motion="reduce")
    page.set_viewport_size({"width": 400, "height": 800})
    ask_file(page, expect, png(picture((70, 70))))
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator("#maps canvas")).to_have_count(3)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 400
    expect(page.locator("#scores .bar").first).to_have_css("transition-duration", "0s")


def test_answers_move_nothing(visit, expect):
    page = visit("?model=shapes")
    expect(page.locator("#summary")).to_contain_text("shapes")

    def places():
        return page.locator("main h2").evaluate_all(
            "headings => headings.map((each) => each.getBoundingClientRect().y + scrollY)"
        )

    before = places()
    page.route("**/*:predict", lambda route: None)
    page.get_by_role("button", name="Sample three").click()
    expect(page.get_by_role("progressbar")).to_be_visible()
    assert places() == before
    page.unroute("**/*:predict")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#scores li")).to_have_count(5)
    assert places() == before
