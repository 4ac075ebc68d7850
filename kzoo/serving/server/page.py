"""The page at `/`: one document for people, which asks nothing but the public REST API.

What the API does not say and an export does is put into the page as a hint: the names of the
models, of their classes and features, and the samples in `assets.extra/samples`. Without the hint
the same page works in front of any server of the protocol.
"""

import base64
import hashlib
import importlib.resources
import json
import os
import string

import tensorflow as tf

from kzoo.serving import samples

CARD = os.path.join("assets.extra", "card.json")
SAMPLES = os.path.join("assets.extra", samples.FOLDER)
_SAMPLE_TYPES = {
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".png": "image/png",
}
_MAX_SAMPLES = 12
_MAX_CARD_BYTES = 4 * 2**20
# One script, in the order in which its parts need each other.
_SCRIPTS = (
    "api.js", "signatures.js", "picture.js", "drawing.js", "snippets.js",
    "state.js", "model.js", "input.js", "prediction.js", "explanation.js", "code.js", "page.js",
)  # fmt: skip


class Page:
    """Renders the page for the models that serve at the moment.

    Args:
        manager: `ModelManager`.
        options: `ServerOptions`.
    """

    def __init__(self, manager, options):
        self._manager = manager
        self._grpc_port = options.grpc_port or None
        folder = importlib.resources.files(__package__).joinpath("page")
        style = folder.joinpath("page.css").read_text("utf-8")
        script = "\n".join(folder.joinpath(name).read_text("utf-8") for name in _SCRIPTS)
        document = string.Template(folder.joinpath("index.html").read_text("utf-8"))
        self._template = string.Template(
            document.safe_substitute(style=_plain(style), script=_plain(script))
        )
        self.headers = {
            "cache-control": "no-cache",
            "content-security-policy": _policy(style, script),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    def render(self):
        """Returns the HTML document."""
        models = {
            name: {
                "versions": {version: _card(model.path) for version, model in versions.items()},
                "labels": labels,
            }
            for name, (versions, labels) in self._manager.serving().items()
        }
        hint = {"models": models, "grpc_port": self._grpc_port}
        return self._template.substitute(hint=_json_in_html(hint))


def _plain(text):
    """Text that a second substitution leaves as it is."""
    return text.replace("$", "$$")


def _policy(style, script):
    """Nothing runs but the page's own script; it may ask any server of the protocol."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data: blob:; connect-src 'self' http: https:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def _hash(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _card(path):
    """What the page uses of an export's card and of what lies beside it; empty without them.

    Args:
        path: the version's folder.
    """
    card = _parse(_read(os.path.join(path, CARD), _MAX_CARD_BYTES))
    card = card if isinstance(card, dict) else {}
    preprocessing = card.get("preprocessing")
    known = {
        "class_names": card.get("class_names"),
        "feature_names": card.get("feature_names"),
        "parameters": card.get("parameters"),
        "rescale": preprocessing.get("rescale") if isinstance(preprocessing, dict) else None,
        "samples": _samples(os.path.join(path, SAMPLES)),
    }
    return {key: value for key, value in known.items() if value}


def _samples(folder):
    try:
        names = sorted(filter(_type, tf.io.gfile.listdir(folder)))
    except tf.errors.OpError:
        return []
    found = (_sample(os.path.join(folder, name), name) for name in names[:_MAX_SAMPLES])
    return [sample for sample in found if sample]


def _sample(file, name):
    content, kind = _read(file, samples.MAX_BYTES), _type(name)
    if kind != "application/json":
        return content and {"name": name, "type": kind, "b64": base64.b64encode(content).decode()}
    row = _parse(content)
    return None if row is None else {"name": name, "type": kind, "row": row}


def _type(name):
    return _SAMPLE_TYPES.get(os.path.splitext(name)[1].lower())


def _parse(content):
    """Returns the value of a JSON text; None if it is none."""
    try:
        return json.loads(content, parse_constant=lambda _: None)  # browsers know no NaN
    except ValueError:
        return None


def _read(file, limit):
    """Returns the bytes of a file; none if it is not there or larger than `limit`."""
    try:
        with tf.io.gfile.GFile(file, "rb") as stream:
            content = stream.read(limit + 1)
    except tf.errors.OpError:
        return b""
    return content if len(content) <= limit else b""


def _json_in_html(value):
    """JSON in which nothing can end or begin an element."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
