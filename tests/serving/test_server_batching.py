"""Batching: requests of many clients run together, and each gets its own rows back."""

import concurrent.futures
import gc
import threading
import time
import weakref

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from kzoo.serving.server import (
    Code,
    ModelServer,
    ServingError,
    batching,
    batching_config,
    request_context,
)
from kzoo.serving.server.batch_scheduler import BatchScheduler
from kzoo.serving.server.batching import BatchedCall
from kzoo.serving.server.engine import LoadedModel
from kzoo.serving.server.options import ServerOptions

FULL = "max_batch_size { value: 8 } batch_timeout_micros { value: 10000000 }"
SECONDS = 20  # no call may take that long


class Rows(tf.Module):
    """Signatures that show with which other rows a row was run."""

    def __init__(self):
        super().__init__()
        row = tf.TensorSpec([None], tf.float32, "x")
        matrix = tf.TensorSpec([None, None], tf.float32, "matrix")
        text = tf.TensorSpec([None], tf.string, "text")
        self.endpoints = {
            "serving_default": tf.function(self._call, [row]),
            "again": tf.function(self._call, [row]),
            "pair": tf.function(self._pair, [row, matrix]),
            "text": tf.function(lambda text: {"copy": text, "copy_bytes": text}, [text]),
            "positive": tf.function(self._positive, [row]),
            "scalar": tf.function(lambda x: {"sum": tf.reduce_sum(x)}, [row]),
            "first": tf.function(lambda x: {"x": x[:1]}, [row]),
            "constant": tf.function(lambda: {"one": tf.constant([1.0])}, []),
        }

    @staticmethod
    def _call(x):
        rows = tf.fill(tf.shape(x), tf.size(x))
        return {"x": tf.identity(x), "rows": rows, "last": 0 * x + x[-1]}

    @staticmethod
    def _pair(x, matrix):
        return {"x": tf.identity(x), "matrix": tf.identity(matrix)}

    @staticmethod
    def _positive(x):
        with tf.control_dependencies([tf.debugging.assert_positive(x, "x must be positive")]):
            return {"root": tf.sqrt(x)}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base path with one version of `Rows`."""
    path = tmp_path_factory.mktemp("rows")
    module = Rows()
    tf.saved_model.save(module, str(path / "1"), signatures=module.endpoints)
    return path


@pytest.fixture
def batched(base, connect, tmp_path):
    """batched(parameters): a `Client` of a server with these BatchingParameters."""
    clients = []

    def start(parameters, path=base, **options):
        file = tmp_path / f"batching{len(clients)}.config"
        file.write_text(parameters)
        server = ModelServer(
            "rows",
            path,
            grpc_port=0,
            rest_port=0,
            enable_batching=True,
            batching_parameters_file=str(file),
            **{"grpc_max_threads": 32, "rest_api_num_threads": 32, **options},
        ).start()
        clients.append(connect(server))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
        client.server.stop(grace=0)


def at_once(function, arguments):
    """Calls the function with each of the arguments at the same time; returns what it returns."""
    with concurrent.futures.ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(function, arguments, timeout=SECONDS))


def rows(client, x, names=("x", "rows"), **spec):
    """The outputs of `Rows` over gRPC, as lists."""
    outputs = client.predict("rows", {"x": np.float32(x)}, names, **spec).outputs
    return {name: tf.make_ndarray(outputs[name]).tolist() for name in names}


def refused(function, *args, **kwargs):
    """The (code, message) of a `ServingError` or of a gRPC status."""
    try:
        answer = function(*args, **kwargs)
    except ServingError as error:
        return error.code, error.message
    except grpc.RpcError as error:
        return Code(error.code().value[0]), error.details()
    raise AssertionError(f"Answered {answer}")


# Which requests run together.


@pytest.mark.parametrize("sizes", [[1] * 8, [3, 1, 4]])
def test_grpc_requests_are_merged_and_split(batched, sizes):
    client = batched(FULL)
    inputs = [[10.0 * index + row for row in range(size)] for index, size in enumerate(sizes)]
    answers = at_once(lambda x: rows(client, x), inputs)
    assert answers == [{"x": x, "rows": [8] * len(x)} for x in inputs]


def test_rest_and_grpc_requests_share_a_batch(batched):
    client = batched(FULL)

    def ask(x):
        if x < 4:
            return rows(client, [x], ("x", "rows", "last"))
        status, answer = client.post("rows:predict", {"inputs": [x]})
        assert status == 200
        return answer["outputs"]

    answers = at_once(ask, range(8))
    (last,) = {answer["last"][0] for answer in answers}
    assert last in range(8)
    assert answers == [{"x": [x], "rows": [8], "last": [last]} for x in range(8)]


def test_an_output_filter_and_a_signature_have_queues_of_their_own(batched):
    client = batched(FULL.replace("10000000", "300000"))
    asked = [
        {"names": ("x", "rows")},
        {"names": ("rows", "x")},
        {"names": ("rows",)},
        {"names": ("rows",), "signature_name": "again"},
    ]
    answers = at_once(lambda options: rows(client, [1.0], **options)["rows"], asked)
    assert answers == [[2], [2], [1], [1]]


def test_a_batch_that_is_not_full_waits_for_the_timeout(batched):
    client = batched(FULL.replace("10000000", "200000"))
    start = time.monotonic()
    assert rows(client, [1.0])["rows"] == [1]
    assert 0.2 <= time.monotonic() - start < 5


def test_without_a_timeout_a_lone_request_does_not_wait(batched):
    client = batched("max_batch_size { value: 8 }")
    start = time.monotonic()
    for _ in range(20):
        assert rows(client, [1.0])["rows"] == [1]
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(("size", "padded"), [(1, 2), (2, 2), (3, 8)])
def test_padding_to_an_allowed_size_repeats_the_first_row_of_the_last_task(batched, size, padded):
    client = batched("max_batch_size { value: 8 } allowed_batch_sizes: [2, 8]")
    x = [5.0, 6.0, 7.0][:size]
    answer = rows(client, x, ("x", "rows", "last"))
    assert answer == {"x": x, "rows": [padded] * size, "last": [x[-1] if size == 2 else 5.0] * size}


def test_a_large_request_is_split_over_batches(batched):
    client = batched(
        "max_batch_size { value: 20 } enable_large_batch_splitting { value: true } "
        "max_execution_batch_size { value: 8 }"
    )
    x = [float(number) for number in range(20)]
    assert rows(client, x) == {"x": x, "rows": [8] * 16 + [4] * 4}


def test_strings_keep_their_zero_bytes(batched):
    client = batched("max_batch_size { value: 4 } batch_timeout_micros { value: 10000000 }")
    texts = [b"a\0", b"", b"\xff\0\0", b"dd"]

    def ask(text):
        spec = {"signature_name": "text"}
        return client.predict("rows", {"text": tf.make_tensor_proto([text])}, **spec).outputs

    for text, outputs in zip(texts, at_once(ask, texts), strict=True):
        assert list(outputs["copy"].string_val) == [text]


def test_random_rows_of_many_clients_are_never_mixed_up(batched):
    client = batched(
        "max_batch_size { value: 16 } allowed_batch_sizes: [4, 16] batch_timeout_micros "
        "{ value: 500 } num_batch_threads { value: 3 } max_enqueued_batches { value: 100 }"
    )

    def ask(seed):
        rng = np.random.default_rng(seed)
        shared = 0
        for _ in range(15):
            x = rng.normal(size=rng.integers(1, 6)).astype(np.float32).tolist()
            if seed % 2:
                answer = rows(client, x)
            else:
                status, document = client.post("rows:predict", {"inputs": x})
                assert status == 200
                answer = document["outputs"]
            np.testing.assert_array_equal(np.float32(answer["x"]), np.float32(x))
            shared += answer["rows"][0] > len(x)
        return shared

    assert sum(at_once(ask, range(16))) > 0


# What is refused.


@pytest.mark.parametrize(
    ("signature", "inputs", "expected"),
    [
        (
            "serving_default",
            {"x": np.float32(1)},
            (
                Code.INVALID_ARGUMENT,
                "Batching Run() input tensors must have at least one dimension",
            ),
        ),
        (
            "pair",
            {"x": np.float32([1]), "matrix": np.float32([[1], [2]])},
            (
                Code.INVALID_ARGUMENT,
                "Batching Run() input tensors must have equal 0th-dimension size",
            ),
        ),
        (
            "constant",
            {},
            (Code.INVALID_ARGUMENT, "Batching Run() must have at least one input tensor"),
        ),
        (
            "serving_default",
            {"x": np.zeros(9, np.float32)},
            (Code.INVALID_ARGUMENT, "Task size 9 is larger than maximum input batch size 8"),
        ),
        (
            "scalar",
            {"x": np.float32([1])},
            (Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions"),
        ),
        (
            "first",
            {"x": np.float32([1, 2])},
            (
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
                "sizes of the input tensors",
            ),
        ),
    ],
)
def test_what_cannot_be_batched(batched, signature, inputs, expected):
    client = batched("max_batch_size { value: 8 }")
    assert refused(client.predict, "rows", inputs, signature_name=signature) == expected


def test_an_error_in_a_batch_is_everybodys(batched):
    client = batched("max_batch_size { value: 3 } batch_timeout_micros { value: 10000000 }")

    def ask(x):
        spec = {"signature_name": "positive"}
        return refused(client.predict, "rows", {"x": np.float32([x])}, **spec)

    answers = at_once(ask, [1.0, -1.0, 2.0])
    assert {code for code, _ in answers} == {Code.INVALID_ARGUMENT}
    assert all("x must be positive" in message for _, message in answers)
    healthy = at_once(
        lambda x: client.predict("rows", {"x": np.float32([x])}, signature_name="positive"),
        [1.0, 4.0, 9.0],
    )
    assert [answer.outputs["root"].float_val[0] for answer in healthy] == [1, 2, 3]


def test_a_full_queue_answers_503(batched):
    client = batched(
        "max_batch_size { value: 1 } max_enqueued_batches { value: 1 } num_batch_threads "
        "{ value: 1 } thread_pool_name { value: 'one_of_a_kind' } "
    )
    together = threading.Barrier(12)

    def ask(x):
        together.wait(SECONDS)
        return client.post("rows:predict", {"instances": [x]})

    statuses = set()
    for _ in range(30):
        answers = at_once(ask, range(12))
        statuses |= {status for status, _ in answers}
        for x, (status, answer) in enumerate(answers):
            if status == 200:
                assert answer["predictions"][0]["x"] == x
            else:
                assert answer == {
                    "error": "The batch scheduling queue to which this task was submitted is full; "
                    "currently 1 batches enqueued and max_enqueued_batches is 1"
                }
        if 503 in statuses:
            break
    assert statuses == {200, 503}
    assert "one_of_a_kind_0" in {thread.name for thread in threading.enumerate()}


# The scheduler alone, around a Python function.


class Gate:
    """A function of arrays that waits to be opened; `seen` are the inputs of each call."""

    def __init__(self, is_open=False):
        self.open, self.entered = threading.Event(), threading.Event()
        self.seen = []
        if is_open:
            self.open.set()

    def __call__(self, *arrays):
        self.seen.append([array.copy() for array in arrays])
        self.entered.set()
        assert self.open.wait(SECONDS)
        return list(arrays)


@pytest.fixture
def pool():
    """A `BatchScheduler` with one thread."""
    scheduler = BatchScheduler(1, "test_batch")
    yield scheduler
    scheduler.close(SECONDS)
    assert not any(thread.name.startswith("test_batch") for thread in threading.enumerate())


def options(text):
    parameters = text_format.Parse(text, batching_config.BatchingParameters())
    return batching_config.queue_options(parameters)


def blocked(pool, text, gate):
    """A call of the gate whose only thread is busy with one row, and how to add others."""
    call = BatchedCall(pool, options(text), gate, ("x:0",))
    requests = concurrent.futures.ThreadPoolExecutor(32)
    first = requests.submit(call, np.array([0]))
    assert gate.entered.wait(SECONDS)

    def add(x):
        before = sum(len(batch.tasks) for batch in call._queue._batches)
        future = requests.submit(call, np.array(x))
        end = time.monotonic() + SECONDS
        while sum(len(batch.tasks) for batch in call._queue._batches) == before:
            assert not future.done(), future.result()
            assert time.monotonic() < end
            time.sleep(0.001)
        return future

    return call, first, add


def test_waiting_rows_are_grouped_in_order(pool):
    gate = Gate()
    _, first, add = blocked(pool, "max_batch_size { value: 3 }", gate)
    futures = [add([1]), add([2, 3]), add([4, 5]), add([6, 7]), add([8])]
    gate.open.set()
    assert [future.result()[0].tolist() for future in [first, *futures]] == [
        [0], [1], [2, 3], [4, 5], [6, 7], [8],
    ]  # fmt: skip
    assert [inputs[0].tolist() for inputs in gate.seen] == [[0], [1, 2, 3], [4, 5], [6, 7, 8]]


def test_splitting_fills_the_open_batch_first(pool):
    gate = Gate()
    text = (
        "max_batch_size { value: 9 } enable_large_batch_splitting { value: true } "
        "max_execution_batch_size { value: 4 }"
    )
    _, _, add = blocked(pool, text, gate)
    add([1])
    long = add([2, 3, 4, 5, 6, 7, 8, 9, 10])
    gate.open.set()
    assert long.result()[0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [len(inputs[0]) for inputs in gate.seen] == [1, 4, 4, 2]


def test_a_full_queue_with_splitting(pool):
    gate = Gate()
    text = (
        "max_batch_size { value: 9 } enable_large_batch_splitting { value: true } "
        "max_execution_batch_size { value: 4 } max_enqueued_batches { value: 2 }"
    )
    call, _, add = blocked(pool, text, gate)
    add([1, 2, 3, 4, 5])
    assert refused(call, np.arange(4)) == (
        Code.UNAVAILABLE,
        "The batch scheduling queue to which this task was submitted is full; task size is 4 but "
        "scheduling capacity is only 3 (num_enqueued_batches=2, max_enqueued_batches=2, "
        "open_batch_size=1, max_execution_batch_size=4)",
    )
    gate.open.set()
    assert call(np.arange(3))[0].tolist() == [0, 1, 2]


def test_queues_take_turns(pool):
    gate, order = Gate(), []
    _, _, add = blocked(pool, "max_batch_size { value: 1 } max_enqueued_batches { value: 9 }", gate)
    futures = [add([1]), add([2])]
    late = BatchedCall(pool, options(""), lambda x: order.append(len(gate.seen)) or [x], ("x:0",))
    with concurrent.futures.ThreadPoolExecutor(1) as requests:
        third = requests.submit(late, np.array([3]))
        while late._queue not in pool._waiting:
            time.sleep(0.001)
        gate.open.set()
        assert third.result(SECONDS)[0].tolist() == [3]
    assert [future.result()[0].tolist() for future in futures] == [[1], [2]]
    assert order == [2]  # after the first of the two that came before it


@pytest.mark.parametrize("sizes", [[0], [0, 0], [2, 0]])
def test_tasks_without_rows(pool, sizes):
    gate = Gate()
    _, _, add = blocked(pool, "max_batch_size { value: 4 } allowed_batch_sizes: 4", gate)
    futures = [add(np.arange(1, size + 1)) for size in sizes]
    gate.open.set()
    assert [len(future.result(SECONDS)[0]) for future in futures] == sizes
    assert gate.seen[1][0].tolist() == ([1, 2, 1, 1] if sum(sizes) else [])


def test_different_shapes_without_padding(pool):
    gate = Gate()
    _, first, add = blocked(pool, "", gate)
    futures = [add([[1, 2]]), add([[3]])]
    gate.open.set()
    assert first.result()[0].tolist() == [0]
    assert {refused(future.result) for future in futures} == {
        (
            Code.FAILED_PRECONDITION,
            "Tensors with name 'x:0' from different tasks have different shapes and padding is "
            "turned off. Set pad_variable_length_inputs to true, or ensure that all tensors with "
            "the same name have equal dimensions starting with the first dim.",
        )
    }


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([[1, 2, 3]], [[7], [8]], [[1, 2, 3], [7, 7, 7], [8, 7, 7]]),
        ([[[1, 2]]], [[[7], [8]]], [[[1, 2], [1, 1]], [[7, 7], [8, 7]]]),
        ([[b"a\0", b"b"]], [[b"c\0"]], [[b"a\0", b"b"], [b"c\0", b"c\0"]]),
    ],
)
def test_variable_lengths_are_padded_with_the_tasks_first_value(pool, left, right, expected):
    gate = Gate()
    _, _, add = blocked(pool, "pad_variable_length_inputs: true", gate)
    if isinstance(left[0][0], bytes):
        left, right = np.array(left, object), np.array(right, object)
    futures = [add(left), add(right)]
    gate.open.set()
    answers = [future.result()[0].tolist() for future in futures]
    assert [*answers[0], *answers[1]] == expected
    assert len(answers[0]) == len(left)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (np.zeros((1, 3)), np.zeros((1, 0)), "Got empty tensor in batch of non-empty tensors."),
        (np.zeros([1] * 7), None, "Only tensors with rank from 1 to 6 can be padded."),
    ],
)
def test_what_cannot_be_padded(pool, left, right, message):
    gate = Gate()
    _, _, add = blocked(pool, "pad_variable_length_inputs: true", gate)
    futures = [add(array) for array in (left, right) if array is not None]
    gate.open.set()
    assert {refused(future.result) for future in futures} == {(Code.INVALID_ARGUMENT, message)}


def test_an_unexpected_error_is_internal_and_the_thread_goes_on(pool):
    calls = []

    def fail_once(x):
        calls.append(x)
        if len(calls) == 1:
            raise KeyError("lost")
        return [x]

    call = BatchedCall(pool, options(""), fail_once, ("x:0",))
    assert refused(call, np.array([1])) == (Code.INTERNAL, "KeyError: 'lost'")
    assert call(np.array([2]))[0].tolist() == [2]


def test_closing_finishes_what_waits_and_takes_no_more(pool):
    gate = Gate()
    call, _, add = blocked(pool, "", gate)
    late = BatchedCall(pool, options(FULL), Gate(is_open=True), ("x:0",))
    waiting = add([1])
    with concurrent.futures.ThreadPoolExecutor(1) as requests:
        patient = requests.submit(late, np.array([2]))
        while late._queue not in pool._waiting:
            time.sleep(0.001)
        gate.open.set()
        pool.close(SECONDS)
        assert patient.result(1)[0].tolist() == [2]
    assert waiting.result(1)[0].tolist() == [1]
    assert refused(call, np.array([3]))[0] == Code.UNAVAILABLE


# The parameters.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: [2, 4]",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; "
            "expected 8",
        ),
        (
            "allowed_batch_sizes: 4",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; "
            "expected 1000",
        ),
        ("max_batch_size { value: 0 }", "input_batch_size_limit must be positive; was 0"),
        (
            "batch_timeout_micros { value: -1 }",
            "batch_timeout_micros must be non-negative; was -1",
        ),
        (
            "max_enqueued_batches {} enable_large_batch_splitting { value: true }",
            "max_enqueued_batches must be positive; was 0",
        ),
        (
            "max_batch_size { value: 8 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 16 }",
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater "
            "than or equal to max_execution_batch_size.1816",
        ),
    ],
)
def test_parameters_out_of_range(text, message):
    assert refused(options, text) == (Code.INVALID_ARGUMENT, message)


def test_defaults():
    assert options("") == batching_config.QueueOptions(1000, 0.0, 10, False, 1000, (), False)
    assert options("max_enqueued_batches {}").max_enqueued_batches == 1
    split = options("max_batch_size { value: 8 } enable_large_batch_splitting { value: true }")
    assert split.max_execution_batch_size == 8


def test_sizes_in_disorder_are_only_worth_a_warning(caplog):
    text = "max_batch_size { value: 8 } allowed_batch_sizes: [4, 2, 8]"
    assert options(text).allowed_batch_sizes == (4, 2, 8)
    assert "must be monotonically increasing" in caplog.text


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("max_batch_size: 8", Code.INVALID_ARGUMENT, "Invalid protobuf file: '{file}'"),
        ("batches: 8", Code.INVALID_ARGUMENT, "Invalid protobuf file: '{file}'"),
        (
            "num_batch_threads { value: 0 }",
            Code.INVALID_ARGUMENT,
            "num_batch_threads must be positive; was 0",
        ),
        (None, Code.NOT_FOUND, "{file}; No such file or directory"),
    ],
)
def test_a_server_with_a_bad_file_is_not_made(base, tmp_path, content, code, message):
    file = tmp_path / "batching.config"
    if content is not None:
        file.write_text(content)
    arguments = {"enable_batching": True, "batching_parameters_file": str(file)}
    answer = refused(ModelServer, "rows", base, **arguments)
    assert answer == (code, message.format(file=file))


def test_a_file_without_batching_is_refused():
    answer = refused(ServerOptions, base_path="/x", batching_parameters_file="/y")
    assert answer[0] == Code.INVALID_ARGUMENT
    assert "is set without setting" in answer[1]


def test_a_version_that_the_parameters_do_not_fit_is_not_loaded(batched):
    text = "max_batch_size { value: 8 } allowed_batch_sizes: 4"
    code, message = refused(batched, text, max_num_load_retries=0)
    assert code == Code.UNKNOWN
    assert "must match max_batch_size; last entry was 4; expected 8" in message


def test_per_model_parameters(batched, base, tmp_path):
    for name, text in {"1": None, "2": "max_batch_size { value: 2 }"}.items():
        version = tmp_path / "models" / name
        version.mkdir(parents=True)
        for file in (base / "1").iterdir():
            (version / file.name).symlink_to(file)
        if text is not None:
            (version / "batching_params.pbtxt").write_text(text)
    file = tmp_path / "models.config"
    file.write_text(
        f"model_config_list {{ config {{ name: 'rows' base_path: '{tmp_path / 'models'}' "
        "model_platform: 'tensorflow' model_version_policy { all {} } } }"
    )
    # The server's file would refuse three rows, but only its threads count.
    client = batched(
        "max_batch_size { value: 1 } thread_pool_name { value: 'common' }",
        path=None,
        model_config_file=file,
        enable_per_model_batching_parameters=True,
    )
    scalar = {"signature_name": "scalar"}
    x = {"x": np.float32([1, 2, 3])}
    assert client.predict("rows", x, version=1, **scalar).outputs["sum"].float_val[0] == 6
    assert rows(client, [1, 2], version=2)["rows"] == [2, 2]
    assert refused(client.predict, "rows", x, version=2) == (
        Code.INVALID_ARGUMENT,
        "Task size 3 is larger than maximum input batch size 2",
    )
    assert "common_0" in {thread.name for thread in threading.enumerate()}


# Versions that come and go.


def test_an_unloaded_version_finishes_its_queue_and_is_freed(base, tmp_path):
    file = tmp_path / "batching.config"
    file.write_text(FULL.replace("10000000", "300000"))
    settings = ServerOptions(
        base_path=str(base), enable_batching=True, batching_parameters_file=str(file)
    )
    batches = batching.Batching(settings)
    model = LoadedModel("rows", 1, str(base / "1"), settings, batches)
    freed, session = threading.Event(), weakref.ref(model._session)
    weakref.finalize(model, freed.set)
    x = {"x": np.float32([1])}
    refused(model.predict, "scalar", x)
    with concurrent.futures.ThreadPoolExecutor(1) as requests:
        patient = requests.submit(model.predict, "", x)
        while not batches._scheduler._waiting:
            time.sleep(0.001)
        gc.disable()  # the last reference must do, without the help of the collector
        try:
            del model
            assert not freed.is_set()
            assert patient.result(SECONDS)["rows"].tolist() == [1]
            assert freed.wait(SECONDS)
            end = time.monotonic() + SECONDS
            while session() is not None and time.monotonic() < end:
                time.sleep(0.001)
            assert session() is None
        finally:
            gc.enable()
    batches.close(SECONDS)


# Deadlines and metrics.


def test_a_batch_that_all_gave_up_is_not_run(pool):
    gate = Gate()
    call, _, _ = blocked(pool, "", gate)

    def impatient(x):
        request_context.begin("Predict", 0.05)
        return call(np.array([x]))

    with concurrent.futures.ThreadPoolExecutor(2) as requests:
        futures = [requests.submit(impatient, x) for x in (1, 2)]
        time.sleep(0.2)
        gate.open.set()
        assert {refused(future.result) for future in futures} == {
            (Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue")
        }
    assert len(gate.seen) == 1


@pytest.mark.parametrize(("seconds", "at_least"), [((1, 100), 50_000), ((1, None), None)])
def test_a_batch_has_the_last_of_its_deadlines(pool, seconds, at_least):
    left = []

    def measure(x):
        left.append(request_context.remaining_ms())
        return [x]

    call = BatchedCall(pool, options(FULL.replace("8", "2")), measure, ("x:0",))

    def ask(seconds):
        request_context.begin("Predict", seconds)
        return call(np.array([0]))

    at_once(ask, seconds)
    (remaining,) = left
    assert remaining is None if at_least is None else at_least < remaining <= 100_000


def test_metrics(pool):
    metrics = (batching.INPUT_SIZE, batching.PROCESSED_SIZE, batching.PADDING_SIZE)
    labels = ((), (), ("61",))
    before = [metric.count(*label) for metric, label in zip(metrics, labels, strict=True)]
    runs = batching.RUN_COUNT.value()
    text = "max_batch_size { value: 61 } allowed_batch_sizes: 61"
    call = BatchedCall(pool, options(text), lambda a, b: [a], ("a:0", "b:0"))
    call(np.arange(3), np.arange(3))
    after = [metric.count(*label) for metric, label in zip(metrics, labels, strict=True)]
    assert np.subtract(after, before).tolist() == [2, 1, 1]
    assert batching.RUN_COUNT.value() == runs + 1
    assert batching.QUEUING_LATENCY.count("") > 0
