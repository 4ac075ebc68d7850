"""Curved spaces: layers in the Poincaré ball, classes as points of a Grassmannian."""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from kzoo.layers.grassmann import GrassmannClassifier
from kzoo.layers.poincare import HYP_OC_PAPER
from kzoo.layers.poincare import PAPER as POINCARE_PAPER
from kzoo.layers.poincare_dense import PoincareConv2D, PoincareDense, beta_ratio
from kzoo.layers.poincare_initializers import PoincareIdentity, PoincareNormal
from kzoo.ops.poincare import expmap0
from kzoo.optimizers.grassmann import PAPER as GRASSMANN_PAPER
from kzoo.optimizers.grassmann import GrassmannSGD
from kzoo.reproductions.registry import reproduction
from kzoo.training.hyp_one_class import HypOneClass, hyp_one_class_model
from kzoo.training.loop import Loop

_LAYERS = 10


@reproduction(
    POINCARE_PAPER,
    claim="The usual initial values of hyperbolic networks let deep ones collapse to the origin; "
    "identity-based ones preserve norms over many layers.",
)
def norms_at_initialization(seed):
    """10 layers without nonlinearities or batch normalization, of 32 units on 256 points, and of
    3x3 convolutions of 16 channels on 8x8 maps of points; tangent vectors N(0, 0.1), curvature
    -0.1. Numbers are the mean norm after all layers over that before. A convolution whose patch is
    scaled by the beta functions shrinks norms also with the identity 1/2 I at its center; divided
    by their ratio it does not.
    """
    keras.utils.set_random_seed(seed)
    tangent = 0.1**0.5 * tf.random.normal([256, 32])
    maps = 0.1**0.5 * tf.random.normal([8, 8, 8, 16])
    wide = {"curvature": 0.1, "padding": "same"}
    corrected = PoincareIdentity(0.5 / beta_ratio(16, 9))
    stacks = {
        "dense, normal": (tangent, lambda: PoincareDense(32, 0.1, True, PoincareNormal())),
        "dense, identity": (tangent, lambda: PoincareDense(32, 0.1)),
        "convolution, normal": (
            maps,
            lambda: PoincareConv2D(16, 3, kernel_initializer=PoincareNormal(), **wide),
        ),
        "convolution, identity": (maps, lambda: PoincareConv2D(16, 3, **wide)),
        "convolution, identity / beta ratio": (
            maps,
            lambda: PoincareConv2D(16, 3, kernel_initializer=corrected, **wide),
        ),
    }
    return {f"norm ratio: {name}": _norm_ratio(*stack) for name, stack in stacks.items()}


def _norm_ratio(tangent, layer):
    before = after = expmap0(tangent, 0.1)
    for _ in range(_LAYERS):
        after = layer()(after)
    first, last = (float(tf.reduce_mean(tf.norm(x, axis=-1))) for x in (before, after))
    return last / first


@reproduction(
    GRASSMANN_PAPER,
    claim="Subspaces as classes classify at least as well as vectors, and the variability of the "
    "features within a class grows with the dimension of the subspaces.",
)
def grassmann_classes_on_digits(seed):
    """scikit-learn's digits, 3/4 for training; an MLP of 128 ReLU units to 64 features. The linear
    head is trained by SGD (momentum 0.9, rate 0.05, 30 epochs of batches of 64), subspaces of
    dimension 1 and 8 with GrassmannSGD around the same, features scaled to 25. Variability is the
    mean angle between test features of a class, as in the paper, which has ImageNet and ResNets.
    """
    data = load_digits()
    x = (data.data / 16).astype("float32")
    split = train_test_split(x, data.target, random_state=seed, stratify=data.target)
    heads = {
        "linear": keras.layers.Dense(10),
        "k = 1": GrassmannClassifier(10, 1),
        "k = 8": GrassmannClassifier(10, 8),
    }
    numbers = {}
    for name, head in heads.items():
        accuracy, angle = _train_head(head, *split, seed)
        numbers[f"test accuracy, {name}"] = accuracy
        numbers[f"mean angle within a class [degrees], {name}"] = angle
    return numbers


def _train_head(head, x, x_test, y, y_test, seed):
    keras.utils.set_random_seed(seed)
    body = keras.Sequential(
        [keras.Input([64]), keras.layers.Dense(128, "relu"), keras.layers.Dense(64)]
    )
    model = keras.Sequential([body, head])
    optimizer = GrassmannSGD(keras.optimizers.SGD(0.05, momentum=0.9))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.build([None, 64])
    rows = tf.data.Dataset.from_tensor_slices((x, y)).cache()
    Loop(model, rows.shuffle(2000, seed=seed).batch(64), epochs=30).run()
    features = body.predict(x_test, verbose=0)
    accuracy = np.mean(model.predict(x_test, verbose=0).argmax(1) == y_test)
    return float(accuracy), _angle_within_classes(features, y_test)


def _angle_within_classes(features, labels):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    angles = []
    for label in range(10):
        cosines = unit[labels == label] @ unit[labels == label].T
        pairs = np.triu_indices(len(cosines), 1)
        angles.append(np.degrees(np.arccos(np.clip(cosines[pairs], -1, 1))).mean())
    return float(np.mean(angles))


@reproduction(
    HYP_OC_PAPER,
    claim="Trained on real examples and pseudo-negatives alone, the hyperbolic one-class "
    "classifier tells unseen anomalies better than its Euclidean counterpart.",
)
def hyp_oc_on_digits(seed):
    """The digit 0, and then 8, of scikit-learn's digits is the real class, 3/4 of it for training;
    all other digits are unseen anomalies. The features are the 64 pixels in [0, 1], without an
    encoder, for which the paper has a pretrained one; negatives of standard deviation 0.3; a
    reduction 64-32 to a ball of 8 dimensions; Adam at 0.001, gradient norm at most 3, 80 epochs of
    batches of 32. The Euclidean counterpart is the same at a curvature of -1e-6, where distances
    and logits are linear to 5 digits.
    """
    data = load_digits()
    x = (data.data / 16).astype("float32")
    numbers = {}
    for digit in (0, 8):
        real, held_out = train_test_split(x[data.target == digit], random_state=seed)
        test = np.concatenate([held_out, x[data.target != digit]])
        anomalous = np.arange(len(test)) >= len(held_out)
        for name, curvature in (("hyperbolic", 0.1), ("Euclidean", 1e-6)):
            scores = _one_class_scores(real, test, curvature, seed)
            numbers[f"AUROC of {digit}, {name}"] = float(roc_auc_score(anomalous, scores))
    return numbers


def _one_class_scores(real, test, curvature, seed):
    keras.utils.set_random_seed(seed)
    encoder = keras.Sequential([keras.Input([64]), keras.layers.Flatten()])
    model = hyp_one_class_model(encoder, (64, 32), ball_dim=8, curvature=curvature)
    trainer = HypOneClass(model, curvature=curvature, sigma=0.3, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(0.001, global_clipnorm=3.0), loss)
    rows = tf.data.Dataset.from_tensor_slices((real, np.zeros(len(real), "int32")))
    Loop(trainer, rows.shuffle(200, seed=seed).batch(32), epochs=80).run()
    logits = model.predict(test, verbose=0)
    return logits[:, 1] - logits[:, 0]
