"""What a call costs our client and our service without a network, and what limits and metrics add to it."""

from __future__ import annotations

from typing import Iterator

from bench.hotpath import TITLES, added, costs
from bench.plan import Finding, Plan, width_title

__all__ = ["hotpath"]

WIDTH = 100


def hotpath(plan: Plan) -> Iterator[Finding]:
    """What a call costs client and service with no network between them, and what limits and metrics add."""
    seconds = plan.seconds * plan.rounds
    for name, cost in costs(WIDTH, seconds).items():
        title = f"{TITLES[name]}, {width_title(WIDTH)}, no network"
        yield Finding(f"hotpath/{name}/client", f"{title}, client", cost.client, "µs")
        yield Finding(f"hotpath/{name}/service", f"{title}, service", cost.service, "µs")
    for width in (1, WIDTH):
        title = f"what limits and metrics add to the service's time for a get, {width_title(width)}"
        yield Finding(f"hotpath/limits/{width}", title, added(width, seconds).percent, "%")
