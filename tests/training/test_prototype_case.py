import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from kzoo.models.prototype_case_net import PrototypeCaseNet
from kzoo.training import Loop
from kzoo.training.prototype_case import PrototypeCaseTraining

pytestmark = pytest.mark.paper(
    "Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its "
    "Predictions"
)


def network():
    keras.utils.set_random_seed(1)
    encoder = keras.Sequential([keras.Input([6]), keras.layers.Dense(3, "tanh")], name="encoder")
    decoder = keras.Sequential([keras.Input([3]), keras.layers.Dense(6)], name="decoder")
    return PrototypeCaseNet(4, [6], 3, classifier_activation=None, encoder=encoder, decoder=decoder)


def compiled(optimizer=None, **options):
    trainer = PrototypeCaseTraining(network(), **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(optimizer or keras.optimizers.SGD(0.1), loss)
    return trainer


def data(rng, count=8):
    return rng.normal(size=(count, 6)), rng.integers(0, 3, count)


def by_hand(model, x, y, reconstruction, r1, r2):
    latent = np.asarray(model.encoder(x))
    distances = ((latent[:, None] - model.prototypes.prototypes.numpy()) ** 2).sum(-1)
    logits = distances @ model.classifier.kernel.numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    errors = ((np.asarray(model.decoder(latent)) - x) ** 2).sum(1)
    return (
        -log_p[np.arange(len(y)), y].mean()
        + reconstruction * errors.mean()
        + r1 * distances.min(0).mean()
        + r2 * distances.min(1).mean()
    )


def test_loss_is_the_four_terms(float64, rng):
    x, y = data(rng)
    weights = {"reconstruction": 0.3, "r1": 0.7, "r2": 0.2}
    trainer = compiled(**weights)
    expected = by_hand(trainer.model, x, y, **weights)
    np.testing.assert_allclose(trainer.test_on_batch(x, y), expected, rtol=1e-6)
    np.testing.assert_allclose(trainer.train_on_batch(x, y), expected, rtol=1e-6)


def test_one_step_follows_the_numerical_gradient(float64, rng):
    x, y = data(rng)
    weights = {"reconstruction": 0.3, "r1": 0.7, "r2": 0.2}
    trainer = compiled(keras.optimizers.SGD(1.0), **weights)
    model = trainer.model
    for variable in (model.prototypes.prototypes, model.decoder.trainable_variables[0]):
        start = variable.numpy()
        values = []
        for step in (1e-5, -1e-5):
            moved = start.copy()
            moved[1, 2] += step
            variable.assign(moved)
            values.append(by_hand(model, x, y, **weights))
        variable.assign(start)
        before = model.get_weights()
        trainer.train_on_batch(x, y)
        slope = (values[0] - values[1]) / 2e-5
        np.testing.assert_allclose(start[1, 2] - variable.numpy()[1, 2], slope, rtol=1e-5)
        model.set_weights(before)


def test_rows_of_weight_zero_count_for_r1_alone(float64, rng):
    x, y = data(rng)
    trainer = compiled(reconstruction=0.3, r1=0.0, r2=0.2)
    half = by_hand(trainer.model, x[:4], y[:4], 0.3, 0.0, 0.2)
    weighted = trainer.test_on_batch(x, y, sample_weight=np.repeat([2.0, 0.0], 4))
    np.testing.assert_allclose(weighted, half, rtol=1e-6)


def test_fit_and_the_loop_take_the_same_steps(float64, rng):
    x, y = data(rng, 24)
    plain, looped = compiled(), compiled()
    plain.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    Loop(looped, dataset, epochs=3).run()
    for a, b in zip(plain.get_weights(), looped.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_two_replicas_equal_one_device_but_for_r1(mirrored, float64, rng):
    """With an uneven last batch. R1 of each replica is over its own rows."""
    x, y = data(rng, 23)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(9)
    weights = {}
    for r1 in (0.0, 1.0):
        for strategy in (tf.distribute.get_strategy(), mirrored):
            with strategy.scope():
                trainer = compiled(r1=r1)
            Loop(trainer, dataset, strategy=strategy).run()
            weights[r1, strategy] = trainer.get_weights()
        one, two = (weights[r1, each] for each in (tf.distribute.get_strategy(), mirrored))
        same = all(np.allclose(a, b, rtol=1e-9, atol=1e-10) for a, b in zip(one, two, strict=True))
        assert same == (r1 == 0.0)


def test_all_parts_learn_and_are_loaded(rng, tmp_path):
    x, y = data(rng, 16)
    trainer = compiled("adam")
    before = trainer.get_weights()
    trainer.fit(x, y, verbose=0)
    assert all(np.any(a != b) for a, b in zip(before, trainer.get_weights(), strict=True))
    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    for each in (trainer, again):
        each.fit(x, y, shuffle=False, verbose=0)
    for a, b in zip(trainer.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def digits_model(r1):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    encoder = keras.Sequential(
        [keras.Input([64]), layers.Dense(64, "relu"), layers.Dense(10)], name="encoder"
    )
    decoder = keras.Sequential(
        [keras.Input([10]), layers.Dense(64, "relu"), layers.Dense(64, "sigmoid")], name="decoder"
    )
    model = PrototypeCaseNet(15, [64], 10, encoder=encoder, decoder=decoder)
    trainer = PrototypeCaseTraining(model, r1=r1)
    trainer.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((x[:1400], y[:1400]))
    Loop(trainer, dataset.shuffle(1400, seed=0).batch(100), epochs=40).run()
    _, distances, _ = model.forward(x[:1400])
    accuracy = np.mean(np.argmax(model(x[1400:]), 1) == y[1400:])
    return accuracy, np.min(distances, 0).mean()


@pytest.fixture(scope="module")
def digits_results():
    return {r1: digits_model(r1) for r1 in (0.05, 0.0)}


def test_digits_are_learned(digits_results):
    assert digits_results[0.05][0] > 0.85


def test_without_r1_prototypes_stay_away_from_the_data(digits_results):
    assert digits_results[0.0][1] > 3 * digits_results[0.05][1]


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match="`model` must be a PrototypeCaseNet. Received: Sequential"):
        PrototypeCaseTraining(keras.Sequential([keras.Input([2]), keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="`r1` must be a number of at least 0. Received: -1"):
        compiled(r1=-1)
