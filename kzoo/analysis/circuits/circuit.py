"""Neural circuit diagrams: a model as tensors with named axes, to run, to count and to draw.

Every axis of a tensor is a wire with a name. An operation states which axes it works on; over all
others it is broadcast. Linear operations are Einstein sums in the open: a convolution is a view of
windows x[i] -> x'[i', k] = x[stride i' + dilation k - padding] and sum_kc x'[i', k, c] w[k, c, o];
attention is two sums with a softmax in between, which takes n m h (dk + dv) multiplications beside
its projections.

"Neural Circuit Diagrams: Robust Diagrams for the Communication, Implementation, and Analysis of
Deep Learning Architectures", Abbott, 2024, arXiv 2402.05424; sections 2 (axes, broadcasting,
linearity) and 3 (architectures).

Open choices: the paper draws by hand; what a Keras model leaves unsaid is inferred. Axes of learned
layers have no meaning until they meet another (a residual connection gives the units of its last
layer the name of its input's axis), so axes are found by unification. Axes of inputs that the user
names are never joined with each other; those with default names may be joined with axes of another
input, but not with a different axis of the same one, nor positions with features. The rows and
columns of self-attention's scores are the same axis, as in the paper, so that a transpose of those
is not noticed. A strided window on axis `x` makes the axis `x/2`, and up-sampling makes `x` again.

Deviations: multiply-adds and peak memory are of the forward pass (the paper's section on
backpropagation is not covered); a bias is an addition of its own instead of a subscript "+";
bilinear up-sampling is counted as the matrix product that it is drawn as.
"""

import keras

from kzoo.analysis.circuits import convolutions  # noqa: F401 (registers its layers)
from kzoo.analysis.circuits.builder import Builder
from kzoo.analysis.circuits.operations import lower
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Neural Circuit Diagrams: Robust Diagrams for the Communication, Implementation, and "
    "Analysis of Deep Learning Architectures",
    authors=("Vincent Abbott",),
    year=2024,
    arxiv="2402.05424",
)


@component(PAPER)
def circuit_of(model, axes=None):
    """Traces a model into a `Circuit`.

    Args:
        model: a built functional or Sequential Keras model, also with nested ones, of the layers
            and `keras.ops` that are supported; all sizes but the batch known. It is taken in
            inference: dropout does nothing, batch normalization uses its moving statistics.
        axes: {name of an input: names of its axes without the batch}, as a list or text
            such as "n d"; the same name is the same axis, also in several inputs. Axes of inputs
            not in it get default names: positions, height, width, channels, features.

    Returns:
        A `Circuit`, with `run`, `complexity` and `svg`.

    Raises:
        AxisError: where the model joins axes of different meaning, as with a wrong transpose.
        TypeError: for a model that has no graph.
        ValueError: for a layer or operation that is not supported, or unknown `axes`.

    Example:

    >>> circuit = circuit_of(model, axes={"query": "n d", "key": "m d", "value": "m e"})
    >>> print(circuit.complexity().multiply_adds)
    batch · d · m · n + batch · e · m · n

    Reference:
        Abbott (2024), section 2, arxiv.org/abs/2402.05424
    """
    graph = _graph(model)
    names = [tensor._keras_history.operation.name for tensor in graph.inputs]
    unknown = (axes or {}).keys() - set(names)
    if unknown:
        raise ValueError(
            f"`axes` must be of the inputs {', '.join(names)}. Received: {', '.join(unknown)}"
        )
    build = Builder(model.name, axes or {})
    inputs = [
        build.input(name, each.shape, len(names) > 1)
        for name, each in zip(names, graph.inputs, strict=True)
    ]
    outputs = _trace(build, graph, inputs)
    return build.circuit(inputs, keras.tree.flatten(outputs))


def _graph(model):
    if isinstance(model, keras.Sequential) and model.built:
        model = model._functional
    if not isinstance(model, keras.Model) or not hasattr(model, "operations"):
        raise TypeError(
            "`model` must be a functional or a built Sequential model, whose graph is known. "
            f"Received: {type(model).__name__}"
        )
    return model


def _trace(build, graph, inputs):
    """Runs through the graph with traced tensors in the place of arrays."""

    def traced(operation):
        def call(*arguments, **options):
            if isinstance(operation, keras.Model):
                inner = _graph(operation)
                return _trace(build, inner, keras.tree.flatten(arguments))
            return lower(build, operation, arguments, options)

        return call

    return graph._run_through_graph(inputs, operation_fn=traced)
