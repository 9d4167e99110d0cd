"""How an attempt at a request failed, in the same words on all lanes.

A lane knows whether a request left this process. Where it did and no answer came, a command that has effects may
have had them; where it did not, nothing happened. The errors built here say which, in `may_have_happened` and in
words.
"""

from __future__ import annotations

from typing import Optional, TypeVar, Union

from synap.commands import Command
from synap.errors import ConnectionError, SynapError, TimeoutError

__all__ = [
    "NotOffered",
    "closed",
    "failed",
    "lost",
    "no_sign",
    "out_of_room",
    "timed_out",
    "too_large",
    "unanswered",
    "why",
]

Failure = TypeVar("Failure", bound=ConnectionError)


class NotOffered(ConnectionError):
    """The server is there and doesn't offer the native lane (an older one, a proxy). Nothing was sent."""


def why(error: Optional[BaseException]) -> str:
    """Say in a few words what went wrong below; never empty."""
    if error is None:
        return "the other side closed the connection"
    if isinstance(error, SynapError):
        return error.message
    text = getattr(error, "strerror", None) or str(error)
    return str(text) or type(error).__name__


def failed(place: str, reason: Union[str, BaseException]) -> ConnectionError:
    """Build `CONNECTION_FAILED`: no connection to `place`, so nothing was sent."""
    text = reason if isinstance(reason, str) else why(reason)
    return ConnectionError("CONNECTION_FAILED", f"no connection to {place}: {text}; nothing was sent", {"place": place})


def unanswered(place: str, seconds: float) -> TimeoutError:
    """Build `TIMEOUT`: `place` did not take up a connection within `seconds`, so nothing was sent."""
    text = f"no connection to {place}: no answer within {seconds:g} seconds; nothing was sent"
    return TimeoutError("TIMEOUT", text, {"place": place})


def lost(command: Command, sent: bool, reason: Union[str, BaseException, None]) -> ConnectionError:
    """Build `CONNECTION_LOST`: the connection ended before the answer to `command` came."""
    text = reason if isinstance(reason, str) else why(reason)
    return _uncertain(
        ConnectionError("CONNECTION_LOST", f"the connection was lost before {command.name} was answered: {text}", {}),
        command,
        sent,
    )


def timed_out(command: Command, sent: bool, seconds: Optional[float]) -> TimeoutError:
    """Build `TIMEOUT`: no answer to `command` within `seconds`."""
    within = "" if seconds is None else f" within {seconds:g} seconds"
    return _uncertain(TimeoutError("TIMEOUT", f"{command.name} was not answered{within}", {}), command, sent)


def out_of_room(command: Optional[Command], seconds: Optional[float]) -> TimeoutError:
    """Build `TIMEOUT`: no connection became free, or took more data, within `seconds`, so nothing was sent."""
    what = "a request" if command is None else command.name
    within = "" if seconds is None else f" within {seconds:g} seconds"
    return TimeoutError("TIMEOUT", f"{what} could not be sent{within}: all connections are busy; nothing was sent", {})


def no_sign(seconds: float) -> TimeoutError:
    """Build `TIMEOUT`: the service was asked for a sign of life."""
    return TimeoutError("TIMEOUT", f"the service gave no sign within {seconds:g} seconds", {})


def closed() -> ConnectionError:
    """Build the error for a client that was used after `close()`."""
    return ConnectionError(
        "CONNECTION_FAILED", "this client is closed, make a new one; nothing was sent", {"closed": True}
    )


def too_large(size: int, limit: int) -> SynapError:
    """Build `PAYLOAD_TOO_LARGE` for a request that is not even sent."""
    return SynapError(
        "PAYLOAD_TOO_LARGE",
        f"a request may have {limit} bytes, this one has {size}; nothing was sent",
        {"limit": limit},
    )


def _uncertain(error: Failure, command: Command, sent: bool) -> Failure:
    if command.has_effects:
        error.may_have_happened = sent
        error.message += "; it may have taken effect" if sent else "; nothing was changed"
        error.args = (error.code, error.message, error.details)
    return error
