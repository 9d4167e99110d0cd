"""The guide's code blocks by number, and how to run one."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any, Dict, NamedTuple

_FILE = Path(__file__).with_name("blocks.md")
_BLOCK = re.compile(r"^## (\d+) (.*?)\n\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

PRINTED_URL = "http://localhost:15500"


class Block(NamedTuple):
    title: str
    language: str
    source: str
    line: int


def _read() -> Dict[int, Block]:
    text = _FILE.read_text("utf-8")
    return {
        int(found.group(1)): Block(found.group(2), found.group(3), found.group(4), text.count("\n", 0, found.start(4)))
        for found in _BLOCK.finditer(text)
    }


BLOCKS = _read()


def source(number: int, url: str) -> str:
    """Give a block's text with the service's address in it, on the lines that it has in the file."""
    block = BLOCKS[number]
    return "\n" * block.line + block.source.replace(PRINTED_URL, url)


async def run(number: int, url: str, names: Dict[str, Any]) -> Dict[str, Any]:
    """Run a block as it is printed, with `names` for what it takes for granted; returns all names afterwards."""
    code = compile(source(number, url), str(_FILE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result
    return names
