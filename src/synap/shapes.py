"""Functions derived from the fields of payloads and answers: conversion of values, checks of numbers, sizes.

Values are of type `msgspec.Raw` in payloads and `bytes` in answers; no other field has such a type. So no list is
needed of the fields that hold values, how an answer is converted to its reader's format, and about how many bytes it
has. The functions are generated once for each class, as source text with the fields' names, as `dataclasses` does: they
run for every answer.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import lru_cache
from math import isfinite
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type, Union

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from typing_extensions import get_args, get_origin
from typing_extensions import get_type_hints as read_type_hints

SMALL = 64
"""Estimated bytes of the fixed part of an answer, names of fields included."""
ENTRY = 16
"""Estimated bytes of quotes, separators and lengths around one text of a list."""

VALUE, TEXTS, PAIRS, STRUCTS = "value", "texts", "pairs", "structs"


get_type_hints: Callable[[type], Dict[str, Any]] = lru_cache(maxsize=None)(read_type_hints)
"""Returns the types of a class's fields, which aren't evaluated twice: they are asked for several times each."""


class Field(NamedTuple):
    """A field of variable size: a value, a list or dictionary of texts, a list of structs or dataclasses (`item`)."""

    name: str
    kind: str
    item: Any = None


@lru_cache(maxsize=None)
def varying(struct: Type[Any]) -> Tuple[Field, ...]:
    """Return the fields of variable size of a class."""
    found: List[Field] = []
    for name, hint in get_type_hints(struct).items():
        options = [option for option in _options(hint) if option is not type(None)]
        for option in options:
            arguments = get_args(option)
            if option in (bytes, msgspec.Raw):
                found.append(Field(name, VALUE))
            elif get_origin(option) is list and _has_fields(arguments[0]):
                found.append(Field(name, STRUCTS, arguments[0]))
            elif get_origin(option) is list and arguments[0] is str:
                found.append(Field(name, TEXTS))
            elif get_origin(option) is dict and arguments == (str, str):
                found.append(Field(name, PAIRS))
    return tuple(found)


def _has_fields(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, Struct) or is_dataclass(kind))


def _options(hint: Any) -> Tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Union else (hint,)


def value_fields(struct: Type[Struct]) -> Tuple[Field, ...]:
    """Return the fields that hold stored values, directly or in a list of structs."""
    return tuple(
        field
        for field in varying(struct)
        if field.kind == VALUE or (field.kind == STRUCTS and value_fields(field.item))
    )


def numbers_check(struct: Type[Struct]) -> Optional[Callable[[Any], bool]]:
    """Build a function that checks whether all numbers in a payload are finite; None where it has no numbers.

    JSON has no NaN and no infinities: encoders write `null`, which reads as 'not given'.
    """
    names: Dict[str, Any] = {"isfinite": isfinite}
    parts: List[str] = []
    for name, hint in get_type_hints(struct).items():
        for option in _options(hint):
            item = get_args(option)[0] if get_origin(option) is list else option
            if option in (int, float):
                parts.append(f"(a.{name}.__class__ is not float or isfinite(a.{name}))")
            elif isinstance(item, type) and issubclass(item, Struct):
                check = names[f"check_{name}"] = numbers_check(item)
                if check is not None:
                    several = item is not option
                    parts.append(f"all(map(check_{name}, a.{name} or ()))" if several else f"check_{name}(a.{name})")
    return _function(" and ".join(parts), names) if parts else None


def changer(
    struct: Type[Struct],
    change: Callable[[Any], Any],
    spare: Optional[type] = None,
    several: Optional[Callable[[str, List[Any], Callable[[Any], None]], None]] = None,
    decode: Optional[Callable[[Any], Any]] = None,
) -> Optional[Callable[[Any], Any]]:
    """Build a function that replaces each value of a payload, in place, by `change(value)`; None if it has no values.

    Values of the class `spare` stay. For a list of structs `several` is called with the field's name, the list, and the
    function that changes one of them; by default all are changed. With `decode` the function gets what that makes a
    payload of, and returns the payload.
    """
    names: Dict[str, Any] = {
        "change": change,
        "UNSET": UNSET,
        "spare": spare,
        "several": several or _each,
        "decode": decode,
    }
    lines = changes(struct, () if spare is None else ("a.{}.__class__ is not spare",))
    for name, kind, item in value_fields(struct):
        if kind == STRUCTS:
            names[f"each_{name}"] = changer(item, change, spare)
            lines.append(f"several({name!r}, a.{name}, each_{name})")
    if not lines:
        return None
    if decode is not None:
        lines = ["a = decode(a)", *lines, "return a"]
    exec("def changing(a):\n" + "".join([f"    {line}\n" for line in lines]), names)
    function: Callable[[Any], Any] = names["changing"]
    return function


def changes(struct: Type[Struct], conditions: Tuple[str, ...] = ()) -> List[str]:
    """Return lines of source that replace each value of a payload `a`, but those in lists, by `change(value)`."""
    lines: List[str] = []
    for name, kind, _ in value_fields(struct):
        if kind == VALUE:
            optional = UnsetType in _options(get_type_hints(struct)[name])
            terms = [*conditions, "a.{} is not UNSET"] if optional else conditions
            line = f"a.{name} = change(a.{name})"
            lines.append(f"if {' and '.join(terms).format(name, name)}: {line}" if terms else line)
    return lines


def _each(name: str, items: List[Any], change: Callable[[Any], None]) -> None:
    for item in items:
        change(item)


def renderer(
    struct: Type[Struct], show: Callable[[bytes], Any], fits: Optional[str] = None
) -> Optional[Callable[[Any], Any]]:
    """Build a function that returns a copy of an answer with `show(value)` for each value; None where it has no values.

    `fits`: a condition on the first byte of a value, as Python writes it behind that; where it is met, `show` would
    return `Raw(value)`, so it isn't called.

    The copy is needed since answers are shared (among subscribers, and by the remembered replies). An answer in which
    all values are missing is returned itself.
    """
    fields = {field.name: field for field in value_fields(struct)}
    if not fields:
        return None
    names: Dict[str, Any] = {"make": struct, "show": show, "Raw": Raw}
    arguments, empty = [], []
    for name in struct.__struct_fields__:
        field = fields.get(name)
        if field is None:
            arguments.append(f"a.{name}")
        elif field.kind == VALUE:
            optional = type(None) in _options(get_type_hints(struct)[name])
            missing = optional and len(fields) > 1  # a single one that is missing leaves the answer as it is
            value = f"show(a.{name})" if fits is None else f"Raw(a.{name}) if a.{name}[0] {fits} else show(a.{name})"
            arguments.append(f"None if a.{name} is None else {value}" if missing else value)
            empty.append(f"a.{name} is None" if optional else "False")
        else:
            names[f"each_{name}"] = renderer(field.item, show, fits)
            arguments.append(f"[each_{name}(item) for item in a.{name}]")
            empty.append(f"not a.{name}")
    source = f"make({', '.join(arguments)})"
    if "False" not in empty:
        source = f"a if {' and '.join(empty)} else {source}"
    return _function(source, names)


@lru_cache(maxsize=None)
def estimator(struct: Type[Struct], fixed: int = SMALL) -> Optional[Callable[[Any], int]]:
    """Build a function that estimates the encoded bytes of an instance; None where that is always about `SMALL`.

    `fixed`: the bytes of the fixed part.
    """
    fields = varying(struct)
    if not fields:
        return None
    names: Dict[str, Any] = {"texts": _texts, "pairs": _pairs}
    parts = [str(fixed)] if fixed else []
    for name, kind, item in fields:
        if kind == VALUE:
            parts.append(f"(0 if a.{name} is None else len(a.{name}))")
        elif kind in (TEXTS, PAIRS):
            parts.append(f"({kind}(a.{name}) if a.{name} else 0)")
        else:
            each = names[f"each_{name}"] = estimator(item)
            parts.append(f"sum([each_{name}(item) for item in a.{name}])" if each else f"{SMALL} * len(a.{name})")
    return _function(" + ".join(parts), names)


def size_of(one: Struct) -> int:
    """Estimate the encoded bytes of an instance."""
    estimate = estimator(type(one))
    return SMALL if estimate is None else estimate(one)


def counter(struct: Type[Struct]) -> Optional[Callable[[Any], int]]:
    """Build a function that counts the items of all lists of an instance; None where it has no lists."""
    names = [field.name for field in varying(struct) if field.kind in (TEXTS, STRUCTS)]
    return _function(" + ".join(f"len(a.{name})" for name in names), {}) if names else None


def _function(source: str, names: Dict[str, Any]) -> Callable[[Any], Any]:
    function: Callable[[Any], Any] = eval(f"lambda a: {source}", names)
    return function


def _texts(texts: List[str]) -> int:
    return ENTRY * len(texts) + sum(map(len, texts))


def _pairs(texts: Dict[str, str]) -> int:
    return 2 * ENTRY * len(texts) + sum(map(len, texts)) + sum(map(len, texts.values()))
