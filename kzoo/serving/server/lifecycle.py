"""Loads and unloads versions until the wanted ones serve, and never leaves a model without one.

The rules are those of TensorFlow Serving's manager with its availability-preserving policy:

* a version that is no longer wanted goes once a wanted one serves, or if none is wanted, or if
  more than one unwanted version serves (the lowest first);
* of the wanted versions that are not loaded, the highest is loaded first;
* a version whose load failed stays failed until it is no longer wanted;
* a version that is wanted again while it unloads is loaded after it is gone. (TensorFlow Serving
  says so of versions that still serve, too: after a broken version was taken away it would not see
  the same number again.)

Unloading takes no thread: a request keeps its version alive, and the last one frees it.
"""

import concurrent.futures
import contextlib
import enum
import logging
import queue
import threading
import weakref

from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from kzoo.serving.server.errors import Code, ServingError

log = logging.getLogger(__name__)


class Phase(enum.Enum):
    """Where a managed version is."""

    NEW = enum.auto()
    LOADING = enum.auto()
    READY = enum.auto()
    UNLOADING = enum.auto()
    GONE = enum.auto()
    FAILED = enum.auto()


class Managed:
    """A version from the moment it is wanted to the moment it is gone."""

    def __init__(self, name, number, path):
        self.name = name
        self.number = number
        self.path = path
        self.phase = Phase.NEW
        self.unwanted = threading.Event()

    @property
    def wanted(self):
        return not self.unwanted.is_set()

    def __str__(self):
        return f"{{name: {self.name} version: {self.number}}}"


def next_action(versions):
    """Returns the version to unload or to load next, or None.

    Args:
        versions: all `Managed` versions of one model.

    Returns:
        A version in Phase.READY is to be unloaded, one in Phase.NEW to be loaded.
    """
    wanted = [version for version in versions if version.wanted]
    spare = [v for v in versions if not v.wanted and v.phase is Phase.READY]
    serving = any(version.phase is Phase.READY for version in wanted)
    if spare and (not wanted or serving or len(spare) > 1):
        return min(spare, key=lambda version: version.number)
    new = [version for version in wanted if version.phase is Phase.NEW]
    return max(new, key=lambda version: version.number, default=None)


class Lifecycle:
    """Manages the versions of all models. Thread safe.

    Args:
        load: function from (name, version, path) to what serves the version, which is held by
            nobody else than `available` and the requests; it raises a `ServingError` if it cannot.
        board: `StateBoard`.
        threads: how many versions are loaded at once; 0 loads in the thread that calls `advance`.
        retries: further attempts after a load that failed.
        seconds: pause before each of them.
    """

    def __init__(self, load, board, threads, retries, seconds):
        self.available = {}  # {name: {version: model}}: replaced, never changed
        self._load_version = load
        self._board = board
        self._threads = threads
        self._attempts = 1 + max(retries, 0)
        self._pause = max(seconds, 0)
        self._managed = {}  # {name: {version: Managed}}
        self._requested = {}  # {name: {version: path}} not yet looked at
        self._lock = threading.RLock()
        self._one_at_a_time = threading.Lock()
        self._pool = self._make_pool(threads)
        self._closed = False
        self._freed = queue.SimpleQueue()

    def start(self):
        """Begins to notice versions that the last request has left."""
        threading.Thread(target=self._clean_up, name="kzoo-unload", daemon=True).start()

    def want(self, name, versions):
        """Asks for exactly these versions, {number: path}, of a model; `advance` acts on it."""
        with self._lock:
            if not self._closed:
                self._requested[name] = versions

    def advance(self):
        """Loads and unloads what can be now."""
        while versions := self._take_actions():
            for version in versions:
                if version.phase is Phase.UNLOADING:
                    self._unload(version)
                else:
                    self._start_load(version)

    def idle(self):
        """Whether nothing is being loaded."""
        with self._lock:
            return all(v.phase is not Phase.LOADING for v in self._all())

    @contextlib.contextmanager
    def more_threads(self, count):
        """Loads by `count` threads inside the block, whose end waits for them."""
        initial, regular = self._make_pool(count), self._pool
        try:
            self._swap_pool(initial)
            yield
        except BaseException:
            self.close()
            raise
        finally:
            self._swap_pool(regular)
            initial.shutdown()

    def close(self):
        """Gives up what is being loaded, wants no version any more, and never will again."""
        with self._lock:
            self._closed = True
            self._requested.clear()
            for version in self._all():
                version.unwanted.set()

    def stop(self):
        """Closes, and lets go of all versions."""
        self.close()
        pool = self._swap_pool(None)
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        self.advance()
        self._freed.put(None)

    @staticmethod
    def _make_pool(threads):
        return concurrent.futures.ThreadPoolExecutor(threads, "kzoo-load") if threads else None

    def _swap_pool(self, pool):
        with self._lock:
            self._pool, previous = pool, self._pool
        return previous

    def _all(self):
        return [version for versions in self._managed.values() for version in versions.values()]

    # ------------------------------------------------------------ decisions, under the lock

    def _take_actions(self):
        """Returns at most one version per model, unloads first, already in its next phase."""
        with self._lock:
            self._forget()
            self._accept_requests()
            chosen = [next_action(versions.values()) for versions in self._managed.values()]
            unloads = [v for v in chosen if v is not None and v.phase is Phase.READY]
            loads = [v for v in chosen if v is not None and v.phase is Phase.NEW]
            for version in unloads:
                version.phase = Phase.UNLOADING
            for version in loads:
                version.phase = Phase.LOADING
            return unloads + loads

    def _forget(self):
        ended = (Phase.NEW, Phase.GONE, Phase.FAILED)
        for name, versions in self._managed.items():
            self._managed[name] = {
                number: version
                for number, version in versions.items()
                if version.wanted or version.phase not in ended
            }

    def _accept_requests(self):
        for name, versions in list(self._requested.items()):
            managed = self._managed.setdefault(name, {})
            again = [managed[n] for n in versions.keys() & managed.keys() if not managed[n].wanted]
            if any(v.phase is not Phase.READY or v.path != versions[v.number] for v in again):
                continue  # it has to be gone first
            del self._requested[name]
            for version in again:
                version.unwanted.clear()
            for number in managed.keys() - versions.keys():
                managed[number].unwanted.set()
            for number in versions.keys() - managed.keys():
                managed[number] = Managed(name, number, versions[number])
                self._board.publish(name, number, ModelVersionStatus.START)

    # ------------------------------------------------------------ loading

    def _start_load(self, version):
        with self._lock:
            if self._pool is not None:
                self._pool.submit(self._load_and_advance, version)
                return
        with self._one_at_a_time:
            self._load(version)

    def _load_and_advance(self, version):
        self._load(version)
        self.advance()

    def _load(self, version):
        self._board.publish(version.name, version.number, ModelVersionStatus.LOADING)
        log.info("Loading servable version %s from %s", version, version.path)
        model, error = self._try_to_load(version)
        with self._lock:
            if error is None and version.unwanted.is_set():
                error = ServingError(Code.CANCELLED, "Loading of servable cancelled")
            if error is not None:
                version.phase = Phase.FAILED
                self._board.publish(version.name, version.number, ModelVersionStatus.END, error)
                log.error("Servable %s cannot be loaded: %s", version, error)
                return
            versions = {**self.available.get(version.name, {}), version.number: model}
            self.available = {**self.available, version.name: versions}
            version.phase = Phase.READY
            self._board.publish(version.name, version.number, ModelVersionStatus.AVAILABLE)
        log.info("Successfully loaded servable version %s", version)

    def _try_to_load(self, version):
        """Returns (model, None) or (None, error)."""
        for attempt in range(self._attempts):
            if attempt:
                if version.unwanted.wait(self._pause):
                    break
                log.info("Retrying of Loading servable: %s retry: %d", version, attempt)
            try:
                return self._load_version(version.name, version.number, version.path), None
            except ServingError as caught:
                # A fresh error: the one caught holds on to the half-loaded model.
                error = ServingError(caught.code, caught.message)
            except Exception as caught:
                log.exception("Loading servable: %s failed", version)
                error = ServingError(Code.INTERNAL, f"{type(caught).__name__}: {caught}")
            log.error("Loading servable: %s failed: %s", version, error)
        return None, error

    # ------------------------------------------------------------ unloading

    def _unload(self, version):
        self._board.publish(version.name, version.number, ModelVersionStatus.UNLOADING)
        log.info("Unloading servable version %s", version)
        with self._lock:
            versions = dict(self.available[version.name])
            model = versions.pop(version.number)
            self.available = {**self.available, version.name: versions}
        # The callback may run anywhere, even inside a lock of this thread: it only leaves a note.
        weakref.finalize(model, self._freed.put, version).atexit = False

    def _clean_up(self):
        while (version := self._freed.get()) is not None:
            with self._lock:
                version.phase = Phase.GONE
            self._board.publish(version.name, version.number, ModelVersionStatus.END)
            log.info("Done unloading servable version %s", version)
            self.advance()
