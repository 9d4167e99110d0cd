"""What no test may do, lest it fail on a machine that is busy."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Iterator, Optional

from tests.helpers.patience import PATIENCE

TESTS = Path(__file__).parent
COMMANDS = {"hosts", "console/pictures.py"}
"""What is run by hand."""
WAITS = {"wait", "wait_for", "join", "result", "acquire", "communicate", "run"}
SHORT = 5
"""Seconds up to which a wait is one in which nothing is to happen."""
LONG = 20
"""Seconds that a process may be kept from running, and that a bound on what passed has to leave room for."""


def found(looked_for: type[ast.Call] | type[ast.Assert]) -> Iterator[str]:
    """Go through what the tests' sources have of a kind, as `place: code`."""
    for path in sorted(TESTS.rglob("*.py")):
        relative = path.relative_to(TESTS)
        if relative.parts[0] not in COMMANDS and relative.as_posix() not in COMMANDS:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, looked_for):
                    said = fault(node)
                    if said is not None:
                        yield f"{relative}:{node.lineno}: {said}"


def fault(node: ast.AST) -> Optional[str]:
    """Say what is wrong with a call or an assertion."""
    if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare):
        clocks = {name for name in names(node.test.left) if name in ("monotonic", "perf_counter")}
        bound = number(node.test.comparators[-1])
        if clocks and isinstance(node.test.ops[-1], (ast.Lt, ast.LtE)) and bound is not None and bound < LONG:
            return f"{bound:g} seconds may pass while a process doesn't run: measure by `Stopwatch`"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        given = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
        if node.func.attr == "timeout" and node.args and "mark" in names(node.func):
            limit = number(node.args[0])
            if limit is not None and limit < suites_limit():
                return f"a test has {suites_limit():g} seconds, or more"
        if node.func.attr in WAITS and node.func.attr != "run":
            given += node.args[-1:]
        if node.func.attr in WAITS:
            for seconds in filter(None, map(number, given)):
                if SHORT <= seconds < PATIENCE:
                    return f"wait for {seconds:g} seconds: either `PATIENCE`, or less than {SHORT} where nothing comes"
    return None


def number(node: ast.AST) -> Optional[float]:
    value = node.value if isinstance(node, ast.Constant) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def names(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.Name):
            yield part.id


def suites_limit() -> float:
    settings = (TESTS.parent / "pyproject.toml").read_text("utf-8")
    limit = re.search(r"^timeout = (\d+)", settings, re.MULTILINE)
    assert limit is not None
    return float(limit[1])


def test_no_test_gives_up_before_a_busy_machine_is_done() -> None:
    assert list(found(ast.Call)) == []


def test_no_test_bounds_what_passes_while_its_process_cannot_run() -> None:
    assert list(found(ast.Assert)) == []
