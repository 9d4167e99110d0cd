"""The figures in the manual's sentences are those of the code; that the code does what they say, other tests show.

The table of limits is in tests/server/test_promises.py, and docs/cluster.md in tests/cluster/test_promises.py.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, List, Tuple

import pytest

from synap import ClientConfig, SynapClient
from synap.client._async import commits
from synap.commands import BATCH
from synap.commands.fields import CLIENT_PREFIX
from synap.engine import eviction, figures
from synap.engine.limits import ANSWER_BYTES, Limits
from synap.engine.priorities import Rules
from synap.host import jobs, timing
from synap.lanes import upgrades
from synap.lanes.native import busy_poll
from synap.server import (
    audit,
    auth,
    backup,
    drain,
    flow,
    keyfile,
    machine,
    native_output,
    pinging_websocket,
    uvicorn_glue,
    watch,
    websocket,
)
from synap.server.console import sessions
from synap.server.settings import ServerConfig
from synap.storage import (
    checkpointing,
    commit,
    durable,
    inline,
    layout,
    mark,
    prefetch,
    recovery,
    reserve,
    rows,
    shortage,
    snapshot,
    store,
    writer,
)
from synap.wire import compression, frames, handshake, large, values
from synap.worker import Worker
from synap.worker.pace import PREFETCH_SECONDS
from tests.docs.pages import ROOT

KIB, MIB = 1024, 1024 * 1024
CONFIG, LIMITS, RULES, CLIENT = ServerConfig(), Limits(), Rules(), ClientConfig()
PAUSES = sum(CLIENT.retry_delay * CLIENT.retry_backoff**n for n in range(CLIENT.retries))
WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 10: "ten", 16: "sixteen"}


def default(function: Any, name: str) -> Any:
    return inspect.signature(function).parameters[name].default


OPERATIONS: List[Tuple[str, object]] = [
    ("After {} wrong keys a second", WORDS[int(auth.GUESSES)]),
    ("Of refusals {} a second are written", WORDS[int(audit.RATE)]),
    ("A key of fewer than {} characters is warned of", keyfile.LEAST),
    ("of one in {} of each command", timing.EVERY),
    ("The {:,} queues, and rooms, that were used most", figures.MOST_NAMED),
    ("has waited for {:.0f} ms, no more requests are read", commit.LATE * 1000),
    ("out of a reserve of {:.0f} MiB beside the data", CONFIG.disk_reserve / MIB),
    ("makes up to {} backups at a time", WORDS[backup.MOST]),
    ("executed in slices of {} milliseconds", WORDS[round(jobs.SLICE * 1000)]),
    ("values from {} KiB on are checked piece by piece", large.LARGE // KIB),
    ("the least recently used of {} picked at random", WORDS[eviction.SAMPLE]),
    ("For one write at most {:,} keys go", eviction.MOST),
    ("{:.0f} % of what the machine, or its cgroup, has", machine.PART * 100),
]
PROTOCOL: List[Tuple[str, object]] = [
    ("nested at most {} deep by the clients", values.MAX_DEPTH),
    ("for {} minutes, and of all sessions", WORDS[int(LIMITS.reply_age // 60)]),
    ("together at most {:,} that weren't confirmed", LIMITS.replies),
    ("Sessions whose first {} digits are equal", CLIENT_PREFIX),
    ("A head may have {} KiB", handshake.MAX_HEAD // KIB),
    ("send at most {} KiB in one", handshake.MAX_MESSAGE // KIB),
    ("{} MiB from the service", frames.MAX_ANSWER // MIB),
    ("Of these {:,} may wait", websocket.MAX_UNDER_WAY),
    ("A batch is a REQUEST with code {}", BATCH.code),
    ("where the body has {:,} bytes to", compression.WORTH),
    ("bytes to {} MiB and shrinks", compression.MOST_AT_ONCE // MIB),
    ("cuts one for which more than {} MiB wait unread", flow.MAX_UNSENT // MIB),
    ("pings every {:.0f} seconds and closes a connection that", uvicorn_glue.PING_EVERY),
    ("closes a connection that missed {}", WORDS[pinging_websocket.MISSES]),
    ("is closed with code {} when the sign-in is over", websocket.SIGNED_OUT),
    ("and any with {} that an admin disconnects", websocket.POLICY),
    ("(of each at most {:,};", watch.MOST),
    ("`max` of the last {} seconds", WORDS[round(watch.PROBES * watch.PROBE_EVERY)]),
]
ON_DISK: List[Tuple[str, object]] = [
    ("where more than {} MiB wait for it", commit.STALL // MIB),
    ("of at most {:.0f} ms or so", commit.LATE * 1000),
    ("rows are written at most every {:.0f} ms", writer.GATHER * 1000),
    ("is tried after {} s, then", shortage.FIRST_RETRY),
    ("at growing distances up to {:.0f} s", shortage.LAST_RETRY),
    ("(a checkpoint) about every {} MiB", round(checkpointing.CHECKPOINT_PAGES * store.PAGE / MIB)),
    ("`synap.reserve` holds {:.0f} MiB", CONFIG.disk_reserve / MIB),
    ("{} MiB of a `file://` directory", durable.EMBEDDED_RESERVE // MIB),
    ("to {} KiB, which stay for the next start", reserve.START // KIB),
    ("SQLite needs {} KiB to read at all", recovery.LEAST_SPACE // KIB),
    ("more than {} times its size", snapshot.RATIO),
    ("and at least {:.0f} MiB (`--snapshot-size`)", CONFIG.snapshot_size / MIB),
    ("as fast as the log grows times {}", {6: "six"}[snapshot.PACE]),
    ("by at most a few pieces of {} KiB", prefetch.PIECE // KIB),
    ("Page size {}", store.PAGE),
    ("| 3 | 1 | version of this header: {} |", rows._VERSION),
    ("Row {} is scratch", store.PROBE),
    ("while commits take less than {} milliseconds", WORDS[round(inline.CAP * 1000)]),
]
OTHERS: List[Tuple[str, str, object]] = [
    ("console.md", "over after {:.0f} minutes without anybody at the page", CONFIG.console_session / 60),
    ("console.md", "after {:.0f} hours in any case", sessions.LONGEST / 3600),
    ("console.md", "measured by asking {:.0f} times a second", 1 / watch.PROBE_EVERY),
    ("threat-model.md", "after {} wrong ones a second", WORDS[int(auth.GUESSES)]),
    ("threat-model.md", "made keys have {:.0f} bits", math.floor(math.log2(62**32))),
    ("architecture.md", "An answer of more than {} KB", native_output.UNJOINED // KIB),
    ("architecture.md", "worked off in slices of {} milliseconds", WORDS[round(jobs.SLICE * 1000)]),
    ("architecture.md", "and of {} ms while other callers send small requests", jobs.SHORT * 1000),
    ("operations.md", "({} ms while other callers send small requests", jobs.SHORT * 1000),
    ("architecture.md", "at most {} requests came since the commit before", WORDS[inline.REQUESTS]),
    ("architecture.md", "with a pause of {} times as long", WORDS[int(inline.PAUSE)]),
    ("guide/errors.md", "`timeout` ({:.0f} seconds) bounds a call", CLIENT.timeout),
    ("guide/getting-started.md", "timeout={},", CLIENT.timeout),
    ("guide/getting-started.md", "retries={},", CLIENT.retries),
    ("guide/getting-started.md", "is remembered for {} minutes", WORDS[int(upgrades.MEMORY // 60)]),
    ("guide/sync.md", "looks for an answer some {} times", busy_poll.POLLS),
    ("guide/sync.md", "polls for {:.0f} microseconds", busy_poll.POLL_TIME * 1e6),
    ("guide/sync.md", "more than one look in {} is in vain", WORDS[busy_poll.MISS_COST + 1]),
    ("guide/sync.md", "for the next {} calls", busy_poll.PAUSE),
    ("guide/queues.md", "({:,} unless `create` says otherwise)", RULES.max_depth),
    ("guide/queues.md", "would pass {} MiB of values and headers", ANSWER_BYTES // MIB),
    ("guide/streams.md", "by default at {:,} events or", CONFIG.room_events),
    ("guide/streams.md", "events or {:.0f} hours", CONFIG.room_age / 3600),
    ("guide/streams.md", "or earlier after {} MiB of data and metadata", ANSWER_BYTES // MIB),
    ("guide/streams.md", "committed within {} second", {1.0: "a"}[commits.INTERVAL]),
    ("guide/workers.md", "after `retry_delay` seconds ({:.0f})", default(Worker.handles, "retry_delay")),
    ("guide/workers.md", "A lease lasts {:.0f} seconds", default(Worker, "lease")),
    ("guide/workers.md", "have `grace` seconds ({:.0f})", default(Worker, "grace")),
    ("guide/workers.md", "in the next {} of a second", {0.1: "tenth"}[PREFETCH_SECONDS]),
    ("guide/coming-from-kafka.md", "{:,} events and 24 h unless configured", CONFIG.room_events),
]
EVERY = [
    *(("operations.md", *row) for row in OPERATIONS),
    *(("protocol.md", *row) for row in PROTOCOL),
    *(("storage-format.md", *row) for row in ON_DISK),
    *OTHERS,
]


@pytest.mark.parametrize(("page", "sentence", "figure"), EVERY)
def test_a_figure_of_the_manual_is_that_of_the_code(page: str, sentence: str, figure: object) -> None:
    text = " ".join((ROOT / "docs" / page).read_text("utf-8").split())
    assert sentence.format(figure) in text


def test_figures_without_one_constant() -> None:
    assert 8 < PAUSES * 0.75 < 12, "the defaults add up to some 10 seconds: pauses are shortened by up to half"
    assert watch.EVERY == 0.5, "figures are pushed twice a second"
    assert reserve.PART == 8, "an eighth of the file system at most"
    assert frames.SHARE == 16, "at least a sixteenth of what was allocated for a body has come"
    assert drain.TAKING == 1.0, "who takes nothing is cut after a second"
    assert drain.LOOK <= 1.0, "a directory that was replaced is noticed within a second"
    assert flow.TURN == MIB, "answers that wait for the disk come to 1 MiB"
    assert snapshot.SLICE_SECONDS == 0.001, "slices of about a millisecond"
    assert snapshot.ROW + snapshot.SLICE_BYTES <= MIB, "pieces of at most about a megabyte"


def test_the_header_of_a_frame_and_the_kinds_are_as_printed() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    assert f"A header of {frames.HEADER.size} bytes, integers big-endian" in text
    assert frames.HEADER.format == ">IBBHI"
    kinds = {name: number for name, number in vars(frames.Kind).items() if name.isupper()}
    assert len(kinds) == 11
    for name, number in kinds.items():
        assert f"| {number} | {name} |" in text
    assert f"{frames.RETRY}: this request may have been done before; {frames.GZIP}: the body is gzip" in text


def test_the_two_slots_of_the_mark_are_as_printed() -> None:
    text = (ROOT / "docs" / "storage-format.md").read_text("utf-8")
    assert f"Two slots of {mark._STRIDE} bytes" in text
    assert f"`{mark._MAGIC.decode()}`, the database's id (16)" in text
    for name in (layout.DATABASE, layout.MARK, layout.LOCK, layout.RESERVE, layout.NEW):
        assert f"| `{name}`" in text


def test_a_million_keys_take_as_much_memory_as_the_readme_says() -> None:
    assert "a million keys of 100 bytes take about 300 MB" in (ROOT / "README.md").read_text("utf-8")
    with SynapClient(url="memory://") as client:
        before = client.stats()["memory"]
        client.kv.mset({f"key:{number}": "v" * 100 for number in range(10_000)})
        assert 250 < (client.stats()["memory"] - before) / 10_000 < 350
