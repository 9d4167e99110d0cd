"""What others stored and said is shown, and never obeyed, by whoever's terminal it is printed to."""

from __future__ import annotations

import json
import os
import pty
import re
import threading
from pathlib import Path
from typing import List

import pytest

from synap import SynapClient
from synap.cli.app import run
from synap.cli.exits import Failure, report
from synap.testing import ThrowawayServer
from tests.cli.conftest import Ended, Synap

EVIL = "a\x1b]0;owned\x07\x9b31m\x7f\u202eb\u2066\u200f\u2028c"
"""A title, a colour, a deletion, text that runs backwards, and a line break of another kind."""
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


@pytest.fixture
def wicked(synap_url: str, name: str) -> str:
    """A prefix under which a key, a queue, a room and what is in them have wicked names and contents."""
    evil = f"{name}{EVIL}"
    with SynapClient(url=synap_url) as client:
        client.kv.set(evil, {EVIL: EVIL})
        client.queue.create(evil, max_retries=3)
        for _ in range(3):
            client.queue.publish(evil, {EVIL: EVIL}, headers={EVIL: EVIL})
        client.stream.publish(evil, EVIL, {EVIL: EVIL}, {EVIL: EVIL})
        client.stream.commit(evil, EVIL, 0)
    return evil


COMMANDS = [
    ["kv", "get"],
    ["kv", "get", "--full"],
    ["kv", "mget"],
    ["kv", "scan"],
    ["kv", "scan", "--values"],
    ["kv", "incr"],
    ["kv", "set", "--nx", "1"],
    ["queue", "peek"],
    ["queue", "tail", "--count", "1"],
    ["queue", "consume"],
    ["queue", "stats"],
    ["queue", "list"],
    ["stream", "tail", "--replay", "--count", "1"],
    ["stream", "history"],
    ["stream", "cursors"],
    ["stream", "stats"],
    ["stream", "rooms"],
]


@pytest.mark.parametrize("pretty", [False, True])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_prints_what_a_terminal_obeys(synap: Synap, wicked: str, command: List[str], pretty: bool) -> None:
    group, verb, *options = command
    place = [] if verb in ("list", "rooms") else [wicked]
    ended = synap(group, verb, *place, *options, *(["--pretty"] if pretty else []))
    assert ended.out or ended.code
    assert not OBEYED.search(ended.out.decode())
    assert not OBEYED.search(ended.err)
    if verb not in ("stats", "incr") and not pretty:
        assert json.dumps(EVIL)[1:-1] in json.dumps(ended.documents), "it is the same text to whoever reads JSON"


def test_what_is_pushed_is_escaped_too(synap: Synap, synap_url: str, name: str) -> None:
    ended: List[Ended] = []
    listening = threading.Thread(target=lambda: ended.append(synap("pubsub", "subscribe", f"{name}.#", "--count", "1")))
    listening.start()
    with SynapClient(url=synap_url) as client:
        while not ended:
            client.pubsub.publish(f"{name}.{EVIL.replace(' ', '')}", {EVIL: EVIL})
            listening.join(0.05)
    listening.join()
    assert ended[0].document["message"] == {EVIL: EVIL}
    assert not OBEYED.search(ended[0].out.decode())


def test_raw_output_is_what_was_stored_byte_for_byte(synap: Synap, synap_url: str, name: str) -> None:
    with SynapClient(url=synap_url, format="msgpack") as client:
        client.kv.set(name, EVIL)
        client.kv.set(f"{name}:bytes", b"\x1b[31m\x00\xff")
    assert synap("kv", "get", name, "--raw").out == EVIL.encode() + b"\n"
    assert synap("kv", "get", f"{name}:bytes", "--raw").out == b"\x1b[31m\x00\xff"
    assert synap("kv", "get", name).document == EVIL


def test_what_a_service_says_of_itself_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    report(Failure(5, "WRONG_TYPE", f"it said {EVIL}", None))
    assert not OBEYED.search(capsys.readouterr().err)


def test_a_key_of_others_in_a_refusal_is_escaped(synap: Synap, name: str) -> None:
    ended = synap("kv", "get", f"{name}{EVIL}")
    assert ended.code == 1
    assert not OBEYED.search(ended.err)


def on_a_terminal(*arguments: str, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command line in this process with a terminal for its output; return what it wrote there."""
    monkeypatch.setenv("SYNAP_URL", url)
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, its = pty.openpty()
    said: List[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(ours, 65536):
                said.append(piece)
        except OSError:  # Linux says so that the other end is closed
            pass

    reading = threading.Thread(target=read)
    reading.start()
    with open(its, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        run(list(arguments))
        monkeypatch.undo()
    reading.join()
    os.close(ours)
    return b"".join(said).decode().replace("\r\n", "\n")


COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def test_colours_are_the_only_thing_that_a_terminal_obeys(
    wicked: str, synap_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = on_a_terminal("kv", "get", wicked, "--pretty", url=synap_url, monkeypatch=monkeypatch)
    assert COLOURS.search(shown)
    assert json.loads(COLOURS.sub("", shown)) == {EVIL: EVIL}
    assert not OBEYED.search(COLOURS.sub("", shown))


def test_an_export_is_escaped_on_a_terminal_and_whole_in_a_file(
    synap: Synap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThrowawayServer(data=tmp_path / "data") as server, SynapClient(url=server.url) as client:
        client.kv.set(EVIL, EVIL)
    source = str(tmp_path / "data")
    lines = on_a_terminal("export", source, url="http://localhost:1", monkeypatch=monkeypatch)
    assert not OBEYED.search(lines)
    exported = [json.loads(line) for line in lines.splitlines()]
    assert {"type": "key", "key": EVIL, "value": EVIL} in exported
    assert [json.loads(line) for line in synap("export", source).out.split(b"\n") if line][1:] == exported[1:]
