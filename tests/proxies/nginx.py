"""nginx in front of a service, configured as its manual says."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Optional, Type
from urllib.parse import urlsplit

from synap.testing.ports import ReservedPort
from tests.helpers.patience import PATIENCE

__all__ = ["CERTS", "CONFIGURATIONS", "Nginx"]

CERTS = Path(__file__).parent.parent / "lanes" / "certs"

_UPGRADES = """
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
"""
_EVERYWHERE = f"    location / {{ proxy_pass http://synap; {_UPGRADES} }}\n"
_WEBSOCKET_ONLY = (
    "    location / { proxy_pass http://synap; proxy_http_version 1.1; }\n"
    f"    location /api/v1/ws {{ proxy_pass http://synap; {_UPGRADES} }}\n"
)
_NOWHERE = "    location / { proxy_pass http://synap; }\n"
CONFIGURATIONS = {
    "upgrade": (False, _EVERYWHERE),
    "websocket": (False, _WEBSOCKET_ONLY),
    "tls": (True, _EVERYWHERE),
    "tls-websocket": (True, _WEBSOCKET_ONLY),
    "neither": (False, _NOWHERE),
}
"""Whether nginx ends TLS, and its locations."""

_CONF = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
    upstream synap {{ server {behind}; }}
    server {{
        listen 127.0.0.1:{port}{tls};
        {certificate}
        proxy_set_header Host $host;
    {locations}
    }}
}}
"""


class Nginx:
    """nginx on a free loopback port."""

    def __init__(self, folder: Path, behind: str, configuration: str) -> None:
        tls, locations = CONFIGURATIONS[configuration]
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.folder = folder
        self._conf = folder / "nginx.conf"
        certificate = f"ssl_certificate {CERTS}/cert.pem; ssl_certificate_key {CERTS}/key.pem;" if tls else ""
        self._conf.write_text(
            _CONF.format(
                folder=folder,
                behind=urlsplit(behind).netloc,
                port=self.port,
                tls=" ssl" if tls else "",
                certificate=certificate,
                locations=locations,
            )
        )
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Nginx:
        self._process = subprocess.Popen(["nginx", "-p", str(self.folder), "-c", str(self._conf)])
        until = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, "nginx ended"
                assert time.monotonic() < until, "nginx doesn't listen"
                time.sleep(0.02)
            else:
                return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)

    def restart(self) -> None:
        """Cut all connections, and listen again."""
        self.__exit__(None, None, None)
        self.__enter__()
