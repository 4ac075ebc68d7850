"""What every registered explainer must do, from its one example, on models of every build.

One classifier and one explainer of each kind serve all tests, and all of them are one export.
Where only the method is looked at, and not the way to it, `explain` runs eagerly: without tracing
it takes a tenth of the time, and it must give what the graph gives.
"""

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import DRISE, Explainer, IntegratedGradients
from kzoo.explain.graph import flatten_layers
from kzoo.explain.names import method_name
from kzoo.serving.signatures import make_signatures, named_specs
from tests.contracts import models
from tests.contracts.cases import cases
from tests.contracts.models import FEATURES, IMAGES, TOKENS
from tests.explain.transformers import vision_transformer


def is_explainer(part):
    return inspect.isclass(part.target) and issubclass(part.target, Explainer)


explainers = cases("explain", when=is_explainer)


def takes(part, argument):
    return argument in inspect.signature(part.target).parameters


def make(part, model, inputs=IMAGES, **overrides):
    """The example's explainer of a model of such inputs."""
    if takes(part, "background"):
        overrides["background"] = keras.tree.map_structure(lambda x: x[:3], inputs)
    if takes(part, "regions") and np.ndim(keras.tree.flatten(inputs)[0]) != 4:
        # A number of regions divides images.
        overrides["regions"] = None
    if takes(part, "layers") and isinstance(model, keras.Model):
        names = [layer.name for layer in flatten_layers(model)]
        overrides.setdefault("layers", [name for name in names if name in models.PLACES])
    return part.example.build(part.target, model=model, **overrides)


def eagerly(explainer, inputs, target=-1):
    inputs = keras.tree.map_structure(tf.constant, inputs)
    batch = len(keras.tree.flatten(inputs)[0])
    return explainer.explain(inputs, tf.broadcast_to(tf.constant(target, tf.int32), [batch]))


def attempt(function, refusal=ValueError):
    """(what it returns, "") or (None, the message with which it refuses)"""
    try:
        return function(), ""
    except refusal as error:
        return None, str(error)


def assert_same(result, expected, rtol=1e-4, atol=1e-5):
    assert set(result) == set(expected)
    for key, value in expected.items():
        for ours, theirs in zip(
            keras.tree.flatten(result[key]), keras.tree.flatten(value), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol, atol, err_msg=key)


def rows(result, selected):
    return {
        key: keras.tree.map_structure(lambda x: tf.gather(x, selected), value)
        for key, value in result.items()
    }


def assert_explains(result, inputs, model):
    """Attributions of the inputs, or maps, for the top class of what the model gives."""
    for ours, theirs in zip(
        keras.tree.flatten(result["attributions"]), keras.tree.flatten(inputs), strict=False
    ):
        common = min(ours.shape.rank, theirs.ndim)
        assert ours.shape[:common] == theirs.shape[:common]
        assert ours.dtype == tf.float32
        assert np.isfinite(ours).all()
        assert np.any(ours)
    outputs = model(inputs)
    np.testing.assert_array_equal(result["target"], np.argmax(outputs, -1))


@pytest.fixture(scope="module")
def cnn():
    return models.classifier()


@pytest.fixture(scope="module")
def made(cnn):
    """{name: the explainer of `cnn`}, filled by the tests, so that each is traced once."""
    return {}


@pytest.fixture
def explainer(part, cnn, made):
    if part.name not in made:
        made[part.name] = make(part, cnn)
    return made[part.name]


@pytest.fixture(scope="module")
def answers():
    """{name: what the explainer of `cnn` says of the images}, as `made`."""
    return {}


@pytest.fixture
def expected(part, explainer, answers):
    if part.name not in answers:
        answers[part.name] = explainer(IMAGES)
    return dict(answers[part.name])


@pytest.fixture(scope="module", params=[models.sequential, models.nested, models.wrapped])
def build(request, cnn):
    return request.param(cnn)


@pytest.fixture(scope="module")
def of_several_inputs():
    return models.of_several_inputs()


@pytest.fixture(scope="module")
def of_text():
    return models.of_text()


@pytest.fixture(scope="module")
def transformer():
    keras.utils.set_random_seed(0)
    return vision_transformer(image=(8, 8, 3), blocks=1, classes=3)


@pytest.fixture(scope="module")
def run(cnn, made, tmp_path_factory):
    """A session without Python, as TensorFlow Serving has it, with the signatures of an export.

    Gives `run(methods, inputs, target) -> {method: {output: array}}`.
    """
    folder = str(tmp_path_factory.mktemp("served"))
    parts = [part for part in explainers.args[1] if not part.not_served]
    for part in parts:
        made.setdefault(part.name, make(part, cnn))
    by_method = {method_name(made[part.name]): made[part.name] for part in parts}
    # What `export` saves; its own check would run each signature once more.
    signatures = make_signatures(cnn, named_specs(cnn), by_method, (1.0, 0.0), overlays=False)
    module = tf.Module()
    module.variables_ = [variable.value for variable in cnn.variables]
    tf.saved_model.save(module, folder, signatures=signatures)
    # The graph of all signatures would be optimized anew for every set of outputs: seconds each.
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    # Not as a context: a default graph would reach into other tests.
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    with session.graph.as_default():
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], folder)

    def run(methods, inputs, target):
        fetches, feeds = {}, {}
        for method in methods:
            signature = loaded.signature_def[f"explain_{method}"]
            fetches[method] = {name: info.name for name, info in signature.outputs.items()}
            feeds[signature.inputs["inputs"].name] = inputs
            feeds[signature.inputs["target"].name] = target
        return session.run(fetches, feeds)

    run.methods = tuple(by_method)
    yield run
    session.close()


@pytest.fixture(scope="module")
def served(run):
    """[(images, targets, {method: what it answers})] for batches of several sizes."""
    target = np.array([0, 1, -1, 2, -2], "int32")
    return [
        (IMAGES[:size], target[:size], run(run.methods, IMAGES[:size], target[:size]))
        for size in (5, 1, 3)
    ]


@explainers
def test_shapes_scores_and_targets(part, explainer, expected, cnn):
    assert_explains(expected, IMAGES, cnn)
    assert expected["score"].shape == (5,)
    assert np.isfinite(expected["score"]).all()
    # A detector keeps its activation, and a detection is not explained by the score of a class.
    if "box" not in expected:
        predictions = expected["predictions"]
        np.testing.assert_allclose(tf.nn.softmax(predictions), cnn(IMAGES), rtol=1e-5)
        score, _ = explainer.score(predictions, expected["target"])
        np.testing.assert_allclose(expected["score"], score, rtol=1e-5)


@explainers
def test_targets_are_classes_or_ranks(explainer, expected):
    result = explainer(IMAGES, [0, 1, 2, -1, -2])
    np.testing.assert_array_equal(result["target"][:4], [0, 1, 2, expected["target"][3]])
    second = explainer(IMAGES, -2)
    assert (second["target"].numpy() != expected["target"].numpy()).all()
    assert second["target"][4] == result["target"][4]
    assert_same(explainer(IMAGES, second["target"]), second)


@explainers
def test_a_row_is_explained_the_same_in_any_batch_by_one_trace(explainer):
    expected = explainer(IMAGES, [0, 1, 2, -1, -2])
    for selected, target in (([0], 0), ([4, 2], [-2, 2]), ([3, 3, 3], -1)):
        assert_same(explainer(IMAGES[selected], target), rows(expected, selected))
    assert explainer.function(None).experimental_get_tracing_count() == 1


@explainers
def test_constant_images_give_finite_maps(explainer):
    constant = np.stack([np.full([8, 8, 3], value, "float32") for value in (0, 1, -3)])
    assert np.isfinite(explainer(constant)["attributions"]).all()


@explainers
def test_configuration_makes_the_same_explainer(part, explainer, expected, cnn):
    config = json.loads(json.dumps(explainer.get_config()))
    # Of the example, functions remain: no configuration can hold them.
    twin = part.example.build(part.target, model=cnn, **config)
    assert twin.get_config() == explainer.get_config()
    assert_same(eagerly(twin, IMAGES), expected)


@explainers
def test_every_build_of_a_model_gives_the_same(part, build, expected):
    assert_same(eagerly(make(part, build), IMAGES), expected)


@explainers
def test_a_subclassed_model_gives_the_same_or_is_refused(part, cnn, explainer, expected):
    model = models.Subclassed(cnn)
    subclassed, refusal = attempt(lambda: make(part, model))
    if refusal:
        assert model.name in refusal
        if not takes(part, "layer"):
            assert "functional and Sequential models" in refusal
            return
        assert "Pass `layer`, one of: first, second" in refusal
        subclassed = make(part, model, layer=explainer.get_config()["layer"])
    assert_same(eagerly(subclassed, IMAGES), expected)


def test_a_subclassed_model_is_traced_by_its_first_call(cnn):
    expected = IntegratedGradients(cnn, steps=3)(IMAGES)
    assert_same(IntegratedGradients(models.Subclassed(cnn), steps=3)(IMAGES), expected)


@cases(
    "explain",
    # It moves the weights, and a shared one moves for both calls.
    when=lambda part: is_explainer(part) and part.name != "MetaSaliency",
)
def test_a_layer_called_twice_is_two_layers(part):
    shared, twin = (models.convolved_twice(shared) for shared in (True, False))
    expected = eagerly(make(part, twin), IMAGES)
    assert np.any(expected["attributions"])
    assert_same(eagerly(make(part, shared), IMAGES), expected)


@explainers
def test_several_inputs_are_explained_or_refused(part, of_several_inputs):
    of_dict, of_list = of_several_inputs
    named, listed = {"features": FEATURES, "image": IMAGES}, [FEATURES, IMAGES]
    from_dict, refusal = attempt(lambda: eagerly(make(part, of_dict, named), named))
    from_list, same_refusal = attempt(lambda: eagerly(make(part, of_list, listed), listed))
    if refusal:
        assert "one input" in refusal
        assert "one input" in same_refusal
        return
    if keras.tree.is_nested(from_dict["attributions"]):
        assert keras.tree.map_structure(np.shape, from_dict["attributions"]) == (
            keras.tree.map_structure(np.shape, named)
        )
    else:
        assert from_dict["attributions"].shape == IMAGES.shape[:-1]
    assert_same(from_list, from_dict)


@explainers
def test_texts_are_explained_at_the_embedding_or_refused(part, of_text):
    tap = {"tap": "embedding"} if takes(part, "tap") else {}
    explain = make(part, of_text, TOKENS, **tap)
    result, refusal = attempt(lambda: eagerly(explain, TOKENS))
    if refusal:
        assert not tap
        assert "Pass `tap`" in refusal or "one input" in refusal
    else:
        assert_explains(result, TOKENS, of_text)


@explainers
def test_a_vision_transformer_is_explained_or_refused(part, transformer):
    explainer, refusal = attempt(lambda: make(part, transformer))
    if refusal:
        assert "the layers attention0" in refusal
        return
    result = eagerly(explainer, IMAGES)
    assert_explains(result, IMAGES, transformer)
    assert_same(eagerly(explainer, IMAGES[2:3]), rows(result, [2]), atol=1e-4)


@explainers
def test_a_function_is_explained_or_refused(part, cnn, expected):
    """Methods of inputs and outputs take any function; the others say that they need layers."""

    def logarithms(images):
        return tf.math.log(cnn(images, training=False))

    explainer, refusal = attempt(lambda: make(part, logarithms), TypeError)
    if refusal:
        assert "`model` must be a Keras model" in refusal
        return
    result = eagerly(explainer, IMAGES)
    np.testing.assert_array_equal(result["target"], expected["target"])
    assert result["attributions"].shape == expected["attributions"].shape


def test_a_detector_is_any_function():
    def detector(images):
        """A box for each half, as sure as its half is bright."""
        halves = tf.stack([images[:, :, :4], images[:, :, 4:]], 1)
        bright = tf.reduce_mean(halves, [2, 3, 4])
        boxes = tf.constant([[0.0, 0.0, 4.0, 8.0], [4.0, 0.0, 8.0, 8.0]])
        return {
            "boxes": tf.broadcast_to(boxes, [tf.shape(images)[0], 2, 4]),
            "probabilities": tf.one_hot([[0, 1]], 2) * bright[..., tf.newaxis],
            "objectness": bright,
        }

    explainer = DRISE(detector, samples=20, grid=4)
    masks = explainer.masks.draw(8, 8)(tf.range(20)).numpy()
    for target, own in enumerate([masks[:, :, :4], masks[:, :, 4:]]):
        # What is left of white images in the box is how much the mask shows of it.
        expected = np.einsum("k,kyx->yx", own.mean((1, 2)), masks) / (20 * 0.5)
        result = explainer(np.ones([2, 8, 8, 3], "float32"), target)
        np.testing.assert_allclose(result["attributions"], [expected] * 2, rtol=1e-5)


@explainers
def test_half_precision_models_give_float32_maps(part, expected, cnn):
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = models.classifier()
    assert half.get_layer("rectified").compute_dtype == "bfloat16"
    result = eagerly(make(part, half), IMAGES, expected["target"])
    assert result["attributions"].dtype == result["score"].dtype == tf.float32
    scale = np.abs(expected["attributions"]).max()
    # Where a ReLU or a maximum switches at another place, single values differ much.
    difference = np.abs(result["attributions"] - expected["attributions"])
    assert np.mean(difference) < 0.05 * scale


@explainers
def test_compiled_by_xla(part):
    if part.example.no_xla:
        pytest.skip(part.example.no_xla)
    explainer = make(part, models.one_convolution())
    target = tf.constant([0, 1, 2, -1, -2])
    compiled = tf.function(explainer.explain, jit_compile=True, autograph=False)
    assert_same(
        compiled(tf.constant(IMAGES), target), eagerly(explainer, IMAGES, target), atol=1e-6
    )


@explainers
def test_bad_requests_are_refused(explainer):
    holed = IMAGES.copy()
    holed[3, 2, 1, 0] = np.nan
    for inputs in (IMAGES[0], IMAGES[:, :4], IMAGES.astype(str), holed):
        with pytest.raises(ValueError, match="`inputs`"):
            explainer(inputs)
    for target in (3, -4, [0, 1, 2, 0, 3], [0, 1]):
        with pytest.raises(ValueError, match="`target`"):
            explainer(IMAGES, target)


def test_requests_of_another_kind_are_refused(cnn):
    explainer = IntegratedGradients(cnn, steps=3)
    for inputs in ([IMAGES, IMAGES], {"inputs": IMAGES, "more": IMAGES}):
        with pytest.raises(ValueError, match="`inputs`"):
            explainer(inputs)
    for target in ("first", 0.5):
        with pytest.raises(ValueError, match="`target`"):
            explainer(IMAGES, target)


@explainers
def test_layers_that_do_not_exist_name_the_nearest(part, cnn):
    for argument, value in (
        ("layer", "rectifed"), ("layers", ["first", "rectifed"]), ("tap", "rectifed")
    ):  # fmt: skip
        if takes(part, argument):
            with pytest.raises(ValueError, match="Did you mean 'rectified'"):
                make(part, cnn, **{argument: value})


@cases("explain", when=lambda part: is_explainer(part) and takes(part, "layer"))
def test_maps_of_layers_need_places(part, cnn):
    with pytest.raises(ValueError, match="the last feature map, or none"):
        make(part, models.without_places(), FEATURES)
    with pytest.raises(ValueError, match="`layer` must have"):
        eagerly(make(part, cnn, layer="classes"), IMAGES)


@explainers
def test_the_served_signature_gives_the_same(part, explainer, served):
    if part.not_served:
        pytest.skip(part.not_served)
    for images, target, answers in served:
        answer = dict(answers[method_name(explainer)])
        answer.pop("probabilities")
        assert_same({"predictions": answer.pop("logits"), **answer}, explainer(images, target))


@explainers
def test_the_served_signature_refuses_bad_requests(part, explainer, run):
    if part.not_served:
        pytest.skip(part.not_served)
    methods, target = [method_name(explainer)], np.zeros(5, "int32")
    for value in (np.nan, np.inf):
        images = IMAGES.copy()
        images[3, 2, 1, 0] = value
        with pytest.raises(tf.errors.InvalidArgumentError, match="`inputs` must be finite"):
            run(methods, images, target)
    for wrong in (3, -4):
        with pytest.raises(tf.errors.InvalidArgumentError, match="`target` must be a class"):
            run(methods, IMAGES, target + wrong)
