"""Threads for gRPC requests that no slow client can use up."""

import concurrent.futures
import contextlib
import functools
import threading
import time

_PATIENCE = 0.25


class PatientPool(concurrent.futures.Executor):
    """A few threads, and more of them only where the few are held up.

    grpc gives a request its thread when it begins, and the thread waits for the message: clients
    that send none would soon hold all of a few threads. One thread for each request costs a third
    of the throughput. Here a task that none of the few threads has begun after a while gets one of
    its own.

    Args:
        threads: how many run what is submitted.
        spares: how many tasks may have a thread of their own.
        name: prefix of the threads' names.
        patience: seconds that a task waits for one of the few.
    """

    def __init__(self, threads, spares, name, patience=_PATIENCE):
        self._regular = concurrent.futures.ThreadPoolExecutor(threads, name)
        self._spare = concurrent.futures.ThreadPoolExecutor(spares, f"{name}-spare")
        self._patience = patience
        self._waiting = {}  # {future: (when it was submitted, its work)}: taken by who begins it
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name=f"{name}-watch", daemon=True).start()

    def submit(self, function, /, *arguments, **keywords):
        future = concurrent.futures.Future()
        work = functools.partial(function, *arguments, **keywords)
        self._waiting[future] = time.monotonic(), work
        self._regular.submit(self._begin, future)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        self._closed.set()
        for future in list(self._waiting) if cancel_futures else ():
            future.cancel()
        for pool in (self._regular, self._spare):
            pool.shutdown(wait)

    def _begin(self, future):
        _, work = self._waiting.pop(future, (None, None))
        if work is None or not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _watch(self):
        handed_on = set()
        while not self._closed.wait(self._patience / 2):
            late = time.monotonic() - self._patience
            waiting = {future for future, (since, _) in list(self._waiting.items()) if since < late}
            with contextlib.suppress(RuntimeError):  # shut down meanwhile
                for future in waiting - handed_on:
                    self._spare.submit(self._begin, future)
            handed_on = waiting
