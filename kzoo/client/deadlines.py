"""The time a call may take, and the pauses before trying again within it."""

import random
import time

from kzoo.client.errors import error

FIRST_PAUSE = 0.1  # seconds; doubled for each further attempt, less up to half of it by chance


def check_timeout(timeout):
    """Raises a ValueError unless `timeout` is a positive number of seconds."""
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not number or not 0 < timeout < float("inf"):
        raise ValueError(f"`timeout` must be a positive number of seconds. Received: {timeout!r}")
    return timeout


class Deadline:
    """The moment at which a call, its retries included, must have ended."""

    def __init__(self, timeout):
        self.timeout = check_timeout(timeout)
        self._end = time.monotonic() + timeout

    def left(self):
        """Seconds left; raises `DeadlineExceeded` when there are none."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise self.exceeded()
        return seconds

    def allows(self, seconds):
        """Whether there is more time left than this."""
        return time.monotonic() + seconds < self._end

    def exceeded(self):
        """Returns the error of a call that has not ended in time."""
        return error("DEADLINE_EXCEEDED", f"No answer within {self.timeout:g} s.")


def pause_after(attempt):
    """Returns for how many seconds to wait after attempt 0, 1, ... found the server unavailable."""
    return FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.0)
