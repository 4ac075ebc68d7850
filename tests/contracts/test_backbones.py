"""What every image model must do, from its one example: train, save, serve, explain."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kzoo.explain import GradCAM, IntegratedGradients
from kzoo.models import feature_pyramid
from kzoo.serving.export import export
from kzoo.training import Loop
from tests.contracts.cases import cases, example_inputs

backbones = cases(
    "models", when=lambda part: "include_top" in inspect.signature(part.target).parameters
)


def images_and_labels(part, batch=6):
    (images,) = example_inputs(part, batch)
    return images, np.arange(batch) % 3


def make(part, **options):
    keras.utils.set_random_seed(0)
    return part.example.build(part.target, **{"classes": 3, **options})


@backbones
def test_a_step_of_two_replicas_is_that_of_one_device(part, mirrored, float64):
    batch = images_and_labels(part)
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = make(part)
            model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
        Loop(model, tf.data.Dataset.from_tensors(batch), strategy=strategy).run()
        weights.append(model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-7, atol=1e-9)


@backbones
def test_served_with_its_explanations(part, tmp_path):
    model = make(part)
    # Of a body that nobody trained, all that moving statistics say is 0 and 1.
    model(images_and_labels(part)[0], training=True)
    explainers = {
        "grad_cam": GradCAM(model),
        "integrated_gradients": IntegratedGradients(model, steps=4),
    }
    # `export` compares each signature with a plain graph session, as TensorFlow Serving has it.
    version = export(model, tmp_path / "model", explainers)
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    signatures = saved.meta_graphs[0].signature_def
    assert {"explain_grad_cam", "explain_integrated_gradients"} <= set(signatures)


@backbones
def test_stages(part, tmp_path):
    model = make(part, include_top=False)
    model.save(tmp_path / "model.keras")
    images, _ = images_and_labels(part, batch=2)
    maps = feature_pyramid(keras.saving.load_model(tmp_path / "model.keras"))(images)
    levels = sorted(maps)
    sizes = [maps[level].shape[1] for level in levels]
    assert sizes == sorted(sizes, reverse=True)
    np.testing.assert_allclose(maps[levels[-1]], model(images), rtol=1e-5, atol=1e-6)
    for level, size in zip(levels, sizes, strict=True):
        # Convolutions without padding lose the border.
        assert size <= -(-images.shape[1] // 2 ** int(level[1:]))


@backbones
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_body_with_pooling(part, pooling):
    body, pooled = make(part, include_top=False), make(part, include_top=False, pooling=pooling)
    pooled.set_weights(body.get_weights())
    images, _ = images_and_labels(part, batch=2)
    reduce = {"avg": np.mean, "max": np.max}[pooling]
    expected = reduce(np.asarray(body(images)), axis=(1, 2))
    np.testing.assert_allclose(pooled(images), expected, rtol=1e-4, atol=1e-5)


@backbones
def test_refuses_what_every_image_model_refuses(part):
    for options, message in (
        ({"classes": 0}, "`classes` must be a positive integer"),
        ({"pooling": "sum", "include_top": False}, "`pooling` must be None"),
        ({"input_shape": (8, 8)}, "`input_shape` must be"),
        ({"weights": "absent.weights.h5"}, "`weights` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            make(part, **options)
