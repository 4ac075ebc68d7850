import shutil
import subprocess

import pytest

from kzoo.client import Client
from tests.client import servers
from tests.client.event_loop import Waiting


@pytest.fixture
def model():
    return servers.FakeModel()


@pytest.fixture(params=["grpc", "rest"])
def serve(request):
    """The context manager `serve(model, port=0)` that starts a server of either transport."""
    return servers.grpc_server if request.param == "grpc" else servers.rest_server


@pytest.fixture
def address(serve, model):
    with serve(model) as address:
        yield address


@pytest.fixture(params=[Client, Waiting], ids=["blocking", "async"])
def connect(request):
    """The class of client: `connect(address, model, ...)`."""
    return request.param


@pytest.fixture
def client(connect, address):
    with connect(address, model="digits") as client:
        yield client


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A folder with an authority's ca.crt, and the .crt and .key of a server and of a client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "client"):
        openssl(
            "req", *new_key, "-keyout", f"{name}.key", "-out", "request", "-subj", f"/CN={name}"
        )
        issued = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", "request", *issued, "-out", f"{name}.crt")
    return folder
