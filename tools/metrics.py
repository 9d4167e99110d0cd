"""What `docs/metrics.md` says: the service's metrics, from what a service of this process exposes.

It has some of everything, also what only a directory or a cluster has.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Set

import msgspec

from synap import commands as c
from synap.engine.callers import Caller
from synap.engine.engine import Engine
from synap.engine.limits import Limits
from synap.host import EngineHost
from synap.server.metrics import families
from synap.server.service import Service
from synap.server.settings import ServerConfig

__all__ = ["page"]

INTRODUCTION = """\
# Metrics

Made by `tools/reference.py` from what a service exposes at `GET /metrics`. What to watch of it:
[operations.md](operations.md#watching). The totals of queues and rooms go on after a restart where data is kept; other
counters begin anew. The 1,000 queues, and rooms, used most are named, and queues that match `--metrics-queue`; all
others are summed as `(others)`. `process_…` and `python_gc_…` are those of prometheus-client for any Python process.

| name | kind | labels | what it is |
|---|---|---|---|
"""
ONLY = {
    "synap_log_": "With a data directory only.",
    "synap_node_": "Of a gateway only.",
    "synap_cluster_": "Of a gateway only.",
}


def exposed() -> List[Any]:
    """Return the metric families of a service in which each of them has a sample."""
    numbers = iter(range(10**9))
    engine = Engine(ids=lambda: next(numbers), limits=Limits(memory=2**30))
    value = msgspec.Raw(b"1")
    for payload in (
        c.QueuePublish("q", value),
        c.StreamPublish("r", "t", value),
        c.StreamCommit("r", "name", 0),
    ):
        engine.execute(payload, 0.0, Caller(), 1)
    host = EngineHost(engine)
    host.requests[c.KV_GET.code] = 1
    host.errors["KEY_NOT_FOUND"] = 1
    host.timing.counts[c.KV_GET.code, "native"] = [1] * 17
    host.timing.seconds[c.KV_GET.code, "native"] = 1.0
    service = Service(host, ServerConfig())
    durable: Any = SimpleNamespace(log=SimpleNamespace(figures=lambda: defaultdict(int)))
    service.durable = durable
    survey = host.survey(1000)
    try:
        while True:
            next(survey)
    except StopIteration as done:
        stats: Dict[str, Any] = dict(done.value)
    stats["nodes"] = {"10.0.0.1:6379": defaultdict(int)}
    stats["retries"] = {"lost": 1}
    return list(families(service, stats))


def rows() -> Iterator[str]:
    for family in sorted(exposed(), key=lambda one: str(one.name)):
        assert family.samples, family.name
        names: Set[str] = {sample.name for sample in family.samples}
        name = family.name if family.type == "histogram" else min(names)
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        where = next((text for prefix, text in ONLY.items() if name.startswith(prefix)), "")
        shown = ", ".join(f"`{label}`" for label in labels) or "–"
        yield f"| `{name}` | {family.type} | {shown} | {' '.join(filter(None, (family.documentation, where)))} |"


def page() -> str:
    """Write the page of the metrics."""
    return INTRODUCTION + "\n".join(rows()) + "\n"
