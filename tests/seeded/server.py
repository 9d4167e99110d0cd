"""Bugs planted in the server: its lanes, its door, its keys."""

from __future__ import annotations

from tests.seeded.seed import Seed

SEEDS = (
    Seed(
        "a peer that doesn't read is still read",
        "server/native.py",
        "self.stalled = True\n        self._stop(PEER_STALLS)",
        "self.stalled = True",
        "tests/server/test_native_inside.py -k not_read",
    ),
    Seed(
        "messages on a WebSocket take no token of the rate limit",
        "server/websocket.py",
        "self._bucket.take()",
        "pass",
        "tests/server/test_websocket.py -k tokens",
    ),
    Seed(
        "a consume on a closed WebSocket takes the next message",
        "server/websocket.py",
        "request.abandon()",
        "pass",
        "tests/server/test_websocket.py -k closed_connection",
    ),
    Seed(
        "a line break in an event's JSON breaks server-sent events",
        "server/sse.py",
        'if b"\\n" in body or b"\\r" in body:',
        'if b"\\r\\n" in body:',
        "tests/server/test_events.py -k line_breaks",
    ),
    Seed(
        "a browser that comes back gets its last event again",
        "server/sse.py",
        '_offset("Last-Event-ID", last.decode("latin-1")) + 1',
        '_offset("Last-Event-ID", last.decode("latin-1"))',
        "tests/server/test_events.py -k last_event_id",
    ),
    Seed(
        "a batch of more commands than the rate is never done",
        "server/rates.py",
        "needed = min(count, self.capacity - 1.0) * self.spacing",
        "needed = count * self.spacing",
        "tests/server/test_limits.py -k bucket",
    ),
    Seed(
        "the bucket used last is forgotten first",
        "server/rates.py",
        "self._buckets.move_to_end(name)",
        "self._buckets.move_to_end(name, last=False)",
        "tests/server/test_limits.py -k bucket",
    ),
    Seed(
        "pings and cancels cost tokens",
        "server/rates.py",
        "self.full -= count * self.spacing",
        "self.full -= 0.0",
        "tests/server/test_limits.py -k only_requests",
    ),
    Seed(
        "a slow reader of a room is never told the rest",
        "server/flow.py",
        "self._lagging.add(subscription_id)",
        "pass",
        "tests/server/test_native.py -k slow_reader",
    ),
    Seed(
        "the earlier connection of a session goes on waiting",
        "server/native.py",
        "cast(NativeSession, earlier).supersede()",
        "pass",
        "tests/server/test_native.py -k comes_back",
    ),
    Seed(
        "ids of one's own are shared between keys",
        "server/single_request.py",
        ' if owner else "http"',
        ' if not owner else "http"',
        "tests/server/test_keys.py -k request_ids",
    ),
    Seed(
        "an inflated body may be of any size",
        "server/http_exchange.py",
        "body = decompress(body, limit)",
        "body = decompress(body, limit * 1000)",
        "tests/server/test_http.py tests/server/test_door.py",
    ),
    Seed(
        "Retry-After is rounded down",
        "server/http_exchange.py",
        'b"%d" % max(1, math.ceil(retry))',
        'b"%d" % math.floor(retry)',
        "tests/server/test_limits.py -k too_many",
    ),
    Seed(
        "a grant of one word covers a subscription to all",
        "server/grants.py",
        'reachable[j - 1] and one != "#" and word in ("*", one)',
        'reachable[j - 1] and word in ("*", one)',
        "tests/server/test_keys.py -k grant",
    ),
    Seed(
        "a grant of one name covers scans of what begins so",
        "server/grants.py",
        'return self.pattern.endswith("*") and self._matches(prefix) is not None',
        "return self._matches(prefix) is not None",
        "tests/server/test_keys.py",
    ),
    Seed(
        "a star in a grant ends at a line break",
        "server/grants.py",
        ".join(parts), re.DOTALL).fullmatch",
        ".join(parts)).fullmatch",
        "tests/server/test_keys.py -k grant",
    ),
    Seed(
        "a file of keys that all can read is taken",
        "server/keyfile.py",
        "mode & stat.S_IRWXO:",
        "mode & stat.S_IWOTH:",
        "tests/server/test_keys.py -k file",
    ),
    Seed(
        "the audit log says of each command in a batch that it went well",
        "server/audit.py",
        'said = outcome if result is None else "ok" if error is None else error.code',
        'said = outcome if result is None else "ok"',
        "tests/server/test_keys.py -k audit",
    ),
)
