import keras
import numpy as np
import pytest

from kzoo.models.hourglass_mlp import HourglassMLP, ResidualMLP

pytestmark = pytest.mark.paper("Rethinking the shape convention of an MLP")


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_weights_of_the_hourglass(depth):
    model = HourglassMLP(5, 2, width=9, hidden_units=4, depth=depth)
    assert trainable(model) == depth * (2 * 9 * 4 + 2 * 9) + 9 * 2
    assert model.count_params() == trainable(model) + 5 * 9
    trained = HourglassMLP(5, 2, width=9, hidden_units=4, depth=depth, trainable_lift=True)
    assert trainable(trained) == trained.count_params() == model.count_params()


def test_weights_with_biases_and_rms_norm():
    model = HourglassMLP(5, 2, 9, 4, depth=3, normalization="rms", use_bias=True)
    assert trainable(model) == 3 * (2 * 9 * 4 + 4 + 9 + 9) + 9 * 2 + 2
    twin = ResidualMLP(5, 2, hidden_units=7, depth=3)
    assert trainable(twin) == twin.count_params() == 3 * (2 * 5 * 7 + 2 * 5) + 5 * 2


def test_frozen_lift_is_the_same_after_training_and_from_its_seed(rng):
    model = HourglassMLP(5, 2, width=9, hidden_units=4, depth=2, seed=7)
    before = [weight.numpy() for weight in model.weights]
    model.compile(keras.optimizers.AdamW(0.1, weight_decay=0.1), "mse")
    model.fit(rng.normal(size=(16, 5)), rng.normal(size=(16, 2)), epochs=2, verbose=0)
    lift, *others = (weight.numpy() for weight in model.weights)
    np.testing.assert_array_equal(lift, before[0])
    for after, start in zip(others, before[1:], strict=True):
        assert np.abs(after - start).max() > 1e-3
    keras.utils.set_random_seed(99)
    again = HourglassMLP(5, 2, width=9, hidden_units=4, depth=0, seed=7)
    np.testing.assert_array_equal(again.get_layer("frozen_lift").kernel, lift)


def test_trained_lift_begins_with_the_frozen_one_and_moves(rng):
    frozen, model = (
        HourglassMLP(5, 2, 9, 4, depth=1, seed=7, trainable_lift=lift) for lift in (False, True)
    )
    start = frozen.get_layer("frozen_lift").kernel.numpy()
    kernel = model.get_layer("lift").kernel
    np.testing.assert_array_equal(kernel, start)
    model.compile("adam", "mse")
    model.train_on_batch(rng.normal(size=(8, 5)), rng.normal(size=(8, 2)))
    assert np.abs(kernel.numpy() - start).max() > 1e-4


def test_without_blocks_training_ends_at_least_squares_on_random_features(float64, rng):
    model = HourglassMLP(3, 2, width=6, hidden_units=1, depth=0, seed=5)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    # Gradient descent from zero ends at the solution of least norm, which is lstsq's.
    readout = model.get_layer("readout").kernel
    readout.assign(np.zeros((6, 2)))
    model.compile(keras.optimizers.SGD(0.15), "mse", jit_compile=False)
    steps = 600
    model.fit(np.tile(x, (steps, 1)), np.tile(y, (steps, 1)), 20, shuffle=False, verbose=0)
    features = x @ model.get_layer("frozen_lift").kernel.numpy()
    np.testing.assert_allclose(readout, np.linalg.lstsq(features, y)[0], atol=1e-8)


def test_model_is_lift_blocks_and_readout(float64, rng):
    model = HourglassMLP(3, 2, width=6, hidden_units=2, depth=2)
    x = rng.normal(size=(4, 3))
    z = x @ model.get_layer("frozen_lift").kernel.numpy()
    for name in ("block1", "block2"):
        z = model.get_layer(name)(z)
    expected = z @ model.get_layer("readout").kernel.numpy()
    np.testing.assert_allclose(model(x), expected, rtol=1e-12)


def test_refuses_sizes():
    for name in ("features", "outputs", "width", "hidden_units"):
        sizes = {"features": 5, "outputs": 2, "width": 9, "hidden_units": 4, name: 0}
        with pytest.raises(ValueError, match=f"`{name}` must be a positive integer. Received: 0"):
            HourglassMLP(**sizes, depth=1)
    with pytest.raises(ValueError, match="`depth` must be an integer of at least 0. Received: -1"):
        ResidualMLP(5, 2, 4, depth=-1)
    with pytest.raises(ValueError, match="must be less than the width of its inputs, 4"):
        HourglassMLP(5, 2, width=4, hidden_units=4, depth=1)
