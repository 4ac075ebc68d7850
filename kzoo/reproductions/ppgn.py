"""Plug & Play Generative Networks on scikit-learn's digits."""

import keras
import numpy as np
from scipy.spatial.distance import cdist, pdist

from kzoo.data.builtin import digits
from kzoo.explain.visualization.activation_maximization import activation_maximization
from kzoo.explain.visualization.ppgn import PAPER, class_log_probability, ppgn
from kzoo.explain.visualization.sheets import visualization_sheet
from kzoo.reproductions.registry import reproduction
from kzoo.training.feature_inverter_gan import FeatureInverterGAN

_CLASSES = range(10)
_CHAINS = 20
_CODES = 32
_STEPS = 200
_NOISE = 0.3
_EPOCHS = 60
_PRIOR, _CONDITION, _DEVIATION = 0.1, 0.3, 0.2


@reproduction(
    PAPER,
    claim="An additional prior on the latent code improves both the quality and the diversity of "
    "the samples that activation maximization draws through a generator.",
)
def ppgn_draws_digits_of_a_class(seed):
    """The digits of scikit-learn, 8x8 pixels, four fifths for training. A small network of two
    convolutions learns the classes; its last feature map is h1, its 32 codes, standardized, h. A
    generator of dense layers learns to invert h with all four losses (0.1 for those of h1 and h)
    and noise of 0.3 on h, as for Joint PPGN-h; beside it, for PPGN-h, a denoising autoencoder of h
    with the same noise. Twenty chains for each class, 200 steps from standard normal codes:
    epsilon2 of 0.3 alone for DGN-AM, with epsilon1 of 0.1 and epsilon3 of 0.2 for PPGN-h and Joint
    PPGN-h; and activation maximization of the same log-probability on pixels, from noise, without
    regularisers. An independent network of dense layers says what the pictures show. Diversity is
    the mean distance between the pictures of a class, which is large for pictures that are no
    digits as well; the one within a chain is that of its last image to the one 100 steps before.
    All distances are Euclidean, of the 64 pixels. In the picture, under each of two samples of a
    class, is what the independent network sees. The paper has ImageNet, codes of AlexNet and
    convolutional generators.
    """
    train, test = (digits(split, seed=seed) for split in ("train", "test"))
    judge = _judge(train, seed + 1)
    classifier, features, codes = _trained_classifier(train, seed)
    encoder = keras.Sequential([features, codes])
    generator, history = _inverter(features, codes, train.features, seed)
    denoiser = _denoiser(encoder.predict(train.features, verbose=0), seed)
    drawn = _drawn(classifier, generator, encoder, denoiser, seed)
    numbers = {"squared error of reconstructions": history["image"][-1]}
    labels = np.repeat(_CLASSES, _CHAINS)
    for name, chain in drawn.items():
        numbers |= _measured(name, chain[-1], labels, judge, train.features)
        if len(chain) > 1:
            within = np.linalg.norm(_flat(chain[1]) - _flat(chain[0]), axis=1).mean()
            numbers[f"{name}: diversity within a chain"] = within
    numbers |= _measured("test images", test.features, test.labels, judge, train.features)
    return numbers, _sheet({name: chain[-1] for name, chain in drawn.items()}, judge)


def _drawn(classifier, generator, encoder, denoiser, seed):
    """{method: [1 or 2, chains, 8, 8, 1]}, the images half way, if kept, and the last ones."""
    goal = class_log_probability(classifier, np.repeat(_CLASSES, _CHAINS))
    start = np.random.default_rng(seed).uniform(size=[len(goal), 8, 8, 1])
    pixels = activation_maximization(goal, start, steps=_STEPS, bounds=(0, 1), noise=0.0)
    prior = {"epsilon1": _PRIOR, "epsilon3": _DEVIATION}
    methods = {
        "DGN-AM": {},
        "PPGN-h": {"denoiser": denoiser, **prior},
        "Joint PPGN-h": {"encoder": encoder, **prior},
    }
    options = {"epsilon2": _CONDITION, "steps": _STEPS, "save_every": _STEPS // 2, "seed": seed}
    return {"pixels": pixels["images"].numpy()[None]} | {
        name: ppgn(goal, generator, **options, **method)["chain"].numpy()
        for name, method in methods.items()
    }


def _measured(name, images, labels, judge, known):
    odds = judge.predict(images, verbose=0)
    within = [pdist(_flat(images[labels == digit])).mean() for digit in _CLASSES]
    return {
        f"{name}: seen as the class": np.mean(odds.argmax(-1) == labels),
        f"{name}: probability of the class": odds[np.arange(len(labels)), labels].mean(),
        f"{name}: distance to the nearest training image": (
            cdist(_flat(images), _flat(known)).min(1).mean()
        ),
        f"{name}: diversity": np.mean(within),
    }


def _sheet(drawn, judge):
    """Two rows of a method, a column for each class."""
    rows = [(name, images[first::_CHAINS]) for name, images in drawn.items() for first in range(2)]
    captions = [
        f"{name}: {seen}"
        for name, images in rows
        for seen in judge.predict(images, verbose=0).argmax(-1)
    ]
    images = np.concatenate([images for _, images in rows])
    return visualization_sheet(images, captions, columns=len(_CLASSES), stretch=False)


def _trained_classifier(data, seed):
    """The classifier, E1 to its pooled features, E2 to codes of unit variance."""
    layers = keras.layers
    keras.utils.set_random_seed(seed)
    features = keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
        ]
    )
    codes = keras.Sequential([keras.Input([4, 4, 32]), layers.Flatten(), layers.Dense(_CODES)])
    classifier = keras.Sequential(
        [features, codes, layers.ReLU(), layers.Dropout(0.3), layers.Dense(10, "softmax")]
    )
    _fit_classifier(classifier, data)
    return classifier, features, _standardized(codes, features.predict(data.features, verbose=0))


def _standardized(codes, features):
    """Followed by a normalization of each code over the data."""
    normalization = keras.layers.Normalization()
    normalization.adapt(codes.predict(features, verbose=0))
    return keras.Sequential([codes, normalization])


def _judge(data, seed):
    layers = keras.layers
    keras.utils.set_random_seed(seed)
    judge = keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            layers.Flatten(),
            layers.GaussianNoise(0.1),
            layers.Dense(128, "relu"),
            layers.Dropout(0.3),
            layers.Dense(64, "relu"),
            layers.Dense(10, "softmax"),
        ]
    )
    return _fit_classifier(judge, data)


def _fit_classifier(model, data):
    model.compile(
        keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", steps_per_execution=16
    )
    model.fit(data.features, data.labels, batch_size=64, epochs=30, verbose=0)
    return model


def _inverter(features, codes, images, seed):
    """G, trained together with a discriminator."""
    layers = keras.layers
    keras.utils.set_random_seed(seed)
    generator = keras.Sequential(
        [
            keras.Input([_CODES]),
            layers.Dense(128, "relu"),
            layers.Dense(128, "relu"),
            layers.Dense(64, "sigmoid"),
            layers.Reshape([8, 8, 1]),
        ]
    )
    discriminator = keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            layers.Flatten(),
            layers.Dense(64, "leaky_relu"),
            layers.Dense(64, "leaky_relu"),
            layers.Dense(1),
        ]
    )
    trainer = FeatureInverterGAN(
        generator,
        features,
        codes,
        discriminator,
        feature_weight=0.1,
        code_weight=0.1,
        code_noise=_NOISE,
    )
    trainer.compile(keras.optimizers.Adam(1e-3, beta_1=0.5), steps_per_execution=22)
    history = trainer.fit(images, batch_size=64, epochs=_EPOCHS, verbose=0).history
    return generator, history


def _denoiser(codes, seed):
    """R of PPGN-h: an autoencoder of codes with noise."""
    layers = keras.layers
    keras.utils.set_random_seed(seed)
    denoiser = keras.Sequential(
        [
            keras.Input([_CODES]),
            layers.GaussianNoise(_NOISE),
            layers.Dense(128, "relu"),
            layers.Dense(64, "relu"),
            layers.Dense(128, "relu"),
            layers.Dense(_CODES),
        ]
    )
    denoiser.compile(keras.optimizers.Adam(1e-3), "mse", steps_per_execution=22)
    denoiser.fit(codes, codes, batch_size=64, epochs=_EPOCHS, verbose=0)
    return denoiser


def _flat(images):
    return images.reshape(len(images), -1)
