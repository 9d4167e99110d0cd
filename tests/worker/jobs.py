"""Handlers for processes of the pool: they are imported there."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from synap.worker import Message


def square(value: int, message: Message) -> int:
    """Return a square, and write it down together with the acknowledgement."""
    message.pipeline().kv.set(f"{message.queue}-{message.message_id}", value * value, ttl=60)
    return value * value


def hang(value: int) -> None:
    """Take longer than anybody waits."""
    time.sleep(60)


def die(value: int) -> None:
    """End the process."""
    os._exit(7)


def fork_and_die(path: str) -> None:
    """End the process, but not one that it has forked, whose id is written to a file."""
    child = os.fork()
    if not child:
        time.sleep(600)
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(child))
    os._exit(7)


def say_and_hang() -> None:
    """Print the process's id, and take longer than anybody waits."""
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(600)


def fail(value: int) -> None:
    """Raise an error of the function's own."""
    raise ZeroDivisionError("of its own")


def unsendable(value: int) -> Any:
    """Return what can't be pickled."""
    return threading.Lock()


def leave(value: int) -> None:
    """Exit as a program does."""
    sys.exit(3)


def end_iteration(value: int) -> None:
    """Raise `StopIteration`."""
    next(iter(()))


def time_out(value: int) -> None:
    """Raise the `TimeoutError` of something that the function called."""
    raise TimeoutError("the database did not answer")
