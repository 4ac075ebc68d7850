"""What is explained: functions of a model's outputs and the targets.

A score is `score(outputs, target) -> (scores [batch], target int32 [batch])`; `outputs` come
without the softmax or sigmoid at the end of the model. Any function of this form will do: these are
the usual ones.
"""

import keras
import tensorflow as tf

from kzoo.explain.graph import final_activation


def class_score(outputs, target):
    """The logit of the target class, the default.

    Args:
        outputs: [batch, classes], the model's logits; a single column is a score by itself.
        target: int32 [batch], class indices; -1 stands for the model's own top class, -2 for its
            second, and so on.

    Returns:
        (scores [batch], targets int32 [batch], with the ranks resolved)

    Raises:
        ValueError: for outputs of another form.
        tf.errors.InvalidArgumentError: for a target that is no class, in the graph.
    """
    outputs = _of_rank(outputs, 2, "[batch, classes]")
    target = _resolve(outputs, target)
    return tf.gather(outputs, target, batch_dims=1), target


def probability_score(model):
    """Returns a score: the probability of the target class, by the model's own final activation.

    A model that ends in logits is taken to be meant for a softmax; one with a single column, for a
    sigmoid.
    """
    activation = final_activation(model)

    def score(outputs, target):
        _, target = class_score(outputs, target)
        turn = activation or (tf.nn.softmax if outputs.shape[-1] > 1 else tf.nn.sigmoid)
        return tf.gather(turn(outputs), target, batch_dims=1), target

    return score


def margin_score(outputs, target):
    """By how much the logit of the target class exceeds that of the best other class.

    It says why this class rather than the next one. Arguments and returns as of `class_score`.
    """
    score, target = class_score(outputs, target)
    others = tf.where(
        tf.one_hot(target, tf.shape(outputs)[1], True, False), outputs.dtype.min, outputs
    )
    return score - tf.reduce_max(others, axis=-1), target


def segmentation_score(outputs, target):
    """The sum of the logits of the target class over the positions that the model gives to it.

    Args:
        outputs: [batch, ..., classes] with at least one axis of positions.
        target: as for `class_score`; ranks go by the number of positions of a class.

    Reference:
        Vinogradova et al. (2020), "Towards Interpretable Semantic Segmentation via
        Gradient-Weighted Class Activation Mapping", equation 2, arxiv.org/abs/2002.11434
    """
    if not tf.is_tensor(outputs) or outputs.shape.rank < 3:
        raise ValueError(
            f"A segmentation gives [batch, ..., classes]. Received: {_shapes(outputs)}"
        )
    classes = outputs.shape[-1]
    outputs = tf.reshape(outputs, [tf.shape(outputs)[0], -1, classes])
    chosen = tf.one_hot(tf.argmax(outputs, -1), classes, dtype=outputs.dtype)
    target = _resolve(tf.reduce_sum(chosen, 1), target)
    mine = tf.gather(outputs * chosen, target, axis=-1, batch_dims=1)
    return tf.reduce_sum(mine, axis=1), target


def output_score(name):
    """The class score of one output of a model that has several.

    Args:
        name: the key of a dict of outputs, or the index of a list of them.
    """
    return lambda outputs, target: class_score(outputs[name], target)


def _resolve(scores, target):
    """Targets with ranks replaced by the classes that have them in `scores` [batch, classes]."""
    classes = tf.shape(scores)[1]
    checked = tf.debugging.Assert(
        tf.reduce_all((target >= -classes) & (target < classes)),
        [
            "`target` must be a class from 0, or a rank: -1 for the top class, -2 for the second. "
            "The number of classes and the targets received:",
            classes,
            target,
        ],
        summarize=8,
    )

    def by_rank():
        ranked = tf.argsort(scores, direction="DESCENDING", stable=True)
        return tf.where(
            target < 0, tf.gather(ranked, tf.maximum(-1 - target, 0), batch_dims=1), target
        )

    with tf.control_dependencies([] if checked is None else [checked]):
        # Methods of many steps ask again for targets that are resolved: no sorting for those.
        return tf.cond(tf.reduce_any(target < 0), by_rank, lambda: target)


def _of_rank(outputs, rank, form):
    if not tf.is_tensor(outputs) or outputs.shape.rank != rank:
        raise ValueError(
            f"The default score explains a model with one output of shape {form}. Received: "
            f"{_shapes(outputs)}. Pass `score`, a function of the model's outputs and the targets "
            "that returns (scores [batch], targets [batch]); kzoo.explain.scores has some."
        )
    return outputs


def _shapes(outputs):
    return keras.tree.map_structure(lambda x: x.shape, outputs)
