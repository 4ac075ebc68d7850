import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.data import Source
from kzoo.explain import IntegratedGradients, Saliency
from kzoo.plots import overlay
from kzoo.serving.check import ExportError
from kzoo.serving.export import export
from kzoo.serving.local import LocalModel
from kzoo.serving.samples import samples_of
from kzoo.training import SAM


@pytest.fixture(scope="module")
def cnn():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, "softmax"),
        ]
    )


@pytest.fixture(scope="module")
def exported(cnn, tmp_path_factory):
    return export(
        cnn,
        tmp_path_factory.mktemp("saved_models") / "shapes",
        [IntegratedGradients(cnn, steps=10)],
        class_names=["circle", "square", "star"],
        recipe={"model": "cnn"},
    )


def in_session(version, signature, **inputs):
    """What TensorFlow Serving does: the v1 loader and a session."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(version))
        definition = loaded.signature_def[signature]
        return session.run(
            {name: info.name for name, info in definition.outputs.items()},
            {definition.inputs[name].name: value for name, value in inputs.items()},
        )


def test_prediction_equals_the_model(exported, cnn, rng):
    x = rng.uniform(size=(5, 8, 8, 1)).astype("float32")
    served = in_session(exported, "serving_default", inputs=x)
    np.testing.assert_allclose(served["probabilities"], cnn(x), atol=1e-6)
    exp = np.exp(served["logits"])
    np.testing.assert_allclose(served["probabilities"], exp / exp.sum(1, keepdims=True), atol=1e-6)


def test_explanation_equals_the_explainer(exported, cnn, rng):
    x = rng.uniform(size=(3, 8, 8, 1)).astype("float32")
    target = np.array([2, -1, 0], "int32")
    served = in_session(exported, "explain_integrated_gradients", inputs=x, target=target)
    ours = IntegratedGradients(cnn, steps=10)(x, target)
    answers = {"attributions", "score", "target", "convergence_delta"}
    assert served.keys() == answers | {"logits", "probabilities"}
    for name in answers:
        np.testing.assert_allclose(served[name], ours[name], atol=1e-5)
    np.testing.assert_allclose(served["probabilities"], cnn(x), atol=1e-6)


def test_request_chooses_steps(cnn, tmp_path, rng):
    explainer = IntegratedGradients(cnn, steps=20, request=["steps"])
    version = export(cnn, tmp_path / "steps", [explainer])
    x = rng.uniform(size=(3, 8, 8, 1)).astype("float32")
    target, steps = np.array([0, 1, -2], "int32"), np.array([3, -1, 7], "int32")
    served = in_session(
        version, "explain_integrated_gradients", inputs=x, target=target, steps=steps
    )
    ours = explainer(x, target, steps=steps)
    np.testing.assert_allclose(served["attributions"], ours["attributions"], atol=1e-6)
    for bad in ({"target": np.full(3, 3, "int32")}, {"steps": np.zeros(3, "int32")}):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{next(iter(bad))}` must be"):
            in_session(
                version,
                "explain_integrated_gradients",
                **{"inputs": x, "target": target, "steps": steps, **bad},
            )


@pytest.mark.parametrize("absolute", [True, False], ids=["unsigned", "signed"])
def test_overlay_is_what_plots_draws(cnn, tmp_path, rng, absolute):
    explainer = Saliency(cnn, absolute=absolute)
    version = export(cnn, tmp_path / "overlay", [explainer], overlays=True)
    pixels = rng.integers(0, 256, [8, 8, 1]).astype("uint8")
    image_bytes = np.array([tf.io.encode_png(pixels).numpy()] * 2, object)
    served = in_session(
        version, "explain_saliency_png", image_bytes=image_bytes, target=np.array([0, 1], "int32")
    )
    drawn = [tf.io.decode_png(picture).numpy() for picture in served["overlay_bytes"]]
    result = explainer(np.stack([pixels / 255] * 2), [0, 1])
    np.testing.assert_allclose(served["attributions"], result["attributions"], atol=1e-6)
    for ours, attributions in zip(drawn, result["attributions"], strict=True):
        expected = overlay(pixels, attributions, signed=not absolute)
        # A value at the border of two colours may take either.
        assert np.mean(np.abs(ours / 255 - expected) > 0.01) < 0.05


def test_overlay_has_the_size_of_the_picture_sent(cnn, tmp_path):
    version = export(cnn, tmp_path / "overlay", ["grad_cam"], overlays=True)
    large = tf.io.encode_jpeg(np.full([24, 40, 3], 90, "uint8")).numpy()
    local = LocalModel(version)
    assert local.methods() == ["grad_cam"]
    (picture,) = local.explain_image("grad_cam", large, target=1)["overlay_bytes"]
    assert tf.io.decode_png(picture).shape == (24, 40, 3)
    dense = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
    with pytest.raises(ExportError, match="`overlays` are for models of one image"):
        export(dense, tmp_path / "dense", ["saliency"], overlays=True)


def test_images_as_png_and_jpeg_bytes(exported, cnn, rng):
    pixels = rng.integers(0, 256, [8, 8, 1]).astype("uint8")
    large = np.kron(np.full([8, 8, 1], 200, "uint8"), np.ones([4, 4, 1], "uint8"))
    encoded = [tf.io.encode_png(pixels).numpy(), tf.io.encode_jpeg(large).numpy()]
    served = in_session(exported, "predict_bytes", image_bytes=np.array(encoded, object))
    expected = cnn(np.stack([pixels / 255, np.full([8, 8, 1], 200 / 255)]))
    np.testing.assert_allclose(served["probabilities"], expected, atol=1e-3)


def test_every_signature_has_a_batch_first_and_a_warm_up_request(exported):
    from tensorflow_serving.apis import prediction_log_pb2

    card = json.loads((exported / "assets.extra" / "card.json").read_text())
    for signature in card["signatures"].values():
        for spec in (*signature["inputs"].values(), *signature["outputs"].values()):
            assert spec["shape"][0] is None
    file = str(exported / "assets.extra" / "tf_serving_warmup_requests")
    for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        in_session(exported, request.model_spec.signature_name, **inputs)
        card["signatures"].pop(request.model_spec.signature_name)
    assert card["signatures"] == {}
    assert card["class_names"] == ["circle", "square", "star"]
    assert card["explainers"]["integrated_gradients"]["steps"] == 10
    assert any("Axiomatic Attribution" in paper for paper in card["papers"])


def test_weights_are_written_once(exported, cnn):
    written = dict(tf.train.list_variables(str(exported / "variables" / "variables")))
    sizes = [np.prod(shape, dtype=int) for name, shape in written.items() if "VARIABLE" in name]
    assert sum(sizes) == cnn.count_params()


def test_versions_count_up_and_nothing_else_is_left(exported, cnn):
    second = export(SAM(cnn), exported.parent)
    assert (exported.name, second.name) == ("1", "2")
    assert {entry.name for entry in exported.parent.iterdir()} == {"1", "2"}


def test_several_named_inputs(tmp_path, rng):
    a, b = keras.Input([2], name="a"), keras.Input([3], name="b")
    joined = keras.layers.Concatenate()([a, b])
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(2)(joined))
    version = export(model, tmp_path / "joined", ["integrated_gradients"])
    x = {"a": rng.normal(size=(4, 2)).astype("f"), "b": rng.normal(size=(4, 3)).astype("f")}
    served = in_session(version, "serving_default", **x)
    np.testing.assert_allclose(served["logits"], model(x), atol=1e-6)
    target = np.zeros(4, "int32")
    served = in_session(version, "explain_integrated_gradients", **x, target=target)
    ours = IntegratedGradients(model)(x, target)
    np.testing.assert_allclose(served["attributions_b"], ours["attributions"]["b"], atol=1e-5)


def test_bfloat16_models_answer_in_float32(tmp_path, rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras.Sequential(
        [keras.Input([4]), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)]
    )
    version = export(model, tmp_path / "half", ["integrated_gradients"])
    served = in_session(version, "serving_default", inputs=np.ones([1, 4], "float32"))
    assert served["logits"].dtype == np.float32


class ThroughNumpy(keras.layers.Layer):
    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(np.tanh, [x], tf.float32), [None, 2])

    def compute_output_shape(self, input_shape):
        return input_shape


def test_samples_lie_beside_the_model(tmp_path):
    source = Source(
        np.arange(3 * 4 * 4, dtype="uint8").reshape(3, 4, 4, 1), [1, 0, 1], "mine",
        class_names=["a cat", "dog"],
    )  # fmt: skip
    samples = samples_of(source)
    assert list(samples) == ["0_a_cat.png", "1_dog.png"]
    np.testing.assert_array_equal(tf.io.decode_png(samples["1_dog.png"]), source.features[0])
    assert samples_of(Source(np.zeros([2, 3]), [0, 1], "tabular")) == {}

    (tmp_path / "row.json").write_text("[1, 2]")
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2)])
    version = export(
        model, tmp_path / "m", samples=[tmp_path / "row.json"], feature_names=["width", "height"]
    )
    extra = version / "assets.extra"
    assert (extra / "samples" / "row.json").read_text() == "[1, 2]"
    assert json.loads((extra / "card.json").read_text())["feature_names"] == ["width", "height"]
    for wrong in ({"../a.png": b"x"}, {"a.exe": b"x"}, {"a.png": bytes(300_000)}):
        with pytest.raises(ValueError, match="`samples` must be .png, .jpg or .json files"):
            export(model, tmp_path / "m", samples=wrong)


def test_what_needs_python_is_refused(tmp_path):
    x = keras.Input([2])
    with pytest.raises(ExportError, match="calls Python through PyFunc"):
        export(keras.Model(x, ThroughNumpy()(x)), tmp_path / "python")
    assert list((tmp_path / "python").iterdir()) == []


def test_errors_name_the_argument(cnn, tmp_path):
    with pytest.raises(ValueError, match="`class_names` must name the 3 classes"):
        export(cnn, tmp_path / "m", class_names=["one"])
    with pytest.raises(ValueError, match="Did you mean 'integrated_gradients'"):
        export(cnn, tmp_path / "m", ["integrated_gradient"])
    with pytest.raises(ValueError, match="'expected_gradients' has no default for background"):
        export(cnn, tmp_path / "m", ["expected_gradients"])
