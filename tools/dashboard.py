"""Write the Grafana dashboard, `deploy/grafana/synap.json`: `python tools/dashboard.py`, with `--check` to compare.

Panels are described once, below; Grafana's JSON repeats the same hundred lines for each.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

PLACE = Path(__file__).parents[1] / "deploy" / "grafana" / "synap.json"
WHERE = 'job="$job", instance=~"$instance"'
SOURCE = {"type": "prometheus", "uid": "${source}"}


class Panel(NamedTuple):
    """A panel. `kind` is Grafana's; `lines` are (query, legend), where `W` stands for the filter."""

    title: str
    kind: str
    lines: Tuple[Tuple[str, str], ...]
    unit: str = "short"
    width: int = 12
    doc: str = ""
    stacked: bool = False


ROWS: Tuple[Tuple[str, Tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel("Operations", "stat", (("sum(rate(synap_requests_total{W}[$__rate_interval]))", ""),), "reqps", 4),
            Panel("Errors", "stat", (("sum(rate(synap_errors_total{W}[$__rate_interval]))", ""),), "reqps", 4),
            Panel("Connections", "stat", (("sum(synap_connections{W})", ""),), width=4),
            Panel("Memory of data", "stat", (("sum(synap_memory_bytes{W})", ""),), "bytes", 4),
            Panel("Messages ready", "stat", (('sum(synap_queue_depth{W, queue!~".+[.]dlq"})', ""),), width=4),
            Panel("Dead letters", "stat", (('sum(synap_queue_depth{W, queue=~".+[.]dlq"})', ""),), width=4),
            Panel(
                "Operations a second by command",
                "timeseries",
                (("sum by (command) (rate(synap_requests_total{W}[$__rate_interval]))", "{{command}}"),),
                "reqps",
                stacked=True,
            ),
            Panel(
                "Errors a second by code",
                "timeseries",
                (("sum by (code) (rate(synap_errors_total{W}[$__rate_interval]))", "{{code}}"),),
                "reqps",
                stacked=True,
            ),
        ),
    ),
    (
        "Latency",
        (
            Panel(
                "What one request in a hundred takes longer than, by command",
                "timeseries",
                (
                    (
                        "histogram_quantile(0.99, sum by (le, command) "
                        "(rate(synap_request_duration_seconds_bucket{W}[$__rate_interval])))",
                        "{{command}}",
                    ),
                ),
                "s",
                doc="In the service, its disk included and the network not; of one request in 64 of each command.",
            ),
            Panel(
                "Mean by lane",
                "timeseries",
                (
                    (
                        "sum by (lane) (rate(synap_request_duration_seconds_sum{W}[$__rate_interval])) "
                        "/ sum by (lane) (rate(synap_request_duration_seconds_count{W}[$__rate_interval]))",
                        "{{lane}}",
                    ),
                ),
                "s",
            ),
        ),
    ),
    (
        "Queues",
        (
            Panel(
                "Ready", "timeseries", (("topk(10, synap_queue_depth{W})", "{{queue}}"),), doc="Wait for a consumer."
            ),
            Panel("Leased", "timeseries", (("topk(10, synap_queue_pending{W})", "{{queue}}"),), doc="Are worked on."),
            Panel(
                "Published and acknowledged a second",
                "timeseries",
                (
                    ("sum(rate(synap_queue_published_total{W}[$__rate_interval]))", "published"),
                    ("sum(rate(synap_queue_acked_total{W}[$__rate_interval]))", "acknowledged"),
                    ("sum(rate(synap_queue_nacked_total{W}[$__rate_interval]))", "given back"),
                ),
                "ops",
            ),
            Panel(
                "Given up a second",
                "timeseries",
                (
                    ("sum by (queue) (rate(synap_queue_dead_lettered_total{W}[$__rate_interval]))", "{{queue}} dead"),
                    ("sum by (queue) (rate(synap_queue_dropped_total{W}[$__rate_interval]))", "{{queue}} dropped"),
                ),
                "ops",
            ),
            Panel("Consumers that wait", "timeseries", (("topk(10, synap_queue_consumers{W})", "{{queue}}"),)),
            Panel("Delayed", "timeseries", (("topk(10, synap_queue_delayed{W})", "{{queue}}"),)),
        ),
    ),
    (
        "Streams, topics, keys",
        (
            Panel(
                "Events a second",
                "timeseries",
                (("topk(10, rate(synap_room_published_total{W}[$__rate_interval]))", "{{room}}"),),
                "ops",
                8,
            ),
            Panel(
                "Topic messages a second",
                "timeseries",
                (
                    ("sum(rate(synap_topic_published_total{W}[$__rate_interval]))", "published"),
                    ("sum(rate(synap_topic_delivered_total{W}[$__rate_interval]))", "delivered"),
                ),
                "ops",
                8,
            ),
            Panel(
                "Keys",
                "timeseries",
                (("sum(synap_keys{W})", "all"), ("sum(synap_keys_expiring{W})", "that expire")),
                width=8,
            ),
        ),
    ),
    (
        "Disk and process",
        (
            Panel(
                "A commit takes",
                "timeseries",
                (
                    (
                        "rate(synap_log_commit_seconds_total{W}[$__rate_interval])"
                        " / rate(synap_log_commits_total{W}[$__rate_interval])",
                        "{{instance}}",
                    ),
                ),
                "s",
                8,
            ),
            Panel(
                "On disk",
                "timeseries",
                (
                    ("synap_log_database_bytes{W}", "database"),
                    ("synap_log_write_ahead_bytes{W}", "write-ahead log"),
                    ("synap_log_backlog_bytes{W}", "waits for the disk"),
                ),
                "bytes",
                8,
            ),
            Panel("Takes writes", "timeseries", (("synap_up_for_writes{W}", "{{instance}}"),), width=8),
            Panel(
                "Processor",
                "timeseries",
                (("rate(process_cpu_seconds_total{W}[$__rate_interval])", "{{instance}}"),),
                "percentunit",
                8,
            ),
            Panel(
                "Memory of the process",
                "timeseries",
                (("process_resident_memory_bytes{W}", "{{instance}}"),),
                "bytes",
                8,
            ),
            Panel("Open files", "timeseries", (("process_open_fds{W}", "{{instance}}"),), width=8),
        ),
    ),
)


def render(panel: Panel, number: int, x: int, y: int) -> Dict[str, Any]:
    """Write one panel as Grafana has it."""
    height = 4 if panel.kind == "stat" else 8
    custom = {"fillOpacity": 20 if panel.stacked else 8, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.doc,
        "datasource": SOURCE,
        "gridPos": {"h": height, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, **({} if panel.kind == "stat" else {"custom": custom})},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind != "stat" else {},
        "targets": [
            {
                "refId": chr(65 + place),
                "datasource": SOURCE,
                "expr": query.replace("{W", "{" + WHERE),
                "legendFormat": legend,
            }
            for place, (query, legend) in enumerate(panel.lines)
        ],
    }


def dashboard() -> Dict[str, Any]:
    """Write the whole dashboard."""
    panels: List[Dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
                "panels": [],
            }
        )
        y += 1
        x, height = 0, 0
        for panel in row:
            if x + panel.width > 24:
                x, y, height = 0, y + height, 0
            panels.append(render(panel, len(panels) + 1, x, y))
            x += panel.width
            height = max(height, panels[-1]["gridPos"]["h"])
        y += height
    variable = {"datasource": SOURCE, "type": "query", "refresh": 2, "sort": 1}
    return {
        "title": "Synap",
        "uid": "synap",
        "tags": ["synap"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"},
                {**variable, "name": "job", "label": "Job", "query": "label_values(synap_info, job)"},
                {
                    **variable,
                    "name": "instance",
                    "label": "Instance",
                    "query": 'label_values(synap_info{job="$job"}, instance)',
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    text = json.dumps(dashboard(), indent=1) + "\n"
    if check:
        if PLACE.read_text("utf-8") != text:
            sys.stderr.write("deploy/grafana/synap.json is stale: python tools/dashboard.py\n")
            return 1
        return 0
    PLACE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
