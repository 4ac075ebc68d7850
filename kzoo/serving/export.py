"""Export of a model with its explanations, as TensorFlow Serving wants it.

`saved_models/<name>/<version>/` holds a SavedModel whose signatures need no Python:

    serving_default        the model's inputs -> logits, probabilities
    predict_bytes          image_bytes, JPEG or PNG -> the same
    explain_<method>       the model's inputs, target -> the same, attributions, score, target, ...
    explain_<method>_png   image_bytes, target -> the same, overlay_bytes

Every input and output has the batch as its first dimension. `assets.extra` beside it holds
`card.json`, which says what the numbers mean, one warm-up request for each signature, and samples.
"""

import contextlib
import inspect
import itertools
import os
import pathlib
import shutil
import uuid

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.explainer import Explainer
from kzoo.explain.names import by_name, method_name
from kzoo.serving.card import make_card, write_card
from kzoo.serving.check import check_export
from kzoo.serving.samples import FOLDER, check_samples, write_samples
from kzoo.serving.signatures import make_signatures, named_specs
from kzoo.serving.warmup import write_warmup
from kzoo.training.method import TrainingMethod


def export(
    model,
    path,
    explainers=(),
    class_names=None,
    rescale=(1 / 255, 0.0),
    overlays=False,
    recipe=None,
    papers=(),
    samples=None,
    feature_names=None,
):
    """Exports a model as the next version below `path`, atomically.

    The SavedModel is loaded into a plain graph session, the way TensorFlow Serving takes, before
    it gets its name, and every signature must give there what it gives here.

    Args:
        model: a built Keras model of any build; of a `TrainingMethod`, the model it trains.
        path: folder of the model, `saved_models/<name>`; its versions are numbered folders.
        explainers: names such as "integrated_gradients", or `Explainer`s of this model, or a dict
            of either by the name of the method.
        class_names: names of the classes, in their order.
        rescale: (scale, offset) that take a uint8 pixel of `predict_bytes` to what the model was
            trained on: `scale * pixel + offset`. Defaults to 0..1.
        overlays: whether each explainer also gets a signature that takes JPEG or PNG bytes and
            answers with the heat map laid over the picture, as PNG. Defaults to False.
        recipe: the resolved recipe of the run, for the card.
        papers: `Paper`s that the model is made of, for the card.
        samples: examples for the page of the embedded server: PNG or JPEG files, or a row of
            features as JSON; paths, or {file name: bytes}, of at most 256 KiB each.
        feature_names: names of the features of a tabular model, for the card and the page.

    Returns:
        `pathlib.Path` of the version written.

    Raises:
        ExportError: if the graph needs Python, or the session's numbers differ.
    """
    model = model.model if isinstance(model, TrainingMethod) else model
    path = pathlib.Path(path)
    explainers = _explainers(model, explainers)
    specs = named_specs(model)
    if class_names is not None:
        _check_classes(model, class_names)

    samples = check_samples(samples)
    signatures = make_signatures(model, specs, explainers, rescale, overlays)
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / f".export-{uuid.uuid4().hex}"
    try:
        _save(model, signatures, temporary)
        requests = {name: _request(function, specs) for name, function in signatures.items()}
        check_export(temporary, signatures, requests)
        extra = temporary / "assets.extra"
        extra.mkdir()
        card = make_card(
            model, path.name, signatures, explainers, class_names, rescale, recipe, papers
        )
        if feature_names is not None:
            card["feature_names"] = list(map(str, feature_names))
        write_card(extra / "card.json", card)
        if samples:
            write_samples(extra / FOLDER, samples)
        write_warmup(extra / "tf_serving_warmup_requests", path.name, requests)
        return _take_next_version(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _explainers(model, explainers):
    """{method: Explainer} from names, explainers, or a dict of either."""
    if not isinstance(explainers, dict):
        explainers = {
            each if isinstance(each, str) else method_name(each): each for each in explainers
        }
    made = {}
    for method, explainer in explainers.items():
        if isinstance(explainer, str):
            explainer = _by_name(explainer, model)
        if not isinstance(explainer, Explainer):
            raise TypeError(
                "`explainers` must be names or Explainers. Received: "
                f"{type(explainer).__name__} for {method!r}"
            )
        made[method] = explainer
    return made


def _by_name(name, model):
    """The explainer of this name with its defaults."""
    cls = by_name(name)
    needed = [
        parameter.name
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.default is parameter.empty and parameter.name != "model"
    ]
    if needed:
        raise ValueError(
            f"The explainer {name!r} has no default for {', '.join(needed)}: pass a "
            f"{cls.__name__} instead of its name, or give a recipe its arguments."
        )
    return cls(model)


def _save(model, signatures, folder):
    module = tf.Module()
    # The tf.Variables themselves: a tracked Keras model would load in Python and fail in the
    # session loader that TensorFlow Serving uses.
    module.variables_ = [variable.value for variable in model.variables]
    with contextlib.redirect_stdout(None):
        tf.saved_model.save(module, str(folder), signatures=signatures)


def _request(function, specs):
    """One row for each input of a signature: {name: array}."""
    return {spec.name: _example_row(spec, specs) for spec in function.structured_input_signature[0]}


def _example_row(spec, specs):
    if spec.dtype == tf.string and spec.name == "image_bytes":
        height, width, channels = specs["inputs"].shape[1:]
        image = np.full([height, width, channels], 127, "uint8")
        return np.array([tf.io.encode_png(image).numpy()], object)
    shape = [1, *(size or 1 for size in spec.shape[1:])]
    if spec.dtype == tf.string:
        return np.full(shape, b"", object)
    if spec.name not in specs and spec.dtype.is_integer:
        return np.full(shape, -1, spec.dtype.as_numpy_dtype)
    return np.full(shape, 0.5 if spec.dtype.is_floating else 0, spec.dtype.as_numpy_dtype)


def _take_next_version(temporary, path):
    numbers = [int(entry.name) for entry in path.iterdir() if entry.name.isdigit()]
    for number in itertools.count(max(numbers, default=0) + 1):
        with contextlib.suppress(FileExistsError, OSError):
            target = path / str(number)
            if not target.exists():
                os.rename(temporary, target)
                return target


def _check_classes(model, class_names):
    outputs = keras.tree.flatten(model.outputs)
    if len(outputs) != 1 or outputs[0].shape[-1] != len(class_names):
        raise ValueError(
            f"`class_names` must name the {outputs[0].shape[-1]} classes of the model. Received: "
            f"{len(class_names)} names"
        )
