"""Types of the fields of payloads and answers, their base classes, and answers that several facilities share.

A *payload* is a `msgspec.Struct`; decoding it checks types, ranges and unknown fields. The types' descriptions are used
in error messages. Fields of type `Value` hold a user's value: the object itself in a client, `bytes` in the service, as
described in `synap.wire.values`.
"""

from __future__ import annotations

from typing import Dict, List, Literal

import msgspec
from msgspec import Meta, Struct
from typing_extensions import Annotated, TypeAlias

CLIENT_PREFIX = 24
"""Characters of a session's name that all sessions of a client begin with: what one of them leased, all may settle."""

Value: TypeAlias = msgspec.Raw
"""A user's value: encoded on the wire, `bytes` in the engine, the object itself in a client."""


class Compared(bytes):
    """A large value to compare a stored one with, translated beforehand, in steps: `other`, as the other format has it.

    It is b"" where that format can't hold it.
    """

    other = b""


_WHOLE = Meta(ge=-(2**63), le=2**63 - 1, description="a whole number of 64 bits")

Key = Annotated[str, Meta(min_length=1, max_length=1024, description="a string of 1 to 1,024 bytes of UTF-8")]
Name = Annotated[str, Meta(min_length=1, max_length=256, description="a string of 1 to 256 bytes of UTF-8")]
Topic = Annotated[
    str, Meta(min_length=1, max_length=256, description="1 to 256 bytes of words between dots, none of them empty")
]
Text = Annotated[str, Meta(max_length=1024, description="a string of at most 1,024 characters")]
Ttl = Annotated[int, Meta(ge=1, le=10**10, description="whole seconds, 1 or more and at most 10,000,000,000")]
Amount = Annotated[int, _WHOLE]
Priority = Annotated[int, Meta(ge=0, le=9, description="0..9")]
Wait = Annotated[float, Meta(ge=0, le=3600, description="0..3600 seconds")]
Delay = Annotated[float, Meta(ge=0, le=31_536_000, description="0..31536000 seconds")]
AckDeadline = Annotated[float, Meta(gt=0, le=86_400, description="more than 0 and at most 86400 seconds")]
Retries = Annotated[int, Meta(ge=0, le=1_000_000, description="0..1000000")]
MOST_DEPTH = 100_000_000
Depth = Annotated[int, Meta(ge=1, le=MOST_DEPTH, description=f"1..{MOST_DEPTH}")]
Offset = Annotated[int, _WHOLE]
Limit = Annotated[int, Meta(ge=1, le=10_000, description="1..10000")]
State = Literal["ready", "leased", "delayed"]
MessageLimit = Annotated[int, Meta(ge=1, le=1_000, description="1..1000")]
QueueNames = Annotated[List[Name], Meta(min_length=1, max_length=100, description="1 to 100 names of queues")]
Backoff = Annotated[float, Meta(ge=1, le=100, description="1..100")]
MessageIds = Annotated[List[Text], Meta(min_length=1, max_length=1_000, description="1 to 1,000 ids of messages")]
Redrive = Annotated[int, Meta(ge=1, description="1 or more")]
ClientNumber = Annotated[int, Meta(ge=1, le=2**63 - 1, description="the id of a connection")]
RequestNumber = Annotated[int, Meta(ge=1, le=2**63 - 1, description="a whole number, 1 or more, of 63 bits")]
"""Of more bits, as many as one likes have the same hash."""
Headers = Annotated[Dict[str, str], Meta(max_length=128, description="at most 128 strings named by strings")]
MAX_HEADERS = 128
"""The most headers of one message, without those that are added to a dead letter."""
MessageHeaders = Annotated[
    Dict[str, str],
    Meta(max_length=MAX_HEADERS + 5, description="at most 128 strings named by strings (x-dead-letter-… not counted)"),
]
Keys = Annotated[List[Key], Meta(min_length=1, max_length=10_000, description="1 to 10,000 keys")]
Topics = Annotated[List[Topic], Meta(min_length=1, max_length=10_000, description="1 to 10,000 topics")]


class Payload(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Base of all payloads."""


class Answer(Struct, gc=False):
    """Base of the engine's answers; values in them are `bytes`."""

    def on_disk(self) -> Answer:
        """Return the part that is stored on disk, to answer a request that is repeated after a restart."""
        return self


class SuccessAnswer(Answer):
    success: bool = True


class UnsubscribedAnswer(Answer):
    unsubscribed: bool
