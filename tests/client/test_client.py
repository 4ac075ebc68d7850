"""The clients against small servers; blocking and asynchronous, over gRPC and over REST."""

import socket
import threading
import time

import numpy as np
import pytest

from kzoo import client as kzoo_client
from kzoo.client import AsyncClient, Client, Signature, TensorInfo, VersionStatus
from tests.client import servers
from tests.client.servers import HTTP_STATUS, X

BATCH = np.array([[1.0, 5.0, 2.0], [0.1, 0.0, -3.0]], dtype=np.float32)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr("kzoo.client.deadlines.FIRST_PAUSE", 0.02)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_predict_gives_the_signatures_outputs_and_dtypes(client):
    result = client.predict(BATCH)
    assert list(result) == ["double", "top"]
    assert result["double"].dtype == np.float32
    assert result["top"].dtype == np.int64
    np.testing.assert_array_equal(result["double"], 2 * BATCH)  # bitwise, also through JSON
    np.testing.assert_array_equal(result["top"], [1, 0])


def test_predict_takes_names_lists_and_other_precisions(client):
    for inputs in ({"x": BATCH}, BATCH.tolist(), BATCH.astype(np.float64), BATCH.astype(np.int8)):
        assert client.predict(inputs)["double"].dtype == np.float32
    np.testing.assert_array_equal(client.predict([[1, 2, 3]])["double"], [[2, 4, 6]])


def test_single_output_and_output_filter(client, model, serve):
    single = client.predict(BATCH, signature_name="single")
    np.testing.assert_array_equal(single["double"], 2 * BATCH)
    assert list(single) == ["double"]
    assert list(client.predict(BATCH, outputs="top")) == ["top"]
    if serve is servers.grpc_server:  # REST has no filter
        assert model.output_filter == ["top"]
    assert list(client.predict(BATCH, outputs=["top", "double"])) == ["top", "double"]


def test_strings_integers_and_booleans_survive(client, model):
    text = [b"\xff\x00", "Zürich", b""]
    numbers = np.array([2**62 + 1, -(2**62) - 1, 0])
    result = client.predict(
        {"text_bytes": text, "n": numbers, "flag": [True, False, True]}, signature_name="mixed"
    )
    assert result["text_bytes"].tolist() == [b"\xff\x00", "Zürich".encode(), b""]
    assert model.received["text_bytes"].tolist() == [b"\xff\x00", "Zürich".encode(), b""]
    assert result["n"].tolist() == numbers.tolist()
    assert result["flag"].tolist() == [True, False, True]
    assert result["flag"].dtype == np.bool_


def test_string_outputs_without_bytes_in_their_name(client, model):
    model.signatures["mixed"] = ({"text": ("DT_STRING", [-1])}, {"text": ("DT_STRING", [-1])})
    result = client.predict([b"\xff\xfe", "\u00e9\n"], signature_name="mixed")
    assert result["text"].tolist() == [b"\xff\xfe", "\u00e9\n".encode()]


def test_nan_and_infinity_both_ways(client, model):
    batch = np.array([[np.nan, np.inf, -np.inf]], dtype=np.float32)
    np.testing.assert_array_equal(client.predict(batch, outputs="double")["double"], batch)
    np.testing.assert_array_equal(model.received["x"], batch)


def test_free_rank_half_precision_and_empty_batches(client):
    assert client.predict(np.float16(0.1), "free")["z"] == np.float64(np.float16(0.1))
    cube = np.arange(8, dtype=np.float16).reshape(2, 2, 2)
    np.testing.assert_array_equal(client.predict(cube, "free")["z"], cube)
    result = client.predict(
        {"text_bytes": [], "n": [], "flag": []}, signature_name="mixed", outputs="n"
    )
    assert result["n"].shape == (0,)
    assert result["n"].dtype == np.int64


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": BATCH}, r"inputs x\. Received: \['y'\]"),
        (BATCH[0], r"Input 'x' must have shape \(None, 3\)\. Received: \(3,\)"),
        ([["a", "b", "c"]], "Input 'x' must be an array of dtype float32. Received: dtype"),
        ([[1.0], [1.0, 2.0]], "Input 'x' must be an array of dtype float32"),
    ],
)
def test_refuses_inputs_that_do_not_fit(client, model, inputs, message):
    with pytest.raises(kzoo_client.InvalidArgument, match=message):
        client.predict(inputs)
    assert model.calls["predict"] == 0


def test_refuses_numbers_that_would_change(client):
    inputs = {"text_bytes": [b""], "n": [1], "flag": [True]}
    with pytest.raises(kzoo_client.InvalidArgument, match=r"'n' must be .* int64.*float64"):
        client.predict({**inputs, "n": [1.5]}, "mixed")
    with pytest.raises(kzoo_client.InvalidArgument, match=r"'n' .* 9223372036854775808"):
        client.predict({**inputs, "n": np.array([2**63], np.uint64)}, "mixed")
    with pytest.raises(kzoo_client.InvalidArgument, match=r"'text_bytes' .* type int"):
        client.predict({**inputs, "text_bytes": [3]}, "mixed")
    with pytest.raises(kzoo_client.InvalidArgument, match=r"must be a dict .* text_bytes"):
        client.predict([1], "mixed")
    with pytest.raises(kzoo_client.InvalidArgument, match=r"double, top\. Received: \['z'\]"):
        client.predict(BATCH, outputs=["z"])


def test_explain_sends_targets_and_returns_the_maps(client, model):
    result = client.explain("saliency", BATCH)
    assert model.received["target"].tolist() == [-1, -1]
    assert model.received["target"].dtype == np.int32
    np.testing.assert_array_equal(result["attributions"], BATCH * np.float32(0.1))
    assert result["target"].tolist() == [1, 0]
    assert result["score"].tolist() == [5.0, BATCH[1, 0]]
    assert "convergence_delta" not in result

    assert client.explain("path", {"x": BATCH}, target=2)["score"].tolist() == [2.0, -3.0]
    assert model.received["target"].tolist() == [2, 2]
    result = client.explain("path", BATCH, target=np.array([0, -1]), outputs=["convergence_delta"])
    assert model.received["target"].tolist() == [0, -1]
    assert list(result) == ["convergence_delta"]


@pytest.mark.parametrize("target", [[0, 1, 2], 1.0, True, [[0], [1]]])
def test_explain_refuses_targets_that_are_none(client, target):
    with pytest.raises(kzoo_client.InvalidArgument, match="`target` must be one integer or 2 "):
        client.explain("saliency", BATCH, target=target)


def test_explain_lists_the_methods_that_exist(client):
    assert client.methods() == ["path", "saliency"]
    with pytest.raises(kzoo_client.NotFound, match=r"'lime'\. It has: path, saliency$"):
        client.explain("lime", BATCH)
    with pytest.raises(kzoo_client.NotFound, match=r"'other'\. It has: explain_path, .*single"):
        client.predict(BATCH, "other")


def test_explain_without_target_input(client, model):
    model.signatures["explain_plain"] = (X, {"double": ("DT_FLOAT", [-1, 3])})
    with pytest.raises(kzoo_client.InvalidArgument, match="'plain' takes no `target`"):
        client.explain("plain", BATCH, target=1)


def test_metadata_is_fetched_once_and_again_when_it_is_outdated(client, model):
    for _ in range(3):
        client.predict(BATCH)
    assert model.calls == {"predict": 3, "metadata": 1, "status": 0}
    model.signatures["explain_new"] = model.signatures["explain_saliency"]
    assert list(client.explain("new", BATCH)) == ["attributions", "score", "target"]
    assert model.calls == {"predict": 4, "metadata": 2, "status": 0}


def test_metadata_describes_the_signatures(client):
    signatures = client.metadata()
    assert list(signatures) == sorted(signatures)
    assert "__saved_model_init_op" not in signatures
    assert signatures["single"] == Signature(
        inputs={"x": TensorInfo("float32", (None, 3))},
        outputs={"double": TensorInfo("float32", (None, 3))},
    )
    assert signatures["free"].inputs["y"] == TensorInfo("float16", None)
    assert signatures["mixed"].inputs["text_bytes"] == TensorInfo("string", (None,))


def test_status_lists_the_versions(connect, client, address, model):
    failed = VersionStatus(2, "END", "NOT_FOUND", "no saved_model.pb")
    assert client.status() == [VersionStatus(3, "AVAILABLE", "OK", ""), failed]
    with connect(address, "digits", version=2) as pinned:
        assert pinned.status() == [failed]
    with connect(address, "digits", label="stable") as labelled:
        assert labelled.status() == client.status()
    assert model.specs == [(None, None), (2, None), (None, None), (None, None)]


@pytest.mark.parametrize(("version", "label"), [(None, None), (3, None), (None, "stable")])
def test_version_and_label_reach_the_server(connect, address, model, version, label):
    with connect(address, "digits", version=version, label=label) as client:
        client.predict(BATCH)
    assert model.specs == [(version, label)] * 2  # metadata, then predict


def test_unknown_model(connect, address):
    with connect(address, "other / model") as client:
        with pytest.raises(kzoo_client.NotFound, match=r"Servable not found .* other / model"):
            client.predict(BATCH)


@pytest.mark.parametrize("code", sorted(set(HTTP_STATUS) - {"UNAVAILABLE"}))
def test_every_error_has_its_class_and_is_not_retried(client, model, code, serve):
    model.failures = [(code, "what went wrong")] * 3
    with pytest.raises(kzoo_client.ServingError) as caught:
        client.predict(BATCH)
    if serve is servers.rest_server:  # several codes share one HTTP status
        shared = {"FAILED_PRECONDITION": "INVALID_ARGUMENT", "OUT_OF_RANGE": "INVALID_ARGUMENT"}
        shared |= {"ALREADY_EXISTS": "ABORTED", "UNKNOWN": "INTERNAL", "DATA_LOSS": "INTERNAL"}
        code = shared.get(code, code)
    assert type(caught.value) is getattr(kzoo_client, code.title().replace("_", ""))
    assert (caught.value.code, caught.value.message) == (code, "what went wrong")
    assert str(caught.value) == f"{code}: what went wrong"
    assert model.calls["predict"] == 1


def test_retries_while_unavailable(client, model):
    model.failures = [("UNAVAILABLE", "loading")] * 2
    np.testing.assert_array_equal(client.predict(BATCH)["double"], 2 * BATCH)
    assert model.calls["predict"] == 3


def test_gives_up_after_the_last_retry(connect, address, model):
    model.failures = [("UNAVAILABLE", "loading")] * 9
    with connect(address, "digits", retries=1) as client:
        with pytest.raises(kzoo_client.Unavailable, match="loading"):
            client.predict(BATCH)
    assert model.calls["predict"] == 2


def test_deadline_ends_a_slow_call(client, model):
    client.predict(BATCH)
    model.delay = 0.6
    start = time.monotonic()
    with pytest.raises(kzoo_client.DeadlineExceeded):
        client.predict(BATCH, timeout=0.1)
    assert time.monotonic() - start < 0.4
    model.delay = 0.0
    np.testing.assert_array_equal(client.predict(BATCH)["double"], 2 * BATCH)


def test_retries_end_with_the_deadline(client, model, monkeypatch):
    monkeypatch.setattr("kzoo.client.deadlines.FIRST_PAUSE", 30.0)
    model.failures = [("UNAVAILABLE", "loading")]
    with pytest.raises(kzoo_client.Unavailable, match="loading"):
        client.predict(BATCH, timeout=5.0)  # returns at once: the pause would outlast it
    assert model.calls["predict"] == 1


def address_of(serve, port):
    scheme = "http" if serve is servers.rest_server else "grpc"
    return f"{scheme}://127.0.0.1:{port}"


def test_connection_refused_is_unavailable(connect, serve):
    with connect(address_of(serve, free_port()), "digits", retries=0) as client:
        with pytest.raises(kzoo_client.Unavailable):
            client.status()


def test_retries_until_the_server_is_there(connect, serve, model):
    port = free_port()
    done = threading.Event()

    def start_later():
        time.sleep(0.2)
        with serve(model, port):
            done.wait(10.0)

    starter = threading.Thread(target=start_later)
    starter.start()
    with connect(address_of(serve, port), "digits", retries=8) as client:
        assert client.predict(BATCH)["top"].tolist() == [1, 0]
    done.set()
    starter.join()


def test_survives_a_restart_of_the_server(connect, serve, model):
    port = free_port()
    with connect(address_of(serve, port), "digits", retries=8) as client:
        for _ in range(2):
            with serve(model, port):
                assert client.predict(BATCH)["top"].tolist() == [1, 0]
    assert model.calls["metadata"] == 1


def test_several_threads_share_a_client(client):
    wrong = []

    def work(seed):
        batch = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
        for _ in range(10):
            if not np.array_equal(client.predict(batch)["double"], 2 * batch):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_wait_ready_waits_for_server_and_version(connect, serve, model):
    port = free_port()
    available, model.states = model.states, [(3, "LOADING", "OK", "")]
    with connect(address_of(serve, port), "digits") as client:
        with pytest.raises(
            kzoo_client.DeadlineExceeded, match=r"'digits' was not ready .* UNAVAIL"
        ):
            client.wait_ready(0.15)
        with serve(model, port):
            with pytest.raises(kzoo_client.DeadlineExceeded, match="LOADING"):
                client.wait_ready(1.0)
            model.states = available
            client.wait_ready(5.0)


def test_a_closed_client_says_so(connect, address):
    with connect(address, "digits") as client:
        client.predict(BATCH)
    for call in (client.status, client.wait_ready, lambda: client.predict(BATCH)):
        with pytest.raises(ValueError, match="client is closed"):
            call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": "localhost"}, "`address` must be"),
        ({"address": "ftp://localhost:1"}, "`address` must be"),
        ({"address": "grpc://localhost:8500/path"}, "`address` must be"),
        ({"address": "http://localhost:port"}, "`address` must be"),
        ({"address": 8500}, "`address` must be"),
        ({"address": "grpcs://localhost"}, "`address` must be"),
        ({"address": "https://user@localhost"}, "`address` must be"),
        ({"address": "unix:"}, "`address` must be"),
        ({"address": "unix://host/path"}, "`address` must be"),
        ({"model": ""}, "`model` must be a name"),
        ({"version": 1, "label": "stable"}, "Only one of"),
        ({"version": "1"}, "`version` must be"),
        ({"retries": -1}, "`retries` must be"),
        ({"timeout": 0}, "`timeout` must be a positive"),
    ],
)
@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_refuses_wrong_arguments(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**{"address": "http://localhost:8501", "model": "digits", **arguments})
