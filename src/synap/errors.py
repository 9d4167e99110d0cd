"""The error tree.

    SynapError                     code, message, details, may_have_happened
    ├── KeyNotFoundError           KEY_NOT_FOUND
    ├── QueueNotFoundError         QUEUE_NOT_FOUND
    ├── RoomNotFoundError          ROOM_NOT_FOUND
    ├── MessageNotFoundError       MESSAGE_NOT_FOUND
    ├── EventsLostError            EVENTS_LOST
    ├── AuthenticationError        UNAUTHORIZED
    ├── PermissionDeniedError      FORBIDDEN
    ├── RateLimitError             RATE_LIMIT_EXCEEDED
    ├── LockLostError              LOCK_LOST
    └── ConnectionError            CONNECTION_FAILED, CONNECTION_LOST   (a builtin ConnectionError too)
        └── TimeoutError           TIMEOUT                              (a builtin TimeoutError too)

Every other code is a plain `SynapError`. `CODES` is the table of codes, their HTTP status and their class;
`from_wire` builds the exception that belongs to an error envelope.
"""

from __future__ import annotations

import builtins
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple, Type, TypeVar

Same = TypeVar("Same", bound="SynapError")


class SynapError(Exception):
    """Base exception for all Synap errors.

    `code` is one of `CODES`; `message` says what was wrong and what is expected; `details` has data for programs
    (`retry_after` in seconds, the `key`, the `queue`, …).

    `may_have_happened` answers the question a failed write leaves open: True when the request may have taken
    effect although its answer never came, False when nothing changed.
    """

    code: str
    message: str
    details: Dict[str, Any]
    may_have_happened: bool = False

    def __init__(self, code: str, message: str, details: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(code, message, details)
        self.code = code
        self.message = message
        self.details = details or {}

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"

    def copy(self: Same) -> Same:
        """Return an equal error. Each raise needs its own, since an exception carries its traceback."""
        copy = type(self)(self.code, self.message, dict(self.details))
        copy.may_have_happened = self.may_have_happened
        return copy

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), (self.code, self.message, self.details), {"may_have_happened": self.may_have_happened}


class KeyNotFoundError(SynapError):
    """Raised when key doesn't exist; `details['key']` names it."""


class QueueNotFoundError(SynapError):
    """Raised when queue doesn't exist; `details['queue']` names it."""


class RoomNotFoundError(SynapError):
    """Raised when room doesn't exist; `details['room']` names it."""


class MessageNotFoundError(SynapError):
    """Raised when the caller doesn't hold a lease on the message (never did, or no longer does)."""


class EventsLostError(SynapError):
    """Raised when events of a room are gone; `details` holds `room`, `from` and `to` (both inclusive)."""


class AuthenticationError(SynapError):
    """Raised when the API key is missing or unknown."""


class PermissionDeniedError(SynapError):
    """Raised when the API key is known and not allowed to do this."""


class RateLimitError(SynapError):
    """Raised when rate limit exceeded; `details['retry_after']` is in seconds."""


class LockLostError(SynapError):
    """Raised when a lock was lost while it was held; `details` names the `lock` and the `fence` it had."""


class ConnectionError(SynapError, builtins.ConnectionError):
    """Raised on network/connection errors."""


class TimeoutError(ConnectionError, builtins.TimeoutError):
    """Raised when no answer came within the client's `timeout`."""


class Code(NamedTuple):
    """The HTTP status of an error code, its exception class, and advice for the caller."""

    status: int
    exception: Type[SynapError]
    advice: str


CODES: Mapping[str, Code] = {
    "INVALID_REQUEST": Code(
        400, SynapError, "Correct the call: the message says which part. The same request fails again."
    ),
    "INVALID_COMMAND": Code(
        400, SynapError, "Correct the name of the command, or upgrade the service, which may be older than the client."
    ),
    "UNAUTHORIZED": Code(
        401, AuthenticationError, "Give a key that the service knows: `api_key=`, `SYNAP_API_KEY` or `X-API-Key`."
    ),
    "FORBIDDEN": Code(
        403,
        PermissionDeniedError,
        "Use a key whose grants cover the command and the name, or have one made: `synap keys check`.",
    ),
    "KEY_NOT_FOUND": Code(
        404, KeyNotFoundError, "Go on as without the key: it was never set, was deleted, or has expired."
    ),
    "QUEUE_NOT_FOUND": Code(
        404,
        QueueNotFoundError,
        "Check the name: nobody has published to, consumed from or created this queue, or it was deleted.",
    ),
    "ROOM_NOT_FOUND": Code(
        404, RoomNotFoundError, "Check the name: nobody has published to or subscribed to this room, or it was deleted."
    ),
    "MESSAGE_NOT_FOUND": Code(
        404,
        MessageNotFoundError,
        "Treat it as another's: the lease is over, or it was settled. `ack_deadline` and `extend` hold it longer.",
    ),
    "BATCH_ABORTED": Code(
        409, SynapError, "Look at the one command of the atomic batch that has another error; nothing has happened."
    ),
    "SUPERSEDED": Code(409, SynapError, "End: another subscriber has taken over this name."),
    "EVENTS_LOST": Code(
        410,
        EventsLostError,
        "Rebuild what was made from the events `from` to `to` of `details`, or go on without them.",
    ),
    "PAYLOAD_TOO_LARGE": Code(
        413, SynapError, "Send less at once, or ask for less at once: the message says how much is too much."
    ),
    "INVALID_PAYLOAD": Code(422, SynapError, "Correct the field that the message names."),
    "WRONG_TYPE": Code(
        422, SynapError, "Use another key, or the type that is stored; `details` has the path where `type=` was given."
    ),
    "INTEGER_OVERFLOW": Code(422, SynapError, "Count in smaller steps or anew: the value was left as it was."),
    "RATE_LIMIT_EXCEEDED": Code(
        429,
        RateLimitError,
        "Wait `details.retry_after` seconds, as clients do by themselves, or have the limit or quota raised.",
    ),
    "INTERNAL_ERROR": Code(500, SynapError, "Report it, with the service's log. Whether a write has happened is open."),
    "SERVICE_UNAVAILABLE": Code(
        503,
        SynapError,
        "Wait `details.retry_after` seconds, as clients do by themselves. If it stays, `/health` says why.",
    ),
    "QUEUE_FULL": Code(507, SynapError, "Publish again later; add consumers, purge, or raise `max_depth`."),
    "MEMORY_LIMIT": Code(
        507,
        SynapError,
        "Delete, consume or let expire what isn't needed, or raise `--memory-limit` (on a cluster `maxmemory`).",
    ),
    "SLOW_CONSUMER": Code(
        503, SynapError, "Subscribe anew and take messages faster; what must not be lost belongs in a queue or a room."
    ),
    "LOCK_LOST": Code(409, LockLostError, "Stop what the lock protects: another may hold it by now."),
    "CONNECTION_FAILED": Code(
        503, ConnectionError, "Check that the service runs and the URL is right; nothing was sent."
    ),
    "CONNECTION_LOST": Code(
        503,
        ConnectionError,
        "Call again where `may_have_happened` is false; else look first whether the write is there.",
    ),
    "TIMEOUT": Code(504, TimeoutError, "As after `CONNECTION_LOST`; give `timeout=` more where calls take that long."),
}

NEVER_ANSWERED = ("SLOW_CONSUMER", "LOCK_LOST", "CONNECTION_FAILED", "CONNECTION_LOST", "TIMEOUT")
"""Codes that are no answer to a request: the end of a subscription, or an error that arises in the client."""

_UNKNOWN = Code(500, SynapError, CODES["INTERNAL_ERROR"].advice)

UNCERTAIN = "may_have_happened"
"""The key in an error envelope's `details` for `may_have_happened`."""


def http_status(code: str) -> int:
    """Return the HTTP status of an error code."""
    return CODES.get(code, _UNKNOWN).status


def from_wire(code: str, message: str, details: Optional[Dict[str, Any]] = None) -> SynapError:
    """Build the exception for an error envelope `{code, message, details}`; unknown codes are kept as they are."""
    error = CODES.get(code, _UNKNOWN).exception(code, message, details)
    error.may_have_happened = error.details.get(UNCERTAIN) is True
    return error


def add_to_message(error: SynapError, text: str) -> None:
    """Append to the message of an error."""
    error.message += text
    error.args = (error.code, error.message, error.details)


def invalid(field: str, rule: str, got: object, **details: Any) -> SynapError:
    """Build `INVALID_PAYLOAD` with the field, the rule and the value (`priority must be 0..9, got 12`)."""
    shown = repr(got)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return SynapError("INVALID_PAYLOAD", f"{field} must be {rule}, got {shown}", {"field": field, **details})
