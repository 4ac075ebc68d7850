"""Seconds and peak memory of one call, in any process on Linux."""

import ctypes
import gc
import time
from pathlib import Path


def timed(function, meter=None):
    """Calls `function` once.

    Args:
        function: takes no arguments.
        meter: `resident` or `allocated`, where the memory is asked for, too.

    Returns:
        (seconds, MiB at the peak of the call over what was held before; None without `meter`)
    """
    gc.collect()
    read = meter() if meter else None
    begin = time.perf_counter()
    function()
    seconds = time.perf_counter() - begin
    return seconds, read() if meter else None


def resident():
    """Starts to watch this process; the function that is returned reads the peak in MiB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    return lambda: _status("VmHWM") - before


def allocated():
    """As `resident`, of TensorFlow's allocator, which keeps what it once had from the system."""
    import tensorflow as tf

    device = "CPU:0"
    try:
        before = tf.config.experimental.get_memory_info(device)["current"]
        tf.config.experimental.reset_memory_stats(device)
    except ValueError:
        # Without oneDNN there is an allocator that gives back but does not count.
        return resident()
    return lambda: (tf.config.experimental.get_memory_info(device)["peak"] - before) / 2**20


def _status(name):
    """A line of the kernel's account of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024
