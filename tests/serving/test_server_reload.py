"""Configurations that come by request or by file, and the life of the versions behind them."""

import concurrent.futures
import threading
import time

import grpc
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2
from tensorflow_serving.config import model_server_config_pb2

from kzoo.serving.server import Code, ModelServer, ServingError
from kzoo.serving.server.config import aspired_versions
from kzoo.serving.server.lifecycle import Managed, Phase, next_action
from kzoo.serving.server.manager import ModelManager
from kzoo.serving.server.options import ServerOptions

LOADING, AVAILABLE, UNLOADING, END = 20, 30, 40, 50
INVALID, FAILED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def config_of(*models):
    """config_of((name, base path, {label: version}, versions), ...): a ModelServerConfig."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.SetInParent()
    for name, base_path, labels, versions in models:
        model = config.model_config_list.config.add(
            name=name, base_path=str(base_path), model_platform="tensorflow", version_labels=labels
        )
        if versions:
            model.model_version_policy.specific.versions.extend(versions)
    return config


@pytest.fixture
def serve(connect, tmp_path):
    """serve(config, **options): the `Client` of a server of a configuration file."""
    clients = []

    def start(config, **options):
        file = tmp_path / "models.config"
        file.write_text(str(config))
        defaults = {"grpc_port": 0, "rest_port": 0, "max_num_load_retries": 0}
        server = ModelServer(model_config_file=file, **{**defaults, **options}).start()
        clients.append(connect(server))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
        client.server.stop(grace=0)


def reload(client, config, metrics=(), timeout=20):
    request = model_management_pb2.ReloadConfigRequest(config=config, metric_names=metrics)
    return client.models.HandleReloadConfigRequest(request, timeout=timeout)


def refusal(client, config, timeout=20):
    with pytest.raises(grpc.RpcError) as caught:
        reload(client, config, timeout=timeout)
    return caught.value.code(), caught.value.details()


def states(client, name):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    entries = client.models.GetModelStatus(request).model_version_status
    return {entry.version: entry.state for entry in entries}


# ---------------------------------------------------------------- reload by request


def test_reload_applies_exactly_the_new_configuration(serve, base_paths):
    half, pair, text = (base_paths[name] for name in ("half", "pair", "text"))
    client = serve(config_of(("a", half, {}, ()), ("pair", pair, {}, ())))
    assert states(client, "a") == {7: AVAILABLE}
    response = reload(client, config_of(("a", half, {}, (2, 7)), ("text", text, {}, ())))
    assert response.HasField("status")
    assert response.status.error_code == Code.OK
    assert states(client, "text") == {1: AVAILABLE}  # new: the answer waited for it
    wait_for(lambda: states(client, "a") == {7: AVAILABLE, 2: AVAILABLE})
    wait_for(lambda: states(client, "pair") == {1: END})
    status, answer = client.post("pair:predict", {"instances": [0]})
    assert (status, answer["error"]) == (404, "Servable not found for request: Latest(pair)")
    reload(client, config_of(("a", half, {}, (2,))))
    wait_for(lambda: states(client, "a") == {7: END, 2: AVAILABLE})
    # An empty list serves nothing, and is a configuration like any other.
    reload(client, config_of())
    wait_for(lambda: states(client, "a") == {7: END, 2: END})
    reload(client, config_of(("a", half, {}, (7,))))
    assert states(client, "a") == {7: AVAILABLE, 2: END}


def test_reload_changes_base_paths(serve, base_paths, tmp_path, half_version):
    other = tmp_path / "other"
    other.mkdir()
    (other / "9").symlink_to(half_version(2.0))
    client = serve(config_of(("a", base_paths["half"], {}, ())))
    reload(client, config_of(("a", other, {}, ())))
    wait_for(lambda: states(client, "a") == {9: AVAILABLE, 7: END})


def test_reload_moves_labels_to_versions_that_serve(serve, base_paths):
    half = base_paths["half"]

    def labelled(**labels):
        return config_of(("half", half, labels, (2, 7)))

    client = serve(labelled())
    reload(client, labelled(stable=2, canary=7))
    assert client.half([0], version_label="stable") == [2.0]
    assert client.half([0], version_label="canary") == [3.0]
    reload(client, labelled(stable=7))
    assert client.half([0], version_label="stable") == [3.0]
    with pytest.raises(grpc.RpcError) as caught:
        client.half([0], version_label="canary")
    assert caught.value.details() == "Unrecognized servable version label: canary"
    assert refusal(client, labelled(stable=8)) == (
        FAILED,
        "Request to assign label to version 8 of model half, which is not currently available for "
        "inference",
    )
    assert client.half([0], version_label="stable") == [3.0]


def test_the_flag_allows_only_new_labels_of_unavailable_versions(serve, base_paths):
    half = base_paths["half"]
    client = serve(
        config_of(("half", half, {"stable": 7}, (2, 7))),
        allow_version_labels_for_unavailable_models=True,
    )
    reload(client, config_of(("half", half, {"stable": 7, "future": 8}, (2, 7))))
    status, answer = client.post("half/labels/future:predict", {"instances": [0]})
    assert (status, answer["error"]) == (404, "Servable not found for request: Specific(half, 8)")
    code, _ = refusal(client, config_of(("half", half, {"stable": 8}, (2, 7))))
    assert code == FAILED
    reload(client, config_of(("half", half, {"stable": 2}, (2, 7))))
    assert client.half([0], version_label="stable") == [2.0]


def _without_platform(config):
    config.model_config_list.config[0].model_platform = ""


def _other_platform(config):
    config.model_config_list.config[0].model_platform = "onnx"


def _twice(config):
    config.model_config_list.config.append(config.model_config_list.config[0])


def _relative(config):
    config.model_config_list.config[0].base_path = "models/half"


def _empty(config):
    config.Clear()


def _custom(config):
    config.custom_model_config.SetInParent()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_without_platform, "Illegal setting neither ModelServerConfig::model_type (deprecated) "
         "nor ModelServerConfig::model_platform, model name is half"),
        (_other_platform, "Illegal to change a model's platform. For model half platform was "
         "tensorflow and new platform requested is onnx"),
        (_twice, "Illegal to list model half multiple times in config list"),
        (_relative, "Expected model half to have an absolute path or URI; got base_path()="
         "models/half"),
        (_empty, "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
         "ModelConfigList is currently supported"),
        (_custom, "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
         "ModelConfigList is currently supported"),
    ],
)  # fmt: skip
def test_a_refused_configuration_changes_nothing(serve, base_paths, change, text):
    good = config_of(("half", base_paths["half"], {}, ()), ("pair", base_paths["pair"], {}, ()))
    client = serve(good)
    bad = config_of(("half", base_paths["half"], {}, (2,)))
    change(bad)
    assert refusal(client, bad) == (INVALID, text)
    reload(client, good)
    assert states(client, "half") == {7: AVAILABLE}
    assert states(client, "pair") == {1: AVAILABLE}


def test_reload_of_an_unknown_platform_and_a_missing_base_path(serve, base_paths, tmp_path):
    client = serve(config_of(("half", base_paths["half"], {}, ())))
    other = config_of(("new", base_paths["pair"], {}, ()))
    _other_platform(other)
    assert refusal(client, other) == (INVALID, "Model new requests unsupported platform onnx")
    nowhere = config_of(("new", tmp_path / "none", {}, ()))
    assert refusal(client, nowhere) == (
        INVALID,
        f"Could not find base path {tmp_path}/none for servable new with error NOT_FOUND: "
        f"{tmp_path}/none not found",
    )
    assert states(client, "half") == {7: AVAILABLE}


def test_a_new_model_that_cannot_be_loaded(serve, base_paths, tmp_path):
    """The answer says so; the rest of the configuration serves."""
    (tmp_path / "broken" / "3").mkdir(parents=True)
    client = serve(config_of(("half", base_paths["half"], {}, ())))
    models = [("bad", tmp_path / "broken", {}, ()), ("pair", base_paths["pair"], {}, ())]
    code, details = refusal(client, config_of(*models))
    assert code == grpc.StatusCode.UNKNOWN
    assert details.startswith(
        "1 model(s) did not become available: {{{name: bad version: 3} due to error: NOT_FOUND: "
        "Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
    )
    assert details.endswith("}, }")
    assert states(client, "bad") == {3: END}
    assert states(client, "pair") == {1: AVAILABLE}
    wait_for(lambda: states(client, "half") == {7: END})


def test_growth_of_metrics_is_reported(serve, base_paths):
    client = serve(config_of(("half", base_paths["half"], {}, ())))
    config = config_of(("half", base_paths["half"], {}, ()))
    response = reload(client, config, metrics=["/unknown", "/unknown"])
    assert [(m.name, m.int64_value_increase) for m in response.metric] == [("/unknown", 0)]


def test_a_reload_ends_with_its_client(serve, base_paths, tmp_path):
    """Without a version to load there is nothing to answer; the server must not wait for ever."""
    empty = tmp_path / "empty"
    empty.mkdir()
    half = ("half", base_paths["half"], {}, ())
    client = serve(
        config_of(half), fail_if_no_model_versions_found=False, file_system_poll_wait_seconds=0.05
    )
    code, _ = refusal(client, config_of(half, ("late", empty, {}, ())), timeout=0.3)
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    reload(client, config_of(half))  # which would wait for the first one's end
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(reload, client, config_of(half, ("late", empty, {}, ())))
        time.sleep(0.2)
        assert not answer.done()
        (empty / "1").symlink_to(base_paths["half"] / "7")
        assert answer.result().status.error_code == Code.OK
    assert states(client, "late") == {1: AVAILABLE}


def test_no_request_is_lost_while_configurations_change(serve, base_paths):
    half = base_paths["half"]
    client = serve(config_of(("half", half, {}, (2,))))
    answers, done = [], threading.Event()

    def ask():
        while not done.is_set():
            answers.append(client.half([0])[0])

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for version, answer in ((7, 3.0), (2, 2.0), (7, 3.0)):
                reload(client, config_of(("half", half, {}, (version,))))
                wait_for(lambda answer=answer: answers[-1:] == [answer])
        finally:
            done.set()
        for future in asking:
            future.result()
    assert set(answers) == {2.0, 3.0}


# ---------------------------------------------------------------- the configuration file


def test_the_configuration_file_is_followed(serve, base_paths, tmp_path, caplog):
    file = tmp_path / "models.config"
    half = ("half", base_paths["half"], {}, ())
    # Whole seconds only, in TensorFlow Serving; here the test need not wait so long.
    client = serve(config_of(half), model_config_file_poll_wait_seconds=0.02)

    def served(name):
        return client.get(f"/{name}")[0] == 200 and AVAILABLE in states(client, name).values()

    file.write_text("nonsense")
    wait_for(lambda: f"Invalid protobuf file: '{file}'" in caplog.text)
    assert served("half")
    file.write_text("")
    wait_for(lambda: "Cannot transition to requested config." in caplog.text)
    assert served("half")
    file.unlink()
    wait_for(lambda: "No such file or directory" in caplog.text)
    assert served("half")
    new = tmp_path / "new.config"
    new.write_text(str(config_of(("text", base_paths["text"], {}, ()))))
    new.rename(file)
    wait_for(lambda: served("text"))
    wait_for(lambda: states(client, "half") == {7: END})


def test_an_empty_configuration_waits_for_a_first_one(serve, base_paths):
    client = serve("")
    assert client.get("/half")[0] == 404
    reload(client, config_of(("half", base_paths["half"], {}, ())))
    assert client.half([0]) == [3.0]


# ---------------------------------------------------------------- loading


class Loader:
    """Stands in for the loading of SavedModels: fails as told, and remembers."""

    class Model:
        def __init__(self, version):
            self.version = version

    def __init__(self, failures=0, gate=None):
        self.failures = failures
        self.gate = gate
        self.calls = []
        self.busy = self.most_busy = 0
        self._lock = threading.Lock()

    def __call__(self, name, version, path):
        with self._lock:
            self.calls.append(version)
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
            fails = len(self.calls) <= self.failures
        if self.gate is not None:
            assert self.gate.wait(10)
        with self._lock:
            self.busy -= 1
        if fails:
            raise ServingError(Code.DATA_LOSS, f"attempt {len(self.calls)}")
        return self.Model(version)


@pytest.fixture
def folder(tmp_path):
    """folder(*names): a base path with these version directories."""

    def make(*names):
        for name in names:
            (tmp_path / "m" / name).mkdir(parents=True)
        return tmp_path / "m"

    return make


@pytest.fixture
def manage():
    """manage(load, base_path, **options): a `ModelManager`, stopped after the test."""
    managers = []

    def make(load, base_path, **options):
        options = ServerOptions(model_name="m", base_path=str(base_path), **options)
        managers.append(ModelManager(options, load))
        return managers[-1]

    yield make
    for manager in managers:
        manager.stop()


def state(manager, version):
    return dict(manager.states("m"))[version].state


def test_a_load_is_tried_again(manage, folder):
    load = Loader(failures=2)
    manager = manage(load, folder("1"), max_num_load_retries=2, load_retry_interval_micros=-1)
    manager.start()
    assert load.calls == [1, 1, 1]
    assert manager.find("m").version == 1


def test_retries_come_to_an_end(manage, folder):
    load = Loader(failures=9)
    manager = manage(load, folder("1"), max_num_load_retries=3, load_retry_interval_micros=100)
    with pytest.raises(ServingError) as caught:
        manager.start()
    assert load.calls == [1, 1, 1, 1]
    assert caught.value.code == Code.UNKNOWN
    assert caught.value.message == (
        "1 servable(s) did not become available: {{{name: m version: 1} due to error: "
        "DATA_LOSS: attempt 4}, }"
    )
    assert state(manager, 1) == END


def test_stopping_does_not_wait_for_retries(manage, folder):
    manager = manage(Loader(failures=9), folder("1"))  # a minute between the attempts
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        starting = pool.submit(manager.start)
        wait_for(lambda: manager._board.versions("m"))
        begin = time.monotonic()
        manager.stop()
        assert starting.exception().code in (Code.UNAVAILABLE, Code.UNKNOWN)
    assert time.monotonic() - begin < 5


def test_a_version_that_is_taken_away_is_not_tried_again(manage, folder):
    path = folder("1")
    load = Loader()
    manager = manage(load, path, file_system_poll_wait_seconds=0, num_load_threads=1)
    manager.start()
    load.failures = 9
    (path / "2").mkdir()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        polling = pool.submit(manager.poll)
        wait_for(lambda: load.calls == [1, 2])
        (path / "2").rmdir()
        manager.poll()
        polling.result()
    assert load.calls == [1, 2]
    assert state(manager, 2) == END
    assert manager.find("m").version == 1


def test_states_on_the_way(manage, folder):
    path, gate = folder("1"), threading.Event()
    load = Loader()
    manager = manage(load, path, file_system_poll_wait_seconds=0)
    manager.start()
    load.gate = gate
    (path / "2").mkdir()
    held = manager.find("m")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        polling = pool.submit(manager.poll)
        wait_for(lambda: load.busy)
        assert (state(manager, 1), state(manager, 2)) == (AVAILABLE, LOADING)
        assert manager.find("m").version == 1
        gate.set()
        polling.result()
    assert (state(manager, 1), state(manager, 2)) == (UNLOADING, AVAILABLE)
    assert manager.find("m").version == 2
    del held
    wait_for(lambda: state(manager, 1) == END)


@pytest.mark.parametrize(("threads", "at_once"), [(0, 1), (2, 2)])
def test_versions_load_one_after_another_or_in_a_pool(manage, folder, threads, at_once):
    path = folder("1")
    load = Loader()
    manager = manage(load, path, file_system_poll_wait_seconds=0, num_load_threads=threads)
    manager.start()
    config = config_of(("m", path, {}, ()))
    config.model_config_list.config[0].model_version_policy.all.SetInParent()
    load.gate = threading.Event()
    load.most_busy = 0
    for name in ("2", "3", "4"):
        (path / name).mkdir()
    manager.reload(config)
    wait_for(lambda: load.busy == at_once)
    load.gate.set()
    wait_for(lambda: all(s.state == AVAILABLE for _, s in manager.states("m")))
    assert load.calls == [1, 4, 3, 2]  # the newest first
    assert load.most_busy <= max(at_once, 1)
    assert [version for version, _ in manager.states("m")] == [4, 3, 2, 1]


def test_below_zero_the_file_system_is_not_looked_at(manage, folder):
    manager = manage(Loader(), folder("1"), file_system_poll_wait_seconds=-1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        starting = pool.submit(manager.start)
        with pytest.raises(concurrent.futures.TimeoutError):
            starting.result(timeout=0.3)
        manager.poll()
        starting.result(timeout=10)
    assert manager.find("m").version == 1


def test_an_unexpected_error_is_a_failed_load(manage, folder):
    def load(name, version, path):
        raise ZeroDivisionError("by zero")

    with pytest.raises(ServingError, match="INTERNAL: ZeroDivisionError: by zero"):
        manage(load, folder("1"), max_num_load_retries=0).start()


def test_a_bad_base_path_holds_up_its_own_model_only(manage, folder, tmp_path, caplog):
    path = folder("1")
    manager = manage(Loader(), path, file_system_poll_wait_seconds=0)
    manager.start()
    (tmp_path / "n" / "1").mkdir(parents=True)
    manager.reload(config_of(("m", path, {}, ()), ("n", tmp_path / "n", {}, ())))
    (tmp_path / "n").rename(tmp_path / "away")
    (path / "2").mkdir()
    manager.poll()
    manager.poll()
    assert (manager.find("m").version, manager.find("n").version) == (2, 1)
    assert caplog.text.count("Could not find base path") == 1


# ---------------------------------------------------------------- which versions


def test_the_action_that_keeps_a_model_available():
    def versions(*wanted_and_phases):
        made = []
        for number, (wanted, phase) in enumerate(wanted_and_phases, 1):
            version = Managed("m", number, "")
            version.phase = phase
            if not wanted:
                version.unwanted.set()
            made.append(version)
        return made

    def action(*wanted_and_phases):
        chosen = next_action(versions(*wanted_and_phases))
        return chosen and (chosen.number, chosen.phase.name)

    ready, new, failed, loading = Phase.READY, Phase.NEW, Phase.FAILED, Phase.LOADING
    assert action() is None
    assert action((True, new), (True, new)) == (2, "NEW")
    assert action((False, ready), (True, new)) == (2, "NEW")  # the old one stays meanwhile
    assert action((False, ready), (True, loading)) is None
    assert action((False, ready), (True, failed)) is None
    assert action((False, ready), (True, ready)) == (1, "READY")
    assert action((False, ready), (False, ready), (True, new)) == (1, "READY")  # one is enough
    assert action((False, ready), (False, ready)) == (1, "READY")  # none is wanted
    assert action((True, ready), (True, failed)) is None


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("", {"7": "7"}),
        ("latest { num_versions: 0 }", {"7": "7"}),
        ("latest { num_versions: 2 }", {"3": "3", "7": "7"}),
        ("latest { num_versions: 9 }", {"1": "0001", "3": "3", "7": "7"}),
        ("all {}", {"1": "0001", "3": "3", "7": "7"}),
        ("specific { versions: 1 versions: 3 versions: 1 versions: 99 }", {"1": "0001", "3": "3"}),
        ("specific {}", {}),
    ],
)
def test_policies_and_directory_names(folder, policy, wanted):
    path = folder("0001", "00003", "3", "7", "7.5", "-9", "+9", "8x", "\u0668", "9" * 20)
    (path / "11").write_text("a file")
    (path / "link").symlink_to(path / "7")
    text = f'name: "m" base_path: "{path}" model_version_policy {{ {policy} }}'
    found = aspired_versions(text_format.Parse(text, model_server_config_pb2.ModelConfig()))
    assert found == {int(number): str(path / name) for number, name in wanted.items()}


def test_a_version_may_be_a_link(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = folder("1")
    (path / "2").symlink_to(tmp_path / "elsewhere")
    model = model_server_config_pb2.ModelConfig(name="m", base_path=str(path))
    assert aspired_versions(model) == {2: str(path / "2")}
