"""The command line.

This file runs on every Python, so that a missing dependency is reported with the command that installs it.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from typing import Iterator

__all__ = ["importing", "main"]

NEEDS = (3, 10)
IN_EXTRA = {"click", "httptools", "prometheus_client", "rich", "tomli", "uvicorn", "uvloop"}
EXTRA = 'pip install "synap-client[server]"'


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import without the garbage collector, and keep what that made: it is next to no garbage, and looking for some
    would take an eighth of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.enable()


def main() -> None:
    """Run the command line with the arguments of this process and exit with its code (`synap --help` lists them)."""
    if sys.version_info < NEEDS:
        sys.stderr.write(
            f"synap: the command line and the server need Python {NEEDS[0]}.{NEEDS[1]} or newer, this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}; install them there with: {EXTRA} "
            "(the client library works here too)\n"
        )
        sys.exit(5)
    try:
        with importing():
            from synap.terminal import fill_streams

            fill_streams()
            from synap.cli.app import run

        code = run()
    except ModuleNotFoundError as missing:
        module = (missing.name or "").partition(".")[0]
        if module not in IN_EXTRA:
            raise
        sys.stderr.write(f"synap: this needs {module}, which is not installed: {EXTRA}\n")
        code = 5
    except KeyboardInterrupt:  # while the command line was imported; `run` takes those that come later
        code = 130
    sys.exit(code)
