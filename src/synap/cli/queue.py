"""`synap queue`: messages that are leased, acknowledged, retried and dead-lettered."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterator, Optional, Sequence, Set

import click

from synap.cli.command import SECONDS, Group
from synap.cli.connection import Connection, connects
from synap.cli.documents import emit, emit_names, need_output, pairs, read_lines, read_values
from synap.cli.exits import negative, usage
from synap.results import MessageId

NO_QUEUE = "There is no such queue."
LEASE = "The lease printed with the message, so that a later one isn't affected. [default: the current one]"
CURRENT = 0
"""The lease number that means the current one: to the service, each command of the shell is another consumer."""
NOT_HELD = "There is no such queue, or the message is not leased (any more)."


@click.group(
    "queue",
    cls=Group,
    examples=[
        'synap queue publish tasks \'{"type": "send_email"}\' --priority 8',
        "synap queue consume tasks --timeout 30",
        "synap queue ack tasks MESSAGE_ID --lease 1",
        "synap queue stats tasks",
    ],
)
def queue() -> None:
    """Queues of messages that stay until they are acknowledged."""


@queue.command(
    "create",
    examples=["synap queue create tasks", "synap queue create tasks --max-retries 10 --ack-deadline 120"],
    negative="The queue existed already; what was given has been changed.",
)
@connects
@click.argument("name", metavar="QUEUE")
@click.option("--max-retries", type=int, metavar="N", help="Retries of a message. [default: 3]")
@click.option("--ack-deadline", type=SECONDS, help="Seconds a lease lasts. [default: 30]")
@click.option("--max-depth", type=int, metavar="N", help="Most messages it holds. [default: 100000]")
@click.option("--dead-letter/--no-dead-letter", default=None, help="Whether messages out of retries go to QUEUE.dlq.")
@click.option("--retry-delay", type=SECONDS, help="Seconds before a retry. [default: 0]")
@click.option("--retry-backoff", type=float, metavar="TIMES", help="Growth of the delay with each retry. [default: 2]")
@click.option("--retry-max-delay", type=SECONDS, help="Longest delay of a retry. [default: 3600]")
def create(connection: Connection, /, name: str, **given: Any) -> int:
    """Create a queue, or change the given options of an existing one; print whether it was created."""
    with connection.open() as client:
        created = client.queue.create(name, **{option: value for option, value in given.items() if value is not None})
    emit({"created": created}, connection.pretty)
    return 0 if created else 1


@queue.command("delete", examples=["synap queue delete tasks"], negative=NO_QUEUE)
@connects
@click.argument("name", metavar="QUEUE")
def delete(connection: Connection, name: str) -> None:
    """Delete a queue with all its messages."""
    with connection.open() as client:
        emit({"deleted": client.queue.delete(name)}, connection.pretty)


@queue.command("purge", examples=["synap queue purge tasks"], negative=NO_QUEUE)
@connects
@click.argument("name", metavar="QUEUE")
def purge(connection: Connection, name: str) -> None:
    """Delete all messages of a queue and print how many there were."""
    with connection.open() as client:
        emit({"purged": client.queue.purge(name)}, connection.pretty)


@queue.command(
    "publish",
    examples=[
        'synap queue publish tasks \'{"type": "send_email"}\' --priority 8 --header source=cron',
        "synap queue publish tasks later --delay 60",
        "find . -name '*.png' | synap queue publish images --lines --string",
    ],
)
@connects
@click.argument("name", metavar="QUEUE")
@click.argument("message", required=False)
@click.option("--priority", type=int, default=5, metavar="N", show_default=True, help="0 to 9, 9 comes out first.")
@click.option("--header", "headers", multiple=True, metavar="NAME=TEXT", help="A header; may be repeated.")
@click.option("--delay", type=SECONDS, default=0, help="Seconds until it may be consumed.")
@click.option("--string", is_flag=True, help="Take the message as text, also where it is JSON.")
@click.option("--lines", is_flag=True, help="Publish each line of stdin as a message.")
def publish(
    connection: Connection,
    name: str,
    message: Optional[str],
    priority: int,
    headers: Sequence[str],
    delay: float,
    string: bool,
    lines: bool,
) -> None:
    """Put MESSAGE into a queue (- reads it from stdin) and print its message_id and position."""
    head = pairs(headers, "--header")
    with connection.open() as client:
        for thing in read_values(message, string=string, lines=lines):
            result = client.queue.publish(name, thing, priority=priority, headers=head, delay=delay)
            emit({"message_id": result.message_id, "position": result.position}, connection.pretty)


@queue.command(
    "consume",
    examples=[
        "synap queue consume tasks --timeout 30",
        "synap queue consume tasks --ack --raw",
        "synap queue consume tasks --follow --ack --raw | xargs -n1 ./work",
        "synap queue consume tasks --count 10 --ack-deadline 300",
    ],
    negative="No message came in time.",
)
@connects
@click.argument("name", metavar="QUEUE")
@click.option("--timeout", "wait", type=SECONDS, default=0, help="Wait for a message. [default: not]")
@click.option("--ack-deadline", type=SECONDS, help="Seconds the lease lasts. [default: the queue's]")
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", default=1, show_default=True, help="Take up to this many."
)
@click.option("--follow", is_flag=True, help="Continue until Ctrl-C.")
@click.option("--ack", is_flag=True, help="Acknowledge each once it is printed.")
@click.option("--raw", is_flag=True, help="Print the message alone, text without quotes.")
def consume(
    connection: Connection,
    name: str,
    wait: float,
    ack_deadline: Optional[float],
    count: int,
    follow: bool,
    ack: bool,
    raw: bool,
) -> None:
    """Lease a message and print it with its message_id and lease, which `synap queue ack` takes."""
    need_output()
    taken = 0
    lease: Dict[str, Any] = {} if ack_deadline is None else {"ack_deadline": ack_deadline}
    with connection.open(binary=raw) as client:
        while follow or taken < count:
            message = client.queue.consume(name, timeout=30 if follow else wait, **lease)
            if message is None:
                if follow:
                    continue
                break
            taken += 1
            emit(message.message if raw else message, connection.pretty, raw=raw)
            if ack:
                client.queue.ack(name, message.message_id)
    if not taken:
        raise negative("NO_MESSAGE", f"no message came from {name!r}" + (f" in {wait:g} s" if wait else ""))


@queue.command(
    "ack",
    examples=[
        "synap queue ack tasks MESSAGE_ID",
        "synap queue ack tasks MESSAGE_ID --lease 2",
        "synap queue ack tasks - < taken                (taken with: synap queue consume tasks > taken)",
    ],
    negative=NOT_HELD,
)
@connects
@click.argument("name", metavar="QUEUE")
@click.argument("message_id")
@click.option("--lease", type=int, metavar="N", help=LEASE)
def ack(connection: Connection, name: str, message_id: str, lease: Optional[int]) -> None:
    """Acknowledge a leased message: it was handled.

    MESSAGE_ID and --lease are what `synap queue consume` printed; - reads all that it printed from stdin.
    """
    with connection.open() as client:
        for held in leased(message_id, lease):
            client.queue.ack(name, held)


@queue.command(
    "nack",
    examples=[
        "synap queue nack tasks MESSAGE_ID --lease 1",
        "synap queue nack tasks MESSAGE_ID --lease 1 --no-requeue",
        "synap queue nack tasks - < taken",
    ],
    negative=NOT_HELD,
)
@connects
@click.argument("name", metavar="QUEUE")
@click.argument("message_id")
@click.option("--requeue/--no-requeue", default=True, help="Retry it, or dead-letter it at once.")
@click.option("--delay", type=SECONDS, default=0, help="Seconds before the retry. [default: the queue's]")
@click.option("--lease", type=int, metavar="N", help=LEASE)
def nack(connection: Connection, name: str, message_id: str, requeue: bool, delay: float, lease: Optional[int]) -> None:
    """Return a leased message: it was not handled.

    MESSAGE_ID and --lease are what `synap queue consume` printed; - reads all that it printed from stdin.
    """
    with connection.open() as client:
        for held in leased(message_id, lease):
            emit(client.queue.nack(name, held, requeue=requeue, delay=delay), connection.pretty)


@queue.command("extend", examples=["synap queue extend tasks MESSAGE_ID 120 --lease 1"], negative=NOT_HELD)
@connects
@click.argument("name", metavar="QUEUE")
@click.argument("message_id")
@click.argument("seconds", type=SECONDS)
@click.option("--lease", type=int, metavar="N", help=LEASE)
def extend(connection: Connection, name: str, message_id: str, seconds: float, lease: Optional[int]) -> None:
    """Set a lease to end in SECONDS from now."""
    with connection.open() as client:
        client.queue.extend(name, MessageId(message_id, lease or CURRENT), seconds)


@queue.command(
    "redrive",
    examples=["synap queue redrive tasks", "synap queue redrive tasks --limit 10", "synap queue redrive tasks --id ID"],
    negative=NO_QUEUE,
)
@connects
@click.argument("name", metavar="QUEUE")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Put back at most this many.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Put back this one; may be repeated.")
def redrive(connection: Connection, name: str, limit: Optional[int], ids: Sequence[str]) -> None:
    """Put dead letters back into their queue and print how many."""
    with connection.open() as client:
        emit({"redriven": client.queue.redrive(name, limit, message_ids=ids or None)}, connection.pretty)


@queue.command("tail", examples=["synap queue tail tasks", "synap queue tail tasks.dlq --count 5"], negative=NO_QUEUE)
@connects
@click.argument("name", metavar="QUEUE")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after this many messages.")
@click.option("--interval", type=SECONDS, default=0.5, show_default=True, help="Seconds between two polls.")
def tail(connection: Connection, name: str, count: Optional[int], interval: float) -> None:
    """Print messages as they come into a queue, without taking them, until Ctrl-C.

    It polls the next 1,000 ready messages every --interval seconds; one that is consumed in between is not shown.
    """
    need_output()
    seen: Set[str] = set()
    printed = 0
    with connection.open() as client:
        while count is None or printed < count:
            page = client.queue.peek(name, limit=1000).messages
            for message in page:
                if message.message_id not in seen and printed != count:
                    emit(message, connection.pretty)
                    printed += 1
            seen = {message.message_id for message in page}
            if count is None or printed < count:
                time.sleep(interval)


@queue.command(
    "peek",
    examples=[
        "synap queue peek tasks",
        "synap queue peek tasks --state leased",
        "synap queue peek tasks.dlq | jq .headers",
    ],
    negative=NO_QUEUE,
)
@connects
@click.argument("name", metavar="QUEUE")
@click.option(
    "--state",
    type=click.Choice(["ready", "leased", "delayed"]),
    default="ready",
    show_default=True,
    help="Which messages.",
)
@click.option("--after", metavar="ID", help="Continue after this message.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), metavar="N", default=100, show_default=True, help="At most this many."
)
def peek(connection: Connection, name: str, state: str, after: Optional[str], limit: int) -> None:
    """Print messages, one a line, without taking them: next out first, others by when they are due."""
    need_output()
    with connection.open() as client:
        while limit:
            page = client.queue.peek(name, state=state, after=after, limit=limit)
            for message in page.messages:
                emit(message, connection.pretty)
            if not page.has_more:
                break
            limit -= len(page.messages)  # fewer than asked for, where they are large
            after = page.messages[-1].message_id


@queue.command("stats", examples=["synap queue stats tasks", "synap queue stats tasks | jq .depth"], negative=NO_QUEUE)
@connects
@click.argument("name", metavar="QUEUE")
def stats(connection: Connection, name: str) -> None:
    """Print the figures of a queue."""
    with connection.open() as client:
        emit(client.queue.stats(name), connection.pretty)


@queue.command("list", examples=["synap queue list", "synap queue list --raw"])
@connects
@click.option("--raw", is_flag=True, help="Print names without quotes.")
def list_(connection: Connection, raw: bool) -> None:
    """Print the names of all queues."""
    with connection.open() as client:
        emit_names(client.queue.list(), raw, connection.pretty)


def leased(message_id: str, lease: Optional[int]) -> Iterator[MessageId]:
    """Yield the leases to act on: the one of the command line, or those read from stdin."""
    if message_id != "-":
        yield MessageId(message_id, lease or CURRENT)
        return
    for line in read_lines():
        if not isinstance(line, dict) or not isinstance(line.get("message_id"), str):
            raise usage("stdin must hold what `synap queue consume` printed, one document a line")
        yield MessageId(line["message_id"], line.get("lease") or CURRENT)
