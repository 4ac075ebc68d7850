"""Loads the versions that the configuration wants, keeps them current, finds one for a request.

Requests read a dictionary that is replaced, never changed: they take no lock, and each keeps the
version it started on. A new version is loaded before the old one goes; a version that cannot be
loaded leaves the old one in place.
"""

import logging
import threading
import weakref
from dataclasses import dataclass

from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from kzoo.serving.server import config as configuration
from kzoo.serving.server.errors import (
    Code,
    ServingError,
    invalid_argument,
    not_found,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionState:
    """What GetModelStatus reports: a `ModelVersionStatus.State` and the error, if any."""

    state: int
    error: ServingError | None = None


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
        self._models = configuration.validated_models(configuration.read(options))
        self._poll_seconds = options.file_system_poll_wait_seconds
        self._allow_any_label = options.allow_version_labels_for_unavailable_models
        self._load_version = load
        self._available = {name: {} for name in self._models}
        self._states = {name: {} for name in self._models}
        self._updating = threading.Lock()
        self._stopped = threading.Event()
        self._thread = None

    def start(self):
        """Loads all models, then watches the file system.

        Raises:
            ServingError: a model has no version, or none of its versions could be loaded.
        """
        self._check_labels()
        for model in self._models.values():
            aspired = configuration.aspired_versions(model)
            if not aspired:
                raise not_found(
                    f"Unable to find a numerical version path for servable {model.name} at: "
                    f"{model.base_path}"
                )
            self._update(model, aspired)
        self._check_available()
        if self._poll_seconds > 0:
            self._thread = threading.Thread(target=self._watch, name="kzoo-poll", daemon=True)
            self._thread.start()

    def stop(self):
        """Stops watching and lets go of all models."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        for name in self._models:
            for version in list(self._available[name]):
                self._unload(name, version)

    def poll(self):
        """Looks at every base path once; loads and unloads what has changed."""
        with self._updating:
            for model in self._models.values():
                try:
                    self._update(model, configuration.aspired_versions(model))
                except ServingError as error:
                    log.error("File system access error: %s", error.message)

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
            version = self._labelled(name, label)
        versions = self._available.get(name, {})
        wanted = max(versions, default=None) if version is None else version
        if wanted not in versions:
            request = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise not_found(f"Servable not found for request: {request}")
        return versions[wanted]

    def states(self, name, version=None):
        """Returns [(version, VersionState)], newest first, of all versions or the one asked for.

        Raises:
            ServingError: NOT_FOUND.
        """
        states = dict(self._states.get(name, {}))
        if version is None:
            if not states:
                raise not_found(f"Could not find any versions of model {name}")
            return sorted(states.items(), reverse=True)
        if version not in states:
            raise not_found(f"Could not find version {version} of model {name}")
        return [(version, states[version])]

    def _labelled(self, name, label):
        labels = self._models[name].version_labels if name in self._models else {}
        if label not in labels:
            raise invalid_argument(f"Unrecognized servable version label: {label}")
        return labels[label]

    def _check_labels(self):
        for name, model in self._models.items():
            for version in model.version_labels.values():
                if not self._allow_any_label and version not in self._available[name]:
                    raise ServingError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {name}, which is "
                        "not currently available for inference",
                    )

    def _check_available(self):
        failures = [
            f"{{{{name: {name} version: {version}}} due to error: {state.error}}}, "
            for name, states in self._states.items()
            for version, state in states.items()
            if not self._available[name]
        ]
        if failures:
            count = sum(not versions for versions in self._available.values())
            raise ServingError(
                Code.UNKNOWN, f"{count} model(s) did not become available: {{{''.join(failures)}}}"
            )

    def _watch(self):
        while not self._stopped.wait(self._poll_seconds):
            try:
                self.poll()
            except Exception:
                log.exception("Looking for new versions failed; will try again.")

    def _update(self, model, aspired):
        name = model.name
        for version in sorted(aspired, reverse=True):
            # A version that failed stays failed until its directory goes away.
            if version not in self._available[name] and not self._has_failed(name, version):
                self._load(name, version, aspired[version])
        for version in self._states[name].keys() - aspired.keys():
            if self._has_failed(name, version):
                self._states[name][version] = VersionState(ModelVersionStatus.END)
        available = self._available[name]
        if not aspired or available.keys() & aspired.keys():
            for version in sorted(available.keys() - aspired.keys()):
                self._unload(name, version)

    def _has_failed(self, name, version):
        state = self._states[name].get(version)
        return state is not None and state.error is not None

    def _load(self, name, version, path):
        states = self._states[name]
        states[version] = VersionState(ModelVersionStatus.LOADING)
        log.info("Loading {name: %s version: %d} from %s", name, version, path)
        try:
            model = self._load_version(name, version, path)
        except ServingError as error:
            log.error("Servable {name: %s version: %d} cannot be loaded: %s", name, version, error)
            # A fresh error: the one caught holds on to the half-loaded model.
            fresh = ServingError(error.code, error.message)
            states[version] = VersionState(ModelVersionStatus.END, fresh)
            return
        self._available[name] = {**self._available[name], version: model}
        states[version] = VersionState(ModelVersionStatus.AVAILABLE)
        log.info("Serving {name: %s version: %d}", name, version)

    def _unload(self, name, version):
        states = self._states[name]
        remaining = dict(self._available[name])
        model = remaining.pop(version)
        states[version] = VersionState(ModelVersionStatus.UNLOADING)
        self._available[name] = remaining
        log.info("Unloading {name: %s version: %d}", name, version)
        # The last request that still runs on this version ends it.
        weakref.finalize(model, states.__setitem__, version, VersionState(ModelVersionStatus.END))
