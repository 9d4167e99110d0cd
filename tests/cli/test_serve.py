"""`synap serve` as the shell sees it: its options, their variables, its end."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from synap import SynapClient
from synap.server.run import say
from synap.server.settings import OPTIONS
from synap.testing.ports import ReservedPort
from tests.cli.conftest import Ended, Spawn, Synap, environment
from tests.helpers.patience import PATIENCE

ForReal = Callable[..., Ended]


def test_every_option_is_in_the_help_with_its_variable(synap: Synap) -> None:
    said = " ".join(synap("serve", "--help").out.decode().split())
    for option in OPTIONS:
        assert option.on_command_line in said
        assert option.in_environment in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_listens_and_ends_with_code_0(spawn: Spawn, number: signal.Signals) -> None:
    process = spawn("serve", "--memory", "--port", "0")
    assert process.stdout is not None
    found = None
    while found is None:
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        found = re.search(rb"http://127\.0\.0\.1:\d+", line)
    with SynapClient(url=found.group().decode()) as client:
        client.kv.set("a", 1)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prot", "1"], "--port"),
        (["--port", "65536"], "65,535"),
        (["--fsync", "sometimes"], "'always' or 'everysec' or 'no'"),
        (["--rate-limit", "fast"], "rate_limit"),
        (["--host", "0.0.0.0"], "--insecure-no-auth"),
        (["--config", "no-such-file.toml"], "no-such-file.toml"),
        (["--port", "0", "--host", "ü" * 100, "--insecure-no-auth"], "not the name of a host"),
        (["--port", "0", "--keys-file", "no-such-keys.toml"], "no-such-keys.toml"),
        (["--port", "0", "--audit-log", "no/such/folder"], "no/such/folder"),
    ],
)
def test_an_option_it_can_not_use_is_named(synap: Synap, arguments: list[str], said: str) -> None:
    ended = synap("serve", "--memory", *arguments)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("url", ["foo://", "foo", "valkey://", "file://"])
def test_an_engine_that_there_is_not_is_a_setting_like_others(synap: Synap, url: str) -> None:
    ended = synap("serve", "--engine", url, "--port", "0")
    assert ended.code == 2, ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("start", ["exec {} >&-", "exec {} >/dev/full", "exec {} >&- 2>&- <&-"])
def test_it_runs_whoever_reads_what_it_prints(start: str, spawn: Spawn, tmp_path: Path) -> None:
    data = tmp_path / "dätä \x1b[31m"  # in a locale without such letters
    reserved = ReservedPort()  # let go before it is used, it may be another test's, who reserved it meanwhile
    command = [sys.executable, "-m", "synap", "serve", "--data", str(data), "--port", str(reserved.number)]
    process = subprocess.Popen(
        ["sh", "-c", start.format(shlex.join(command))],
        env=environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0"),
        stderr=subprocess.PIPE,
    )
    try:
        with SynapClient(url=f"http://127.0.0.1:{reserved.number}", retries=30) as client:
            client.kv.set("a", 1)
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        assert b"Traceback" not in said
    finally:
        process.kill()
        process.wait()


def test_what_no_locale_can_print_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say("data in /srv/\udcff\x1b[31m")
    assert capsys.readouterr().out == "data in /srv/\\udcff\\u001b[31m\n"


@pytest.mark.parametrize(
    ("option", "value"), [("memory", "1"), ("engine", "valkey://localhost:1"), ("engine", "file:///nowhere/else")]
)
def test_a_directory_that_would_not_be_used_is_refused_wherever_the_other_option_is_given(
    synap: Synap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    file = tmp_path / "synap.toml"
    file.write_text(f"{option} = {'true' if option == 'memory' else repr(value)}\n")
    arguments = ["serve", "--data", str(tmp_path / "data")]
    with socket.socket() as taken:  # a service that isn't refused doesn't start either
        taken.bind(("127.0.0.1", 0))
        arguments += ["--port", str(taken.getsockname()[1])]
        on_line = synap(*arguments, f"--{option}", *([] if option == "memory" else [value]))
        in_file = synap(*arguments, "--config", str(file))
        monkeypatch.setenv(f"SYNAP_{option.upper()}", value)
        in_environment = synap(*arguments)
    for ended in (on_line, in_file, in_environment):
        assert ended.code == 2
        assert ended.err.startswith("synap: [USAGE] --data is for what is kept in a directory")
        assert f"SYNAP_{option.upper()}" in ended.err


def test_a_typo_in_the_configuration_file_is_named_with_the_nearest(synap: Synap, tmp_path: Path) -> None:
    file = tmp_path / "synap.toml"
    file.write_text("prot = 15501\n")
    ended = synap("serve", "--config", str(file))
    assert ended.code == 2
    assert "'prot'" in ended.err
    assert "'port'" in ended.err


def test_a_variable_it_can_not_use_is_named(for_real: ForReal) -> None:
    ended = for_real("serve", "--memory", env=environment(SYNAP_PORT="many"))
    assert ended.code == 2
    assert "SYNAP_PORT" in ended.err


def test_a_port_in_use_is_said_in_one_line(for_real: ForReal) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = for_real("serve", "--memory", "--port", port)
    assert ended.code not in (0, 1)
    assert port in ended.err
    assert "Traceback" not in ended.err
