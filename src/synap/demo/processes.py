"""Child processes that never outlive their parent.

Each child reads its stdin, a pipe whose other end only the parent holds. When the parent closes it, or is gone for
whatever reason (SIGKILL included), the child reads its end and ends too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Callable, List, Sequence, Union

GRACE = 4.0
"""Seconds a child usually has to end by itself."""

FREEZES = hasattr(signal, "SIGSTOP")


class Child:
    """A process of the demo: a module of this package, run by the same Python."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        output: Union[int, IO[bytes]],
        errors: Union[int, IO[bytes], None] = None,
        *,
        grace: float = GRACE,
    ) -> None:
        self.name = name
        self.grace = grace
        """Seconds it has to end by itself."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output if errors is None else errors,
            # Of its own session, so that Ctrl-C reaches the parent alone, which then ends its children in order.
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def freeze(self) -> None:
        """Suspend it (SIGSTOP, where the system has it)."""
        if FREEZES:
            self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume it (SIGCONT)."""
        if FREEZES:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it (SIGKILL), as the out-of-memory killer would."""
        self.process.kill()
        self.process.wait()
        self.release()

    def release(self) -> None:
        """Close the pipe: the child ends by itself."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()


def end_all(children: Sequence[Child]) -> None:
    """End all that still run, together: first asked, later killed. Returns when all are gone."""
    for child in children:
        child.release()
    began = time.monotonic()
    late: List[Child] = []
    for child in children:
        try:
            child.process.wait(max(0.0, began + child.grace - time.monotonic()))
        except subprocess.TimeoutExpired:
            late.append(child)
    for child in late:
        child.kill()


def lifeline(cut: Callable[[], None]) -> None:
    """In a child: call `cut` on a thread once the parent releases it or is gone, and exit soon after."""

    def watch() -> None:
        # Not sys.stdin: a thread that waits in it would be in the way of the interpreter's end.
        while os.read(0, 64):
            pass
        cut()
        time.sleep(GRACE - 1)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
