"""Load on small servers, over gRPC and over REST."""

import numpy as np
import pytest

from kzoo.client import Client, TensorInfo
from kzoo.client.load import Load, closed_loop, open_loop, rows_for
from kzoo.client.metadata import Signature

BATCH = np.array([[1.0, 5.0, 2.0]], dtype=np.float32)


@pytest.fixture
def connect():
    return Client


def test_closed_loop_counts_every_answer(client, model):
    model.delay = 0.005
    load = closed_loop(client, BATCH, clients=3, seconds=0.3)
    assert not load.errors
    assert 0.3 <= load.seconds < 1
    assert load.rate == len(load.latencies) / load.seconds
    # Three at a time, 5 ms each: no more than 600 a second, whatever the machine.
    assert 0 < load.rate <= 600
    assert load.latencies[0] >= 0.005
    assert model.calls["predict"] > len(load.latencies)  # the warm-up is not counted
    np.testing.assert_array_equal(model.received["x"], BATCH)


def test_closed_loop_asks_the_named_signature(client, model):
    target = {"x": BATCH, "target": np.array([2], np.int32)}
    closed_loop(client, target, "explain_saliency", seconds=0.05)
    np.testing.assert_array_equal(model.received["target"], [2])


def test_open_loop_keeps_its_rate(client, model):
    load = open_loop(client, BATCH, rate=50, clients=4, seconds=0.4)
    assert len(load.latencies) == 20
    assert not load.errors


def test_open_loop_counts_the_wait_for_a_slow_server(address, model):
    """One connection of 100 ms per answer and one request every 20 ms: each waits longer."""
    with Client(address, "digits") as client:
        model.delay = 0.1
        load = open_loop(client, BATCH, rate=50, clients=1, seconds=0.2)
    assert len(load.latencies) == 10
    if address.startswith("http"):  # one request at a time on an HTTP/1.1 connection
        assert load.percentile(100) >= 0.7
    assert load.percentile(0) >= 0.1


def test_refusals_are_counted_by_code(client, model):
    model.failures = [("RESOURCE_EXHAUSTED", "too many")] * 10_000
    load = closed_loop(client, BATCH, clients=2, seconds=0.1)
    assert set(load.errors) == {"RESOURCE_EXHAUSTED"}
    assert load.rate == 0
    assert np.isnan(load.percentile(50))


def test_a_server_that_does_not_answer_in_time(client, model):
    client.encode(BATCH)
    model.delay = 0.3
    load = closed_loop(client, BATCH, seconds=0.2, timeout=0.05)
    assert set(load.errors) == {"DEADLINE_EXCEEDED"}


def test_percentiles():
    load = Load(2.0, np.arange(101) / 100, {})
    assert load.percentile(99) == pytest.approx(0.99)
    assert load.rate == 50.5


def test_rows_of_random_numbers():
    signature = Signature(
        inputs={
            "x": TensorInfo("float32", (None, 3)),
            "any": TensorInfo("float64", None),
            "wide": TensorInfo("float16", (None, None, 2)),
            "n": TensorInfo("int64", (None,)),
            "flag": TensorInfo("bool", (None, 2)),
        },
        outputs={},
    )
    rows = rows_for(signature, 4)
    shapes = {"x": (4, 3), "any": (4,), "wide": (4, 1, 2), "n": (4,), "flag": (4, 2)}
    assert {name: array.shape for name, array in rows.items()} == shapes
    assert 0 <= rows["x"].min() < rows["x"].max() < 1
    assert rows["flag"].dtype == bool


def test_rows_of_a_file(tmp_path):
    signature = Signature(inputs={"x": TensorInfo("float32", (None, 3))}, outputs={})
    np.savez(tmp_path / "rows.npz", x=np.arange(6).reshape(2, 3))
    rows = rows_for(signature, 5, tmp_path / "rows.npz")
    np.testing.assert_array_equal(rows["x"][:, 0], [0, 3, 0, 3, 0])
    np.savez(tmp_path / "other.npz", y=np.zeros(1))
    with pytest.raises(ValueError, match="`inputs` must be an .npz with rows of 'x'.*Received: y"):
        rows_for(signature, 5, tmp_path / "other.npz")


def test_strings_need_a_file():
    signature = Signature(inputs={"image_bytes": TensorInfo("string", (None,))}, outputs={})
    with pytest.raises(ValueError, match="'image_bytes'.*no file"):
        rows_for(signature, 1)


def test_the_command_prints_a_table(address, monkeypatch):
    from typer.testing import CliRunner

    from kzoo.cli.main import app

    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["bench-serve", address, "--model", "digits", "--seconds", "0.1", "--clients", "2"]
    output = CliRunner().invoke(app, arguments).output
    assert "digits at" in output
    assert output.count("serving_default") == 2  # batches of 1 and 32
    assert "p99 ms" in output
    refused = CliRunner().invoke(app, [*arguments, "--signature", "missing"])
    assert refused.exit_code == 2
    assert "'missing' is none of explain_path" in refused.output
