"""Forms batches of tasks and runs them on one pool of threads: TensorFlow's SharedBatchScheduler.

Tasks of one kind wait in one queue. Its last batch is open; it is due when it is full, or when its
first task has waited for the timeout and a thread is free. The threads take turns between the
queues. An idle thread sleeps until a task wakes it or the next timeout is up.
"""

import collections
import dataclasses
import itertools
import math
import threading
import time

from kzoo.serving.server.errors import Code, ServingError, invalid_argument

_FULL = "The batch scheduling queue to which this task was submitted is full; "


@dataclasses.dataclass(eq=False, slots=True)
class Task:
    """The inputs of one request, and in time its outputs.

    Args:
        inputs: arrays that share their first dimension.
        size: that dimension.
        deadline: the (monotonic) time after which nobody waits for the outputs.
    """

    inputs: tuple
    size: int
    deadline: float = math.inf
    enqueued: float = dataclasses.field(default_factory=time.monotonic)
    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    _outputs: list | None = None
    _failure: tuple | None = None  # not an exception, whose traceback would keep the model alive

    def succeed(self, outputs):
        """Hands over the outputs."""
        self._outputs = outputs
        self.done.set()

    def fail(self, code, message):
        """Hands over what becomes a `ServingError`."""
        self._failure = code, message
        self.done.set()

    def result(self):
        """Waits for the outputs.

        Raises:
            ServingError: the task has failed.
        """
        self.done.wait()
        if self._failure is not None:
            raise ServingError(*self._failure)
        return self._outputs

    def split(self, room, limit):
        """Returns the task in pieces: the first of at most `room` rows, others of `limit`."""
        bounds = [0, *range(room or limit, self.size, limit), self.size]
        return [
            dataclasses.replace(
                self,
                inputs=tuple(array[start:stop] for array in self.inputs),
                size=stop - start,
                done=threading.Event(),
            )
            for start, stop in itertools.pairwise(bounds)
        ]


class _Batch:
    """Tasks that run together; `start` is the time of the first."""

    def __init__(self):
        self.tasks = []
        self.size = 0
        self.start = None

    def add(self, task):
        if not self.tasks:
            self.start = time.monotonic()
        self.tasks.append(task)
        self.size += task.size


class BatchQueue:
    """Tasks of one kind; the scheduler's lock guards it.

    Args:
        options: `QueueOptions`.
    """

    def __init__(self, options):
        self._options = options
        self._batches = collections.deque([_Batch()])

    @property
    def due(self):
        """The time from which the first batch may run."""
        if len(self._batches) > 1 or self._room <= 0:
            return -math.inf
        return self._batches[0].start + self._options.batch_timeout_seconds

    def add(self, task):
        """Queues a task.

        Returns:
            The tasks that it became (more than one if it was split), and whether a batch has been
            begun or filled: there is something new to wait for.

        Raises:
            ServingError: it is too large, or the queue is full.
        """
        self._check_capacity(task.size)
        tasks, news = [task], False
        if self._options.enable_large_batch_splitting and task.size > self._room:
            tasks = task.split(self._room, self._options.max_execution_batch_size)
        for piece in tasks:
            if piece.size > self._room:
                self._batches.append(_Batch())
            news = news or not self._batches[-1].tasks
            self._batches[-1].add(piece)
        return tasks, news or self._room <= 0

    def pop(self):
        """Returns the tasks of the first batch; whether it is due is up to the caller."""
        tasks = self._batches.popleft().tasks
        if not self._batches:
            self._batches.append(_Batch())
        return tasks

    def __bool__(self):
        return bool(self._batches[0].tasks)

    @property
    def _room(self):
        return self._options.max_execution_batch_size - self._batches[-1].size

    def _check_capacity(self, size):
        options, count = self._options, len(self._batches)
        if size > options.max_batch_size:
            raise invalid_argument(
                f"Task size {size} is larger than maximum input batch size {options.max_batch_size}"
            )
        if not options.enable_large_batch_splitting:
            if size > self._room and count >= options.max_enqueued_batches:
                raise ServingError(
                    Code.UNAVAILABLE,
                    f"{_FULL}currently {count} batches enqueued and max_enqueued_batches is "
                    f"{options.max_enqueued_batches}",
                )
            return
        limit = options.max_execution_batch_size
        capacity = (options.max_enqueued_batches - count) * limit + self._room
        if size > capacity:
            raise ServingError(
                Code.UNAVAILABLE,
                f"{_FULL}task size is {size} but scheduling capacity is only {capacity} "
                f"(num_enqueued_batches={count}, "
                f"max_enqueued_batches={options.max_enqueued_batches}, "
                f"open_batch_size={limit - self._room}, max_execution_batch_size={limit})",
            )


class BatchScheduler:
    """The threads that run batches, and the queues that have some.

    A queue without tasks is not known here: it goes when its owner goes. Threads start when there
    is work and none of them is idle.

    Args:
        num_batch_threads: how many batches may run at once.
        thread_pool_name: prefix of the threads' names.
    """

    def __init__(self, num_batch_threads, thread_pool_name):
        self._limit = num_batch_threads
        self._name = thread_pool_name
        self._threads = []
        self._idle = 0
        self._work = threading.Condition(threading.Lock())
        self._waiting = {}  # queues with tasks, in the order of their turns, and who runs them
        self._closed = False

    def submit(self, queue, task, process):
        """Queues a task and returns at once.

        Args:
            queue: `BatchQueue`.
            task: `Task`.
            process: function of a list of tasks that lets each succeed or fail, and never raises;
                always the same for a queue.

        Returns:
            The tasks that it became; more than one if it was split.

        Raises:
            ServingError: the task is too large, its queue is full, or the scheduler is closed.
        """
        with self._work:
            if self._closed:
                raise ServingError(Code.UNAVAILABLE, "The batch scheduler has been shut down")
            tasks, news = queue.add(task)
            self._waiting.setdefault(queue, process)
            if news:
                self._wake()
        return tasks

    def close(self, timeout=None):
        """Takes no more tasks; waits up to `timeout` seconds for those that it has."""
        with self._work:
            self._closed = True
            self._work.notify_all()
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))

    def _wake(self):
        if self._idle:
            self._work.notify()
        elif len(self._threads) < self._limit:
            thread = threading.Thread(
                target=self._run, name=f"{self._name}_{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _run(self):
        while self._run_batch():
            pass

    def _run_batch(self):
        # In a frame of its own: an idle thread must not keep the model of its last batch alive.
        batch = self._next_batch()
        if batch is None:
            return False
        process, tasks = batch
        process(tasks)
        return True

    def _next_batch(self):
        """Waits for a batch; returns (process, tasks), or None once the scheduler is closed."""
        with self._work:
            while self._waiting or not self._closed:
                now = math.inf if self._closed else time.monotonic()
                due = [queue for queue in self._waiting if queue.due <= now]
                if due:
                    return self._take(due[0])
                self._sleep(min((queue.due - now for queue in self._waiting), default=None))
        return None

    def _take(self, queue):
        tasks, process = queue.pop(), self._waiting.pop(queue)
        if queue:
            self._waiting[queue] = process  # behind all others
        if self._waiting:
            self._wake()  # whoever watched their timeouts may be this thread
        return process, tasks

    def _sleep(self, seconds):
        self._idle += 1
        try:
            self._work.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
        finally:
            self._idle -= 1
