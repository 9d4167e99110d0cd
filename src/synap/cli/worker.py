"""`synap worker`: processes that run a `Worker`."""

from __future__ import annotations

import os
import sys
import traceback
from typing import List, Optional, Tuple

import click

from synap.cli.command import SECONDS, Command
from synap.cli.connection import Connection, connects_elsewhere
from synap.cli.exits import OTHER, Failure, failure, usage
from synap.errors import SynapError
from synap.terminal import escaped


@click.command(
    "worker",
    short_help="Run handlers for messages and periodic jobs.",
    cls=Command,
    examples=[
        "synap worker myapp.jobs:worker",
        "synap worker myapp.jobs:worker --processes 4 --concurrency 50",
        "synap worker myapp.jobs:worker --queue emails --queue invoices",
        "synap worker myapp.jobs:worker --reload            while you write it",
    ],
)
@click.argument("place", metavar="MODULE:WORKER")
@connects_elsewhere
@click.option(
    "--processes", type=click.IntRange(1, 1000), metavar="N", default=1, show_default=True, help="How many to run."
)
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="Messages at once in each process.")
@click.option("--grace", type=SECONDS, metavar="SECONDS", help="Time for running handlers to finish. [default: 30]")
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="Only this queue's handler; may be repeated.")
@click.option("--reload", is_flag=True, help="Restart when a Python file under this directory changes.")
def worker(
    connection: Connection,
    place: str,
    processes: int,
    concurrency: Optional[int],
    grace: Optional[float],
    queues: Tuple[str, ...],
    reload: bool,
) -> int:
    """Run the `Worker` called WORKER in MODULE, in one process or several, until Ctrl-C or SIGTERM.

    Stopping waits for running handlers and requeues the other messages. A process that dies is restarted. --url and
    --api-key are for a worker that was created without a client.
    """
    from synap.worker.process import load
    from synap.worker.supervisor import Supervisor, check_reload

    if reload:
        check_reload()
    if connection.given - {"--url", "--api-key"}:
        raise usage(
            "a worker takes all but --url and --api-key from its own client: AsyncSynapClient(tls_ca=…, engine={…})"
        )
    connection.check(connection.place)
    if connection.url is not None:
        os.environ["SYNAP_URL"] = connection.url
    if connection.api_key is not None:
        os.environ["SYNAP_API_KEY"] = connection.api_key
    if not reload:  # report a wrong name at once, and only once
        try:
            found = load(place)
        except Exception as error:
            raise _not_imported(place, error) from None
        grace = found.grace if grace is None else grace
    arguments: List[str] = [place]
    for name, value in (("--concurrency", concurrency), ("--grace", grace)):
        if value is not None:
            arguments += [name, str(value)]
    for queue in queues:
        arguments += ["--queue", queue]
    return Supervisor(arguments, processes, 30 if grace is None else grace, [os.getcwd()] if reload else []).run()


def _not_imported(place: str, error: Exception) -> Failure:
    """Build the `Failure` for a worker that can't be loaded; of what its module raised, it prints the traceback."""
    inside = error.__traceback__
    while inside is not None and inside.tb_frame.f_globals.get("__name__", "").split(".")[0] in ("synap", "importlib"):
        inside = inside.tb_next
    if inside is None and isinstance(error, SynapError):  # there is no such worker
        return failure(error)
    sys.stderr.write(escaped("".join(traceback.format_exception(type(error), error, inside))))
    return Failure(OTHER, "FAILED", f"{place} can't be imported: {type(error).__name__}: {error}")
