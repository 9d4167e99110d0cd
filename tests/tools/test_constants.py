"""A module gives a constant its value once: a second assignment further down changes what code above it does."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import synap


def assigned(module: ast.Module) -> Counter[str]:
    """Count the assignments to each name at the top of a module; those in branches (`if`, `try`) aren't counted."""
    names: Counter[str] = Counter()
    for statement in module.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        names.update(node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
    return names


def test_no_constant_is_assigned_twice() -> None:
    files = sorted(Path(synap.__file__).parent.rglob("*.py"))
    assert len(files) > 200
    for file in files:
        twice = [name for name, count in assigned(ast.parse(file.read_text("utf-8"))).items() if count > 1]
        assert not twice, f"{file}: {', '.join(twice)}"


def test_a_second_assignment_is_seen() -> None:
    assert assigned(ast.parse("A, B = 1, 2\nif A:\n    C = 3\nelse:\n    C = 4\nA = 5"))["A"] == 2
