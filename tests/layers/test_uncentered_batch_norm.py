import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.uncentered_batch_norm import UncenteredBatchNorm

pytestmark = pytest.mark.paper(
    "Towards Training Without Depth Limits: Batch Normalization Without Gradient Explosion"
)


def test_is_the_papers_matrix_formula(float64, rng):
    x = rng.normal(1.0, 2.0, size=(7, 4))
    h = x.T
    expected = np.diag(np.diag(h @ h.T) ** -0.5) @ h * np.sqrt(7)
    outputs = UncenteredBatchNorm(epsilon=0.0)(x, training=True)
    np.testing.assert_allclose(outputs, expected.T, rtol=1e-12)


def test_keeps_the_mean(rng):
    x = np.full((6, 2), [[3.0, -5.0]], "float32")
    outputs = UncenteredBatchNorm()(x, training=True)
    np.testing.assert_allclose(outputs, np.full((6, 2), [[1.0, -1.0]]), rtol=1e-5)


def test_all_axes_but_the_last_are_the_batch(float64, rng):
    x = rng.normal(size=(3, 2, 5, 4))
    layer = UncenteredBatchNorm()
    flat = layer(x.reshape(-1, 4), training=True)
    np.testing.assert_allclose(layer(x, training=True), np.reshape(flat, x.shape), rtol=1e-12)


def test_inference_divides_by_the_moving_average(float64, rng):
    layer = UncenteredBatchNorm(momentum=0.75, epsilon=0.1)
    moving = np.ones(3)
    for _ in range(4):
        x = rng.normal(size=(5, 3))
        layer(x, training=True)
        moving = 0.75 * moving + 0.25 * np.mean(x**2, axis=0)
    np.testing.assert_allclose(layer(x), x / np.sqrt(moving + 0.1), rtol=1e-12)
    layer.trainable = False
    np.testing.assert_allclose(layer(x, training=True), layer(x), rtol=0)
    np.testing.assert_allclose(layer.moving_mean_square, moving, rtol=1e-12)


def test_masked_places_do_not_count(float64, rng):
    x = rng.normal(size=(2, 4, 3))
    mask = np.array([[True, True, False, False], [True, True, True, False]])
    kept = x[mask]
    outputs = UncenteredBatchNorm(epsilon=0.0)(x, training=True, mask=mask)
    np.testing.assert_allclose(outputs[mask], kept / np.sqrt(np.mean(kept**2, 0)), rtol=1e-12)
    nothing = UncenteredBatchNorm()(x, training=True, mask=np.zeros_like(mask))
    assert np.isfinite(nothing).all()


def test_gradient_by_finite_differences(float64, rng):
    layer = UncenteredBatchNorm(epsilon=0.01)
    x = tf.constant(rng.normal(size=(4, 3)))
    layer.build(x.shape)
    theoretical, numerical = tf.test.compute_gradient(
        lambda x: layer(x, training=True), [x], delta=1e-5
    )
    np.testing.assert_allclose(theoretical[0], numerical[0], atol=1e-7)


def test_gradient_is_orthogonal_to_each_feature(float64, rng):
    # The output does not change with a feature's scale.
    x = tf.constant(rng.normal(size=(6, 3)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(UncenteredBatchNorm(epsilon=0.0)(x, training=True) ** 3)
    gradient = tape.gradient(loss, x).numpy()
    np.testing.assert_allclose(np.sum(gradient * x.numpy(), axis=0), 0, atol=1e-12)
    assert np.abs(gradient).max() > 0.1


def test_replicas_share_one_batch(mirrored, rng):
    x = rng.normal(size=(6, 3)).astype("float32")
    with mirrored.scope():
        layer = UncenteredBatchNorm()
        layer.build((None, 3))
    parts = [x[:2], x[2:]]  # uneven
    values = mirrored.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )

    @tf.function
    def step(values):
        def replica(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = tf.reduce_sum(y**3)
            return y, tape.gradient(loss, x)

        return mirrored.run(replica, args=(values,))

    outputs, gradients = step(values)
    alone = UncenteredBatchNorm()
    whole = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(whole)
        expected = alone(whole, training=True)
        loss = tf.reduce_sum(expected**3)
    join = lambda values: np.concatenate(mirrored.experimental_local_results(values))  # noqa: E731
    np.testing.assert_allclose(join(outputs), expected, rtol=1e-5)
    np.testing.assert_allclose(join(gradients), tape.gradient(loss, whole), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean_square, alone.moving_mean_square, rtol=1e-6)


def test_zeros_give_zeros_and_finite_gradients():
    x = tf.zeros((3, 2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = UncenteredBatchNorm()(x, training=True)
    np.testing.assert_array_equal(outputs, np.zeros((3, 2)))
    assert np.isfinite(tape.gradient(outputs, x)).all()


@pytest.mark.parametrize("kwargs", [{"momentum": 1.0}, {"momentum": -0.1}, {"epsilon": -1e-3}])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        UncenteredBatchNorm(**kwargs)


def test_keras_orthogonal_is_uniform_over_orthogonal_matrices():
    # Of the Haar measure: tr Q has mean 0 and variance 1, and E[Q_11^4] = 3 / (n (n + 2)).
    draws = np.array([keras.initializers.Orthogonal(seed=i)((3, 3)) for i in range(400)])
    np.testing.assert_allclose(draws[0] @ draws[0].T, np.eye(3), atol=1e-6)
    traces = np.trace(draws, axis1=1, axis2=2)
    assert abs(traces.mean()) < 4 / 20
    assert abs(traces.var() - 1) < 0.3
    assert abs(np.mean(draws**4) - 3 / 15) < 0.02
    assert abs((np.linalg.det(draws) > 0).mean() - 0.5) < 0.1
