"""The physics-informed mixture: its conditions, its residual, and what training does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.models.pi_hc_moe import PIHCMoE

pytestmark = pytest.mark.paper("Scaling physics-informed hard constraints with mixture-of-experts")


@keras.saving.register_keras_serializable("tests")
def poisson(fields, data):
    """u'' + u^3 = -f, with f the second channel."""
    return fields[..., 1] + fields[..., 0] ** 3 + data[..., 1]


def model(**kwargs):
    made = {
        "grid": (12,),
        "orders": ((2,),),
        "modes": 3,
        "experts": 1,
        "residual": poisson,
        "zero_at": ("ends",),
        "input_channels": 2,
        "basis": 4,
        "filters": 4,
        "blocks": 1,
        "hidden": 8,
        "iterations": 10,
    }
    return PIHCMoE(**made | kwargs)


def inputs(rng, rows=3):
    """u_0 = 1 + x, and smooth forces."""
    x = np.linspace(0, 1, 12)
    force = 5 * np.sin(np.pi * x * rng.uniform(1, 3, (rows, 1)))
    return np.stack([np.tile(1 + x, (rows, 1)), force], -1).astype("float32")


def test_the_boundary_values_are_those_of_the_first_channel(rng):
    solution = model(experts=3)(inputs(rng))["solution"].numpy()
    np.testing.assert_allclose(solution[:, [0, -1], 0], [[1, 2]] * 3, atol=1e-6)


def test_the_residual_is_that_of_the_solution_for_one_expert(rng):
    given = inputs(rng)
    outputs = {name: x.numpy()[..., 0] for name, x in model()(given).items()}
    u, h = outputs["solution"], 1 / 11
    second = (u[:, 2:] - 2 * u[:, 1:-1] + u[:, :-2]) / h**2
    expected = second + u[:, 1:-1] ** 3 + given[:, 1:-1, 1]
    np.testing.assert_allclose(outputs["residual"][:, 1:-1], expected, atol=5e-3)


def test_more_experts_fit_the_equation_better(rng):
    one, three = model(), model(experts=3)
    three.set_weights(one.get_weights())
    means = [np.mean(each(inputs(rng))["residual"] ** 2) for each in (one, three)]
    assert means[1] < 0.5 * means[0]


def test_the_losses_gradient_through_the_solve_equals_a_finite_difference(rng):
    """Experts see 7 of 12 points: on all of them the solve's own objective would hide its part."""
    operator, given = model(points=7, ridge=1e-3, iterations=40), inputs(rng)
    weights = [weight.value for weight in operator.trainable_weights]

    @tf.function
    def loss_and_gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(operator(given)["residual"] ** 2)
        return loss, tape.gradient(loss, weights)

    start, (_, gradients) = operator.get_weights(), loss_and_gradients()
    length, step = np.sqrt(sum(np.sum(g**2) for g in gradients)), 1e-3

    def moved(sign):
        scale = sign * step / length
        operator.set_weights([w + scale * g for w, g in zip(start, gradients, strict=True)])
        return float(loss_and_gradients()[0])

    assert (moved(1) - moved(-1)) / (2 * step) == pytest.approx(length, rel=0.03)


def test_it_is_saved_with_its_equation(rng, tmp_path):
    operator, given = model(), inputs(rng)
    operator.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for name, values in operator(given).items():
        np.testing.assert_array_equal(again(given)[name], values)
