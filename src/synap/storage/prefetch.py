"""Prefetch rows: read them on a thread of their own, ahead of the thread that decodes them.

SQLite works without the interpreter's lock, so reading goes on beside the decoding. The reading thread needs the lock
for a moment at each row, and would get it from a busy thread only every five milliseconds. But the decoding thread also
computes checksums, which needs no lock either: then the reading thread gets it.
"""

from __future__ import annotations

import threading
from queue import Queue
from typing import Any, Generator, List, NamedTuple, Optional, Tuple

PIECE = 256 * 1024
"""Bytes of rows that are passed on together: rows may be tiny, and passing them on wakes a thread."""
DEPTH = 4
"""Pieces that are read ahead at most."""
LARGE = 1024 * 1024
"""A piece of large rows counts once more for each so many bytes, so that few such rows are held at a time."""


class Row(NamedTuple):
    """A row: its bytes, where it stands, and the arguments that its content is unsealed with."""

    size: int
    place: str
    sealed: Tuple[bytes, int, int, Any]


Rows = Generator[Row, None, None]


def prefetch(rows: Rows) -> Rows:
    """Yield what `rows` yields, which runs on another thread; raises what it raises."""
    pieces: Queue[Optional[List[Row]]] = Queue(DEPTH)
    unwanted = threading.Event()
    errors: List[BaseException] = []
    thread = threading.Thread(target=_read, args=(rows, pieces, unwanted, errors), name="synap-read", daemon=True)
    thread.start()
    piece: Optional[List[Row]] = []
    try:
        while True:
            piece = pieces.get()
            if piece is None:
                break
            yield from piece
    finally:
        unwanted.set()
        while piece is not None:
            piece = pieces.get()
        thread.join()
    if errors:
        raise errors[0]


def _read(
    rows: Rows, pieces: Queue[Optional[List[Row]]], unwanted: threading.Event, errors: List[BaseException]
) -> None:
    piece: List[Row] = []
    size = 0
    try:
        for row in rows:
            piece.append(row)
            size += row.size
            if size >= PIECE:
                pieces.put(piece)
                for _ in range(min(size // LARGE, DEPTH)):
                    pieces.put([])
                piece, size = [], 0
                if unwanted.is_set():
                    break
    except BaseException as error:
        errors.append(error)
    finally:
        rows.close()  # with the statement that it reads from
        pieces.put(piece)
        pieces.put(None)
