"""Ask a service for what its own description allows, and forbids: `python -m tests.adversary.schema --examples 100`.

schemathesis (extra `schema`) makes requests from `/openapi.json`, right and wrong ones, and checks each answer with all
its checks: status codes, content types, schemas, headers, methods, keys. Nothing may differ from the description.

An event stream has no end, so it is ended as an admin may, a moment after it began: all of it is checked, and nobody
waits for it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Optional

from synap import SynapClient
from synap.testing import ThrowawayServer

__all__ = ["main"]

USER, ADMIN = "user-key-0123456789", "admin-key-0123456789"
SETTINGS = f"""
hooks = "{__package__}.schema_hooks"

[checks]
# Rules that a schema can't tell: bytes of UTF-8, fields that exclude each other, offsets that a room has, full queues.
positive_data_acceptance.expected-statuses = ["2xx", "3xx", 400, 401, 403, 404, 409, 410, 413, 422, 426, 429, "5xx"]
# A full queue, and a limit of memory, are 507; a service that stops is 503.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 507]
"""


@contextmanager
def streams_ended(server: ThrowawayServer) -> Iterator[None]:
    """End every event stream a moment after it began."""
    over = threading.Event()

    def end() -> None:
        with SynapClient(url=server.url, api_key=ADMIN) as client:
            while not over.wait(0.1):
                for one in client.clients():
                    if one.lane == "events":
                        client.clients(disconnect=one.id)

    ending = threading.Thread(target=end)
    ending.start()
    try:
        yield
    finally:
        over.set()
        ending.join()


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="requests for each operation, at most")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    command = Path(sys.executable).with_name("st")
    if not command.exists():
        parser.error('schemathesis is missing here: pip install ".[dev,schema]"')
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "schemathesis.toml"
        settings.write_text(SETTINGS)
        given = ["--api-key", USER, "--admin-key", ADMIN, "--log-level", "warning"]
        with ThrowawayServer(data=Path(folder) / "data", arguments=given) as server:
            run = [str(command), "--config-file", str(settings)]
            run += ["run", f"{server.url}/openapi.json", "--checks", "all", "--header", f"X-API-Key: {ADMIN}"]
            run += ["--seed", str(options.seed), "--max-examples", str(options.examples), "--no-color"]
            run += ["--request-timeout", "20", "--continue-on-failure"]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
            with streams_ended(server):
                code = subprocess.run(run, cwd=folder, env=environment, check=False).returncode
            ended = server.stop()
        said = "".join(server.output)
    if code or ended or "Traceback" in said:
        sys.stdout.write(f"wrong: schemathesis {code}, the service {ended}\n{said[-4000:]}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
