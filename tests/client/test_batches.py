"""Chunks of rows: order, how many are under way, errors."""

import asyncio
import contextlib
import time

import numpy as np
import pytest

from kzoo.client import AsyncClient, Client, InvalidArgument, NotFound, ResourceExhausted
from tests.client.event_loop import wait

ROWS = np.arange(21, dtype=np.float32).reshape(7, 3)


def test_chunks_come_in_order(client, model):
    model.delay = 0.01
    chunks = list(client.predict_batches(ROWS, chunk=2))
    assert [len(chunk["double"]) for chunk in chunks] == [2, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([chunk["double"] for chunk in chunks]), 2 * ROWS)
    assert model.calls == {"predict": 4, "metadata": 1, "status": 0}


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_a_whole_in_chunks_is_the_whole(client, model, chunk):
    whole, parts = client.predict(ROWS), client.predict({"x": ROWS.tolist()}, chunk=chunk)
    assert list(whole) == list(parts)
    for name, array in whole.items():
        assert parts[name].dtype == array.dtype
        np.testing.assert_array_equal(parts[name], array)
    assert model.calls["predict"] == 1 + -(-7 // chunk)


def test_no_rows_are_one_chunk(client, model):
    result = client.predict({"text_bytes": [], "n": [], "flag": []}, "mixed", chunk=2)
    assert (result["n"].shape, result["n"].dtype) == ((0,), np.int64)
    assert model.calls["predict"] == 1


def test_targets_are_split_with_their_rows(client):
    target = np.arange(7) % 3
    whole = client.explain("path", ROWS, target=target)
    parts = client.explain("path", ROWS, target=target, chunk=3)
    np.testing.assert_array_equal(parts["target"], target)
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name])
    chunks = client.explain_batches("path", ROWS, target=1, chunk=4, outputs="target")
    assert [chunk["target"].tolist() for chunk in chunks] == [[1] * 4, [1] * 3]


@pytest.mark.parametrize("ahead", [1, 3])
def test_so_many_are_under_way_and_no_more(client, model, ahead):
    model.delay = 0.05
    assert len(list(client.predict_batches(ROWS, chunk=1, ahead=ahead))) == 7
    assert model.most_under_way == ahead


def test_inputs_are_read_when_their_turn_comes(client):
    """Of an endless source three batches are held: one that was taken, two under way."""
    drawn = []

    def batches():
        while True:
            drawn.append(np.full((2, 3), len(drawn), np.float32))
            yield drawn[-1]

    results = client.predict_batches(batches(), chunk=None, ahead=2)
    for index in range(4):
        np.testing.assert_array_equal(next(results)["double"], np.full((2, 3), 2 * index))
        assert len(drawn) == index + 2
    results.close()


def test_the_first_error_ends_it_and_names_the_chunk(client, model):
    bad = [ROWS[:2], ROWS[:2], ROWS[:, :2], ROWS[:2], ROWS[:2], ROWS[:2]]
    results = client.predict_batches(bad, chunk=None, ahead=2)
    np.testing.assert_array_equal(next(results)["double"], 2 * ROWS[:2])
    next(results)
    with pytest.raises(InvalidArgument, match=r"must have shape .* \(chunk 2\)$") as caught:
        next(results)
    assert caught.value.chunk == 2
    assert list(results) == []
    assert model.calls["predict"] <= 3


def test_errors_of_the_server_keep_their_class(client, model):
    model.failures = [("RESOURCE_EXHAUSTED", "too much")]
    with pytest.raises(ResourceExhausted) as caught:
        client.predict(ROWS, chunk=7)
    assert (caught.value.message, caught.value.chunk) == ("too much", 0)
    assert str(caught.value) == "RESOURCE_EXHAUSTED: too much (chunk 0)"
    with pytest.raises(NotFound, match="has no signature 'other'"):
        client.predict(ROWS, "other", chunk=2)


def test_a_client_goes_on_after_a_stream_that_was_left(client, model):
    model.delay = 0.02
    results = client.predict_batches(ROWS, chunk=1, ahead=3)
    next(results)
    results.close()
    np.testing.assert_array_equal(client.predict(ROWS)["double"], 2 * ROWS)
    assert model.calls["predict"] <= 6  # not the chunks whose turn had not come


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": {"x": ROWS, "y": ROWS[:2]}}, InvalidArgument, "Received: {'x': 7, 'y': 2}"),
        ({"inputs": 3.0}, InvalidArgument, "`inputs` must be an array or a list .*: float"),
        ({"inputs": iter([ROWS])}, InvalidArgument, "an iterable of batches goes with chunk=None"),
        ({"inputs": {"x": ROWS}, "chunk": None}, InvalidArgument, "must be an iterable of batches"),
        ({"chunk": 0}, ValueError, "`chunk` must be a positive integer. Received: 0"),
        ({"ahead": 1.5}, ValueError, "`ahead` must be a positive integer. Received: 1.5"),
    ],
)
@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_refuses_at_once_what_cannot_be_streamed(cls, arguments, error, message):
    client = cls("http://localhost:1", "digits")
    with pytest.raises(error, match=message):
        client.predict_batches(**{"inputs": ROWS, **arguments})


def test_a_target_for_each_row_must_fit(client):
    with pytest.raises(InvalidArgument, match="Received: {'inputs': 7, 'target': 2}"):
        client.explain("path", ROWS, target=[0, 1], chunk=3)


def test_outputs_that_are_not_per_row_cannot_be_put_together(client, model):
    cube = np.arange(4, dtype=np.float16).reshape(2, 2)
    model.predict = lambda signature, inputs: {"z": np.float64(inputs["y"].sum())}
    with pytest.raises(InvalidArgument, match=r"Output 'z' is not one per row: 1 rows gave .*\(\)"):
        client.predict(cube, "free", chunk=1)
    assert [float(part["z"]) for part in client.predict_batches(cube, 1, "free")] == [1, 5]


def test_asynchronous_sources_need_the_asynchronous_client(address):
    async def batches():
        for start in (0, 4):
            await asyncio.sleep(0)
            yield ROWS[start : start + 4]

    async def collect():
        async with AsyncClient(address, "digits") as client:
            results = client.predict_batches(batches(), chunk=None)
            return [result["double"] async for result in results]

    np.testing.assert_array_equal(np.concatenate(wait(collect())), 2 * ROWS)
    with Client(address, "digits") as client:
        with pytest.raises(InvalidArgument, match="iterable of batches. Received: async_generator"):
            client.predict_batches(batches(), chunk=None)


def test_a_stream_that_is_cancelled_takes_its_requests_back(address, model):
    model.delay = 0.2

    async def leave():
        async with AsyncClient(address, "digits") as client:
            await client.metadata()
            results = client.predict_batches(ROWS, chunk=1, ahead=3)
            before = asyncio.all_tasks()
            async with contextlib.aclosing(results):
                await anext(results)
            return asyncio.all_tasks() - before

    start = time.monotonic()
    assert not {task for task in wait(leave()) if not task.done()}
    assert time.monotonic() - start < 0.55
