"""The measurement of workers runs for those whose packages are there; how fast they are, is not tested."""

from __future__ import annotations

from bench.workers import main
from click.testing import CliRunner


def test_our_worker_is_measured() -> None:
    outcome = CliRunner().invoke(
        main, ["--only", "synap", "--jobs", "50", "--lone", "3", "--idle", "0.1", "--rounds", "1"]
    )
    assert outcome.exit_code == 0, outcome.output
    assert "synap" in outcome.output
    assert "jobs/s" in outcome.output
