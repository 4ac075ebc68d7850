"""The feature inverter: a step by hand, the terms' expectations, replicas, XLA, the optimum."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.training import Loop
from kzoo.training.feature_inverter_gan import FeatureInverterGAN

pytestmark = pytest.mark.paper(
    "Plug & Play Generative Networks: Conditional Iterative Generation of Images in Latent Space"
)


def dense(kernel, bias=None, **options):
    kernel = np.asarray(kernel)
    layer = keras.layers.Dense(kernel.shape[1], use_bias=bias is not None, **options)
    model = keras.Sequential([keras.Input([len(kernel)]), layer])
    model.set_weights([kernel] if bias is None else [kernel, np.asarray(bias)])
    return model


def scalar(learning_rate=0.1, **options):
    """h1 = 3 x, h = h1 / 2, x' = h / 2, logit = x - 1."""
    networks = [dense([[0.5]]), dense([[3.0]]), dense([[0.5]]), dense([[1.0]], [-1.0])]
    trainer = FeatureInverterGAN(*networks, **options)
    trainer.compile(keras.optimizers.SGD(learning_rate))
    return trainer


def small(**options):
    """Six inputs, four features, three codes; the encoder in inference mode."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    trainer = FeatureInverterGAN(
        keras.Sequential([keras.Input([3]), layers.Dense(5, "relu"), layers.Dense(6)]),
        keras.Sequential([keras.Input([6]), layers.Dense(4, "tanh")]),
        keras.Sequential(
            [keras.Input([4]), layers.BatchNormalization(synchronized=True), layers.Dense(3)]
        ),
        keras.Sequential([keras.Input([6]), layers.Dense(4, "relu"), layers.Dense(1)]),
        **options,
    )
    return trainer


def rows(count=24, size=6):
    return np.random.default_rng(2).normal(size=(count, size)).astype(keras.config.floatx())


TERMS = {
    "image": 0.25,  # (2 - 1.5)^2
    "feature": 2.25,  # (6 - 4.5)^2
    "code": 0.5625,  # (3 - 2.25)^2
    "adversarial": 0.474077,  # log(1 + exp(-0.5))
    "discriminator": 1.287339,  # log(1 + exp(-1)) + log(1 + exp(0.5))
}


def test_a_step_by_hand():
    """At x = 2: h1 = 6, h = 3, x' = 1.5, h1' = 4.5, h' = 2.25, logits 1 and 0.5.

    dL_G / dx' = -2 * 0.5 w_img - 6 * 1.5 w_h1 - 3 * 0.75 w_h - sigmoid(-0.5) w_gan, times h = 3;
    dL_D = -sigmoid(-1) on the logit of x, sigmoid(0.5) on that of x'.
    """
    trainer = scalar(image_weight=1, feature_weight=0.5, code_weight=2, adversarial_weight=10)
    history = trainer.fit(np.array([[2.0]]), verbose=0).history
    for name, expected in TERMS.items():
        np.testing.assert_allclose(history[name], [expected], rtol=1e-5)
    loss = 0.25 + 0.5 * 2.25 + 2 * 0.5625 + 10 * 0.474077
    np.testing.assert_allclose(history["loss"], [loss], rtol=1e-5)
    slope = -1.0 - 0.5 * 9.0 - 2 * 2.25 - 10 * 0.377541
    np.testing.assert_allclose(trainer.model.get_weights(), [[[0.5 - 0.1 * 3 * slope]]], rtol=1e-5)
    kernel, bias = trainer.discriminator.get_weights()
    np.testing.assert_allclose(kernel, [[1 - 0.1 * (-0.268941 * 2 + 0.622459 * 1.5)]], rtol=1e-5)
    np.testing.assert_allclose(bias, [-1 - 0.1 * (-0.268941 + 0.622459)], rtol=1e-5)
    assert trainer.feature_encoder.get_weights() == [[[3.0]]]
    assert trainer.code_encoder.get_weights() == [[[0.5]]]


def test_evaluate_sees_the_same_terms_and_learns_nothing():
    trainer = scalar()
    logs = trainer.evaluate(np.array([[2.0]]), verbose=0, return_dict=True)
    assert logs == pytest.approx({**TERMS, "loss": sum(TERMS.values()) - 1.287339}, rel=1e-5)
    assert trainer.model.get_weights() == [[[0.5]]]
    np.testing.assert_allclose(trainer(tf.constant([[2.0]])), [[1.5]])


@pytest.mark.parametrize(("rest", "learns"), [(2.71, True), (2.72, False)])
def test_the_discriminator_rests_while_it_is_far_ahead(rest, learns):
    """L_D / L_adv = 1.287339 / 0.474077 = 2.7155."""
    trainer = scalar(discriminator_rest=rest)
    trainer.fit(np.array([[2.0]]), verbose=0)
    assert (trainer.discriminator.get_weights()[1] != [-1.0]) == learns
    assert trainer.model.get_weights() != [[[0.5]]]


def test_noise_adds_its_variance_where_it_enters():
    """All networks the identity: the terms are the variances collected on the way, times 4."""
    trainer = FeatureInverterGAN(
        *(dense(np.eye(4)) for _ in range(3)),
        dense(np.ones((4, 1))),
        code_noise=0.1,
        image_noise=0.3,
        feature_noise=0.2,
    )
    trainer.compile("sgd")
    data = rows(8000, 4)
    logs = trainer.evaluate(data, batch_size=8000, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["image"], 4 * 0.01, rtol=0.04)
    np.testing.assert_allclose(logs["feature"], 4 * (0.01 + 0.09), rtol=0.04)
    np.testing.assert_allclose(logs["code"], 4 * (0.01 + 0.09 + 0.04), rtol=0.04)


def test_noise_differs_from_step_to_step():
    trainer = scalar(learning_rate=0.0, image_noise=1.0)
    history = trainer.fit(np.array([[2.0]]), epochs=3, verbose=0).history
    assert len(set(history["feature"])) == 3
    assert len(set(history["image"])) == 1, "that noise is not on the picture"


def test_sample_weights_weigh_rows():
    options = {"verbose": 0, "return_dict": True, "batch_size": 3}
    x = rows(3)
    trainer = small()
    trainer.compile("sgd")
    single = [trainer.evaluate(x[i : i + 1], **options) for i in range(3)]
    weights = np.array([0.5, 2.0, 0.0])
    logs = trainer.evaluate(x, np.zeros(3), sample_weight=weights, **options)
    for name in TERMS:
        expected = sum(w * each[name] for w, each in zip(weights, single, strict=True)) / 3
        np.testing.assert_allclose(logs[name], expected, rtol=1e-5)


def test_regularizers_are_part_of_the_losses():
    penalty = {"kernel_regularizer": keras.regularizers.L2(2.0)}
    networks = [dense([[0.5]], **penalty), dense([[3.0]]), dense([[0.5]])]
    trainer = FeatureInverterGAN(*networks, dense([[1.0]], [-1.0], **penalty))
    trainer.compile(keras.optimizers.SGD(0.1))
    plain = scalar()
    for each in (trainer, plain):
        each.fit(np.array([[2.0]]), verbose=0)
    for network, weight in (("model", 0.5), ("discriminator", 1.0)):
        ours, theirs = (getattr(each, network).get_weights()[0] for each in (trainer, plain))
        np.testing.assert_allclose(theirs - ours, [[0.1 * 2 * 2.0 * weight]], rtol=1e-5)


def fitted(data, generator, feature_encoder, code_encoder, only):
    """Three hundred steps on all data, of one loss alone; returns the weights of G."""
    weights = {f"{name}_weight": float(name == only) for name in list(TERMS)[:4]}
    discriminator = dense(np.ones((data.shape[1], 1)))
    trainer = FeatureInverterGAN(generator, feature_encoder, code_encoder, discriminator, **weights)
    schedule = keras.optimizers.schedules.CosineDecay(0.2, 300)
    trainer.compile(keras.optimizers.Adam(schedule), steps_per_execution=100)
    trainer.fit(np.tile(data, [300, 1]), batch_size=len(data), shuffle=False, verbose=0)
    return generator.get_weights()[0]


def test_with_the_image_loss_alone_it_learns_the_conditional_mean(rng):
    """The best linear G is the regression of images on codes, whatever the code loses."""
    data = (rng.normal(size=(64, 4)) @ rng.normal(size=(4, 4))).astype("float32")
    code_encoder = dense(rng.normal(size=(4, 2)) / 2)
    kernel = fitted(data, dense(np.zeros((2, 4))), dense(np.eye(4)), code_encoder, "image")
    best = np.linalg.lstsq(code_encoder.predict(data, verbose=0), data, rcond=None)[0]
    np.testing.assert_allclose(kernel, best, atol=2e-3)


def test_the_code_loss_makes_the_encoder_invert_the_generator(rng):
    """E2(E1(G(h))) = h, the autoencoder of codes that is the prior of Joint PPGN-h."""
    data = rng.normal(size=(64, 4)).astype("float32")
    encoders = [dense(np.linalg.qr(rng.normal(size=(n, n - 1)))[0]) for n in (4, 3)]
    kernel = fitted(data, dense(np.zeros((2, 4))), *encoders, "code")
    encoder = encoders[0].get_weights()[0] @ encoders[1].get_weights()[0]
    np.testing.assert_allclose(kernel @ encoder, np.eye(2), atol=2e-3)


def test_two_replicas_equal_one_device(mirrored, float64):
    """With an uneven last batch."""
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            trainer = small(discriminator_rest=0.0)
            trainer.compile(keras.optimizers.SGD(0.05))
        data = tf.data.Dataset.from_tensor_slices(rows()).batch(9)
        Loop(trainer, data, epochs=2, strategy=strategy).run()
        weights.append(trainer.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-10)


def test_xla_takes_the_same_steps():
    weights = []
    for jit_compile in (False, True):
        trainer = small()
        trainer.compile(keras.optimizers.SGD(0.05), jit_compile=jit_compile)
        trainer.fit(rows(), batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(trainer.get_weights())
    for plain, compiled in zip(*weights, strict=True):
        np.testing.assert_allclose(plain, compiled, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    options = {"image_weight": 3.0, "image_noise": 0.1, "discriminator_rest": 0.3, "seed": 4}
    trainer = small(**options)
    trainer.compile("adam")
    trainer.fit(rows(), verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    for name, value in options.items():
        assert again.get_config()[name] == value
    np.testing.assert_array_equal(again(rows()), trainer(rows()))


@pytest.mark.parametrize(
    ("position", "network", "options", "error", "message"),
    [
        (1, keras.Sequential([keras.layers.Dense(3)]), {}, TypeError, "`feature_encoder` must be"),
        (0, dense(np.ones((4, 6))), {}, ValueError, "`model` must take what `code_encoder`"),
        (2, dense(np.ones((5, 3))), {}, ValueError, "`code_encoder` must take what"),
        (3, dense(np.ones((6, 2))), {}, ValueError, "`discriminator` must lead from images"),
        (3, dense(np.ones((6, 1))), {"code_weight": -1}, ValueError, "`code_weight` must be"),
        (3, dense(np.ones((6, 1))), {"image_noise": "a"}, ValueError, "`image_noise` must be"),
    ],
)
def test_bad_input_is_refused(position, network, options, error, message):
    shapes = ((3, 6), (6, 4), (4, 3), (6, 1))
    networks = [dense(np.ones(shape)) for shape in shapes]
    networks[position] = network
    with pytest.raises(error, match=message):
        FeatureInverterGAN(*networks, **options)
