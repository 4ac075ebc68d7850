"""Reproductions of what neural circuit diagrams are claimed to do."""

import keras
import numpy as np
import tensorflow as tf

from kzoo.analysis.circuits.circuit import PAPER, circuit_of
from kzoo.models import DenseNet121, ResNet18
from kzoo.reproductions.registry import reproduction

_BATCH = 2


@reproduction(
    PAPER,
    claim="Diagrams of the transformer, convolution, residual networks and the vision transformer "
    "correspond to code, and the cost of an algorithm is read off its axes: attention takes "
    "n m h (dk + dv) multiplications.",
)
def circuits_are_their_models(seed):
    """Whole models of random weights, traced into circuits and run from these by NumPy: ResNet-18
    and DenseNet-121 at 64 x 64 pixels and a transformer of 4 blocks over 49 patches, width 64.
    Differences are the largest of an output before the classifier's activation, relative to the
    largest output. Multiplications of attention with heads, n = 49 queries, m = 77 keys, 4 heads,
    dk = 16, dv = 24, are those of the circuit, over half of the floating point operations that
    TensorFlow's profiler counts in its matrix products, both without projections."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    options = {"weights": None, "classes": 10, "classifier_activation": None}
    models = {
        "ResNet-18": ResNet18(input_shape=(64, 64, 3), **options),
        "DenseNet-121": DenseNet121(input_shape=(64, 64, 3), **options),
        "vision transformer": _transformer(),
    }
    numbers = {}
    for name, model in models.items():
        circuit = circuit_of(model)
        x = rng.normal(size=(_BATCH, *model.input_shape[1:])).astype("float32")
        expected = np.asarray(model(x))
        difference = np.abs(circuit.run(x) - expected).max() / np.abs(expected).max()
        read = type(circuit).from_svg(circuit.svg())
        numbers[f"relative difference, {name}"] = difference
        numbers[f"axes read from the picture, {name}"] = len(read.axes)
        numbers[f"axes of the circuit, {name}"] = len(circuit.axes)
        numbers[f"multiply-adds, {name}"] = circuit.complexity().multiply_adds.value
        numbers[f"peak memory in elements, {name}"] = circuit.complexity().peak_memory.value
    return numbers | _attention()


def _transformer(width=64, heads=4, blocks=4):
    layers = keras.layers
    images = keras.Input((56, 56, 3))
    x = layers.Reshape((49, width))(layers.Conv2D(width, 8, strides=8)(images))
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads)(y, y)])
        y = layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(width)(y)])
    return keras.Model(images, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def _attention(n=49, m=77, heads=4, key=16, value=24):
    q = keras.Input((heads, n, key), name="q")
    k = keras.Input((heads, m, key), name="k")
    v = keras.Input((heads, m, value), name="v")
    scores = keras.ops.softmax(keras.ops.matmul(q, keras.ops.transpose(k, (0, 1, 3, 2))))
    model = keras.Model([q, k, v], keras.ops.matmul(scores, v))
    axes = {"q": "h n dk", "k": "h m dk", "v": "h m dv"}
    count = circuit_of(model, axes).complexity().multiply_adds.value
    return {
        "multiplications of attention, circuit": count,
        "multiplications of attention, formula": n * m * heads * (key + value),
        "multiplications of attention, profiler": _profiled(model) / 2,
    }


def _profiled(model):
    """Floating point operations of matrix products, as TensorFlow's profiler counts them."""
    specs = [tf.TensorSpec((1, *each.shape[1:]), each.dtype) for each in model.inputs]
    graph = tf.function(lambda *inputs: model(list(inputs))).get_concrete_function(*specs).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    options["account_type_regexes"] = [".*MatMul.*"]
    return tf.compat.v1.profiler.profile(graph, cmd="op", options=options).total_float_ops
