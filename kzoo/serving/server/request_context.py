"""What the thread is answering: which API, and how long that may still take.

Set where a request arrives, read where its graph runs; in between nobody has to pass it on. A
thread without a request (a load, a batch of many requests) has no deadline.
"""

import threading
import time


class _Request(threading.local):
    api = "Predict"
    end = None


_REQUEST = _Request()


def begin(api, seconds):
    """This thread answers a new request.

    Args:
        api: "Predict", "Classify", "Regress", ...
        seconds: what is left of its time; None for no limit.
    """
    _REQUEST.api = api
    _REQUEST.end = None if seconds is None else time.monotonic() + seconds


def api():
    """Returns the API of the thread's request."""
    return _REQUEST.api


def remaining_ms():
    """Returns the milliseconds left, at least 1; None without a deadline."""
    if _REQUEST.end is None:
        return None
    return max(1, round(1000 * (_REQUEST.end - time.monotonic())))
