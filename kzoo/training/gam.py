"""Gradient norm aware minimization: descend on the loss and the largest gradient norm nearby.

    R1(w)  = rho max_{||e|| <= rho} ||grad L(w + e)||               first-order flatness
    f      = grad ||grad L(w)|| = H(w) g / ||g||,   g = grad L(w)
    w_adv  = w + rho f / ||f||
    h      = rho H(w_adv) g_adv / ||g_adv||,   g_adv = grad L(w_adv)
    w     <- base_optimizer(w, grad L + alpha h)                    (equations 7, 8, algorithm 1)

where the loss of `grad L` may be that of SAM. The accelerated form takes gradients only:

    g0 = grad L(w),       g1 = grad L(w + rho' g0 / ||g0||)
    w2 = w + rho (g1 - g0) / ||g1 - g0||
    g2 = grad L(w2),      g3 = grad L(w2 + rho' g2 / ||g2||)
    plus  = alpha g1 + (1 - alpha) g3,   minus = beta g0 + (1 - beta) g2
    w <- base_optimizer(w, plus - gamma minus_perpendicular)        (appendix D, algorithm 2)

with minus_perpendicular the part of `minus` that is orthogonal to `plus`.

"Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization", Zhang,
Xu, Yu, Zou, Cui, 2023, arXiv 2303.03108.

Deviations: the small constant in the denominators is left out; a direction of length 0 stays 0.
The authors' code of algorithm 2 has g1 + g3 and g0 + g2 in place of the two means, which is twice
the step of alpha = beta = 1/2. Open choices: the radii's defaults are those of the authors' code
for CIFAR, `alpha` of algorithm 1 is not tuned; each replica looks for its own worst point, as in
the authors' code; moving statistics come from the pass at w; all passes see the same dropout masks.
"""

import keras
import tensorflow as tf

from kzoo.ops.gradient_norm import PAPER, combined, unit
from kzoo.papers import Example, component
from kzoo.training.curvature import hessian_gradient_product
from kzoo.training.several_passes import SeveralPasses

_HESSIANS = ("exact", "differences")


def _example(**options):
    layers = [keras.Input([6]), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)]
    return {"model": keras.Sequential(layers), "rho": 0.1, **options}


@component(PAPER, example=Example(kwargs=lambda: _example(alpha=0.3)))
class GAM(SeveralPasses):
    """Trains a model towards minima with small gradients all around, with any base optimizer.

    A step costs about 6 gradients with exact Hessian products and 4 with differences; with
    `sam_rho` one more.

    Args:
        model: the `keras.Model` to train.
        rho: radius of the neighbourhood, at least 0. Defaults to 0.2.
        alpha: weight of the first-order flatness, at least 0. Defaults to 1. With 0 it is the
            base optimizer, or SAM, bit for bit.
        sam_rho: radius of SAM, whose loss takes the place of the plain one. Defaults to 0, the
            plain loss.
        hessian: how H g / ||g|| is found: "exact", by double backpropagation, or "differences",
            (grad L(w + rho' g / ||g||) - g) / rho'. Defaults to "exact".
        difference: rho', above 0, of the differences. Defaults to 0.02.
        m_sharpness: whether each replica looks for the worst point of its own share of the batch,
            or all for that of the global batch. Defaults to True.

    Example:

    >>> trainer = GAM(model, rho=0.2, alpha=0.5)
    >>> trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    >>> history = trainer.fit(x, y)

    Reference:
        Zhang et al. (2023), algorithm 1, arxiv.org/abs/2303.03108
    """

    def __init__(
        self,
        model,
        rho=0.2,
        alpha=1.0,
        sam_rho=0.0,
        hessian="exact",
        difference=0.02,
        m_sharpness=True,
        **kwargs,
    ):
        _check_numbers(rho=rho, alpha=alpha, sam_rho=sam_rho)
        _check_above_zero("difference", difference)
        if hessian not in _HESSIANS:
            raise ValueError(
                f"`hessian` must be one of {', '.join(_HESSIANS)}. Received: {hessian!r}"
            )
        super().__init__(model, **kwargs)
        self.rho = rho
        self.alpha = alpha
        self.sam_rho = sam_rho
        self.hessian = hessian
        self.difference = difference
        self.m_sharpness = m_sharpness

    def step_gradients(self, batch):
        if self.alpha == 0:
            gradients, first = batch.gradients()
            return self._loss_gradients(batch, gradients), first
        gradients, ascent, first = self._norm_gradients(batch, batch.weights)
        ascent = self._shared(batch, ascent)
        worst = combined(1, batch.weights, self.rho, unit(ascent))
        _, penalty, _ = self._norm_gradients(batch, worst)
        gradients = self._loss_gradients(batch, gradients)
        return combined(1, gradients, self.alpha * self.rho, penalty), first

    def _loss_gradients(self, batch, gradients):
        """Those of the plain loss, which are given, or of SAM's."""
        if self.sam_rho == 0:
            return gradients
        direction = unit(self._shared(batch, gradients))
        return batch.gradients(combined(1, batch.weights, self.sam_rho, direction))[0]

    def _norm_gradients(self, batch, weights):
        """(gradients of the loss, gradients of their norm, `Pass`) at the weights."""

        def direction(gradients):
            return unit(self._shared(batch, gradients))

        if self.hessian == "exact":
            return hessian_gradient_product(batch, direction, weights)
        gradients, found = batch.gradients(weights)
        ahead, _ = batch.gradients(combined(1, weights, self.difference, direction(gradients)))
        return (
            gradients,
            combined(1 / self.difference, ahead, -1 / self.difference, gradients),
            found,
        )

    def _shared(self, batch, tensors):
        return tensors if self.m_sharpness else batch.sum_over_replicas(tensors)

    def get_config(self):
        return {
            **super().get_config(),
            "rho": self.rho,
            "alpha": self.alpha,
            "sam_rho": self.sam_rho,
            "hessian": self.hessian,
            "difference": self.difference,
            "m_sharpness": self.m_sharpness,
        }


@component(PAPER, example=Example(kwargs=lambda: _example(gamma=0.1)))
class AcceleratedGAM(SeveralPasses):
    """GAM with gradients in place of Hessian products, at four gradients a step.

    With alpha = 1 and gamma = 0 it is SAM with the radius `difference`.

    Args:
        model: the `keras.Model` to train.
        rho: radius of the neighbourhood, at least 0. Defaults to 0.2.
        difference: rho', above 0, the length of the steps along gradients. Defaults to 0.02.
        alpha: share of g1 against g3 in the direction, in [0, 1]. Defaults to 0.5.
        beta: share of g0 against g2 in what is subtracted, in [0, 1]. Defaults to 0.5.
        gamma: how much of the orthogonal part is subtracted, at least 0. Defaults to 0.03.
        m_sharpness: see `GAM`.

    Example:

    >>> trainer = AcceleratedGAM(model)
    >>> trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    >>> history = trainer.fit(x, y)

    Reference:
        Zhang et al. (2023), appendix D, algorithm 2, arxiv.org/abs/2303.03108
    """

    def __init__(
        self,
        model,
        rho=0.2,
        difference=0.02,
        alpha=0.5,
        beta=0.5,
        gamma=0.03,
        m_sharpness=True,
        **kwargs,
    ):
        _check_numbers(rho=rho, gamma=gamma)
        _check_above_zero("difference", difference)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be a number in [0, 1]. Received: {value!r}")
        super().__init__(model, **kwargs)
        self.rho = rho
        self.difference = difference
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.m_sharpness = m_sharpness

    def step_gradients(self, batch):
        g0, first = batch.gradients()
        g1 = self._ahead(batch, batch.weights, g0)
        ascent = unit(self._shared(batch, combined(1, g1, -1, g0)))
        worst = combined(1, batch.weights, self.rho, ascent)
        g2, _ = batch.gradients(worst)
        g3 = self._ahead(batch, worst, g2)
        plus = combined(self.alpha, g1, 1 - self.alpha, g3)
        minus = combined(self.beta, g0, 1 - self.beta, g2)
        parallel = self._projection(batch, minus, plus)
        orthogonal = combined(1, minus, -parallel, plus)
        return combined(1, plus, -self.gamma, orthogonal), first

    def _ahead(self, batch, weights, gradients):
        """Gradients where a step of the length `difference` along the given ones leads."""
        direction = unit(self._shared(batch, gradients))
        return batch.gradients(combined(1, weights, self.difference, direction))[0]

    def _projection(self, batch, tensors, onto):
        """How many times `onto` is contained in the tensors."""
        tensors, onto = self._shared(batch, tensors), self._shared(batch, onto)
        norm = tf.linalg.global_norm([t for t in onto if t is not None])
        pairs = zip(tensors, unit(onto), strict=True)
        along = tf.add_n([tf.reduce_sum(t * u) for t, u in pairs if t is not None])
        return tf.math.divide_no_nan(along, norm)

    def _shared(self, batch, tensors):
        return tensors if self.m_sharpness else batch.sum_over_replicas(tensors)

    def get_config(self):
        return {
            **super().get_config(),
            "rho": self.rho,
            "difference": self.difference,
            "alpha": self.alpha,
            "beta": self.beta,
            "gamma": self.gamma,
            "m_sharpness": self.m_sharpness,
        }


def _check_numbers(**numbers):
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"`{name}` must be a number of at least 0. Received: {value!r}")


def _check_above_zero(name, value):
    if not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"`{name}` must be a number above 0. Received: {value!r}")
