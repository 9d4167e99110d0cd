"""A durable service that is killed and started again between calls."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from typing import Any, Callable, List, cast

from synap import AsyncSynapClient
from synap.testing.ports import ReservedPort
from synap.testing.server import SERVER_PYTHON
from tests.helpers.colour import in_thread

_URL = re.compile(r"http://[\w.]+:\d+")


class CrashingServer:
    """A service that is forked off a process which has everything imported, so that a crash costs milliseconds."""

    def __init__(self, data: str) -> None:
        python = os.environ.get(SERVER_PYTHON) or sys.executable
        zygote = os.path.join(os.path.dirname(__file__), "zygote.py")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")}
        self._reserved = ReservedPort()
        self._process = subprocess.Popen(
            [python, zygote, "--host", "127.0.0.1", "--port", str(self._reserved.number), "--data", data],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env=dict(environment, PYTHONUNBUFFERED="1"),
        )
        self.crashes = 0
        self.url = ""
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def crash(self) -> None:
        """Kill the service and start it again on the same data and port."""
        self._tell("kill")
        self._read("killed")
        self._start()
        self.crashes += 1

    def close(self) -> None:
        """Kill it for good."""
        self._process.communicate()

    def _start(self) -> None:
        self._tell("start")
        found = _URL.search(self._read("http://"))
        assert found
        self.url = found.group()

    def _tell(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def _read(self, wanted: str) -> str:
        assert self._process.stdout is not None
        lines: List[str] = []
        for line in self._process.stdout:
            if wanted in line:
                return line
            lines.append(line)
            if line == "gone\n":
                break
        raise RuntimeError("the server didn't come up:\n" + "".join(lines))


CALLS = {"async": (2, 4), "sync": (3, 5)}
"""Calls of a test that begin with a crash, by turns in either colour; of the further ones, every tenth. Crashes take
their time."""


class Crasher:
    """Crashes the service, or what else `crash` does, before a call, unless another call is under way."""

    def __init__(self, crash: Callable[[], None], colour: str) -> None:
        self.crash = crash
        self.first = CALLS[colour]
        self.under_way = 0
        self.calls = 0

    async def before_call(self) -> None:
        """Crash, if it is time to."""
        self.calls += 1
        if self.under_way or not (self.calls in self.first or self.calls % 10 == 0):
            return
        self.under_way += 1
        try:
            await in_thread(self.crash)
        finally:
            self.under_way -= 1

    def around(self, client: AsyncSynapClient) -> AsyncSynapClient:
        """Make calls of `client` begin with a crash."""
        return cast(AsyncSynapClient, _Doomed(self, client))


class _Doomed:
    def __init__(self, crasher: Crasher, inner: Any) -> None:
        self._crasher = crasher
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name in ("kv", "queue", "stream", "pubsub"):
            return _Doomed(self._crasher, found)
        if not inspect.iscoroutinefunction(found) or name == "close":
            return found
        crasher = self._crasher

        async def call(*args: Any, **kwargs: Any) -> Any:
            await crasher.before_call()
            crasher.under_way += 1
            try:
                return await found(*args, **kwargs)
            finally:
                crasher.under_way -= 1

        return call

    async def __aenter__(self) -> Any:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._inner.__aexit__(*error)
