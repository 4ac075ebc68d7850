import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import nnls

from kzoo.ops.aggregation import Constant, GradDrop, Mean, UPGrad
from kzoo.training import Loop
from kzoo.training.jacobian_descent import InstanceWiseRiskMinimization, JacobianDescent

pytestmark = pytest.mark.paper("Jacobian Descent for Multi-Objective Optimization")

RATE = 0.1


def upgrad(jacobian):
    """The mean of the projections of the rows, by SciPy."""
    return np.mean([g + jacobian.T @ nnls(jacobian.T, -g)[0] for g in jacobian], axis=0)


def linear_model(kernel):
    layer = keras.layers.Dense(kernel.shape[1], use_bias=False)
    model = keras.Sequential([keras.Input([len(kernel)]), layer])
    layer.kernel.assign(kernel)
    return model


def step(trainer, x, y, loss="mse", **options):
    trainer.compile(keras.optimizers.SGD(RATE), loss, **options)
    trainer.fit(x, y, batch_size=len(x), shuffle=False, verbose=0)


# Rows as objectives.


@pytest.mark.parametrize("jit_compile", [False, True])
def test_instances_of_a_linear_regression(float64, rng, jit_compile):
    # The loss of row i is (w . x_i - y_i)^2, its gradient 2 (w . x_i - y_i) x_i.
    x, y, w = rng.normal(size=(5, 3)), rng.normal(size=(5, 1)), rng.normal(size=(3, 1))
    jacobian = 2 * (x @ w - y) * x
    trainer = InstanceWiseRiskMinimization(linear_model(w))
    step(trainer, x, y, jit_compile=jit_compile)
    moved = trainer.get_weights()[0][:, 0]
    np.testing.assert_allclose(moved, w[:, 0] - RATE * upgrad(jacobian), rtol=1e-9)
    assert np.abs(upgrad(jacobian) - jacobian.mean(0)).max() > 0.1


def test_sample_weights_scale_the_objectives(float64, rng):
    x, y, w = rng.normal(size=(4, 3)), rng.normal(size=(4, 1)), rng.normal(size=(3, 1))
    weight = np.array([1.0, 3.0, 0.0, 0.5])
    trainer = InstanceWiseRiskMinimization(linear_model(w), chunk_size=3)
    trainer.compile("sgd", "mse")
    expected = weight[:, np.newaxis] * 2 * (x @ w - y) * x
    np.testing.assert_allclose(trainer.jacobian(x, y, weight), expected, rtol=1e-9)


def network(**options):
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input([5]),
            keras.layers.Dense(8, **options),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.Dense(3),
        ]
    )


def rows(rng, count=16):
    x, y = rng.normal(size=(count, 5)), rng.integers(0, 3, count)
    return x.astype(keras.config.floatx()), y


def fitted(trainer, data, epochs=3, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(RATE, momentum=0.9), loss, metrics=["accuracy"], **options)
    history = trainer.fit(*data, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return trainer.get_weights(), history.history


def test_mean_over_instances_is_plain_training(float64, rng):
    """With moving statistics, dropout and a penalty as they are without the trainer."""
    penalty = {"kernel_regularizer": keras.regularizers.L2(0.1)}
    data = rows(rng)
    plain, plain_history = fitted(network(**penalty), data)
    trainer = InstanceWiseRiskMinimization(network(**penalty), Mean())
    ours, history = fitted(trainer, data)
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(history["loss"], plain_history["loss"], rtol=1e-10)
    assert history["accuracy"] == plain_history["accuracy"]


def test_masked_steps_have_no_loss(float64, rng):
    tokens = rng.integers(0, 4, (6, 5))  # 0 is masked

    def model():
        keras.utils.set_random_seed(2)
        layers = [keras.Input([5]), keras.layers.Embedding(4, 3, mask_zero=True)]
        return keras.Sequential([*layers, keras.layers.Dense(2)])

    found = []
    for trainer in (model(), InstanceWiseRiskMinimization(model(), Mean())):
        step(trainer, tokens, np.stack([tokens, tokens > 1], axis=-1).astype(float))
        found.append(trainer.get_weights())
    for plain, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-9)


def test_row_gradients_go_through_batch_normalization(float64, rng):
    x, y = rows(rng, 4)
    trainer = InstanceWiseRiskMinimization(network())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kernel = trainer.model.layers[0].kernel
    found = trainer.jacobian(x, y).numpy()[:, : 5 * 8]

    def losses():
        before = [v.numpy() for v in trainer.non_trainable_variables]
        values = loss(y, trainer(x, training=True)).numpy()
        for variable, value in zip(trainer.non_trainable_variables, before, strict=True):
            variable.assign(value)
        return values

    value, change = kernel.numpy(), np.zeros([5, 8])
    for index in ((0, 0), (3, 5)):
        change[index] = 1e-6
        kernel.assign(value + change)
        above = losses()
        kernel.assign(value - change)
        numeric = (above - losses()) / 2e-6
        change[index] = 0
        np.testing.assert_allclose(found[:, index[0] * 8 + index[1]], numeric, atol=1e-7)


def test_a_penalty_is_no_objective(float64, rng):
    x, y, w = rng.normal(size=(5, 3)), rng.normal(size=(5, 1)), rng.normal(size=(3, 1))
    model = linear_model(w)
    model.layers[0].kernel.regularizer = keras.regularizers.L2(0.75)
    trainer = InstanceWiseRiskMinimization(model)
    step(trainer, x, y)
    expected = upgrad(2 * (x @ w - y) * x) + 2 * 0.75 * w[:, 0]
    np.testing.assert_allclose(trainer.get_weights()[0][:, 0], w[:, 0] - RATE * expected, rtol=1e-9)


# Outputs as objectives.


def two_tasks(rng, shared, heads):
    """z = x U, outputs z h_k."""
    inputs = keras.Input([3])
    trunk = keras.layers.Dense(2, use_bias=False, name="trunk")
    ends = [keras.layers.Dense(1, use_bias=False, name=name) for name in ("a", "b")]
    hidden = trunk(inputs)
    model = keras.Model(inputs, {end.name: end(hidden) for end in ends})
    for layer, kernel in zip((trunk, *ends), (shared, *heads), strict=True):
        layer.kernel.assign(kernel)
    return model


@pytest.fixture
def tasks(rng):
    """(x, y, U, heads) with gradients of U that conflict, and those of U and the heads."""
    x, shared, heads = rng.normal(size=(6, 3)), rng.normal(size=(3, 2)), rng.normal(size=(2, 2, 1))
    heads[1] = heads[0] + 0.3 * heads[1]
    residuals = rng.normal(size=(2, 6, 1))
    residuals[1] = 0.3 * residuals[1] - residuals[0]
    targets = x @ shared @ heads - residuals
    errors = 2 / 6 * residuals
    of_shared = np.array([(x.T @ e @ h.T).ravel() for e, h in zip(errors, heads, strict=True)])
    of_heads = np.array([shared.T @ x.T @ e for e in errors])
    return x, dict(zip("ab", targets, strict=True)), shared, heads, of_shared, of_heads


def weights_of(model):
    return [model.get_layer(name).kernel.numpy() for name in ("trunk", "a", "b")]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_shared_weights_are_aggregated_and_heads_are_not(float64, rng, tasks, jit_compile):
    x, y, shared, heads, of_shared, of_heads = tasks
    assert of_shared[0] @ of_shared[1] < 0
    model = two_tasks(rng, shared, heads)
    step(JacobianDescent(model), x, y, {"a": "mse", "b": "mse"}, jit_compile=jit_compile)
    trunk, *ends = weights_of(model)
    np.testing.assert_allclose(trunk.ravel(), shared.ravel() - RATE * upgrad(of_shared), rtol=1e-9)
    np.testing.assert_allclose(ends, heads - RATE * of_heads, rtol=1e-9)


def test_loss_weights_scale_the_objectives(float64, rng, tasks):
    x, y, shared, heads, of_shared, _ = tasks
    trainer = JacobianDescent(two_tasks(rng, shared, heads))
    trainer.compile("sgd", {"a": "mse", "b": "mse"}, loss_weights={"a": 3.0, "b": 0.5})
    np.testing.assert_allclose(trainer.jacobian(x, y), [[3.0], [0.5]] * of_shared, rtol=1e-9)


def test_the_sum_is_plain_training(float64, rng, tasks):
    x, y, shared, heads, *_ = tasks
    found = []
    for wrap in (lambda model: model, lambda model: JacobianDescent(model, Constant(1.0))):
        model = two_tasks(rng, shared, heads)
        model.get_layer("trunk").kernel.regularizer = keras.regularizers.L2(0.1)
        trainer = wrap(model)
        trainer.compile(keras.optimizers.Adam(0.1), {"a": "mse", "b": "mae"})
        losses = trainer.fit(x, y, batch_size=3, epochs=2, shuffle=False, verbose=0).history
        found.append((losses["loss"], losses["a_loss"], *weights_of(model)))
    for plain, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-9)


@pytest.mark.parametrize("chained", [True, False])
def test_outputs_that_hang_together(float64, rng, chained):
    """An output that another one is made from, and one that is given twice."""
    x, y, w = rng.normal(size=(6, 3)), rng.normal(size=(2, 6, 1)), rng.normal(size=(3, 1))
    inputs = keras.Input([3])
    trunk = keras.layers.Dense(1, use_bias=False)
    first = trunk(inputs)
    second = keras.layers.Rescaling(2.0)(first) if chained else first
    trunk.kernel.assign(w)
    trainer = JacobianDescent(keras.Model(inputs, {"a": first, "b": second}))
    trainer.compile("sgd", {"a": "mse", "b": "mse"})
    expected = [
        2 / 6 * factor * x.T @ (factor * x @ w - target)
        for factor, target in zip((1, 2 if chained else 1), y, strict=True)
    ]
    found = trainer.jacobian(x, dict(zip("ab", y, strict=True)))
    np.testing.assert_allclose(found, np.array(expected)[..., 0], rtol=1e-9)


def test_draws_go_by_the_step(float64, rng, tasks):
    x, y, shared, heads, *_ = tasks

    def moved(seed, iteration):
        trainer = JacobianDescent(two_tasks(rng, shared, heads), GradDrop(seed=seed))
        optimizer = keras.optimizers.SGD(RATE)
        trainer.compile(optimizer, {"a": "mse", "b": "mse"}, run_eagerly=True)
        optimizer.iterations.assign(iteration)
        trainer.train_step((x, y))
        return weights_of(trainer.model)[0]

    np.testing.assert_array_equal(moved(1, 5), moved(1, 5))
    assert np.abs(moved(1, 5) - moved(1, 6)).max() > 1e-3
    assert np.abs(moved(1, 5) - moved(2, 5)).max() > 1e-3


def test_one_output_is_refused():
    trainer = JacobianDescent(linear_model(np.ones([3, 1])))
    with pytest.raises(ValueError, match="`model` must have a loss for at least two outputs"):
        step(trainer, np.zeros([2, 3]), np.zeros([2, 1]))


# Replicas.


def run_both(make, data, mirrored, batch_size=9, **options):
    found = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            trainer = make()
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
        Loop(trainer, dataset, epochs=2, strategy=strategy, **options).run()
        found.append(trainer.get_weights())
    return found


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_instances_on_two_replicas_equal_one_device(float64, mirrored, rng):
    def make():
        keras.utils.set_random_seed(3)
        layer = keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))
        trainer = InstanceWiseRiskMinimization(keras.Sequential([keras.Input([5]), layer]))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(RATE), loss)
        return trainer

    # 10 rows in batches of 9: the last has one row, and one of the replicas none.
    assert_close(*run_both(make, rows(rng, 10), mirrored))


def test_instances_of_each_replica(float64, mirrored, rng):
    x, y, w = rng.normal(size=(5, 3)), rng.normal(size=(5, 1)), rng.normal(size=(3, 1))
    with mirrored.scope():
        trainer = InstanceWiseRiskMinimization(linear_model(w), per_replica=True)
        trainer.compile(keras.optimizers.SGD(RATE), "mse")
    Loop(trainer, tf.data.Dataset.from_tensors((x, y)), strategy=mirrored).run()
    jacobian = 2 * (x @ w - y) * x
    expected = 3 / 5 * upgrad(jacobian[:3]) + 2 / 5 * upgrad(jacobian[3:])
    np.testing.assert_allclose(trainer.get_weights()[0][:, 0], w[:, 0] - RATE * expected, rtol=1e-9)


@pytest.mark.parametrize("aggregator", [UPGrad(), GradDrop(seed=1)])
def test_tasks_on_two_replicas_equal_one_device(float64, mirrored, rng, tasks, aggregator):
    x, y, shared, heads, *_ = tasks

    def make():
        trainer = JacobianDescent(two_tasks(rng, shared, heads), aggregator)
        trainer.compile(keras.optimizers.SGD(RATE), {"a": "mse", "b": "mse"})
        return trainer

    assert_close(*run_both(make, (x, y), mirrored, batch_size=5))


def test_accumulated_batches_are_aggregated_each(float64, rng):
    x, y, w = rng.normal(size=(6, 3)), rng.normal(size=(6, 1)), rng.normal(size=(3, 1))
    trainer = InstanceWiseRiskMinimization(linear_model(w))
    trainer.compile(keras.optimizers.SGD(RATE), "mse")
    Loop(trainer, tf.data.Dataset.from_tensor_slices((x, y)).batch(3), accumulate=2).run()
    jacobian = 2 * (x @ w - y) * x
    expected = (upgrad(jacobian[:3]) + upgrad(jacobian[3:])) / 2
    np.testing.assert_allclose(trainer.get_weights()[0][:, 0], w[:, 0] - RATE * expected, rtol=1e-9)


def test_bad_arguments():
    model = linear_model(np.ones([3, 1]))
    with pytest.raises(TypeError, match="`aggregator` must be an Aggregator .* Received: 'mean'"):
        JacobianDescent(model, "mean")
    with pytest.raises(ValueError, match="`chunk_size` must be a positive integer or None"):
        InstanceWiseRiskMinimization(model, chunk_size=0)
    with pytest.raises(ValueError, match="`jacobian` needs a compiled trainer"):
        InstanceWiseRiskMinimization(model).jacobian(np.zeros([2, 3]), np.zeros([2, 1]))
