"""Protection against requests of foreign web pages: which names the service answers to, and which origins it accepts.

Any page can make a browser send requests anywhere, and its owner can make a name resolve to this machine (DNS
rebinding), so that its pages can even read the responses. `Host`, `Origin` and `Sec-Fetch-Site` are checked on every
lane and for every path.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from synap.errors import PermissionDeniedError
from synap.server.settings import ServerConfig, is_loopback

SECURITY_HEADERS = [
    ("x-content-type-options", "nosniff"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
]
"""Headers of every response: no content sniffing, and no use by other sites."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+))(?::\d{1,5})?")
"""An address or a name, as browsers write it, and a port."""
_PORTS = {"http": 80, "https": 443}
_FOREIGN = "requests from other sites' web pages are not taken here"


class Origins:
    """The rules of one service. Without `allowed_hosts`, names are only checked where no key is required."""

    def __init__(self, config: ServerConfig) -> None:
        self._named = {name.lower() for name in config.allowed_hosts}
        self._open = config.keys_on and not self._named
        self._bound = config.host.lower()
        self._secure = config.tls_cert is not None

    def check(self, headers: Mapping[bytes, bytes], *, page: bool = False) -> None:
        """Raise `FORBIDDEN` for a request that a foreign page made a browser send.

        `page`: the request is for a page of the service, to which other sites may link.
        """
        host = headers.get(b"host")
        if host is not None and not self._open and not self._answers_to(host.decode("latin-1")):
            shown = host[:100].decode("latin-1")
            raise PermissionDeniedError(
                "FORBIDDEN",
                f"this service doesn't answer to {shown!r}; allowed_hosts (--allowed-host) says to which names",
            )
        site = headers.get(b"sec-fetch-site")
        linked = page and headers.get(b"sec-fetch-mode") == b"navigate"
        if site is not None and site not in (b"same-origin", b"none") and not linked:
            raise PermissionDeniedError("FORBIDDEN", _FOREIGN)
        origin = headers.get(b"origin")
        if origin is not None and not self._own(origin.decode("latin-1"), (host or b"").decode("latin-1")):
            raise PermissionDeniedError("FORBIDDEN", _FOREIGN)

    def _answers_to(self, host: str) -> bool:
        """Return whether `Host` names this service. Addresses and names without a dot do: nobody can register these."""
        if host.lower() in self._named:
            return True
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = (found[1] or found[2]).lower().rstrip(".")
        if name in self._named:
            return True
        if self._named and not is_loopback(name):
            return False
        return self._is_address(name) or "." not in name or name.endswith(".localhost") or name == self._bound

    @staticmethod
    def _is_address(name: str) -> bool:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _own(self, origin: str, host: str) -> bool:
        """Return whether a page's origin is the service's own: scheme, name and port.

        A proxy may terminate TLS, and may leave the port out of `Host`; then the rest is compared.
        """
        try:
            page, asked = urlsplit(origin), urlsplit(f"//{host}")
            port, named = page.port or _PORTS.get(page.scheme), asked.port
        except ValueError:
            return False
        if page.hostname is None or page.hostname != asked.hostname or page.scheme not in _PORTS:
            return False
        if self._secure and page.scheme != "https":
            return False
        return named is None or named == port
