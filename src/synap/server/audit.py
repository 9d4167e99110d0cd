"""The audit log: administration, commands that make or delete things, and refusals, as JSON lines.

A line has the time, the key's name, the address, the lane, the command, the names it acted on, and the outcome; never a
value, and never a key. At most `RATE` refusals a second are written, with the number of those left out, so that a flood
doesn't fill the disk.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import repeat
from typing import Any

from synap.commands import COMMANDS, BatchAnswer, Command
from synap.engine.callers import Steps, run
from synap.errors import SynapError
from synap.host import REFUSE, Output, Session
from synap.server.rates import Bucket

log = logging.getLogger("synap.server")

RATE = 10.0
MAX_NAMES = 10
AT_ONCE = 50
"""Lines of a batch that are written at once."""


class Audit:
    """Writes to a file, or to stderr where the path is `-`. Failed writes are logged.

    `who`, in its methods: the first fields of a line, which are the caller's `key`, `address` and `lane`.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._bucket = Bucket(RATE, clock)
        self._left_out = 0
        self._unfinished: dict[Steps, Session] = {}
        """Of batches that were executed, the lines still to be written, and whose they are."""
        self._descriptor = -1
        self._torn = ""
        """What comes before the next line: a newline where the last one is there in part."""
        self.reopen()

    def reopen(self) -> None:
        """Open the file again, which may have been rotated (SIGHUP). Raises `INVALID_REQUEST`."""
        if self._path == "-":
            self._descriptor = sys.stderr.fileno()
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        for flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"):  # a pipe that nobody reads is not waited for
            flags |= getattr(os, flag, 0)
        try:
            opened = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise SynapError(
                "INVALID_REQUEST",
                f"audit_log: {self._path} can't be written: {error.strerror}",
                {"option": "audit_log"},
            ) from None
        if os.name == "posix":
            os.set_blocking(opened, True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = opened
        if not os.fstat(opened).st_size:
            self._torn = ""

    def refused(self, code: str, who: Mapping[str, str], what: str, names: Sequence[str] = ()) -> None:
        """Record a refusal."""
        if not self._bucket.grab(1):
            self._left_out += 1
            return
        extra = {"left_out": self._left_out} if self._left_out else {}
        self._left_out = 0
        self._put([_line(_head(who), what, names, code, extra)])

    def executed(self, entry: Entry, what: int, content: Any) -> None:
        """Record an executed command, or the audited commands of a batch, some of them later: in turns.

        `what` and `content`: its outcome, `ANSWER` with the answer or `REFUSE` with the error.
        """
        if entry.session in self._unfinished.values():  # what it sent before comes before
            self.finish(entry.session)
        refusal = content.code if what == REFUSE else "ok"
        command, head = entry.command, _head(entry.who)
        if not command.bundle:
            self._put([_line(head, command.name, command.names(entry.payload) or (), refusal)])
            return
        steps = self._lines(entry, content, refusal, head)
        if next(steps, steps) is steps:
            return
        self._unfinished[steps] = entry.session
        entry.session.hold(self._rest(steps))

    def _rest(self, steps: Steps) -> Steps:
        try:
            yield from steps
        finally:
            self._unfinished.pop(steps, None)

    def finish(self, session: Session | None = None) -> None:
        """Write what is still to be written, of one session or of all."""
        for steps in [steps for steps, whose in self._unfinished.items() if session in (None, whose)]:
            self._unfinished.pop(steps, None)
            try:
                run(steps)
            except Exception:  # the other batches have lines too
                log.exception("the audit log lacks lines of a batch")

    def _lines(self, entry: Entry, content: Any, refusal: str, head: str) -> Steps:
        """Record the audited commands of a batch, in steps."""
        lines: list[str] = []
        codec = entry.session.codec
        outcomes = content.results if isinstance(content, BatchAnswer) else repeat(None)
        for place, (item, outcome) in enumerate(zip(entry.payload.commands, outcomes)):
            one = COMMANDS.get(item.command)
            if one is not None and one.audited and place not in entry.repeated:
                error = None if outcome is None else outcome.error
                result = refusal if outcome is None else "ok" if error is None else error.code
                if result == "FORBIDDEN":
                    continue  # was recorded as refused
                try:
                    names = one.names(codec.decode_item(item)) or ()
                except SynapError:
                    names = ()
                lines.append(_line(head, one.name, names, result))
                if len(lines) == AT_ONCE:
                    self._put(lines)
                    lines = []
                    yield
        self._put(lines)

    def done(self, who: Mapping[str, str], what: str, outcome: str) -> None:
        """Record an action that isn't a command, such as a backup."""
        self._put([_line(_head(who), what, (), outcome)])

    def _put(self, lines: list[str]) -> None:
        left = (self._torn + "".join(lines)).encode()
        try:
            while left:
                count = os.write(self._descriptor, left)
                self._torn = "" if left[:count].endswith(b"\n") else "\n"
                left = left[count:]
        except OSError as error:
            log.error("the audit log can't be written: %s", error.strerror)


class Own(int):
    """The number of a request, told from an equal one of another request by its identity."""


class Entry:
    """What the log has to tell of a command once its outcome is known. `who`: as in the methods of `Audit`."""

    __slots__ = ("_audit", "command", "earlier", "number", "payload", "repeated", "session", "who")

    def __init__(
        self, audit: Audit, session: Session, number: Any, command: Command, payload: Any, who: Mapping[str, str]
    ) -> None:
        self._audit = audit
        self.session = session
        self.number = number
        self.command = command
        self.payload = payload
        self.who = who
        self.earlier = 0
        """Outcomes with the same number that are delivered before its own."""
        self.repeated: set[int] = set()
        """Places in a batch of what isn't executed, since it was before."""

    def write(self, what: int, content: Any) -> None:
        """Write it, with the outcome."""
        try:
            self._audit.executed(self, what, content)
        except Exception:  # of a bug; it was executed, and is answered so
            log.exception("the audit log lacks a %s", self.command.name)


class Outcomes(Session):
    """Outcomes of a turn, delivered with its answers: once all is on disk, and as errors where that was undone."""

    __slots__ = ()

    def tell(self, what: int, entry: Entry, content: Any) -> None:
        if not self.output:
            self.host.touched.insert(0, self)  # before the answers: who has one finds the line
        self.output.append((what, entry, content, 0))

    def deliver(self, output: list[Output]) -> None:
        for what, entry, content, _ in output:
            entry.write(what, content)

    def has_room(self) -> bool:
        return False


def _head(who: Mapping[str, str]) -> str:
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, **who})[:-1]


def _line(head: str, what: str, names: Sequence[str], outcome: str, extra: dict[str, Any] | None = None) -> str:
    rest: dict[str, Any] = {"what": what, "outcome": outcome, **(extra or {})}
    if names:
        rest["names"] = [name[:256] for name in names[:MAX_NAMES]]
        if len(names) > MAX_NAMES:
            rest["further_names"] = len(names) - MAX_NAMES
    return f"{head}, {json.dumps(rest)[1:]}\n"
