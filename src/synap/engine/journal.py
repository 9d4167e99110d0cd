"""The journal: what changed, and how to undo it.

Every change to what is kept is written here twice, by the facility that makes it:

* as a *record*, an absolute outcome in plain data (this key now holds that until then). Replaying records in order
  onto any state that is at least as old as the first gives the state after the last; replaying one twice changes
  nothing. A snapshot is made of records too.
* as an *undo*, a callable that reverts exactly this change, given that all later ones have been reverted before.
  Atomic batches use it, and hosts whose disk refused the change.

Neither is kept by default: `keep_records` and `keep_undo` are off in a service without a disk, where
a facility's check of the two flags is all that a change costs.
"""

from __future__ import annotations

import logging
from typing import Any, Callable, Iterable, Iterator, List, Optional, Tuple

log = logging.getLogger("synap.engine")

Record = Tuple[Any, ...]
Undo = Tuple[Callable[..., Any], Tuple[Any, ...]]


class Journal:
    """The changes since the last `take`."""

    __slots__ = ("keep_records", "keep_undo", "records", "said", "undos")

    def __init__(self, *, keep_records: bool = False, keep_undo: bool = False) -> None:
        self.keep_records = keep_records
        self.keep_undo = keep_undo
        self.records: List[Record] = []
        self.undos: List[Undo] = []
        self.said: Optional[Tuple[str, float]] = None
        """The session and time of the last of `records` that holds them; None where that is not known. A record after
        it need not repeat them."""

    def take(self) -> Tuple[List[Record], List[Undo]]:
        """Return the records and undos collected so far, and start with none."""
        self.said = None
        taken = self.records, self.undos
        self.records, self.undos = [], []
        return taken

    def cut_back(self, undos: int, records: int) -> None:
        """Undo what was done since there were so many undos and records."""
        self.said = None
        made = self.undos[undos:]
        del self.undos[undos:], self.records[records:]
        self.roll_back(made)

    @staticmethod
    def roll_back(undos: List[Undo]) -> None:
        """Undo changes, the last one first; one that can't be undone, since it was interrupted, keeps no other."""
        while undos:
            undo, arguments = undos.pop()
            try:
                undo(*arguments)
            except Exception:
                log.exception("a change can't be undone")


def paged(groups: Iterable[Tuple[List[Record], int]], most: int, most_bytes: int) -> Iterator[List[Record]]:
    """Put groups of records, each with the bytes of its values, on pages of about `most` records or `most_bytes`.

    A group stays together: it describes one moment, and the state may change between two pages.
    """
    page: List[Record] = []
    size = 0
    for records, weight in groups:
        page += records
        size += weight
        if len(page) >= most or size >= most_bytes:
            yield page
            page, size = [], 0
    if page:
        yield page
