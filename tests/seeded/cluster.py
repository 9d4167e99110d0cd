"""Bugs planted in what a cluster is reached with, and in pipelines."""

from __future__ import annotations

from tests.seeded.seed import Seed

PIPELINE = "tests/conformance/test_pipeline.py -k memory-json-async"
PLACES = "tests/cluster/test_places.py"
ORDER = "tests/cluster/test_order.py -k 'not restart'"

SEEDS = (
    Seed(
        "a queue's dead letters live in another partition",
        "cluster/places.py",
        "while name.endswith(SUFFIX):",
        "while False:",
        PLACES,
    ),
    Seed(
        "dead letters of dead letters live in another partition",
        "cluster/places.py",
        "while name.endswith(SUFFIX):",
        "if name.endswith(SUFFIX):",
        PLACES,
    ),
    Seed("empty braces count as a tag", "cluster/places.py", "if end > start + 1:", "if end > start:", PLACES),
    Seed(
        "names are spread over partitions by another rule than slots",
        "cluster/places.py",
        "crc_hqx(tag_of(name), 0) % SLOTS // self.width",
        "crc_hqx(tag_of(name), 0) % self.count",
        PLACES,
    ),
    Seed(
        "keys of a partition are in any of its slots",
        "cluster/places.py",
        "if slot % width == 0 and slot not in tags:",
        "slot -= slot % width\n        if slot not in tags:",
        PLACES,
    ),
    Seed(
        "a shard is asked for the partition that begins before it",
        "cluster/topology.py",
        "first = -(-shard.first // places.width)",
        "first = shard.first // places.width",
        PLACES,
    ),
    Seed(
        "the last partition of a shard has no owner",
        "cluster/topology.py",
        "range(first, shard.last // places.width + 1)",
        "range(first, shard.last // places.width)",
        PLACES,
    ),
    Seed(
        "a redirect without a host leads nowhere",
        "cluster/link.py",
        'host.strip("[]") or address.host',
        'host.strip("[]")',
        PLACES,
    ),
    Seed(
        "an IPv6 address in a redirect keeps its brackets",
        "cluster/link.py",
        'host.strip("[]") or address.host',
        "host or address.host",
        PLACES,
    ),
    Seed(
        "an atomic pipeline is sent as any other",
        "client/_async/pipeline.py",
        "self._recording.request(self._atomic)",
        "self._recording.request(False)",
        PIPELINE,
    ),
    Seed(
        "a pipeline whose block raised is sent",
        "client/_async/pipeline.py",
        "        if error is not None:\n",
        "        if error is not None and False:\n",
        PIPELINE,
    ),
    Seed(
        "a pipeline can be used twice",
        "client/_async/pipeline.py",
        "        if self._entered:\n",
        "        if False:\n",
        PIPELINE,
    ),
    Seed(
        "handles of a batch that failed as a whole don't say so",
        "client/_async/pipeline.py",
        "            self._recording.drop(failure)\n",
        "",
        "tests/client/test_robust.py -k fails_as_a_whole",
    ),
    Seed(
        "a pipeline takes commands after its end",
        "client/recording.py",
        "if self._closed is not None:",
        "if False:",
        PIPELINE,
    ),
    Seed(
        "a handler's inner block that raised takes back all of its pipeline",
        "client/recording.py",
        "del self._handles[since:], self.items[since:]",
        "del self._handles[:], self.items[:]",
        "tests/worker/test_pipeline.py -k memory",
    ),
    Seed(
        "what is remembered goes sooner where a node's clock went back",
        "cluster/lua/0_base.lua",
        "MEMORY + RENEWAL, 'GT') == 0",
        "MEMORY + RENEWAL) == 0",
        "tests/cluster/test_answer_memory.py -k 'remembered or forgotten'",
    ),
    Seed(
        "what is remembered never goes",
        "cluster/lua/0_base.lua",
        " then call('PEXPIRE', memory, MEMORY + RENEWAL, 'NX') end",
        " then end",
        "tests/cluster/test_answer_memory.py -k 'remembered or forgotten'",
    ),
    Seed(
        "a call that comes back goes to the end of its backlog",
        "cluster/order.py",
        "insort(backlog.calls, call)",
        "backlog.calls.append(call)",
        ORDER,
    ),
    Seed(
        "the backlog leaves while calls are under way",
        "cluster/order.py",
        " or self.under_way[partition] > len(calls):",
        ":",
        ORDER,
    ),
    Seed("the whole backlog is sent to find out", "cluster/order.py", "if not backlog.together:", "if False:", ORDER),
    Seed("what waits for a commit overtakes", "cluster/node.py", "if self._order.backlogs:", "if False:", ORDER),
    Seed(
        "a partition's new node is sent calls at once",
        "cluster/order.py",
        "if old != new and self.under_way[partition] and",
        "if False and",
        ORDER,
    ),
    Seed(
        "a connection that ended while it was made is taken",
        "cluster/link.py",
        "if node.gone:",
        "if False:",
        "tests/cluster/test_lost_while_opened.py",
    ),
)
