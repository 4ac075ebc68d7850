"""How ProtoPNet and ST-ProtoPNet are trained: in stages, with the prototypes made real patches.

    warm          add-on layers and prototypes, on   CE + clst cluster + sep separation
    joint         the same and the backbone           (+ orthonormality, + closeness for support or
                                                      discrimination for trivial prototypes)
    push          p <- the nearest training patch of its own class            (ProtoPNet, eq. 3)
    last_layer    the classifiers alone, on CE + l1 sum |w from a prototype of another class|

The last stage is convex. The losses' formulas are in `kzoo.losses.prototype_patches`.

"This Looks Like That: Deep Learning for Interpretable Image Recognition", Chen et al., 2018, arXiv
1806.10574, section 2.2; "Learning Support and Trivial Prototypes for Interpretable Image
Classification", Wang et al., 2023, arXiv 2301.04011. The default weights are
those of the authors' code.

Deviations: both branches of ST-ProtoPNet learn from every batch, from the mean of their losses; the
authors' code takes one branch's loss for the even batches and the other's for the odd ones. In the
joint stage the classifiers stay as they are, as in both codes' optimizers, and one learning rate
serves backbone and add-on layers. In the last stage the network runs in inference mode, so that
moving statistics, and with them the projected patches, stay; the codes let them drift.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.layers.prototype_patches import PAPER, PROTOPNET_PAPER
from kzoo.losses.prototype_patches import (
    PrototypeClusterLoss,
    PrototypeSeparationLoss,
    orthonormality_loss,
    support_closeness_loss,
    trivial_discrimination_loss,
)
from kzoo.models.protopnet import ProtoPNet, branches, feature_extractor
from kzoo.ops.distribute import num_replicas
from kzoo.papers import Example, component
from kzoo.training.method import TrainingMethod
from kzoo.training.prototype_push import class_numbers, push_prototypes

STAGES = ("warm", "joint", "last_layer")


def _example():
    layers = [keras.Input([6, 6, 2]), keras.layers.Conv2D(4, 3, activation="relu")]
    backbone = keras.Sequential(layers, name="backbone")
    return {"model": ProtoPNet(backbone, 3, prototypes_per_class=2, prototype_size=5)}


def _example_rows(rng, batch):
    return rng.normal(size=(batch, 6, 6, 2)).astype("float32"), rng.integers(0, 3, batch)


@component(PAPER, PROTOPNET_PAPER, example=Example(kwargs=_example, inputs=_example_rows))
class PrototypeTrainer(TrainingMethod):
    """Trains one stage of a `kzoo.models.ProtoPNet` or `STProtoPNet`.

    Make one for each stage, all of the same model, each compiled with an optimizer of its own;
    `fit_in_stages` does so. The loss that it is compiled with is the CE above: it is taken of each
    branch's logits. Metrics see the logits of the model, which are the sum of its branches'.

    Args:
        model: a model of `ProtoPNet` or `STProtoPNet`.
        stage: "warm", "joint" or "last_layer", see above: what is trained, and on what.
        cluster: weight of the cluster loss. Defaults to 0.8.
        separation: weight of the separation loss. Defaults to 0.08.
        support_separation: that of support prototypes. Defaults to 0.48.
        orthonormality: weight of the orthonormality loss of ST-ProtoPNet. Defaults to 1e-3.
        closeness: weight of the closeness loss of support prototypes. Defaults to 1.
        discrimination: weight of the discrimination loss of trivial prototypes of ST-ProtoPNet.
            Defaults to 1.
        l1: weight of the last stage's penalty. Defaults to 1e-4.

    Example:

    >>> trainer = PrototypeTrainer(model, stage="joint")
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> trainer.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    >>> history = trainer.fit(x, y)

    Reference:
        Chen et al. (2018), section 2.2, arxiv.org/abs/1806.10574
        Wang et al. (2023), arxiv.org/abs/2301.04011
    """

    _WEIGHTS = (
        "cluster", "separation", "support_separation", "orthonormality", "closeness",
        "discrimination", "l1",
    )  # fmt: skip

    def __init__(
        self,
        model,
        stage="joint",
        cluster=0.8,
        separation=0.08,
        support_separation=0.48,
        orthonormality=1e-3,
        closeness=1.0,
        discrimination=1.0,
        l1=1e-4,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        if stage not in STAGES:
            raise ValueError(f"`stage` must be one of {', '.join(STAGES)}. Received: {stage!r}")
        given = (
            cluster, separation, support_separation, orthonormality, closeness, discrimination, l1,
        )  # fmt: skip
        for name, value in zip(self._WEIGHTS, given, strict=True):
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"`{name}` must be a number of at least 0. Received: {value!r}")
            setattr(self, name, value)
        self.stage = stage
        self.build(model.input_shape)
        # Past Keras's attribute tracking: they are the model's own layers.
        object.__setattr__(self, "_branches", branches(model))
        object.__setattr__(self, "_extractor", feature_extractor(model))

    @property
    def trainable_variables(self):
        """The variables that the stage trains."""
        classifiers = {id(b.classifier.kernel) for b in self._branches}
        add_ons = {id(b.prototypes.prototypes) for b in self._branches}
        add_ons |= {id(v) for b in self._branches for v in b.add_on.trainable_variables}
        trained = {
            "warm": lambda variable: id(variable) in add_ons,
            "joint": lambda variable: id(variable) not in classifiers,
            "last_layer": lambda variable: id(variable) in classifiers,
        }[self.stage]
        return [variable for variable in self.model.trainable_variables if trained(variable)]

    @property
    def trainable_weights(self):
        return self.trainable_variables

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights = self.trainable_variables
        with tf.GradientTape() as tape:
            logits, loss = self._loss(x, y, sample_weight)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [weight.value for weight in weights])
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        self._loss_tracker.update_state(loss * num_replicas(), sample_weight=tf.shape(logits)[0])
        return self.compute_metrics(x, y, logits, sample_weight=sample_weight)

    def _loss(self, x, y, sample_weight):
        """The model's logits, and the loss of the stage as Keras takes it on a replica."""
        features = self._extractor(x, training=self.stage != "last_layer")
        features = keras.tree.flatten(features)
        pairs = list(zip(self._branches, features, strict=True))
        proximities = [
            tf.reduce_max(branch.prototypes.proximity_map(each), axis=[1, 2])
            for branch, each in pairs
        ]
        pairs = list(zip(self._branches, proximities, strict=True))
        logits = [b.classifier(b.prototypes.to_similarity(proximity)) for b, proximity in pairs]
        # One call for all branches counts the model's own regularizers once.
        count = len(pairs)
        loss = self.compute_loss(
            x=x,
            y=keras.tree.map_structure(lambda labels: tf.concat([labels] * count, 0), y),
            y_pred=tf.concat(logits, 0),
            sample_weight=None if sample_weight is None else tf.concat([sample_weight] * count, 0),
            training=True,
        )
        labels = class_numbers(y, logits[0].shape[-1])
        if self.stage == "last_layer":
            terms = [self.l1 * other_class_l1(branch) for branch in self._branches]
        else:
            terms = [self._prototype_terms(*pair, labels, sample_weight) for pair in pairs]
        mean = tf.add_n(terms) / (count * num_replicas())
        return tf.add_n(logits), loss + tf.cast(mean, loss.dtype)

    def _prototype_terms(self, branch, proximity, labels, sample_weight):
        """The losses of a branch's prototypes, weighted and summed."""
        layer = branch.prototypes
        is_support = branch.name == "support"
        separation = self.support_separation if is_support else self.separation
        per_class = layer.prototypes_per_class
        # Not reduced by Keras, which would divide by the number of replicas.
        near = PrototypeClusterLoss(per_class, reduction="none")
        apart = PrototypeSeparationLoss(per_class, reduction="none")
        each = self.cluster * near(labels, proximity, sample_weight)
        each += separation * apart(labels, proximity, sample_weight)
        total = tf.reduce_mean(each)
        if not branch.name:
            return total
        prototypes = layer.class_prototypes()
        total += self.orthonormality * orthonormality_loss(prototypes)
        if is_support:
            return total + self.closeness * support_closeness_loss(prototypes)
        return total + self.discrimination * trivial_discrimination_loss(prototypes)

    def get_config(self):
        weights = {name: getattr(self, name) for name in self._WEIGHTS}
        return {**super().get_config(), "stage": self.stage, **weights}


def other_class_l1(branch):
    """Sum of |w| over the classifier's weights from prototypes to classes that they are not of."""
    kernel = tf.convert_to_tensor(branch.classifier.kernel)
    own = np.arange(kernel.shape[1]) == branch.prototypes.prototype_classes[:, np.newaxis]
    return tf.reduce_sum(tf.where(own, tf.zeros_like(kernel), tf.abs(kernel)))


@component(PROTOPNET_PAPER, PAPER)
def fit_in_stages(
    model,
    x,
    y,
    warm_epochs=5,
    joint_epochs=10,
    last_layer_epochs=20,
    cycles=1,
    warm_optimizer=None,
    joint_optimizer=None,
    last_layer_optimizer=None,
    batch_size=32,
    verbose=0,
    **weights,
):
    """Trains a ProtoPNet or ST-ProtoPNet through all stages: warm, then joint, push, last layer.

    For other data than arrays, for callbacks or other schedules, write down the stages: each is
    one `PrototypeTrainer`, with `push_prototypes` in between.

    Args:
        model: a model of `ProtoPNet` or `STProtoPNet`, trained in place.
        x: images, [n, height, width, channels].
        y: class numbers, int [n].
        warm_epochs, joint_epochs, last_layer_epochs: epochs of the stages; those of the joint and
            the last stage are for each cycle. Default to 5, 10 and 20.
        cycles: how often joint training, push and the last stage follow. Defaults to 1.
        warm_optimizer, joint_optimizer, last_layer_optimizer: Keras optimizers; default to Adam
            with 3e-3, 1e-3 and 1e-3.
        batch_size, verbose: see `keras.Model.fit`.
        weights: of the losses, see `PrototypeTrainer`.

    Returns:
        (list of (stage, `keras.callbacks.History`), the newest `push_prototypes`' result)

    Reference:
        Chen et al. (2018), section 2.2, arxiv.org/abs/1806.10574
    """
    if not isinstance(cycles, int) or cycles < 1:
        raise ValueError(f"`cycles` must be an integer of at least 1. Received: {cycles!r}")
    optimizers = {
        "warm": warm_optimizer or keras.optimizers.Adam(3e-3),
        "joint": joint_optimizer or keras.optimizers.Adam(1e-3),
        "last_layer": last_layer_optimizer or keras.optimizers.Adam(1e-3),
    }
    epochs = {"warm": warm_epochs, "joint": joint_epochs, "last_layer": last_layer_epochs}
    trainers = {stage: PrototypeTrainer(model, stage, **weights) for stage in STAGES}
    for stage, trainer in trainers.items():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(optimizers[stage], loss, metrics=["accuracy"])
    histories = []

    def run(stage):
        options = {"epochs": epochs[stage], "batch_size": batch_size, "verbose": verbose}
        if epochs[stage]:
            histories.append((stage, trainers[stage].fit(x, y, **options)))

    run("warm")
    for _ in range(cycles):
        run("joint")
        projections = push_prototypes(model, (x, y), batch_size)
        run("last_layer")
    return histories, projections
