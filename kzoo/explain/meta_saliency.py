"""Meta-saliency: the map of any explainer after the network has learnt the class from the image.

    theta' = theta - epsilon d/dtheta loss(f(x; theta), c)
    M'(x, c) = M(x, c; theta')

with the cross-entropy of the class c that is explained. One step of gradient descent makes the
network, and with it the map, depend more on c.

"There and Back Again: Revisiting Backpropagation Saliency Methods", Rebuffi, Fong, Ji, Vedaldi,
2020, arXiv 2004.02866; section on meta-saliency.

Open choices: the map is made at theta' and not differentiated through the step, as in the authors'
code (TorchRay). Each image has a step of its own, so that its map does not depend on the batch it
comes in. All trainable weights take part; moving averages of batch normalization stay.
"""

import keras
import tensorflow as tf

from kzoo.explain.composition import base_config, make_base
from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import final_activation, linear_output, require_layers
from kzoo.explain.norm_grad import PAPER
from kzoo.explain.scores import class_score
from kzoo.papers import Example, component


@component(PAPER, example=Example(kwargs={"step_size": 0.1}))
class MetaSaliency(Explainer):
    """Another explainer's map, more sensitive to the class that is explained.

    The weights of the model are not changed: the step exists only within the graph. Images are
    explained one after the other, in a loop in the graph.

    Args:
        model: a Keras model with outputs [batch, classes] and trainable weights; see `Explainer`,
            as are `score` and `tap`.
        base: the explainer: None for the signed gradient, a class (made with `score` and `tap`), an
            instance for the same model, or {"class_name", "config"} as in `get_config`.
        step_size: epsilon. 0 gives the base's map bit for bit; below 0, the step makes the network
            forget the class, which shows the places that can be turned against it. Defaults to
            1e-3.

    Returns (when called): `attributions` of the shape of the base's; `score`, `target` and
    `predictions` of the model as it is.

    Example:

    >>> result = MetaSaliency(model, base=NormGrad, step_size=1e-3)(images, target=3)
    >>> result["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Rebuffi et al. (2020), arxiv.org/abs/2004.02866
    """

    def __init__(self, model, base=None, step_size=1e-3, score=None, tap=None):
        require_layers(model)
        if not -float("inf") < step_size < float("inf"):
            raise ValueError(f"`step_size` must be a finite number. Received: {step_size!r}")
        self.base = make_base(model, base, score, tap)
        super().__init__(model, score=self.base.score, tap=self.base.tap, rows=self.base.rows)
        self.differentiates_inputs = self.base.differentiates_inputs
        self.step_size = step_size

    def attribute(self, values, target, inputs):
        if not self.step_size:
            return self.base.attribute(values, target, inputs)
        # Also builds a model that is built by its first call.
        scored = self.scores(values, target, inputs)
        batch = tf.shape(target)[0]

        def explain(row):
            # One row, but in a batch of a size that stays open, as methods with loops need it.
            row = tf.fill([tf.minimum(batch, 1)], row)
            image, label = keras.tree.map_structure(
                lambda x: tf.gather(x, row), (inputs, scored["target"])
            )
            with keras.StatelessScope(self._learnt(image, label)):
                result = self.base.explain(image, label)["attributions"]
            return keras.tree.map_structure(lambda x: x[0], result)

        return {"attributions": _map_rows(explain, batch), **scored}

    def _learnt(self, inputs, target):
        """[(variable, its value after the step)] for one image."""
        weights = self.model.trainable_variables
        if not weights:
            raise ValueError(f"{self.model.name!r} has no trainable weights to take a step with.")
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([weight.value for weight in weights])
            with linear_output(self.model):
                logits = self.predict(inputs)
            loss = self._cross_entropy(logits, target)
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        return [
            (weight, weight.value - self.step_size * tf.convert_to_tensor(gradient))
            for weight, gradient in zip(weights, gradients, strict=True)
            if gradient is not None
        ]

    def _cross_entropy(self, logits, target):
        """-log p(target) [batch], by the softmax or sigmoid that the model ends in."""
        score, _ = class_score(logits, target)
        activation = final_activation(self.model)
        if logits.shape[-1] == 1 or getattr(activation, "__name__", None) == "sigmoid":
            return tf.nn.softplus(-score)
        return tf.reduce_logsumexp(logits, axis=-1) - score

    def get_config(self):
        return {"base": base_config(self.base), "step_size": self.step_size}


def _map_rows(function, rows):
    """Stacks `function(row)`, a structure of tensors, over the rows from 0, in a loop."""
    first = function(0)
    leaves = keras.tree.flatten(first)
    arrays = [tf.TensorArray(x.dtype, size=rows, element_shape=x.shape).write(0, x) for x in leaves]

    def step(row, arrays):
        results = keras.tree.flatten(function(row))
        return row + 1, [a.write(row, x) for a, x in zip(arrays, results, strict=True)]

    _, arrays = tf.while_loop(
        lambda row, _: row < rows, step, (1, arrays), maximum_iterations=rows - 1
    )
    return keras.tree.pack_sequence_as(first, [array.stack() for array in arrays])
