"""The proof: every file's digest, hashed directly, against what the workers stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Sequence, Tuple

from synap import AsyncSynapClient
from synap.demo import library, names

PAGE = 200


@dataclass
class Verdict:
    """What the check found: paths whose digest isn't there, and those whose digest isn't right."""

    checked: int = 0
    missing: List[str] = field(default_factory=list)
    wrong: List[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.missing and not self.wrong


async def check(client: AsyncSynapClient, files: Sequence[Tuple[str, int]]) -> Verdict:
    """Compare each of `files` with its stored digest."""
    verdict = Verdict()
    for start in range(0, len(files), PAGE):
        page = files[start : start + PAGE]
        stored = await client.kv.mget(*(names.key(path) for path, _ in page))
        for (path, size), result in zip(page, stored):
            verdict.checked += 1
            if not result.found or not isinstance(result.value, dict):
                verdict.missing.append(path)
            elif result.value.get("sha256") != library.digest(path) or result.value.get("size") != size:
                verdict.wrong.append(path)
    return verdict
