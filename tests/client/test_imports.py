"""The promise to client machines: no TensorFlow; for REST nothing but NumPy."""

import pathlib
import subprocess
import sys

import kzoo

PROGRAM = """
import sys
from kzoo.client import AsyncClient, Client

def loaded():
    return {name.partition(".")[0] for name in sys.modules}

Client("http://localhost:8501", model="digits").close()
optional = {"aiohttp", "grpc", "google", "ml_dtypes", "keras", "tensorflow"}
assert not loaded() & optional, loaded()
AsyncClient("http://localhost:8501", model="digits")
assert loaded() & optional == {"aiohttp"}, loaded()
Client("localhost:8500", model="digits").close()
AsyncClient("localhost:8500", model="digits")
assert "grpc" in loaded()
assert not loaded() & {"keras", "tensorflow", "tensorflow_serving"}, loaded()

sys.modules["grpc"] = sys.modules["aiohttp"] = None
del sys.modules["kzoo.client.grpc_transport"], sys.modules["kzoo.client.async_rest"]
for cls, address in ((Client, "localhost:8500"), (AsyncClient, "http://localhost:8501")):
    try:
        cls(address, model="digits")
    except ModuleNotFoundError as error:
        assert "pip install kzoo[client]" in str(error), error
    else:
        raise AssertionError(f"no error of {cls} without its packages")
"""


def test_needs_no_tensorflow():
    root = pathlib.Path(kzoo.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
