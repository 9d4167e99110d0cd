"""TLS of the service: the context, which is made again when certificates change; and accepting connections."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from synap.config import openssl_said
from synap.errors import SynapError
from synap.server.settings import ServerConfig

if TYPE_CHECKING:
    from synap.server.service import Service

log = logging.getLogger("synap.server")

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20"
"""Default cipher suites of TLS 1.2: forward secrecy and authenticated encryption. Python's own default depends on how
it was built; Debian's has more."""
_OUT_OF_DATE = (9, 10)
"""OpenSSL's codes for a certificate that isn't valid yet, and for one that has expired."""
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Tls:
    """The TLS context. `reload` reads the files again for new connections; open ones are not affected."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.context = self._read()

    def reload(self) -> None:
        """Read the certificates again. Raises `INVALID_REQUEST` and keeps the old ones where that fails."""
        self.context = self._read()

    def _read(self) -> ssl.SSLContext:
        config = self._config
        assert config.tls_cert is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[config.tls_min_version]
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        option, path = "tls_cert", f"{config.tls_cert} with the key {config.tls_key}"
        try:
            context.load_cert_chain(config.tls_cert, config.tls_key, password=_no_password)
            option, path = "tls_ciphers", config.tls_ciphers or CIPHERS
            context.set_ciphers(path)
            if config.tls_client_ca is not None:
                option, path = "tls_client_ca", config.tls_client_ca
                context.load_verify_locations(config.tls_client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            option, path = "tls_cert", config.tls_cert
            fault = _fault(context, path)
        except (OSError, ValueError) as error:  # `ssl.SSLError` is an OSError
            text = f"{option}: {path} can't be used: {openssl_said(error)}"
            raise SynapError("INVALID_REQUEST", text, {"option": option}) from None
        if fault is not None:
            log.warning("tls_cert: clients refuse %s: %s", config.tls_cert, fault)
        return context


def _fault(context: ssl.SSLContext, path: str) -> str | None:
    """Return why clients refuse a certificate, by a handshake with ourselves: it has expired, or isn't valid yet."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(path)  # whoever signed it
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(back, there), context.wrap_bio(there, back, server_side=True)
    for side in sides * 2:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            return error.verify_message if error.verify_code in _OUT_OF_DATE else None
        except ssl.SSLError:
            return None
    return None


def _no_password() -> str:
    """Keep OpenSSL from asking for a password on the terminal."""
    raise ValueError("the key is encrypted; the service needs one that isn't")


LOOK = 4
"""Writes between two looks whether the peer has left. asyncio warns of each one after the fifth that it drops."""


class ClosedOnce:
    """A transport of a TLS connection that may be closed more than once, and closes once its peer has left.

    asyncio's own lets go of its connection when it is closed again: whatever it is asked then raises `AttributeError`,
    and nothing ends the connection but the peer, or half a minute. It also tells nobody of a peer that ends its TCP
    connection without TLS's own end, and for as long as that peer reads nothing it drops what is written.
    """

    __slots__ = ("_socket", "_transport", "_writes", "is_closing")

    def __init__(self, transport: Any, opened: socket.socket) -> None:
        self._transport = transport
        self._socket = opened
        self._writes = 0
        self.is_closing = transport.is_closing

    def write(self, data: Any) -> None:
        if not self._left():
            self._transport.write(data)

    def writelines(self, pieces: Iterable[Any]) -> None:
        if not self._left():
            self._transport.writelines(pieces)

    def _left(self) -> bool:
        """Return whether nothing can be written any more, and tell the protocol where it isn't told."""
        if self.is_closing():
            return True
        self._writes += 1
        if self._writes % LOOK:
            return False
        try:
            if self._socket.recv(1, socket.MSG_PEEK):
                return False
        except BlockingIOError:
            return False
        except OSError:  # a reset, or closed already
            pass
        self._transport.close()
        asyncio.get_running_loop().call_soon(self._transport.get_protocol().eof_received)  # not within a turn
        return True

    def close(self) -> None:
        if not self.is_closing():
            self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Secured(asyncio.Protocol):
    """Hands a connection whose handshake is over to its protocol, with a transport that knows more."""

    def __init__(self, protocol: asyncio.Protocol, opened: socket.socket) -> None:
        self._protocol = protocol
        self._opened = opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).set_protocol(self._protocol)
        self._protocol.connection_made(cast(asyncio.Transport, ClosedOnce(transport, self._opened)))


class Handshake:
    """An accepted connection during its TLS handshake. It counts as an open connection."""

    task: asyncio.Task[None]
    begun = False

    def shutdown(self) -> None:
        """Close it. (The name is uvicorn's.)"""
        self.task.cancel()


EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Why no connection can be accepted for a while."""
PAUSE = 1.0
"""Seconds of that while, and between two log lines about it."""


class Acceptor:
    """Accepts connections on one socket, and hands them to a protocol, after their TLS handshake where there is one.

    asyncio's own servers report a connection only after its handshake, so connections that never finish it could not be
    counted or ended. Out of descriptors, they log a traceback for each connection that might wait, every second.
    """

    def __init__(
        self, listening: socket.socket, service: Service, tls: Tls | None, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self._listening = listening
        self._service = service
        self._tls = tls
        self._protocol = protocol
        self._plain: set[asyncio.Task[None]] = set()
        """What hands connections over that have no handshake."""
        self._failed = 0
        """TLS handshakes that have failed since one was logged."""
        self._silent_until = 0.0
        self._task = asyncio.ensure_future(self._accept())

    def close(self) -> None:
        """Accept no more connections."""
        self._task.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                opened, peer = await loop.sock_accept(self._listening)
            except OSError as error:
                if error.errno in EXHAUSTED:
                    log.warning("no connection can be accepted for now: %s", error.strerror)
                    await asyncio.sleep(PAUSE)
                else:  # the peer is gone already
                    await asyncio.sleep(0)
                continue
            opened.setblocking(False)
            if self._tls is None:
                task = asyncio.ensure_future(self._connect(opened, peer, self._protocol))
                self._plain.add(task)
                task.add_done_callback(self._plain.discard)
                continue
            if self._service.full():
                opened.close()
                continue
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            handshake = Handshake()
            self._service.connections.add(handshake)
            self._service.strangers[handshake] = handshake.shutdown
            handshake.task = asyncio.ensure_future(self._secure(handshake, opened, peer))
            # Its own `finally` isn't enough: a task never begins where the service stops in this turn.
            handshake.task.add_done_callback(functools.partial(self._over, handshake, opened))

    def _over(self, handshake: Handshake, opened: socket.socket, task: asyncio.Task[None]) -> None:
        self._service.strangers.pop(handshake, None)
        if not handshake.begun:
            self._service.connections.discard(handshake)
            opened.close()

    async def _secure(self, handshake: Handshake, opened: socket.socket, peer: Any) -> None:
        assert self._tls is not None
        handshake.begun = True
        try:
            patience = self._service.config.handshake_timeout
            await self._connect(
                opened,
                peer,
                lambda: _Secured(self._protocol(), opened),
                ssl=self._tls.context,
                ssl_handshake_timeout=patience,
            )
        finally:
            self._service.connections.discard(handshake)

    async def _connect(
        self, opened: socket.socket, peer: Any, protocol: Callable[[], asyncio.Protocol], **tls: Any
    ) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, opened, **tls)
        except (OSError, EOFError, RuntimeError) as error:  # a reset; in a handshake nonsense or a timeout
            log.debug("no connection with a peer: %s", error)
            opened.close()
            if isinstance(error, ssl.SSLError):
                self._log_failed(peer, error)

    def _log_failed(self, peer: Any, error: ssl.SSLError) -> None:
        """Log a handshake that failed, one a minute: anybody can bring them about."""
        self._failed += 1
        now = asyncio.get_running_loop().time()
        if now < self._silent_until:
            return
        others = f", and {self._failed - 1} others since the last line about one" if self._failed > 1 else ""
        log.info("the TLS handshake of %s failed: %s%s", peer[0], getattr(error, "reason", None) or error, others)
        self._failed, self._silent_until = 0, now + 60


def common_name(transport: Any) -> str | None:
    """Return the name in the peer's certificate, which was verified; None where it has sent none."""
    certificate = transport.get_extra_info("peercert")
    if not certificate:
        return None
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return names[0] if names else None
