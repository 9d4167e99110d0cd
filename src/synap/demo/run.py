"""The course of the demo: start everything, kill one worker in the middle, wait for the end, check, clean up."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
import tempfile
import time
from dataclasses import dataclass
from typing import IO, Awaitable, Callable, Dict, List, Optional, Tuple, TypeVar

from synap import AsyncSynapClient
from synap.demo import library, names
from synap.demo.check import Verdict, check
from synap.demo.display import Screen
from synap.demo.processes import Child, end_all
from synap.demo.progress import Progress, Worker
from synap.errors import SynapError

T = TypeVar("T")

SLOTS = 8
"""The most tasks of a worker at a time."""

SETTLE = 0.1
"""Seconds until the server has all that a frozen worker has sent."""

TICK = 0.005
"""Seconds between two looks whether something has happened."""

LISTENING = re.compile(r"https?://[\w.\[\]:-]+:\d+")


class Broken(Exception):
    """Raised when the demo can't continue: a process didn't start or ended, or there was no progress."""


class Stopped(Exception):
    """Raised for SIGINT, SIGTERM or SIGHUP; the number is `signal`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@dataclass(frozen=True)
class Settings:
    """The options of the demo."""

    files: Optional[int] = None
    workers: int = 4
    memory: bool = False
    kill: bool = True
    cluster: bool = False
    limit: float = 120.0
    """Seconds after which the work counts as stuck."""


@dataclass(frozen=True)
class Outcome:
    """The result of the demo."""

    progress: Progress
    verdict: Verdict
    redelivered: int


async def run(settings: Settings, screen: Screen) -> Outcome:
    """Run the demo; all its processes are gone and its files removed when this returns or raises.

    Raises `Broken` where it can't be brought to its end, `Stopped` on SIGINT, SIGTERM and SIGHUP.
    """
    files = library.files(settings.files)
    with tempfile.TemporaryDirectory(prefix="synap-demo-") as folder, _open_log(folder) as log:
        if settings.cluster:
            from synap.demo.cluster import ClusterDemo, missing

            lacking = missing()
            if lacking:
                raise Broken(lacking)
            demo: Demo = ClusterDemo(settings, files, screen, folder, log)
        else:
            demo = Demo(settings, files, screen, folder, log)
        try:
            return await _unless_stopped(demo.run())
        finally:
            end_all(demo.children)


class Demo:
    """One run: its processes, its client, and what is known of its progress."""

    kill_at = 1 / 3
    """The share of files done at which a worker is killed."""
    retries = 7
    """Of all clients."""
    patience = 20.0
    """Seconds a process has to start, or to end."""
    title = "synap demo"

    def __init__(
        self, settings: Settings, files: List[Tuple[str, int]], screen: Screen, folder: str, log: IO[bytes]
    ) -> None:
        self.settings = settings
        self.files = files
        self.screen = screen
        self.folder = folder
        self.log = log
        self.children: List[Child] = []
        self.server: Child
        self.workers: Dict[str, Child] = {}
        self.client: AsyncSynapClient
        self.watching: Optional[asyncio.Future[None]] = None
        self.progress = Progress(len(files), "", "in memory" if settings.memory else "durable", self.title)

    async def run(self) -> Outcome:
        progress = self.progress
        with self.screen:
            progress.phase = "starting the server"
            self.screen.show(progress)
            progress.url = await self._start_server()
            async with AsyncSynapClient(url=progress.url, retries=self.retries, retry_max_delay=1.0) as client:
                self.client = client
                await client.queue.create(
                    names.QUEUE, max_retries=names.MAX_RETRIES, ack_deadline=names.ACK_DEADLINE, max_depth=1_000_000
                )
                await client.stream.subscribe(names.ROOM, progress.on_event, from_offset=0)
                await client.pubsub.subscribe([names.EVERY_TOPIC], progress.on_message)
                self.watching = watching = asyncio.ensure_future(self._watch())
                try:
                    await self._work()
                    stats = await client.queue.stats(names.QUEUE)
                    redelivered = stats.consumed_total - stats.published_total
                    progress.ended = time.monotonic()
                    progress.phase = "checking every digest against its file"
                    self.screen.show(progress)
                    verdict = await check(client, self.files)
                    progress.phase = "done"
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
                outcome = Outcome(progress, verdict, redelivered)
            self.screen.finish(progress, verdict, redelivered)
        return outcome

    # ------------------------------------------------------------------------------------------ the course

    async def _work(self) -> None:
        progress, settings = self.progress, self.settings
        progress.phase = "starting the workers"
        slots = max(1, min(SLOTS, len(self.files) // (settings.workers * 5)))
        progress.to_kill = settings.kill and settings.workers > 1
        for number in range(1, settings.workers + 1):
            name = f"worker-{number}"
            # The victim hangs with tasks of its own, so that it has some however late it is killed. It knows by the
            # events, of which each task has two, how far all have come.
            hangs_from = 2 * len(self.files) * self.kill_at if name == self._victim() else math.inf
            numbers = map(str, (slots, self.retries, hangs_from))
            child = self._spawn(name, "synap.demo.worker", self._url(number), name, *numbers)
            self.workers[name] = child
            progress.workers[name] = Worker(name, child.process.pid)
        await self._until(lambda: all(worker.joined for worker in progress.workers.values()), self.patience, "a worker")

        progress.phase = "a producer publishes, the workers hash"
        progress.began = time.monotonic()
        producer = self._spawn(
            "producer", "synap.demo.producer", self._url(2), str(settings.files or 0), str(self.retries)
        )
        await self._kill()
        await self._until(lambda: len(progress.hashed) == progress.total, settings.limit, "the work")
        progress.phase = "waiting for the last leases"
        await self._until(lambda: progress.depth == progress.pending == 0, settings.limit, "the last acknowledgement")
        if producer.process.wait(self.patience) != 0:
            raise Broken(f"the producer failed: {self._log_tail()}")

    async def _kill(self) -> None:
        """Kill what the settings ask for."""
        if self.progress.to_kill:
            await self._kill_one()

    async def _kill_one(self) -> None:
        """Kill a worker that has tasks in progress. It is stopped first, so that its leases don't change meanwhile."""
        progress, name = self.progress, self._victim()
        child, worker = self.workers[name], progress.workers[name]
        while worker.holds or len(progress.hashed) < progress.total:
            self._check_alive()
            if len(progress.hashed) < progress.total * self.kill_at or not worker.holds:
                await asyncio.sleep(TICK)
                continue
            child.freeze()
            await asyncio.sleep(SETTLE)
            await self._catch_up()
            if worker.holds:
                child.kill()
                progress.victim, progress.lost = name, len(worker.holds)
                worker.state = "killed"
                progress.note(f"{name} was killed (SIGKILL) with {progress.lost} tasks leased")
                progress.phase = f"{name} is gone; its leases expire and go to the others"
                return
            child.thaw()

    def _victim(self) -> str:
        """Return the name of the worker to kill; empty if there is none."""
        return f"worker-{max(2, self.settings.workers // 2)}" if self.progress.to_kill else ""

    async def _catch_up(self) -> None:
        """Wait until all events that the room has now are seen."""
        newest = (await self.client.stream.stats(names.ROOM)).newest_offset
        await self._until(lambda: self.progress.newest >= newest, self.patience, "seeing the newest event")

    async def _until(self, condition: Callable[[], T], seconds: float, what: str, log: str = "") -> T:
        """Wait until a condition holds, and return what it returned. `log`: the one that says why it doesn't."""
        until = time.monotonic() + seconds
        while not (found := condition()):
            self._check_alive()
            if time.monotonic() > until:
                raise Broken(f"{what} took more than {seconds:g} s: {self._log_tail(log)}")
            await asyncio.sleep(TICK)
        return found

    # ------------------------------------------------------------------------------------------ meanwhile

    async def _watch(self) -> None:
        """Fetch the figures and show them, until cancelled."""
        await asyncio.gather(self._ask(), self._show())

    async def _show(self) -> None:
        while True:
            self.screen.show(self.progress)
            await asyncio.sleep(self.screen.every)

    async def _ask(self) -> None:
        progress = self.progress
        while True:
            stats = await self.client.queue.stats(names.QUEUE)
            progress.depth, progress.pending = stats.depth + stats.delayed, stats.pending
            if progress.ended is None:
                progress.operations = await self._operations()
                progress.sample()
            await asyncio.sleep(self.screen.every)

    async def _operations(self) -> int:
        return int((await self.client.stats()).get("requests_total", 0))

    def _check_alive(self) -> None:
        if not self.server.running:
            raise Broken(f"the server ended: {self._log_tail()}")
        if self.watching is not None and self.watching.done():
            self.watching.result()  # raises what ended it
        gone = [name for name, child in self.workers.items() if not child.running and name != self.progress.victim]
        if gone:
            raise Broken(f"{', '.join(gone)} ended unasked: {self._log_tail()}")

    # ------------------------------------------------------------------------------------------ processes

    def _url(self, number: int) -> str:
        """Return the URL that a worker uses, by its number."""
        return self.progress.url

    def _spawn(self, name: str, module: str, *arguments: str) -> Child:
        child = Child(name, module, arguments, self.log)
        self.children.append(child)
        return child

    async def _start_server(self) -> str:
        """Start the server on a free port; returns its URL once it answers."""
        keep = ["--memory"] if self.settings.memory else ["--data", os.path.join(self.folder, "data")]
        self.server = self._spawn("server", "synap.demo.service", "serve", "--host", "127.0.0.1", "--port", "0", *keep)
        return await self._listening(self.log.name, "the server")

    async def _listening(self, log: str, what: str) -> str:
        """Wait until a service logs its address; returns its URL."""
        found = await self._until(lambda: LISTENING.search(self._logged(log)), self.patience, f"starting {what}", log)
        assert found is not None
        return found.group()

    def _logged(self, log: str = "") -> str:
        """Return the output of all processes so far, or one of their logs."""
        with open(log or self.log.name, encoding="utf-8", errors="replace") as said:
            return said.read()

    def _log_tail(self, log: str = "") -> str:
        lines = self._logged(log).splitlines()
        return " | ".join(line.strip() for line in lines[-6:]) or "it said nothing"


def _open_log(folder: str) -> IO[bytes]:
    return open(os.path.join(folder, "log"), "ab")


async def _unless_stopped(work: Awaitable[Outcome]) -> Outcome:
    """Await `work`; raises `Stopped` for SIGINT, SIGTERM and SIGHUP."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    caught: List[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        task.cancel()

    wanted = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in wanted if hasattr(signal, name)]
    for number in numbers:
        # Not available on Windows, nor outside the main thread; there Ctrl-C arrives as KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if caught:
            raise Stopped(caught[0]) from None
        raise
    except SynapError as error:
        raise Broken(str(error)) from error
    finally:
        for number in numbers:
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.remove_signal_handler(number)
