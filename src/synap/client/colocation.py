"""Co-located names: on a cluster they share a partition, so one atomic step can change them together."""

from __future__ import annotations

DEAD_LETTERS = ".dlq"


def colocated(name: str, ending: str) -> str:
    """Return a name with an ending that lies in the partition of `name` on a cluster.

    The partition depends on the text between the first `{` and the next `}`, or else on the whole name; a queue's dead
    letters lie in that of the queue. For some names with braces there is no such name: a cluster refuses to change both
    in one step then, all else works.
    """
    plain = name
    while plain.endswith(DEAD_LETTERS):
        plain = plain[: -len(DEAD_LETTERS)]
    tag, closed, _ = plain.partition("{")[2].partition("}")
    if tag and closed:
        return name + ending
    return f"{{{plain}}}{name[len(plain) :]}{ending}"
