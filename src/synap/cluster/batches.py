"""Batches: commands in order, and atomic ones, which are one function call in one partition."""

from __future__ import annotations

from typing import Any, Awaitable, Callable, Dict, List, Optional, Set, Tuple

from synap import commands as c
from synap.cluster import functions
from synap.cluster.calls import Call, Refused
from synap.cluster.facilities import Facilities, named
from synap.cluster.link import Link
from synap.cluster.memory import Request
from synap.cluster.places import Places
from synap.cluster.running import Pending, Running
from synap.engine.engine import aborted, failed, unbatchable
from synap.errors import SynapError
from synap.host.batches import Measured

FIRST, SLICE = 100, 500
"""Commands of a batch that are in flight at once: at first, and once it is known about how large their answers are."""
MOST, MOST_BYTES, MOST_CALLS = 1000, 1024 * 1024, 50_000
"""Commands of an atomic batch, their bytes, and calls, of which each key of a `kv.mget` is one: the node stands still
meanwhile."""

APPENDS = functions.name("syn_s_publish")
"""The function whose effects come last in an atomic batch, see `lua/6_atomic.lua`."""

Execute = Callable[[c.Command, Any, Request], Awaitable[Any]]
Item = Tuple[Optional[c.Command], Any]
"""A command and its payload, or None and why it could not be decoded."""


async def run_each(
    items: List[Item],
    requests: List[Request],
    execute: Execute,
    count_error: Callable[[str], None],
    hold: Callable[[bool], None],
) -> c.BatchAnswer:
    """Execute commands, in order within each partition; results come in order. One failing does not stop the rest.

    Commands of several steps wait for those before them, and those behind wait for them, as does what the caller sent
    after the batch: `hold` is called when that has to wait, and once all is sent.
    """
    outcomes: List[c.BatchOutcome] = []
    under_way: List[Pending] = []
    measured = Measured()

    async def gather() -> None:
        for started in under_way:
            try:
                outcomes.append(c.BatchOutcome("success", await started))
                measured.add(outcomes[-1].payload)
            except SynapError as error:
                count_error(error.code)
                outcomes.append(failed(error))
        under_way.clear()

    for (command, payload), request in zip(items, requests):
        refused = payload if command is None else None
        if command is not None and (command.stepwise or len(under_way) >= (SLICE if outcomes else FIRST)):
            hold(True)
            await gather()
        if measured.passed and refused is None:
            refused = measured.too_large("before this one", "this command was not executed")
            refused.may_have_happened = request.retried == b"1"
        if command is None or refused is not None:
            unexecuted = Pending()
            unexecuted.finish(error=refused)
            under_way.append(unexecuted)
            continue
        under_way.append(Running(_run(execute, command, payload, request)).start())
        if command.stepwise:
            hold(True)
            await gather()
    hold(False)
    await gather()
    return c.BatchAnswer(outcomes)


async def _run(execute: Execute, command: c.Command, payload: Any, request: Request) -> Any:
    if not command.batchable:
        raise unbatchable(payload)
    return await execute(command, payload, request)


# ------------------------------------------------------------------------------------------ atomic


class Recorder(Link):
    """Stands for the link while an atomic batch is put together: notes calls instead of sending them."""

    def __init__(self, places: Places) -> None:
        # Nothing of a link is needed but where names live: it has no connections.
        self.places = places
        self.recording = True
        self.noted: List[Call] = []

    def send(self, call: Call) -> Call:
        """Note a call."""
        self.noted.append(call)
        return call

    def soon(self, callback: Callable[[], None]) -> None:
        """Ignore the end of a turn: nothing is sent."""


async def run_atomic(
    items: List[Item], request: Request, link: Link, facilities: Facilities, recorder: Recorder
) -> c.BatchAnswer:
    """Execute commands all or nothing. Raises `INVALID_REQUEST` where they are not all in one partition."""
    if len(items) > MOST:
        text = f"an atomic batch on a cluster holds at most {MOST} commands, got {len(items)}"
        raise SynapError("INVALID_REQUEST", text)
    runs, owners, broken = _record(items, Request(request.session, b"", b"", request.kin), facilities, recorder)
    calls, recorder.noted = recorder.noted, []
    _one_partition(calls, [items[place][1] for place in owners])
    if calls:
        if broken is not None:  # the errors of commands before it come first; then all is undone
            calls = [*calls, Call(calls[0].partition, b"-", (), ())]
            owners = [*owners[: len(calls) - 1], broken[0]]
        spares = all(command is None or command.sparing or not command.writes for command, _ in items)
        answers = await send_atomic(calls, request, link, spares)
        if answers[0]:
            broken = _undone(answers, calls, owners, runs, broken)
        else:
            for call, answer in zip(calls, answers[1:]):
                call.finish(answer)
    under_way = [run for run in runs if not run.done]
    for run in under_way:
        run.cancel()
    if broken is None:
        if under_way:  # what it asks now isn't sent
            raise RuntimeError("a command of an atomic batch asks again once it is answered")
        return c.BatchAnswer([c.BatchOutcome("success", await run) for run in runs])
    return aborted(len(items), *broken)


def _record(
    items: List[Item], request: Request, facilities: Facilities, recorder: Recorder
) -> Tuple[List[Running], List[int], Optional[Tuple[int, SynapError]]]:
    """Have the recorder note the calls of commands, until one fails before it is sent.

    Returns the commands under way, the place of the command that each call is of, and which failed with what error.
    """
    recorder.noted = []
    runs: List[Running] = []
    owners: List[int] = []
    appended: Set[bytes] = set()
    for place, (command, payload) in enumerate(items):
        try:
            if command is None:
                raise payload
            if not command.batchable:
                raise unbatchable(payload)
            before = len(recorder.noted)
            run = Running(facilities.execute(command, payload, request)).start()
            try:
                _check(command, recorder.noted, before, appended)
            except SynapError:
                run.cancel()
                del recorder.noted[before:]
                raise
        except SynapError as error:
            return runs, owners, (place, error)
        runs.append(run)
        owners += [place] * (len(recorder.noted) - len(owners))
        if isinstance(run.error, SynapError):
            return runs, owners, (place, run.error)
    return runs, owners, None


def _check(command: c.Command, noted: List[Call], before: int, appended: Set[bytes]) -> None:
    """Raise where a command's calls, those behind `before`, can't be part of this batch. `appended`: keys of rooms."""
    for call in noted[before:]:
        if call.function == APPENDS:
            appended.update(call.keys)
        elif not call.changes and not appended.isdisjoint(call.keys):
            text = f"{command.name} can't follow stream.publish of the same room in an atomic batch on a cluster"
            raise SynapError("INVALID_REQUEST", text)
    if len(noted) > MOST_CALLS:
        text = f"an atomic batch on a cluster makes at most {MOST_CALLS:,} calls, each key of a kv.mget is one"
        raise SynapError("PAYLOAD_TOO_LARGE", f"{text}; nothing was done", {"limit": MOST_CALLS})


def _one_partition(calls: List[Call], payloads: List[Any]) -> None:
    for call, payload in zip(calls, payloads):
        if call.partition != calls[0].partition:
            raise SynapError(
                "INVALID_REQUEST",
                "an atomic batch on a cluster needs all its names in one partition, "
                f"and {_name(payload)!r} isn't in that of {_name(payloads[0])!r}: give them a common {{tag}}, "
                "such as 'cart:{42}' and 'orders:{42}'",
            )


def _name(payload: Any) -> str:
    """Return the name that a command is about, the first where it is about several."""
    name = named(payload)
    if name is not None:
        return name
    names: List[str] = list(getattr(payload, "keys", None) or getattr(payload, "items", None) or [""])
    return names[0]


def send_atomic(calls: List[Call], request: Request, link: Link, spares: bool) -> Call:
    """Send calls of one partition as one, which is done all or not at all; where it `spares`, on a full node too."""
    partition = calls[0].partition
    memory = link.places.memory(partition, request.session)
    request.touched.append((partition, request.number))
    places: Dict[bytes, int] = {memory: 1}
    arguments: List[bytes] = [request.number, request.retried]
    size = 0
    for call in calls:
        arguments += (call.function, b"%d" % len(call.keys))
        for key in call.keys:
            arguments.append(b"%d" % places.setdefault(key, len(places) + 1))
        own = [argument if isinstance(argument, bytes) else str(argument).encode() for argument in call.arguments]
        arguments += (b"%d" % len(own), *own)
        size += sum(map(len, own))
    if size > MOST_BYTES:
        text = f"an atomic batch on a cluster holds at most {MOST_BYTES:,} bytes, got {size:,}"
        raise SynapError("PAYLOAD_TOO_LARGE", text)
    function = functions.name("syn_atomic_sparing" if spares else "syn_atomic")
    return link.send(Call(partition, function, list(places), arguments, retried=(1,), changes=True))


def _undone(
    answers: List[Any],
    calls: List[Call],
    owners: List[int],
    runs: List[Running],
    broken: Optional[Tuple[int, SynapError]],
) -> Tuple[int, SynapError]:
    """Find out which command failed, and with what error of the contract."""
    which = answers[0] - 1
    place = owners[which]
    if broken is not None and place == broken[0] and which == len(calls) - 1:
        return broken
    word, _, text = answers[1].decode().partition(" ")
    code, _, rest = text.partition(" ")
    if code == "PAYLOAD_TOO_LARGE":
        most, _, what = rest.partition(" ")
        much = (
            "the answers up to this one are" if what == "answers" else "what is replaced or deleted up to this one is"
        )
        text = f"{much} more than {int(most):,} bytes together; nothing was done"
        return place, SynapError(code, text, {"limit": int(most)})
    if word != "SYNAP":
        code = "MEMORY_LIMIT" if "OOM" in answers[1].decode() else "INTERNAL_ERROR"
    calls[which].finish(error=Refused(code, rest))
    error = runs[place].error
    if isinstance(error, SynapError):
        return place, error
    return place, SynapError(code, f"command {place} of the atomic batch failed: {rest}")
