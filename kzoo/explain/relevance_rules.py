"""How relevance passes through the operations of a transformer, down from the score.

    linear      R_j = sum_i (x_j w_ji)^+ R_i / sum_j' (x_j' w_j'i)^+               (equation 5)
    product     u and v get u_j sum_i (dz_i/du_j) R_i / z_i and the same for v     (equation 7),
    and sum     each times |sum R^u| / (|sum R^u| + |sum R^v|) * sum R / sum R^u   (equation 9)
    unary       normalization, softmax, activations: R_j = R_i
    otherwise   R_j = x_j sum_i (dy_i/dx_j) R_i / y_i                              (equation 2)

"Transformer Interpretability Beyond Attention Visualization", Chefer, Gur, Wolf, 2020, arXiv
2012.09838; sections 3.1 and 3.2.

Deviations: none. Open choices: normalization, softmax and activations hand relevance on as it is,
as in the authors' code; sums in equation 9 are those of one row of the batch; the operands of a
product have the same sum of relevance, so each has half by equation 9.
"""

import contextlib

import keras
import tensorflow as tf

from kzoo.explain.attention import probabilities, replace_attention
from kzoo.explain.graph import flatten_layers, flatten_operations, replace_activation, replace_call
from kzoo.explain.rules import replace_activations, scale_gradient, with_gradient_of

_LINEAR = (
    keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Conv1D, keras.layers.Conv2D,
    keras.layers.Conv3D, keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
)  # fmt: skip
_UNARY = (
    keras.layers.LayerNormalization, keras.layers.RMSNormalization, keras.layers.UnitNormalization,
    keras.layers.GroupNormalization, keras.layers.BatchNormalization, keras.layers.Rescaling,
    keras.layers.Normalization,
)  # fmt: skip
_UNARY_OPERATIONS = {"Softmax", "LogSoftmax", "LayerNorm", "LayerNormalization", "RMSNorm"}
_SUMS = {"Add"}
_PRODUCTS = {"Multiply", "Dot", "Einsum", "Matmul"}
_LEFT_ALONE = (
    keras.layers.InputLayer, keras.Model, keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention, keras.layers.Activation,
    # The last activation of a model is taken out by the score, in the same way.
    keras.layers.Softmax,
)  # fmt: skip
_NEAR = 1e-9


@contextlib.contextmanager
def relevance_rules(model, record):
    """Within the context, gradients through the model are relevance: `tape.gradient(score, x)` is
    the relevance of x, for a relevance of 1 at the score.

    Args:
        model: a functional or Sequential model of layers and `keras.ops` that compute nothing with
            several layers in their own code, attention aside.
        record: `record(probabilities)` returns the attention probabilities to go on with.

    Raises:
        ValueError: for a model of another build.
    """
    check_relevance_model(model)

    def attend(layer, query, key, value, mask):
        products = _product(lambda q, k: tf.einsum("bthd,bshd->bhts", q, k))(query, key)
        attention = record(with_gradient_of(probabilities(layer, products, mask), products))
        context = _product(lambda a, v: tf.einsum("bhts,bshd->bthd", a, v))(attention, value)
        return context, attention

    with contextlib.ExitStack() as stack:
        stack.enter_context(replace_attention(model, attend))
        stack.enter_context(replace_activations(model, _handed_on))
        for operation in {id(each): each for each in flatten_operations(model)}.values():
            # What has a rule as an activation holds its call already.
            if not isinstance(operation, _LEFT_ALONE) and "call" not in vars(operation):
                stack.enter_context(replace_call(operation, _rule_of(operation)))
        yield


def check_relevance_model(model):
    """Raises ValueError unless all that `model` computes is seen from outside its layers."""
    attention = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
    layers = list(flatten_layers(model))
    opaque = [
        layer.name
        for layer in (model, *layers)
        if not isinstance(layer, attention)
        and next(flatten_layers(layer), None) is not None
        and not hasattr(getattr(layer, "_functional", None) or layer, "operations")
    ]
    gated = [
        layer.name
        for layer in layers
        if getattr(layer, "use_gate", False) or getattr(layer, "_use_gate", False)
    ]
    if opaque or gated:
        what = "with a gate" if gated else "that compute with other layers in their own code"
        raise ValueError(
            "Relevance is handed from layer to layer in functional and Sequential models. It has "
            f"no rule for layers {what}. Received: {', '.join(gated or opaque)}. "
            "`GradientAttentionRollout` explains models of any build."
        )


def _rule_of(operation):
    """The rule of a layer or operation, for `replace_call`."""
    name = type(operation).__name__
    if isinstance(operation, _LINEAR):
        return lambda call: lambda x, **kwargs: _linear(operation, call, x, kwargs)
    if isinstance(operation, _UNARY) or name in _UNARY_OPERATIONS:
        return _handed_on
    if name in _SUMS:
        return _sum
    return _product if name in _PRODUCTS else _proportional


def _handed_on(call):
    def replaced(x, *args, **kwargs):
        y = call(x, *args, **kwargs)
        return with_gradient_of(y, tf.cast(x, y.dtype))

    return replaced


def _proportional(call, part=1.0):
    """Equation 2: every tensor among the arguments is given `part` of the relevance."""

    def replaced(*args, **kwargs):
        y = call(*args, **kwargs)
        z = call(*keras.tree.map_structure(_times_itself, args), **kwargs)
        return keras.tree.map_structure(lambda y, z: _share(y, z, part), y, z)

    return replaced


def _product(call):
    """Equations 7 and 9 for a product of tensors; a constant factor has no relevance."""

    def replaced(*args, **kwargs):
        operands = sum(_is_operand(x) for x in keras.tree.flatten(args))
        return _proportional(call, 1 / max(operands, 1))(*args, **kwargs)

    return replaced


def _linear(layer, call, x, kwargs):
    """Equation 5. The activation hands relevance on as it is, the bias has none."""
    y = call(x, **kwargs)
    plus, minus = tf.nn.relu(x), -tf.nn.relu(-x)
    with replace_activation(layer, None):
        positive = _without_bias(layer, call, with_gradient_of(plus, scale_gradient(x, plus)), 1)
        positive += _without_bias(
            layer, call, with_gradient_of(minus, scale_gradient(x, minus)), -1
        )
    return _share(y, positive)


def _without_bias(layer, call, x, sign):
    """The layer with the positive (sign 1) or negative (-1) part of its kernel, and no bias."""
    kernel = tf.convert_to_tensor(layer.kernel)
    mapping = [(layer.kernel, sign * tf.nn.relu(sign * kernel))]
    if getattr(layer, "bias", None) is not None:
        mapping.append((layer.bias, tf.zeros_like(layer.bias)))
    with keras.StatelessScope(state_mapping=mapping):
        return call(x)


def _sum(call):
    """Equations 7 and 9 for a sum of two or more tensors; a constant has no relevance."""

    def replaced(*args, **kwargs):
        y = call(*args, **kwargs)
        terms = [tf.cast(x, y.dtype) for x in keras.tree.flatten(args) if _is_operand(x)]
        if len(terms) == 1:
            return with_gradient_of(y, tf.broadcast_to(terms[0], tf.shape(y)))
        return _normalized_sum(y, *[tf.broadcast_to(x, tf.shape(y)) for x in terms])

    return replaced


@tf.custom_gradient
def _normalized_sum(y, *terms):
    """`y`, the sum of `terms`. A custom gradient, for the shares hang on the relevance itself."""

    def hand_on(relevance):
        parts = [x * _divide(relevance, y) for x in terms]
        sums = [_row_sum(part) for part in parts]
        total = tf.add_n([tf.abs(each) for each in sums])
        shares = [tf.math.divide_no_nan(tf.abs(each), total) for each in sums]
        given = _row_sum(relevance)
        handed = [
            part * tf.math.divide_no_nan(share * given, each)
            for part, share, each in zip(parts, shares, sums, strict=True)
        ]
        return tf.zeros_like(y), *handed

    return tf.identity(y), hand_on


def _share(value, z, part=1.0):
    """`value`, of whose relevance a part is handed to what makes up `z` in proportion."""
    if not value.dtype.is_floating:
        return value
    return with_gradient_of(value, part * _divide(z, tf.stop_gradient(z)))


def _divide(x, z):
    """x / z, away from zero; zero where z is."""
    return tf.math.divide_no_nan(x, z + tf.cast(_NEAR, z.dtype) * tf.sign(z))


def _row_sum(x):
    return tf.reduce_sum(x, axis=range(1, x.shape.rank), keepdims=True)


def _times_itself(x):
    """A tensor whose gradient is multiplied by it: relevance instead of a gradient."""
    return scale_gradient(x, x) if _is_operand(x) else x


def _is_operand(x):
    return tf.is_tensor(x) and x.dtype.is_floating and x.shape.rank > 0
