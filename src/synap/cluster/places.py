"""Where names live: the partition of a name, the slot of a partition, the keys behind a name.

A name belongs to the partition that the CRC16 of its tag falls in, and all keys of a partition are in one slot, so that
one function call can change a key, its index and the memory of answers. The tag is what stands between the first `{`
and the next `}`, as on Redis Cluster, else the whole name; a dead-letter queue belongs to its queue's partition.
"""

from __future__ import annotations

from binascii import crc_hqx  # with 0 to begin with, the CRC16 of Redis Cluster (XMODEM)
from functools import lru_cache
from itertools import count
from typing import Dict, List, Tuple

from synap.engine.queuestore import SUFFIX

SLOTS = 16384


def tag_of(name: str) -> bytes:
    """Return the part of a name that decides where it lives."""
    while name.endswith(SUFFIX):
        name = name[: -len(SUFFIX)]
    text = name.encode()
    start = text.find(b"{")
    if start >= 0:
        end = text.find(b"}", start + 1)
        if end > start + 1:
            return text[start + 1 : end]
    return text


@lru_cache(maxsize=2)  # takes 70 ms, which each client of a process would take anew
def _tags(partitions: int) -> Tuple[str, ...]:
    """Return the shortest tag of each partition that hashes to its first slot."""
    width = SLOTS // partitions
    tags: Dict[int, str] = {}
    for number in count():
        tag = f"{number:x}"
        slot = crc_hqx(tag.encode(), 0) % SLOTS
        if slot % width == 0 and slot not in tags:
            tags[slot] = tag
            if len(tags) == partitions:
                break
    return tuple(tags[slot] for slot in range(0, SLOTS, width))


class Places:
    """The partitions of one space of names.

    `partitions` is a power of two of at most 16,384. `bases[p]` begins all keys of partition p: the space, and a short
    tag that hashes to the first slot of the partition.
    """

    def __init__(self, partitions: int = 256, space: str = "syn") -> None:
        self.count = partitions
        self.width = SLOTS // partitions
        self.space = space
        self.bases: List[bytes] = [f"{space}:{{{tag}}}:".encode() for tag in _tags(partitions)]
        self._partitions: Dict[str, int] = {}
        self._queues: Dict[Tuple[Tuple[bytes, ...], str], List[bytes]] = {}

    def partition(self, name: str) -> int:
        """Return the partition that a key, a queue, a room or a topic belongs to."""
        found = self._partitions.get(name)
        if found is None:
            if len(self._partitions) >= 10_000:
                self._partitions.clear()
            found = self._partitions[name] = crc_hqx(tag_of(name), 0) % SLOTS // self.width
        return found

    def slot(self, partition: int) -> int:
        """Return the slot that all keys of a partition are in."""
        return partition * self.width

    # ------------------------------------------------------------------------------------------ keys

    def memory(self, partition: int, session: bytes) -> bytes:
        """Return the key that remembers what a session was answered in a partition."""
        return self.bases[partition] + b"m:" + session

    def key(self, partition: int, key: str) -> bytes:
        """Return the key that holds a value."""
        return self.bases[partition] + b"k:" + key.encode()

    def index(self, partition: int) -> Tuple[bytes, bytes]:
        """Return the keys `kx` (all keys in order) and `kt` (when they expire)."""
        base = self.bases[partition]
        return base + b"kx", base + b"kt"

    def queue(self, partition: int, kinds: Tuple[bytes, ...], name: str) -> List[bytes]:
        """Return keys of a queue, such as `qh` and `qb`; `Q` and `QD` are those of its partition. Not to be changed."""
        found = self._queues.get((kinds, name))
        if found is None:
            if len(self._queues) >= 10_000:
                self._queues.clear()
            base, text = self.bases[partition], name.encode()
            found = [base + kind if kind[:1] == b"Q" else base + kind + b":" + text for kind in kinds]
            self._queues[kinds, name] = found
        return found

    def whole_queue(self, partition: int, name: str) -> List[bytes]:
        """Return all keys of a queue and of its dead letters, as the rarer functions take them."""
        return [*self.queue(partition, (b"Q", b"QD", *_WHOLE), name), *self.queue(partition, _WHOLE, name + SUFFIX)]

    def room(self, partition: int, name: str) -> List[bytes]:
        """Return the keys `R`, `sh`, `se`, `ss` of a room."""
        base, text = self.bases[partition], name.encode()
        return [base + b"R", base + b"sh:" + text, base + b"se:" + text, base + b"ss:" + text]

    def gateway(self, partition: int, gateway: bytes) -> bytes:
        """Return the channel in which a partition tells a gateway something."""
        return self.bases[partition] + b"g:" + gateway


_WHOLE = (b"qh", b"qb", b"qr", b"ql", b"qd", b"qw")
