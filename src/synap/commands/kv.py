"""Key-value: payloads, answers and commands."""

from __future__ import annotations

from typing import ClassVar, List, Optional, Sequence, Union

from msgspec import UNSET, Meta, Struct, UnsetType
from typing_extensions import Annotated, Protocol

from synap import results
from synap.commands.command import Command, Flag
from synap.commands.fields import Amount, Answer, Key, Keys, Limit, Payload, SuccessAnswer, Text, Ttl, Value


class KvSet(Payload):
    key: Key
    value: Value
    ttl: Optional[Ttl] = None
    nx: bool = False
    xx: bool = False
    if_value: Union[Value, UnsetType] = UNSET
    """Store only where the key holds exactly this value: equal bytes, in the format it is stored in."""
    keep_ttl: bool = False


class KvGet(Payload):
    key: Key


class KvDel(Payload):
    keys: Keys
    if_value: Union[Value, UnsetType] = UNSET
    """With one key: delete it only where it holds exactly this value."""


class KvExists(Payload):
    key: Key


class KvIncr(Payload):
    key: Key
    amount: Amount = 1


class KvDecr(Payload):
    key: Key
    amount: Amount = 1


class KvExpire(Payload):
    key: Key
    ttl: Ttl
    if_value: Union[Value, UnsetType] = UNSET
    """Only where the key holds exactly this value."""


class KvClear(Payload):
    prefix: Text
    """What the keys begin with; '' for all keys."""


class KvPersist(Payload):
    key: Key


class KvTtl(Payload):
    key: Key


class Only(Protocol):
    """The keys that a caller may see."""

    @property
    def begin(self) -> Sequence[str]:
        """What the names of all of them begin with: one of these."""

    def allows(self, name: str) -> bool:
        """Return whether it may see a key."""


class KvScan(Payload, dict=True, gc=True):
    prefix: Optional[Text] = None
    cursor: Optional[str] = None
    count: Limit = 100

    only: ClassVar[Optional[Only]] = None
    """Set on a request whose caller may not see all keys. No request has it as a field."""

    def ranges(self) -> List[str]:
        """Return the prefixes of which all keys are to be looked at, in order, none the beginning of another."""
        prefix = self.prefix or ""
        if self.only is None:
            return [prefix]
        found: List[str] = []
        for begin in sorted(self.only.begin):  # what begins with another comes behind that
            if begin.startswith(prefix) or prefix.startswith(begin):
                longer = max(begin, prefix, key=len)
                if not found or not longer.startswith(found[-1]):
                    found.append(longer)
        return found


class Pair(Payload):
    key: Key
    value: Value
    ttl: Optional[Ttl] = None


Pairs = Annotated[List[Pair], Meta(min_length=1, max_length=10_000, description="1 to 10,000 pairs")]


class KvMSet(Payload):
    pairs: Pairs


class KvMGet(Payload):
    keys: Keys


class SetAnswer(Answer, omit_defaults=True):
    success: bool
    key: str
    previous: Optional[bytes] = None

    def on_disk(self) -> Answer:
        """Leave `previous` out: the log has it already."""
        return self if self.previous is None else SetAnswer(self.success, self.key)


class GetAnswer(Answer):
    found: bool
    value: Optional[bytes] = None
    ttl: Optional[int] = None


class DeletedAnswer(Answer):
    deleted: int


class ExistsAnswer(Answer):
    exists: bool


class NumberAnswer(Answer):
    value: int


class TtlAnswer(Answer):
    ttl: Optional[int]


class ScanAnswer(Answer):
    keys: List[str]
    cursor: Optional[str]
    has_more: bool


class MGetAnswer(Answer):
    values: List[GetAnswer]


class MGetResult(Struct):
    values: List[results.GetResult]


KV_SET = Command(1, "kv.set", KvSet, SetAnswer, "Store a value under a key.", Flag.WRITE, result=results.SetResult)
KV_GET = Command(2, "kv.get", KvGet, GetAnswer, "Read the value of a key.", result=results.GetResult)
KV_DEL = Command(
    3, "kv.del", KvDel, DeletedAnswer, "Delete keys; answers how many there were.", Flag.WRITE | Flag.SPARING
)
KV_EXISTS = Command(4, "kv.exists", KvExists, ExistsAnswer, "Say whether a key exists.")
KV_INCR = Command(5, "kv.incr", KvIncr, NumberAnswer, "Add to the integer under a key, which starts at 0.", Flag.WRITE)
KV_DECR = Command(
    6, "kv.decr", KvDecr, NumberAnswer, "Subtract from the integer under a key, which starts at 0.", Flag.WRITE
)
KV_EXPIRE = Command(7, "kv.expire", KvExpire, SuccessAnswer, "Let a key expire after `ttl` seconds.", Flag.WRITE)
KV_PERSIST = Command(8, "kv.persist", KvPersist, SuccessAnswer, "Let a key no longer expire.", Flag.WRITE)
KV_TTL = Command(9, "kv.ttl", KvTtl, TtlAnswer, "Read the seconds a key has left, null where it does not expire.")
KV_SCAN = Command(
    10,
    "kv.scan",
    KvScan,
    ScanAnswer,
    "List keys page by page, each key that stays exactly once.",
    Flag.STEPWISE,
    result=results.ScanResult,
)
KV_MSET = Command(11, "kv.mset", KvMSet, SuccessAnswer, "Store several pairs, all of them or none.", Flag.WRITE)
KV_MGET = Command(12, "kv.mget", KvMGet, MGetAnswer, "Read several keys.", result=MGetResult)
KV_CLEAR = Command(
    13,
    "kv.clear",
    KvClear,
    DeletedAnswer,
    "Delete all keys with a prefix, in slices; answers how many there were.",
    Flag.WRITE | Flag.SPARING | Flag.WAITS,
    verb="manage",
)
