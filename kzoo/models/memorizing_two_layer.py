"""Two-layer ReLU networks on boolean XOR: one that learns it, one that memorizes, both flattest.

    f(x) = <v, relu(W x + b)>                                             with a bias, or without
    f(x) = <v, h / max(||h||_2, epsilon)>,  h = relu(W x + b)             simplified LayerNorm

The sharpness of a network that interpolates n points is tr H = 2 / n sum_i ||grad f(x_i)||^2, of
the mean squared error. For x in {-1, 1}^d and labels +-1, with a_j the units active at x_i,

    ||grad f(x_i)||^2 = sum_j a_j^2 + v_j^2 (d + 1) >= 2 sqrt(d + 1) |sum_j a_j v_j| = 2 sqrt(d + 1)

so that tr H >= 4 sqrt(d + 1) with a bias, 4 sqrt(d) without, and 2 under the simplified LayerNorm,
where grad_v f alone has the norm 1. One unit for each training point, active there only, attains
the bound and has learned nothing; four units for the signs of x1 and x2 attain it and are right
everywhere. Flatness cannot tell them apart. Without a bias there are no units of the first kind.

"Sharpness Minimization Algorithms Do Not Only Minimize Sharpness To Achieve Better Generalization",
Wen, Li, Ma, 2023, arXiv 2307.11007.

Open choices: the memorizer's bias is half-way: its units are as far below zero at the nearest other
corner of the cube as they are above it at their own point. Units that are not needed are dead, with
weights of 0 and a bias of -1.
"""

import keras
import numpy as np

from kzoo.papers import Paper, component

PAPER = Paper(
    title="Sharpness Minimization Algorithms Do Not Only Minimize Sharpness To Achieve Better "
    "Generalization",
    authors=("Kaiyue Wen", "Zhiyuan Li", "Tengyu Ma"),
    year=2023,
    arxiv="2307.11007",
)


@keras.saving.register_keras_serializable("kzoo")
class SimplifiedLayerNormalization(keras.layers.Layer):
    """h / max(||h||_2, epsilon) over the last axis: no mean, no scale, no offset.

    Args:
        epsilon: smallest divisor, above 0. Defaults to 1e-3.
    """

    def __init__(self, epsilon=1e-3, **kwargs):
        if not isinstance(epsilon, int | float) or not epsilon > 0:
            raise ValueError(f"`epsilon` must be a number above 0. Received: {epsilon!r}")
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, inputs):
        squared = keras.ops.sum(inputs * inputs, axis=-1, keepdims=True)
        # The maximum is taken of squares: the square root has no gradient at 0.
        return inputs * keras.ops.rsqrt(keras.ops.maximum(squared, self.epsilon**2))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


@component(PAPER)
def TwoLayerReLU(num_features, units, use_bias=True, normalize=False, name="two_layer_relu"):
    """The networks of the paper's three scenarios.

    Args:
        num_features: number of inputs, d.
        units: number of hidden units.
        use_bias: whether hidden units have a bias. Defaults to True.
        normalize: whether the hidden activations pass through the simplified LayerNorm. Defaults to
            False.
        name: of the model.

    Returns:
        A `keras.Sequential`, [batch, num_features] -> [batch, 1].

    Example:

    >>> model = TwoLayerReLU(15, 200, use_bias=False)

    Reference:
        Wen et al. (2023), section 2, arxiv.org/abs/2307.11007
    """
    for argument, value in (("num_features", num_features), ("units", units)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{argument}` must be a positive integer. Received: {value!r}")
    layers = [keras.layers.Dense(units, "relu", use_bias=use_bias, name="hidden")]
    if normalize:
        layers.append(SimplifiedLayerNormalization(name="normalization"))
    layers.append(keras.layers.Dense(1, use_bias=False, name="outputs"))
    return keras.Sequential([keras.Input([num_features]), *layers], name=name)


@component(PAPER)
def memorizing_two_layer(x, y, units=None, normalize=False):
    """A flattest network that fits the training points and gives 0 at all others.

    Args:
        x: training points [n, d] in {-1, 1}, all different.
        y: labels [n] in {-1, 1}.
        units: number of hidden units, at least n. Defaults to n.
        normalize: as in `TwoLayerReLU`. Defaults to False.

    Returns:
        A `TwoLayerReLU` with a bias that interpolates the points, is 0 at every other corner of the
        cube, and has the least trace of the Hessian of all that interpolate them: 4 sqrt(d + 1), or
        2 with `normalize`.

    Raises:
        ValueError: for other points or labels, or too few units.

    Reference:
        Wen et al. (2023), scenario II, arxiv.org/abs/2307.11007
    """
    x, y = _checked_points(x), np.asarray(y, "float64")
    if y.shape != x.shape[:1] or not np.isin(y, (-1, 1)).all():
        raise ValueError(f"`y` must be {len(x)} labels in {{-1, 1}}. Received: {list(y.shape)}")
    units = len(x) if units is None else units
    if units < len(x):
        raise ValueError(f"`units` must be at least {len(x)}, one a point. Received: {units}")
    num_features = x.shape[1]
    model = TwoLayerReLU(num_features, units, normalize=normalize, name="memorizing_two_layer")
    activation, output = _balanced(num_features + 1, normalize)
    # x_i' x is d at x_i and d - 2 at the nearest other corner.
    kernel, bias = np.zeros([num_features, units]), -np.ones(units)
    kernel[:, : len(x)] = activation * x.T
    bias[: len(x)] = activation * (1 - num_features)
    outputs = np.zeros([units, 1])
    outputs[: len(x), 0] = output * y
    model.set_weights([kernel, bias, outputs])
    return model


@component(PAPER)
def xor_two_layer(num_features, units=4, use_bias=True, normalize=False):
    """A flattest network that is x1 x2 on the whole cube.

    Args:
        num_features: number of inputs, at least 2.
        units: number of hidden units, at least 4. Defaults to 4.
        use_bias: as in `TwoLayerReLU`, as is `normalize`.

    Returns:
        A `TwoLayerReLU` of the units relu(+-x1 +-x2), of which one is active at each corner. Its
        trace of the Hessian is 4 sqrt(d + 1), or 2 with `normalize`; without a bias two units sit
        at exactly 0, and it is 4 sqrt(d) with 0 as the derivative of relu there.

    Reference:
        Wen et al. (2023), scenario I, arxiv.org/abs/2307.11007
    """
    if units < 4 or num_features < 2:
        raise ValueError(
            "`num_features` must be at least 2 and `units` at least 4. Received: "
            f"{num_features} and {units}"
        )
    model = TwoLayerReLU(num_features, units, use_bias, normalize, name="xor_two_layer")
    activation, output = _balanced(num_features + use_bias, normalize)
    corners = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]])
    kernel, outputs = np.zeros([num_features, units]), np.zeros([units, 1])
    # w (x1 + x2) is 2 w at the unit's own corner, and 0 at the nearest other ones, where a bias can
    # keep it away from the kink.
    offset = activation / 2 if use_bias else 0.0
    kernel[:2, :4] = (activation + offset) / 2 * corners.T
    outputs[:4, 0] = output * corners.prod(axis=1)
    bias = [np.where(np.arange(units) < 4, -offset, -1.0)] if use_bias else []
    model.set_weights([kernel, *bias, outputs])
    return model


def _balanced(squared_length, normalize):
    """(a, v) with the output 1 and the smallest gradient, for inputs of this squared length."""
    if normalize:
        return 1.0, 1.0
    activation = squared_length**0.25
    return activation, 1 / activation


def _checked_points(x):
    x = np.asarray(x, "float64")
    if x.ndim != 2 or not np.isin(x, (-1, 1)).all():
        raise ValueError(f"`x` must be [n, d] in {{-1, 1}}. Received: shape {list(x.shape)}")
    if len(np.unique(x, axis=0)) < len(x):
        raise ValueError("`x` must have no point twice.")
    return x
