"""Training with explanations: the task's loss and a penalty on the model's attributions.

    L = task loss + weight * penalty(attributions of the labels[, masks])

With a prior on expected gradients (kzoo.explain.BatchExpectedGradients with
kzoo.regularizers.AttributionGini ...) it is "Improving performance of deep learning models with
axiomatic attribution priors and expected gradients", Erion, Janizek, Sturmfels, Lundberg, Lee,
2019, arXiv 1906.10670, section "Attribution priors". With a loss of masks (kzoo.losses.EnergyLoss
...) it is "Using Explanations to Guide Models", Rao, Boehle, Parchami-Araghi, Schiele, 2023, arXiv
2303.11932, where L_loc of the annotated images is added to the classification loss.

Open choices: the model is explained as it is served, without dropout and with the moving statistics
of batch normalization. The penalty is a mean over the annotated rows of the global batch, where the
code of the second paper takes their sum.

Limits: under XLA the second derivative of a max-pooling layer is off by about half a percent (use
average pooling there), and explainers that go in chunks of `rows`, such as IntegratedGradients,
have none: train with those without XLA.
"""

import keras
import tensorflow as tf

from kzoo.losses.guidance import PAPER as GUIDANCE_PAPER
from kzoo.ops.distribute import num_replicas
from kzoo.papers import Example, component
from kzoo.regularizers.attribution_priors import PAPER as PRIORS_PAPER
from kzoo.regularizers.attribution_priors import AttributionGini, global_batch_mean
from kzoo.training.method import TrainingMethod

_SEED_STATE = "seed_generator_state"


def _example():
    layers = [keras.Input([6]), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    return {
        "model": keras.Sequential(layers),
        "explainer": {"class_name": "kzoo>InputXGradient", "config": {}},
        "penalty": AttributionGini(),
        "weight": 0.1,
    }


@component(PRIORS_PAPER, GUIDANCE_PAPER, example=Example(kwargs=_example))
class ExplanationGuided(TrainingMethod):
    """Trains a model to be right for reasons that look as they should.

    The labels in `fit` are as the compiled loss takes them, or a dict:

    * "label": those labels.
    * "mask": [batch, ...], as the penalty takes it; a row with a negative value anywhere, such as
      -1 everywhere, has no annotation, and the penalty is the mean over the others.
    * "target": int [batch], the class that is explained, where it is not to be read from the label.
      A label is the number of its class, or a row of which the largest value is; of a model with
      one output that output is explained.

    `loss` in the history includes the penalty, which is also given by itself as `penalty`. An
    evaluation explains nothing: its loss is the task's, and its `penalty` is NaN.

    Args:
        model: the `keras.Model` to train.
        explainer: an explainer of the same model whose attributions can be differentiated, such as
            `kzoo.explain.InputXGradient`, `GradCAM`, `IntegratedGradients` or, for priors,
            `BatchExpectedGradients`; or its {"class_name", "config"} as in `get_config`. The memory
            of training grows with its number of steps.
        penalty: a `keras.losses.Loss` of (masks, attributions), see `kzoo.losses.EnergyLoss`, or a
            function of attributions that returns a scalar, see
            `kzoo.regularizers.AttributionTotalVariation`. To be saved it must be serializable.
        weight: factor of the penalty, at least 0.

    Example:

    >>> guided = ExplanationGuided(model, InputXGradient(model), EnergyLoss(), weight=0.1)
    >>> guided.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> masks[unknown] = -1
    >>> history = guided.fit(images, {"label": labels, "mask": masks})

    References:
        Erion et al. (2019), arxiv.org/abs/1906.10670
        Rao et al. (2023), arxiv.org/abs/2303.11932
    """

    def __init__(self, model, explainer, penalty, weight=1.0, **kwargs):
        super().__init__(model, **kwargs)
        if not isinstance(weight, int | float) or not weight >= 0:
            raise ValueError(f"`weight` must be a number of at least 0. Received: {weight!r}")
        self.explainer = _make_explainer(model, explainer)
        if isinstance(penalty, dict):
            penalty = keras.saving.deserialize_keras_object(penalty)
        if not callable(penalty):
            raise TypeError(
                "`penalty` must be a keras.losses.Loss or a function of attributions. Received: "
                f"{penalty!r}"
            )
        self.penalty = penalty
        self.weight = weight
        # Held here as well, so that its state is one of the variables.
        self.seed_generator = getattr(self.explainer, "seed_generator", None)
        self.penalty_tracker = _MeanOrNaN(name="penalty")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        label, _, _ = _annotations(y)
        loss = super().compute_loss(x, label, y_pred, sample_weight, training)
        if not training:
            return loss
        penalty = self.explanation_penalty(x, y, y_pred)
        rows = tf.shape(keras.tree.flatten(x)[0])[0]
        self.penalty_tracker.update_state(penalty, sample_weight=rows)
        # As Keras divides its losses: what the replicas take of them is summed.
        return loss + tf.cast(self.weight / num_replicas() * penalty, loss.dtype)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, _annotations(y)[0], y_pred, sample_weight)

    def explanation_penalty(self, x, y, y_pred):
        """The penalty on a batch, a scalar that can be differentiated; the same on all replicas.

        Args:
            x: the model's inputs.
            y: labels, or the dict of labels and annotations.
            y_pred: the model's outputs, of which only the shape is looked at.

        Raises:
            ValueError: for a penalty of masks without masks, or attributions of several inputs.
        """
        label, mask, target = _annotations(y)
        if target is None:
            target = _class_of(tf.convert_to_tensor(label), y_pred)
        x = keras.tree.map_structure(tf.convert_to_tensor, x)
        attributions = self.explainer.explain(x, target)["attributions"]
        if keras.tree.is_nested(attributions):
            raise ValueError(
                "`penalty` takes the attributions of one input. Received those of "
                f"{len(keras.tree.flatten(attributions))}: pass an explainer with a `tap`."
            )
        if not isinstance(self.penalty, keras.losses.Loss):
            return self.penalty(attributions)
        if mask is None:
            raise ValueError(
                f'`penalty` {self.penalty.name!r} needs masks. Pass y={{"label": ..., "mask": '
                f"...}}. Received: {type(y).__name__}"
            )
        return self._of_annotated(tf.cast(mask, attributions.dtype), attributions)

    def _of_annotated(self, mask, attributions):
        annotated = tf.reduce_all(mask >= 0, axis=range(1, mask.shape.rank))
        losses = self.penalty.call(tf.maximum(mask, 0), attributions)
        return global_batch_mean(tf.where(annotated, losses, 0), annotated)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.seed_generator is not None:
            # Keras leaves it out, and a loaded trainer would repeat the draws.
            store[_SEED_STATE] = self.seed_generator.state

    def load_own_variables(self, store):
        super().load_own_variables({key: store[key] for key in store.keys() - {_SEED_STATE}})
        if self.seed_generator is not None:
            self.seed_generator.state.assign(store[_SEED_STATE])

    def get_config(self):
        return {
            **super().get_config(),
            "explainer": _explainer_config(self.model, self.explainer),
            "penalty": keras.saving.serialize_keras_object(self.penalty),
            "weight": self.weight,
        }


class _MeanOrNaN(keras.metrics.Mean):
    """A mean that does not claim to be 0 where nothing was measured."""

    def result(self):
        return self.total / self.count


def _annotations(y):
    """(label, mask or None, target or None)"""
    if isinstance(y, dict) and "label" in y:
        unknown = y.keys() - {"label", "mask", "target"}
        if unknown:
            raise ValueError(f'`y` may hold "label", "mask" and "target". Received: {unknown}')
        return y["label"], y.get("mask"), y.get("target")
    return y, None, None


def _class_of(label, y_pred):
    """The class that each label names, int32 [batch]."""
    if y_pred.shape[-1] == 1:
        return tf.zeros(tf.shape(label)[:1], tf.int32)
    if label.shape.rank == 2 and label.shape[-1] > 1:
        return tf.argmax(label, axis=-1, output_type=tf.int32)
    return tf.cast(tf.reshape(label, [-1]), tf.int32)


def _make_explainer(model, explainer):
    if isinstance(explainer, dict):
        make = keras.saving.get_registered_object(explainer["class_name"])
        if make is None:
            raise ValueError(
                f"`explainer` names {explainer['class_name']!r}, which is not registered. Import "
                "the package that it is from first: kzoo.explain."
            )
        tap = {"tap": explainer["tap"]} if explainer.get("tap") else {}
        return make(model, **explainer["config"], **tap)
    if not callable(getattr(explainer, "explain", None)):
        raise TypeError(
            "`explainer` must be an explainer of kzoo.explain, or its configuration. Received: "
            f"{explainer!r}"
        )
    if explainer.model is not model:
        raise ValueError(
            f"`explainer` must explain the same model, {model.name!r}. Received one that explains "
            f"{explainer.model.name!r}."
        )
    return explainer


def _explainer_config(model, explainer):
    config = {
        "class_name": keras.saving.get_registered_name(type(explainer)),
        "config": explainer.get_config(),
        "tap": None if explainer.tap is None else explainer.tap.name,
    }
    if _make_explainer(model, config).score is not explainer.score:
        raise ValueError(
            "`explainer` has a `score` of its own, which cannot be saved. Save `.model` instead."
        )
    return config
