"""`GET /metrics`: the counters of host and engine in Prometheus' words, read when asked and at no other time."""

from __future__ import annotations

import fnmatch
import heapq
import itertools
import re
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from synap._version import __version__
from synap.commands import BY_CODE
from synap.server.service import Service

__all__ = ["expose"]

MOST_NAMED = 1000
"""Queues, and rooms, that get lines of their own: those used most. The others are summed."""
OTHERS = "(others)"
"""The name that they are summed under."""


def expose(service: Service, accept: str) -> tuple[bytes, str]:
    """Write all figures in the exposition format that `accept` prefers; returns them and their content type."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_Figures(service))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Figures(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        service, host = self._service, self._service.host
        yield InfoMetricFamily("synap", "What runs.", {"version": __version__})
        yield _gauge("synap_uptime_seconds", "Time since the start.", host.clock() - host.started)
        yield _gauge("synap_up_for_writes", "1 where writes are taken.", float(host.unavailable is None))
        requests = CounterMetricFamily("synap_requests", "Requests by command.", labels=["command"])
        for code, count in enumerate(host.requests):
            if count:
                command = BY_CODE.get(code)
                requests.add_metric([command.name if command else str(code)], count)
        yield requests
        errors = CounterMetricFamily("synap_errors", "Errors answered, by code.", labels=["code"])
        for error, count in host.errors.items():
            errors.add_metric([error], count)
        yield errors
        lanes = CounterMetricFamily(
            "synap_lane_uses", "Requests (http) and connections (others) by lane.", labels=["lane"]
        )
        for lane, count in service.lanes.items():
            lanes.add_metric([lane], count)
        yield lanes
        yield _gauge("synap_connections", "Open connections.", len(service.connections))
        yield _counter("synap_connections_refused", "Connections turned away: too many.", service.refused)
        stats = host.stats()
        yield from _engine(stats, service.config.metrics_queues)
        yield from _cluster(stats)
        if service.durable is not None:
            yield from _log(service.durable.log.figures())


def _engine(stats: dict[str, Any], named: list[str]) -> Iterable[Metric]:
    yield _gauge("synap_memory_bytes", "What the data is estimated to take.", stats["memory"])
    yield _counter("synap_keys_evicted", "Keys that made room for others.", stats.get("keys_evicted", 0))
    if stats["memory_limit"] is not None:
        yield _gauge("synap_memory_limit_bytes", "What it may take.", stats["memory_limit"])
    for name, doc in (
        ("keys", "Keys."),
        ("keys_expiring", "Keys that expire."),
        ("stream_subscriptions", "Subscriptions to rooms."),
        ("topic_subscriptions", "Subscriptions to topics."),
        ("topic_patterns", "Distinct patterns subscribed to."),
        ("waiting", "Requests that wait for a message."),
        ("replies", "Answers that are remembered."),
    ):
        yield _gauge(f"synap_{name}", doc, stats[name])
    yield _counter("synap_topic_published", "Messages published to topics.", stats["topic_published_total"])
    yield _counter("synap_topic_delivered", "Messages handed to subscribers of topics.", stats["topic_delivered_total"])
    ages = GaugeMetricFamily(
        "synap_queue_oldest_message_age_seconds", "How long its oldest ready message could be taken.", labels=["queue"]
    )
    now = time.time()
    for name, row in itertools.islice(stats["queues"].items(), MOST_NAMED):
        if row.get("oldest") is not None:
            ages.add_metric([name], max(now - row["oldest"], 0.0))
    yield ages
    yield from _named("queue", stats["queues"], ("depth", "pending", "delayed", "consumers"), named)
    yield from _named("room", stats["rooms"], ("events", "subscribers"), [])
    behind = GaugeMetricFamily(
        "synap_subscription_lag_events", "Events that a durable subscription has not done.", labels=["room", "name"]
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
        gauge = GaugeMetricFamily(f"synap_node_{name}", doc, labels=["node"])
        for address, figures in nodes.items():
            gauge.add_metric([address], figures[name])
        if nodes:
            yield gauge
    retries: dict[str, int] = stats.get("retries", {})
    if retries:
        counter = CounterMetricFamily("synap_cluster_retries", "Calls sent again, by the reason.", labels=["reason"])
        for reason, count in retries.items():
            counter.add_metric([reason], count)
        yield counter


def _log(figures: dict[str, Any]) -> Iterable[Metric]:
    yield _counter("synap_log_commits", "Commits of the log.", figures["commits_total"])
    yield _counter("synap_log_commit_seconds", "Time they took together.", figures["commit_seconds_total"])
    yield _gauge("synap_log_backlog_bytes", "Changes that wait for the disk.", figures["backlog_bytes"])
    yield _gauge("synap_log_database_bytes", "Size of the database.", figures["database_bytes"])
    yield _gauge("synap_log_write_ahead_bytes", "Size of its write-ahead log.", figures["write_ahead_bytes"])
    yield _gauge("synap_log_snapshot_bytes", "Size of the last snapshot.", figures["snapshot_bytes"])
    yield _counter("synap_log_snapshots", "Snapshots taken.", figures["snapshots_total"])


def _busiest(
    figures: dict[str, dict[str, Any]], summed: tuple[str, ...], named: list[str]
) -> dict[str, dict[str, Any]]:
    """Keep the rows of those that were used most, and of those whose names match; the rest becomes one row."""
    patterns = [re.compile(fnmatch.translate(pattern)) for pattern in named]
    kept = {name for name in figures if any(pattern.match(name) for pattern in patterns)}
    used = {name: sum(row[part] or 0 for part in summed) for name, row in figures.items() if name not in kept}
    kept.update(heapq.nlargest(MOST_NAMED, used, key=lambda name: used[name]))
    others = [row for name, row in figures.items() if name not in kept]
    rest = {name: sum(row[name] or 0 for row in others) for name in summed}
    return {**{name: row for name, row in figures.items() if name in kept}, OTHERS: rest}


def _named(
    what: str, figures: dict[str, dict[str, Any]], gauges: tuple[str, ...], named: list[str]
) -> Iterable[Metric]:
    yield _gauge(f"synap_{what}s", f"How many {what}s there are.", len(figures))
    totals = [name for name in next(iter(figures.values()), {}) if name.endswith("_total")]
    if len(figures) > MOST_NAMED:
        figures = _busiest(figures, (*gauges, *totals), named)
    for name in gauges:
        gauge = GaugeMetricFamily(f"synap_{what}_{name}", f"{name} of a {what}.", labels=[what])
        for key, row in figures.items():
            gauge.add_metric([key], row[name])
        yield gauge
    for name in totals:
        counter = CounterMetricFamily(
            f"synap_{what}_{name.removesuffix('_total')}", f"{name} of a {what}.", labels=[what]
        )
        for key, row in figures.items():
            counter.add_metric([key], row[name])
        yield counter


def _gauge(name: str, doc: str, value: float) -> Metric:
    return GaugeMetricFamily(name, doc, value)


def _counter(name: str, doc: str, value: float) -> Metric:
    return CounterMetricFamily(name, doc, value)
