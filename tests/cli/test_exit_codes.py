"""The documented exit codes, from real processes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from synap import SynapClient
from synap.cli.app import run
from synap.testing import ThrowawayServer
from tests.cli.conftest import Ended, Spawn, environment
from tests.helpers.patience import PATIENCE

ForReal = Callable[..., Ended]


@pytest.fixture(scope="module")
def locked() -> Iterator[ThrowawayServer]:
    """A server that asks for keys."""
    with ThrowawayServer(arguments=["--api-key", "user-key", "--admin-key", "admin-key"]) as server:
        yield server


def test_0_done(for_real: ForReal, name: str) -> None:
    assert for_real("kv", "set", name, "1").code == 0


def test_1_a_negative_answer(for_real: ForReal, name: str) -> None:
    ended = for_real("kv", "get", name)
    assert (ended.code, ended.out) == (1, b"")
    assert ended.err == f"synap: [KEY_NOT_FOUND] there is no key '{name}'\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_changes_no_code(synap_url: str, name: str, closed: str) -> None:
    for arguments, code in ((["kv", "set", name, "1"], 0), (["kv", "get", name + "x"], 1), (["kv", "get"], 2)):
        line = shlex.join([sys.executable, "-m", "synap", *arguments])
        ended = subprocess.run(["sh", "-c", f"{line} {closed}"], env=environment(synap_url), capture_output=True)
        assert (ended.returncode, b"Traceback" in ended.stderr) == (code, False)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_2_what_is_to_be_read_or_printed_where_that_is_closed(
    synap_url: str, name: str, closed: str, tmp_path: Path
) -> None:
    """Before anything is done: an empty value would be stored, a message taken away and a key made that nobody sees."""
    client = SynapClient(synap_url)
    client.queue.publish(name, "kept")
    keys = str(tmp_path / "keys.toml")
    reads = [
        ["kv", "set", name, "-"],
        ["kv", "mset", "-"],
        ["queue", "publish", name, "--lines"],
        ["import", "-", keys],
    ]
    prints = [
        ["queue", "consume", name, "--ack"],
        ["kv", "scan"],
        ["pubsub", "subscribe", "a", "--count", "1"],
        ["keys", "new", "mine", "--grant", "admin", "--file", keys],
    ]
    for arguments in (reads if "<" in closed else []) + (prints if ">&- " in f"{closed} " else []):
        line = shlex.join([sys.executable, "-m", "synap", *arguments])
        ended = subprocess.run(["sh", "-c", f"{line} {closed}"], env=environment(synap_url), capture_output=True)
        assert ended.returncode == 2, arguments
        assert b"is closed" in ended.stderr or "2>&-" in closed
    assert client.queue.stats(name).depth == 1
    assert client.queue.peek(name).messages[0].message == "kept"
    assert not client.kv.exists(name)
    client.close()
    assert not os.listdir(tmp_path)


def test_2_usage(for_real: ForReal) -> None:
    assert for_real("kv", "set", "only-a-key").code == 2
    assert for_real("serve", "--host", "0.0.0.0", "--memory", "--port", "0").code == 2


def test_3_no_service_there(for_real: ForReal) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connecting is refused
        ended = for_real("ping", url=f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert ended.code == 3
    assert ended.err.startswith("synap: [CONNECTION_FAILED]")
    assert "synap serve" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.skipif(sys.version_info < (3, 10), reason="the cluster engine needs it")
@pytest.mark.parametrize("words", ["ping", "kv get x", "export URL", "cluster status URL", "cluster init URL"])
def test_3_no_cluster_there(for_real: ForReal, words: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"valkey://127.0.0.1:{taken.getsockname()[1]}"
        ended = for_real(*words.replace("URL", url).split(), url=url)
    assert ended.code == 3
    assert ended.err.startswith("synap: [SERVICE_UNAVAILABLE] no node of the cluster can be reached")


def test_3_no_answer_in_time(for_real: ForReal) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ended = for_real("ping", "--timeout", "0.2", url=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert ended.code == 3
    assert "no answer within 0.2 seconds" in ended.err


class Degraded(BaseHTTPRequestHandler):
    """Answers as a service does whose disk is full."""

    def do_GET(self) -> None:
        body = b'{"status": "degraded", "reason": "disk_full"}'
        self.send_response(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_1_a_degraded_service_is_not_healthy(for_real: ForReal) -> None:
    with HTTPServer(("127.0.0.1", 0), Degraded) as service:
        answering = threading.Thread(target=service.handle_request)
        answering.start()
        ended = for_real("health", url=f"http://127.0.0.1:{service.server_port}")
        answering.join()
    assert ended.code == 1
    assert json.loads(ended.out) == {"status": "degraded", "reason": "disk_full"}


def test_0_health_needs_no_key(for_real: ForReal, locked: ThrowawayServer) -> None:
    assert for_real("health", url=locked.url).code == 0


def test_4_refused(for_real: ForReal, locked: ThrowawayServer, name: str) -> None:
    without = for_real("kv", "get", name, url=locked.url)
    assert without.code == 4
    assert without.err.startswith("synap: [UNAUTHORIZED]")
    assert "SYNAP_API_KEY" in without.err
    wrong = for_real("kv", "get", name, "--api-key", "wrong-key", url=locked.url)
    assert wrong.code == 4
    assert "wrong-key" not in wrong.err
    assert for_real("kv", "get", name, "--api-key", "user-key", url=locked.url).code == 1
    forbidden = for_real("stats", "--api-key", "user-key", url=locked.url)
    assert forbidden.code == 4
    assert forbidden.err == "synap: [FORBIDDEN] admin.stats needs an admin key\n"
    env = environment(locked.url, SYNAP_API_KEY="admin-key")
    assert for_real("stats", env=env).code == 0


def test_1_a_connection_that_is_not_there(for_real: ForReal) -> None:
    ended = for_real("clients", "--disconnect", "1000000000")
    assert (ended.code, ended.out) == (1, b"")
    assert ended.err == "synap: [NO_CONNECTION] there is no connection 1000000000; `synap clients` lists them\n"


def test_5_something_else(for_real: ForReal, name: str) -> None:
    for_real("kv", "set", name, "text")
    assert for_real("kv", "incr", name).code == 5


@pytest.mark.parametrize("kind", ["stream", "pubsub"])
def test_130_ctrl_c_ends_listening_without_a_word(spawn: Spawn, synap_url: str, name: str, kind: str) -> None:
    with SynapClient(url=synap_url) as client:
        if kind == "stream":
            client.stream.publish(name, "first", 1)
            process = spawn("stream", "tail", name, "--replay")
        else:
            process = spawn("pubsub", "subscribe", f"{name}.*")
            while not client.pubsub.publish(f"{name}.x", 1).subscribers_matched:
                assert process.poll() is None
        assert process.stdout is not None
        assert name.encode() in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_130_ctrl_c_ends_waiting_for_a_message(spawn: Spawn, synap_url: str, name: str) -> None:
    process = spawn("queue", "consume", name, "--follow", "--ack")
    with SynapClient(url=synap_url) as client:
        client.queue.publish(name, "first")
        assert process.stdout is not None
        assert b"first" in process.stdout.readline()
        while not client.queue.stats(name).acked_total:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (130, b"", b"")


def test_130_ctrl_c_before_the_command_line_is_imported() -> None:
    program = """
        import os, signal, sys
        class Interrupting:
            def find_spec(self, name, *_):
                if name == "click":
                    os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path.insert(0, Interrupting())
        from synap.cli import main
        main()
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, timeout=PATIENCE, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


@pytest.mark.skipif(os.name == "nt", reason="a pipe of the shell")
def test_141_a_reader_that_has_enough_is_silent(synap_url: str, name: str) -> None:
    with SynapClient(url=synap_url) as client:
        for start in (0, 10_000):
            client.kv.mset({f"{name}:{number:05}": 1 for number in range(start, start + 10_000)})
    command = f'"{sys.executable}" -m synap kv scan {name}: --raw; echo "code $?" >&2'
    shell = subprocess.run(
        f"({command}) | head -n 1",
        shell=True,
        capture_output=True,
        env=environment(synap_url),
        timeout=PATIENCE,
        check=False,
    )
    assert shell.stdout.startswith(name.encode())
    assert shell.stderr == b"code 141\n"


def test_python_m_synap_and_the_entry_point_are_the_same(for_real: ForReal) -> None:
    code = "import sys; from synap.cli import main; sys.argv[1:] = ['--version']; main()"
    entry = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PATIENCE, check=False)
    module = for_real("--version")
    assert (entry.returncode, entry.stdout) == (module.code, module.out)
    assert module.code == 0


def run_without(prepare: str) -> Any:
    """Run `synap` in a Python that lacks something."""
    code = textwrap.dedent(prepare) + "\nfrom synap.cli import main\nmain()\n"
    return subprocess.run([sys.executable, "-c", code, "ping"], capture_output=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_the_server_extra_it_says_what_to_install(module: str) -> None:
    if module == "rich":
        prepare = "import sys; sys.modules['rich'] = None; sys.argv = ['synap', 'demo']"
    else:
        prepare = "import sys; sys.modules['click'] = None"
    ended = run_without(prepare)
    assert ended.returncode == 5
    assert b'pip install "synap-client[server]"' in ended.stderr
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["status", "init"])
def test_without_the_cluster_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setitem(sys.modules, "hiredis", None)
    for name in [name for name in sys.modules if name.startswith("synap.cluster.")]:
        monkeypatch.delitem(sys.modules, name)
    assert run(["cluster", command, "valkey://localhost:1"]) == 2
    assert "pip install 'synap-client[cluster]'" in capsys.readouterr().err


def test_on_an_old_python_it_says_which_one_it_needs() -> None:
    # What looks at the version when it is imported has to be there before it is pretended.
    ended = run_without("import sys, synap; sys.version_info = (3, 8, 18, 'final', 0)")
    assert ended.returncode == 5
    assert b"3.10" in ended.stderr
    assert b"3.8" in ended.stderr
    assert b'pip install "synap-client[server]"' in ended.stderr
