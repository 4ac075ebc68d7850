import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import GradCAM
from kzoo.models.protopnet import (
    ProtoPNet,
    STProtoPNet,
    branches,
    feature_extractor,
    similarity_maps,
)
from kzoo.serving.export import export

pytestmark = [
    pytest.mark.paper(
        "Learning Support and Trivial Prototypes for Interpretable Image Classification"
    ),
    pytest.mark.paper("This Looks Like That: Deep Learning for Interpretable Image Recognition"),
]


def backbone():
    layers = [keras.Input([8, 8, 3]), keras.layers.Conv2D(6, 3, strides=2, activation="relu")]
    return keras.Sequential(layers, name="backbone")


def network(make=STProtoPNet, **options):
    return make(backbone(), 3, prototypes_per_class=2, prototype_size=4, **options)


@pytest.fixture
def images(rng):
    return rng.uniform(size=(5, 8, 8, 3)).astype("float32")


def test_protopnet_by_hand(images):
    model = network(ProtoPNet)
    features = np.maximum(np.asarray(model.get_layer("backbone")(images)), 0)
    first, second = [x for x in model.get_layer("add_on").layers if hasattr(x, "kernel")]
    hidden = np.maximum(features @ first.kernel.numpy()[0, 0] + first.bias, 0)
    z = 1 / (1 + np.exp(-(hidden @ second.kernel.numpy()[0, 0] + second.bias)))
    (branch,) = branches(model)
    p = branch.prototypes.prototypes.numpy()[0, 0].T
    d = ((z[..., None, :] - p) ** 2).sum(-1).min((1, 2))
    similarity = np.log((d + 1) / (d + 1e-4))
    # Class 0 owns prototypes 0 and 1: 1 x their similarities - 0.5 x all others.
    expected = np.stack(
        [1.5 * similarity[:, 2 * c : 2 * c + 2].sum(1) - 0.5 * similarity.sum(1) for c in range(3)],
        axis=1,
    )
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


def test_logits_are_the_sum_of_the_branches(images, rng):
    model = network()
    for branch in branches(model):
        branch.classifier.kernel.assign(rng.normal(size=branch.classifier.kernel.shape))
    features = keras.tree.flatten(feature_extractor(model)(images))
    each = [
        branch.classifier(branch.prototypes(x))
        for branch, x in zip(branches(model), features, strict=True)
    ]
    assert [branch.name for branch in branches(model)] == ["trivial", "support"]
    assert np.abs(each[0] - each[1]).max() > 0.1
    np.testing.assert_allclose(model(images), each[0] + each[1], rtol=1e-5)


def test_add_on_layers_of_st_protopnet_are_linear(images):
    model = network()
    add_on = model.get_layer("support_add_on")
    x = np.asarray(model.get_layer("backbone")(images))
    np.testing.assert_allclose(add_on(-2 * x), -2 * np.asarray(add_on(x)), rtol=1e-4, atol=1e-5)


def test_upsampling_enlarges_the_map_of_patches(images):
    plain, enlarged = network(), network(upsampling=2)
    assert plain.count_params() == enlarged.count_params()
    assert similarity_maps(plain)(images).shape == (5, 3, 3, 12)
    assert similarity_maps(enlarged)(images).shape == (5, 6, 6, 12)


def test_similarity_maps_peak_at_the_similarities(images):
    model = network(ProtoPNet, patch_size=2)
    maps = np.asarray(similarity_maps(model)(images))
    (branch,) = branches(model)
    np.testing.assert_allclose(
        maps.max((1, 2)), branch.prototypes(feature_extractor(model)(images)), rtol=1e-6
    )


def test_branches_of_a_loaded_model(images, tmp_path):
    model = network()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(similarity_maps(loaded)(images), similarity_maps(model)(images))
    np.testing.assert_array_equal(
        branches(loaded)[0].prototypes.prototype_classes, [0, 0, 1, 1, 2, 2]
    )


def test_is_served_and_explained_like_any_model(images, tmp_path):
    explainer = GradCAM(network(ProtoPNet))
    version = export(explainer.model, tmp_path / "protopnet", [explainer])
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(version))
        definition = loaded.signature_def["explain_grad_cam"]
        served = session.run(
            definition.outputs["attributions"].name,
            {
                definition.inputs["inputs"].name: images,
                definition.inputs["target"].name: np.full(5, -1, "int32"),
            },
        )
    expected = explainer(images)["attributions"]
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-5)


def test_output_is_wide_under_a_mixed_policy(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert keras.backend.standardize_dtype(network()(images).dtype) == "float32"


def test_on_a_model_of_keras_applications():
    body = keras.applications.MobileNetV3Small(
        include_top=False, weights=None, input_shape=(32, 32, 3), minimalistic=True
    )
    model = ProtoPNet(body, 2, prototypes_per_class=1, prototype_size=8)
    assert model(np.zeros([1, 32, 32, 3], "float32")).shape == (1, 2)


def test_refuses_what_does_not_fit():
    with pytest.raises(TypeError, match="`backbone` must be a keras.Model. Received: int"):
        ProtoPNet(3, 2)
    flat = keras.Sequential([keras.Input([8, 8, 3]), keras.layers.Flatten()], name="flat")
    with pytest.raises(ValueError, match=r"one feature map .* Received: 'flat'"):
        STProtoPNet(flat, 2)
    with pytest.raises(ValueError, match="`classes` must be an integer of at least 2"):
        ProtoPNet(backbone(), 1)
    with pytest.raises(ValueError, match="`model` must come from kzoo.models.ProtoPNet"):
        branches(flat)
