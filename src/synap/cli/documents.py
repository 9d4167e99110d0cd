"""JSON in and out: read values, print results."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from typing import Any, BinaryIO, Dict, Iterable, Iterator, Optional, Sequence

import click
import msgspec

from synap.cli.exits import usage
from synap.terminal import escaped, is_closed


def _refuse_constant(name: str) -> Any:
    """Refuse NaN and infinities, which Python's parser accepts and JSON doesn't have."""
    raise ValueError(name)


def parse(text: str) -> Any:
    """Parse a value as JSON; what isn't JSON is text."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text
    except RecursionError:
        raise usage("the value is nested too deep") from None


def standard_input() -> BinaryIO:
    """Return stdin; raises a usage error where it is closed: nothing is not an empty text."""
    if is_closed(sys.stdin):
        raise usage("stdin is closed, so there is nothing to read from it")
    return sys.stdin.buffer


def need_output() -> None:
    """Raise a usage error where stdout is closed, for a command that takes away what it prints, or does only that."""
    if is_closed(sys.stdout):
        raise usage("stdout is closed, and what this prints would be lost")


def read_value(argument: str, *, string: bool = False, binary: bool = False) -> Any:
    """Read a value from the command line, `-` from stdin.

    `string`: don't parse JSON. `binary`: return bytes. One line break at the end of stdin is removed from text.
    """
    if argument == "-":
        data = standard_input().read()
        if binary:
            return data
        argument = text_of(data)
        if argument.endswith("\n"):
            argument = argument[:-2] if argument.endswith("\r\n") else argument[:-1]
    elif binary:
        return argument.encode("utf-8", "surrogateescape")
    return argument if string else parse(argument)


def read_lines(*, string: bool = False) -> Iterator[Any]:
    """Read one value a line from stdin, as it comes; empty lines are skipped."""
    for line in iter(standard_input().readline, b""):
        text = text_of(line).rstrip("\r\n")
        if text:
            yield text if string else parse(text)


def read_values(argument: Optional[str], *, string: bool, lines: bool) -> Iterator[object]:
    """Yield the values to publish: the argument, or each line of stdin."""
    if lines:
        if argument not in (None, "-"):
            raise usage("--lines reads from stdin: leave the message out")
        yield from read_lines(string=string)
    elif argument is None:
        raise usage("say what to publish, or - to read it from stdin")
    else:
        yield read_value(argument, string=string)


def pairs(given: Sequence[str], what: str) -> Optional[Dict[str, str]]:
    """Read `NAME=TEXT` options; None where there are none."""
    found: Dict[str, str] = {}
    for item in given:
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise usage(f"{what} must be NAME=TEXT, got {item!r}")
        found[name] = text
    return found or None


def text_of(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise usage(f"stdin is not UTF-8 text ({error}); `kv set --binary` stores bytes") from None


def plain(thing: Any) -> Any:
    """Convert what `json` can't encode: the client's results, and bytes (to base64)."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    if isinstance(thing, msgspec.Struct):
        return msgspec.structs.asdict(thing)
    if isinstance(thing, (bytes, bytearray)):
        return base64.b64encode(thing).decode()
    raise TypeError(f"{type(thing).__name__} has no JSON form")


def emit(document: Any, pretty: bool = False, *, raw: bool = False) -> None:
    """Print one JSON document, on a line of its own unless `pretty`. `raw`: print text and bytes as they are.

    Control characters that a terminal interprets are escaped as JSON does it, even if the output is a file: the
    document is the same, and may be shown later (`tee`, `ssh`, a log).
    """
    if raw and isinstance(document, (str, bytes)):
        click.echo(document.encode() if isinstance(document, str) else document, nl=isinstance(document, str))
        return
    if pretty:
        text = escaped(json.dumps(document, ensure_ascii=False, indent=2, default=plain))
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.highlighter import JSONHighlighter

            Console().print(JSONHighlighter()(text), soft_wrap=True)
            return
    else:
        text = escaped(json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=plain))
    # Bytes, so that it is UTF-8 whatever the locale says. click flushes, so that `tail | grep` sees it at once.
    click.echo(text.encode())


def emit_names(names: Iterable[str], raw: bool, pretty: bool) -> None:
    """Print names one a line: as JSON, or as they are."""
    for name in names:
        emit(name, pretty, raw=raw)
