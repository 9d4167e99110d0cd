"""`python -m bench`: run the workloads, print what came out, write JSON and a chart where asked."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Dict, List, Optional, Tuple

import click

from bench import (
    aims,
    chart,
    report,
    table,
    workloads_company,
    workloads_durable,
    workloads_fanout,
    workloads_growth,
    workloads_hotpath,
    workloads_idle,
    workloads_kv,
    workloads_local,
    workloads_queue,
    workloads_stream,
)
from bench.measure import Case, alternate, alternate_sync
from bench.peers import Servers
from bench.plan import Curve, Finding, Plan, Workload
from bench.report import Results

WORKLOADS: Dict[str, Workload] = {
    "memory": workloads_local.memory,
    "hotpath": workloads_hotpath.hotpath,
    "kv": workloads_kv.kv,
    "sync": workloads_kv.sync,
    "batch": workloads_kv.batch,
    "sizes": workloads_kv.sizes,
    "mixed": workloads_kv.mixed,
    "queue": workloads_queue.queue,
    "stream": workloads_stream.stream,
    "fanout": workloads_fanout.fanout,
    "durable": workloads_durable.durable,
    "recovery": workloads_durable.recovery,
    "snapshot": workloads_durable.snapshot,
    "idle": workloads_idle.idle,
    "company": workloads_company.company,
    "growth": workloads_growth.growth,
}


def measure(case: Case, plan: Plan) -> List[Any]:
    """Let the contenders of a case take turns."""
    rounds = case.times * (plan.rounds if case.rounds is None else min(case.rounds, plan.rounds))
    if case.sync:
        return alternate_sync(case.contenders, rounds=rounds, seconds=plan.seconds)
    return plan.run(alternate(case.contenders, rounds=rounds, seconds=plan.seconds))


def perform(names: List[str], plan: Plan, only: Optional[str] = None) -> Results:
    """Run workloads and collect what they yield; `only` picks the cases whose key begins so."""
    results = Results()
    for name in names:
        click.secho(f"\n{name}: {(WORKLOADS[name].__doc__ or '').splitlines()[0]}", bold=True)
        try:
            for thing in WORKLOADS[name](plan):
                if isinstance(thing, Case):
                    if only is not None and not thing.key.startswith(only):
                        continue
                    thing.outcomes = {outcome.contender: outcome for outcome in measure(thing, plan)}
                    results.cases[thing.key] = thing
                    click.echo("\n".join(report.case_lines(thing)))
                elif isinstance(thing, Finding):
                    results.findings[thing.key] = thing
                    click.echo(report.finding_line(thing))
                else:
                    assert isinstance(thing, Curve)
                    results.curves[thing.key] = thing
                    click.echo(report.curve_line(thing))
        finally:
            plan.servers.stop_all()
    return results


@click.command()
@click.option(
    "--quick", is_flag=True, help="A twentieth of the load and short runs: shows that it works, proves little."
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="A workload, or workload:beginning-of-a-key (kv:get/async). Repeatable.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, writable=True), help="Write every sample here.")
@click.option("--chart", "chart_file", type=click.Path(dir_okay=False, writable=True), help="Write an SVG chart here.")
@click.option(
    "--table", "table_file", type=click.Path(allow_dash=True), help="Write the README's table here; - prints."
)
@click.option(
    "--from",
    "earlier",
    type=click.Path(dir_okay=False, exists=True),
    help="Measure nothing: make chart and table of what --json wrote here.",
)
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Turns of each contender.")
@click.option(
    "--seconds", type=click.FloatRange(0.02, 60), default=1.0, show_default=True, help="How long a turn lasts."
)
@click.option("--uvloop", is_flag=True, help="Run all clients on uvloop; without it all run on asyncio's own loop.")
@click.option(
    "--directory", type=click.Path(file_okay=False, exists=True), help="Where servers keep data while it runs."
)
@click.option("--list", "show", is_flag=True, help="List the workloads.")
def main(
    quick: bool,
    only: Tuple[str, ...],
    json_file: Optional[str],
    chart_file: Optional[str],
    table_file: Optional[str],
    earlier: Optional[str],
    rounds: int,
    seconds: float,
    uvloop: bool,
    directory: Optional[str],
    show: bool,
) -> None:
    """Measure Synap beside valkey-server with redis-py and nats-server with nats-py, on this machine, in one run."""
    if show:
        for name, workload in WORKLOADS.items():
            click.echo(f"{name:<10} {(workload.__doc__ or '').splitlines()[0]}")
        return
    if earlier:
        document = json.loads(pathlib.Path(earlier).read_text())
    else:
        if quick:
            rounds, seconds = min(rounds, 2), min(seconds, 0.2)
        with Servers(directory) as servers:
            document = _run(_picks(only), Plan(servers, rounds, seconds, 0.05 if quick else 1.0, uvloop), quick)
    if json_file:
        pathlib.Path(json_file).write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if chart_file:
        pathlib.Path(chart_file).write_text(chart.draw(document))
    if table_file:
        with click.open_file(table_file, "w") as file:
            file.write("\n".join(table.table_lines(document)) + "\n")


def _run(picks: List[Tuple[str, Optional[str]]], plan: Plan, quick: bool) -> Dict[str, Any]:
    """Measure, print it all, and return the document that `--json` writes."""
    click.echo("  ".join(f"{name}: {value}" for name, value in report.machine().items() if name != "packages"))
    results = Results()
    for name, prefix in picks:
        found = perform([name], plan, prefix)
        results.cases.update(found.cases)
        results.findings.update(found.findings)
        results.curves.update(found.curves)
    verdicts = aims.judge(results)
    measured = [verdict for verdict in verdicts if verdict.word != "not measured"]
    if measured:
        little = ", with a twentieth of the load" if quick else ""
        click.secho(f"\nAims (ratios to the peer in this run, medians{little})", bold=True)
        click.echo("\n".join(report.verdict_lines(measured)))
    settings = {"rounds": plan.rounds, "seconds": plan.seconds, "uvloop": plan.uvloop, "quick": quick}
    return report.as_json(results, verdicts, settings)


def _picks(only: Tuple[str, ...]) -> List[Tuple[str, Optional[str]]]:
    """Turn `--only` into workloads, each with the beginning its cases' keys must have."""
    picks: List[Tuple[str, Optional[str]]] = []
    for name in only or tuple(WORKLOADS):
        workload, _, prefix = name.partition(":")
        if workload not in WORKLOADS:
            raise click.BadParameter(
                f"no workload {workload!r}; there are: {', '.join(WORKLOADS)}", param_hint="--only"
            )
        picks.append((workload, prefix or None))
    return picks


if __name__ == "__main__":
    main()
