"""Rows are read on a thread of their own."""

from __future__ import annotations

import threading
from typing import List

import pytest

from synap.storage.prefetch import DEPTH, LARGE, PIECE, Row, Rows, prefetch

SEALED = (b"L", 1, 0, b"")
ROW = Row(PIECE // 3, "somewhere", SEALED)


def readers() -> List[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "synap-read"]


def each(rows: List[Row]) -> Rows:
    yield from rows


def test_all_rows_arrive_in_order() -> None:
    rows = [Row(1 + number * 999 % PIECE, str(number), SEALED) for number in range(1000)]
    assert list(prefetch(each(rows))) == rows
    assert list(prefetch(each([]))) == []
    assert not readers()


def test_an_error_of_the_reading_is_raised_after_the_rows_before_it() -> None:
    def broken() -> Rows:
        yield ROW
        raise ValueError("torn")

    rows = prefetch(broken())
    assert next(rows) == ROW
    with pytest.raises(ValueError, match="torn"):
        next(rows)
    assert not readers()


def test_whoever_stops_early_leaves_no_thread_and_no_statement() -> None:
    closed: List[threading.Thread] = []

    def endless() -> Rows:
        try:
            while True:
                yield ROW
        finally:
            closed.append(threading.current_thread())

    rows = prefetch(endless())
    assert next(rows) == ROW
    rows.close()
    assert not readers()
    assert [thread.name for thread in closed] == ["synap-read"]


@pytest.mark.parametrize(("row", "most"), [(ROW, 3 * (DEPTH + 3)), (Row(DEPTH * LARGE, "", SEALED), 2)])
def test_only_so_much_is_read_ahead(row: Row, most: int) -> None:
    read = 0

    def counted() -> Rows:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield row

    for place, _ in enumerate(prefetch(counted()), 1):
        assert read <= place + most
