"""What no test may do, lest it fail on a machine that is busy."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Iterator, List, Optional, Tuple, Type

from tests.helpers.patience import PATIENCE

TESTS = Path(__file__).parent
COMMANDS = {"hosts", "console/pictures.py", "client/test_static_types.py"}
"""What is run by hand, or only read by type checkers."""
WAITS = {"wait", "wait_for", "join", "result", "acquire", "communicate", "run", "consume", "consume_many"}
SHORT = 5
"""Seconds up to which a wait is one in which nothing is to happen."""
LONG = 20
"""Seconds that a process may be kept from running, and that a bound on what passed has to leave room for."""
CLIENTS = {"SynapClient", "AsyncSynapClient", "connect", "make", "client"}
"""What makes a client."""
SUBSCRIPTIONS = {"subscription", "subscribe", "messages"}
"""What may have nothing more to give."""
NOBODY = {"NOWHERE", "hole"}
"""Addresses where no call is to succeed."""
TIMED = re.compile(r"\bslice \d+ of \d")
"""What a message says of something whose parts end by time, as if a test could know how many there are."""


@functools.lru_cache(maxsize=None)
def nodes() -> List[Tuple[str, ast.AST]]:
    """Return what is judged in the tests' sources, each with its place."""
    judged: List[Tuple[str, ast.AST]] = []
    for path in sorted(TESTS.rglob("*.py")):
        relative = path.relative_to(TESTS)
        if relative.parts[0] not in COMMANDS and relative.as_posix() not in COMMANDS:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, (ast.Call, ast.Assert, ast.Assign, ast.AsyncFor, ast.Constant)):
                    judged.append((f"{relative}:{node.lineno}", node))
                elif isinstance(node, ast.withitem):
                    judged.append((f"{relative}:{node.context_expr.lineno}", node))
    return judged


def found(looked_for: Type[ast.AST]) -> Iterator[str]:
    """Go through what the tests' sources have of a kind, as `place: what is wrong with it`."""
    for place, node in nodes():
        if isinstance(node, looked_for):
            said = fault(node)
            if said is not None:
                yield f"{place}: {said}"


def fault(node: ast.AST) -> Optional[str]:
    """Say what is wrong with a call, an assertion, a loop, or what a client is made with."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and TIMED.search(node.value):
        return "a slice of a snapshot ends by time: ask how many there are (`snapshot_slices`)"
    if isinstance(node, ast.AsyncFor):
        through = set(names(node.iter))
        if through & SUBSCRIPTIONS and "in_time" not in through:
            return "an event that doesn't come is waited for without an end: go through `in_time(…)`"
    if isinstance(node, (ast.Assign, ast.withitem)):
        made = node.value if isinstance(node, ast.Assign) else node.context_expr
        if isinstance(made, ast.Call) and not (made.args and NOBODY & set(names(made.args[0]))):
            given = [keyword.value for keyword in made.keywords if keyword.arg == "timeout"]
            limits = [seconds for seconds in map(number, given) if seconds is not None and seconds < LONG]
            if limits and next(names(made.func)) in CLIENTS:
                return f"calls that are to succeed may take more than {limits[0]:g} seconds: see `impatient`"
    if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare):
        clocks = {name for name in names(node.test.left) if name in ("monotonic", "perf_counter")}
        bound = number(node.test.comparators[-1])
        if clocks and isinstance(node.test.ops[-1], (ast.Lt, ast.LtE)) and bound is not None and bound < LONG:
            return f"{bound:g} seconds may pass while a process doesn't run: measure by `Stopwatch`"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        given_names = {keyword.arg for keyword in node.keywords}
        if node.func.id == "connect" and {"ssl", "proxy"} <= given_names:  # that of websockets.sync.client
            return "a blocking WebSocket over TLS loses its first message now and then: see `ask_over_websocket`"
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


def test_no_test_waits_without_an_end_for_what_a_subscription_gives() -> None:
    assert list(found(ast.AsyncFor)) == []


def test_no_client_is_less_patient_than_the_calls_that_are_to_succeed_may_need() -> None:
    assert [*found(ast.Assign), *found(ast.withitem)] == []


def test_no_test_bounds_what_passes_while_its_process_cannot_run() -> None:
    assert list(found(ast.Assert)) == []


def test_no_test_knows_how_many_parts_there_are_of_what_ends_by_time() -> None:
    assert list(found(ast.Constant)) == []
