"""Every signature, class and exception that the guide prints is there, as printed.

What the implementation adds comes after what is printed, with a default.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import inspect
import re
import typing
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple, Type, Union

import pytest

import synap
from synap import AsyncSynapClient, SynapClient, results
from tests.guide.blocks import BLOCKS

Client = Union[Type[AsyncSynapClient], Type[SynapClient]]
Node = Union[ast.FunctionDef, ast.ClassDef]

CALLS = {number: block for number, block in BLOCKS.items() if block.title.startswith("signature")}
CLASSES = (8, 15, 18, 21, 24, 25, 28, 30, 31)


def printed(number: int) -> Iterator[Tuple[str, Node]]:
    """Read a block's signatures (as functions named `group.method`) and classes."""
    text = re.sub(r"^await client\.(\w+)\.(\w+)\(", r"def \1__\2(", BLOCKS[number].source, flags=re.MULTILINE)
    text = re.sub(r"^(def .*?\) -> [^\n:]+)$|^(\) -> [^\n:]+)$", r"\1\2: ...", text, flags=re.MULTILINE)
    for node in ast.parse(text).body:
        assert isinstance(node, (ast.FunctionDef, ast.ClassDef)), ast.dump(node)
        yield node.name.replace("__", "."), node


def in_synap(annotation: ast.expr) -> Any:
    """Evaluate an annotation as a user's module would."""
    return eval(
        compile(ast.Expression(annotation), "guide", "eval"),
        {**vars(typing), **{name: getattr(synap, name) for name in synap.__all__}},
    )


def untyped(hint: Any) -> Any:
    """Put in what a type parameter stands for where nobody gives one: a value of any kind."""
    if isinstance(hint, typing.TypeVar):
        return Any
    parameters = getattr(hint, "__parameters__", ())
    if not parameters:
        return hint
    if hint == List[synap.StreamEvent[results.T]]:  # type: ignore[valid-type]  # a type variable of the module's
        return List[synap.StreamEvent]
    return hint[tuple(Any for _ in parameters)]


SIGNATURES: List[Tuple[str, ast.FunctionDef]] = [
    (name, node) for number in CALLS for name, node in printed(number) if isinstance(node, ast.FunctionDef)
]
SHAPES: List[Tuple[str, ast.ClassDef]] = [
    (name, node)
    for number in CLASSES
    for name, node in printed(number)
    if isinstance(node, ast.ClassDef) and node.decorator_list
]


@pytest.mark.parametrize("colour", [AsyncSynapClient, SynapClient], ids=["async", "sync"])
@pytest.mark.parametrize(("name", "node"), SIGNATURES, ids=[name for name, _ in SIGNATURES])
def test_a_method_takes_what_is_printed(colour: Client, name: str, node: ast.FunctionDef) -> None:
    group, _, method = name.partition(".")
    function = getattr(getattr(colour(url="memory://"), group), method)
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function)
    if node.args.vararg:
        first, *others = signature.parameters.values()
        assert str(first) == f"*{node.args.vararg.arg}: 'str'"
        assert all(other.kind is inspect.Parameter.KEYWORD_ONLY for other in others)
        assert hints[node.args.vararg.arg] is str
    else:
        parameters = list(signature.parameters.values())
        count = len(node.args.args)
        assert [parameter.name for parameter in parameters[:count]] == [argument.arg for argument in node.args.args]
        defaults = node.args.defaults
        for parameter, default in zip(parameters[count - len(defaults) : count], defaults):
            assert parameter.default == ast.literal_eval(default), parameter.name
        for argument in node.args.args:
            assert argument.annotation is not None
            if argument.arg == "callback":
                assert "Callable" in str(hints["callback"])
                continue
            wanted = in_synap(argument.annotation)
            # A float parameter takes every int, and more.
            assert hints[argument.arg] in (wanted, float if wanted is int else wanted), argument.arg
        for parameter in parameters[count:]:
            assert parameter.default is not inspect.Parameter.empty, parameter.name
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter.name
    assert node.returns is not None
    if isinstance(node.returns, ast.Name) and node.returns.id == "Subscription":
        assert "Subscription" in str(hints["return"])
    else:
        assert hints["return"] == in_synap(node.returns) or hints["return"] is type(None)
    assert inspect.iscoroutinefunction(function) is (colour is AsyncSynapClient)


@pytest.mark.parametrize(("name", "node"), SHAPES, ids=[name for name, _ in SHAPES])
def test_a_result_has_the_fields_that_are_printed(name: str, node: ast.ClassDef) -> None:
    found = getattr(results, name)
    assert dataclasses.is_dataclass(found)
    wanted: Dict[str, Any] = {
        field.target.id: in_synap(field.annotation)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    fields = dataclasses.fields(found)
    hints = typing.get_type_hints(found)
    assert {field: untyped(hints[field]) for field in wanted} == wanted
    if "topic" in wanted:  # one name, two shapes: the class holds the fields of both
        return
    assert [field.name for field in fields[: len(wanted)]] == list(wanted)
    missing = dataclasses.MISSING
    assert all(field.default is not missing or field.default_factory is not missing for field in fields[len(wanted) :])


async def test_a_subscription_has_what_is_printed() -> None:
    assert inspect.iscoroutinefunction(synap.Subscription.unsubscribe)
    async with AsyncSynapClient(url="memory://") as client:
        subscription = await client.stream.subscribe("room", print)
        assert isinstance(subscription, synap.Subscription)
        assert subscription.room == "room"
        await asyncio.sleep(0)
        await subscription.unsubscribe()


def test_the_exceptions_are_as_printed() -> None:
    for name, node in printed(35):
        assert isinstance(node, ast.ClassDef)
        found = getattr(synap, name)
        base = ast.literal_eval(repr(node.bases[0].id)) if isinstance(node.bases[0], ast.Name) else ""
        assert issubclass(found, Exception if base == "Exception" else getattr(synap, base))
    error = synap.SynapError("CODE", "message")
    assert (error.code, error.message, error.details) == ("CODE", "message", {})
    assert synap.SynapError("CODE", "message", {"a": 1}).details == {"a": 1}
    assert list(inspect.signature(synap.SynapError).parameters) == ["code", "message", "details"]


def test_the_distribution_is_named_as_printed() -> None:
    assert BLOCKS[1].source == "pip install synap-client\n"
    project = Path(__file__).resolve().parents[2].joinpath("pyproject.toml").read_text("utf-8")
    assert 'name = "synap-client"' in project
    assert 'requires-python = ">=3.8"' in project
