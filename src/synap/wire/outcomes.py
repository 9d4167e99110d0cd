"""Build the errors of requests without a usable answer, with the same messages on every lane.

A client knows whether a request was sent. Where it was and no answer came, a command with effects may have had them;
where it wasn't, nothing happened. `may_have_happened` and the message say which.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, TypeVar, Union

import msgspec

from synap.commands import Command
from synap.errors import ConnectionError, SynapError, TimeoutError, add_to_message
from synap.wire.values import too_deep

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The exceptions of decoding a malformed body."""

Failure = TypeVar("Failure", bound=SynapError)


def why(error: Optional[BaseException]) -> str:
    """Return the message of a lower-level error; never empty."""
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
    return _with_certainty(ConnectionError("CONNECTION_LOST", message, {}), command, sent)


def unreadable(command: Command, error: BaseException) -> SynapError:
    """Build `CONNECTION_LOST` for a malformed answer to `command`, which may have been executed.

    A value that an earlier version stored deeper than this Python can read is `WRONG_TYPE`.
    """
    if isinstance(error, RecursionError):
        return _with_certainty(too_deep(), command, True)
    return lost(command, True, f"the answer is not one to {command.name}: {error}")


def decoded(command: Command, decode: Callable[[Any], Any], body: Any) -> Any:
    """Decode the body of an answer; raises the error of `unreadable` for a malformed one."""
    try:
        return decode(body)
    except UNREADABLE as error:
        raise unreadable(command, error) from None


def timed_out(command: Command, sent: bool, seconds: float) -> TimeoutError:
    """Build `TIMEOUT`: no answer to `command` within `seconds`."""
    error = TimeoutError("TIMEOUT", f"{command.name} was not answered within {seconds:g} seconds", {})
    return _with_certainty(error, command, sent)


def too_large(size: int, limit: int) -> SynapError:
    """Build `PAYLOAD_TOO_LARGE` for a request that is too large to be sent."""
    return SynapError(
        "PAYLOAD_TOO_LARGE",
        f"a request may have {limit} bytes, this one has {size}; nothing was sent",
        {"limit": limit},
    )


def _with_certainty(error: Failure, command: Command, sent: bool) -> Failure:
    if command.has_effects:
        error.may_have_happened = sent
        add_to_message(error, "; it may have taken effect" if sent else "; nothing was changed")
    return error
