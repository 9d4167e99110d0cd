"""The command line and a cluster whose user has a password, which no argument shows."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import List

import pytest

from synap.cli.app import run
from synap.testing.cluster import ThrowawayCluster


@pytest.fixture
def login(one_node: ThrowawayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """The options of a user of the node."""
    user = f"u{uuid.uuid4().hex}"
    one_node.nodes[0].ask("ACL", "SETUSER", user, "on", ">right", "~syn:*", "&syn:*", "+@all")
    (tmp_path / "right").write_text("right\n")
    (tmp_path / "wrong").write_text("wrong\n")
    monkeypatch.setenv("SYNAP_DURABILITY", "none")
    return ["--engine-user", user, "--engine-password-file", str(tmp_path / "right")]


def test_each_command_of_a_cluster_takes_the_users_name_and_the_file_with_the_password(
    one_node: ThrowawayCluster, login: List[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, url = str(tmp_path / "data"), one_node.url
    wrong = [*login[:3], str(tmp_path / "wrong")]
    commands = (
        ["cluster", "status", url],
        ["cluster", "init", url],
        ["kv", "set", "a", "1", "--url", url],
        ["export", url, data],
        ["import", data, url],
    )
    for command in commands:
        assert run([*command, *login]) == 0, capfd.readouterr().err
    capfd.readouterr()
    for command in commands:
        assert run([*command, *wrong]) == 4
        assert "ACL SETUSER" in capfd.readouterr().err
        assert run([*command, *login[:3], str(tmp_path / "none")]) == 2
        assert "engine_password_file" in capfd.readouterr().err


def test_the_environment_says_it_as_for_serve(
    one_node: ThrowawayCluster,
    login: List[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SYNAP_ENGINE_USER", login[1])
    monkeypatch.setenv("SYNAP_ENGINE_PASSWORD_FILE", str(tmp_path / "wrong"))
    assert run(["cluster", "status", one_node.url]) == 4
    assert run(["export", one_node.url]) == 4
    assert run(["cluster", "status", one_node.url, *login[2:]]) == 0
    capfd.readouterr()
    assert run(["cluster", "status", one_node.url, *login[2:], "--pretty"]) == 0
    assert json.loads(capfd.readouterr().out)["refusals"] == []
