import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain.tversky_prototypes import (
    TverskyFeatures,
    tversky_parameter_sheet,
    tversky_sheet,
)
from kzoo.layers.tversky import TverskyFeatureBank, TverskyProjection
from kzoo.layers.tversky_input_domain import TverskyInputDomainProjection
from kzoo.serving.export import export

pytestmark = pytest.mark.paper(
    "Tversky Neural Networks: Psychologically Plausible Deep Learning with Differentiable Tversky "
    "Similarity"
)


def encoder():
    return keras.Sequential(
        [keras.Input([4, 4, 1]), keras.layers.Flatten(), keras.layers.Dense(5)], name="encoder"
    )


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(4)
    normal = keras.initializers.RandomNormal(seed=1)
    bank = TverskyFeatureBank(7, initializer=normal)
    head = TverskyProjection(
        3, bank, "min", "subtractmatch", prototypes_initializer=normal, name="head"
    )
    layers = [keras.Input([4, 4, 1]), encoder(), head, keras.layers.Softmax()]
    return keras.Sequential(layers)


@pytest.fixture(scope="module")
def pictured():
    keras.utils.set_random_seed(5)
    layer = TverskyInputDomainProjection(encoder(), 3, 8)
    return keras.Sequential([keras.Input([4, 4, 1]), layer])


@pytest.fixture
def images(rng):
    return rng.uniform(size=(4, 4, 4, 1)).astype("float32")


def test_a_hand_made_comparison():
    # The input (2, 3, 0) and the prototype (1, 0, 4) over the three unit features: the first is
    # common, theta 2 * 1; the second only the input's, -alpha 3; the third the prototype's, -beta
    # 4.
    bank = TverskyFeatureBank(3, initializer=keras.initializers.Identity())
    head = TverskyProjection(2, bank)
    model = keras.Sequential([keras.Input([3]), head])
    head.prototypes.assign([[0.0, 0.0, 0.0], [1.0, 0.0, 4.0]])
    head.beta.assign(0.25)
    result = TverskyFeatures(model)(np.array([[2.0, 3.0, 0.0]]), target=1)
    np.testing.assert_allclose(result["common"], [[2.0, 0.0, 0.0]])
    np.testing.assert_allclose(result["only_input"], [[0.0, -1.5, 0.0]])
    np.testing.assert_allclose(result["only_prototype"], [[0.0, 0.0, -1.0]])
    np.testing.assert_allclose(result["attributions"], [[2.0, -1.5, -1.0]])
    np.testing.assert_allclose(result["score"], [-0.5])


@pytest.mark.parametrize("kind", ["model", "pictured"])
def test_shares_add_up_to_the_similarity(kind, request, images):
    model = request.getfixturevalue(kind)
    head = next(each for each in model.layers if hasattr(each, "prototype_measures"))
    vectors = images if kind == "pictured" else model.layers[0](images)
    similarities = np.asarray(head(vectors))
    result = TverskyFeatures(model)(images, target=[0, 1, 2, 1])
    np.testing.assert_allclose(result["score"], similarities[range(4), [0, 1, 2, 1]], rtol=1e-5)
    np.testing.assert_allclose(
        np.sum(result["attributions"], 1), result["score"], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-4)
    parts = sum(np.asarray(result[name]) for name in ("common", "only_input", "only_prototype"))
    np.testing.assert_allclose(parts, result["attributions"], rtol=1e-5)


def test_the_served_signature_gives_the_same(model, images, tmp_path):
    explainer = TverskyFeatures(model)
    version = export(model, tmp_path / "net", [explainer])
    target = np.array([0, -1, 2, -2], "int32")
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(version))
        definition = loaded.signature_def["explain_tversky_features"]
        feed = {"inputs": images, "target": target}
        served = session.run(
            {name: info.name for name, info in definition.outputs.items()},
            {definition.inputs[name].name: value for name, value in feed.items()},
        )
    result = explainer(images, target)
    np.testing.assert_allclose(served["logits"], result.pop("predictions"), rtol=1e-4, atol=1e-6)
    for name, value in result.items():
        np.testing.assert_allclose(served[name], value, rtol=1e-4, atol=1e-6)


def test_sheet_shows_the_strongest_features(pictured, images):
    result = TverskyFeatures(pictured)(images)
    strength = sum(np.abs(result[name]) for name in ("common", "only_input", "only_prototype"))
    plain = tversky_sheet(images, result, titles="abcd", top=3)
    shown = [label.get_text() for label in plain.axes[1].get_yticklabels()]
    assert shown == [str(k) for k in np.argsort(-strength[0], kind="stable")[:3]]
    sheet = tversky_sheet(images, result, layer=pictured.layers[0], top=3)
    assert [axis.get_xlabel() for axis in sheet.axes[3:6]] == [f"feature {k}" for k in shown]
    np.testing.assert_array_equal(
        np.argmax(sheet.axes[3].images[0].get_array().sum(-1)),
        np.argmax(pictured.layers[0].features[int(shown[0])]),
    )


def test_parameter_sheet_shows_all_of_them(pictured):
    figure = tversky_parameter_sheet(pictured.layers[0], names=["x", "y", "z"], columns=4)
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    assert titles == [*(f"prototype {n}" for n in "xyz"), *(f"feature {k}" for k in range(8))]


def test_errors_name_the_argument(model, images):
    plain = keras.Sequential([keras.Input([2]), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="must have one Tversky projection .* with 0"):
        TverskyFeatures(plain)
    with pytest.raises(ValueError, match="`layer` must be a Tversky projection. Received: Dense"):
        TverskyFeatures(plain, layer=0)
    hidden = [keras.Input([2]), TverskyProjection(3, 4), keras.layers.Dense(2)]
    with pytest.raises(ValueError, match="has 3 prototypes. Received: a model of 2 outputs"):
        TverskyFeatures(keras.Sequential(hidden))(np.ones([1, 2]))
    with pytest.raises(ValueError, match="`result` must be of the 3 images. Received: one of 4"):
        tversky_sheet(images[:3], TverskyFeatures(model)(images))
    with pytest.raises(TypeError, match="`layer` must be a TverskyInputDomainProjection"):
        tversky_parameter_sheet(model.layers[1])
