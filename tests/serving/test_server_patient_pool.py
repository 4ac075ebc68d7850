"""The threads of gRPC: held up by some tasks, they do not hold up the others."""

import threading

import pytest

from kzoo.serving.server.patient_pool import PatientPool


@pytest.fixture
def pool():
    made = PatientPool(threads=2, spares=8, name="test", patience=0.02)
    yield made
    made.shutdown()


def name_of_thread():
    return threading.current_thread().name


def test_a_few_threads_do_the_work(pool):
    names = {pool.submit(name_of_thread).result(timeout=5) for _ in range(20)}
    assert names <= {"test_0", "test_1"}


def test_what_waits_too_long_gets_a_thread_of_its_own(pool):
    never = threading.Event()
    stuck = [pool.submit(never.wait) for _ in range(2)]
    names = {future.result(timeout=5) for future in [pool.submit(name_of_thread) for _ in range(4)]}
    assert all(name.startswith("test-spare") for name in names)
    assert not any(future.done() for future in stuck)
    never.set()
    assert [future.result(timeout=5) for future in stuck] == [True, True]
    assert pool.submit(name_of_thread).result(timeout=5) in ("test_0", "test_1")


def test_every_task_runs_once(pool):
    """Also those that both kinds of threads were asked to run."""
    done, never = [], threading.Event()
    stuck = [pool.submit(never.wait, 0.05) for _ in range(2)]
    tasks = [pool.submit(lambda index=index: done.append(index)) for index in range(50)]
    for future in [*stuck, *tasks]:
        future.result(timeout=5)
    pool.shutdown()
    assert sorted(done) == list(range(50))


def test_errors_reach_the_future(pool):
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(timeout=5)


def test_shutdown(pool):
    never = threading.Event()
    stuck = [pool.submit(never.wait) for _ in range(2)]
    waiting = pool.submit(name_of_thread)
    pool.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(name_of_thread)
    never.set()
    assert all(future.result(timeout=5) for future in stuck)
