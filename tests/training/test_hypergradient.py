import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.training.hypergradient import HypergradientTrainer, decay_variables, l2_decay

pytestmark = pytest.mark.paper("Optimizing Millions of Hyperparameters by Implicit Differentiation")


def network(*extra):
    keras.utils.set_random_seed(4)
    layers = [keras.layers.Dense(4, "tanh"), *extra, keras.layers.Dense(2)]
    return keras.Sequential([keras.Input([3]), *layers])


def loss(model, decays, batch, training=True):
    return 0.5 * tf.reduce_mean(tf.square(model(batch[0], training=training) - batch[1]))


def decayed_loss(model, decays, batch):
    return loss(model, decays, batch) + l2_decay(model.trainable_variables, decays)


def rows(rng, count=12):
    dtype = keras.config.floatx()
    return rng.normal(size=(count, 3)).astype(dtype), rng.normal(size=(count, 2)).astype(dtype)


def make(model=None, **options):
    model = model or network()
    arguments = {
        "hyperparameters": decay_variables(model.trainable_variables, initial=0.1),
        "training_loss": decayed_loss,
        "validation_loss": loss,
        "optimizer": keras.optimizers.SGD(0.1),
        "hyper_optimizer": keras.optimizers.SGD(0.5),
    }
    return HypergradientTrainer(model, **{**arguments, **options})


def dataset(batch):
    return tf.data.Dataset.from_tensors(batch)


def dense_hypergradient(trainer, batch, validation_batch, inverse):
    """The formula with the whole Hessian, from explicit Jacobians."""
    weights, decays = trainer.model.trainable_variables, trainer.hyperparameters

    def flat(tensors, leading=0):
        return np.concatenate([t.numpy().reshape(*t.shape[:leading], -1) for t in tensors], -1)

    values, h_values = [w.value for w in weights], [h.value for h in decays]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            training = trainer.training_loss(trainer.model, decays, batch)
        slopes = tf.concat([tf.reshape(g, [-1]) for g in inner.gradient(training, values)], 0)
    hessian = flat(outer.jacobian(slopes, values), 1)
    mixed = flat(outer.jacobian(slopes, h_values), 1)
    with tf.GradientTape() as tape:
        validation = trainer.validation_loss(trainer.model, decays, validation_batch)
    return -inverse(hessian) @ flat(tape.gradient(validation, values)) @ mixed


@pytest.mark.parametrize("per", ["weight", "variable"])
def test_hypergradients_of_a_network_equal_the_dense_formula(float64, rng, per):
    model = network()
    # Decays that make the loss convex at this point, so that conjugate gradients converge.
    decays = decay_variables(model.trainable_variables, per, initial=0.7)
    trainer = make(model, hyperparameters=decays, inverse_hvp="cg", terms=60)
    train, validation = rows(rng), rows(rng)
    gradients, losses = trainer.hypergradients(train, validation)
    expected = dense_hypergradient(trainer, train, validation, np.linalg.inv)
    ours = np.concatenate([g.numpy().ravel() for g in gradients])
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())
    assert [g.shape for g in gradients] == [h.shape for h in decays]
    assert float(losses[1]) == pytest.approx(float(loss(model, decays, validation)))


def test_the_series_takes_the_inner_learning_rate_and_one_term_is_t1_t2(float64, rng):
    train, validation = rows(rng), rows(rng)
    for options, rate in (({}, 0.1), ({"learning_rate": 0.3}, 0.3)):
        trainer = make(terms=1, **options)
        gradients, _ = trainer.hypergradients(train, validation)
        expected = dense_hypergradient(
            trainer, train, validation, lambda hessian, rate=rate: rate * np.eye(len(hessian))
        )
        ours = np.concatenate([g.numpy().ravel() for g in gradients])
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_steps_of_both_optimizers_in_turn(float64, rng):
    train, validation = rows(rng), rows(rng)
    trainer = make(inner_steps=3, terms=2)
    history = trainer.fit(dataset(train), dataset(validation), epochs=1, steps_per_epoch=2)

    model, by_hand = network(), make(terms=2)
    decays = by_hand.hyperparameters
    by_hand.model.set_weights(model.get_weights())
    norms = []
    for _ in range(2):
        for _ in range(3):
            weights = [w.value for w in by_hand.model.trainable_variables]
            with tf.GradientTape() as tape:
                value = decayed_loss(by_hand.model, decays, train)
            for w, g in zip(weights, tape.gradient(value, weights), strict=True):
                w.assign_sub(0.1 * g)
        gradients, _ = by_hand.hypergradients(train, validation)
        norms.append(float(tf.linalg.global_norm(gradients)))
        for h, g in zip(decays, gradients, strict=True):
            h.assign_sub(0.5 * g)
    for ours, expected in zip(
        [*trainer.model.trainable_variables, *trainer.hyperparameters],
        [*by_hand.model.trainable_variables, *decays],
        strict=True,
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-8)
    assert set(history.history) == {"loss", "val_loss", "hypergradient_norm"}
    assert history.history["hypergradient_norm"] == pytest.approx([np.mean(norms)], rel=1e-6)


def test_learns_which_inputs_to_ignore(rng):
    # Four training rows, whose last two inputs are noise: their weights should decay.
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1, use_bias=False)])

    def linear_rows(count):
        x = rng.normal(size=(count, 4)).astype("float32")
        return x, x[:, :1] - x[:, 1:2] + 0.5 * rng.normal(size=(count, 1)).astype("float32")

    trainer = make(
        model,
        inner_steps=10,
        terms=30,
        hyperparameters=decay_variables(model.trainable_variables, initial=0.1),
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    train, validation = dataset(linear_rows(4)), dataset(linear_rows(200))
    history = trainer.fit(train, validation, epochs=3, steps_per_epoch=30).history["val_loss"]
    signal, noise = np.split(trainer.hyperparameters[0].numpy(), 2)
    assert signal.max() < noise.min()
    assert history[-1] < history[0]


def test_hypergradients_leave_the_state_of_layers(rng):
    model = network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=1))
    trainer = make(model, terms=3)
    before = [v.numpy() for v in model.variables]
    first, second = (
        trainer.hypergradients(rows(np.random.default_rng(1)), rows(np.random.default_rng(2)))[0]
        for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):  # the same dropout mask
        np.testing.assert_array_equal(a, b)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    data = dataset(rows(rng))
    trainer.fit(data, data, steps_per_epoch=1)
    assert np.abs(model.layers[1].moving_mean.numpy()).max() > 0


def test_a_restored_run_takes_the_same_steps(rng, tmp_path):
    train, validation = dataset(rows(rng)), dataset(rows(rng))
    runs = []
    for _ in range(2):
        trainer = make(hyper_optimizer=keras.optimizers.Adam(0.1), terms=2)
        runs.append(
            (
                trainer,
                tf.train.Checkpoint(
                    model=trainer.model,
                    optimizer=trainer.optimizer,
                    hyper_optimizer=trainer.hyper_optimizer,
                    hyperparameters=[h.value for h in trainer.hyperparameters],
                ),
            )
        )
    (first, saved), (second, loaded) = runs
    first.fit(train, validation, steps_per_epoch=3)
    loaded.restore(saved.save(str(tmp_path / "run"))).assert_existing_objects_matched()
    for trainer in (first, second):
        trainer.fit(train, validation, steps_per_epoch=2)
    for a, b in zip(first.hyperparameters, second.hyperparameters, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first.model.get_weights(), second.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_callbacks_are_called_and_may_stop(rng):
    seen = []

    class Recorder(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((batch, sorted(logs), self.params["steps"]))

        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    data = dataset(rows(rng))
    history = make(terms=1).fit(data, data, epochs=5, steps_per_epoch=2, callbacks=[Recorder()])
    assert seen == [(b, ["hypergradient_norm", "loss", "val_loss"], 2) for b in (0, 1, 0, 1)]
    assert len(history.history["val_loss"]) == 2


def test_a_series_that_diverges_is_reported(rng):
    data = dataset(rows(rng))
    with pytest.raises(FloatingPointError, match="outer step 1 of epoch 1.*the series diverges"):
        make(terms=200, learning_rate=100.0).fit(data, data)


def test_decays(float64):
    weights = [keras.Variable([1.0, 2.0]), keras.Variable([[3.0]])]
    single, whole = (decay_variables(weights, per, initial=0.5) for per in ("weight", "variable"))
    assert [h.shape for h in single] == [(2,), (1, 1)]
    assert [h.shape for h in whole] == [(), ()]
    assert float(l2_decay(weights, single)) == pytest.approx(0.25 * (1 + 4 + 9), rel=1e-12)
    whole[1].assign(np.log(2.0))
    assert float(l2_decay(weights, whole)) == pytest.approx(0.25 * 5 + 9, rel=1e-12)
    # They stay below the largest, here the default of 1.
    keras.optimizers.SGD(1.0).apply([tf.constant([-9.0, 0.1]), tf.constant([[0.0]])], single)
    np.testing.assert_allclose(single[0], [0.0, np.log(0.5) - 0.1], rtol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": 0}, "`inner_steps` must be a positive integer. Received: 0"),
        ({"terms": 1.5}, "`terms` must be a positive integer. Received: 1.5"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0. Received: 0.0"),
        ({"inverse_hvp": "newton"}, '`inverse_hvp` must be "neumann", "cg" or a function'),
    ],
)
def test_refuses_what_is_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_refuses_what_it_cannot_use(mirrored):
    model = network()
    with pytest.raises(TypeError, match="`model` must be a built keras.Model. Received: 3"):
        HypergradientTrainer(3, [], None, None, None, None)
    with pytest.raises(TypeError, match="`hyperparameters` must be a list of keras.Variable"):
        make(model, hyperparameters=[0.1])
    with pytest.raises(ValueError, match="must not be trainable variables of the model"):
        make(model, hyperparameters=model.trainable_variables[:1])
    with mirrored.scope(), pytest.raises(ValueError, match="works on one replica"):
        make()
    with pytest.raises(ValueError, match='`per` must be "weight" or "variable". Received: "?'):
        decay_variables([], per="layer")
    for initial in (0.0, 2.0):
        with pytest.raises(ValueError, match="`initial` must be above 0 and at most `largest`"):
            decay_variables([], initial=initial)
