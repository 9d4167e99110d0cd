"""Every workload of the benchmark runs against the real servers, with tiny counts; how fast it is, is not tested."""

from __future__ import annotations

import gc
import json
import math
import pathlib
import types
import xml.etree.ElementTree
from typing import Any, Dict, Iterator, List

import pytest
from bench.__main__ import WORKLOADS, main, perform
from bench.measure import Case, Contender, Outcome, Sample, percentile
from bench.peers import Servers
from bench.plan import Curve, Finding, Plan
from bench.report import Results
from click.testing import CliRunner

from bench import aims, chart, report, shown, table, typed

pytestmark = [
    # redis-py and nats-py leave sockets to the garbage collector when they are closed in a hurry.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect what a workload's clients left while its warnings are ignored: no later test is blamed for it."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(str(tmp_path_factory.mktemp("bench"))) as servers:
        yield servers


@pytest.fixture
def plan(servers: Servers) -> Iterator[Plan]:
    yield Plan(servers, rounds=1, seconds=0.03, share=0.001)
    servers.stop_all()


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
        assert curve.kept > 0


def test_the_command_writes_json_and_a_chart(tmp_path: pathlib.Path) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "chart.svg"
    arguments = ["--quick", "--rounds", "1", "--seconds", "0.03", "--only", "batch", "--only", "kv:get/async/1"]
    arguments += ["--json", str(figures), "--chart", str(picture), "--table", "-"]
    outcome = CliRunner().invoke(main, arguments)

    assert outcome.exit_code == 0, outcome.output
    document = json.loads(figures.read_text())
    assert {key for key in document["cases"] if key.startswith("get")} == {f"get/async/{n}" for n in (1, 10, 100, 1000)}
    contenders = document["cases"]["batch/200"]["contenders"]
    assert contenders["redis-py"]["ratio"] > 0
    assert len(contenders["synap"]["samples"]) == 1
    assert "batch of 200 vs redis-py pipeline" in outcome.output
    assert xml.etree.ElementTree.fromstring(picture.read_text()).tag.endswith("svg")
    assert "| batch of 200 (commands) |" in outcome.output

    # Table and chart of an earlier run are those it made itself.
    drawn = picture.read_text()
    again = CliRunner().invoke(main, ["--from", str(figures), "--table", "-", "--chart", str(picture)])
    assert again.exit_code == 0, again.output
    assert outcome.output.endswith(again.output)
    assert picture.read_text() == drawn


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


def test_a_part_that_was_not_measured_leaves_an_aim_open() -> None:
    title = "async get/set, one by one, vs redis-py asyncio"
    results = measured("get/async/1", Outcome("synap", [sample(900)]), Outcome("redis-py", [sample(100)]))

    assert verdicts(results)[title].word == "not measured"
    assert verdicts(results)[title].measured == "–"

    other = measured("set/async/1", Outcome("synap", [sample(130)]), Outcome("redis-py", [sample(100)]))
    results.cases.update(other.cases)

    assert verdicts(results)[title].word == "passed"
    assert verdicts(results)[title].measured == "1.3"


def test_of_several_figures_of_which_less_is_better_the_most_counts() -> None:
    results = Results()
    aim = aims.Aim("what is added", 5, 1, "finding", ("added/1", "added/100"), unit="%", less=True)
    results.findings["added/1"] = Finding("added/1", "added", 2.0, "%")
    assert math.isnan(aim.measured(results))

    results.findings["added/100"] = Finding("added/100", "added", 6.0, "%")

    assert aim.measured(results) == 6.0
    assert not aim.better(6.0, aim.floor)


@pytest.mark.parametrize(("rates", "kept"), [([200.0, 150.0, 100.0], 0.5), ([100.0], 1.0)])
def test_a_curve_says_how_its_last_figure_stands_to_its_first(rates: List[float], kept: float) -> None:
    points = [(10**number, rate) for number, rate in enumerate(rates)]
    curve = Curve("growth/keys", "keys", points, [2e-6] * len(rates))

    assert (curve.kept, curve.dearer) == (kept, 1.0)
    assert f"rate {kept:.2f}, server's time 1.00" in report.curve_line(curve)


def test_where_less_is_better_more_is_missed() -> None:
    results = Results()
    results.findings["recovery/keys"] = Finding("recovery/keys", "recovery", 6.0, "s")

    assert verdicts(results)["recovery of 1,000,000 keys"].word == "**missed**"


# --------------------------------------------------------------------------------------- the README's table and chart

SETTINGS = {"rounds": 1, "seconds": 1.0, "uvloop": False, "quick": False}


def document(ratios: Dict[str, float], findings: Dict[str, Finding]) -> Dict[str, Any]:
    results = Results()
    results.findings.update(findings)
    for key, ratio in ratios.items():
        results.cases.update(
            measured(key, Outcome("synap", [sample(1000 * ratio)]), Outcome("redis-py", [sample(1000)])).cases
        )
    return report.as_json(results, aims.judge(results), SETTINGS)


def test_the_table_says_where_a_floor_was_missed_and_where_a_peer_was_faster() -> None:
    findings = {
        "memory/get/sync": Finding("memory/get/sync", "memory:// get", 1.7, "µs"),
        "idle/memory": Finding("idle/memory", "an idle subscriber", 40.0, "KB", "valkey-server", 6.0),
        "idle/memory/nats": Finding("idle/memory/nats", "an idle subscriber", 40.0, "KB", "nats-server", 50.0),
    }
    ratios = {"get/async/1": 1.17, "set/async/1": 1.3, "durable/always/1": 0.999, "incr/sync/8": 0.5, "incr/sync/1": 2}

    lines = table.table_lines(document(ratios, findings))

    assert "| get, async, one by one | 1,170/s | redis-py 1,000/s | **1.17** (floor 1.2) |" in lines
    assert "| set, async, one by one | 1,300/s | redis-py 1,000/s | 1.3 |" in lines
    written = "| set, every write synced, one by one | 999/s | `appendfsync always`, redis-py 1,000/s |"
    assert f"{written} **0.99** (floor 1.1) |" in lines
    assert "| incr/sync/8 | 500/s | redis-py 1,000/s | **0.50** |" in lines  # no row of its own, but slower
    assert not any("incr/sync/1 " in line for line in lines)
    assert "| `get` on `memory://` | 1.7 µs | – | – |" in lines
    assert "| an idle subscriber | **40 KB** (floor 30 KB) | valkey-server 6 KB | **0.15** |" in lines
    assert "|  |  | nats-server 50 KB | 1.2 |" in lines
    assert lines[-1].startswith("Medians of up to 1 alternating rounds of 1 s")


def test_the_chart_draws_what_is_slower_to_the_left_of_equal() -> None:
    drawn = xml.etree.ElementTree.fromstring(chart.draw(document({"get/async/1": 4.0, "durable/always/1": 0.25}, {})))

    space = "{http://www.w3.org/2000/svg}"
    (even,) = (float(line.attrib["x1"]) for line in drawn.iter(f"{space}line") if line.get("class") == "even")
    legend = len(chart.COLOURS)
    bars = [bar for bar in drawn.iter(f"{space}rect") if "fill" in bar.attrib][legend:]
    faster, slower = ((float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in bars)
    assert faster[0] == even
    assert slower[0] + slower[1] == pytest.approx(even)
    assert slower[1] == pytest.approx(faster[1])
    assert {"4.0×", "0.25×"} <= {text.text for text in drawn.iter(f"{space}text")}


def test_what_the_readme_shows_are_cases_that_there_are(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = types.SimpleNamespace(pid=1)
    monkeypatch.setattr("bench.__main__.measure", lambda case, plan: [])
    monkeypatch.setattr(Plan, "run", lambda self, work: work.close())
    monkeypatch.setattr(Servers, "get", lambda self, label, start: nothing)
    names = ("kv", "sync", "mixed", "batch", "sizes", "queue", "stream", "fanout", "durable")

    keys = {key for name in names for key in perform([name], plan).cases}

    assert set(dict(shown.CASES)) <= keys
    assert {key for aim in aims.AIMS if aim.kind != "finding" for key in aim.keys} <= keys


def test_a_chart_of_nothing_is_still_a_picture() -> None:
    results = Results()
    results.curves["growth/keys"] = Curve("growth/keys", "keys", [(1000, 1.0)])

    drawn = chart.draw(report.as_json(results, [], SETTINGS))

    assert xml.etree.ElementTree.fromstring(drawn).tag.endswith("svg")
    assert table.table_lines(report.as_json(results, [], SETTINGS))


def test_what_typed_values_cost_is_printed() -> None:
    printed = CliRunner().invoke(typed.main, ["--slices", "1"], catch_exceptions=False).output
    assert [line[:28].rstrip() for line in printed.splitlines()] == list(typed.costs(1))
