"""One worker process: import the worker, run it, exit."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import Any, Callable, Coroutine, List, Optional, Sequence

from synap.errors import SynapError
from synap.terminal import LineFormatter, escaped
from synap.worker.app import Worker

log = logging.getLogger("synap.worker")

FOUND_NOTHING = 2
"""Exit code where there is no such worker, so that it isn't restarted."""


def load(place: str) -> Worker:
    """Import `module:attribute` and return the worker; raises `INVALID_REQUEST` where there is none."""
    module_name, separator, attribute = place.partition(":")
    if not separator or not module_name or not attribute:
        rule = "module:attribute, such as myapp.jobs:worker"
        raise SynapError("INVALID_REQUEST", f"a worker is named {rule}, got {place!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # of something that the module imports
        raise SynapError("INVALID_REQUEST", f"there is no module {error.name!r} (looked in {os.getcwd()})") from None
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise SynapError("INVALID_REQUEST", f"{module_name} has no {attribute!r}") from None
    if not isinstance(found, Worker):
        raise SynapError("INVALID_REQUEST", f"{place} is no Worker but {type(found).__name__}")
    return found


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run one worker process and exit."""
    parser = argparse.ArgumentParser(prog="python -m synap.worker", description="Run one worker process.")
    parser.add_argument("worker", help="module:attribute")
    parser.add_argument("--concurrency", type=int, help="messages worked on at once")
    parser.add_argument("--grace", type=float, help="seconds that handlers have to end")
    parser.add_argument("--queue", action="append", help="only this queue's handler; may be repeated")
    parser.add_argument("--lifeline", action="store_true", help="stop when standard input ends")
    options = parser.parse_args(arguments)
    lifeline = _lifeline() if options.lifeline else None
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    worker: Optional[Worker] = None
    code = 0
    try:
        worker = load(options.worker)
        if options.concurrency is not None:
            worker.concurrency = options.concurrency
        if options.grace is not None:
            worker.grace = options.grace
        _run(_work(worker, options.queue, lifeline))
    except SynapError as error:
        sys.stderr.write(escaped(f"synap worker: {error.message}\n"))
        code = FOUND_NOTHING if error.code == "INVALID_REQUEST" else 1
    if worker is not None and worker.lingers:
        # A thread still runs a handler that timed out: only the end of the process stops it.
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


def _lifeline() -> int:
    """Take standard input away, as a descriptor that isn't inherited, and leave an empty one in its place.

    A program that a handler starts would wait for the supervisor, if it read its standard input.
    """
    lifeline = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return lifeline


async def _work(worker: Worker, queues: Optional[List[str]], lifeline: Optional[int]) -> None:
    names = ", ".join(queues or worker.handlers)
    worker.on("started")(lambda event: log.info("takes messages of %s from %r", names, worker.client))
    async with worker.client:
        if lifeline is not None:
            _obey(worker, lifeline)
        await worker.run(queues=queues, handle_signals=lifeline is None)


def _obey(worker: Worker, lifeline: int) -> None:
    """Stop a worker at SIGTERM and when its supervisor ends; at SIGINT, the supervisor's second signal, at once.

    SIGTERM counts once: systemd sends it to all processes of a service, and so does the supervisor.
    """
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if not worker.stopping:
            worker.stop()

    def cancel() -> None:
        stop()
        worker.stop()

    with suppress(NotImplementedError):  # Windows
        loop.add_signal_handler(signal.SIGTERM, stop)
        loop.add_signal_handler(signal.SIGINT, cancel)
    threading.Thread(target=_watch, args=(lifeline, partial(loop.call_soon_threadsafe, stop)), daemon=True).start()


def _watch(lifeline: int, stop: Callable[[], Any]) -> None:
    """Call `stop` once the parent process has ended, which closes its end of the pipe."""
    while os.read(lifeline, 4096):
        pass
    with suppress(RuntimeError):  # the event loop has ended already
        stop()


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        from uvloop import run
    except ImportError:
        asyncio.run(work)
    else:
        run(work)
