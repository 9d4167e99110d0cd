"""The unit for systemd: what it gives the service to read is read again when it changes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Callable

from synap.server import keyfile
from synap.testing.server import ThrowawayServer
from tests.helpers.keys import File
from tests.helpers.raw import Http, wait_for

UNIT = (Path(__file__).resolve().parents[2] / "deploy" / "synap.service").read_text("utf-8")


def test_a_revoked_key_is_refused_without_a_restart(serve: Callable[..., ThrowawayServer], tmp_path: Path) -> None:
    for folder in ("etc/synap", "var/lib", "credentials"):
        (tmp_path / folder).mkdir(parents=True)
    file = File(tmp_path / "etc" / "synap" / "keys.toml", {"leaked": ["*:*:*"], "ops": ["*:*:*"]})
    file.path.chmod(0o640)
    credentials = tmp_path / "credentials"  # systemd's copies, which stay as they are while the service runs
    for name, path in re.findall(r"^LoadCredential=(.+?):/(.+)$", UNIT, re.MULTILINE):
        shutil.copy(tmp_path / path, credentials / name)
    [line] = re.findall(r"^ExecStart=.* serve (.*)$", UNIT, re.MULTILINE)
    arguments = [str(tmp_path) + one if one.startswith("/") else one for one in shlex.split(line)]
    service = serve(*arguments, data=tmp_path / "data", environment={"CREDENTIALS_DIRECTORY": str(credentials)})
    http = Http(service, X_API_Key=file.keys["leaked"])
    assert http.do("queue.list").status == 200
    keyfile.remove(file.path, "leaked")
    wait_for(lambda: http.do("queue.list").status == 401)
    http.close()
    assert (file.path.stat().st_mode & 0o777) == 0o640, "its group can still read it"
