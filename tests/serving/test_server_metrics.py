"""The Prometheus metrics of the embedded server: names, labels and layout of TensorFlow Serving."""

import concurrent.futures
import re

import grpc
import numpy as np
import pytest

from kzoo.serving.server import Code, ModelServer, ServingError, metrics
from kzoo.serving.server.errors import invalid_argument

PATH = "/monitoring/prometheus/metrics"


@pytest.fixture(scope="module")
def client(base_paths, connect, tmp_path_factory):
    """A server with the page on; the model has a name of its own, so that its counts are, too."""
    config = tmp_path_factory.mktemp("monitoring") / "monitoring.config"
    config.write_text("prometheus_config { enable: true }")
    with ModelServer(
        "measured", base_paths["half"], grpc_port=0, rest_port=0, monitoring_config_file=config
    ) as server:
        made = connect(server)
        yield made
        made.close()


def page(client):
    status, headers, text = client.http("GET", PATH)
    assert (status, headers["Content-Type"]) == (200, "text/plain")
    return text


def values(client, name, *labels):
    """Returns the number behind each of the metric's lines that have all the labels."""
    lines = re.findall(rf"^(:tensorflow:{name}{{.*}}) (.*)$", page(client), re.MULTILINE)
    return [float(value) for line, value in lines if all(label in line for label in labels)]


def test_requests_are_counted_by_model_and_status(client):
    def counts():
        name = "serving:request_count"
        return [
            sum(values(client, name, 'model_name="measured"', f'status="{status}"'))
            for status in ("OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION")
        ]

    before = counts()
    client.predict("measured", {"x": np.float32([1])})
    assert client.post("measured:predict", {"instances": [1]})[0] == 200
    assert client.post("measured:predict", {})[0] == 400
    assert client.get("/measured")[0] == 200
    with pytest.raises(grpc.RpcError):
        client.predict("measured", {"x": np.float32([1])}, signature_name="none")
    with pytest.raises(grpc.RpcError):
        client.predict("measured", {"x": np.int32([1])})
    assert np.subtract(counts(), before).tolist() == [3, 2, 1]


def test_malformed_paths_and_preflights_have_no_model(client):
    name, labels = "serving:request_count", ('model_name=""', 'status="OK"')
    before = sum(values(client, name, *labels))
    client.http("OPTIONS", "/v1/models/measured:predict", headers={"Origin": "http://a"})
    client.http("POST", "/v1/models/measured:explode")
    assert sum(values(client, name, *labels)) == before + 1
    assert sum(values(client, name, 'model_name=""', 'status="INVALID_ARGUMENT"')) >= 1


def test_latencies_have_the_buckets_of_tensorflow_serving(client):
    client.predict("measured", {"x": np.float32([1])})
    client.predict("measured", {"seconds": np.float64([0.02])}, signature_name="sleep")
    client.post("measured:predict", {"instances": [1]})
    grpc_labels = 'model_name="measured",API="Predict",entrypoint="GRPC"'
    lines = page(client).splitlines()
    bucket = f":tensorflow:serving:request_latency_bucket{{{grpc_labels},le="
    bounds = [line.split('le="')[1].split('"')[0] for line in lines if line.startswith(bucket)]
    assert bounds[:4] == ["10", "18", "32.4", "58.32"]
    assert bounds[-2:] == [f"{10 * 1.8**32:.6g}", "+Inf"]
    assert len(bounds) == 34
    buckets = values(client, "serving:request_latency_bucket", grpc_labels)
    assert buckets == sorted(buckets)
    (count,) = values(client, "serving:request_latency_count", grpc_labels)
    assert buckets[-1] == count >= 2
    (total,) = values(client, "serving:request_latency_sum", grpc_labels)
    assert 20_000 <= total < 20e6
    assert values(client, "serving:request_latency_count", 'API="predict",entrypoint="REST"')
    runs = 'model_name="measured",API="Predict",runtime="TF1"'
    (count,) = values(client, "serving:runtime_latency_count", runs)
    assert count >= 3
    assert 20_000 <= values(client, "serving:runtime_latency_sum", runs)[0] <= total * 2


def test_loads_are_counted(client, base_paths):
    name = "cc:saved_model:load_attempt_count"
    path = base_paths["half"] / "7"
    assert values(client, name, f'model_path="{path}"', 'status="success"')[0] >= 1
    assert values(client, "cc:saved_model:load_latency", f'model_path="{path}"')[0] > 0


def test_the_page_is_valid_prometheus_text(client):
    names = []
    for line in page(client).splitlines():
        if line.startswith("#"):
            kind = re.fullmatch(r"# TYPE (:tensorflow:[a-z_:]+) (counter|histogram)", line)
            names.append(kind.group(1))
        else:
            sample = r'([a-z_:]+)\{((?:[a-zA-Z_]+="(?:[^"\\]|\\.)*",?)*)\} [0-9.e+]+'
            found = re.fullmatch(sample, line)
            assert found, line
            assert found.group(1).startswith(names[-1])
    assert names == sorted(set(names))


def test_the_page_at_another_path(base_paths, connect, tmp_path):
    config = tmp_path / "monitoring.config"
    config.write_text('prometheus_config { enable: true path: "/counts" }')
    with ModelServer("measured", base_paths["half"], grpc_port=None, rest_port=0,
                     monitoring_config_file=config) as server:  # fmt: skip
        client = connect(server)
        assert client.http("GET", "/counts")[0] == 200
        assert client.http("GET", PATH)[0] == 404
        status, headers, text = client.http("GET", "/counts?a=b")
        assert (status, headers["Content-Type"]) == (400, "text/plain")
        assert text == "Unexpected path: /counts?a=b. Should be /counts"
        client.close()


@pytest.mark.parametrize("text", [None, "", "prometheus_config { path: '/counts' }"])
def test_the_page_is_off_unless_asked_for(tmp_path, text):
    config = tmp_path / "monitoring.config"
    if text is not None:
        config.write_text(text)
    assert metrics.page_path(config if text is not None else None) is None


def test_a_bad_monitoring_config_is_refused(tmp_path):
    config = tmp_path / "monitoring.config"
    config.write_text("prometheus { }")
    with pytest.raises(ServingError) as caught:
        metrics.page_path(config)
    assert str(caught.value) == f"INVALID_ARGUMENT: Invalid protobuf file: '{config}'"


@pytest.fixture
def registry(monkeypatch):
    """A registry of the test's own."""
    made = []
    monkeypatch.setattr(metrics, "_METRICS", made)
    return made


def test_layout(registry):
    counter = metrics.Counter("/b/count", "model")
    counter.add(2, 'a"\\\n')
    counter.add(1, "")
    histogram = metrics.Histogram("/a/size", scale=1, growth=2.0, count=3)
    for value in (0, 1, 3.5, 4, 1e9):
        histogram.observe(value)
    assert metrics.page() == (
        "# TYPE :a:size histogram\n"
        ':a:size_bucket{le="1"} 1\n'
        ':a:size_bucket{le="2"} 2\n'
        ':a:size_bucket{le="4"} 3\n'
        ':a:size_bucket{le="+Inf"} 5\n'
        ":a:size_sum{} 1e+09\n"
        ":a:size_count{} 5\n"
        "# TYPE :b:count counter\n"
        ':b:count{model=""} 1\n'
        ':b:count{model="a\\"\\\\\\n"} 2\n'
    )
    assert (metrics.value("/b/count"), metrics.value("/a/size"), metrics.value("/c")) == (1, 0, 0)


def test_labels_from_requests_cannot_fill_the_memory(registry, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_CELLS", 3)
    counter = metrics.Counter("/count", "model")
    for index in range(10):
        counter.add(1, f"{index}" * 1000)
    assert counter.value("0" * metrics.MAX_LABEL) == 1
    assert counter.value("(other)") == 7
    assert len(metrics.page().splitlines()) == 5


def test_failed_loads_are_counted(registry):
    @metrics.count_loads
    def load(session, path):
        raise invalid_argument("no")

    before = metrics.LOAD_ATTEMPTS.value("/nowhere", "fail")
    with pytest.raises(ServingError):
        load(None, "/nowhere")
    assert metrics.LOAD_ATTEMPTS.value("/nowhere", "fail") == before + 1


def test_concurrent_counting_loses_nothing(registry):
    counter, histogram = metrics.Counter("/count", "a"), metrics.Histogram("/size")

    def work(_):
        for _ in range(2000):
            counter.add(1, "x")
            histogram.observe(20)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert (counter.value("x"), histogram.count()) == (8000, 8000)


def test_unknown_models_count_under_their_name(client):
    before = metrics.REQUEST_COUNT.value("nobody", Code.NOT_FOUND.name)
    assert client.post("nobody:predict", {"instances": [1]})[0] == 404
    assert metrics.REQUEST_COUNT.value("nobody", "NOT_FOUND") == before + 1
