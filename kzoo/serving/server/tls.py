"""gRPC over TLS and mutual TLS, as `--ssl_config_file` sets it up."""

import grpc

from kzoo.serving.server import text_proto
from kzoo.serving.server.errors import invalid_argument
from kzoo.serving.server.messages import SSLConfig


def server_credentials(path):
    """Returns the gRPC credentials of an SSLConfig file.

    The key and the certificates stand in the file as PEM text. With `client_verify` only clients
    with a certificate signed by `custom_ca` are let in; without it none is asked for one.

    Args:
        path: the file, in protobuf's text format.

    Raises:
        ServingError: the file cannot be read or parsed, or what it must hold is missing.
    """
    config = text_proto.read(path, SSLConfig())
    for field in ("server_key", "server_cert"):
        if "-----BEGIN" not in getattr(config, field):
            raise invalid_argument(f"`{field}` in {path} must be PEM text")
    if config.client_verify and not config.custom_ca:
        raise invalid_argument(f"`client_verify` in {path} needs `custom_ca`")
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )
