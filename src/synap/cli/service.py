"""`synap ping`, `health`, `stats`, `settings`, `clients`, `shutdown`: look at a service, and stop it."""

from __future__ import annotations

from typing import Optional

import click

from synap.cli.command import Command
from synap.cli.connection import Connection, connects
from synap.cli.documents import emit
from synap.cli.download import read_health
from synap.cli.exits import negative
from synap.config import DEFAULT_URL, parse_url, resolve


@click.command(
    "ping", cls=Command, examples=["synap ping", "synap ping --count 5", "synap ping --url http://db:15500 && ./deploy"]
)
@connects
@click.option("--count", type=click.IntRange(min=1), metavar="N", default=1, show_default=True, help="How many times.")
def ping(connection: Connection, count: int) -> None:
    """Ping the service and print the round-trip time."""
    with connection.open() as client:
        client.connect()
        for _ in range(count):
            emit({"ok": True, "ms": round(client.ping() * 1000, 3)}, connection.pretty)


@click.command(
    "health",
    cls=Command,
    examples=["synap health", "synap health --url http://db:15500"],
    negative="The service answers that it is degraded.",
)
@connects
def health(connection: Connection) -> int:
    """Print the state of the service. A server needs no key for that."""
    config = resolve(None, connection.options())
    target = parse_url(config.url or DEFAULT_URL)
    if target.scheme in ("http", "https"):
        state = read_health(target, config)
    else:
        with connection.open() as client:
            state = client.health()
    emit(state, connection.pretty)
    return 0 if state.get("status") == "ok" else 1


@click.command(
    "stats",
    cls=Command,
    short_help="Print the figures of the service.",
    examples=["synap stats --pretty", "watch -n1 synap stats --pretty"],
)
@connects
def stats(connection: Connection) -> None:
    """Print the service's figures (needs an admin key where keys are on)."""
    with connection.open() as client:
        emit(client.stats(), connection.pretty)


@click.command("settings", cls=Command, examples=["synap settings --pretty"])
@connects
def settings(connection: Connection) -> None:
    """Print the settings of the service, without secrets (needs an admin key where keys are on)."""
    with connection.open() as client:
        emit(client.settings(), connection.pretty)


@click.command(
    "clients", cls=Command, examples=["synap clients", "synap clients --disconnect 17", "synap clients | jq .address"]
)
@connects
@click.option("--disconnect", type=click.IntRange(min=1), metavar="ID", help="Close this connection first.")
def clients(connection: Connection, disconnect: Optional[int]) -> None:
    """Print the connections, one a line (needs an admin key where keys are on)."""
    with connection.open() as client:
        if disconnect is not None and all(one.id != disconnect for one in client.clients()):
            raise negative("NO_CONNECTION", f"there is no connection {disconnect}; `synap clients` lists them")
        for one in client.clients(disconnect=disconnect):
            emit(one, connection.pretty)


@click.command("shutdown", cls=Command, examples=["synap shutdown --url http://db:15500"])
@connects
def shutdown(connection: Connection) -> None:
    """Ask the service to stop once what is in flight is answered (needs an admin key where keys are on)."""
    with connection.open() as client:
        client.shutdown()
    emit({"success": True}, connection.pretty)
