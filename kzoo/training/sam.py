"""Sharpness-aware minimization: descend along the gradient of the worst point nearby.

    eps = rho g / ||g||_2,   g = grad L(w)                 (equation 2)
    w <- base_optimizer(w, grad L at w + eps)
    ASAM: eps = rho T^2 g / ||T g||_2,   T = |w| + eta     (Kwon et al. 2021, equation 6)

"Sharpness-Aware Minimization for Efficiently Improving Generalization", Foret, Kleiner, Mobahi,
Neyshabur, 2020, arXiv 2010.01412; "ASAM: Adaptive Sharpness-Aware Minimization for
Scale-Invariant Learning of Deep Neural Networks", Kwon, Kim, Park, Choi, 2021, arXiv 2102.11600.

Open choices, where the papers are silent: both passes see the same dropout masks, so that both are
gradients of one function; the moving statistics of batch normalization come from the first pass
unless `batch_norm` says otherwise; ASAM's T holds for every weight, biases included.
"""

import keras
import tensorflow as tf

from kzoo.papers import Example, Paper, component
from kzoo.training.several_passes import SeveralPasses

PAPER = Paper(
    title="Sharpness-Aware Minimization for Efficiently Improving Generalization",
    authors=("Pierre Foret", "Ariel Kleiner", "Hossein Mobahi", "Behnam Neyshabur"),
    year=2020,
    arxiv="2010.01412",
)


def _example():
    layers = [keras.Input([6]), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    return {"model": keras.Sequential(layers), "rho": 0.1}


@component(PAPER, example=Example(kwargs=_example))
class SAM(SeveralPasses):
    """Trains a model towards flat minima, with any base optimizer, at two gradients a step.

    Args:
        model: the `keras.Model` to train.
        rho: radius of the neighbourhood, at least 0. Defaults to 0.05; with `adaptive` the
            authors use ten times as much. With 0 it is the base optimizer, bit for bit.
        adaptive: whether the radius is measured relative to the weights (ASAM).
        eta: added to |w| in ASAM. Defaults to 0.01.
        m_sharpness: whether each replica looks for the worst point of its own share of the batch
            (the paper's m-sharpness, which generalizes better), or all for that of the global
            batch. Defaults to True.
        batch_norm: which pass updates the moving statistics: "first", at w, or "second", at
            w + eps. Defaults to "first".

    Example:

    >>> trainer = SAM(model, rho=0.05)
    >>> trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    >>> history = trainer.fit(x, y)

    Reference:
        Foret et al. (2020), algorithm 1, arxiv.org/abs/2010.01412
    """

    def __init__(
        self,
        model,
        rho=0.05,
        adaptive=False,
        eta=0.01,
        m_sharpness=True,
        batch_norm="first",
        **kwargs,
    ):
        for name, value in (("rho", rho), ("eta", eta)):
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"`{name}` must be a number of at least 0. Received: {value!r}")
        if batch_norm not in ("first", "second"):
            raise ValueError(f'`batch_norm` must be "first" or "second". Received: {batch_norm!r}')
        super().__init__(model, **kwargs)
        self.rho = rho
        self.adaptive = adaptive
        self.eta = eta
        self.m_sharpness = m_sharpness
        self.batch_norm = batch_norm

    def step_gradients(self, batch):
        gradients, first = batch.gradients()
        if not self.m_sharpness:
            gradients = batch.sum_over_replicas(gradients)
        moved = self.perturbed(batch.weights, gradients)
        gradients, second = batch.gradients(moved)
        return gradients, first if self.batch_norm == "first" else second

    def perturbed(self, weights, gradients):
        """w + eps for each weight; ||eps||_2 = rho over all of them, less only if g = 0.

        With `adaptive` it is ||eps / T||_2 that equals rho.
        """
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        values = [tf.convert_to_tensor(weight) for weight in weights]
        if self.adaptive:
            scales = [tf.abs(value) + self.eta for value in values]
            gradients = [scale * g for scale, g in zip(scales, gradients, strict=True)]
        norm = tf.linalg.global_norm(gradients)
        factor = tf.math.divide_no_nan(tf.constant(self.rho, norm.dtype), norm)
        if self.adaptive:
            gradients = [scale * g for scale, g in zip(scales, gradients, strict=True)]
        return [value + factor * g for value, g in zip(values, gradients, strict=True)]

    def get_config(self):
        return {
            **super().get_config(),
            "rho": self.rho,
            "adaptive": self.adaptive,
            "eta": self.eta,
            "m_sharpness": self.m_sharpness,
            "batch_norm": self.batch_norm,
        }
