"""Layer-wise relevance propagation: the score, handed down from layer to layer.

    epsilon   R_i = x_i sum_j w_ij R_j / (z_j + eps sign z_j),    z = x w + b        (equation 58)
    z_plus    R_i = sum_j (x_i w_ij)^+ R_j / sum_i (x_i w_ij)^+      (alpha 1, beta 0; equation 60)
    z_box     R_i = sum_j (x_i w_ij - l w_ij^+ - h w_ij^-) R_j / sum_i (...)       (Deep Taylor)

Every layer but those with a kernel passes relevance on by the epsilon rule: R_i = x_i dy/dx_i R / y
gives an activation's whole relevance back to its input, a maximum's to its winner, and divides that
of a sum or a mean in proportion.

"On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
Propagation", Bach, Binder, Montavon, Klauschen, Mueller, Samek, 2015, PLOS ONE 10 (7); "Explaining
NonLinear Classification Decisions with Deep Taylor Decomposition", Montavon, Bach, Binder, Samek,
Mueller, 2015, arXiv 1512.02479.

Deviations: batch normalization is a layer of its own; by the epsilon rule its shift takes relevance
as a bias does, with z_plus it passes relevance on unchanged.
"""

import contextlib

import keras
import tensorflow as tf

from kzoo.explain.baselines import sum_per_row
from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import flatten_layers, flatten_operations, replace_activation, replace_call
from kzoo.explain.rules import scale_gradient, with_gradient_of
from kzoo.papers import Example, Paper, component

LRP_PAPER = Paper(
    title="On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance "
    "Propagation",
    authors=(
        "Sebastian Bach", "Alexander Binder", "Gregoire Montavon", "Frederick Klauschen",
        "Klaus-Robert Mueller", "Wojciech Samek",
    ),
    year=2015,
)  # fmt: skip

DEEP_TAYLOR_PAPER = Paper(
    title="Explaining NonLinear Classification Decisions with Deep Taylor Decomposition",
    authors=(
        "Gregoire Montavon", "Sebastian Bach", "Alexander Binder", "Wojciech Samek",
        "Klaus-Robert Mueller",
    ),
    year=2015,
    arxiv="1512.02479",
)  # fmt: skip

_WITH_KERNEL = (
    keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Conv1D, keras.layers.Conv2D,
    keras.layers.Conv3D, keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose, keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
)  # fmt: skip


@component(LRP_PAPER, example=Example())
class LRP(Explainer):
    """Relevance of each input value, which adds up to the score but for what biases take.

    For networks of dense and convolutional layers, activations with f(0) = 0, pooling, batch
    normalization, sums and concatenations, in functional and Sequential models. Layers that hold
    others and compute with them in their own code (attention, recurrent cells) are refused:
    relevance would be handed on wrongly without a notice.

    Args:
        model: see `Explainer`, as are `score` and `tap`.
        rule: "epsilon" or "z_plus", for layers with a kernel. Defaults to "epsilon".
        epsilon: keeps relevance from being divided by zero, above 0; larger values take the part
            of weak and contradictory relevance away. Defaults to 1e-6.
        bounds: (lowest, highest) value of the inputs, for z_box in the first layers with a kernel;
            None for the same rule as everywhere. Defaults to None.

    Returns (when called): `attributions` of the input's shape; `score`, `target`, `predictions`;
    `convergence_delta` [batch], the sum of the attributions less the score.

    Reference:
        Bach et al. (2015), equations 58 and 60
    """

    def __init__(self, model, rule="epsilon", epsilon=1e-6, bounds=None, score=None, tap=None):
        super().__init__(model, score=score, tap=tap)
        if rule not in ("epsilon", "z_plus"):
            raise ValueError(f'`rule` must be "epsilon" or "z_plus". Received: {rule!r}')
        if not epsilon > 0:
            raise ValueError(f"`epsilon` must be positive. Received: {epsilon!r}")
        if bounds is not None and not (len(bounds) == 2 and bounds[0] <= 0 <= bounds[1]):
            raise ValueError(
                f"`bounds` must be (lowest, highest) with 0 in between. Received: {bounds!r}"
            )
        self.rule, self.epsilon = rule, epsilon
        self.bounds = None if bounds is None else tuple(bounds)
        _check_layers(model)

    def attribute(self, values, target, inputs):
        with tf.GradientTape(watch_accessed_variables=False) as tape, self._rules(values):
            tape.watch(values)
            scored = self.scores(values, target, inputs)
        relevance = tape.gradient(
            scored["score"],
            values,
            output_gradients=scored["score"],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        total = sum_per_row(relevance)
        return {"attributions": relevance, **scored, "convergence_delta": total - scored["score"]}

    @contextlib.contextmanager
    def _rules(self, values):
        """Within the context, every operation of the model passes relevance on."""
        inputs = {id(x) for x in keras.tree.flatten(values)}
        with contextlib.ExitStack() as stack:
            for operation in {id(each): each for each in flatten_operations(self.model)}.values():
                if isinstance(operation, keras.layers.InputLayer | keras.Model):
                    continue
                stack.enter_context(replace_call(operation, self._rule_of(operation, inputs)))
            yield

    def _rule_of(self, operation, inputs):
        """For `replace_call`."""

        def make_call(call):
            def replaced(*args, **kwargs):
                if isinstance(operation, _WITH_KERNEL):
                    first = self.bounds is not None and id(args[0]) in inputs
                    return self._through_kernel(operation, call, args[0], first)
                if self.rule == "z_plus" and isinstance(operation, keras.layers.BatchNormalization):
                    return with_gradient_of(call(*args, **kwargs), args[0])
                scaled = keras.tree.map_structure(_times_itself, args)
                return self._share(call(*args, **kwargs), call(*scaled, **kwargs))

            return replaced

        return make_call

    def _share(self, value, z):
        """`value`, whose relevance is handed to what makes up `z` in proportion."""

        def each(value, z):
            sign = tf.where(z < 0, -1.0, 1.0)
            divisor = tf.stop_gradient(z + tf.cast(self.epsilon * sign, z.dtype))
            return with_gradient_of(value, z / divisor)

        return keras.tree.map_structure(each, value, z)

    def _through_kernel(self, layer, call, x, first):
        y = call(x)
        # The activation hands relevance on as it is; the kernel divides it.
        with replace_activation(layer, None):
            if first:
                z = self._box(layer, call, x)
            elif self.rule == "z_plus":
                z = _positive(layer, call, x)
            else:
                z = call(scale_gradient(x, x))
        return self._share(y, z)

    def _box(self, layer, call, x):
        """x w - l w^+ - h w^-, of which each input value has its part."""
        low, high = (tf.fill(tf.shape(x), tf.cast(bound, x.dtype)) for bound in self.bounds)
        return (
            _linear(layer, call, scale_gradient(x, x), lambda w: w)
            - _linear(layer, call, with_gradient_of(low, scale_gradient(x, low)), _plus)
            - _linear(layer, call, with_gradient_of(high, scale_gradient(x, high)), _minus)
        )

    def get_config(self):
        return {
            "rule": self.rule,
            "epsilon": self.epsilon,
            "bounds": None if self.bounds is None else list(self.bounds),
        }


@component(DEEP_TAYLOR_PAPER, example=Example(kwargs={"bounds": (0.0, 1.0)}))
class DeepTaylor(LRP):
    """Relevance by Deep Taylor decomposition: what speaks for the score, never below zero.

    The z_plus rule in all layers with a kernel, z_box in the first for inputs within bounds. It is
    meant for networks of rectifiers whose biases are not positive, and a positive score.

    Args:
        model: see `LRP`, as are `epsilon`, `bounds`, `score` and `tap`.

    Returns (when called): as of `LRP`.

    Reference:
        Montavon et al. (2015), sections IV and V, arxiv.org/abs/1512.02479
    """

    def __init__(self, model, epsilon=1e-6, bounds=None, score=None, tap=None):
        super().__init__(model, "z_plus", epsilon, bounds, score=score, tap=tap)

    def get_config(self):
        config = super().get_config()
        config.pop("rule")
        return config


def _check_layers(model):
    composite = [
        layer.name
        for layer in flatten_layers(model)
        if not isinstance(layer, keras.Model) and next(flatten_layers(layer), None) is not None
    ]
    if composite or not hasattr(getattr(model, "_functional", None) or model, "operations"):
        which = f"the layers {', '.join(composite)}" if composite else f"{model.name!r}"
        raise ValueError(
            "Relevance is handed from layer to layer in functional and Sequential models; what "
            f"{which} compute in their own code has no rule. Transformers have "
            "`TransformerRelevance`."
        )


def _times_itself(x):
    """A tensor whose gradient is multiplied by it: relevance instead of a gradient."""
    return scale_gradient(x, x) if tf.is_tensor(x) and x.dtype.is_floating else x


def _positive(layer, call, x):
    """sum_i (x_i w_i)^+, of which each input value has its part."""
    plus, minus = _plus(x), _minus(x)
    return _linear(layer, call, with_gradient_of(plus, scale_gradient(x, plus)), _plus) + _linear(
        layer, call, with_gradient_of(minus, scale_gradient(x, minus)), _minus
    )


def _linear(layer, call, x, part):
    """The layer without its bias, with a part of its kernel."""
    kernel, bias = layer.kernel, getattr(layer, "bias", None)
    mapping = [(kernel, part(tf.convert_to_tensor(kernel)))]
    if bias is not None:
        mapping.append((bias, tf.zeros_like(bias)))
    with keras.StatelessScope(state_mapping=mapping):
        return call(x)


def _plus(x):
    return tf.nn.relu(x)


def _minus(x):
    return -tf.nn.relu(-x)
