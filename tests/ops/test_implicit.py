import functools

import numpy as np
import pytest
import tensorflow as tf

from kzoo.ops.implicit import cg_inverse_hvp, hypergradients, neumann_inverse_hvp

pytestmark = pytest.mark.paper("Optimizing Millions of Hyperparameters by Implicit Differentiation")


class Ridge:
    """Least squares with a decay exp(h_i) of each weight: everything in closed form."""

    def __init__(self, rng, features=6):
        self.x, self.y = rng.normal(size=(30, features)), rng.normal(size=30)
        self.x_val, self.y_val = rng.normal(size=(20, features)), rng.normal(size=20)
        self.h = rng.uniform(-2, 1, features)
        self.hessian = self.x.T @ self.x / 30 + np.diag(np.exp(self.h))
        self.optimum = self.solve(self.h)

    def solve(self, h):
        gram = self.x.T @ self.x / 30 + np.diag(np.exp(h))
        return np.linalg.solve(gram, self.x.T @ self.y / 30)

    def validation_at_the_optimum_of(self, h):
        return 0.5 * np.mean((self.x_val @ self.solve(h) - self.y_val) ** 2)

    def hypergradient(self, part=None):
        """dV/dh_i = -(part H^-1 dV/dw)_i exp(h_i) w_i; part is the identity if not given."""
        slope = self.x_val.T @ (self.x_val @ self.optimum - self.y_val) / 20
        solved = np.linalg.solve(self.hessian, slope)
        solved = solved if part is None else part @ solved
        return -solved * np.exp(self.h) * self.optimum

    def training(self, weights, hyperparameters):
        (w,), (h,) = weights, hyperparameters
        errors = tf.linalg.matvec(self.x, w) - self.y
        return 0.5 * tf.reduce_mean(errors**2) + 0.5 * tf.reduce_sum(tf.exp(h) * w**2)

    def validation(self, weights, hyperparameters):
        return 0.5 * tf.reduce_mean((tf.linalg.matvec(self.x_val, weights[0]) - self.y_val) ** 2)

    def ours(self, inverse_hvp):
        (gradient,), _ = hypergradients(
            self.training, self.validation, [self.optimum], [self.h], inverse_hvp
        )
        return gradient.numpy()

    def neumann(self, terms, learning_rate=0.2):
        return functools.partial(neumann_inverse_hvp, terms=terms, learning_rate=learning_rate)


@pytest.fixture
def ridge(rng):
    return Ridge(rng)


def test_the_closed_form_is_the_derivative_of_the_validation_loss(ridge):
    for i, expected in enumerate(ridge.hypergradient()):
        up, down = (ridge.h + s * 1e-5 * np.eye(6)[i] for s in (1, -1))
        slope = (
            ridge.validation_at_the_optimum_of(up) - ridge.validation_at_the_optimum_of(down)
        ) / 2e-5
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_conjugate_gradients_give_the_closed_form(ridge):
    # Six unknowns take six iterations.
    ours = ridge.ours(functools.partial(cg_inverse_hvp, iterations=6, tolerance=1e-12))
    np.testing.assert_allclose(ours, ridge.hypergradient(), rtol=1e-8)


def test_the_neumann_series_converges_to_it_geometrically(ridge):
    # What is missing after K terms is (I - a H)^K times the whole.
    values, vectors = np.linalg.eigh(ridge.hessian)
    for terms in (5, 20, 60):
        missing = vectors @ np.diag((1 - 0.2 * values) ** terms) @ vectors.T
        expected = ridge.hypergradient(np.eye(6) - missing)
        np.testing.assert_allclose(ridge.ours(ridge.neumann(terms)), expected, rtol=1e-9)
    exact = ridge.hypergradient()
    error = np.linalg.norm(ridge.ours(ridge.neumann(200)) - exact)
    assert error < 1e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("terms", [1, 2, 7])
def test_terms_are_unrolled_steps_of_gradient_descent_at_the_optimum(ridge, terms):
    h = tf.Variable(ridge.h)
    with tf.GradientTape() as tape:
        w = tf.constant(ridge.optimum)
        for _ in range(terms):
            with tf.GradientTape() as inner:
                inner.watch(w)
                loss = ridge.training([w], [h])
            w -= 0.2 * inner.gradient(loss, w)
        validation = ridge.validation([w], [h])
    np.testing.assert_allclose(
        ridge.ours(ridge.neumann(terms)), tape.gradient(validation, h), rtol=1e-10
    )


def test_the_gradient_that_does_not_go_through_the_weights_is_added(ridge):
    def with_direct_part(weights, hyperparameters):
        return ridge.validation(weights, None) + tf.reduce_sum(hyperparameters[0] ** 2)

    (gradient,), (training, validation) = hypergradients(
        ridge.training, with_direct_part, [ridge.optimum], [ridge.h], cg_inverse_hvp
    )
    expected = ridge.hypergradient() + 2 * ridge.h
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)
    assert float(training) == pytest.approx(float(ridge.training([ridge.optimum], [ridge.h])))
    expected = ridge.validation_at_the_optimum_of(ridge.h) + (ridge.h**2).sum()
    assert float(validation) == pytest.approx(expected)


def test_memory_and_graph_do_not_grow_with_the_terms(ridge):
    @tf.function
    def ours(terms):
        return hypergradients(
            ridge.training, ridge.validation, [ridge.optimum], [ridge.h], ridge.neumann(terms)
        )[0]

    graph = ours.get_concrete_function(tf.TensorSpec([], tf.int32)).graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    # What a loop keeps for a later backward pass it pushes onto lists.
    assert not [node.op for node in nodes if "TensorList" in node.op or "Stack" in node.op]
    assert any("While" in node.op for node in nodes)
    for terms in (3, 300):
        expected = ridge.ours(ridge.neumann(terms))
        np.testing.assert_allclose(ours(tf.constant(terms))[0], expected, rtol=1e-9)
    assert ours.experimental_get_tracing_count() == 1


def test_inverses_over_several_tensors_compiled(rng):
    a = rng.normal(size=(7, 7))
    hessian = a @ a.T + np.eye(7)
    vectors = [tf.constant(rng.normal(size=(2, 2))), tf.constant(rng.normal(size=3))]
    flat = np.concatenate([v.numpy().ravel() for v in vectors])

    def product(parts):
        whole = tf.linalg.matvec(hessian, tf.concat([tf.reshape(parts[0], [-1]), parts[1]], 0))
        return [tf.reshape(whole[:4], [2, 2]), whole[4:]]

    def solve(inverse_hvp, **options):
        return tf.function(lambda: inverse_hvp(product, vectors, **options), jit_compile=True)()

    for damping in (0.0, 3.0):
        found = solve(cg_inverse_hvp, iterations=20, tolerance=1e-12, damping=damping)
        expected = np.linalg.solve(hessian + damping * np.eye(7), flat)
        np.testing.assert_allclose(found[0], expected[:4].reshape(2, 2), rtol=1e-7)
        np.testing.assert_allclose(found[1], expected[4:], rtol=1e-7)
    found = solve(neumann_inverse_hvp, terms=2, learning_rate=tf.constant(0.125))
    expected = 0.125 * (2 * flat - 0.125 * hessian @ flat)
    np.testing.assert_allclose(found[1], expected[4:], rtol=1e-12)
    np.testing.assert_array_equal(
        cg_inverse_hvp(product, [tf.zeros_like(v) for v in vectors])[1], 0
    )
