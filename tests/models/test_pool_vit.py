import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage, special

from kzoo.layers.position_embedding import PositionEmbedding2D
from kzoo.models import feature_pyramid
from kzoo.models.pool_vit import PoolViT

pytestmark = pytest.mark.paper("Learning Features with Parameter-Free Layers")


def small(**options):
    options = {"input_shape": (8, 12, 3), "classes": 5, "patch_size": 4, **options}
    return PoolViT(depth=2, dim=8, heads=2, **options)


def parameters(depth, dim, patches, patch_size=16, classes=1000):
    """Attention has 4 d^2 + 4 d weights, its substitute 6 d^2 + 4 d, the MLP 8 d^2 + 5 d."""
    attention, pooled = 4 * dim**2 + 4 * dim, 6 * dim**2 + 4 * dim
    mlp, norms = 8 * dim**2 + 5 * dim, 4 * dim
    blocks = (depth + 1) // 2 * attention + depth // 2 * pooled + depth * (mlp + norms)
    stem = (3 * patch_size**2 + 1) * dim + patches * dim
    return stem + blocks + 2 * dim + (dim + 1) * classes


@pytest.mark.parametrize(("dim", "heads"), [(192, 3), (384, 6)])
def test_parameters(dim, heads):
    model = PoolViT(depth=4, dim=dim, heads=heads)
    assert model.count_params() == parameters(4, dim, 14 * 14)


def normalized(x, arrays, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * arrays[f"{name}/gamma"] + arrays[f"{name}/beta"]


def dense(x, arrays, name):
    return x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]


def gelu(x):
    return x * special.ndtr(x)


def attend(x, arrays, name):
    tokens = x.reshape(len(x), -1, x.shape[-1])
    q, k, v = (
        np.einsum("btc,chd->bhtd", tokens, arrays[f"{name}/{part}/kernel"])
        + arrays[f"{name}/{part}/bias"][:, None]
        for part in ("query", "key", "value")
    )
    weights = special.softmax(q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]), axis=-1)
    y = np.einsum("bhtd,hdc->btc", weights @ v, arrays[f"{name}/attention_output/kernel"])
    return (y + arrays[f"{name}/attention_output/bias"]).reshape(x.shape)


def pool(x, arrays, name):
    x = gelu(dense(x, arrays, f"{name}_1_dense"))
    x = ndimage.maximum_filter(x, size=(1, 3, 3, 1), mode="constant", cval=-np.inf)
    return dense(gelu(x), arrays, f"{name}_2_dense")


def test_network_is_its_equations(float64, rng):
    model = small(classifier_activation=None)
    for weight in model.weights:
        if "float" in weight.dtype:
            weight.assign(rng.normal(size=weight.shape))
    arrays = {weight.path: np.asarray(weight) for weight in model.weights}
    images = rng.normal(size=(3, 8, 12, 3))
    patches = images.reshape(3, 2, 4, 3, 4, 3)
    x = np.einsum("bhpwqc,pqcd->bhwd", patches, arrays["patches/kernel"])
    x = x + arrays["patches/bias"] + arrays["positions/embeddings"]
    for block, mix in (("block1", attend), ("block2", pool)):
        x = x + mix(normalized(x, arrays, f"{block}_mixer_norm"), arrays, f"{block}_mixer")
        y = gelu(dense(normalized(x, arrays, f"{block}_mlp_norm"), arrays, f"{block}_mlp_1_dense"))
        x = x + dense(y, arrays, f"{block}_mlp_2_dense")
    expected = dense(normalized(x, arrays, "norm").mean(axis=(1, 2)), arrays, "predictions")
    np.testing.assert_allclose(model(images), expected, rtol=1e-5, atol=1e-6)


def test_every_second_block_attends():
    model = PoolViT(depth=5, dim=8, heads=2, patch_size=4, input_shape=(8, 8, 3))
    kinds = (keras.layers.MultiHeadAttention, keras.layers.MaxPooling2D)
    mixers = [layer.name for layer in model.layers if isinstance(layer, kinds)]
    assert mixers == [
        "block1_mixer", "block2_mixer_pool", "block3_mixer", "block4_mixer_pool", "block5_mixer",
    ]  # fmt: skip
    assert not model.get_layer("block2_mixer_pool").weights


def test_one_map_of_the_stride_of_the_patches():
    pyramid = feature_pyramid(small(include_top=False))
    assert {name: tuple(x.shape) for name, x in pyramid.output.items()} == {"P2": (None, 2, 3, 8)}


def test_stochastic_depth_grows_linearly():
    model = PoolViT(
        depth=3, dim=8, heads=2, patch_size=4, drop_path_rate=0.2, input_shape=(8, 8, 3)
    )
    rates = [layer.rate for layer in model.layers if layer.name.endswith("_drop_path")]
    assert rates == [0.1, 0.1, 0.2, 0.2]


def test_positions_are_learned(rng, tmp_path):
    layer = PositionEmbedding2D(embeddings_initializer="ones")
    maps = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    np.testing.assert_allclose(layer(maps), maps + 1)
    assert (
        PositionEmbedding2D.from_config(layer.get_config())(maps)[0, 0, 0, 0]
        == maps[0, 0, 0, 0] + 1
    )
    with pytest.raises(ValueError, match="fixed height"):
        PositionEmbedding2D()(keras.Input((None, 4, 5)))


def test_float32_output_under_mixed_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert small()(rng.normal(size=(2, 8, 12, 3))).dtype == tf.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "`depth` must be a positive integer. Received: 0"),
        ({"dim": 10, "heads": 4}, "`dim` must be a multiple of `heads`. Received: 10 and 4"),
        ({"patch_size": 12}, "`patch_size` must be a power of 2. Received: 12"),
        ({"drop_path_rate": 1}, r"`drop_path_rate` must be in \[0, 1\)"),
        ({"input_shape": (8, 8, 3)}, "`input_shape` must .* at least 16"),
        ({"input_shape": (None, 32, 3)}, "fixed height"),
    ],
)
def test_refuses_impossible_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PoolViT(**options)
