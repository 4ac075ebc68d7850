"""Certificates and keys of a client, for gRPC and REST alike."""

import pathlib
import ssl
import tempfile

_BEGIN = "-----BEGIN"


class Tls:
    """What a client trusts and how it proves who it is: PEM, as bytes or as the path of a file.

    Args:
        root_certificates: the authorities whose servers are trusted; None for the usual ones:
            the system's for REST, those that come with gRPC for gRPC.
        private_key: the client's own key, not encrypted, for servers that ask for one.
        certificate_chain: the certificates that belong to it.

    Raises:
        ValueError: one cannot be read, or key and certificates are not both given.
    """

    def __init__(self, root_certificates=None, private_key=None, certificate_chain=None):
        if (private_key is None) != (certificate_chain is None):
            given = "certificate_chain" if private_key is None else "private_key"
            raise ValueError(
                f"`private_key` and `certificate_chain` belong together. Received: only `{given}`"
            )
        self._root_certificates = _read("root_certificates", root_certificates)
        self._private_key = _read("private_key", private_key)
        self._certificate_chain = _read("certificate_chain", certificate_chain)

    def __bool__(self):
        return not (self._root_certificates is None and self._private_key is None)

    def context(self):
        """Returns the `ssl.SSLContext` of a client.

        Raises:
            ValueError: something is no PEM, or key and certificates are not of one another.
        """
        context = ssl.create_default_context(cadata=self._roots())
        if self._private_key is not None:
            self._load_identity(context)
        return context

    def channel_credentials(self):
        """Returns gRPC's credentials of a client; raises as `context`."""
        import grpc

        self.context()  # refuses what gRPC would not report before a connection fails
        return grpc.ssl_channel_credentials(
            self._root_certificates, self._private_key, self._certificate_chain
        )

    def _roots(self):
        """The authorities' certificates as text, each of them readable."""
        if self._root_certificates is None:
            return None
        try:
            text = self._root_certificates.decode("ascii")
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
        except (ssl.SSLError, ValueError) as problem:
            raise ValueError(f"`root_certificates` holds no PEM certificates: {problem}") from None
        return text

    def _load_identity(self, context):
        # OpenSSL's wrapper in the standard library takes the two as files only.
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder, name) for name in ("chain", "key")]
            for file, content in zip(
                files, (self._certificate_chain, self._private_key), strict=True
            ):
                file.touch(mode=0o600)
                file.write_bytes(content)
            try:
                context.load_cert_chain(*files, password="")  # without one OpenSSL would ask for it
            except (ssl.SSLError, ValueError) as problem:
                raise ValueError(
                    "`private_key` and `certificate_chain` must be PEM, of one key that is not "
                    f"encrypted. Received: {problem}"
                ) from None


def _read(name, value):
    """The bytes of an argument; a message never shows them, for they may be a key."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str) and _BEGIN in value:
        raise ValueError(f"`{name}` must be bytes or a path. Received: PEM as str")
    try:
        return pathlib.Path(value).read_bytes()
    except (OSError, TypeError) as problem:
        raise ValueError(f"`{name}` must be PEM bytes or the path of a file: {problem}") from None
