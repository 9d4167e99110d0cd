"""Workers in processes of their own: started, stopped, killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ContextManager, Dict, Iterator, List

import pytest

from synap import AsyncSynapClient
from synap.testing.reaper import kill_at_exit
from synap.testing.server import can_serve
from synap.worker.process import load
from synap.worker.results import result_key
from tests.helpers.patience import PATIENCE
from tests.worker.conftest import until
from tests.worker.crashes import crash_rounds

pytestmark = [
    pytest.mark.skipif(sys.version_info < (3, 10), reason="the command line needs Python 3.10"),
    pytest.mark.skipif(not can_serve(), reason="needs a service"),
]

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def process_of(command: List[str], folder: Path, environment: Dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a process for the length of a block."""
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, encoding="utf-8")
    kill_at_exit(process.pid)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def synap_worker(url: str, name: str, *arguments: str) -> ContextManager[subprocess.Popen[str]]:
    """Run `synap worker` for the length of a block."""
    environment = {**os.environ, "SYNAP_URL": url, "SYNAP_TEST_NAME": name}
    return process_of([sys.executable, "-m", "synap", "worker", *arguments], ROOT, environment)


async def _value(client: AsyncSynapClient, key: str) -> Any:
    return (await client.kv.get(key)).value


async def test_sigterm_lets_handlers_end_and_the_processes_exit(synap_url: str, name: str) -> None:
    async with AsyncSynapClient(url=synap_url) as client:
        await client.queue.publish(f"{name}:slow", 0.3)
        with synap_worker(synap_url, name, "tests.worker.app:worker", "--processes", "2") as process:
            await until(lambda: _value(client, f"{name}:begun"))
            process.send_signal(signal.SIGTERM)
            assert await asyncio.get_running_loop().run_in_executor(None, process.wait, PATIENCE) == 0
        assert await _value(client, f"{name}:ended") == 0.3
        stats = await client.queue.stats(f"{name}:slow")
        assert (stats.depth, stats.pending, stats.acked_total) == (0, 0, 1)


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs Linux")
@pytest.mark.parametrize("times", [1, 2])
async def test_a_signal_to_all_processes_counts_once(synap_url: str, name: str, times: int) -> None:
    """As systemd sends it to a service: the handlers were cancelled at the first."""
    async with AsyncSynapClient(url=synap_url) as client:
        await client.queue.publish(f"{name}:slow", 0.5 if times == 1 else 50)
        with synap_worker(synap_url, name, "tests.worker.app:worker") as process:
            await until(lambda: _value(client, f"{name}:begun"))
            for _ in range(times):
                _signal_all(process.pid)
                await asyncio.sleep(0.1)  # two at once may come as one
            assert await asyncio.get_running_loop().run_in_executor(None, process.wait, PATIENCE) == 0
        assert await _value(client, f"{name}:ended") == (0.5 if times == 1 else None)
        assert (await client.queue.stats(f"{name}:slow")).pending == 0


def _signal_all(supervisor: int) -> None:
    for pid in (supervisor, *map(int, Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split())):
        os.kill(pid, signal.SIGTERM)


def test_a_process_that_the_service_refuses_ends_though_a_thread_goes_on(tmp_path: Path) -> None:
    """It took no messages and was not started again, for as long as the handler hung."""
    (tmp_path / "hanging.py").write_text("""
import time
from synap.worker import Worker

worker = Worker("memory://")

@worker.on("started")
async def begin(event):
    await worker.client.queue.publish("hang", 1)

@worker.handles("hang", timeout=0.05)
def hang(value):
    time.sleep(600)

@worker.on("retried")
async def refuse(event):
    await worker.client.close()
""")
    command = [sys.executable, "-m", "synap.worker", "hanging:worker"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=PATIENCE)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("synap worker: this client is closed")


async def test_what_outlasts_the_grace_is_given_back(synap_url: str, name: str) -> None:
    async with AsyncSynapClient(url=synap_url) as client:
        await client.queue.publish(f"{name}:slow", 50)
        with synap_worker(synap_url, name, "tests.worker.app:worker", "--grace", "0.1") as process:
            await until(lambda: _value(client, f"{name}:begun"))
            process.send_signal(signal.SIGINT)
            assert await asyncio.get_running_loop().run_in_executor(None, process.wait, PATIENCE) == 0
        assert await client.queue.consume(f"{name}:slow") is not None
        assert await _value(client, f"{name}:ended") is None


async def test_the_processes_end_when_whoever_started_them_is_killed(synap_url: str, name: str) -> None:
    async with AsyncSynapClient(url=synap_url) as client:
        with synap_worker(synap_url, name, "tests.worker.app:worker", "--queue", f"{name}:slow") as process:
            await until(lambda: _consumers(client, f"{name}:slow"))
            process.kill()
            process.wait()
            await until(lambda: _nobody(client, f"{name}:slow"))


async def _consumers(client: AsyncSynapClient, queue: str) -> bool:
    return queue in await client.queue.list() and (await client.queue.stats(queue)).consumers > 0


async def _nobody(client: AsyncSynapClient, queue: str) -> bool:
    return not (await client.queue.stats(queue)).consumers


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere.at.all:worker", "there is no module 'nowhere'"),
        ("tests.worker.app:nobody", "tests.worker.app has no 'nobody'"),
        ("tests.worker.app:NAME", "is no Worker but str"),
        ("tests.worker.app", "module:attribute"),
    ],
)
def test_a_worker_that_is_not_there_is_told_in_one_line(place: str, said: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "synap", "worker", place],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    assert run.returncode == 2
    assert said in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("option", ["--timeout=5", "--tls-ca=ca.pem", "--pretty"])
def test_what_a_worker_s_own_client_decides_is_refused_and_not_offered(option: str) -> None:
    for arguments in ([option, "worker"], ["worker", option]):
        run = subprocess.run(
            [sys.executable, "-m", "synap", *arguments, "tests.worker.app:worker"],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE,
        )
        assert (run.returncode, len(run.stderr.splitlines())) == (2, 1)
    offered = subprocess.run(
        [sys.executable, "-m", "synap", "worker", "--help"], capture_output=True, encoding="utf-8", timeout=PATIENCE
    )
    assert "--url" in offered.stdout
    assert option.partition("=")[0] not in offered.stdout


def test_a_module_that_is_missing_is_not_told_for_another_whose_name_begins_with_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "missing_jobs.py").write_text("import missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="'missing'"):
        load("missing_jobs:worker")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("import rich.nowhere", "ModuleNotFoundError: No module named 'rich.nowhere'"),
        ("def f(:", "SyntaxError: "),
        ("open('/nowhere/at/all')", "FileNotFoundError: "),
        ("from synap import SynapClient\nSynapClient('nonsense')", "url must begin with one of"),
    ],
)
def test_a_module_that_can_t_be_imported_is_told_with_its_own_lines(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(text)
    run = subprocess.run(
        [sys.executable, "-m", "synap", "worker", "wrong:worker"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    assert run.returncode == 5
    assert run.stderr.splitlines()[-1].startswith("synap: [FAILED] wrong:worker can't be imported: ")
    assert said in run.stderr.splitlines()[-1]
    assert "wrong.py" in run.stderr
    assert "importlib" not in run.stderr


def test_a_worker_says_what_it_takes_and_where_once_it_does(synap_url: str, name: str) -> None:
    with synap_worker(synap_url, name, "tests.worker.app:worker", "--queue", f"{name}:slow") as process:
        assert process.stderr is not None
        said = process.stderr.readline()
    assert f"takes messages of {name}:slow from <AsyncSynapClient {synap_url}>" in said


async def test_changed_code_starts_it_anew(synap_url: str, name: str, tmp_path: Path) -> None:
    def write(answer: int) -> None:
        (tmp_path / "changing.py").write_text(
            "from synap.worker import Worker\n"
            "worker = Worker()\n"
            f"@worker.handles({name!r}, result_ttl=60)\n"
            f"async def answer(value):\n    return {answer}\n"
        )

    async def asked() -> Any:
        message = await client.queue.publish(name, 1)
        key = result_key(name, message.message_id)
        await until(lambda: client.kv.exists(key))
        return await _value(client, key)

    write(1)
    environment = {**os.environ, "SYNAP_URL": synap_url, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "synap", "worker", "changing:worker", "--reload"]
    async with AsyncSynapClient(url=synap_url) as client:
        with process_of(command, tmp_path, environment):
            assert await asked() == 1
            write(22)

            async def is_new() -> bool:
                return bool(await asked() == 22)

            await until(is_new)


async def test_killed_workers_and_services_lose_and_repeat_no_effect(tmp_path: Path) -> None:
    account = await crash_rounds(300, os.fspath(tmp_path / "data"), lease=0.5, pause=0.3)
    account.check()
    assert account.worker_kills + account.service_kills >= 2
