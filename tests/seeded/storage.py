"""Bugs planted in the storage."""

from __future__ import annotations

from tests.seeded.seed import Seed

SEEDS = (
    Seed(
        "everysec is put off at each commit",
        "storage/writer.py",
        'if self._next_sync is None and self.fsync == "everysec":',
        'if self.fsync == "everysec":',
        "tests/storage/test_everysec.py",
    ),
    Seed(
        "what waited for the disk isn't synced",
        "storage/writer.py",
        "[piece for entry in stuck for piece in entry.packed], safe=True)",
        "[piece for entry in stuck for piece in entry.packed], safe=False)\n"
        "                self._appender.synced = self.seq\n                self._appender._keep_mark()",
        "tests/storage/test_trouble.py",
    ),
    Seed(
        "a shortage of space isn't over where the disk fails meanwhile",
        "storage/writer.py",
        "        self.trouble = trouble\n        self.shortage.end()\n",
        "        self.trouble = trouble\n        self.shortage.active = False\n",
        "tests/storage/test_trouble.py",
    ),
    Seed(
        "the mark is written to one slot only",
        "storage/mark.py",
        "self._slot ^= 1",
        "self._slot = 0",
        "tests/storage/test_mark.py",
    ),
    Seed(
        "a commit that is missing in the log is passed over",
        "storage/recovery.py",
        "if seq != self.seq + 1:",
        "if seq < self.seq + 1:",
        "tests/storage/test_damage.py",
    ),
    Seed(
        "a snapshot of other slices than it was made of is taken",
        "storage/recovery.py",
        "if sums != self.current.digest:",
        "if False:",
        "tests/storage/test_damage.py",
    ),
    Seed(
        "the mark of another database is taken",
        "storage/recovery.py",
        "if mark.identity != self.identity.id:",
        "if False:",
        "tests/storage/test_damage.py tests/storage/test_mark.py",
    ),
    Seed(
        "a database that was emptied counts as new",
        "storage/layout.py",
        "if name == DATABASE and os.path.exists(path) and not os.path.getsize(path):",
        "if False:",
        "tests/storage/test_damage.py tests/storage/test_directory.py",
    ),
    Seed(
        "a log that ends before what was answered is taken",
        "storage/recovery.py",
        "if self.seq < reaches:",
        "if self.seq + 1 < reaches:",
        "tests/storage/test_damage.py tests/storage/test_mark.py",
    ),
    Seed(
        "what SQLite says of its structure isn't heard",
        "storage/recovery.py",
        "    if structure.found:\n        raise structure_error(directory, structure.found)\n",
        "",
        "tests/storage/test_damage.py",
    ),
    Seed(
        "frames of an earlier use of the write-ahead log count as sound",
        "storage/wal.py",
        "sound = (salt, other) == salts and (first, second) in sums",
        "sound = (first, second) in sums",
        "tests/storage/test_doctor.py tests/storage/test_damage.py",
    ),
    Seed(
        "the write-ahead log is made longer over what is in it",
        "storage/store.py",
        "missing = pages * FRAME - file.seek(0, os.SEEK_END)",
        "missing = pages * FRAME - file.seek(0)",
        "tests/storage/test_checkpointing.py",
    ),
    Seed(
        "a transaction is left open where the disk fails while the write-ahead log is made longer",
        "storage/store.py",
        'self.execute("ROLLBACK")',
        'self.execute("COMMIT")',
        "tests/storage/test_checkpointing.py",
    ),
    Seed(
        "a second session's commits are taken for those of the one that commits alone",
        "storage/inline.py",
        "if who is None or who is not self._last():",
        "if who is None:",
        "tests/storage/test_inline.py",
    ),
    Seed(
        "an export has keys that have expired",
        "storage/portable.py",
        "if due is None or due > now:",
        "if True:",
        "tests/storage/test_portable.py",
    ),
    Seed(
        "the log calls its host under the lock that is held when it is attached",
        "storage/commit.py",
        "not through `call`, which may take the lock that is held here\n                self.trouble = diagnose(error)",
        "as elsewhere\n                self._turn_to(diagnose(error), [])",
        "tests/storage/test_failing_start.py -k host_is_told",
    ),
    Seed(
        "a disk that fails is taken for a full one",
        "storage/shortage.py",
        "if diagnose(error).reason != FULL:",
        "if diagnose(error).lasting:",
        "tests/storage/test_failing_start.py -k not_said",
    ),
)
