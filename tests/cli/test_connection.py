"""Options of the connection: what a command doesn't use is refused, with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Synap

NOBODY = "valkey://127.0.0.1:1"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"cluster status {NOBODY} --engine-ca ca.pem", "valkeys:// is"),
        (f"--tls-ca ca.pem cluster status {NOBODY}", "--engine-ca"),
        (f"--api-key k cluster init {NOBODY}", "--engine-password-file"),
        (f"--url {NOBODY} cluster status {NOBODY}", "an argument"),
        (f"--timeout 1 cluster status {NOBODY}", "leave it out"),
        ("cluster status http://127.0.0.1:1 --engine-ca ca.pem", "--tls-ca"),
        (f"export {NOBODY} --tls-ca ca.pem", "--engine-ca"),
        (f"export {NOBODY} --api-key k", "--engine-password-file"),
        (f"export {NOBODY} --timeout 1", "leave it out"),
        (f"--url {NOBODY} export {NOBODY}", "an argument"),
        ("export http://127.0.0.1:1 --engine-user me", "--api-key"),
        ("export http://127.0.0.1:1 --tls-ca ca.pem", "with https:// --tls-ca"),
        ("export ./data --api-key k", "a directory"),
        ("export ./data --timeout 1", "a directory"),
        (f"import none.jsonl {NOBODY} --tls-cert cert.pem", "--engine-cert"),
        ("import none.jsonl https://127.0.0.1:1 --engine-key key.pem", "--tls-key"),
        ("import none.jsonl ./data --engine-user me", "a directory"),
        ("backup ./data ./copy --tls-ca ca.pem", "a directory"),
        ("backup http://127.0.0.1:1 ./copy --engine-ca ca.pem", "--tls-ca"),
        ("--url http://127.0.0.1:1 backup ./data ./copy", "an argument"),
        ("--api-key k doctor ./data", "`doctor`"),
        ("--api-key k serve", "`serve`"),
        ("--timeout 1 keys list --file keys.toml", "`list`"),
        (f"kv get a --url {NOBODY} --api-key k", "--engine-user"),
        (f"kv get a --url {NOBODY} --tls-key key.pem", "--engine-key"),
        (f"kv get a --url {NOBODY} --engine-key key.pem", "valkeys:// is"),
        ("kv get a --url http://127.0.0.1:1 --tls-ca ca.pem", "with https:// --tls-ca"),
        ("kv get a --url http://127.0.0.1:1 --engine-password-file secret", "--api-key"),
        ("kv get a --url file:///nowhere --api-key k", "file://"),
        ("--engine-user me queue list", "--api-key"),
        ("worker none:worker --url valkey://127.0.0.1:1 --api-key k", "--engine-user"),
        ("worker none:worker --url http://127.0.0.1:1 --engine-user me", "--engine-user"),
    ],
)
def test_an_option_that_is_not_used_there_is_refused(synap: Synap, line: str, said: str) -> None:
    ended = synap(*line.split())
    assert ended.code == 2, ended.err
    assert ended.err.startswith("synap: [")
    assert ended.err.count("\n") == 1
    assert said in ended.err


def test_what_the_environment_says_of_a_cluster_is_for_clusters(
    synap: Synap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CA", "PASSWORD_FILE", "USER"):
        monkeypatch.setenv(f"SYNAP_ENGINE_{name}", str(tmp_path / "none"))
    assert synap("ping").code == 0
    assert synap("kv", "get", "a", "--url", (tmp_path / "data").as_uri()).code == 1
    assert synap("--pretty", "doctor", str(tmp_path / "data")).code == 0
