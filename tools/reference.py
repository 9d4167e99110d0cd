"""Write the reference pages: `docs/commands.md` from the commands' table, `docs/settings.md` from the server's options,
`docs/metrics.md` from what a service exposes (`tools/metrics.py`).

With `--check`, fail where a page is stale.
"""

from __future__ import annotations

import argparse
import ast
import inspect as source
import sys
import textwrap
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import msgspec
from msgspec import inspect

from metrics import page as metrics
from synap.commands import COMMANDS, Answer, Command, Figures, Flag
from synap.errors import CODES, NEVER_ANSWERED
from synap.server.options import Option
from synap.server.settings import OPTIONS

DOCS = Path(__file__).resolve().parents[1] / "docs"
GROUPS = {
    "kv": "Key-value",
    "queue": "Queues",
    "stream": "Event streams",
    "pubsub": "Pub/sub",
    "admin": "Administration",
}
WORDS = {"StrType": "text", "BoolType": "boolean", "IntType": "integer", "FloatType": "number", "RawType": "any value"}
INTRODUCTION = """\
# Commands

Made by `tools/reference.py` from the table in `synap/commands/`, which is also what validates requests. A field
that says *optional* may be left out or be `null`; one that says *if given* may be left out, and `null` in it is a
value. An unknown field is refused.

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
    if isinstance(node, inspect.LiteralType):
        return " or ".join(f"`{value}`" for value in node.values)
    return None


def word(node: Any) -> str:
    """Name a type in a word or two."""
    node = bare(node)
    if isinstance(node, inspect.ListType):
        return f"list of {word(node.item_type)}"
    if isinstance(node, inspect.DictType):
        return "object of text"
    if isinstance(node, (inspect.StructType, inspect.DataclassType)):
        return "object {" + ", ".join(field.name for field in node.fields) + "}"
    if isinstance(node, inspect.LiteralType):
        return "text"
    return WORDS.get(type(node).__name__, "any value")


def shown_default(field: inspect.Field) -> str:
    if field.required:
        return "**required**"
    if field.default is None:
        return "optional"
    if field.default is msgspec.NODEFAULT:
        return "if given" if field.default_factory is msgspec.NODEFAULT else "`{}`"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def said_of_fields(struct: Any) -> Dict[str, str]:
    """Return the texts that stand below the fields of a payload's class."""
    (parsed,) = ast.parse(textwrap.dedent(source.getsource(struct))).body
    assert isinstance(parsed, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(parsed.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def rows(struct: Any, of: str = "") -> Iterator[str]:
    """Write a row for each field of a payload, and of the objects in it."""
    texts = said_of_fields(struct.cls)
    for field in struct.fields:
        name, inner = of + field.name, bare(field.type)
        shown, text = rule(field.type), texts.get(field.name, "")
        meant = f"{shown}. {text}" if shown and text else shown or text
        yield f"| `{name}` | {word(field.type)} | {shown_default(field)} | {meant} |"
        if isinstance(inner, inspect.StructType):
            yield from rows(inner, f"{name}.")
        elif isinstance(inner, inspect.ListType) and isinstance(bare(inner.item_type), inspect.StructType):
            yield from rows(bare(inner.item_type), f"{name}[].")


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
        yield "| field | type | default | must be; what it is |"
        yield "|---|---|---|---|"
        yield from rows(payload)
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
`15m`, `24h`. What may be given several times is a list in the file, and separated by commas in a variable: a key with a
comma in it must come from a file.
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
may see; `pubsub.stats`, whose figures are of all topics, needs `pubsub:read:#`. `admin` stands alone. A batch needs
what its commands need, each by itself. `stream.subscribe` with a `name` needs what `stream.commit` needs, too: it
stores a position, and ends another's subscription by that name.
"""


ERRORS = """\
The message says what was wrong and what would be right; `details` names it for programs. What clients try again by
themselves, and when a write may have happened: [errors.md](guide/errors.md).
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
    lines += ["", "## Errors", "", ERRORS, "| code | HTTP | exception | what to do |", "|---|---|---|---|"]
    for code, entry in CODES.items():
        status = "–" if code in NEVER_ANSWERED else entry.status
        lines.append(f"| `{code}` | {status} | `{entry.exception.__name__}` | {entry.advice} |")
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


PAGES = {"commands.md": commands, "settings.md": settings, "metrics.md": metrics}


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
