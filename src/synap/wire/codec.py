"""Payloads and answers in JSON and MessagePack.

A `Codec` is one format. The client encodes payloads and decodes results with it, the service decodes payloads and
encodes answers. Every lane uses it, the in-process one too, so all of them accept and refuse the same.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from functools import partial
from math import isfinite
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Type

import msgspec
from msgspec import UNSET, Struct

from synap import commands as c
from synap import results
from synap.errors import SynapError, from_wire, invalid
from synap.shapes import VALUE, changer, renderer, value_fields
from synap.wire import large, large_answers, typed, values
from synap.wire.buffer_pool import BUFFERS
from synap.wire.counting import bounds, fits, long_fields
from synap.wire.large import Steps
from synap.wire.parts import Parts
from synap.wire.translate import compared

MALFORMED = (msgspec.DecodeError, ValueError, RecursionError)
"""What decoders raise for a body that is not what it should be."""
SEVERAL = 100
"""Small values that are decoded in one step."""


class _Extension(NamedTuple):
    """A value of one of MessagePack's extension types, which nothing takes."""

    type: int
    content: memoryview

    def __repr__(self) -> str:
        return f"extension type {self.type}"


class Codec:
    """The encoders and decoders of one format. Immutable, so safe to share between threads."""

    def __init__(self, format: str) -> None:
        module: Any = msgspec.json if format == "json" else msgspec.msgpack
        self.format = format
        self.content_type = f"application/{format}"
        self.empty = b"{}" if format == "json" else b"\x80"
        self.encode: Callable[[Any], bytes] = module.Encoder(enc_hook=values.plain).encode
        hooks = {} if format == "json" else {"ext_hook": _Extension}
        self.decode: Callable[[Any], Any] = module.Decoder(**hooks).decode
        self._show = values.TO_MESSAGE[format]
        decoder = module.Decoder
        self.keep = keep = values.TO_STORED[format]
        """Checks a value of a payload, and returns its stored form."""

        def sendable(value: Any) -> Any:
            return typed.storable(value, format)

        self._outgoing: Dict[Type[Struct], Optional[Callable[[Any], None]]] = {}
        """Converts the user's objects in a payload to plain values, by the payload's class; None: it has none."""
        self.fields: Dict[Type[Struct], Callable[[Any], Any]] = {}
        """By a payload's class: its decoder, which leaves values encoded."""
        self.decoders: List[Any] = [None] * 128
        """By a command's code: decodes and checks a payload, whose values become stored `bytes`; raises `MALFORMED`."""
        self.results: Dict[str, Callable[[Any], Any]] = {}
        """Decoders of answers, by the command's name, to the `result` in the table of commands."""

        def decoding(payload: Type[Struct], looked_into: bool) -> Callable[[Any], Any]:
            decode: Callable[[Any], Any] = decoder(payload).decode
            return (looked_into and changer(payload, keep, decode=decode)) or decode

        for command in c.BY_CODE.values():
            payload, looked_into = command.payload, not command.bundle  # items of a batch are looked at one by one
            self._outgoing[payload] = None
            if command.value_fields:
                Later(self._outgoing, payload, partial(changer, payload, sendable, str, _change_each))
            Later(self.fields, payload, partial(decoding, payload, False))
            Later(self.decoders, command.code, partial(decoding, payload, looked_into))
            Later(self.results, command.name, partial(decoding, command.result, False))
        self._mark: bytes = self.encode(os.urandom(16).hex())
        """Stands for a value that was received apart while the rest of its payload is decoded."""
        self._error = decoder(c.ErrorAnswer).decode
        self.decode_event: Callable[[Any], results.StreamEvent] = decoder(results.StreamEvent).decode
        """Decodes a pushed event of a room."""
        self.decode_message: Callable[[Any], c.TopicMessageResult] = decoder(c.TopicMessageResult).decode
        """Decodes a pushed message of a topic."""
        self.renderers: Dict[type, Callable[[Any], Any]] = {
            c.BatchAnswer: self._render_batch,
            c.Figures: lambda answer: answer.figures,
        }
        """By an answer's class: converts its values to this format. Classes without values are not in it."""
        for kind in (*(command.answer for command in c.COMMANDS.values()), *c.ITEMS):
            if value_fields(kind):
                Later(self.renderers, kind, partial(renderer, kind, self._show, values.FIRST_BYTES[format]))

    # ------------------------------------------------------------------------------------------ client side

    def encode_payload(self, command: c.Command, payload: Struct) -> bytes:
        """Encode a payload with the user's objects as values. Raises `INVALID_PAYLOAD` with the path of a bad one."""
        change = self._outgoing[command.payload]
        if change is not None:
            change(payload)
        check = command.numbers_check
        try:
            if check is not None and not check(payload):
                raise ValueError("a number is not finite")
            return self.encode(payload)
        except UnicodeEncodeError as error:
            raise SynapError("INVALID_PAYLOAD", f"text must be encodable as UTF-8: {error}") from None
        except (TypeError, OverflowError, ValueError, RecursionError) as error:
            unsent = SynapError("INVALID_PAYLOAD", f"{command.name} can't be sent: {error}")
            raise _bad_number(command, payload) or unsent from None

    def decode_result(self, command: c.Command, body: Any) -> Any:
        """Decode an answer to the command's `result` type.

        Raises `WRONG_TYPE` for a value that is nested deeper than this Python reads.
        """
        try:
            return self.results[command.name](body)
        except RecursionError:
            raise values.too_deep() from None

    def decode_large(self, command: c.Command, body: memoryview) -> Any:
        """Decode an answer that was received in place, as `decode_result` does, and give its buffer back."""
        decoder = self.results[command.name]
        try:
            return large_answers.decode(body, decoder) if self.format == "json" else decoder(body)
        except RecursionError:
            raise values.too_deep() from None
        finally:
            BUFFERS.give(body)

    def decode_error(self, body: Any) -> SynapError:
        """Decode an error envelope to the exception it stands for."""
        error = self._error(body)
        return from_wire(error.code, error.message, error.details)

    # ------------------------------------------------------------------------------------------ service side

    def decode_payload(self, command: c.Command, body: Any, *, hint: bool = True) -> Any:
        """Decode and check a payload; its values become stored `bytes`.

        Raises `INVALID_PAYLOAD` with the field, the rule and the value; without `hint` with the decoder's message,
        which is cheaper.
        """
        try:
            return self.decoders[command.code](body)
        except MALFORMED as error:
            raise self.refusal(command, body, error, hint) from None

    def decode_fields(self, command: c.Command, body: Any, *, hint: bool = True) -> Any:
        """Decode and check a payload except for its values, which stay encoded."""
        try:
            return self.fields[command.payload](body)
        except MALFORMED as error:
            raise self.refusal(command, body, error, hint) from None

    def decode_parts(self, command: c.Command, parts: Parts) -> Any:
        """Decode and check a payload as `decode_payload` does; None where that has to do it, from the whole body."""
        fields = value_fields(command.payload)
        try:
            payload = self.fields[command.payload](parts.before + self._mark + parts.after)
            found = False
            for name, kind, _ in fields:
                if kind != VALUE:
                    return None
                raw = getattr(payload, name)
                if raw is UNSET:
                    continue
                if name != parts.field:
                    setattr(payload, name, self.keep(raw))
                elif bytes(raw) == self._mark:
                    large.check_text(parts.value, self.format, parts.ascii)
                    setattr(payload, name, parts.value)
                    found = True
        except (SynapError, TypeError, *MALFORMED):
            return None
        return payload if found else None

    def decode_in_steps(self, command: c.Command, body: Any, *, hint: bool = True) -> Steps:
        """Decode and check a payload as `decode_payload` does, large values in steps."""
        yield from self.count_in_steps(command, body)
        if len(body) > large.HEAVY:
            yield large.PAUSE
        payload = self.decode_fields(command, body, hint=hint)
        yield
        if command.bundle:  # each of its payloads is decoded once its command is known, and may be refused alone
            return payload
        for name, kind, item in value_fields(command.payload):
            if kind == VALUE:
                value = getattr(payload, name)
                if value is not UNSET:
                    value = yield from self._take(value)
                    if name == "if_value" and len(value) >= large.LARGE:
                        value = yield from compared(value)
                    setattr(payload, name, value)
            else:
                for field in value_fields(item):
                    for done, entry in enumerate(getattr(payload, name), 1):
                        setattr(entry, field.name, (yield from self._take(getattr(entry, field.name))))
                        if not done % SEVERAL:
                            yield
        return payload

    def count_in_steps(self, command: c.Command, body: Any) -> Steps:
        """Raise `INVALID_PAYLOAD` for a large request that has too many items in a list, before it is decoded."""
        if len(body) <= large.LARGE or self.format != "json" or not bounds(command.payload):
            return
        fields = yield from long_fields(command.payload, body)
        for name, data in fields.items():
            yield from self.count_list(command, name, data)
            yield

    def count_list(self, command: c.Command, name: str, data: bytes) -> Steps:
        """Raise `INVALID_PAYLOAD` where the encoded list in a field has too many items."""
        if self.format == "json" and not (yield from fits(data, bounds(command.payload)[name])):
            message = f"{name} must be {_rule(command.payload, '.' + name)}"
            raise SynapError("INVALID_PAYLOAD", message, {"field": name})

    def _take(self, value: msgspec.Raw) -> Steps:
        size = len(value)
        if size >= large.LARGE or (
            size >= values.LARGE and self.format == "msgpack" and values.may_have_many_keys(bytes(value))
        ):
            return (yield from large.take(value, self.format))
        return self.keep(value)

    def refusal(self, command: c.Command, body: Any, error: Exception, hint: bool = True) -> SynapError:
        """Build the error for a payload that could not be decoded."""
        if isinstance(error, msgspec.ValidationError):
            if not hint:
                return SynapError("INVALID_PAYLOAD", f"{command.name}: {error}")
            return self._explain(command, body, error)
        if isinstance(error, RecursionError):
            return SynapError("INVALID_PAYLOAD", f"{command.name}: the payload is nested too deep")
        return SynapError("INVALID_REQUEST", f"{command.name}: the payload is not {self.format}: {error}")

    def decode_item(self, item: c.BatchItem) -> Any:
        """Decode one command of a batch to its payload.

        Raises `INVALID_COMMAND` for an unknown command, `INVALID_PAYLOAD` as `decode_payload` does.
        """
        return self.decode_payload(find(item.command), bytes(item.payload) or self.empty)

    def encode_answer(self, answer: Any) -> bytes:
        """Encode an answer, a pushed item or None, its values converted to this format."""
        return self.encode(self.render(answer))

    def encode_error(self, error: SynapError) -> bytes:
        """Encode an error envelope."""
        return self.encode(c.ErrorAnswer.of(error))

    def render(self, answer: Any) -> Any:
        """Convert an answer's values, so that it can be encoded as part of a larger message."""
        render = self.renderers.get(type(answer))
        return answer if render is None else render(answer)

    def _render_batch(self, a: c.BatchAnswer) -> c.BatchAnswer:
        find_renderer, make = self.renderers.get, c.BatchOutcome
        outcomes: List[c.BatchOutcome] = [
            outcome
            if (render := find_renderer(type(outcome.payload))) is None
            else make(outcome.status, render(outcome.payload))
            for outcome in a.results
        ]
        return c.BatchAnswer(outcomes)

    # ------------------------------------------------------------------------------------------ error messages

    def _explain(self, command: c.Command, body: Any, error: msgspec.ValidationError) -> SynapError:
        """Build the error for a validation error: field, the rule of the table, the value."""
        text = str(error)
        unknown = _UNKNOWN.match(text)
        if unknown:
            known = ", ".join(command.payload.__struct_fields__) or "none"
            field = unknown.group(1)[:80]
            message = f"{command.name} knows no field {field!r}; its fields are: {known}"
            return SynapError("INVALID_PAYLOAD", message, {"field": field})
        missing = _MISSING.match(text)
        if missing:
            field = missing.group(1)
            return SynapError("INVALID_PAYLOAD", f"{command.name} needs the field {field!r}", {"field": field})
        before, at, path = text.rpartition(" - at `$")  # a pattern would go over what the caller sent again and again
        path = path[:-1] if at else ""
        name = path.lstrip(".") or "payload"
        rule = _rule(command.payload, path) or (before if at else text)[:200]
        try:
            # Decoding it, or writing it out, takes long; of MessagePack, with lists as keys, the square of its length.
            if len(body) > (large.LARGE if self.format == "json" else values.LARGE):
                raise LookupError
            got = _at(self.decode(body), path)
        except (LookupError, TypeError, *MALFORMED):
            return SynapError("INVALID_PAYLOAD", f"{name} must be {rule}", {"field": name})
        shown = repr(got)
        if len(shown) > 80:
            shown = f"{shown[:60]}... ({type(got).__name__})"
        return SynapError("INVALID_PAYLOAD", f"{name} must be {rule}, got {shown}", {"field": name})


class Later:
    """An entry of a table that builds its function when it is first called: few are, and building all takes long.

    Stores itself in `table` under `key`, and then, in its place, what `build` returns.
    """

    __slots__ = ("_build", "_key", "_table")

    def __init__(self, table: Any, key: Any, build: Callable[[], Any]) -> None:
        self._table = table
        self._key = key
        self._build = build
        table[key] = self

    def __call__(self, body: Any) -> Any:
        return self.built()(body)

    def built(self) -> Callable[[Any], Any]:
        if self._table[self._key] is self:
            self._table[self._key] = self._build()
        function: Callable[[Any], Any] = self._table[self._key]
        return function


def built(decoder: Any) -> Any:
    """Return the decoder that an entry of a table stands for, for callers that keep it."""
    return decoder.built() if type(decoder) is Later else decoder


def find(name: str, *, hint: bool = True) -> c.Command:
    """Look a command up by name; raises `INVALID_COMMAND`, with the nearest name where `hint` is set."""
    command = c.COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name[:80], c.COMMANDS, 1) if hint else ()
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise SynapError("INVALID_COMMAND", f"there is no command {name[:80]!r}{meant}", {"command": name[:80]})
    return command


def _change_each(name: str, items: List[Any], change: Callable[[Any], None]) -> None:
    """Convert each item of a list; an error names its index."""
    for index, item in enumerate(items):
        try:
            change(item)
        except SynapError as error:
            raise SynapError(error.code, f"{name}[{index}]: {error.message}", error.details) from None


def _bad_number(command: c.Command, payload: Any, path: str = "") -> Optional[SynapError]:
    """Build the error for a payload with NaN, an infinity or an integer beyond 64 bits below `path`; None without."""
    for name in payload.__struct_fields__:
        value = getattr(payload, name)
        entries = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for index, entry in entries:
            place = f"{path}.{name}" if index is None else f"{path}.{name}[{index}]"
            if isinstance(entry, float) and not isfinite(entry):
                return invalid(place.lstrip("."), _rule(command.payload, place) or "a number", entry)
            if isinstance(entry, int) and not -(2**63) <= entry < 2**64:
                return invalid(place.lstrip("."), "a number of 64 bits", entry)
            if isinstance(entry, Struct):
                error = _bad_number(command, entry, place)
                if error is not None:
                    return error
    return None


_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`")
_STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(\d+|\.\.\.)\]")
_PLAIN = {
    "StrType": "a string",
    "BoolType": "true or false",
    "IntType": "a whole number",
    "FloatType": "a number",
    "StructType": "an object",
    "ListType": "a list",
    "DictType": "an object",
}


@functools.lru_cache(maxsize=None)  # without the cache, this would be most of the cost of refusing a payload
def _type_info(payload: Type[Struct]) -> Any:
    return msgspec.inspect.type_info(payload)


def _rule(payload: Type[Struct], path: str) -> Optional[str]:
    """Return the description of the field at `path` in the table, or a plain word for its type."""
    try:
        node = _type_info(payload)
        for name, _ in _STEP.findall(path):
            node = _bare(node)
            if name:
                node = next(field.type for field in node.fields if field.encode_name == name)
            else:
                node = node.value_type if isinstance(node, msgspec.inspect.DictType) else node.item_type
    except (AttributeError, StopIteration):
        return None
    rule = _described(node)
    if rule is None:
        rule = _PLAIN.get(type(_bare(node)).__name__)
    return rule


def _bare(node: Any) -> Any:
    """Strip optional types and annotations."""
    if isinstance(node, msgspec.inspect.Metadata):
        return _bare(node.type)
    if isinstance(node, msgspec.inspect.UnionType):
        return _bare(next(t for t in node.types if not isinstance(t, msgspec.inspect.NoneType)))
    return node


def _described(node: Any) -> Optional[str]:
    if isinstance(node, msgspec.inspect.Metadata):
        described = (node.extra_json_schema or {}).get("description")
        return str(described) if described else _described(node.type)
    if isinstance(node, msgspec.inspect.UnionType):
        return next((text for text in map(_described, node.types) if text), None)
    return None


def _at(value: Any, path: str) -> Any:
    for name, index in _STEP.findall(path):
        value = value[name] if name else value[int(index)]
    return value


JSON = Codec("json")
MSGPACK = Codec("msgpack")
CODECS: Dict[str, Codec] = {"json": JSON, "msgpack": MSGPACK}
