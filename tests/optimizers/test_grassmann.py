import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.grassmann import GrassmannClassifier
from kzoo.ops.grassmann import principal_angles
from kzoo.optimizers.grassmann import GrassmannSGD

pytestmark = pytest.mark.paper(
    "Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class "
    "Representation"
)


def subspaces(rng, shape=(4, 7, 3), dtype="float64"):
    variable = keras.Variable(np.linalg.qr(rng.normal(size=shape))[0], dtype=dtype)
    variable.geometry = "grassmann"
    return variable


def grassmann_sgd(learning_rate=0.1, **kwargs):
    return GrassmannSGD(keras.optimizers.SGD(learning_rate, momentum=0.9), **kwargs)


@pytest.mark.usefixtures("float64")
def test_200_steps_are_algorithm_1(rng):
    """With singular value and QR decompositions in NumPy; the subspaces are compared."""
    variable = subspaces(rng)
    s, m = variable.numpy(), np.zeros(variable.shape)
    optimizer = grassmann_sgd(0.05, momentum=0.8, learning_rate_multiplier=2.0)
    target = rng.normal(size=(7, 7))
    for _ in range(200):
        optimizer.apply([tf.constant(target @ variable.numpy())], [variable])
        for i in range(4):
            flat = np.eye(7) - s[i] @ s[i].T
            m[i] = 0.8 * flat @ m[i] + flat @ (target @ s[i])
            u, sigma, vt = np.linalg.svd(-0.1 * m[i], full_matrices=False)
            moved = s[i] @ vt.T @ np.diag(np.cos(sigma)) @ vt + u @ np.diag(np.sin(sigma)) @ vt
            q, r = np.linalg.qr(moved)
            s[i] = q * np.sign(np.diag(r))
    np.testing.assert_allclose(
        variable.numpy() @ np.swapaxes(variable.numpy(), 1, 2), s @ np.swapaxes(s, 1, 2), atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_500_steps_stay_on_the_manifold_where_sgd_leaves_it(rng, dtype):
    keras.config.set_floatx(dtype)
    variable, plain = subspaces(rng, dtype=dtype), subspaces(rng, dtype=dtype)
    plain.geometry = "flat"
    optimizer = grassmann_sgd(0.3)
    for gradient in rng.normal(size=(500, 4, 7, 3)).astype(dtype):
        optimizer.apply([tf.constant(gradient), tf.constant(gradient)], [variable, plain])

    def error(s):
        return np.abs(np.swapaxes(s, 1, 2) @ s - np.eye(3)).max()

    assert error(variable.numpy()) < (1e-6 if dtype == "float32" else 1e-14)
    assert error(plain.numpy()) > 1


def test_first_step_has_the_length_of_the_riemannian_gradient(rng):
    variable = subspaces(rng)
    before = tf.constant(variable.numpy())
    gradient = tf.constant(rng.normal(size=(4, 7, 3)))
    grassmann_sgd(0.01).apply([gradient], [variable])
    tangent = gradient - before @ (tf.transpose(before, [0, 2, 1]) @ gradient)
    np.testing.assert_allclose(
        tf.norm(principal_angles(before, variable.value), axis=1),
        0.01 * tf.norm(tangent, axis=[1, 2]),
        rtol=1e-6,
    )


def test_other_variables_are_the_base_optimizers(rng):
    start, gradients = rng.normal(size=(2, 5)), rng.normal(size=(4, 2, 5))
    results = []
    for wrap in (lambda base: base, GrassmannSGD):
        variable, bases = keras.Variable(start, dtype="float32"), subspaces(rng, dtype="float32")
        optimizer = wrap(keras.optimizers.AdamW(0.1, weight_decay=0.1))
        variables = [variable] if wrap is not GrassmannSGD else [bases, variable]
        optimizer.build(variables)
        for gradient in gradients.astype("float32"):
            given = [tf.constant(gradient)]
            if wrap is GrassmannSGD:
                given = [tf.ones(bases.shape), *given]
            optimizer.apply(given, variables)
        results.append(variable.numpy())
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_subspaces_do_not_decay(rng):
    variable = subspaces(rng, dtype="float32")
    before = variable.numpy()
    optimizer = grassmann_sgd(0.1, weight_decay=0.5)
    optimizer.apply([tf.zeros(variable.shape)], [variable])
    np.testing.assert_allclose(variable.numpy(), before, atol=1e-6)


def test_a_saved_model_takes_the_same_next_step(rng, tmp_path):
    model = keras.Sequential([keras.Input([6]), keras.layers.Dense(8), GrassmannClassifier(3, 2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(grassmann_sgd(), loss)
    x, y = rng.normal(size=(8, 6)), rng.integers(0, 3, 8)
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.fit(x, y, epochs=2, verbose=0, shuffle=False)
    for ours, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["momentum", "learning_rate_multiplier"])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        grassmann_sgd(**{name: -0.1})
