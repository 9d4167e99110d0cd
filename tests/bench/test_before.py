"""Two trees side by side: what one run of each wrote becomes a row, and a tree beside itself runs."""

from __future__ import annotations

import pathlib
from typing import Any, Dict, Optional

from bench.before import Row, collect, main, row_lines
from click.testing import CliRunner

ROOT = pathlib.Path(__file__).resolve().parents[2]


def document(rate: float, peer: Optional[float] = None, seconds: float = 1.0) -> Dict[str, Any]:
    contenders = {"synap": {"rate": rate, "client_cpu": 1 / rate, "server_cpu": None}}
    if peer is not None:
        contenders["redis-py"] = {"rate": peer, "client_cpu": None, "server_cpu": None}
    return {
        "cases": {"get/async/1": {"title": "get", "contenders": contenders}},
        "findings": {"recovery/keys": {"title": "start", "value": seconds, "unit": "s"}},
    }


def test_rates_are_better_where_they_grew_and_findings_where_they_shrank() -> None:
    rows: Dict[str, Row] = {}
    for rate in (900.0, 1000.0, 5000.0):
        collect(rows, document(rate, 100.0, seconds=2.0), now=False)
    for rate in (800.0, 1200.0, 1300.0):
        collect(rows, document(rate, 90.0, seconds=4.0), now=True)

    assert rows["get/async/1"].speed == 1.2
    assert rows["get/async/1"].others == 0.9
    assert rows["recovery/keys"].speed == 0.5

    lines = row_lines(rows)

    assert lines[2] == "| get `get/async/1` | 1,000/s | 1,200/s | 1.20 | 0.90 | 1000.0 → 833.3 | – |"
    assert lines[3] == "| start `recovery/keys` | 2 s | 4 s | **0.50** | – | – | – |"


def test_rows_that_one_tree_has_alone_are_left_out() -> None:
    rows: Dict[str, Row] = {}
    collect(rows, document(1000.0), now=True)

    assert len(row_lines(rows)) == 2


def test_this_tree_beside_itself() -> None:
    arguments = [str(ROOT), "--only", "memory", "--turns", "1", "--rounds", "1", "--seconds", "0.02", "--quick"]

    outcome = CliRunner().invoke(main, arguments)

    assert outcome.exit_code == 0, outcome.output
    assert "`memory/get/sync`" in outcome.output


def test_an_unknown_workload_is_refused_by_name() -> None:
    outcome = CliRunner().invoke(main, [str(ROOT), "--only", "qeue"])

    assert outcome.exit_code == 2
    assert "no workload 'qeue'" in outcome.output
