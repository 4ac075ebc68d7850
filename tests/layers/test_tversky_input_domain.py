import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.tversky import TverskyProjection
from kzoo.layers.tversky_input_domain import TverskyInputDomainProjection

pytestmark = pytest.mark.paper(
    "Tversky Neural Networks: Psychologically Plausible Deep Learning with Differentiable Tversky "
    "Similarity"
)


@pytest.fixture
def encoder():
    layers = [keras.Input([3, 3, 1]), keras.layers.Flatten(), keras.layers.Dense(4)]
    return keras.Sequential([*layers, keras.layers.BatchNormalization(momentum=0.5)])


@pytest.mark.parametrize("difference", ["ignorematch", "subtractmatch"])
def test_it_is_a_projection_of_what_is_encoded(encoder, rng, difference):
    x = rng.normal(size=(5, 3, 3, 1)).astype("float32")
    layer = TverskyInputDomainProjection(encoder, 2, 6, "min", difference)
    result = layer(x)
    plain = TverskyProjection(2, 6, "min", difference)
    plain.build([None, 4])
    plain.prototypes.assign(encoder(layer.prototypes))
    plain.features.features.assign(encoder(layer.features))
    np.testing.assert_allclose(result, plain(encoder(x)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.measures(x), plain.measures(encoder(x)), rtol=1e-4, atol=1e-5)


def test_statistics_are_of_the_inputs_alone(encoder, rng):
    x = rng.normal(size=(5, 3, 3, 1)).astype("float32")
    layer = TverskyInputDomainProjection(encoder, 2, 6)
    layer(x, training=True)
    dense, norm = encoder.layers[1:]
    np.testing.assert_allclose(
        norm.moving_mean, 0.5 * np.mean(dense(x.reshape(5, 9)), 0), rtol=1e-4, atol=1e-6
    )


def test_pictures_learn_and_are_loaded(encoder, rng, tmp_path):
    x, y = rng.normal(size=(32, 3, 3, 1)).astype("float32"), rng.integers(0, 2, 32)
    layer = TverskyInputDomainProjection(encoder, 2, 6)
    model = keras.Sequential([keras.Input([3, 3, 1]), layer])
    before = layer.features.numpy(), layer.prototypes.numpy()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    assert np.any(before[0] != layer.features.numpy())
    assert np.any(before[1] != layer.prototypes.numpy())
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), model(x))


def test_errors_name_the_argument(encoder):
    with pytest.raises(TypeError, match="`encoder` must be a keras.Model. Received: Dense"):
        TverskyInputDomainProjection(keras.layers.Dense(2), 2, 3)
    with pytest.raises(ValueError, match="of known shape"):
        TverskyInputDomainProjection(encoder, 2, 3).build(tf.TensorShape([None, None, 3, 1]))
