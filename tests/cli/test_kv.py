"""`synap kv`."""

from __future__ import annotations

from tests.cli.conftest import Synap
from tests.helpers.patience import about


def test_set_tells_whether_it_stored_and_what_was_there(synap: Synap, name: str) -> None:
    assert synap("kv", "set", name, "1").document == {"success": True, "key": name, "previous": None}
    assert synap("kv", "set", name, "2").document == {"success": True, "key": name, "previous": 1}


def test_a_condition_that_fails_is_exit_code_1_and_stores_nothing(synap: Synap, name: str) -> None:
    refused = synap("kv", "set", name, "1", "--xx")
    assert refused.code == 1
    assert refused.document["success"] is False
    assert synap("kv", "set", name, "1", "--nx").code == 0
    refused = synap("kv", "set", name, "2", "--nx")
    assert refused.code == 1
    assert "exists already" in refused.err
    assert synap("kv", "get", name).document == 1


def test_a_missing_key_is_exit_code_1_and_one_line_on_stderr(synap: Synap, name: str) -> None:
    for command in (["get"], ["ttl"], ["del"], ["persist"]):
        ended = synap("kv", *command, name)
        assert (ended.code, ended.err.count("\n")) == (1, 1), command
        assert ended.err.startswith("synap: [KEY_NOT_FOUND]")
        assert name in ended.err
    assert synap("kv", "expire", name, "10").code == 1


def test_full_shows_found_value_and_ttl(synap: Synap, name: str) -> None:
    synap("kv", "set", name, "1", "--ttl", "100")
    full = synap("kv", "get", name, "--full").document
    assert full["found"] is True
    assert full["ttl"] in about(100)
    missing = synap("kv", "get", name + "-not", "--full")
    assert (missing.code, missing.document["found"]) == (1, False)


def test_numbers_count_up_and_down(synap: Synap, name: str) -> None:
    assert synap("kv", "incr", name).document == 1
    assert synap("kv", "incr", name, "--amount", "10").document == 11
    assert synap("kv", "decr", name, "--amount", "5").document == 6
    assert synap("kv", "decr", name, "--amount", "-1").document == 7


def test_counting_something_else_says_what_is_wrong(synap: Synap, name: str) -> None:
    synap("kv", "set", name, "text")
    ended = synap("kv", "incr", name)
    assert ended.code == 5
    assert ended.err.startswith("synap: [WRONG_TYPE]")


def test_exists_answers_in_text_and_exit_code(synap: Synap, name: str) -> None:
    no = synap("kv", "exists", name)
    assert (no.code, no.document) == (1, False)
    synap("kv", "set", name, "null")
    yes = synap("kv", "exists", name)
    assert (yes.code, yes.document) == (0, True)


def test_expiry_is_set_shown_and_dropped(synap: Synap, name: str) -> None:
    synap("kv", "set", name, "1")
    assert synap("kv", "ttl", name).document is None
    assert synap("kv", "expire", name, "600").code == 0
    assert synap("kv", "ttl", name).document in about(600)
    assert synap("kv", "persist", name).code == 0
    assert synap("kv", "ttl", name).document is None


def test_several_keys_go_in_and_come_out(synap: Synap, name: str) -> None:
    assert synap("kv", "mset", f"{name}:a=1", f"{name}:b=x=y").code == 0
    rows = synap("kv", "mget", f"{name}:a", f"{name}:b", f"{name}:c").documents
    assert [(row["key"][len(name) :], row["found"], row["value"]) for row in rows] == [
        (":a", True, 1),
        (":b", True, "x=y"),
        (":c", False, None),
    ]
    assert synap("kv", "del", f"{name}:a", f"{name}:b", f"{name}:c").document == 2
    assert synap("kv", "mget", f"{name}:a").code == 1


def test_several_keys_come_from_a_json_object_on_stdin(synap: Synap, name: str) -> None:
    assert synap("kv", "mset", "-", "--ttl", "60", stdin=b'{"%s": [1]}' % name.encode()).code == 0
    assert synap("kv", "get", name, "--full").document["value"] == [1]
    refused = synap("kv", "mset", "-", stdin=b"[1]")
    assert (refused.code, "JSON object" in refused.err) == (2, True)
    assert synap("kv", "mset", "nothing-to-see").code == 2


def test_scan_lists_every_key_once(synap: Synap, name: str) -> None:
    for start in range(0, 2500, 500):
        synap("kv", "mset", *(f"{name}:{number}={number}" for number in range(start, start + 500)))
    keys = synap("kv", "scan", f"{name}:").documents
    assert len(keys) == len(set(keys)) == 2500
    assert len(synap("kv", "scan", f"{name}:", "--limit", "1200").documents) == 1200
    assert synap("kv", "scan", f"{name}:24", "--raw").out.splitlines()[0].startswith(f"{name}:24".encode())
    rows = synap("kv", "scan", f"{name}:249", "--values").documents
    assert {row["key"]: row["value"] for row in rows} == {
        f"{name}:{number}": number for number in (249, *range(2490, 2500))
    }
    assert synap("kv", "scan", f"{name}:nothing").documents == []
    assert synap("kv", "scan", "--values", "--raw").code == 2
