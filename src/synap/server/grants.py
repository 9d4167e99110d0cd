"""The permissions of a key: grants such as `kv:read:user:*`, `queue:consume:emails`, `pubsub:read:news.#`, `admin`.

A grant names a facility, a verb and a pattern of names; `*` stands for any facility or verb. In names of keys, queues
and rooms `*` stands for any characters; patterns of topics are as in subscriptions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from itertools import filterfalse
from typing import Any

import msgspec

from synap import commands as c
from synap.engine.callers import STEP, Steps, run
from synap.errors import PermissionDeniedError, SynapError
from synap.shapes import VALUE, changes, get_type_hints
from synap.wire.codec import Codec, Later, built

FACILITIES = ("kv", "queue", "stream", "pubsub")
VERBS = ("read", "write", "consume", "manage")
MAX_STARS = 8
MAX_FOUND = 1000
"""Commands and names that were looked up for a key and are remembered."""


_NAMED = frozenset(
    command.code
    for command in c.BY_CODE.values()
    if command.name_field and get_type_hints(command.payload)[command.name_field] is str and not command.pushes
)
"""The codes of commands whose payloads have exactly one name, and that need one grant for it."""
_LISTS: dict[Any, tuple[str, str]] = {
    c.ScanAnswer: ("kv", "keys"),
    c.QueuesAnswer: ("queue", "queues"),
    c.RoomsAnswer: ("stream", "rooms"),
    c.TopicsAnswer: ("pubsub", "topics"),
}
"""Answers with names of which a key may not see all: whose they are, and the field."""
_SET = c.SetAnswer
_USED = frozenset(command.code for command in c.COMMANDS.values() if not command.admin)
"""The codes of commands that need no admin key."""


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The limits of one key. None: only the service's own limits apply."""

    requests: float | None = None
    """Commands a second."""
    bytes: float | None = None
    """Bytes of requests a second."""
    connections: int | None = None
    subscriptions: int | None = None
    """On each connection."""
    waiting: int | None = None
    """Requests that wait for a message, on each connection."""


_ONE_WORD = r"(?!#\.)[^.]*"


def _topics(words: list[str]) -> Callable[[str], bool]:
    """Return what says whether a pattern matches every topic that another pattern, or a topic, matches.

    What lies between two `#` has a fixed number of words, so it is found as early as possible, which leaves most to
    those after it.
    """
    parts: list[str] = [r"\A\."]
    for word in words:
        if word == "#":
            parts.append(r"\.")
        else:
            parts[-1] += (_ONE_WORD if word == "*" else re.escape(word)) + r"\."
    parts[-1] += r"\Z" if words[-1] != "#" else ""
    find = [re.compile(part).search for part in parts]

    def contains(topic: str) -> bool:
        text, at = f".{topic}.", 0
        for search in find:
            found = search(text, at)
            if found is None:
                return False
            at = found.end() - 1  # a dot is the end of one word and the beginning of the next
        return True

    return contains


class Grant:
    """One parsed grant."""

    __slots__ = ("_contains", "_parts", "facility", "pattern", "text", "verb", "words")

    def __init__(self, text: str) -> None:
        facility, _, rest = text.partition(":")
        verb, colon, pattern = rest.partition(":")
        if facility not in (*FACILITIES, "*") or verb not in (*VERBS, "*") or not colon or not pattern:
            raise SynapError(
                "INVALID_REQUEST",
                f"a grant is 'admin' or facility:verb:names, such as kv:read:user:*; "
                f"facilities are {', '.join(FACILITIES)} and *, verbs {', '.join(VERBS)} and *; got {text[:100]!r}",
                {"grant": text[:100]},
            )
        if pattern.count("*") > MAX_STARS or len(pattern) > 1024:
            raise SynapError("INVALID_REQUEST", f"a grant's pattern may have {MAX_STARS} stars and 1,024 characters")
        self.text, self.facility, self.verb, self.pattern = text, facility, verb, pattern
        self.words = pattern.split(".")
        self._parts = pattern.split("*")
        self._contains = _topics(self.words) if facility in ("pubsub", "*") else self._matches

    def covers(self, facility: str, verb: str) -> bool:
        return self.facility in (facility, "*") and self.verb in (verb, "*")

    def matches(self, facility: str, name: str) -> bool:
        if facility == "pubsub":
            return (self.pattern == "*" and self.facility == "*") or self._contains(name)
        return self._matches(name)

    def _matches(self, name: str) -> bool:
        """Return whether a name matches a pattern with `*`, in time that grows with its length and no faster."""
        first, *middle = self._parts
        if not middle:
            return name == first
        last = middle.pop()
        end = len(name) - len(last)
        if end < len(first) or not name.startswith(first) or not name.endswith(last):
            return False
        at = len(first)
        for part in middle:  # as early as possible, which leaves most to those after it
            at = name.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True

    def matches_all(self, facility: str) -> bool:
        """Whether every name there may be matches."""
        if facility == "pubsub":
            return self.pattern == "#" or (self.pattern == "*" and self.facility == "*")
        return not self.pattern.strip("*")

    def is_prefix(self, facility: str) -> bool:
        """Whether the pattern is the beginning of names, and then whatever follows."""
        if facility == "pubsub":
            return self.words[-1] == "#" and not {"", "*", "#"}.intersection(self.words[:-1]) and len(self.words) > 1
        return self.pattern.find("*") == len(self.pattern) - 1

    def matches_prefix(self, prefix: str) -> bool:
        """Whether all names with a prefix match."""
        return self.pattern.endswith("*") and self._matches(prefix)


class _Rule:
    """The grants of a key that cover one command, and the names that were found to be allowed."""

    __slots__ = ("_exact", "_others", "begin", "covering", "facility", "known", "prefixes")

    def __init__(self, facility: str, covering: list[Grant]) -> None:
        self.facility = facility
        self.covering = covering
        simple = [one for one in covering if one.is_prefix(facility)]
        self.prefixes = tuple(one.pattern[:-1] for one in simple)
        self._exact = frozenset(one.pattern[:-2] for one in simple if facility == "pubsub")
        """Topics that a pattern such as `news.#` covers beside those with its prefix."""
        self._others = [one for one in covering if one not in simple]
        self.known: set[str] = set()
        self.begin = [one.pattern.partition("*")[0] for one in covering]
        """What allowed names begin with: one of these."""

    def allows(self, name: str) -> bool:
        return (
            name.startswith(self.prefixes)
            or name in self._exact
            or (bool(self._others) and any(one.matches(self.facility, name) for one in self._others))
        )

    def allows_prefix(self, prefix: str) -> bool:
        return any(one.matches_prefix(prefix) for one in self.covering)


_GUARDED = """
def make(decode, change, check, command, known, prefixes):
    def decode_and_check(body):
        a = decode(body)
        {changes}
        if {unknown}:
            check(command, a)
        return a
    return decode_and_check
"""


def _guarded(
    command: c.Command, codec: Codec, check: Callable[[c.Command, Any], None], rule: _Rule
) -> Callable[[Any], Any]:
    """Return a decoder that calls `check` with payloads whose name isn't known to be allowed."""
    unknown = "True"
    if command.code in _NAMED:
        unknown = f"a.{command.name_field} not in known"
        if rule.prefixes and not command.by_prefix:
            unknown = f"not a.{command.name_field}.startswith(prefixes) and {unknown}"
    # Where each value is a field, they are changed here, which saves a call.
    payload = command.payload if {field.kind for field in command.value_fields} == {VALUE} else None
    decode = built(codec.decoders[command.code] if payload is None else codec.fields[payload])
    make = _guard(unknown, payload)
    guarded: Callable[[Any], Any] = make(decode, codec.keep, check, command, rule.known, rule.prefixes)
    return guarded


@functools.cache
def _guard(unknown: str, payload: Any) -> Any:
    """Compile the decoders with that condition. Many connections need them, so each is compiled once."""
    names: dict[str, Any] = {"UNSET": msgspec.UNSET}
    lines = "\n        ".join(changes(payload) if payload else ())
    exec(_GUARDED.format(changes=lines, unknown=unknown), names)
    return names["make"]


class Access:
    """The permissions of an admitted caller. `name` identifies it without being a secret, `digest` its key.

    `grants` None: everything but the admin group, for which `admin` must be true.
    """

    __slots__ = (
        "_may_read", "_open", "_remembered", "_rules", "_shown", "admin", "digest", "grants", "name", "quota",
        "readable",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        admin: bool,
        grants: Iterable[Grant] | None = None,
        quota: Quota | None = None,
        digest: str | bytes = "",
    ) -> None:
        self.name = name
        self.digest = digest
        self.admin = admin
        self.grants = None if grants is None else tuple(grants)
        self.quota = quota
        self._open: frozenset[int] | None = None
        self._rules: dict[int | tuple[str, str], _Rule] = {}
        """By the codes of commands that aren't `open`, and by facility and verb, once they were needed."""
        self._remembered = 0
        self._shown: Any = None
        """What `show` made last, until `visible` is asked for it."""
        if self.grants is not None:
            reading = self._covering(("kv", "read"), "kv", "read")
            self.readable, self._may_read = reading.prefixes, reading.allows

    @property
    def open(self) -> frozenset[int]:
        """The codes of commands that are allowed whatever they are about."""
        if self._open is None:
            self._open = frozenset(command.code for command in c.COMMANDS.values() if self._opens(command))
        return self._open

    def _opens(self, command: c.Command) -> bool:
        if command.admin:
            return self.admin
        if command is c.STREAM_SUBSCRIBE and not self._opens(c.STREAM_COMMIT):
            return False  # a durable one needs that too
        facility, verb = command.group, command.verb
        return (
            self.grants is None
            or not verb
            or any(one.covers(facility, verb) and one.matches_all(facility) for one in self.grants)
        )

    @property
    def sees_all(self) -> bool:
        """Whether it may see every queue and room, as metrics show them."""
        return self.admin or all(
            any(one.covers(facility, "read") and one.matches_all(facility) for one in self.grants or ())
            or self.grants is None
            for facility in ("queue", "stream")
        )

    @property
    def permit(self) -> Access | None:
        """The checks for a session's requests; None where everything but the admin group is allowed."""
        return None if self.grants is None or self.open >= _USED else self

    def emptied(self) -> Access:
        """Return the permissions of a caller that has lost them: none."""
        return Access(self.name, False, (), digest=self.digest)

    def texts(self) -> list[str]:
        """Return the grants as they are written."""
        every = ["kv:*:*", "queue:*:*", "stream:*:*", "pubsub:*:#"]
        return [
            *(every if self.grants is None else [one.text for one in self.grants]),
            *(["admin"] if self.admin else []),
        ]

    def may(self, facility: str, verb: str, name: str) -> bool:
        """Return whether a verb is allowed for a name (or topic, or pattern of topics)."""
        return self.grants is None or self._covering((facility, verb), facility, verb).allows(name)

    def check(self, command: c.Command, payload: Any) -> None:
        """Raise `FORBIDDEN` for a command that no grant covers, with the same message whether names exist or not."""
        if command.admin:
            if not self.admin:
                raise PermissionDeniedError("FORBIDDEN", f"{command.name} needs an admin key")
            return
        grants = self.grants
        if grants is None or command.bundle or command.code in self.open:
            return
        rule = self._rule(command)
        name = getattr(payload, command.name_field) if command.code in _NAMED else None
        if name in rule.known:
            return
        names = command.names(payload)
        refused = None if rule.covering else "…"
        if names is not None:
            refused = next(filterfalse(rule.allows_prefix if command.by_prefix else rule.allows, names), refused)
        elif command.answer not in _LISTS:
            refused = "#"  # its figures are of all topics
        if refused is not None:
            raise PermissionDeniedError(
                "FORBIDDEN",
                f"this key has no grant for {command.name} there ({command.group}:{command.verb}:{refused})",
            )
        if command is c.STREAM_SUBSCRIBE and payload.name is not None:
            # It stores a position, ends whoever else subscribes by that name, and is of no use without commits.
            self.check(c.STREAM_COMMIT, payload)
        if command is c.KV_SCAN and command.code not in self.open:
            payload.only = rule
        if name is not None:
            if self._remembered >= MAX_FOUND:
                self._remembered = 0
                for one in self._rules.values():
                    one.known.clear()
            self._remembered += 1
            rule.known.add(name)

    def _rule(self, command: c.Command) -> _Rule:
        return self._covering(command.code, command.group, command.verb)

    def _covering(self, place: int | tuple[str, str], facility: str, verb: str) -> _Rule:
        rule = self._rules.get(place)
        if rule is None:
            covering = [one for one in self.grants or () if one.covers(facility, verb)]
            rule = self._rules[place] = _Rule(facility, covering)
        return rule

    def covered(self, command: c.Command) -> bool:
        """Return whether a command may be allowed for some names."""
        return command.code in self.open or (not command.admin and bool(self._rule(command).covering))

    def guarded(self, codec: Codec, check: Callable[[c.Command, Any], None]) -> list[Any]:
        """Return decoders that call `check` with payloads that aren't known to be allowed, each built when it is used.

        For a name with an allowed prefix, or that was allowed before, it costs one look.
        """
        guarded: list[Any] = [None] * len(codec.decoders)
        guard = self._guard
        for code, command in c.BY_CODE.items():
            Later(guarded, code, functools.partial(guard, command, codec, check))
        return guarded

    def _guard(self, command: c.Command, codec: Codec, check: Callable[[c.Command, Any], None]) -> Callable[[Any], Any]:
        if command.code not in self.open:
            return _guarded(command, codec, check, self._rule(command))
        decode: Callable[[Any], Any] = built(codec.decoders[command.code])
        return decode

    def _outcome(self, outcome: c.BatchOutcome) -> c.BatchOutcome:
        payload = outcome.payload
        return outcome if payload is None else msgspec.structs.replace(outcome, payload=self.visible(payload))

    def visible(self, answer: Any) -> Any:
        """Return an answer without what the key may not see."""
        kind = type(answer)
        if kind is _SET:
            if answer.previous is None or answer.key.startswith(self.readable) or self._may_read(answer.key):
                return answer
            return msgspec.structs.replace(answer, previous=None)
        if kind in _LISTS:
            shown, self._shown = self._shown, None
            return answer if answer is shown else run(self._seen(answer))
        if kind is not c.BatchAnswer:
            return answer
        return c.BatchAnswer([self._outcome(outcome) for outcome in answer.results])

    def show(self, answer: Any) -> Steps:
        """Return, in steps, what `visible` would of an answer with names. It returns that itself, where it is next."""
        self._shown = shown = yield from self._seen(answer)
        return shown

    def _seen(self, answer: Any) -> Steps:
        facility, field = _LISTS[type(answer)]
        allows = self._covering((facility, "read"), facility, "read").allows
        names: list[str] = getattr(answer, field)
        seen: list[str] = []
        for at in range(0, len(names), STEP):
            seen += filter(allows, names[at : at + STEP])
            yield
        return answer if len(seen) == len(names) else msgspec.structs.replace(answer, **{field: seen})
