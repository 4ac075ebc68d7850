"""What every version of every model is doing: the source of GetModelStatus, and of waiting."""

import threading
from dataclasses import dataclass

from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from kzoo.serving.server.errors import ServingError

AVAILABLE, END = ModelVersionStatus.AVAILABLE, ModelVersionStatus.END
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class VersionState:
    """What GetModelStatus reports: a `ModelVersionStatus.State` and the error, if any.

    `moment` orders the states of a board.
    """

    state: int
    error: ServingError | None = None
    moment: int = 0


class StateBoard:
    """The last state of every version there has been. Thread safe."""

    def __init__(self):
        self._changed = threading.Condition()
        self._states = {}
        self._moment = 0

    def publish(self, name, version, state, error=None):
        """Sets the state of a version and wakes all who wait."""
        with self._changed:
            self._moment += 1
            versions = self._states.setdefault(name, {})
            versions[version] = VersionState(state, error, self._moment)
            self._changed.notify_all()

    def now(self):
        """Returns the moment of the last change."""
        with self._changed:
            return self._moment

    def versions(self, name):
        """Returns {version: VersionState} of a model, newest first."""
        with self._changed:
            return dict(sorted(self._states.get(name, {}).items(), reverse=True))

    def outcome(self, name, since):
        """Returns (version, VersionState) of the newest version that is available or has ended.

        Only what changed after the moment `since` counts; None if there is no such version yet.
        """
        for version, state in self.versions(name).items():
            if state.moment > since and state.state in (AVAILABLE, END):
                return version, state
        return None

    def wait_for(self, condition, check):
        """Blocks until `condition()` holds, or until `check()`, called in between, raises."""
        # The condition may take locks of its own: it is asked outside of the board's.
        while True:
            asked = self.now()
            if condition():
                return
            check()
            with self._changed:
                if self._moment == asked:
                    self._changed.wait(_SECONDS_BETWEEN_LOOKS)
