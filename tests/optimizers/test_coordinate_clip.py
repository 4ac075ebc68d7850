import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.optimizers.coordinate_clip import CoordinateClip, clip_coordinates, quantile_threshold
from tests.optimizers.reference import trajectory

pytestmark = pytest.mark.paper(
    "Toward Understanding Why Adam Converges Faster Than SGD for Transformers"
)


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.5, 0.999])
def test_the_threshold_is_an_entry_of_the_sorted_magnitudes(rng, dtype, fraction, jit_compile):
    arrays = [rng.standard_cauchy(size).astype(dtype) for size in ((7, 30), (91,), ())]
    flat = np.sort(np.abs(np.concatenate([np.ravel(a) for a in arrays])))[::-1]
    function = tf.function(quantile_threshold, jit_compile=jit_compile, autograph=False)
    threshold = function([tf.constant(a) for a in arrays], fraction)
    assert threshold.numpy() == flat[int(fraction * flat.size)]


def test_thresholds_of_extreme_numbers():
    tiny, huge = np.float32(1e-42), np.finfo("float32").max  # the first is not a normal number
    for values, expected in (
        ([0.0, 0.0, 0.0, 0.0], 0.0),
        ([np.inf, 1.0, huge, -2.0], huge),
        ([-huge, 0.0, -3.0, 1.0], 3.0),
        ([5.0, 5.0, 5.0, -5.0], 5.0),
    ):
        assert quantile_threshold([tf.constant(values, tf.float32)], 0.25).numpy() == expected
    assert float(quantile_threshold([tf.constant([1.0, tiny])], 0.5)) in (0.0, tiny)


def test_exactly_the_largest_are_cut_to_one_size(rng):
    gradients = [rng.normal(size=(40, 20)).astype("float32"), rng.normal(size=70).astype("float32")]
    clipped = clip_coordinates([tf.constant(g) for g in gradients], 0.1)
    before, after = (np.concatenate([np.ravel(g) for g in each]) for each in (gradients, clipped))
    cut = before != after
    assert cut.sum() == 87
    assert len(np.unique(np.abs(after[cut]))) == 1
    np.testing.assert_array_equal(np.sign(after), np.sign(before))
    assert np.abs(before[cut]).min() > np.abs(before[~cut]).max() == np.abs(after).max()


def by_the_formula(start, gradients, fraction, lr, momentum):
    """SGD with momentum of clipped gradients, line by line."""
    w, m, weights = start.copy(), 0.0, []
    for g in gradients:
        limit = np.sort(np.abs(g), axis=None)[::-1][int(fraction * g.size)]
        m = momentum * m - lr * np.clip(g, -limit, limit)
        w = w + m
        weights.append(w)
    return np.stack(weights)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_equals_the_formula_over_200_steps(float64, rng, jit_compile):
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(200, 3, 4))
    sgd = keras.optimizers.SGD(0.0625, momentum=0.75)
    optimizer = CoordinateClip(sgd, fraction=0.3, jit_compile=jit_compile)
    expected = by_the_formula(start, gradients, 0.3, 0.0625, 0.75)
    np.testing.assert_allclose(trajectory(optimizer, start, gradients), expected, rtol=1e-11)


def test_five_steps_of_clipped_updates_computed_by_hand(float64):
    # The update of SGD with momentum 1/2 is (8, 2), then it halves and the gradient joins; half of
    # the two entries, one, is cut to the other. The momentum itself is not.
    gradients = np.array([[8.0, 2.0], [0.0, 0.0], [-4.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    moves = np.array([[8, 2], [4, 1], [-2, 0.5], [-1, 3.25], [0.5, 2.625]])
    limits = np.array([2, 1, 0.5, 1, 0.5])[:, None]
    optimizer = CoordinateClip(keras.optimizers.SGD(1.0, momentum=0.5), 0.5, target="update")
    weights = trajectory(optimizer, np.zeros(2), gradients)
    np.testing.assert_allclose(weights, -np.clip(moves, -limits, limits).cumsum(axis=0), rtol=1e-12)


def test_weight_decay_is_not_clipped():
    optimizer = CoordinateClip(
        keras.optimizers.SGD(0.5, weight_decay=0.5), fraction=0.5, target="update"
    )
    weights = trajectory(optimizer, np.array([8.0, 4.0], "float32"), np.array([[4.0, 2.0]]))
    np.testing.assert_allclose(weights, [[5.0, 2.0]])


def test_the_quantile_is_that_of_the_whole_model():
    variables = [keras.Variable(np.zeros(2, "float32")) for _ in range(2)]
    optimizer = CoordinateClip(keras.optimizers.SGD(1.0), fraction=0.5)
    optimizer.apply([tf.constant([9.0, -8.0]), tf.constant([1.0, 2.0])], variables)
    np.testing.assert_array_equal(variables[0].numpy(), [-2.0, 2.0])
    np.testing.assert_array_equal(variables[1].numpy(), [-1.0, -2.0])


def test_clipped_updates_leave_the_others_to_the_bit(rng):
    start = rng.normal(size=50).astype("float32")
    gradients = rng.normal(size=(1, 50))
    (plain,), (clipped,) = (
        trajectory(optimizer, start, gradients)
        for optimizer in (
            keras.optimizers.SGD(1e-3),
            CoordinateClip(keras.optimizers.SGD(1e-3), 0.2, target="update"),
        )
    )
    assert 1 <= (plain != clipped).sum() <= 10


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_bfloat16(target):
    variable = keras.Variable(np.zeros(4), dtype="bfloat16")
    CoordinateClip(keras.optimizers.SGD(1.0), 0.5, target).apply(
        [tf.constant([-8.0, 4.0, 2.0, 1.0], tf.bfloat16)], [variable]
    )
    np.testing.assert_array_equal(variable.numpy().astype("float32"), [2.0, -2.0, -2.0, -1.0])


@pytest.mark.parametrize(
    ("argument", "value"), [("fraction", 1.0), ("fraction", -0.1), ("target", "weights")]
)
def test_refuses_what_is_out_of_range(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be .* Received: {value!r}"):
        CoordinateClip(keras.optimizers.SGD(0.1), **{argument: value})
