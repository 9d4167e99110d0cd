"""A durable host: its data directory is opened, checked and restored; from then on all changes are written to it."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import sqlite3
import stat
import sys
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Tuple

from synap.engine.engine import Engine, Limits
from synap.engine.journal import Journal
from synap.engine.timeline import NOTICED
from synap.host import EngineHost
from synap.host.clock import Clock
from synap.host.registry import Home, Opened
from synap.storage import backup
from synap.storage.commit import DiskLog
from synap.storage.layout import DATABASE, FORMAT, MARK, WAL, damage, refusal, whoever
from synap.storage.lock import DirectoryLock
from synap.storage.mark import Mark
from synap.storage.recovery import Found, Progress, identify, recover
from synap.storage.reserve import Reserve, free_space
from synap.storage.snapshot import MINIMUM, Snapshots
from synap.storage.store import FULL, NO_SPACE, Store, Trouble, create, diagnose, missing_pieces
from synap.storage.writer import Call

log = logging.getLogger("synap.storage")

MODES = ("always", "everysec", "no")
EMBEDDED_RESERVE = 2 * 1024 * 1024
"""Bytes of the reserve of a `file://` directory."""
_OPEN: weakref.WeakSet[DiskLog] = weakref.WeakSet()


class Durable(NamedTuple):
    """A durable host, its log, and what was found in the directory."""

    host: EngineHost
    log: DiskLog
    found: Found
    lock: DirectoryLock
    places: Dict[str, Tuple[int, int]]
    """Device and inode of each file in use."""

    @property
    def misplaced(self) -> Optional[str]:
        """Why the files in use are no longer those of the directory: removed or replaced. None if they are."""
        for path, known in self.places.items():
            try:
                status = os.stat(path)
            except FileNotFoundError:
                return f"{os.path.basename(path)} was removed while it was in use"
            except OSError:
                continue  # writing to it fails with the reason
            if (status.st_dev, status.st_ino) != known:
                return f"{os.path.basename(path)} was replaced while it was in use"
        return None

    def close(self) -> None:
        """Write everything, run the last checkpoint and release the directory. Waits for the disk; the lock that
        `call` takes must not be held.
        """
        try:
            self.log.close()
        finally:
            _OPEN.discard(self.log)
            self.lock.release()


def random_ids() -> Callable[[], int]:
    """Return a source of ids that must not repeat across restarts."""
    return lambda: secrets.randbits(64)


def spacious_engine(secret: Optional[bytes] = None) -> Engine:
    """Make an engine for what a directory holds, or will: all of it, whatever a service that has it may keep."""
    return Engine(ids=random_ids(), limits=Limits(room_events=sys.maxsize), secret=secret)


def prepare(directory: str) -> DirectoryLock:
    """Lock a data directory, making it where there is none. Raises `Unusable`, `Locked`, `Damaged`."""
    try:
        mode = os.stat(directory).st_mode
    except FileNotFoundError:
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
        except OSError as error:
            text = f"{directory} can't be made: {error.strerror} ({error.filename})"
            raise refusal("INVALID_REQUEST", text, directory) from None
    except OSError as error:
        raise refusal("INVALID_REQUEST", f"{directory} can't be used: {error.strerror}", directory) from None
    else:
        if not stat.S_ISDIR(mode):
            raise refusal("INVALID_REQUEST", f"{directory} is a file; data needs a directory of its own", directory)
    lock = DirectoryLock(directory)
    try:
        _check_files(directory)
    except BaseException:
        lock.release()
        raise
    return lock


def _check_files(directory: str) -> None:
    path = os.path.join(directory, DATABASE)
    try:
        os.stat(path)
    except FileNotFoundError:
        piece = missing_pieces(directory)
        if piece is not None:
            raise damage(directory, DATABASE, "the file", f"it is missing, and {piece} is there") from None
        return
    except OSError as error:
        raise refusal("INVALID_REQUEST", f"{path} can't be used: {error.strerror}", directory) from None
    both = os.R_OK | os.W_OK
    for place in (directory, path, os.path.join(directory, MARK), os.path.join(directory, WAL), path + "-shm"):
        if os.path.exists(place) and not os.access(place, both | os.X_OK if place == directory else both):
            text = f"{place} can't be used: {whoever()} must be allowed to read and write it"
            raise refusal("INVALID_REQUEST", text, directory)


def open_host(
    directory: str,
    *,
    fsync: str = "always",
    call: Call,
    alarm: Callable[[Optional[float]], None] = lambda when: None,
    clock: Optional[Callable[[], float]] = None,
    limits: Optional[Limits] = None,
    progress: Optional[Progress] = None,
    snapshot_minimum: int = MINIMUM,
    reserve: int = 0,
    soon: Optional[Callable[[Callable[[], None]], object]] = None,
    guard: Optional[ContextManager[Any]] = None,
) -> Durable:
    """Open a data directory, new or old, and restore its content.

    `fsync`: 'always', 'everysec' or 'no' (see `synap.storage.commit`). `call(function, *arguments)` has a function
    run on the host's thread, from any thread, in order: `loop.call_soon_threadsafe`, or something that takes the
    host's lock, which is then the `guard`. `alarm` and `clock` are the host's (a `Clock` goes on with the time of the
    process before), `progress(done, total)` counts bytes while a directory is read.

    `reserve` is the size of the reserve for a full disk; it is released where a start may need it. A directory
    whose disk is full all the same is opened for reading, and for the rest once there is space.

    Leases and keys that expired meanwhile are processed before this returns.

    Raises `Locked` where another process has the directory, `Damaged` with the place where it isn't what was written,
    `Unusable` where it can't be used otherwise (permissions, a newer version, not a directory). Then nothing in it
    was changed.
    """
    if fsync not in MODES:
        raise refusal("INVALID_REQUEST", f"fsync must be one of {', '.join(MODES)}, got {fsync!r}", directory)
    directory = os.path.abspath(directory)
    with ExitStack() as unfinished:  # closes what was opened, where a later step fails
        lock = prepare(directory)
        unfinished.callback(lock.release)
        clock = Clock() if clock is None else clock
        kept = Reserve(directory, reserve)
        kept.release_all()
        try:
            if not os.path.exists(os.path.join(directory, DATABASE)):
                create(directory)
                log.info("%s was no data directory, and is an empty one now", directory)
            secret = identify(directory).secret
            engine = Engine(ids=random_ids(), limits=limits, journal=Journal(), secret=secret)
            found, (store, mark, trouble) = _restore(directory, engine, clock(), progress)
            unfinished.callback(_close, store, mark)
            _resume(clock, engine, directory)
            backup.clear(directory)
            places = _places(directory)
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            text = f"{directory} can't be used as a data directory: {why}"
            raise refusal("INVALID_REQUEST", text, directory) from error
        snapshots = Snapshots(store, found.current, minimum=snapshot_minimum)
        snapshots.found(found.log, found.leftovers)
        disk = DiskLog(
            store, mark, snapshots, seq=found.seq, fsync=fsync, call=call, reserve=kept, trouble=trouble, soon=soon
        )
        unfinished.callback(disk.close)
        host = EngineHost(engine, log=disk, clock=clock, alarm=alarm, soon=soon)
        with nullcontext() if guard is None else guard:
            disk.attach(host)
            host.wake()
        unfinished.pop_all()
    _OPEN.add(disk)
    return Durable(host, disk, found, lock, places)


def open_file(scheme: str, address: str, home: Home) -> Opened:
    """Open the directory that a `file://` URL names. Options: `fsync`, `progress`, `snapshot_minimum`, `reserve`."""
    options = home.options
    durable = open_host(
        address,
        fsync=options.get("fsync", "always"),
        call=home.call,
        alarm=home.alarm,
        limits=home.limits,
        clock=home.clock,
        progress=options.get("progress"),
        snapshot_minimum=options.get("snapshot_minimum", MINIMUM),
        reserve=options.get("reserve", EMBEDDED_RESERVE),
        soon=home.soon,
        guard=home.guard,
    )
    return Opened(durable.host, durable.close, durable, still=durable.log.still)


def _places(directory: str) -> Dict[str, Tuple[int, int]]:
    paths = (directory, *(os.path.join(directory, name) for name in (DATABASE, WAL, MARK)))
    return {path: (status.st_dev, status.st_ino) for path, status in ((path, os.stat(path)) for path in paths)}


def _resume(clock: Callable[[], float], engine: Engine, directory: str) -> None:
    """Continue the time of the process that had the directory before."""
    if isinstance(clock, Clock):
        timeline = engine.timeline
        back = clock.resume(timeline.ahead, timeline.latest)
        if back > NOTICED:
            log.warning(
                "the wall clock is %.0f s behind what %s holds: it was set back; leases, delays and ttls go on where "
                "they were, and the time in between counts for nothing",
                back,
                directory,
            )
        engine.deliveries.latest = clock()


def _restore(
    directory: str, engine: Engine, now: float, progress: Optional[Progress]
) -> Tuple[Found, Tuple[Store, Mark, Optional[Trouble]]]:
    """Restore an engine, and take the directory over once all of it is checked, while the engine sorts what it has."""
    taken: List[Future[Tuple[Store, Mark, Optional[Trouble]]]] = []
    with ThreadPoolExecutor(1, "synap-open") as pool:

        def take_over(found: Found) -> None:
            taken.append(pool.submit(_take_over, directory, found))

        try:
            found = recover(directory, engine, now, progress=progress, sound=take_over)
        except BaseException:
            for one in taken:
                if one.exception() is None:
                    _close(*one.result()[:2])
            raise
    return found, taken[0].result()


def _take_over(directory: str, found: Found) -> Tuple[Store, Mark, Optional[Trouble]]:
    """Open a directory for writing that was found sound; returns trouble where its disk is full."""
    with ExitStack() as unfinished:
        mark = Mark(directory, found.identity.id)
        unfinished.callback(mark.close)
        store = Store(directory)
        unfinished.callback(store.close)
        store.older = found.identity if found.identity.format < FORMAT else None
        trouble = None
        try:
            if store.growth() > free_space(directory):
                trouble = NO_SPACE
            else:
                # Writes the write-ahead log anew into the database: should an fsync have failed before the restart,
                # what the system took for written then is written now.
                store.checkpoint(whole=True)
                mark.settle(found.seq)
                store.update()
        except (OSError, sqlite3.Error) as error:
            trouble = diagnose(error)
            if trouble.reason != FULL:
                raise
        unfinished.pop_all()
    return store, mark, trouble


def _close(store: Store, mark: Mark) -> None:
    store.close()
    mark.close()


def _close_all() -> None:
    """Write what is in flight in a program that ends without closing."""
    for disk in list(_OPEN):
        disk.end()


atexit.register(_close_all)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_OPEN.clear)
