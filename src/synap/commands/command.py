"""An entry of the table: the facts about one command, given or derived."""

from __future__ import annotations

from typing import Any, List, Optional, Type

from msgspec import Struct

from synap.shapes import numbers_check, value_fields


class Flag:
    """Flags of a command. Plain integers, since combining enum members is slow."""

    READ = 0
    WRITE = 1
    """Changes stored data: it is journaled, and its answer remembered, so that a retry takes effect once."""
    WAITS = 2
    """May wait before it is answered; refused in a batch."""
    PUSHES = 4
    """Makes a subscription on the caller's connection; refused in a batch and on plain HTTP."""
    SESSION = 8
    """Acts on the caller's connection (unsubscribe)."""
    ADMIN = 16
    """Needs an admin key where authentication is on; answered by the host, not by the engine."""
    SETTLES = 32
    """Settles a lease, for which the engine needs the caller."""
    EFFECT = 64
    """Has an effect that isn't stored, so executing it twice differs from once."""
    LEASES = 128
    """Leases messages, which go back to their queue where the caller is gone before it receives them."""
    SPARING = 256
    """Accepted on a full disk: it frees space, or is needed to, and writes little."""
    STEPWISE = 512
    """Looks at all names, or moves many messages: a cluster does that in several steps."""
    SHARING = 1024
    """Where it takes many steps, other requests may be executed in between, whatever they change."""


class Shape:
    """The arguments of a command's method in the engine. From `WRITE` on the answer is remembered."""

    READ, SUBSCRIBE, WAIT, WRITE, SETTLE = range(5)
    # (payload, now), (payload, now, caller), (payload, now, caller, number), (payload, now), (payload, now, caller)


_NAMING = ("key", "keys", "pairs", "queue", "queues", "room", "topic", "topics", "prefix")
"""Fields that name the keys, queues, rooms or topics of a request."""


class Command:
    """One entry of the table.

    Given:
      `code`      its number on the native lane and on disk, never reused
      `name`      facility and action, as users write it
      `payload`   the class of its payload
      `answer`    the class of the engine's answer (or None, where `nullable`)
      `doc`       one sentence for `/openapi.json` and the reference page
      `flags`     see `Flag`
      `result`    the type to which a client decodes the answer
      `ends`      for a command that ends subscriptions: the command that makes them
      `verb`      the verb of the grant a key needs: read, write, consume or manage; empty: none is needed. Default: by
                  the flags

    Derived:
      `group`, `method`    the facility, and the name of its method in the engine
      `shape`              the arguments of that method, see `Shape`
      `value_fields`       the fields of the payload that hold stored values, see `synap.shapes`
      `numbers_check`      checks whether all its numbers are finite; None where it has no numbers
      `writes`, `waits`, `pushes`, `admin`   the flags, one by one
      `leases`             whether it leases messages
      `settles`            whether it settles a lease
      `sparing`            whether it is accepted on a full disk
      `stepwise`           whether a cluster executes it in several steps
      `sharing`            whether other requests may be executed between its steps
      `has_effects`        whether executing it twice differs from once
      `bundle`             whether it is a batch, whose commands are checked one by one
      `hosted`             whether the host executes it, not the engine alone
      `batchable`          whether a batch may hold it
      `remembered`         whether its answer is remembered, on its own or in that of a batch
      `confirm_soon`       whether the client confirms its answer with the next request: a batch of writes, whose
                           answers take much memory for as long as the service remembers them
      `ended_by`           for a command that makes subscriptions: the command that ends them
      `name_field`         the field of the payload with the names it acts on, see `names`
      `by_prefix`          whether it acts on all names with a prefix
      `audited`            whether it is written to the audit log
    """

    __slots__ = (
        "admin", "answer", "audited", "batchable", "bundle", "by_prefix", "code", "confirm_soon", "doc", "ended_by",
        "ends", "flags", "group", "has_effects", "hosted", "leases", "method", "name", "name_field", "nullable",
        "numbers_check", "payload", "pushes", "remembered", "result", "settles", "shape", "sharing", "sparing",
        "stepwise", "value_fields", "verb", "waits", "writes",
    )  # fmt: skip

    def __init__(
        self,
        code: int,
        name: str,
        payload: Type[Struct],
        answer: Type[Struct],
        doc: str,
        flags: int = Flag.READ,
        *,
        result: Optional[Any] = None,
        nullable: bool = False,
        ends: Optional[Command] = None,
        bundle: bool = False,
        verb: Optional[str] = None,
    ) -> None:
        self.code = code
        self.name = name
        self.payload = payload
        self.answer = answer
        self.doc = doc
        self.flags = flags
        self.result: Any = answer if result is None else result
        self.nullable = nullable
        self.bundle = bundle
        self.ends = ends
        self.ended_by: Optional[Command] = None
        if ends is not None:
            ends.ended_by = self
        self.group, _, action = name.partition(".")
        self.method = "delete" if action == "del" else action  # `del` is a keyword of Python
        self.value_fields = () if bundle else value_fields(payload)  # commands of a batch are checked one by one
        self.numbers_check = None if bundle else numbers_check(payload)
        self.writes = bool(flags & Flag.WRITE)
        self.waits = bool(flags & Flag.WAITS)
        self.pushes = bool(flags & Flag.PUSHES)
        self.admin = bool(flags & Flag.ADMIN)
        self.settles = bool(flags & Flag.SETTLES)
        self.leases = bool(flags & Flag.LEASES)
        self.sparing = bool(flags & Flag.SPARING)
        self.stepwise = bool(flags & Flag.STEPWISE)
        self.sharing = bool(flags & Flag.SHARING)
        self.has_effects = bool(flags & (Flag.WRITE | Flag.EFFECT))
        self.hosted = self.admin or bundle
        self.batchable = not bundle and not flags & (Flag.WAITS | Flag.PUSHES | Flag.SESSION | Flag.ADMIN)
        self.remembered = self.batchable or bundle
        self.confirm_soon = bundle and self.writes
        self.verb = self._default_verb() if verb is None else verb
        # Listing by a prefix is always allowed: the answer has only the names that the key may see.
        self.name_field = next((field for field in _NAMING if field in payload.__struct_fields__), "")
        self.by_prefix = self.name_field == "prefix" and self.has_effects
        self.audited = self.verb in ("admin", "manage")
        self.shape = self._shape()

    def _default_verb(self) -> str:
        if self.admin:
            return "admin"
        if self.bundle or self.flags & Flag.SESSION:
            return ""
        if self.leases or self.settles:
            return "consume"
        return "write" if self.has_effects and not self.pushes else "read"

    def _shape(self) -> int:
        if self.waits:
            return Shape.WAIT
        if self.flags & (Flag.PUSHES | Flag.SESSION):
            return Shape.SUBSCRIBE
        if self.writes:
            return Shape.SETTLE if self.settles else Shape.WRITE
        return Shape.READ

    def names(self, payload: Any) -> Optional[List[str]]:
        """Return the names of keys, queues, rooms or topics that a request acts on; None where it lists."""
        field = self.name_field
        if not field or (field == "prefix" and not self.by_prefix):
            return None
        named = getattr(payload, field)
        if isinstance(named, str):
            return [named]
        if named is None:
            return [""] if self.by_prefix else None
        names = [one if isinstance(one, str) else one.key for one in named]
        held = getattr(payload, "ack", None) if field == "queues" else None
        return names + [one.queue for one in held or ()]

    def __repr__(self) -> str:
        return f"<Command {self.name}>"
