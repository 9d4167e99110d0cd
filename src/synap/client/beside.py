"""Co-located names: on a cluster they share a partition, so one atomic step can change them together."""

from __future__ import annotations

__all__ = ["beside"]

DEAD_LETTERS = ".dlq"


def beside(name: str, ending: str) -> str:
    """Return a name with an ending that lies in the partition of `name` on a cluster.

    That is decided by what stands between the first `{` and the next `}`, else by the whole name; a queue's dead
    letters lie beside it. For a name with braces that mean neither there is no such name: on a cluster its use in one
    step is refused, elsewhere it works.
    """
    plain = name
    while plain.endswith(DEAD_LETTERS):
        plain = plain[: -len(DEAD_LETTERS)]
    tag, closed, _ = plain.partition("{")[2].partition("}")
    if tag and closed:
        return name + ending
    return f"{{{plain}}}{name[len(plain) :]}{ending}"
