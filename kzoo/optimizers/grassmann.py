"""Riemannian SGD with momentum for subspaces, beside any optimizer for all other weights.

For a Grassmannian weight S with Euclidean gradient D and momentum M:

    G <- (I - S S^T) D                     the Riemannian gradient
    M <- momentum (I - S S^T) M + G        M transported to S, by projection
    S <- geodesic from S in the direction -learning_rate M
    S <- S (3 I - S^T S) / 2               against rounding

"Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class
Representation", Wang, Li, Zhang, 2023, arXiv 2308.01547; algorithm 1.

Deviations: the geodesic is found from the k eigenvectors of M^T M in place of a singular value
decomposition of M, and the basis is made orthonormal by a step of Newton and Schulz in place of a
QR decomposition, which may turn it under the momentum; both give the paper's subspaces, and XLA
compiles them.

Open choices: subspaces do not decay, as in the authors' code, where their momentum, other than in
the algorithm, is that of the Euclidean gradients. Clipping sees the Euclidean gradients.
"""

import math

import keras
import tensorflow as tf

from kzoo.ops.grassmann import geodesic, polished, to_tangent
from kzoo.optimizers.gradient_transform import GradientTransform
from kzoo.optimizers.optimizer import check_range
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class "
    "Representation",
    authors=("Haoqi Wang", "Zhizhong Li", "Wayne Zhang"),
    year=2023,
    arxiv="2308.01547",
)


def _example():
    return {"base_optimizer": keras.optimizers.SGD(0.1, momentum=0.9)}


@component(PAPER, example=Example(kwargs=_example))
class GrassmannSGD(GradientTransform):
    """Any optimizer, but for the subspaces of `GrassmannClassifier`s, which move on geodesics.

    A variable is taken for Grassmannian bases [..., n, k] if its attribute `geometry` is
    "grassmann". All others are the base optimizer's, as if it were alone: SGD for the paper's
    ResNets, AdamW for its transformers. Learning rate, schedule and clipping are shared.

    A step costs, beside the base optimizer's, an eigendecomposition of a [k, k] matrix per class.
    The base optimizer has slots for the subspaces too, which stay unused.

    Args:
        base_optimizer: a `keras.optimizers.Optimizer` that has not been used.
        momentum: of the subspaces, in [0, 1). Defaults to 0.9.
        learning_rate_multiplier: of the subspaces' steps, above 0. Defaults to 1.
        kwargs: arguments of `kzoo.optimizers.Optimizer`, which replace those of the base optimizer.

    Example:

    >>> optimizer = GrassmannSGD(keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-4))
    >>> model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    Reference:
        Wang et al. (2023), algorithm 1, arxiv.org/abs/2308.01547
    """

    def __init__(
        self,
        base_optimizer,
        momentum=0.9,
        learning_rate_multiplier=1.0,
        name="grassmann_sgd",
        **kwargs,
    ):
        check_range("momentum", momentum, 0, 1)
        check_range(
            "learning_rate_multiplier", learning_rate_multiplier, 0, math.inf, low_open=True
        )
        super().__init__(base_optimizer, name=name, **kwargs)
        self.momentum = momentum
        self.learning_rate_multiplier = learning_rate_multiplier

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        # By the variable's number; slots in the order of the variables, for saving.
        self._momentums = {
            index: self.add_variable_from_reference(variable, name="momentum")
            for index, variable in enumerate(variables)
            if _is_grassmann(variable)
        }

    def transform(self, gradients, variables):
        return gradients

    def update_step(self, gradient, variable, learning_rate):
        slot = self._momentums.get(self._get_variable_index(variable))
        if slot is None:
            super().update_step(gradient, variable, learning_rate)
            return
        # In less than float32 there are no orthonormal bases.
        dtype = tf.float64 if variable.dtype == tf.float64 else tf.float32
        bases, gradient, velocity = (tf.cast(x, dtype) for x in (variable, gradient, slot))
        velocity = to_tangent(bases, self.momentum * velocity + gradient)
        step = -tf.cast(learning_rate, dtype) * self.learning_rate_multiplier * velocity
        self.assign(slot, tf.cast(velocity, slot.dtype))
        self.assign(variable, tf.cast(polished(geodesic(bases, step)), variable.dtype))

    def _apply_weight_decay(self, variables):
        super()._apply_weight_decay([v for v in variables if not _is_grassmann(v)])

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "learning_rate_multiplier": self.learning_rate_multiplier,
        }


def _is_grassmann(variable):
    return getattr(variable, "geometry", None) == "grassmann"
