"""What the runs have in common: a service, a folder to run in, pytest as the host would call it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from synap.testing.server import ThrowawayServer

__all__ = ["checkout", "exceptions", "pytest_run"]

Exceptions = Mapping[str, Sequence[str]]
"""Tests that are left out, by the reason."""


def checkout(description: Optional[str], has: str) -> Path:
    """Read the path of the host's source from the command line; ends the program where `has` isn't in it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the host's source: a checkout, or its unpacked sdist")
    path: Path = parser.parse_args().checkout.resolve()
    if not (path / has).exists():
        parser.error(f"there is no {has} in {path}")
    return path


def exceptions(left_out: Exceptions) -> List[str]:
    """Print what is left out and why, and return pytest's arguments for it."""
    arguments = []
    for reason, tests in left_out.items():
        print(f"left out ({len(tests)}): {reason}")
        for test in tests:
            print(f"  {test}")
            arguments.append(f"--deselect={test}")
    return arguments


def pytest_run(
    arguments: Sequence[str],
    files: Mapping[str, str],
    *,
    path: Sequence[Path] = (),
    trees: Mapping[str, Path] = {},
    environment: Optional[Mapping[str, str]] = None,
    server_arguments: Sequence[str] = (),
) -> int:
    """Run pytest on `files`, written to a folder of their own, beside a service in memory; returns its exit code.

    `path` is what the tests may import from, `trees` are folders to copy there. They find the service's URL in
    `SYNAP_URL`.
    """
    with tempfile.TemporaryDirectory() as folder, ThrowawayServer(arguments=server_arguments) as server:
        for name, tree in trees.items():
            shutil.copytree(tree, Path(folder, name))
        for name, text in files.items():
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_text(text, "utf-8")
        Path(folder, "pytest.ini").write_text("[pytest]\n", "utf-8")
        variables: Dict[str, str] = {**os.environ, **(environment or {}), "SYNAP_URL": server.url}
        before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        variables["PYTHONPATH"] = os.pathsep.join([folder, *map(str, path), *before])
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-rfE"]
        return subprocess.run([*command, *arguments], cwd=folder, env=variables, check=False).returncode
