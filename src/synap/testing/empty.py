"""Take everything out of a service, between tests."""

from __future__ import annotations

from synap import SynapClient


def empty(client: SynapClient) -> None:
    """Delete all keys, queues and rooms."""
    with client.pipeline() as p:
        queues = p.queue.list()
        rooms = p.stream.rooms()
        page = p.kv.scan(count=10_000)
    keys = page.result()
    while True:
        if keys.keys:
            client.kv.delete(*keys.keys)
        if not keys.has_more:
            break
        keys = client.kv.scan(cursor=keys.cursor, count=10_000)
    if queues.result() or rooms.result():
        with client.pipeline() as p:
            deleted = [p.queue.delete(queue) for queue in queues.result()]
            gone = [p.stream.delete(room) for room in rooms.result()]
        for handle in (*deleted, *gone):
            handle.result()
