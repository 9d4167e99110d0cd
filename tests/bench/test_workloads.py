"""Every workload of the benchmark runs against the real servers, with tiny counts; how fast it is, is not tested."""

from __future__ import annotations

import json
import math
import pathlib
import xml.etree.ElementTree
from typing import Any, Dict, Iterator

import pytest
from bench.__main__ import WORKLOADS, main, perform
from bench.measure import Case, Contender, Outcome, Sample, percentile
from bench.peers import Servers
from bench.plan import Curve, Finding, Plan
from bench.report import Results
from click.testing import CliRunner

from bench import aims, chart, report

pytestmark = [
    pytest.mark.timeout(180),
    # redis-py and nats-py leave sockets to the garbage collector when they are closed in a hurry.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> Iterator[Plan]:
    with Servers(str(tmp_path)) as servers:
        yield Plan(servers, rounds=1, seconds=0.03, share=0.001)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_workload_measures_everybody_it_compares(workload: str, plan: Plan) -> None:
    results = perform([workload], plan)

    assert results.cases or results.findings or results.curves
    for case in results.cases.values():
        assert set(case.outcomes) == {contender.name for contender in case.contenders}
        for outcome in case.outcomes.values():
            assert outcome.rate > 0, (case.key, outcome.contender)
            assert outcome.p50 <= outcome.p99
    for finding in results.findings.values():
        assert math.isfinite(finding.value)
    for curve in results.curves.values():
        assert curve.points
        assert all(rate > 0 for _, rate in curve.points)


def test_the_command_writes_json_and_a_chart(tmp_path: pathlib.Path) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "chart.svg"
    arguments = ["--quick", "--rounds", "1", "--seconds", "0.03", "--only", "batch", "--only", "kv:get/async/1"]
    outcome = CliRunner().invoke(main, [*arguments, "--json", str(figures), "--chart", str(picture)])

    assert outcome.exit_code == 0, outcome.output
    document = json.loads(figures.read_text())
    assert set(document["cases"]) == {"batch/200", "get/async/1", "get/async/10", "get/async/100", "get/async/1000"}
    contenders = document["cases"]["batch/200"]["contenders"]
    assert contenders["redis-py"]["ratio"] > 0
    assert len(contenders["synap"]["samples"]) == 1
    assert "batch of 200 vs redis-py pipeline" in outcome.output
    assert xml.etree.ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


def test_an_unknown_workload_is_refused_by_name() -> None:
    outcome = CliRunner().invoke(main, ["--only", "qeue"])

    assert outcome.exit_code == 2
    assert "no workload 'qeue'" in outcome.output


# ------------------------------------------------------------------------------------------ arithmetic


def sample(rate: float, *, server_cpu: float = 0.1) -> Sample:
    return Sample(int(rate), 1.0, 0.1, server_cpu, 0.001, 0.002, 0.003)


def measured(key: str, ours: Outcome, peer: Outcome) -> Results:
    results = Results()
    contenders = [Contender(outcome.contender, None, _never) for outcome in (ours, peer)]
    case = Case(key, key, contenders)
    case.outcomes = {ours.contender: ours, peer.contender: peer}
    results.cases[key] = case
    return results


def _never() -> Any:
    raise AssertionError("measured already")


def test_a_ratio_compares_rounds_that_were_side_by_side() -> None:
    ours = Outcome("synap", [sample(100), sample(300), sample(30)])
    peer = Outcome("redis-py", [sample(50), sample(100), sample(10)])

    assert ours.ratio(peer) == 3.0


def test_processor_time_is_counted_for_each_operation() -> None:
    outcome = Outcome("synap", [sample(100, server_cpu=0.01), sample(300, server_cpu=0.03)])

    assert outcome.server_cpu == pytest.approx(0.0001)


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(1, 1001)]

    assert percentile(values, 0.5) == 500
    assert percentile(values, 0.99) == 990
    assert percentile(values, 0.999) == 999
    assert percentile([7.0], 0.999) == 7.0


def verdicts(results: Results) -> Dict[str, aims.Verdict]:
    return {verdict.title: verdict for verdict in aims.judge(results)}


@pytest.mark.parametrize(("rate", "word"), [(50.0, "**missed**"), (160.0, "passed"), (400.0, "**aim reached**")])
def test_an_aim_says_whether_it_was_reached(rate: float, word: str) -> None:
    results = measured("batch/200", Outcome("synap", [sample(rate)]), Outcome("redis-py", [sample(100)]))

    judged = verdicts(results)

    assert judged["batch of 200 vs redis-py pipeline"].word == word
    assert judged["memory:// get"].word == "not measured"


def test_where_less_is_better_more_is_missed() -> None:
    results = Results()
    results.findings["recovery/keys"] = Finding("recovery/keys", "recovery", 6.0, "s")

    assert verdicts(results)["recovery of 1,000,000 keys"].word == "**missed**"


def test_a_chart_of_nothing_is_still_a_picture() -> None:
    results = Results()
    results.curves["growth/keys"] = Curve("growth/keys", "keys", [(1000, 1.0)])
    settings = {"rounds": 1, "seconds": 1.0, "uvloop": False, "quick": False}

    drawn = chart.draw(report.as_json(results, [], settings))

    assert xml.etree.ElementTree.fromstring(drawn).tag.endswith("svg")
