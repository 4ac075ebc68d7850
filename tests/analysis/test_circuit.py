from xml.etree import ElementTree

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.analysis.circuits.axes import AxisError
from kzoo.analysis.circuits.circuit import circuit_of
from kzoo.analysis.circuits.ir import Circuit
from kzoo.analysis.multiply_adds import multiply_adds

pytestmark = pytest.mark.paper(
    "Neural Circuit Diagrams: Robust Diagrams for the Communication, Implementation, and "
    "Analysis of Deep Learning Architectures"
)
layers, ops = keras.layers, keras.ops
NAMES = {"query": "n d", "key": "m d", "value": "m e"}


def attention(rows=5, columns=6, size=4, value=3, transpose=(0, 1, 2)):
    query = keras.Input((rows, size), name="query")
    key = keras.Input((columns, size), name="key")
    values = keras.Input((columns, value), name="value")
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) / size**0.5
    weights = ops.transpose(ops.softmax(scores, axis=-1), transpose)
    return keras.Model([query, key, values], ops.matmul(weights, values))


def strided_and_dilated_conv():
    x = keras.Input((9, 8, 3))
    y = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(x, layers.Conv2D(6, (3, 2), dilation_rate=2, padding="same")(y))


def residual_block():
    x = keras.Input((8, 7, 4))
    y = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(2, 1)(y)
    y = layers.Conv2D(4, 3, padding="same", use_bias=False)(y)
    return keras.Model(x, layers.Add()([x, y]))


def unet():
    def conv(x, filters):
        return layers.Conv2D(filters, 3, padding="same", activation="relu")(x)

    x = keras.Input((8, 12, 3))
    fine = conv(x, 4)
    middle = conv(layers.MaxPooling2D()(fine), 6)
    up = layers.UpSampling2D()(conv(layers.AveragePooling2D(2)(middle), 8))
    up = layers.UpSampling2D()(conv(layers.Concatenate()([up, middle]), 6))
    return keras.Model(x, layers.Conv2D(1, 1)(layers.Concatenate()([up, fine])))


def vit():
    x = keras.Input((8, 12, 3))
    x_in = x
    x = layers.Reshape((-1, 8))(layers.Conv2D(8, 4, strides=4)(x))
    x = x + np.linspace(-1, 1, 48, dtype="float32").reshape(1, 6, 8)
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3, value_dim=5)(y, y)])
    y = layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(8)(y)])
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(x_in, layers.Dense(5, activation="softmax")(x))


ARCHITECTURES = [attention, strided_and_dilated_conv, residual_block, unet, vit]


def randomized(model, rng):
    for variable in model.weights:
        low = 0.2 if "variance" in variable.path else -0.3
        variable.assign(rng.uniform(low, 0.4, variable.shape))
    return model


def assert_same(model, rng, axes=None, rtol=0.0):
    """The circuit computes what the model does; returns the circuit."""
    circuit = circuit_of(randomized(model, rng), axes)
    inputs = [rng.normal(size=(2, *each.shape[1:])).astype("float32") for each in model.inputs]
    expected = keras.tree.flatten(model(inputs if len(inputs) > 1 else inputs[0]))
    outputs = circuit.run(inputs)
    for output, each in zip(keras.tree.flatten(outputs), expected, strict=True):
        assert output.shape == each.shape
        np.testing.assert_allclose(output, each, atol=1e-5, rtol=rtol)
    return circuit


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_circuit_is_the_model_and_survives_its_picture(architecture, rng):
    model = architecture()
    circuit = assert_same(model, rng)
    read = Circuit.from_svg(circuit.svg(), circuit.constants)
    assert read.axes == circuit.axes
    assert read.tensors == circuit.tensors
    assert read.operations == circuit.operations
    inputs = [rng.normal(size=(3, *each.shape[1:])) for each in model.inputs]
    np.testing.assert_array_equal(read.run(inputs), circuit.run(inputs))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Activation("log_softmax"), (4,)),
        (layers.Activation("hard_swish"), (4,)),
        (layers.Activation("gelu"), (4,)),
        (layers.Activation("selu"), (4,)),
        (layers.Activation("softplus"), (4,)),
        (layers.AveragePooling2D(3, 2, padding="same"), (7, 6, 2)),
        (layers.BatchNormalization(center=False), (5, 4)),
        (layers.BatchNormalization(scale=False, axis=1), (5, 4)),
        (layers.Conv1D(4, 3, padding="causal", dilation_rate=2), (9, 3)),
        (layers.Conv2D(6, 3, strides=(2, 1), groups=2), (7, 6, 4)),
        (layers.Conv2D(6, (1, 3)), (5, 6, 4)),
        (layers.Cropping2D(((1, 0), (0, 2))), (5, 6, 2)),
        (layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), (5, 6, 3)),
        (layers.DepthwiseConv1D(3, strides=2), (8, 3)),
        (layers.EinsumDense("...ab,bcd->...acd", (None, 3, 2), bias_axes="d"), (5, 4)),
        (layers.ELU(0.5), (4,)),
        (layers.Flatten(), (3, 4, 2)),
        (layers.GlobalMaxPooling2D(keepdims=True), (3, 4, 2)),
        (layers.LayerNormalization(axis=[1, 2]), (3, 4)),
        (layers.LeakyReLU(0.1), (4,)),
        (layers.MaxPooling2D(3, 2, padding="same"), (7, 6, 2)),
        (layers.MaxPooling1D(2), (7, 2)),
        (layers.Normalization(mean=[1.0, 2.0], variance=[4.0, 0.5]), (3, 2)),
        (layers.Normalization(mean=1.0, variance=4.0, invert=True), (3, 2)),
        (layers.Permute((3, 1, 2)), (3, 4, 2)),
        (layers.RepeatVector(3), (4,)),
        (layers.ReLU(4.0, 0.1, 0.2), (4,)),
        (layers.Reshape((4, -1, 1)), (2, 6, 3)),
        (layers.Softmax(axis=1), (3, 4)),
        (layers.UpSampling1D(3), (4, 2)),
        (layers.UpSampling2D((2, 3), interpolation="bilinear"), (4, 3, 2)),
        (layers.Conv1DTranspose(3, 2, strides=3, padding="same"), (4, 2)),
        (layers.Conv2DTranspose(3, (3, 2), strides=2, padding="same"), (4, 3, 2)),
        (layers.Conv2DTranspose(3, (4, 1), strides=(3, 2)), (4, 3, 2)),
        (layers.Rescaling(0.5, offset=[1.0, 2.0]), (4, 2)),
        (layers.ZeroPadding2D(((1, 0), (0, 2))), (5, 6, 2)),
    ],
    ids=lambda value: value.__class__.__name__,
)
def test_of_layers(layer, shape, rng):
    model = keras.Sequential([keras.Input(shape), layer])
    assert_same(model, rng, rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.einsum("...nd,...md->...nm", x, x),
        lambda x: ops.einsum("bhnd,bhnd->bd", x, x),
        lambda x: ops.matmul(x, np.linspace(0, 1, 12, dtype="float32").reshape(4, 3)),
        lambda x: ops.matmul(x, np.linspace(0, 1, 8, dtype="float32").reshape(1, 1, 4, 2)),
        lambda x: ops.einsum("...nd,...md->...nm", x[:, :1], x),
        lambda x: ops.dot_product_attention(x, 2.0 * x, x, is_causal=True),
        lambda x: ops.dot_product_attention(x, x, x, scale=0.3),
        lambda x: ops.matmul(x[:, :1], ops.swapaxes(x, 2, 3)),
        lambda x: ops.transpose(x, (0, 3, 1, 2))[..., 0],
        lambda x: x[:, ::-1, 1:3] * 2.0 - x[:, :1, 1:3],
        lambda x: ops.split(x, 2, axis=-1),
        lambda x: ops.split(x, [1, 3], axis=2),
        lambda x: ops.stack([x, ops.tanh(x)], axis=1),
        lambda x: ops.reshape(x, (-1, 6, 5, 2)),
        lambda x: ops.squeeze(ops.expand_dims(x, (1, 3)), 1),
        lambda x: 1.0 / ops.sqrt(1.5 + ops.mean(ops.square(x), axis=(1, -1), keepdims=True)),
        lambda x: ops.maximum(ops.gelu(x, approximate=True), ops.leaky_relu(x, 0.3)),
        lambda x: ops.log_softmax(ops.max(x, axis=2)),
    ],
)
def test_of_operations(function, rng):
    x = keras.Input((3, 5, 4))
    model = keras.Model(x, function(x))
    circuit = assert_same(model, rng)
    assert circuit.complexity().multiply_adds.value == multiply_adds(model)
    assert Circuit.from_svg(circuit.svg()).tensors == circuit.tensors


def test_of_embeddings_nested_and_shared_models(rng):
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    inner = keras.Sequential([keras.Input((5, 6)), layers.Dense(6, "relu"), layers.Dense(6)])
    x = layers.Embedding(7, 6)(tokens)
    model = keras.Model(tokens, layers.Add()([x, inner(inner(x))]))
    circuit = circuit_of(randomized(model, rng))
    inputs = rng.integers(0, 7, (2, 5))
    np.testing.assert_allclose(circuit.run(inputs), model(inputs), atol=1e-5)


def test_the_attention_layer(rng):
    query, value = keras.Input((5, 4)), keras.Input((6, 4))
    layer = layers.Attention(use_scale=True)
    output, scores = layer([query, value], return_attention_scores=True)
    assert_same(keras.Model([query, value], [output, scores]), rng)
    causal = layers.Attention()([query, query, query], use_causal_mask=True)
    assert_same(keras.Model(query, causal), rng)


def test_causal_attention(rng):
    x = keras.Input((5, 6))
    y = layers.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)
    circuit = assert_same(keras.Model(x, y), rng)
    x = rng.normal(size=(1, 5, 6))
    later = x + np.eye(5)[4][:, None]
    np.testing.assert_array_equal(circuit.run(x)[:, :4], circuit.run(later)[:, :4])


def profiled_multiply_adds(model):
    """Half of the floating point operations of products, as TensorFlow's profiler counts them."""
    specs = [tf.TensorSpec((1, *each.shape[1:]), each.dtype) for each in model.inputs]
    graph = tf.function(lambda *inputs: model(list(inputs))).get_concrete_function(*specs).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    options["account_type_regexes"] = ["MatMul", "BatchMatMul.*", "Einsum"]
    profile = tf.compat.v1.profiler.profile(graph, cmd="op", options=options)
    return profile.total_float_ops / 2


def test_multiplications_of_attention():
    n, m, dk, dv = 5, 6, 4, 3
    model = attention(n, m, dk, dv)
    complexity = circuit_of(model, NAMES).complexity()
    assert complexity.multiply_adds.value == n * m * (dk + dv)
    assert str(complexity.multiply_adds) == "batch · d · m · n + batch · e · m · n"
    assert complexity.multiply_adds.value == profiled_multiply_adds(model)


def test_multiplications_of_multi_head_attention():
    n, m, heads, dk, dv, width = 5, 6, 2, 4, 3, 8
    query, memory = keras.Input((n, width), name="query"), keras.Input((m, width), name="memory")
    layer = layers.MultiHeadAttention(heads, dk, value_dim=dv, name="mha")
    model = keras.Model([query, memory], layer(query, memory))
    circuit = circuit_of(model, {"query": "n d", "memory": "m d"})
    complexity = circuit.complexity()
    projections = heads * width * (n * dk + m * dk + m * dv + n * dv)
    assert complexity.multiply_adds.value == n * m * heads * (dk + dv) + projections
    assert complexity.multiply_adds.value == multiply_adds(model)
    core = [row for row in complexity.operations if row.name == "mha" and row.multiply_adds.value]
    assert [str(row.multiply_adds) for row in core] == [
        "batch · m · mha.heads · mha.key · n",
        "batch · m · mha.heads · mha.value · n",
    ]


def test_multiply_adds_are_those_of_the_graph():
    for architecture in (residual_block, unet, vit):
        model = architecture()
        assert circuit_of(model).complexity().multiply_adds.value == multiply_adds(model)


def test_peak_memory_by_hand():
    x = keras.Input((6,))
    y = layers.Dense(10, use_bias=False)(x)
    z = layers.Reshape((2, 5))(layers.ReLU(name="re_lu")(y))
    circuit = circuit_of(keras.Model(x, layers.Flatten()(z)))
    complexity = circuit.complexity()
    assert [row.memory.value for row in complexity.operations] == [10, 10, 0, 0]
    # The input is kept, and the units before and after the activation.
    assert (complexity.peak_memory.value, complexity.peak_at) == (6 + 10 + 10, "re_lu")


def test_repeated_elements_take_memory():
    x = keras.Input((4, 2))
    y = layers.UpSampling1D(3)(layers.Permute((2, 1))(x))
    complexity = circuit_of(keras.Model(x, layers.ReLU()(y))).complexity()
    assert [row.memory.value for row in complexity.operations] == [0, 24, 24]
    assert complexity.peak_memory.value == 8 + 24 + 24


def test_peak_memory_keeps_skipped_tensors():
    x = keras.Input((4,))
    y = layers.Dense(4, use_bias=False)(x)
    z = layers.Dense(1, use_bias=False)(y)
    last = layers.Multiply()([y, z])
    complexity = circuit_of(keras.Model(x, last)).complexity()
    assert complexity.peak_memory.value == 4 + 4 + 1 + 4


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda x: x + ops.transpose(x, (0, 2, 1)), ("positions", "features")),
        (lambda x: layers.Add()([x, layers.Permute((2, 1))(layers.Dense(4, name="h")(x))]),
         ("positions", "features")),
        (lambda x: ops.einsum("bnd,bdm->bnm", x, x), ("features", "positions")),
    ],
)  # fmt: skip
def test_a_wrong_transpose_of_an_input(build, names):
    x = keras.Input((4, 4))
    with pytest.raises(AxisError) as error:
        circuit_of(keras.Model(x, build(x)))
    assert all(repr(name) in str(error.value) for name in names)


def test_a_wrong_transpose_of_attention():
    model = attention(5, 5, transpose=(0, 2, 1))
    assert model.output_shape == (None, 5, 3), "Keras sees only sizes"
    with pytest.raises(AxisError, match="'n' with axis 'm'.*different names"):
        circuit_of(model, NAMES)
    assert circuit_of(attention(5, 5), NAMES).outputs


def test_heads_merged_in_the_wrong_order():
    def model(order):
        x = keras.Input((5, 6))
        y = ops.transpose(ops.reshape(x, (-1, 5, 2, 3)), (0, 2, 1, 3))
        y = ops.reshape(ops.transpose(y, order), (-1, 5, 6))
        return keras.Model(x, layers.Add(name="joined")([x, y]))

    assert str(circuit_of(model((0, 2, 1, 3))).tensors["joined"]) == "batch positions features"
    with pytest.raises(AxisError, match="arranged differently"):
        circuit_of(model((0, 2, 3, 1)))


def test_token_mixing_joins_the_axes_it_should():
    x = keras.Input((4, 6))
    y = layers.Permute((2, 1))(x)
    y = layers.Dense(4)(layers.Dense(8, "gelu")(y))
    circuit = circuit_of(keras.Model(x, layers.Add()([x, layers.Permute((2, 1))(y)])))
    assert str(circuit.tensors[circuit.outputs[0]]) == "batch positions features"


def test_an_autoencoder_comes_back_to_its_input(rng):
    x = keras.Input((8, 6, 2))
    y = layers.Conv2D(3, 3, strides=2, padding="same")(x)
    z = layers.Dense(4 * 3 * 5)(layers.Dense(2)(layers.Flatten()(y)))
    z = layers.Conv2D(3, 1)(layers.Reshape((4, 3, 5))(z))
    z = layers.Conv2DTranspose(2, 3, strides=2, padding="same")(layers.Add()([y, z]))
    circuit = assert_same(keras.Model(x, layers.Subtract()([x, z])), rng)
    assert str(circuit.tensors[circuit.outputs[0]]) == "batch height width channels"
    assert "height/2" in circuit.axes


def test_axes_of_strides_and_broadcasting():
    circuit = circuit_of(unet())
    assert {"height/2", "width/4"} <= circuit.axes.keys()
    last = circuit.tensors[circuit.outputs[0]]
    assert [axis.name for axis in last.axes[:3]] == ["batch", "height", "width"]
    product = next(each for each in circuit.operations if each.kind == "einsum")
    repeated = [axis.name for axis in circuit.broadcast_axes(product)]
    assert repeated == ["batch", "height", "width"]


def test_names_are_escaped_in_the_picture():
    evil = "a\"<&>'\x01]]>"
    x = keras.Input((3, 2), name="x")
    model = keras.Model(x, layers.Dense(2)(x), name="net <b>")
    circuit = circuit_of(model, {"x": [evil, "d"]})
    text = circuit.svg()
    assert "<b>" not in text
    read = Circuit.from_svg(text)
    assert read.axes == circuit.axes
    assert evil in read.axes
    with pytest.raises(ValueError, match="has no weights"):
        read.run(np.zeros((1, 3, 2)))


def test_what_is_in_the_picture():
    svg = ElementTree.fromstring(circuit_of(attention(), NAMES).svg())
    space = "{http://www.w3.org/2000/svg}"
    wires = {path.get("data-axis") for path in svg.iter(f"{space}path")} - {None}
    assert wires == {"batch", "n", "m", "d", "e"}
    labels = [text.text for text in svg.iter(f"{space}text") if text.get("class") == "axis"]
    assert labels[:9] == ["batch", "n", "d", "batch", "m", "d", "batch", "m", "e"]
    drawn = {each.get("data-operation") for each in svg.iter() if each.get("class") == "nonlinear"}
    assert len(drawn) == 1
    assert next(iter(drawn)).startswith("softmax")


def test_a_broken_picture_is_refused():
    text = circuit_of(attention()).svg().replace('"tensors"', '"sensors"')
    with pytest.raises(ValueError, match="metadata of `text` is broken"):
        Circuit.from_svg(text)


@pytest.mark.parametrize(
    "text", ["", "<svg/>", "<!DOCTYPE a><svg/>", "<svg xmlns='http://www.w3.org/2000/svg'/>", 1]
)
def test_other_pictures_are_refused(text):
    with pytest.raises(ValueError, match="`text` must be an SVG file that"):
        Circuit.from_svg(text)


def test_bad_models_are_refused():
    x = keras.Input((4, 2), name="x")
    with pytest.raises(ValueError, match="'walk' is a LSTM.*Supported: .*Dense"):
        circuit_of(keras.Model(x, layers.LSTM(3, name="walk")(x)))
    with pytest.raises(ValueError, match="is a Cumsum.*Supported of `keras.ops`: .*Einsum"):
        circuit_of(keras.Model(x, ops.cumsum(x, axis=1)))
    with pytest.raises(TypeError, match="`model` must be a functional"):
        circuit_of(layers.Dense(3))
    masked = layers.Softmax(name="soft")(x, mask=ops.ones((4, 2), "bool"))
    with pytest.raises(ValueError, match="'soft' is called with mask"):
        circuit_of(keras.Model(x, masked))
    open_size = keras.Input((None, 2))
    with pytest.raises(ValueError, match="All sizes but that of the batch"):
        circuit_of(keras.Model(open_size, layers.ReLU()(open_size)))
    model = keras.Model(x, layers.ReLU()(x))
    with pytest.raises(ValueError, match="`axes` must be of the inputs x. Received: y"):
        circuit_of(model, {"y": "n d"})
    with pytest.raises(ValueError, match="must be 2 names"):
        circuit_of(model, {"x": "n"})
    with pytest.raises(AxisError, match="calls two axes 'n', of sizes 4 and 2"):
        circuit_of(model, {"x": "n n"})


def test_bad_inputs_are_refused():
    circuit = circuit_of(attention())
    arrays = [np.zeros((2, 5, 4)), np.zeros((2, 6, 4)), np.zeros((2, 6, 3))]
    assert circuit.run(dict(zip(circuit.inputs, arrays, strict=True))).shape == (2, 5, 3)
    with pytest.raises(ValueError, match="must be 3 arrays. Received: 2"):
        circuit.run(arrays[:2])
    with pytest.raises(ValueError, match="'query' must have the axes .*query.positions=5"):
        circuit.run([arrays[1], *arrays[1:]])
    with pytest.raises(ValueError, match="must have the keys query, key, value"):
        circuit.run({"query": arrays[0]})
