"""Client and embedded server together: what a real model answers, over both transports."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.client import Client, InvalidArgument, NotFound, TensorInfo, VersionStatus
from kzoo.explain import IntegratedGradients
from kzoo.serving.export import export
from kzoo.serving.server import ModelServer

KERNEL = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
BATCH = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)


class Linear(tf.Module):
    """logits = x W; the gradient of a logit is a column of W."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(KERNEL)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def predict(self, x):
        logits = x @ self.kernel
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 4], tf.float32, name="x"),
            tf.TensorSpec([None], tf.int32, name="target"),
        ]
    )
    def explain_saliency(self, x, target):
        logits = x @ self.kernel
        target = tf.where(target < 0, tf.argmax(logits, -1, tf.int32), target)
        gradient = tf.gather(tf.transpose(self.kernel), target)
        score = tf.gather(logits, target, batch_dims=1)
        return {"attributions": gradient, "score": score, "target": target}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def echo(self, image_bytes):
        return {"echo_bytes": image_bytes}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("linear")
    module = Linear()
    signatures = {
        "serving_default": module.predict,
        "predict_bytes": module.echo,
        "explain_saliency": module.explain_saliency,
    }
    tf.saved_model.save(module, str(base / "7"), signatures)
    with ModelServer("linear", str(base), grpc_port=0, rest_port=0) as server:
        yield server


@pytest.fixture(params=["grpc", "rest"])
def client(server, request):
    address = (
        f"127.0.0.1:{server.grpc_port}"
        if request.param == "grpc"
        else f"http://127.0.0.1:{server.rest_port}"
    )
    with Client(address, "linear", timeout=30.0) as client:
        client.wait_ready()
        yield client


def test_predicts_what_the_model_computes(client):
    result = client.predict(BATCH)
    assert list(result) == ["logits", "probabilities"]
    assert result["logits"].dtype == np.float32
    np.testing.assert_allclose(result["logits"], BATCH @ KERNEL, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result["probabilities"].sum(-1), 1.0, rtol=1e-6)
    batch = np.full((1, 4), np.nan, np.float32)
    assert np.isnan(client.predict(batch, outputs=["logits"])["logits"]).all()


def test_both_transports_agree_to_the_last_bit(server):
    with (
        Client(f"127.0.0.1:{server.grpc_port}", "linear") as grpc,
        Client(f"http://127.0.0.1:{server.rest_port}", "linear") as rest,
    ):
        assert grpc.metadata() == rest.metadata()
        assert grpc.status() == rest.status()
        for name, array in grpc.explain("saliency", BATCH).items():
            other = rest.explain("saliency", BATCH)[name]
            assert (array.dtype, array.tolist()) == (other.dtype, other.tolist())


def test_explains_the_class_asked_for(client):
    assert client.methods() == ["saliency"]
    top = np.argmax(BATCH @ KERNEL, -1)
    result = client.explain("saliency", BATCH)
    np.testing.assert_array_equal(result["target"], top)
    np.testing.assert_array_equal(result["attributions"], KERNEL.T[top])
    result = client.explain("saliency", BATCH, target=[0, 1, 2, -1, 0])
    assert result["target"].tolist() == [0, 1, 2, top[3], 0]
    with pytest.raises(NotFound, match="It has: saliency"):
        client.explain("grad_cam", BATCH)


def test_bytes_come_back(client):
    images = [b"\x89PNG\x00", b"\xff\xd8\xff"]
    assert client.predict(images, "predict_bytes")["echo_bytes"].tolist() == images


def test_metadata_and_status(client):
    signature = client.metadata()["explain_saliency"]
    assert signature.inputs == {
        "target": TensorInfo("int32", (None,)),
        "x": TensorInfo("float32", (None, 4)),
    }
    assert client.status() == [VersionStatus(7, "AVAILABLE")]


def test_errors_of_the_server(client, server):
    with pytest.raises(InvalidArgument):
        client.predict({})
    for port in (f"127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.rest_port}"):
        with Client(port, "linear", version=8) as other, pytest.raises(NotFound):
            other.predict(BATCH)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A served model of images whose explanation takes `steps` and draws overlays."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input([8, 8, 1]), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    )
    base = tmp_path_factory.mktemp("images")
    explainer = IntegratedGradients(model, steps=20, request=["steps"])
    export(model, base, [explainer], overlays=True)
    with ModelServer("images", str(base), grpc_port=0, rest_port=0) as server:
        yield explainer, server


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_steps_and_pictures(images, transport, rng):
    explainer, server = images
    ports = {
        "grpc": f"127.0.0.1:{server.grpc_port}",
        "rest": f"http://127.0.0.1:{server.rest_port}",
    }
    pixels = rng.integers(0, 256, [2, 8, 8, 1]).astype("uint8")
    x = (pixels / 255).astype("float32")
    with Client(ports[transport], "images", timeout=30.0) as client:
        client.wait_ready()
        assert client.methods() == ["integrated_gradients"]
        result = client.explain("integrated_gradients", x, target=-2, steps=[5, -1])
        expected = explainer(x, -2, steps=[5, 20])
        np.testing.assert_allclose(result["attributions"], expected["attributions"], atol=1e-6)
        np.testing.assert_allclose(result["probabilities"].sum(1), 1, rtol=1e-6)
        np.testing.assert_array_equal(
            client.explain("integrated_gradients", x)["score"],
            client.explain("integrated_gradients", x, steps=20)["score"],
        )
        files = [tf.io.encode_png(each).numpy() for each in pixels]
        drawn = client.explain_image("integrated_gradients", files, target=1)
        for picture in drawn["overlay_bytes"]:
            assert tf.io.decode_png(picture).shape == (8, 8, 3)
        with pytest.raises(InvalidArgument, match="`steps` must be from 1 to 20"):
            client.explain("integrated_gradients", x, steps=21)
        with pytest.raises(InvalidArgument, match="takes no `baseline`"):
            client.explain("integrated_gradients", x, baseline=x)
