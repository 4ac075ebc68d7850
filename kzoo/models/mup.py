"""muP, the maximal update parametrization, of any Keras model built from supported layers.

Widths are counted in those of a base model: r_in and r_out are the ratios of a variable's fan-in
and fan-out to the base's, infinite dimensions are those in which models of two widths differ.

    variable                 initial deviation   lr, Adam    lr, SGD         gradient (for epsilon)
    input, bias, gain        1                   1           r_out           r_out
    hidden                   1 / sqrt(r_in)      1 / r_in    r_out / r_in    r_out
    output                   1 / r_in            1 / r_in    1 / r_in        1
    output of ScaledDense    1 (multiplier       1           r_in            r_in
                             1 / r_in)
    query, in addition       1 / sqrt(r_key)     the same    1 / r_key       1

All are relative to the base model, which is trained in the standard way: a model of the base's
width is that model. The initial deviation is relative to what the variable's own initializer draws
in the base's shape. The two rows for an output are the same training, as are 1/d attention and its
row: abc-parametrizations that differ by a -> a + t, b -> b - t, c -> c - t (Adam) or c - 2t (SGD).

"Tensor Programs IVb: Adaptive Optimization in the Infinite-Width Limit", Yang, Littwin, 2023,
arXiv 2308.01814. The tables with a base model are those of "Tensor Programs V: Tuning Large Neural
Networks via Zero-Shot Hyperparameter Transfer", Yang et al., 2022, arXiv 2203.03466 (tables 3, 8).
For depth: "Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep
Learning", Noci, Meterez, Hofmann, Orvieto, 2024, arXiv 2402.17457: residual branches are multiplied
by 1 / sqrt(depth), and their learning rate under Adam by 1 / sqrt(depth) (SGD: by 1).

Open choices: the first rows follow the authors' library where fan-in and fan-out grow by different
ratios. The exponents d of IVb, which multiply the gradients so that Adam's epsilon has the same
weight at all widths, are taken along (the authors' library leaves them out). Attention divides by
d instead of sqrt(d) through the query's kernel; the zero initial queries that V suggests are left
to the model. Weight decay is such that learning rate times decay does not depend on the width, as
V recommends. Not included are the infinite-width limits themselves.
"""

import math
import weakref
from dataclasses import dataclass

import keras

from kzoo.layers.scaled_dense import PAPER, ScaledDense
from kzoo.models.fans import fans, relative_deviation
from kzoo.optimizers.ademamix import AdEMAMix
from kzoo.optimizers.cautious import CautiousLion
from kzoo.optimizers.learning_rate_multipliers import LearningRateMultipliers
from kzoo.optimizers.moments import AdamMoments
from kzoo.papers import Paper, component

DEPTH_PAPER = Paper(
    title="Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep "
    "Learning",
    authors=("Lorenzo Noci", "Alexandru Meterez", "Thomas Hofmann", "Antonio Orvieto"),
    year=2024,
    arxiv="2402.17457",
)

# Their update of an entry does not depend on the scale of its gradients.
_ADAM_LIKE = (
    AdamMoments, AdEMAMix, CautiousLion,
    keras.optimizers.Adam, keras.optimizers.Adamax, keras.optimizers.Nadam, keras.optimizers.Lion,
    keras.optimizers.RMSprop, keras.optimizers.Adagrad, keras.optimizers.ScheduleFreeAdamW,
)  # fmt: skip
_PARAMETRIZED = weakref.WeakSet()


@dataclass(frozen=True)
class MupVariable:
    """What muP does to a variable; numbers are relative to the base model.

    Attributes:
        path: of the variable.
        shape, base_shape: of the variable and of the base's.
        role: "input" (only the fan-out is infinite; also biases and gains), "hidden" (both),
            "output" (only the fan-in) or "finite".
        deviation: factor of the initial standard deviation.
        rates: {"adam": factor of the learning rate, "sgd": factor}.
        gradient: factor of the gradient before it enters an Adam-like optimizer.
    """

    path: str
    shape: tuple[int, ...]
    base_shape: tuple[int, ...]
    role: str
    deviation: float
    rates: dict[str, float]
    gradient: float


class MupParametrization:
    """The result of `mup_parametrize`: what is done to each variable, and the optimizer for it.

    Attributes:
        variables: [`MupVariable`] in the order of the model's layers.
    """

    def __init__(self, model, fans, variables):
        self.variables = variables
        self._model = model
        self._by_id = {id(f.variable): v for f, v in zip(fans, variables, strict=True)}

    def optimizer(self, inner_optimizer, rule=None):
        """An optimizer with muP's learning rates for the model's trainable variables.

        The learning rate is that of the base model. So is the weight decay: learning rate times
        decay is the same at all widths. Call it again if layers are frozen or thawed.

        Args:
            inner_optimizer: a `keras.optimizers.Optimizer` that has not been used.
            rule: "adam" for optimizers whose update of an entry does not depend on the scale of
                its gradients, "sgd" for those that are linear in them. None knows Adam and its
                kin, Lion, RMSprop, Adagrad, and SGD.

        Returns:
            `kzoo.optimizers.LearningRateMultipliers`

        Raises:
            ValueError: for an optimizer whose rule is not known, or an unknown rule.
        """
        rule = _rule(inner_optimizer, rule)
        rows = [self._by_id[id(v)] for v in self._model.trainable_variables]
        rates = [row.rates[rule] for row in rows]
        return LearningRateMultipliers(
            inner_optimizer,
            rates,
            weight_decay_multipliers=[1 / rate for rate in rates],
            gradient_multipliers=[row.gradient for row in rows] if rule == "adam" else None,
            name="mup",
        )


def base_shapes(model):
    """The shapes of a model's variables, to be kept instead of a base model; JSON-able.

    Args:
        model: a built `keras.Model` of supported layers.

    Returns:
        [{"path": str, "shape": list of int}] in the order of the model's layers.
    """
    return [{"path": f.variable.path, "shape": list(f.variable.shape)} for f in fans(model)]


@component(PAPER, DEPTH_PAPER)
def mup_parametrize(model, base, delta=None, branches=None, depth_ratio=1.0):
    """Takes a freshly made model from the standard parametrization to muP.

    Rescales the initial weights, divides the multiplier of a `ScaledDense` readout by the width,
    and has `optimizer` for the learning rates. With hyper-parameters tuned on the base model, the
    wide model then learns features as fast as the base does. A model of the base's shapes is left
    exactly as it is.

    Args:
        model: a built `keras.Model`, not yet trained. Changed in place. Its layers: Dense,
            EinsumDense, convolutions, Embedding, MultiHeadAttention, normalizations, PReLU, and
            all that have no variables.
        base: the same model in the base's width and with the model's depth, or its `base_shapes`.
        delta: a model of yet another width, or its `base_shapes`, that tells which dimensions are
            infinite: those in which it differs from `base`. Only needed where `model` itself has
            some of them as in the base. None for `model`.
        branches: function of a variable -> whether it is in a residual branch. Only with
            `depth_ratio`.
        depth_ratio: number of residual blocks over that of the base. The model itself multiplies
            its branches by sqrt(1 / depth_ratio), for example with `keras.layers.Rescaling`; this
            sets their learning rates. Defaults to 1.

    Returns:
        `MupParametrization`

    Raises:
        ValueError: for unsupported layers or initializers, models that do not correspond, or a
            model that has already been parametrized.

    Example:

    >>> mup = mup_parametrize(make_model(width=1024), base=make_model(width=64))
    >>> model.compile(mup.optimizer(keras.optimizers.Adam(tuned_rate)), "mse")

    References:
        Yang, Littwin (2023), arxiv.org/abs/2308.01814; Noci et al. (2024), arxiv.org/abs/2402.17457
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"`model` must be a built keras.Model. Received: {model!r}")
    if model in _PARAMETRIZED:
        raise ValueError("`model` has already been parametrized; its weights are rescaled.")
    if not 0 < depth_ratio < math.inf:
        raise ValueError(f"`depth_ratio` must be positive and finite. Received: {depth_ratio!r}")
    if depth_ratio != 1.0 and branches is None:
        raise ValueError("`depth_ratio` needs `branches`, the variables of the residual branches.")
    found = fans(model)
    shapes = [tuple(fan.variable.shape) for fan in found]
    bases = _shapes_of("base", base, found)
    deltas = shapes if delta is None else _shapes_of("delta", delta, found)
    readouts = {
        id(layer.kernel): layer
        for layer in model._flatten_layers()
        if isinstance(layer, ScaledDense)
    }
    rows, factors = [], []
    for fan, *three in zip(found, shapes, bases, deltas, strict=True):
        in_branch = branches is not None and bool(branches(fan.variable))
        row = _row(fan, *three, id(fan.variable) in readouts, depth_ratio if in_branch else 1.0)
        # What the initializer has drawn for this shape, to what muP wants.
        drawn = relative_deviation(fan, row.shape) / relative_deviation(fan, row.base_shape)
        rows.append(row)
        factors.append(row.deviation / drawn)
    for fan, row, factor in zip(found, rows, factors, strict=True):
        if factor != 1.0:
            fan.variable.assign(factor * fan.variable)
        if row.role == "output" and id(fan.variable) in readouts:
            readouts[id(fan.variable)].multiplier /= _ratio(row.shape, row.base_shape, fan.inputs)
    _PARAMETRIZED.add(model)
    return MupParametrization(model, found, rows)


def _row(fan, shape, base, delta, is_readout, depth_ratio):
    r_in, r_out = _ratio(shape, base, fan.inputs), _ratio(shape, base, fan.outputs)
    grows_in, grows_out = (any(base[i] != delta[i] for i in x) for x in (fan.inputs, fan.outputs))
    role = {
        (False, False): "finite", (False, True): "input", (True, False): "output",
        (True, True): "hidden",
    }[grows_in, grows_out]  # fmt: skip
    if role == "output" and is_readout:
        deviation, adam, sgd, gradient = 1.0, 1.0, r_in, r_in
    else:
        deviation, adam, sgd, gradient = {
            "finite": (1.0, 1.0, 1.0, 1.0),
            "input": (1.0, 1.0, r_out, r_out),
            "hidden": (1 / math.sqrt(r_in), 1 / r_in, r_out / r_in, r_out),
            "output": (1 / r_in, 1 / r_in, 1 / r_in, 1.0),
        }[role]
    if fan.attention is not None:
        # Scores divided by d instead of sqrt(d): a multiplier of the queries, taken into them.
        query = 1 / math.sqrt(_ratio(shape, base, [fan.attention]))
        deviation, adam, sgd = deviation * query, adam * query, sgd * query**2
    root = math.sqrt(depth_ratio)
    return MupVariable(
        fan.variable.path,
        shape,
        base,
        role,
        deviation,
        {"adam": adam / root, "sgd": sgd},
        gradient * root,
    )


def _ratio(shape, base, axes):
    return math.prod(shape[axis] / base[axis] for axis in axes)


def _shapes_of(name, base, found):
    """The shapes in a base model that correspond to those of a model."""
    if isinstance(base, keras.Model):
        base = base_shapes(base)
    if len(base) != len(found):
        raise ValueError(
            f"`{name}` must be the model in another width, with as many variables: {len(found)}. "
            f"Received: {len(base)}"
        )
    for fan, entry in zip(found, base, strict=True):
        ours, theirs = fan.variable.path, entry["path"]
        kind, base_kind = (path.rsplit("/", 1)[-1] for path in (ours, theirs))
        if kind != base_kind or len(fan.variable.shape) != len(entry["shape"]):
            raise ValueError(
                f"`{name}` must be the model in another width. It has {theirs} "
                f"{list(entry['shape'])} for {ours} {list(fan.variable.shape)}."
            )
    return [tuple(entry["shape"]) for entry in base]


def _rule(optimizer, rule):
    if rule in ("adam", "sgd"):
        return rule
    if rule is not None:
        raise ValueError(f'`rule` must be "adam", "sgd" or None. Received: {rule!r}')
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    if isinstance(optimizer, keras.optimizers.SGD):
        return "sgd"
    if isinstance(optimizer, _ADAM_LIKE):
        return "adam"
    raise ValueError(
        f'muP\'s rule for {type(optimizer).__name__} is not known. Pass `rule`: "adam" if its '
        'update of an entry does not depend on the scale of its gradients, "sgd" if it is linear '
        "in them."
    )
