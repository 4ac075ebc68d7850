"""What every registered explainer must do, from its one example."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import Explainer
from kzoo.explain.names import method_name
from kzoo.serving.export import export
from tests.contracts.cases import cases

explainers = cases("explain", when=lambda part: issubclass(part.target, Explainer))


def cnn():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input([8, 8, 3]),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, "softmax"),
        ]
    )


@pytest.fixture
def images(rng):
    return rng.uniform(size=(5, 8, 8, 3)).astype("float32")


@explainers
def test_a_row_is_explained_the_same_in_any_batch(part, images):
    explainer = part.example.build(part.target, model=cnn())
    whole = explainer(images)
    for row in range(5):
        alone = explainer(images[row : row + 1])
        for name, value in whole.items():
            np.testing.assert_allclose(alone[name][0], value[row], rtol=1e-3, atol=1e-5)


@explainers
def test_shapes_and_targets(part, images):
    model = cnn()
    explainer = part.example.build(part.target, model=model)
    result = explainer(images, target=[0, 1, 2, -1, -1])
    top = np.argmax(model(images), -1)
    np.testing.assert_array_equal(result["target"], [0, 1, 2, *top[3:]])
    assert result["attributions"].shape[:3] == (5, 8, 8)
    assert result["attributions"].dtype == tf.float32
    logits = np.log(model(images))
    shift = logits[np.arange(5), result["target"]] - result["score"]
    assert result["score"].shape == (5,)
    assert np.isfinite(shift).all()


@explainers
def test_constant_and_empty_images_give_finite_maps(part):
    explainer = part.example.build(part.target, model=cnn())
    for value in (0.0, 1.0):
        result = explainer(np.full([1, 8, 8, 3], value, "float32"))
        assert np.isfinite(result["attributions"]).all()


@explainers
def test_half_precision_models_give_float32_maps(part, images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    result = part.example.build(part.target, model=cnn())(images)
    assert result["attributions"].dtype == tf.float32
    assert np.isfinite(result["attributions"]).all()


@explainers
def test_the_served_signature_gives_the_same(part, images, tmp_path):
    explainer = part.example.build(part.target, model=cnn())
    version = export(explainer.model, tmp_path / "cnn", [explainer])
    signature = f"explain_{method_name(explainer)}"
    target = np.array([0, 1, -1, 2, -1], "int32")
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(version))
        definition = loaded.signature_def[signature]
        served = session.run(
            {name: info.name for name, info in definition.outputs.items()},
            {
                definition.inputs["inputs"].name: images,
                definition.inputs["target"].name: target,
            },
        )
    result = explainer(images, target)
    np.testing.assert_allclose(served["logits"], result.pop("predictions"), rtol=1e-4, atol=1e-5)
    for name, value in result.items():
        np.testing.assert_allclose(served[name], value, rtol=1e-4, atol=1e-5)
