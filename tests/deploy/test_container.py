"""What a container does to the service, without a container engine: process 1, signals, a read-only root, healthchecks.

Linux's namespaces are what containers are made of; `unshare` makes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Iterator, List, Mapping, Tuple

import pytest

from synap import SynapClient
from tests.helpers.patience import PATIENCE

if sys.version_info < (3, 10):
    pytest.skip("the service needs Python 3.10", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
NAMESPACES = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
SEALED = 'mount -t tmpfs tmpfs "$1"; mount --bind / / 2>/dev/null; mount -o remount,ro,bind / && shift && exec "$@"'
"""Mount a volume at the first argument, make everything else read-only, and run the rest."""


def namespaces_work() -> bool:
    try:
        return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not namespaces_work(), reason="this machine lets nobody make namespaces")


def serve(data: Path) -> List[str]:
    """Return the command line of a service on a port that is free."""
    return [sys.executable, "-m", "synap", "serve", "--host", "127.0.0.1", "--port", "0", "--data", str(data)]


Contained = Tuple[int, str, "subprocess.Popen[str]"]


@contextlib.contextmanager
def contained(
    command: List[str], environment: Mapping[str, str] = {}
) -> Iterator[Tuple[int, str, subprocess.Popen[str]]]:
    """Run a service as process 1 of a namespace; yields its id outside, its URL, and the process that made it."""
    process = subprocess.Popen(
        [*NAMESPACES, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )
    try:
        assert process.stdout is not None
        url = url_in(process.stdout)
        inner = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()[0])
        yield inner, url, process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def url_in(output: IO[str]) -> str:
    seen = ""
    for line in output:
        seen += line
        found = re.search(r"http://[\w.:]+:\d+", line)
        if found:
            return found.group()
    raise AssertionError(f"the service didn't come up:\n{seen}")


def healthcheck(url: str, environment: Mapping[str, str] = {}) -> int:
    """Run the Dockerfile's healthcheck against a URL; returns its exit code."""
    [line] = re.findall(r"^HEALTHCHECK .*?CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    name, *arguments = json.loads(line)
    assert name == "synap"
    command = [sys.executable, "-m", "synap", *(url if "://" in one else one for one in arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False).returncode


def test_process_1_drains_on_sigterm_and_has_what_it_answered(tmp_path: Path) -> None:
    with contained(serve(tmp_path)) as (inner, url, process):
        assert "NSpid" in (status := Path(f"/proc/{inner}/status").read_text("utf-8"))
        assert re.search(r"^NSpid:.*\s1$", status, re.MULTILINE), "it is process 1 where it lives"
        with SynapClient(url=url) as client:
            client.kv.set("kept", 1)
        os.kill(inner, signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    with contained(serve(tmp_path)) as (_, url, _), SynapClient(url=url) as client:
        assert client.kv.get("kept").value == 1


def test_a_read_only_root_is_enough(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    with contained(["sh", "-c", SEALED, "sh", str(volume), *serve(volume)]) as (inner, url, process):
        with SynapClient(url=url) as client:
            client.kv.set("key", "value")
            assert client.kv.get("key").value == "value"
        assert not list(volume.iterdir()), "what it wrote is on the volume, which only it sees"
        os.kill(inner, signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_the_healthcheck_tells_a_service_that_runs_from_one_that_does_not(tmp_path: Path) -> None:
    key = {"SYNAP_API_KEY": "secret"}
    with contained(serve(tmp_path), key) as (_, url, _):
        assert healthcheck(url, key) == 0
    assert healthcheck(url, key) != 0


@pytest.mark.parametrize("how", ["admin key", "file of keys"])
def test_the_healthcheck_needs_no_key_of_its_own(tmp_path: Path, how: str) -> None:
    (tmp_path / "keys").write_text("a-key-that-only-the-service-knows\n")
    (tmp_path / "keys").chmod(0o600)
    if how == "admin key":
        environment = {"SYNAP_ADMIN_KEY": "a-key-that-only-the-service-knows"}
    else:
        environment = {"SYNAP_API_KEY_FILE": str(tmp_path / "keys")}
    with contained(serve(tmp_path), environment) as (_, url, _):
        assert healthcheck(url, environment) == 0


def test_the_dockerfile_and_the_examples_agree_with_the_service() -> None:
    assert re.search(r"^USER 10001$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^VOLUME /data$", DOCKERFILE, re.MULTILINE)
    assert 'ENTRYPOINT ["synap"]' in DOCKERFILE
    assert 'CMD ["serve"]' in DOCKERFILE
    named = set(re.findall(r"SYNAP_\w+", DOCKERFILE))
    built = re.findall(r"-t (\S+)", (ROOT / "docs" / "containers.md").read_text("utf-8"))
    for example in ("deploy/compose.yaml", "deploy/kubernetes.yaml"):
        text = (ROOT / example).read_text("utf-8")
        named |= set(re.findall(r"SYNAP_\w+", text))
        assert set(re.findall(r"image: (\S+)", text)) <= set(built)
    settings = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert {name for name in named if name not in settings} == set()
