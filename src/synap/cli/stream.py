"""`synap stream`: events in rooms."""

from __future__ import annotations

from itertools import islice
from typing import Optional, Sequence

import click

from synap.cli.command import Group
from synap.cli.connection import Connection, connects
from synap.cli.documents import emit, emit_names, need_output, pairs, read_values
from synap.cli.exits import negative, usage

NO_ROOM = "There is no such room."


@click.group(
    "stream",
    cls=Group,
    examples=[
        'synap stream publish chat-room-1 message \'{"user": "alice", "text": "hi"}\'',
        "synap stream tail chat-room-1 --last 50",
        "synap stream history chat-room-1 --from 0 --to 9",
    ],
)
def stream() -> None:
    """Events in rooms, in order, kept for later readers."""


@stream.command(
    "publish",
    examples=[
        'synap stream publish chat-room-1 message \'{"user": "alice", "text": "hi"}\'',
        "synap stream publish builds finished - --metadata branch=main < report.json",
        "tail -f app.log | synap stream publish logs line --lines --string",
    ],
)
@connects
@click.argument("room")
@click.argument("event_type")
@click.argument("data", required=False)
@click.option("--metadata", multiple=True, metavar="NAME=TEXT", help="Metadata; may be repeated.")
@click.option("--string", is_flag=True, help="Take the data as text, also where it is JSON.")
@click.option("--lines", is_flag=True, help="Publish each line of stdin as an event.")
def publish(
    connection: Connection,
    room: str,
    event_type: str,
    data: Optional[str],
    metadata: Sequence[str],
    string: bool,
    lines: bool,
) -> None:
    """Publish an event (DATA - reads it from stdin) and print its event_id and offset."""
    about = pairs(metadata, "--metadata")
    with connection.open() as client:
        for thing in read_values(data, string=string, lines=lines):
            emit(client.stream.publish(room, event_type, thing, about), connection.pretty)


@stream.command(
    "tail",
    examples=[
        "synap stream tail chat-room-1",
        "synap stream tail chat-room-1 --last 50",
        "synap stream tail orders --from 1200 --count 10",
        "synap stream tail orders --replay | jq -c .data",
    ],
)
@connects
@click.argument("room")
@click.option("--from", "from_offset", type=int, metavar="OFFSET", help="Begin there; -50: at the last 50.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Begin at the last N events.")
@click.option("--replay", is_flag=True, help="Begin at the oldest event.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after this many events.")
def tail(
    connection: Connection,
    room: str,
    from_offset: Optional[int],
    last: Optional[int],
    replay: bool,
    count: Optional[int],
) -> None:
    """Print events as they come, also across a reconnect, until Ctrl-C."""
    if (from_offset is not None) + (last is not None) + replay > 1:
        raise usage("give one of --from, --last and --replay")
    if last is not None:
        from_offset = -last
    need_output()
    with connection.open() as client:
        subscription = client.stream.subscribe(room, from_offset=from_offset, replay=replay)
        for event in islice(subscription, count):
            emit(event, connection.pretty)
        subscription.unsubscribe()


@stream.command(
    "history",
    examples=[
        "synap stream history chat-room-1",
        "synap stream history chat-room-1 --from -10",
        "synap stream history log --from 0 --to 99",
    ],
    negative=NO_ROOM,
)
@connects
@click.argument("room")
@click.option("--from", "from_offset", type=int, metavar="OFFSET", help="First offset; -10: the last 10 events.")
@click.option("--to", "to_offset", type=int, metavar="OFFSET", help="Last offset, included.")
@click.option("--limit", type=int, metavar="N", default=100, show_default=True, help="At most this many events.")
def history(
    connection: Connection, room: str, from_offset: Optional[int], to_offset: Optional[int], limit: int
) -> None:
    """Print the events of a room."""
    need_output()
    with connection.open() as client:
        page = client.stream.history(room, from_offset=from_offset, to_offset=to_offset, limit=limit)
        end = page.newest_offset
        if to_offset is not None:
            end = min(end, to_offset) if to_offset >= 0 else end + 1 + to_offset
        while page.events:
            for event in page.events:
                emit(event, connection.pretty)
            limit -= len(page.events)
            next_offset = page.events[-1].offset + 1
            if limit <= 0 or next_offset > end:
                break
            page = client.stream.history(room, from_offset=next_offset, to_offset=end, limit=limit)


@stream.command("rooms", examples=["synap stream rooms", "synap stream rooms --raw"])
@connects
@click.option("--raw", is_flag=True, help="Print names without quotes.")
def rooms(connection: Connection, raw: bool) -> None:
    """Print the names of all rooms."""
    with connection.open() as client:
        emit_names(client.stream.rooms(), raw, connection.pretty)


@stream.command("stats", examples=["synap stream stats chat-room-1"], negative=NO_ROOM)
@connects
@click.argument("room")
def stats(connection: Connection, room: str) -> None:
    """Print the figures of a room."""
    with connection.open() as client:
        emit(client.stream.stats(room), connection.pretty)


@stream.command(
    "cursors",
    examples=["synap stream cursors orders", "synap stream cursors orders | jq 'select(.lag > 100)'"],
    negative=NO_ROOM,
)
@connects
@click.argument("room")
@click.option("--forget", metavar="NAME", help="Delete the position of the durable subscription NAME.")
def cursors(connection: Connection, room: str, forget: Optional[str]) -> None:
    """Print the position of each durable subscription of a room: offset of the last processed event, and lag."""
    with connection.open() as client:
        if forget is not None and not client.stream.forget(room, forget):
            raise negative("INVALID_REQUEST", f"the room {room!r} knows no durable subscription {forget!r}")
        for cursor in client.stream.cursors(room):
            emit(cursor, connection.pretty)


@stream.command("delete", examples=["synap stream delete chat-room-1"], negative=NO_ROOM)
@connects
@click.argument("room")
def delete(connection: Connection, room: str) -> None:
    """Delete a room with all its events."""
    with connection.open() as client:
        emit({"deleted": client.stream.delete(room)}, connection.pretty)
