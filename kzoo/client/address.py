"""Where a server is."""

import urllib.parse
from dataclasses import dataclass

FORMS = (
    '"host:port", "grpc://host:port", "grpcs://host:port", "unix:///path", "http://host:port" or '
    '"https://host:port"'
)


@dataclass(frozen=True)
class Address:
    """The parts of an address.

    Attributes:
        scheme: "grpc", "grpcs", "unix", "http" or "https".
        location: "host:port"; of a UNIX socket its path.
        prefix: path before REST's "/v1", for servers behind a gateway; empty, or without its
            last "/".
    """

    scheme: str
    location: str
    prefix: str = ""

    @property
    def is_rest(self):
        return self.scheme in ("http", "https")

    @property
    def is_secure(self):
        return self.scheme in ("grpcs", "https")

    @property
    def target(self):
        """The name under which gRPC knows it."""
        return f"unix:{self.location}" if self.scheme == "unix" else self.location

    @property
    def url(self):
        return self.target if self.scheme == "unix" else f"{self.scheme}://{self.location}"

    def url_of(self, call):
        """Returns where to send a `Call`: with REST's path; gRPC's is not part of it."""
        return self.url + call.path if self.is_rest else self.url


def parse_address(address):
    """Returns the `Address` of its text; raises a ValueError that lists the forms."""
    parsed = _parse(address) if isinstance(address, str) else None
    if parsed is None:
        raise ValueError(f"`address` must be {FORMS}. Received: {address!r}")
    return parsed


def _parse(address):
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        return Address("unix", path) if path and not path.startswith("//") else None
    try:
        url = urllib.parse.urlsplit(address if "://" in address else f"grpc://{address}")
        port = url.port
    except ValueError:  # a port that is no number
        return None
    parsed = Address(url.scheme, url.netloc, url.path.rstrip("/"))
    known = url.scheme in ("grpc", "grpcs", "http", "https")
    complete = url.hostname and (parsed.is_rest or (port and not url.path))
    extra = url.query or url.fragment or url.username is not None
    return parsed if known and complete and not extra else None
