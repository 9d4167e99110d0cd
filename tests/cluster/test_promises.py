"""The figures in docs/cluster.md are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from synap.cluster import batches, checks, figures, functions, keys, lines, memory, rooms, topics, watch
from synap.cluster.options import EngineOptions
from synap.cluster.places import Places
from synap.engine.limits import ANSWER_BYTES

TEXT = " ".join((Path(__file__).parents[2] / "docs" / "cluster.md").read_text("utf-8").split())
MINUTE = 60_000


def in_the_library(pattern: str) -> int:
    """Return a number that the function library states."""
    found = re.search(pattern, functions.SOURCE.decode())
    assert found, pattern
    return int(found.group(1))


@pytest.mark.parametrize(
    ("sentence", "figure"),
    [
        ("until `--patience` ({:.0f} s) is over", EngineOptions.patience),
        ("and `--replicas` ({}) replicas have it", EngineOptions.replicas),
        ("`{}` (default)", EngineOptions.durability),
        ("`--partitions` ({}; a power of two) is fixed at the first start", Places().count),
        ("A difference of more than {} s is reported", checks.APART),
        ("up to {} minutes, by the primary's clock", in_the_library(r"local MEMORY = (\d+)") // MINUTE),
        ("{} minutes after the last write of the session", in_the_library(r"local MEMORY = (\d+)") // MINUTE),
        ("({:,} of a gateway at a time", memory.MOST_LATE),
        ("is given up after {:.0f} s, if its node answers on another", watch.DEAD),
        ("At most {:,} commands", batches.MOST),
        ("commands, {:,} changes", in_the_library(r"CHANGES = (\d+)")),
        ("puts back {} MiB", in_the_library(r"LETTERS = (\d+)") // 1024**2),
        ("{:,} calls (`kv.mget` makes one for each key)", batches.MOST_CALLS),
        ("{} MiB of answers", in_the_library(r"ANSWERS = (\d+)") // 1024**2),
        ("{} MiB of values and whole queues", in_the_library(r"REPLACED = (\d+)") // 1024**2),
        ("values beyond {} MiB", keys.MOST_BYTES // 1024**2),
        ("({} MiB of a partition where many are asked)", keys.LEAST_BYTES // 1024**2),
        ("after the others, of {} partitions at a time", keys.FEW),
        ("{} MiB of values and other arguments", batches.MOST_BYTES // 1024**2),
        ("all or nothing in each partition, up to {} keys", keys.PIECE),
        ("share the {} MiB of one answer", in_the_library(r"local BYTES = (\d+)") // 1024**2),
        ("share the {} MiB of one answer", ANSWER_BYTES // 1024**2),
        ("of one answer, and {:,} messages", in_the_library(r"local MESSAGES = (\d+)")),
        ("are counted {} s and", rooms.LEASE // 1000),
        ("are counted {} s and", topics.ALIVE // 1000),
        ("and {} s longer", in_the_library(r"tonumber\(seen\) < (\d+) ") // 1000),
        ("at most a second old; of the first {:,} queues and rooms", figures.MOST),
        ("each for at most {} queues a second", lines.POLLS),
        ("Shape {} of the keys", functions.SHAPE),
    ],
)
def test_a_figure_of_the_docs_is_that_of_the_code(sentence: str, figure: object) -> None:
    assert sentence.format(figure) in TEXT


def test_the_smallest_versions_of_the_docs_are_those_of_the_checks() -> None:
    valkey, redis = checks.OLDEST["valkey"], checks.OLDEST["redis"]
    assert f"Valkey ({valkey[0]} and newer) or Redis ({redis[0]}.{redis[1]} and newer)" in TEXT
    assert figures.FRESH == 1.0
