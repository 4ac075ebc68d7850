"""Gradient regularization: a penalty on the squared norm of the gradient, by finite differences.

    L(w) + gamma / 2 ||g||^2,   g = grad L(w)

whose gradient is g + gamma H g, exactly or with one gradient more:

    forward    g + gamma (grad L(w + epsilon g) - g) / epsilon
    backward   g + gamma (g - grad L(w - epsilon g)) / epsilon
    double     g + gamma H g                            (double backpropagation)

"Understanding Gradient Regularization in Deep Learning: Efficient Finite-Difference Computation
and Implicit Bias", Karakida, Takase, Hayase, Osawa, 2022, arXiv 2210.02720; F-GR, B-GR, DB there.

With gamma = epsilon the forward form is SAM without the normalization, grad L(w + epsilon g); a
descent and an ascent step of flooding make the backward form with epsilon the learning rate.

Open choices: the defaults of `gamma` and `epsilon` are not tuned; g is the gradient of the global
batch on all replicas; moving statistics come from the pass at w; both passes see the same dropout
masks.
"""

import keras

from kzoo.ops.gradient_norm import combined
from kzoo.papers import Example, Paper, component
from kzoo.training.curvature import hessian_gradient_product
from kzoo.training.several_passes import SeveralPasses

PAPER = Paper(
    title="Understanding Gradient Regularization in Deep Learning: Efficient Finite-Difference "
    "Computation and Implicit Bias",
    authors=("Ryo Karakida", "Tomoumi Takase", "Tomohiro Hayase", "Kazuki Osawa"),
    year=2022,
    arxiv="2210.02720",
)

_METHODS = ("forward", "backward", "double")


def _example():
    layers = [keras.Input([6]), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)]
    return {"model": keras.Sequential(layers), "gamma": 0.05, "epsilon": 0.1}


@component(PAPER, example=Example(kwargs=_example))
class GradientRegularization(SeveralPasses):
    """Trains a model with a penalty on its gradient's norm, with any base optimizer.

    A step costs two gradients with finite differences, about three with double backpropagation. The
    reported loss is that without the penalty.

    Args:
        model: the `keras.Model` to train.
        gamma: weight of the penalty, at least 0. Defaults to 0.05. With 0 it is the base
            optimizer, bit for bit.
        epsilon: step of the finite differences along the gradient, above 0. Defaults to 0.1; the
            paper finds that large steps of the forward form generalize better.
        method: "forward", "backward" or "double". Defaults to "forward".

    Example:

    >>> trainer = GradientRegularization(model, gamma=0.05, epsilon=0.1)
    >>> trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    >>> history = trainer.fit(x, y)

    Reference:
        Karakida et al. (2022), arxiv.org/abs/2210.02720
    """

    def __init__(self, model, gamma=0.05, epsilon=0.1, method="forward", **kwargs):
        if not isinstance(gamma, int | float) or not gamma >= 0:
            raise ValueError(f"`gamma` must be a number of at least 0. Received: {gamma!r}")
        if not isinstance(epsilon, int | float) or not epsilon > 0:
            raise ValueError(f"`epsilon` must be a number above 0. Received: {epsilon!r}")
        if method not in _METHODS:
            raise ValueError(f"`method` must be one of {', '.join(_METHODS)}. Received: {method!r}")
        super().__init__(model, **kwargs)
        self.gamma = gamma
        self.epsilon = epsilon
        self.method = method

    def step_gradients(self, batch):
        if self.gamma == 0:
            return batch.gradients()
        if self.method == "double":
            gradients, products, first = hessian_gradient_product(batch, batch.sum_over_replicas)
            return combined(1, gradients, self.gamma, products), first
        gradients, first = batch.gradients()
        step = self.epsilon if self.method == "forward" else -self.epsilon
        direction = batch.sum_over_replicas(gradients)
        beside, _ = batch.gradients(combined(1, batch.weights, step, direction))
        # The same difference quotient forwards and backwards, with the sign of the step.
        change = combined(1, beside, -1, gradients)
        return combined(1, gradients, self.gamma / step, change), first

    def get_config(self):
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "epsilon": self.epsilon,
            "method": self.method,
        }
