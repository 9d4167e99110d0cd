"""How much memory there is, what is the limit where none is given, and who keeps to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from synap.server import machine
from synap.testing.server import ThrowawayServer
from tests.adversary import memory
from tests.helpers.raw import Http

MIB = 1024 * 1024


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemFree: 1 kB\nMemTotal:       1024000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({}, 1_048_576_000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 1_048_576_000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "5000000\n"}, 5_000_000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "7000000\n"}, 7_000_000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "6000000\n"}, 6_000_000),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n4:memory:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "8000000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            8_000_000,
        ),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9000000\n"}, 9_000_000),
        ({"proc/self/cgroup": "0::/../outside\n", "sys/fs/cgroup/memory.max": "nonsense"}, 1_048_576_000),
    ],
    ids=["machine", "no limit", "container", "unit", "slice", "version 1", "version 1, container", "nonsense"],
)
def test_the_least_of_machine_and_groups_counts(tmp_path: Path, files: dict[str, str], most: int) -> None:
    assert machine.memory(system(tmp_path, files)) == most


def test_without_a_limit_four_fifths_of_what_there_is_are_the_limit(server: ThrowawayServer, http: Http) -> None:
    whole = machine.memory()
    assert whole is not None
    assert http.do("admin.config").payload["memory_limit"] == int(whole * 0.8)
    assert http.do("admin.stats").payload["memory_limit"] == int(whole * 0.8)


def test_a_write_beyond_it_says_what_to_do(server: ThrowawayServer) -> None:
    with ThrowawayServer(arguments=["--memory-limit", "1MiB"]) as small:
        http = Http(small)
        refused = http.do("kv.set", key="k", value="x" * 2 * MIB)
        http.close()
    assert (refused.status, refused.error["code"]) == (507, "MEMORY_LIMIT")
    assert "delete something or raise the memory limit" in refused.error["message"]


@pytest.mark.parametrize("name", memory.ATTACKS)
def test_the_process_stays_near_its_limit_whatever_fills_it(name: str) -> None:
    limit = 24 * MIB
    found = memory.fill(memory.ATTACKS[name], limit)
    assert found.refused or name == "remembered answers"  # of which the oldest are forgotten
    assert found.peak <= limit + memory.BESIDE, f"{found.peak / MIB:.0f} MiB"
