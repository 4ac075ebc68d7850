"""Learning rates and weight decays of their own for groups of variables."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.optimizers import AdEMAMix, CautiousLion, Grams
from kzoo.optimizers.learning_rate_multipliers import LearningRateMultipliers, layerwise_decay
from kzoo.training import Loop
from tests.optimizers.reference import trajectory

optimizers = keras.optimizers

# With every option that acts on one variable alone; Muon's two kinds of weight decay included.
EVERY = {
    "SGD": lambda lr, k: optimizers.SGD(lr, momentum=0.9, nesterov=True, weight_decay=0.1 * k),
    "Adam": lambda lr, k: optimizers.Adam(lr, weight_decay=0.1 * k, amsgrad=True),
    "AdamW": lambda lr, k: optimizers.AdamW(lr, weight_decay=0.1 * k, clipnorm=0.5),
    "Adamax": lambda lr, k: optimizers.Adamax(lr, weight_decay=0.1 * k),
    "Nadam": lambda lr, k: optimizers.Nadam(lr, weight_decay=0.1 * k),
    "Adagrad": lambda lr, k: optimizers.Adagrad(lr, weight_decay=0.1 * k),
    "Adadelta": lambda lr, k: optimizers.Adadelta(lr, weight_decay=0.1 * k),
    "RMSprop": lambda lr, k: optimizers.RMSprop(lr, weight_decay=0.1 * k, momentum=0.5),
    "Ftrl": lambda lr, k: optimizers.Ftrl(lr, weight_decay=0.1 * k),
    "Lion": lambda lr, k: optimizers.Lion(lr, weight_decay=0.1 * k),
    "Lamb": lambda lr, k: optimizers.Lamb(lr, weight_decay=0.1 * k),
    "Muon": lambda lr, k: optimizers.Muon(lr, weight_decay=0.1 * k, adam_weight_decay=0.2 * k),
    "ScheduleFreeAdamW": lambda lr, k: optimizers.ScheduleFreeAdamW(lr, weight_decay=0.1 * k),
    "Grams": lambda lr, k: Grams(lr, weight_decay=0.1 * k),
    "AdEMAMix": lambda lr, k: AdEMAMix(lr, weight_decay=0.1 * k, clipvalue=0.5, use_ema=True),
    "CautiousLion": lambda lr, k: CautiousLion(lr, weight_decay=0.1 * k),
}


def run(optimizer, starts, gradients):
    """Weights after all steps."""
    variables = [keras.Variable(start, name=f"v{i}") for i, start in enumerate(starts)]
    optimizer.build(variables)
    apply = tf.function(lambda grads: optimizer.apply(grads, variables))
    for grads in gradients:
        apply([tf.constant(g) for g in grads])
    return [variable.numpy() for variable in variables]


@pytest.mark.parametrize("name", EVERY)
def test_each_variable_moves_as_if_it_had_an_optimizer_of_its_own(float64, rng, name):
    starts = [rng.normal(size=(3, 2)), rng.normal(size=(2,))]
    gradients = [[rng.normal(size=s.shape) for s in starts] for _ in range(6)]
    rates, decays = (1.0, 0.25), (1.0, 3.0)
    ours = run(
        LearningRateMultipliers(EVERY[name](0.0625, 1.0), list(rates), list(decays)),
        starts,
        gradients,
    )
    for i, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        (alone,) = run(EVERY[name](0.0625 * rate, decay), [starts[i]], [[g[i]] for g in gradients])
        np.testing.assert_allclose(ours[i], alone, rtol=1e-6, atol=0)


def test_five_steps_computed_by_hand(float64):
    # lr = 1/2 * 1/4, decay = 1/4 * 2: w <- w - 1/8 (2 g) - 1/16 w.
    optimizer = LearningRateMultipliers(
        optimizers.SGD(0.5, weight_decay=0.25), {"variable": 0.25}, {"": 2.0}, {"": 2.0}
    )
    gradients = np.array([[1.0], [-1.0], [0.0], [2.0], [1.0]])
    expected, w = [], 1.0
    for g in (1.0, -1.0, 0.0, 2.0, 1.0):
        w = w * 15 / 16 - g / 4
        expected.append([w])
    np.testing.assert_allclose(trajectory(optimizer, np.ones(1), gradients), expected, rtol=1e-12)


def test_multipliers_of_one_change_nothing(rng):
    start, gradients = rng.normal(size=(3,)), rng.normal(size=(20, 3))
    plain, wrapped = (
        trajectory(wrap(optimizers.AdamW(0.1)), start, gradients)
        for wrap in (lambda o: o, lambda o: LearningRateMultipliers(o, [1.0], {".": 1.0}))
    )
    np.testing.assert_array_equal(plain, wrapped)


def test_gradient_multipliers_divide_adams_epsilon(float64, rng):
    start, gradients = rng.normal(size=(3,)), 1e-3 * rng.normal(size=(20, 3))
    scaled = LearningRateMultipliers(optimizers.Adam(0.1, epsilon=1e-3), gradient_multipliers=[8.0])
    smaller = optimizers.Adam(0.1, epsilon=1e-3 / 8)
    np.testing.assert_allclose(
        trajectory(scaled, start, gradients), trajectory(smaller, start, gradients), rtol=1e-12
    )


def test_one_global_norm_clips_all(rng):
    grads = [np.array([3.0], "float32"), np.array([4.0], "float32")]
    optimizer = LearningRateMultipliers(optimizers.SGD(1.0, global_clipnorm=1.0), [1.0, 10.0])
    np.testing.assert_allclose(np.ravel(run(optimizer, [[0.0], [0.0]], [grads])), [-0.6, -8.0])


def test_wrappers_multiply(rng):
    start, gradients = rng.normal(size=(3,)), rng.normal(size=(4, 3))
    twice = LearningRateMultipliers(
        LearningRateMultipliers(optimizers.AdamW(0.1, weight_decay=0.5), [0.5], [4.0]), [0.5], [2.0]
    )
    once = LearningRateMultipliers(optimizers.AdamW(0.1, weight_decay=0.5), [0.25], [8.0])
    np.testing.assert_allclose(
        trajectory(twice, start, gradients), trajectory(once, start, gradients), rtol=1e-6
    )


def network(optimizer, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input([2], dtype="int32"),
            keras.layers.Embedding(5, 4, name="tokens"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, "tanh", name="hidden"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    model.compile(optimizer, "mse", **options)
    return model


def rows():
    rng = np.random.default_rng(3)
    return rng.integers(0, 5, (24, 2)), rng.normal(size=(24, 1)).astype(keras.config.floatx())


def multiplied(inner):
    return LearningRateMultipliers(
        inner, {"tokens/": 0.5, "head": 2.0}, {"bias": 0.0, "hidden": 4.0}, {"kernel": 2.0}
    )


def fitted(optimizer, **options):
    model = network(optimizer, **options)
    model.fit(*rows(), batch_size=8, epochs=3, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize("make", [lambda: Grams(0.05), lambda: optimizers.AdamW(0.05)])
def test_eager_graph_and_xla_take_the_same_steps(make):
    graph, eager, xla = (
        fitted(multiplied(make()), **options).get_weights()
        for options in ({"jit_compile": False}, {"run_eagerly": True}, {"jit_compile": True})
    )
    for a, b, c in zip(graph, eager, xla, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-5)


@keras.saving.register_keras_serializable("kzoo_tests")
def halved_biases(variable):
    return 0.5 if "bias" in variable.path else 1.0


@pytest.mark.parametrize(
    ("make", "multipliers"),
    [
        (lambda: optimizers.AdamW(0.05, use_ema=True), [0.5] * 5),
        (lambda: optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1), halved_biases),
        (lambda: Grams(0.05, weight_decay=0.1, skip_nonfinite=True), {"head": 2.0}),
    ],
)
def test_a_loaded_model_takes_the_same_next_step(make, multipliers, tmp_path):
    model = fitted(LearningRateMultipliers(make(), multipliers, {"bias": 0.0}))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert int(again.optimizer.iterations) == 9
    for each in (model, again):
        each.fit(*rows(), batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_checkpoints_hold_the_slots(tmp_path):
    model, other = (fitted(multiplied(optimizers.Adam(0.05))) for _ in "12")
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "c")
    values = [v.numpy() for v in model.optimizer.variables]
    other.fit(*rows(), verbose=0)
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(saved)
    for value, variable in zip(values, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1, global_clipnorm=0.2),
        lambda: Grams(0.05, weight_decay=0.1, global_clipnorm=0.2),
        lambda: optimizers.LossScaleOptimizer(
            multiplied(optimizers.SGD(0.05, global_clipnorm=0.2)), initial_scale=8.0
        ),
    ],
)
def test_two_replicas_equal_one_device(make, mirrored, float64):
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            optimizer = make()
            if not hasattr(optimizer, "inner_optimizer"):
                optimizer = multiplied(optimizer)
            model = network(optimizer)
        # An uneven last batch.
        Loop(model, rows_of(9), epochs=2, strategy=strategy).run()
        weights.append(model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-10)


def rows_of(batch_size):
    return tf.data.Dataset.from_tensor_slices(rows()).batch(batch_size)


def test_callbacks_set_the_rate_that_is_multiplied():
    optimizer = multiplied(optimizers.SGD(0.05))
    model = network(optimizer)
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.0)
    before = model.get_weights()
    model.fit(*rows(), verbose=0, callbacks=[schedule])
    assert float(optimizer.inner_optimizer.learning_rate) == 0.0
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_mixed_precision_and_schedules_train():
    keras.config.set_dtype_policy("mixed_float16")
    schedule = optimizers.schedules.CosineDecay(0.1, 30)
    model = network(multiplied(optimizers.Adam(schedule)))
    assert isinstance(model.optimizer, optimizers.LossScaleOptimizer)
    losses = model.fit(*rows(), epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_attributes_are_those_of_the_inner_optimizer():
    optimizer = LearningRateMultipliers(Grams(0.1, skip_nonfinite=True, use_ema=True))
    assert optimizer.use_ema
    assert int(optimizer.skipped_steps) == 0
    optimizer.learning_rate = 0.5
    assert float(optimizer.inner_optimizer.learning_rate) == 0.5
    with pytest.raises(AttributeError):
        _ = optimizer.not_there


def test_layerwise_decay():
    assert layerwise_decay(["a", "b", "c"], 0.5) == {"a": 0.25, "b": 0.5, "c": 1.0}
    with pytest.raises(ValueError, match="`decay` must be in .* Received: 0"):
        layerwise_decay(["a"], 0)
    with pytest.raises(ValueError, match="without repetitions"):
        layerwise_decay(["a", "a"], 0.5)


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        ({"haed": 2.0}, "'haed', which is found in no variable's path. The paths: .*head/kernel"),
        ([1.0], "one number for each of the 5 variables. Received: 1"),
        (lambda variable: -1.0, "`multipliers` must be finite numbers of at least 0"),
    ],
)
def test_refuses_what_does_not_fit_the_variables(multipliers, message):
    optimizer = LearningRateMultipliers(optimizers.SGD(0.1), multipliers)
    with pytest.raises(ValueError, match=message):
        optimizer.build(network("sgd").trainable_variables)


def test_refuses_bad_arguments():
    inner = optimizers.SGD(0.1)
    with pytest.raises(ValueError, match="finite numbers of at least 0. Received: -1.0"):
        LearningRateMultipliers(inner, [-1.0])
    with pytest.raises(TypeError, match="`weight_decay_multipliers` must be a dictionary"):
        LearningRateMultipliers(inner, [1.0], 3)
    with pytest.raises(TypeError, match="`inner_optimizer` must be a keras.optimizers.Optimizer"):
        LearningRateMultipliers("sgd")
    with pytest.raises(ValueError, match="must be outermost"):
        LearningRateMultipliers(optimizers.LossScaleOptimizer(inner))
    multi = optimizers.MultiOptimizer(optimizers.OptimizerMap(inner))
    with pytest.raises(ValueError, match="which MultiOptimizer does not define"):
        LearningRateMultipliers(multi)
    inner.build([keras.Variable([1.0])])
    with pytest.raises(ValueError, match="must not have been built"):
        LearningRateMultipliers(inner)
