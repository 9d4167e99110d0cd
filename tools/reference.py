"""Write the reference pages: `docs/commands.md` from the commands' table, `docs/settings.md` from the server's options.

With `--check`, fail where a page is stale.
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path
from typing import Any, Iterator, List, Optional

import msgspec
from msgspec import inspect

from synap.commands import COMMANDS, Answer, Command, Figures, Flag
from synap.errors import CODES
from synap.server.settings import OPTIONS, Option

DOCS = Path(__file__).resolve().parents[1] / "docs"
GROUPS = {
    "kv": "Key-value",
    "queue": "Queues",
    "stream": "Event streams",
    "pubsub": "Pub/sub",
    "admin": "Administration",
}
CLIENT_SIDE = ("CONNECTION_FAILED", "CONNECTION_LOST", "TIMEOUT")
WORDS = {"StrType": "text", "BoolType": "boolean", "IntType": "integer", "FloatType": "number", "RawType": "any value"}
INTRODUCTION = """\
# Commands

Made by `tools/reference.py` from the table in `synap/commands/`, which is also what validates requests. A field
without a default is required; `null` is the default where it says optional. An unknown field is refused.

A command that *writes* takes effect once however often it is sent under one request id ([protocol.md](protocol.md)).
One that *waits* or *subscribes* is refused in a batch.
"""


def bare(node: Any) -> Any:
    """Look through annotations and options to the type itself."""
    if isinstance(node, inspect.Metadata):
        return bare(node.type)
    if isinstance(node, inspect.UnionType):
        return bare(next(option for option in node.types if not isinstance(option, inspect.NoneType)))
    return node


def rule(node: Any) -> Optional[str]:
    """Return what the table says would be right for a field."""
    if isinstance(node, inspect.Metadata):
        return (node.extra_json_schema or {}).get("description") or rule(node.type)
    if isinstance(node, inspect.UnionType):
        return next((text for text in map(rule, node.types) if text), None)
    return None


def word(node: Any) -> str:
    """Name a type in a word or two."""
    node = bare(node)
    if isinstance(node, inspect.ListType):
        return f"list of {word(node.item_type)}"
    if isinstance(node, inspect.DictType):
        return "object of text"
    if isinstance(node, inspect.StructType):
        return "object {" + ", ".join(field.name for field in node.fields) + "}"
    if isinstance(node, inspect.BytesType):
        return "any value"
    return WORDS.get(type(node).__name__, "any value")


def shown_default(field: inspect.Field) -> str:
    if field.required:
        return "**required**"
    if field.default is None:
        return "optional"
    if field.default is msgspec.NODEFAULT:
        return "`{}`"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def describe(command: Command) -> Iterator[str]:
    """Write one command's part of the page."""
    yield f"### `{command.name}`"
    yield ""
    traits = [text for flag, text in TRAITS.items() if command.flags & flag]
    yield command.doc + (f" *{', '.join(traits).capitalize()}.*" if traits else "")
    yield ""
    payload = inspect.type_info(command.payload)
    assert isinstance(payload, inspect.StructType)
    if payload.fields:
        yield "| field | type | default | must be |"
        yield "|---|---|---|---|"
        for field in payload.fields:
            yield f"| `{field.name}` | {word(field.type)} | {shown_default(field)} | {rule(field.type) or ''} |"
    else:
        yield "No fields."
    yield ""
    yield f"Answer: {answer(command)}"
    yield ""


def answer(command: Command) -> str:
    """Write what a command answers in one line."""
    if command.answer is Figures:
        return "figures by name."
    info = inspect.type_info(command.answer)
    assert isinstance(info, inspect.StructType)
    fields = ", ".join(f"`{field.name}` ({word(field.type)})" for field in info.fields)
    return fields + (", or null." if command.nullable else ".")


SETTINGS = """\
# Settings of `synap serve`

Made by `tools/reference.py` from the list in `synap/server/settings.py`. The command line goes before the environment,
that before the file (`--config synap.toml`, or `SYNAP_CONFIG`). Sizes may be written `64MB` or `1GiB`, times `90`,
`15m`, `24h`.
"""

TRAITS = {
    Flag.WRITE: "writes",
    Flag.WAITS: "waits",
    Flag.PUSHES: "subscribes",
    Flag.SESSION: "belongs to its connection",
    Flag.ADMIN: "needs an admin key",
}


GRANTS = """\
What a key needs a grant for, such as `kv:read:user:*` ([operations.md](operations.md#keys)): the command's facility,
this verb, and a pattern that all its names match. Commands that list need a grant for some name, and show what the key
may see. `admin` stands alone. A batch needs what its commands need, each by itself.
"""


def commands() -> str:
    """Write the page of the commands."""
    lines: List[str] = [INTRODUCTION]
    for group, members in groupby(COMMANDS.values(), lambda command: command.group):
        lines += [f"## {GROUPS[group]}", ""]
        for command in members:
            assert issubclass(command.answer, Answer)
            lines += describe(command)
    lines += ["## Grants", "", GRANTS, "| command | verb | names |", "|---|---|---|"]
    for command in COMMANDS.values():
        verb = f"`{command.verb}`" if command.verb else "none: it is the caller's own"
        shown = f"`{command.name_field}`" if command.name_field else "–"
        lines.append(f"| `{command.name}` | {verb} | {shown} |")
    lines += ["", "## Errors", "", "| code | HTTP | exception |", "|---|---|---|"]
    for code, entry in CODES.items():
        lines.append(f"| `{code}` | {'–' if code in CLIENT_SIDE else entry.status} | `{entry.exception.__name__}` |")
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Write the page of the server's options."""
    lines = [SETTINGS, "| option | variable | in the file | default | |", "|---|---|---|---|---|"]
    lines += [
        f"| `{option.on_command_line}` | `{option.in_environment}` | `{option.name}` | {said(option)} | {option.doc} |"
        for option in OPTIONS
    ]
    return "\n".join(lines) + "\n"


def said(option: Option) -> str:
    """Write an option's default the way a person would."""
    default = option.default
    if default is None or default == []:
        return "none"
    if option.kind == "flag":
        return "off"
    if option.kind == "size" and default % (1024 * 1024) == 0:
        return f"{default // (1024 * 1024)} MiB"
    if option.kind == "seconds":
        return f"{default:g} s"
    return f"`{default}`"


PAGES = {"commands.md": commands, "settings.md": settings}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    stale = []
    for name, write in PAGES.items():
        target, made = DOCS / name, write()
        if not check:
            target.write_text(made, "utf-8")
        elif not target.exists() or target.read_text("utf-8") != made:
            stale.append(f"docs/{name}")
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run python tools/reference.py\n")
    return bool(stale)


if __name__ == "__main__":
    raise SystemExit(main())
