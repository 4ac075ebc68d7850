"""Which versions of which models serve: the configuration, the file system, the requests.

Requests read dictionaries that are replaced, never changed: they take no lock, and each keeps the
version it started on. `Lifecycle` does the loading and unloading, in the order that keeps a model
available; `StateBoard` tells what became of every version.

Where this manager is kinder than TensorFlow Serving's: a configuration that is refused leaves no
trace; an unreadable base path holds up its own model only; a configuration that arrives by request
is looked at even where the file system is not polled; and a reload stops waiting when nobody waits
for its answer.
"""

import logging
import os
import threading

from tensorflow_serving.config import model_server_config_pb2

from kzoo.serving.server import config as configuration
from kzoo.serving.server.errors import Code, ServingError, invalid_argument, not_found
from kzoo.serving.server.lifecycle import Lifecycle
from kzoo.serving.server.states import AVAILABLE, StateBoard

log = logging.getLogger(__name__)

_INITIAL_THREADS = 4 * (os.cpu_count() or 1)


class ModelManager:
    """The models of one server.

    Args:
        options: `ServerOptions`.
        load: function from (name, version, path) to what serves the version; it raises a
            `ServingError` if it cannot.

    Raises:
        ServingError: the configuration is invalid.
    """

    def __init__(self, options, load):
        self._options = options
        self._config = model_server_config_pb2.ModelServerConfig()
        self._initial = configuration.read(options)
        configuration.validated_models(self._initial)
        self._labels = {}
        self._complaints = {}
        self._board = StateBoard()
        self._lifecycle = Lifecycle(
            load,
            self._board,
            threads=options.num_load_threads,
            retries=options.max_num_load_retries,
            seconds=options.load_retry_interval_micros / 1e6,
        )
        self._reloading = threading.Lock()
        self._looking = threading.Lock()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._watchers = []

    def start(self):
        """Loads all models and waits for them, then follows the file system.

        Raises:
            ServingError: a model has no version and `fail_if_no_model_versions_found` is set, or
                could not be loaded.
        """
        self._lifecycle.start()
        self._watch(self._follow_file_system)
        with self._lifecycle.more_threads(_INITIAL_THREADS):
            self.reload(self._initial)
        options = self._options
        if options.model_config_file and options.model_config_file_poll_wait_seconds > 0:
            self._watch(self._follow_config_file)

    def stop(self):
        """Stops watching and lets go of all models."""
        self._stopped.set()
        self._wake.set()
        self._lifecycle.close()  # a watcher may be between two attempts to load
        for watcher in self._watchers:
            watcher.join()
        self._lifecycle.stop()

    def reload(self, config, gone=lambda: False, wait=True):
        """Serves exactly the models of a new configuration.

        Returns when the models that are new are available. A configuration that is refused changes
        nothing; a new model that cannot be loaded leaves the others of the configuration serving.

        Args:
            config: ModelServerConfig.
            gone: function that says that nobody waits for the answer any more.
            wait: False to return as soon as the configuration is accepted.

        Raises:
            ServingError: the configuration is invalid, a label names a version that does not
                serve (FAILED_PRECONDITION), or a new model could not be loaded (UNKNOWN).
        """
        self._acquire_reloading(gone)
        try:
            first = not self._config.WhichOneof("config")
            since = self._board.now()
            new = self._accept(config)
            if wait and new:
                self._await_models(new, since, gone, "servable" if first else "model")
            configuration.check_logging(config)
        finally:
            self._reloading.release()

    def poll(self):
        """Looks at every base path once; returns when what has changed is loaded."""
        self._look()
        self._lifecycle.advance()
        self._board.wait_for(self._lifecycle.idle, self._check_running)

    def find(self, name, version=None, label=None):
        """Returns what serves a request, as `load` made it.

        Args:
            name: the model's name.
            version: a version number; None for the latest, or for the one of `label`.
            label: a version label of the configuration.

        Raises:
            ServingError: NOT_FOUND, or INVALID_ARGUMENT for no name or an unknown label.
        """
        if not name:
            raise invalid_argument("ModelSpec has no name specified.")
        if label is not None:
            version = self._labels.get(name, {}).get(label)
            if version is None:
                raise invalid_argument(f"Unrecognized servable version label: {label}")
        versions = self._lifecycle.available.get(name, {})
        wanted = max(versions, default=None) if version is None else version
        if wanted not in versions:
            request = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise not_found(f"Servable not found for request: {request}")
        return versions[wanted]

    def serving(self):
        """Returns {name: ({version: what `load` made}, {label: version})} of all that serves."""
        return {
            name: (versions, self._labels.get(name, {}))
            for name, versions in sorted(self._lifecycle.available.items())
            if versions
        }

    def states(self, name, version=None):
        """Returns [(version, VersionState)], newest first, of all versions or the one asked for.

        Raises:
            ServingError: NOT_FOUND.
        """
        states = self._board.versions(name)
        if version is None:
            if not states:
                raise not_found(f"Could not find any versions of model {name}")
            return list(states.items())
        if version not in states:
            raise not_found(f"Could not find version {version} of model {name}")
        return [(version, states[version])]

    # ------------------------------------------------------------ configuration

    def _acquire_reloading(self, gone):
        while not self._reloading.acquire(timeout=0.1):
            self._check_waiting(gone)

    def _accept(self, config):
        """Makes a configuration the current one; returns the names of the models that are new."""
        configuration.check_transition(self._config, config)
        labels = self._checked_labels(config)
        configuration.check_platforms(config)
        if self._options.fail_if_no_model_versions_found:
            configuration.check_versions(config)
        old, new = configuration.models(self._config), configuration.models(config)
        with self._looking:
            self._config, self._labels = config, labels
            for name in old.keys() - new.keys():
                self._lifecycle.want(name, {})
        log.info("Serving the models: %s", ", ".join(new) or "none")
        self._wake.set()
        return new.keys() - old.keys()

    def _checked_labels(self, config):
        for name, model in configuration.models(config).items():
            for label, version in model.version_labels.items():
                if not self._may_label(name, label, version):
                    raise ServingError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {name}, which is "
                        "not currently available for inference",
                    )
        return {
            name: dict(model.version_labels) for name, model in configuration.models(config).items()
        }

    def _may_label(self, name, label, version):
        """Only a label that is new or stays may name a version that does not serve."""
        if self._options.allow_version_labels_for_unavailable_models and (
            self._labels.get(name, {}).get(label, version) == version
        ):
            return True
        state = self._board.versions(name).get(version)
        return state is not None and state.state == AVAILABLE

    def _await_models(self, names, since, gone, noun):
        def outcomes():
            return {name: self._board.outcome(name, since) for name in sorted(names)}

        self._board.wait_for(
            lambda: all(outcomes().values()), check=lambda: self._check_waiting(gone)
        )
        ended = {name: found for name, found in outcomes().items() if found[1].state != AVAILABLE}
        if ended:
            failures = "".join(_failure(name, *found) for name, found in ended.items())
            raise ServingError(
                Code.UNKNOWN, f"{len(ended)} {noun}(s) did not become available: {{{failures}}}"
            )

    def _check_waiting(self, gone):
        self._check_running()
        if gone():
            raise ServingError(Code.CANCELLED, "Nobody waits for the answer any more.")

    def _check_running(self):
        if self._stopped.is_set():
            raise ServingError(Code.UNAVAILABLE, "The server is shutting down.")

    # ------------------------------------------------------------ watching

    def _watch(self, follow):
        self._watchers.append(threading.Thread(target=follow, name="kzoo-watch", daemon=True))
        self._watchers[-1].start()

    def _follow_file_system(self):
        seconds = self._options.file_system_poll_wait_seconds
        while True:
            self._wake.wait(seconds if seconds > 0 and self._config.ByteSize() else None)
            self._wake.clear()
            if self._stopped.is_set():
                return
            try:
                if seconds >= 0:
                    self._look()
                self._lifecycle.advance()
            except Exception:
                log.exception("Looking for new versions failed; will try again.")

    def _look(self):
        """Asks for what the base paths hold now."""
        with self._looking:
            for name, model in configuration.models(self._config).items():
                try:
                    aspired = configuration.aspired_versions(model)
                except ServingError as error:
                    complaint = f"File system access error: {error.message}"
                else:
                    complaint = configuration.missing_versions(model, aspired)
                    self._lifecycle.want(name, aspired)
                self._complain(name, complaint)

    def _complain(self, name, complaint):
        """Logs what is wrong with a model's files, once."""
        if complaint != self._complaints.get(name):
            self._complaints[name] = complaint
            if complaint:
                log.warning(complaint)

    def _follow_config_file(self):
        options = self._options
        while not self._stopped.wait(options.model_config_file_poll_wait_seconds):
            try:
                config = configuration.read_config_file(options.model_config_file)
            except ServingError as error:
                log.error("Failed to read ModelServerConfig file: %s", error.message)
                continue
            try:
                if config != self._config:
                    self.reload(config, wait=False)
            except ServingError as error:
                log.error("Failed to reload %s: %s", options.model_config_file, error.message)


def _failure(name, version, state):
    reason = f" due to error: {state.error}" if state.error else ""
    return f"{{{{name: {name} version: {version}}}{reason}}}, "
