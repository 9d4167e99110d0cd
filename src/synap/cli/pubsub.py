"""`synap pubsub`: messages by topic, for current subscribers."""

from __future__ import annotations

from itertools import islice
from typing import Optional, Sequence

import click

from synap.cli.command import Group
from synap.cli.connection import Connection, connects
from synap.cli.documents import emit, emit_names, need_output, pairs, read_values


@click.group(
    "pubsub",
    cls=Group,
    examples=[
        "synap pubsub subscribe 'notifications.#'",
        'synap pubsub publish notifications.email.user \'{"to": "alice@example.com"}\'',
    ],
)
def pubsub() -> None:
    """Messages by topic, for current subscribers."""


@pubsub.command(
    "publish",
    examples=[
        'synap pubsub publish notifications.email.user \'{"to": "alice@example.com"}\'',
        "synap pubsub publish alarm.kitchen smoke --string",
    ],
)
@connects
@click.argument("topic")
@click.argument("message", required=False)
@click.option("--metadata", multiple=True, metavar="NAME=TEXT", help="Metadata; may be repeated.")
@click.option("--string", is_flag=True, help="Take the message as text, also where it is JSON.")
@click.option("--lines", is_flag=True, help="Publish each line of stdin as a message.")
def publish(
    connection: Connection, topic: str, message: Optional[str], metadata: Sequence[str], string: bool, lines: bool
) -> None:
    """Publish MESSAGE (- reads it from stdin) and print how many subscriptions it matched."""
    about = pairs(metadata, "--metadata")
    with connection.open() as client:
        for thing in read_values(message, string=string, lines=lines):
            result = client.pubsub.publish(topic, thing, about)
            emit(
                {
                    "message_id": result.message_id,
                    "topic": result.topic,
                    "subscribers_matched": result.subscribers_matched,
                },
                connection.pretty,
            )


@pubsub.command(
    "subscribe",
    examples=[
        "synap pubsub subscribe 'notifications.#'",
        "synap pubsub subscribe 'notifications.email.*' 'events.user.#' --count 5",
    ],
)
@connects
@click.argument("topics", metavar="TOPIC...", nargs=-1, required=True)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after this many messages.")
def subscribe(connection: Connection, topics: Sequence[str], count: Optional[int]) -> None:
    """Print messages as they come until Ctrl-C. * is one word of a topic, # any number."""
    need_output()
    with connection.open() as client:
        subscription = client.pubsub.subscribe(list(topics))
        for topic, message in islice(subscription, count):
            emit({"topic": topic, "message": message}, connection.pretty)
        subscription.unsubscribe()


@pubsub.command("topics", examples=["synap pubsub topics", "synap pubsub topics 'notifications.#' --raw"])
@connects
@click.argument("pattern", required=False)
@click.option("--raw", is_flag=True, help="Print topics without quotes.")
def topics(connection: Connection, pattern: Optional[str], raw: bool) -> None:
    """Print the patterns that are subscribed, or those that PATTERN matches."""
    with connection.open() as client:
        emit_names(client.pubsub.topics(pattern), raw, connection.pretty)


@pubsub.command("stats", examples=["synap pubsub stats"])
@connects
def stats(connection: Connection) -> None:
    """Print the figures of pub/sub."""
    with connection.open() as client:
        emit(client.pubsub.stats(), connection.pretty)
