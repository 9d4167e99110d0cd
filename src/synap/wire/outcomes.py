"""Build the errors of requests that got no usable answer, in the same words on every lane.

A client knows whether a request left this process. Where it did and no answer came, a command that has effects may have
had them; where it did not, nothing happened. `may_have_happened` and the message say which.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, TypeVar, Union

import msgspec

from synap.commands import Command
from synap.errors import ConnectionError, SynapError, TimeoutError, add_to_message
from synap.wire.values import too_deep

__all__ = ["UNREADABLE", "decoded", "lost", "timed_out", "too_large", "unreadable", "why"]

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises for a body that isn't what it should be."""

Failure = TypeVar("Failure", bound=SynapError)


def why(error: Optional[BaseException]) -> str:
    """Describe in a few words what went wrong below; never empty."""
    if error is None:
        return "the peer closed the connection"
    if isinstance(error, SynapError):
        return error.message
    text = getattr(error, "strerror", None) or str(error)
    return str(text) or type(error).__name__


def lost(command: Command, sent: bool, reason: Union[str, BaseException, None]) -> ConnectionError:
    """Build `CONNECTION_LOST`: the connection ended before the answer to `command` came."""
    text = reason if isinstance(reason, str) else why(reason)
    message = f"the connection was lost before {command.name} was answered: {text}"
    return _uncertain(ConnectionError("CONNECTION_LOST", message, {}), command, sent)


def unreadable(command: Command, error: BaseException) -> SynapError:
    """Build `CONNECTION_LOST` for an answer that is none to `command`; the command may have been done.

    What was stored deeper than this Python reads, by an earlier version, is `WRONG_TYPE`.
    """
    if isinstance(error, RecursionError):
        return _uncertain(too_deep(), command, True)
    return lost(command, True, f"the answer is not one to {command.name}: {error}")


def decoded(command: Command, decode: Callable[[Any], Any], body: Any) -> Any:
    """Decode the body of an answer; raises `unreadable` for one that isn't an answer to `command`."""
    try:
        return decode(body)
    except UNREADABLE as error:
        raise unreadable(command, error) from None


def timed_out(command: Command, sent: bool, seconds: Optional[float]) -> TimeoutError:
    """Build `TIMEOUT`: no answer to `command` within `seconds`."""
    within = "" if seconds is None else f" within {seconds:g} seconds"
    return _uncertain(TimeoutError("TIMEOUT", f"{command.name} was not answered{within}", {}), command, sent)


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
        add_to_message(error, "; it may have taken effect" if sent else "; nothing was changed")
    return error
