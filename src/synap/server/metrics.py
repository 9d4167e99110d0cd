"""`GET /metrics`: the counters of host and engine for Prometheus, collected on each request."""

from __future__ import annotations

import fnmatch
import functools
import heapq
import itertools
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from synap._version import __version__
from synap.commands import BY_CODE
from synap.engine.callers import Steps
from synap.engine.figures import MOST_NAMED, OTHERS
from synap.host.timing import BOUNDS, EVERY, Timing
from synap.server.service import Service

_gauge, _counter = GaugeMetricFamily, CounterMetricFamily

QUEUES = {
    "depth": "Messages that are ready.",
    "pending": "Messages that are leased.",
    "delayed": "Messages that wait for their delay.",
    "consumers": "Consumers that wait for a message.",
}
LOG = {
    "commits_total": "Commits of the log.",
    "commits_inline_total": "Commits made for a lone writer without the writing thread.",
    "commit_seconds_total": "Total duration of commits.",
    "backlog_bytes": "Changes that wait for the disk.",
    "database_bytes": "Size of the database.",
    "write_ahead_bytes": "Size of its write-ahead log.",
    "snapshot_bytes": "Size of the last snapshot.",
    "reserve_bytes": "Space kept for a full disk; 0 while it is used.",
    "snapshots_total": "Snapshots taken.",
}
ROOMS = {"events": "Events that are kept.", "subscribers": "Live subscriptions."}
QUEUE_TOTALS = {
    "published_total": "Messages published to the queue.",
    "consumed_total": "Leases given.",
    "acked_total": "Messages acknowledged.",
    "nacked_total": "Leases given back by nack.",
    "dead_lettered_total": "Messages that became dead letters.",
    "dropped_total": "Messages dropped by a full dead-letter queue, or refused where there are no dead letters.",
}
ROOM_TOTALS = {"published_total": "Events published to the room."}


def expose(service: Service, accept: str) -> Steps:
    """Encode all metrics in the format that `accept` prefers, in steps; returns (body, content type)."""
    named = [re.compile(fnmatch.translate(pattern)) for pattern in service.config.metrics_queues]
    stats = yield from service.host.survey(MOST_NAMED, lambda name: any(pattern.match(name) for pattern in named))
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        encode, content_type = choose_encoder("")
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    pieces: list[bytes] = []
    for family in itertools.chain(registry.collect(), families(service, stats)):
        yield
        pieces.append(encode(cast(CollectorRegistry, _One(family))).removesuffix(_END))
    if "openmetrics" in content_type:
        pieces.append(_END)
    return b"".join(pieces), content_type


_END = b"# EOF\n"


class _One(Collector):
    """A registry of one metric family, as encoders need it."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def families(service: Service, stats: dict[str, Any]) -> Iterable[Metric]:
    """Return the service's own metrics; `stats` is what its host's `survey` returned."""
    host = service.host
    yield InfoMetricFamily("synap", "The version of the service.", {"version": __version__})
    yield _gauge("synap_uptime_seconds", "Time since the start.", host.clock() - host.started)
    yield _gauge("synap_up_for_writes", "1 while writes are accepted.", float(host.unavailable is None))
    requests = {_command(code): count for code, count in enumerate(host.requests) if count}
    yield _counters("synap_requests", "Requests by command.", "command", requests)
    yield _counters("synap_errors", "Errors answered, by code.", "code", host.errors)
    yield _durations(host.timing)
    yield _counters("synap_lane_uses", "Requests (http) and connections (others) by lane.", "lane", service.lanes)
    yield _gauge("synap_connections", "Open connections.", len(service.connections))
    yield _counter("synap_connections_refused", "Connections refused or ended: too many are open.", service.refused)
    transit = service.transit
    yield _gauge("synap_transit_bytes", "Bytes in flight from and to peers.", transit.counted)
    yield _gauge("synap_transit_limit_bytes", "The limit of bytes in flight.", transit.limit)
    yield _counters("synap_connections_ended", "Connections ended because of their peers.", "reason", transit.ended)
    yield from _engine(stats)
    yield from _cluster(stats)
    if service.durable is not None:
        figures = service.durable.log.figures()
        for name, doc in LOG.items():
            family = _counter if name.endswith("_total") else _gauge
            yield family(f"synap_log_{name.removesuffix('_total')}", doc, figures[name])


def _durations(timing: Timing) -> Metric:
    family = HistogramMetricFamily(
        "synap_request_duration_seconds",
        f"From a request's execution to its answer, of one in {EVERY} of each command; waits for a message left out.",
        labels=["command", "lane"],
    )
    bounds = [*map(floatToGoString, BOUNDS), "+Inf"]
    for key, counts in timing.counts.items():
        buckets = list(zip(bounds, itertools.accumulate(counts)))
        family.add_metric([_command(key[0]), key[1]], buckets, timing.seconds[key])
    return family


def _engine(stats: dict[str, Any]) -> Iterable[Metric]:
    yield _gauge("synap_memory_bytes", "Estimated memory of the data.", stats["memory"])
    yield _counter("synap_keys_evicted", "Keys evicted to free memory.", stats.get("keys_evicted", 0))
    if stats["memory_limit"] is not None:
        yield _gauge("synap_memory_limit_bytes", "The limit of that memory.", stats["memory_limit"])
    for name, doc in (
        ("keys", "Keys."),
        ("keys_expiring", "Keys that expire."),
        ("stream_subscriptions", "Subscriptions to rooms."),
        ("topic_subscriptions", "Subscriptions to topics."),
        ("topic_patterns", "Distinct patterns subscribed to."),
        ("waiting", "Requests that wait for a message."),
        ("replies", "Remembered answers to writes."),
    ):
        yield _gauge(f"synap_{name}", doc, stats[name])
    yield _counter("synap_topic_published", "Messages published to topics.", stats["topic_published_total"])
    yield _counter("synap_topic_delivered", "Deliveries to subscribers of topics.", stats["topic_delivered_total"])
    now = time.time()
    yield _gauges(
        "synap_queue_oldest_message_age_seconds",
        "How long the oldest ready message has been ready.",
        "queue",
        {
            name: max(now - row["oldest"], 0.0)
            for name, row in _rows("queue", stats).items()
            if row.get("oldest") is not None
        },
    )
    yield from _named("queue", stats, QUEUES, QUEUE_TOTALS)
    yield from _named("room", stats, ROOMS, ROOM_TOTALS)
    behind = GaugeMetricFamily(
        "synap_subscription_lag_events", "Unprocessed events of a durable subscription.", labels=["room", "name"]
    )
    lags = [(lag, room, name) for room, row in stats["rooms"].items() for name, lag in row.get("lag", {}).items()]
    for lag, room, name in heapq.nlargest(MOST_NAMED, lags):
        behind.add_metric([room, name], lag)
    yield behind


def _cluster(stats: dict[str, Any]) -> Iterable[Metric]:
    """Figures of a cluster's nodes, where the engine is one."""
    nodes: dict[str, dict[str, Any]] = stats.get("nodes", {})
    for name, doc in (
        ("memory", "Bytes a primary uses."),
        ("memory_limit", "Bytes a primary may use; 0: no limit."),
        ("replicas", "Replicas that follow a primary."),
        ("lag_bytes", "Bytes that the slowest replica of a primary is behind."),
    ):
        if nodes:
            yield _gauges(f"synap_node_{name}", doc, "node", {address: row[name] for address, row in nodes.items()})
    retries: dict[str, int] = stats.get("retries", {})
    if retries:
        yield _counters("synap_cluster_retries", "Calls sent again, by the reason.", "reason", retries)


def _named(what: str, stats: dict[str, Any], gauges: dict[str, str], totals: dict[str, str]) -> Iterable[Metric]:
    figures = _rows(what, stats)
    yield _gauge(f"synap_{what}s", f"How many {what}s there are.", stats.get(f"{what}s_total", len(figures)))
    counted = [name for name in next(iter(figures.values()), {}) if name.endswith("_total")]
    for name in (*gauges, *counted):
        family = _counters if name in counted else _gauges
        yield family(
            f"synap_{what}_{name.removesuffix('_total')}",
            totals[name] if name in counted else gauges[name],
            what,
            {key: row[name] for key, row in figures.items()},
        )


def _rows(what: str, stats: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of queues, or rooms, that have their own, and the sums of the others, where there are any."""
    figures: dict[str, dict[str, Any]] = stats[f"{what}s"]
    others = stats.get(f"{what}s_others")
    return {**figures, OTHERS: others} if others else figures


def _labelled(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, doc: str, label: str, values: Mapping[str, float]
) -> Metric:
    family = kind(name, doc, labels=[label])
    for value, figure in values.items():
        family.add_metric([value], figure)
    return family


_gauges = functools.partial(_labelled, GaugeMetricFamily)
_counters = functools.partial(_labelled, CounterMetricFamily)


def _command(code: int) -> str:
    command = BY_CODE.get(code)
    return command.name if command else str(code)
