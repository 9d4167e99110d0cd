"""Build the errors of failed connections, with the same messages on every lane. Nothing was sent on them."""

from __future__ import annotations

from typing import Optional, Union

from synap.commands import Command
from synap.config import Target
from synap.errors import ConnectionError, TimeoutError
from synap.wire.outcomes import why

START_HINT = "nobody listens there; `synap serve` starts a service"
"""What to do where a service of this machine is looked for and isn't there."""
TLS_HINT = "a service that speaks TLS is reached by https://"
"""What may be wrong where a connection to http:// is closed before a byte came."""
CERTIFICATE_HINT = "if the service asks for certificates, it has got none that it takes: tls_cert, or --tls-cert"
"""What may be wrong where a connection to https:// is closed before a byte of an answer came."""
_CUT = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
_PLAIN_HINT = "if what answers there speaks no TLS, it is reached by http://"
_TLS_FAULTS = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
"""OpenSSL's words, by its version, for an answer that is not TLS."""
_CA_HINT = "tls_ca, or --tls-ca, names an authority of your own"
_UNKNOWN_SIGNERS = (18, 19, 20, 21)
"""OpenSSL's codes for a certificate whose signer is not trusted, or is not known."""


class NotOffered(ConnectionError):
    """The server answers and doesn't offer this transport (an older version, a proxy)."""


class HandshakeCut(ConnectionError):
    """The connection was closed before a byte of the handshake's answer came: a server that stops, or a proxy."""


def connect_failed(
    place: str, reason: Union[str, BaseException], *, target: Optional[Target] = None
) -> ConnectionError:
    """Build `CONNECTION_FAILED`: no connection to `place`, of `target` where that says more about the reason."""
    text = reason if isinstance(reason, str) else why(reason)
    if target is not None and target.local and isinstance(reason, ConnectionRefusedError):
        text += f" ({START_HINT})"
    elif target is not None and target.scheme == "https" and isinstance(reason, _CUT):
        text += f" ({CERTIFICATE_HINT})"
    elif getattr(reason, "reason", None) in _TLS_FAULTS:
        text += f" ({_PLAIN_HINT})"
    elif getattr(reason, "verify_code", None) in _UNKNOWN_SIGNERS:
        text += f" ({_CA_HINT})"
    return ConnectionError("CONNECTION_FAILED", f"no connection to {place}: {text}; nothing was sent", {"place": place})


def subscription_lost(reason: str) -> ConnectionError:
    """Build `CONNECTION_LOST` for a subscription whose connection has ended."""
    return ConnectionError("CONNECTION_LOST", f"the connection was lost: {reason}", {})


def loop_ended() -> ConnectionError:
    """Build `CONNECTION_LOST` for a subscription that can't go on: its event loop has ended, or cancelled its tasks."""
    return ConnectionError("CONNECTION_LOST", "the subscription's event loop has ended: subscribe again", {})


def connect_timed_out(place: str, seconds: float) -> TimeoutError:
    """Build `TIMEOUT`: no connection to `place` within `seconds`."""
    text = f"no connection to {place}: no answer within {seconds:g} seconds; nothing was sent"
    return TimeoutError("TIMEOUT", text, {"place": place})


def all_busy(command: Optional[Command], seconds: float) -> TimeoutError:
    """Build `TIMEOUT`: no connection became free, or took more data, within `seconds`."""
    what = "a request" if command is None else command.name
    text = f"{what} could not be sent within {seconds:g} seconds: all connections are busy; nothing was sent"
    return TimeoutError("TIMEOUT", text, {})


def ping_timed_out(seconds: float) -> TimeoutError:
    """Build `TIMEOUT`: a ping was not answered within `seconds`."""
    return TimeoutError("TIMEOUT", f"the service did not respond within {seconds:g} seconds", {})


def no_reader(error: RuntimeError) -> ConnectionError:
    """Build `CONNECTION_FAILED` for a subscription whose items no thread can be started for."""
    return ConnectionError("CONNECTION_FAILED", f"no thread to read with: {error}; nothing was sent", {})


def client_closed() -> ConnectionError:
    """Build the error for a client that is used after `close()`. `details` has `closed`, so that it is not retried."""
    return ConnectionError(
        "CONNECTION_FAILED", "this client is closed, make a new one; nothing was sent", {"closed": True}
    )
