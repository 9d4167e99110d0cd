"""Tests that fork, and what a forked child found."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Callable

import pytest

import synap
from tests.helpers.patience import PATIENCE

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test that forks in a process of its own: the one that runs all tests has threads of others."""

    @functools.wraps(test)
    def run(**paths: Path) -> None:
        program = f"""
            import pathlib, sys
            from {test.__module__} import {test.__name__} as test
            test.__wrapped__(*map(pathlib.Path, sys.argv[1:]))
        """
        command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning"]
        command += ["-c", textwrap.dedent(program), *map(str, paths.values())]
        roots = [str(Path(__file__).parents[2]), str(Path(synap.__file__).parents[1])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert ran.returncode == 0, ran.stderr

    return run


def in_a_fork(work: Callable[[], Any]) -> str:
    """Run `work` in a forked child and return what it returned, or raised, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(int(PATIENCE))
            os.write(writing, str(work()).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said
