"""`synap bench`."""

from __future__ import annotations

from synap import SynapClient
from tests.cli.conftest import Synap

SHORT = ("bench", "--seconds", "0.05", "--under-way", "1,20")


def test_it_measures_set_get_and_the_way_of_a_message(synap: Synap) -> None:
    rows = synap(*SHORT, "--json").documents
    assert [(row["workload"], row["under_way"]) for row in rows] == [
        (workload, level) for workload in ("set", "get", "queue cycle") for level in (1, 20)
    ]
    for row in rows:
        assert row["ops_per_second"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]


def test_it_prints_a_table_for_people(synap: Synap) -> None:
    lines = synap(*SHORT).out.decode().splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["workload", "under", "way", "ops/s", "p50", "ms", "p99", "ms"]


def test_it_leaves_nothing_behind(synap: Synap, synap_url: str) -> None:
    assert synap(*SHORT).code == 0
    with SynapClient(url=synap_url) as client:
        assert client.kv.scan(prefix="synap-bench").keys == []
        assert not [name for name in client.queue.list() if name.startswith("synap-bench")]
