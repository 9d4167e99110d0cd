"""Certificates for tests, made by the `openssl` command: an authority, and what it signs."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import List, NamedTuple

from tests.helpers.patience import PATIENCE

__all__ = ["Authority", "Signed"]


class Signed(NamedTuple):
    """Paths of a certificate and its key."""

    cert: str
    key: str


class Authority:
    """Signs certificates; `path` is its own."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self.path, self._key = str(folder / "ca.pem"), str(folder / "ca.key")
        usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        self._openssl(
            "req", "-x509", *self._new(self._key), "-days", "9", "-subj", f"/CN={name}", *usage, "-out", self.path
        )

    def sign(self, name: str, *, days: int = 9) -> Signed:
        """Make a certificate for a name, good for localhost too. Negative `days`: one that is over."""
        count = len(list(self._folder.glob("*.csr")))
        request, cert, key = (str(self._folder / f"{count}.{kind}") for kind in ("csr", "pem", "key"))
        self._openssl("req", *self._new(key), "-subj", f"/CN={name}", "-out", request)
        extension = self._folder / "extension"
        extension.write_text(
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        signer = ["-CA", self.path, "-CAkey", self._key, "-set_serial", str(count + 1), "-extfile", str(extension)]
        try:
            self._openssl("x509", "-req", "-in", request, *signer, "-days", str(days), "-out", cert)
        except subprocess.CalledProcessError:
            if days > 0:
                raise
            over = ["-not_before", "20200101000000Z", "-not_after", "20200102000000Z"]  # since OpenSSL 3.4
            self._openssl("x509", "-req", "-in", request, *signer, *over, "-out", cert)
        return Signed(cert, key)

    def context(self, own: Signed | None = None) -> ssl.SSLContext:
        """Make what a client speaks TLS with that trusts this authority, with a certificate of its own or without."""
        context = ssl.create_default_context(cafile=self.path)
        if own is not None:
            context.load_cert_chain(*own)
        return context

    @staticmethod
    def _new(key: str) -> List[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key]

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=PATIENCE)
