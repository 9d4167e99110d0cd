"""JSON in, JSON out."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Synap


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ('{"name": "Alice"}', {"name": "Alice"}),
        ("[1, 2.0, null, true]", [1, 2.0, None, True]),
        ("42", 42),
        ("-5", -5),
        ("-0.5", -0.5),
        ("1.0", 1.0),
        ("null", None),
        ('"42"', "42"),
        ("hello", "hello"),
        ("hello world", "hello world"),
        ("{broken", "{broken"),
        ("01234", "01234"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity is text", "-Infinity is text"),
        ("Grüße 🐍", "Grüße 🐍"),
        ("", ""),
    ],
)
def test_a_value_is_json_where_it_parses_and_text_elsewhere(
    synap: Synap, name: str, given: str, stored: object
) -> None:
    assert synap("kv", "set", name, *(["--"] if given.startswith("-I") else []), given).code == 0
    got = synap("kv", "get", name)
    assert got.code == 0
    assert got.document == stored
    assert type(got.document) is type(stored)


def test_string_takes_what_looks_like_json_as_text(synap: Synap, name: str) -> None:
    synap("kv", "set", name, "42", "--string")
    assert synap("kv", "get", name).document == "42"


def test_a_dash_reads_the_value_from_stdin(synap: Synap, name: str) -> None:
    synap("kv", "set", name, "-", stdin=b'{"a":\n [1]}\n')
    assert synap("kv", "get", name).document == {"a": [1]}


def test_the_line_break_that_ends_a_text_on_stdin_is_not_part_of_it(synap: Synap, name: str) -> None:
    synap("kv", "set", name, "-", stdin=b"two\nlines\n")
    assert synap("kv", "get", name).document == "two\nlines"


def test_stdin_that_is_not_text_is_refused_with_a_way_on(synap: Synap, name: str) -> None:
    ended = synap("kv", "set", name, "-", stdin=b"\xff\x00")
    assert ended.code == 2
    assert "--binary" in ended.err
    assert synap("kv", "exists", name).code == 1


def test_bytes_go_in_and_come_out_as_they_are(synap: Synap, name: str) -> None:
    data = bytes(range(256)) + b"\n"
    assert synap("kv", "set", name, "-", "--binary", stdin=data).code == 0
    assert synap("kv", "get", name, "--raw").out == data


def test_raw_prints_text_without_quotes_and_the_rest_as_json(synap: Synap, name: str) -> None:
    synap("kv", "set", name, "hello")
    assert synap("kv", "get", name, "--raw").out == b"hello\n"
    synap("kv", "set", name, '{"a": 1}')
    assert synap("kv", "get", name, "--raw").out == b'{"a":1}\n'


def test_a_document_is_one_line_unless_it_is_to_be_pretty(synap: Synap, name: str) -> None:
    synap("kv", "set", name, '{"a": [1, 2], "text": "two\\nlines, Grüße"}')
    line = synap("kv", "get", name).out
    assert line == '{"a":[1,2],"text":"two\\nlines, Grüße"}\n'.encode()
    pretty = synap("kv", "get", name, "--pretty").out
    assert pretty.count(b"\n") > 3
    assert json.loads(pretty) == json.loads(line)


def test_options_of_the_connection_stand_before_or_after_the_command(synap: Synap, synap_url: str, name: str) -> None:
    synap("kv", "set", name, "1")
    assert synap("--url", synap_url, "kv", "get", name).document == 1
    assert synap("kv", "get", name, "--url", synap_url).document == 1
    assert synap("--url", "http://127.0.0.1:1", "kv", "get", name, "--url", synap_url).document == 1


def test_what_json_can_not_hold_is_refused_by_place(synap: Synap, name: str) -> None:
    ended = synap("kv", "set", name, '{"deep": [1, 100000000000000000000000]}')
    assert ended.code == 2
    assert "INVALID_PAYLOAD" in ended.err
    assert "$.deep[1]" in ended.err
