"""An export in this process, with the interface of `kzoo.client.Client`."""

import pathlib

import numpy as np
import tensorflow as tf

from kzoo.client import Signature, TensorInfo
from kzoo.serving.card import read_card

_PREFIX, _IMAGE_SUFFIX = "explain_", "_png"
# Integers of a request that it may leave to the explanation.
_CHOICES = ("target", "steps")


class LocalModel:
    """A version folder that answers like a served model.

    Args:
        version: `saved_models/<name>/<version>`.

    Attributes:
        class_names: names of the classes from the export's card; None if it names none.
    """

    def __init__(self, version):
        version = pathlib.Path(version)
        if not (version / "saved_model.pb").is_file():
            raise ValueError(
                f"{version} is no version folder of an export: it has no saved_model.pb. Versions "
                "are numbered: saved_models/<name>/1."
            )
        self._signatures = tf.saved_model.load(str(version)).signatures
        card = read_card(version)
        self.class_names = card and card["class_names"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def metadata(self):
        """{signature name: Signature}, as the client's."""
        return {
            name: Signature(_infos(_inputs(function)), _infos(function.structured_outputs))
            for name, function in self._signatures.items()
        }

    def methods(self):
        """Names of the explanations that the export has."""
        return [
            name.removeprefix(_PREFIX)
            for name in self._signatures
            if name.startswith(_PREFIX) and not name.endswith(_IMAGE_SUFFIX)
        ]

    def predict(self, inputs, signature_name="serving_default"):
        """{output: array} of a signature, for one array or {input: array}."""
        function = self._signatures[signature_name]
        specs = _inputs(function)
        if not isinstance(inputs, dict):
            inputs = {next(name for name in specs if name not in _CHOICES): inputs}
        outputs = function(
            **{name: tf.cast(value, specs[name].dtype) for name, value in inputs.items()}
        )
        return {name: value.numpy() for name, value in outputs.items()}

    def explain(self, method, inputs, target=None, **request):
        """As `Client.explain`."""
        return self._explain(method, "", inputs, {"target": target, **request})

    def explain_image(self, method, images, target=None, **request):
        """As `Client.explain_image`."""
        images = np.array([images] if isinstance(images, bytes) else images, object)
        return self._explain(method, _IMAGE_SUFFIX, images, {"target": target, **request})

    def _explain(self, method, suffix, inputs, request):
        signature = f"{_PREFIX}{method}{suffix}"
        if signature not in self._signatures:
            raise ValueError(
                f"The export has no explanation {method + suffix!r}. It has: "
                f"{', '.join(self.methods())}"
            )
        choices = _inputs(self._signatures[signature]).keys() & {*_CHOICES, *request}
        if not isinstance(inputs, dict):
            (name,) = _inputs(self._signatures[signature]).keys() - choices
            inputs = {name: inputs}
        batch = len(next(iter(inputs.values())))
        for name in choices:
            value = request.get(name)
            if name in _CHOICES:
                value = np.broadcast_to(np.int32(-1 if value is None else value), [batch])
            inputs = {**inputs, name: value}
        return self.predict(inputs, signature)


def _inputs(function):
    return function.structured_input_signature[1]


def _infos(specs):
    return {
        name: TensorInfo(spec.dtype.name, tuple(spec.shape.as_list()))
        for name, spec in specs.items()
    }
