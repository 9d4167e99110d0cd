"""`synap doctor`, `synap backup`, `synap export`, `synap import`."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, ContextManager, Dict, Iterator, List, Optional, Tuple, cast

import click
import msgspec

from synap.cli.command import Command
from synap.cli.connection import Connection, connects_to_argument
from synap.cli.documents import emit, need_output, standard_input
from synap.cli.download import is_url, open_backup
from synap.cli.exits import Failure, failure, usage
from synap.client.batches import error_of
from synap.config import without_secret
from synap.terminal import escaped

if TYPE_CHECKING:
    from synap import SynapClient

BATCH = 500
BATCH_BYTES = 2 << 20
"""The most bytes in one request of an import; a single larger message goes alone."""

Bar = Callable[[int, int], None]


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Have SIGTERM clean up, as Ctrl-C does: else half a copy of the data stays, where the next try needs the place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one doesn't wait
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def progress(what: str) -> Iterator[Bar]:
    """Show a progress bar on stderr if that is a terminal; yields a function of done and total."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with cleaning_up(), Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=None)

        def report(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total or None)

        yield report


@click.command(
    "doctor",
    cls=Command,
    short_help="Check a data directory, salvage a damaged one.",
    examples=[
        "synap doctor ./synap-data",
        "synap doctor ./synap-data --json | jq .problems",
        "synap doctor ./synap-data --repair ./saved && synap serve --data ./saved",
    ],
    negative="The directory is damaged; with --repair, records were lost.",
)
@click.argument("directory", metavar="DIR")
@click.option("--repair", "target", metavar="TARGET", help="Save what is sound to this new directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON document.")
def doctor(directory: str, target: Optional[str], as_json: bool) -> int:
    """Check a data directory, which may be in use, and print what is damaged; never change it."""
    from synap.storage import doctor as storage

    if is_url(directory):
        raise usage(f"the doctor reads a directory, not {without_secret(directory)}")
    with progress("reading") as bar:
        if target is None:
            report = storage.check(directory, progress=bar)
        else:
            report = storage.repair(directory, target, progress=bar)
    if as_json:
        problems = [problem._asdict() for problem in report.problems]
        emit({**report._asdict(), "problems": problems, "sound": report.sound, "saved_to": target})
    else:
        for line in storage.explain(report):
            click.echo(escaped(line))
        click.echo(verdict(directory, target, report.sound, report.records, bool(report.lost)))
    return 0 if report.sound or (target is not None and not report.lost) else 1


def verdict(directory: str, target: Optional[str], sound: bool, records: int, lost: bool) -> str:
    """Return the conclusion from the findings, and the next command."""
    if target is not None:
        what = "what could be read" if lost else "everything"
        return f"saved {what} ({records} records) to {target}; start on it with: synap serve --data {target}"
    if sound:
        return f"{directory} is sound ({records} records)"
    if not records:
        return f"{directory} is damaged, and nothing in it can be read; start on a backup: synap serve --data BACKUP"
    return f"{directory} is damaged; save what is sound with: synap doctor {directory} --repair NEW_DIRECTORY"


@click.command(
    "backup",
    cls=Command,
    short_help="Copy a server's or a directory's data.",
    examples=[
        "synap backup http://localhost:15500 backup-2026-01-31",
        "synap backup ./synap-data /mnt/backup/synap && synap serve --data /mnt/backup/synap",
    ],
)
@connects_to_argument
@click.argument("source", metavar="DIR_OR_URL")
@click.argument("target")
def backup(connection: Connection, source: str, target: str) -> None:
    """Copy the data of a server (admin key) or of a directory, in use or not, to the new directory TARGET.

    The copy is consistent, as of one moment, and is checked. To restore it, start a server on it.
    """
    from synap.storage import backup as storage

    if not is_url(source):
        connection.check(source, "--url")
    with progress("copying") as bar:
        if is_url(source):
            with open_backup(connection, source) as (chunks, total):
                found = storage.receive(chunks, target, progress=bar, total=total)
        else:
            found = storage.copy(source, target, progress=bar)
    emit({"source": source, "target": target, "last_commit": found.seq}, connection.pretty)


@click.command(
    "export",
    cls=Command,
    short_help="Write data as JSON lines.",
    examples=[
        "synap export http://localhost:15500 data.jsonl",
        "synap export ./synap-data | gzip > data.jsonl.gz",
        "synap export ./synap-data | jq -c 'select(.type == \"key\")'",
    ],
)
@connects_to_argument
@click.argument("source", metavar="DIR_OR_URL")
@click.argument("file", required=False, default="-")
def export(connection: Connection, source: str, file: str) -> None:
    """Write the data of a server (admin key), a directory or a cluster as JSON lines to FILE, or to stdout.

    Keys with their expiry, queues with their messages, rooms with their events. The last line marks a complete
    export.
    """
    from synap.storage import backup as copies
    from synap.storage import portable

    cluster = connection.engine(source)
    if cluster is not None or not is_url(source):
        connection.check(source, "--url", "--timeout")
    with ExitStack() as stack:
        bar = stack.enter_context(progress("exporting"))
        if cluster is not None:
            from synap.cluster.export import export_cluster

            lines = export_cluster(source, stack.enter_context(open_output(file)), cluster)
        else:
            directory = source
            if is_url(source):
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="synap-export-"))
                chunks, total = stack.enter_context(open_backup(connection, source))
                copies.receive(chunks, directory, progress=bar, total=total)
            lines = portable.export_directory(directory, stack.enter_context(open_output(file)), progress=bar)
    if file != "-":
        emit({"file": file, "lines": lines}, connection.pretty)


@contextmanager
def open_output(file: str) -> Iterator[BinaryIO]:
    """Open a file, or stdout, to write to. The file gets its name once it is complete."""
    if file == "-":
        need_output()
        out = sys.stdout.buffer
        yield cast(BinaryIO, EscapedOutput(out)) if sys.stdout.isatty() else out
        out.flush()
        return
    from synap.storage import private

    with private.replacing(file) as opened:
        yield opened


class EscapedOutput:
    """Writes lines of JSON to a terminal, with control characters escaped."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, line: bytes) -> int:
        return self._out.write(escaped(line.decode()).encode())


@click.command(
    "import",
    cls=Command,
    short_help="Read data from JSON lines.",
    examples=[
        "synap import data.jsonl ./new-data",
        "synap import data.jsonl http://localhost:15500",
        "synap import data.jsonl valkey://10.0.0.1:6379 --engine-user synap --engine-password-file secret",
        "gunzip -c data.jsonl.gz | synap import - ./new-data",
    ],
)
@connects_to_argument
@click.argument("file")
@click.argument("target", metavar="DIR_OR_URL")
def import_(connection: Connection, file: str, target: str) -> None:
    """Read an export from FILE (- is stdin) into a new directory, or add it to what a server holds.

    A new directory gets an exact copy, or nothing. A server assigns new ids, offsets and times, and keeps what was
    imported before an error.
    """
    from synap.storage import portable

    connection.check(target, "--url")
    source: ContextManager[BinaryIO] = (
        nullcontext(standard_input()) if file == "-" else open(file, "rb")  # noqa: SIM115
    )
    size = 0 if file == "-" else os.path.getsize(file)
    with source as opened, progress("importing") as bar:
        lines = with_progress(opened, bar, size)
        if not is_url(target):
            count = portable.import_directory(lines, target)
        else:
            connection.url = target
            with connection.open(binary=True) as client:
                commands = portable.as_commands(portable.parse(lines), time.time())
                count = sum(send(client, batch) for batch in batches(commands))
    emit({"target": without_secret(target), "imported": count}, connection.pretty)


def with_progress(lines: BinaryIO, bar: Bar, size: int) -> Iterator[bytes]:
    """Yield lines, updating the progress bar with the bytes read."""
    done = 0
    for number, line in enumerate(lines):
        done += len(line)
        if number % 256 == 0:
            bar(done, size)
        yield line


def batches(commands: Iterator[Tuple[str, Dict[str, Any]]]) -> Iterator[List[Dict[str, Any]]]:
    """Group commands into requests of up to `BATCH` commands and `BATCH_BYTES` bytes."""
    batch: List[Dict[str, Any]] = []
    size = 0
    for command, payload in commands:
        length = len(msgspec.msgpack.encode(payload))
        if batch and (len(batch) == BATCH or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append({"command": command, "payload": payload})
        size += length
    if batch:
        yield batch


def send(client: SynapClient, batch: List[Dict[str, Any]]) -> int:
    """Send commands in one request; returns how many. Raises `Failure` for the first that is refused."""
    for command, result in zip(batch, client.batch(batch)):
        if result.status != "success":
            problem = failure(error_of(result))
            what = next(iter(command["payload"].values()))
            message = f"{command['command']} {what!r}: {problem.message}"
            raise Failure(problem.exit_code, problem.code, message, problem.advice)
    return len(batch)
