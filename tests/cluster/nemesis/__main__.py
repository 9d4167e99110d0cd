"""The nemesis as a command; see the package."""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import os
import sys
from typing import List

from tests.cluster.nemesis.load import Account, run
from tests.cluster.nemesis.rows import ROWS, Row
from tests.cluster.nemesis.upgrade import GatewayedCluster


def complaints(row: Row, account: Account) -> List[str]:
    """Return what must not have happened and did."""
    found = list(account.findings)
    if account.twice:
        found.append(f"{account.twice} publishes became two messages")
    if account.lost:
        found.append(f"{account.lost} acknowledged publishes were lost")
    if account.returned:
        found.append(f"{account.returned} acknowledged messages came again")
    return found


def happen(name: str, seconds: float) -> bool:
    """Run one row and print its account; returns whether all is well."""
    row = ROWS[name]
    with row.cluster() as cluster:
        services = cluster.services if isinstance(cluster, GatewayedCluster) else ()
        account = asyncio.run(
            run(cluster.url, row.durability, lambda: row.happens(cluster), seconds, services=services)
        )
    found = complaints(row, account)
    fine = not found or row.may_lose
    errors = ", ".join(f"{code} {count}" for code, count in account.errors.most_common()) or "none"
    sys.stdout.write(
        f"{name}: {len(account.sent)} published, {account.lost} lost, {account.returned} returned, "
        f"{account.twice} twice, {sum(account.added.values())} increments, "
        f"{sum(map(len, account.events.values()))} events, {account.events_lost_said} times told of lost events, "
        f"longest gap {account.gap:.1f} s, errors: {errors}\n"
    )
    for complaint in found:
        sys.stdout.write(f"    {complaint}\n")
    if not fine:
        sys.stdout.write("    FAILED\n")
    sys.stdout.flush()
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.nemesis", description=__doc__)
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help="rows to run, such as kill/none or 'kill/*'; without any, all"
    )
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--seconds", type=float, default=8.0, help="load of each row, at least")
    parser.add_argument("--binary", help="a server of your own; redis-server too")
    given = parser.parse_args()
    if given.binary:
        os.environ["CLUSTER_SERVER"] = given.binary
    if given.list:
        sys.stdout.write("\n".join(ROWS) + "\n")
        return 0
    names: List[str] = []
    for pattern in given.rows or ["*"]:
        found = fnmatch.filter(ROWS, pattern)
        if not found:
            parser.error(f"there is no row {pattern!r}; --list shows them")
        names += found
    fine = [happen(name, given.seconds) for name in names]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
