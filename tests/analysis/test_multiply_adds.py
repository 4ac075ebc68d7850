import keras
import pytest

from kzoo.analysis.multiply_adds import multiply_adds
from kzoo.models import PreActResNetCIFAR, ResNet18


def of_layer(layer, *shape):
    inputs = keras.Input(shape)
    return multiply_adds(keras.Model(inputs, layer(inputs)))


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (keras.layers.Dense(5), (7,), 7 * 5),
        (keras.layers.Dense(5), (3, 7), 3 * 7 * 5),
        (keras.layers.Conv2D(5, 3, padding="same"), (6, 4, 2), 6 * 4 * 5 * 9 * 2),
        (keras.layers.Conv2D(6, 3, strides=2, groups=2), (7, 7, 4), 9 * 6 * 9 * 2),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 3), 16 * 6 * 9),
        (keras.layers.Conv1D(5, 3), (8, 2), 6 * 5 * 3 * 2),
        (keras.layers.EinsumDense("...x,xy->...y", 5), (2, 3, 4), 2 * 3 * 4 * 5),
        (keras.layers.BatchNormalization(), (7,), 0),
    ],
)
def test_of_layers(layer, shape, expected):
    assert of_layer(layer, *shape) == expected


def test_of_attention():
    tokens, width, heads, size = 5, 8, 2, 3
    layer = keras.layers.MultiHeadAttention(heads, size)
    inputs = keras.Input((tokens, width))
    projections = 4 * tokens * width * heads * size
    products = 2 * heads * tokens * tokens * size
    model = keras.Model(inputs, layer(inputs, inputs))
    assert multiply_adds(model) == projections + products


def test_of_open_sizes():
    model = PreActResNetCIFAR(20, bottleneck=False, input_shape=(None, None, 3))
    # The figure of the literature for ResNet-20 of 0.27 M weights, 40.8 M, has no 1x1 convolutions
    # on the skip paths.
    skips = 256 * 16 * 32 + 64 * 32 * 64
    assert round((multiply_adds(model, (32, 32, 3)) - skips) / 1e6, 1) == 40.6
    with pytest.raises(ValueError, match="`input_shape` must give all sizes"):
        multiply_adds(model)


def test_as_published():
    # 1.8e9, table 1 of He et al. (2015).
    assert round(multiply_adds(ResNet18()) / 1e9, 1) == 1.8
