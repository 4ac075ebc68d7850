import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

from kzoo.explain.nearest_prototypes import (
    NearestPrototypes,
    nearest_prototypes_sheet,
    prototype_sheet,
)
from kzoo.models.prototype_case_net import PrototypeCaseNet
from kzoo.serving.export import export

pytestmark = pytest.mark.paper(
    "Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its "
    "Predictions"
)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    return PrototypeCaseNet(5, input_shape=(6, 6, 1), classes=3, filters=(4, 3))


@pytest.fixture
def images(rng):
    return rng.uniform(size=(4, 6, 6, 1)).astype("float32")


def test_shares_are_the_logit(model, images):
    result = NearestPrototypes(model)(images, target=[0, 1, 2, 1])
    _, distances, _ = model.forward(images)
    kernel = model.classifier.kernel.numpy()
    np.testing.assert_allclose(result["distances"], distances, rtol=1e-5)
    shares = np.asarray(distances) * kernel[:, [0, 1, 2, 1]].T
    np.testing.assert_allclose(result["attributions"], shares, rtol=1e-5)
    np.testing.assert_allclose(result["score"], shares.sum(1), rtol=1e-5)
    np.testing.assert_allclose(result["predictions"], distances @ kernel, rtol=1e-5)


def test_nearest_come_first_with_their_class_and_picture(model, images):
    result = NearestPrototypes(model, count=4)(images)
    order = np.argsort(result["distances"], axis=1)[:, :4]
    np.testing.assert_array_equal(result["nearest"], order)
    classes = model.classifier.kernel.numpy().argmin(1)
    np.testing.assert_array_equal(result["nearest_classes"], classes[order])
    decoded = np.asarray(model.decoded_prototypes())
    np.testing.assert_allclose(result["decoded"], decoded[order], rtol=1e-5)


def test_an_input_is_nearest_to_the_prototype_that_is_its_own_code(model, images):
    prototypes = model.prototypes.prototypes
    kept = prototypes.numpy()
    latent = np.asarray(model.encoder(images)).reshape(4, -1)
    prototypes.assign(np.concatenate([kept[:1], latent]))
    result = NearestPrototypes(model, count=1)(images)
    prototypes.assign(kept)
    np.testing.assert_array_equal(result["nearest"], [[1], [2], [3], [4]])
    # What it shows is then the reconstruction of the input.
    reconstruction = model.decoder(model.encoder(images))
    np.testing.assert_allclose(result["decoded"][:, 0], reconstruction, rtol=1e-4, atol=1e-6)


def test_the_served_signature_gives_the_same(model, images, tmp_path):
    explainer = NearestPrototypes(model, count=2)
    version = export(model, tmp_path / "net", [explainer])
    target = np.array([0, -1, 2, -2], "int32")
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(version))
        definition = loaded.signature_def["explain_nearest_prototypes"]
        feed = {"inputs": images, "target": target}
        served = session.run(
            {name: info.name for name, info in definition.outputs.items()},
            {definition.inputs[name].name: value for name, value in feed.items()},
        )
    result = explainer(images, target)
    np.testing.assert_allclose(served["logits"], result.pop("predictions"), rtol=1e-4)
    for name, value in result.items():
        np.testing.assert_allclose(served[name], value, rtol=1e-4, atol=1e-6)


def test_sheets_show_distances_classes_and_weights(model, images):
    result = NearestPrototypes(model, count=2)(images)
    figure = nearest_prototypes_sheet(images, result, titles="abcd")
    assert isinstance(figure, Figure)
    captions = [axis.get_xlabel() for axis in figure.axes]
    nearest, classes = int(result["nearest"][1, 0]), int(result["nearest_classes"][1, 0])
    distance = float(result["distances"][1, nearest])
    assert captions[3:5] == ["b", f"d = {distance:.2f}\nclass {classes}"]
    sheet = prototype_sheet(model)
    drawn = [image for axis in sheet.axes for image in axis.images][5].get_array()
    np.testing.assert_array_equal(drawn, model.classifier.kernel.numpy().T)


def test_errors_name_the_argument(model, images):
    with pytest.raises(TypeError, match="`model` must be a PrototypeCaseNet. Received: Dense"):
        NearestPrototypes(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="`count` must be an integer from 1 to 5. Received: 6"):
        NearestPrototypes(model, count=6)
    with pytest.raises(ValueError, match="`result` must be of the 3 images. Received: one of 4"):
        nearest_prototypes_sheet(images[:3], NearestPrototypes(model)(images))
