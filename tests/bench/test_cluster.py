"""The benchmarks of the cluster engine run, with tiny counts; how fast anything is, is not tested."""

from __future__ import annotations

import pytest

from bench import cluster, cluster_functions
from synap.testing.cluster import ThrowawayCluster

FUNCTIONS = {"kv.set", "kv.get", "queue.publish", "queue.consume", "queue.ack", "queue.consume(ack=…), 10 a call"}


def test_every_function_is_measured() -> None:
    figures = cluster_functions.measure_all(None, 100, 1)
    assert figures.keys() >= FUNCTIONS
    assert all(spent >= 0 and commands > 0 for found in figures.values() for spent, commands in found)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # redis-py leaves sockets to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_every_operation_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with ThrowawayCluster(1) as nodes:
        await cluster.compare(nodes, 0.05, [3], 1, "")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * len(cluster.MATCHES)
