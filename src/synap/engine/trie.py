"""A trie of topic patterns.

A pattern is words between dots; a word that is `*` stands for exactly one word, one that is `#` for any number, none
included. Matching walks the trie with the set of nodes that the words so far can reach (as an NFA), so its cost depends
on what matches, not on the number of patterns.
"""

from __future__ import annotations

from typing import Dict, Generic, List, Optional, TypeVar

T = TypeVar("T")


def is_wild(pattern: str) -> bool:
    """Return whether a pattern has a wildcard: a word that is `*` or `#`. Inside other words they are refused."""
    return "*" in pattern or "#" in pattern


class _Node(Generic[T]):
    __slots__ = ("any_number", "exact", "repeats", "seen", "single", "value")

    def __init__(self, repeats: bool = False) -> None:
        self.exact: Dict[str, _Node[T]] = {}
        self.single: Optional[_Node[T]] = None
        self.any_number: Optional[_Node[T]] = None
        self.value: Optional[T] = None
        self.repeats = repeats
        """Whether this node is reached by `#`, and so stays reached by any further word."""
        self.seen = 0
        """The last step of a walk that reached this node, where `repeats`; other nodes are reached one way only."""

    def child(self, word: str) -> Optional[_Node[T]]:
        if word == "*":
            return self.single
        return self.any_number if word == "#" else self.exact.get(word)

    def add(self, word: str) -> _Node[T]:
        child = self.child(word)
        if child is None:
            child = _Node(word == "#")
            if word == "*":
                self.single = child
            elif word == "#":
                self.any_number = child
            else:
                self.exact[word] = child
        return child

    def remove(self, word: str) -> None:
        if word == "*":
            self.single = None
        elif word == "#":
            self.any_number = None
        else:
            del self.exact[word]

    @property
    def empty(self) -> bool:
        return self.value is None and not (self.exact or self.single or self.any_number)


class Trie(Generic[T]):
    """Patterns, and a value for each."""

    __slots__ = ("root", "step")

    def __init__(self) -> None:
        self.root: _Node[T] = _Node()
        self.step = 0

    def add(self, pattern: str, value: T) -> None:
        """Store `value` for a pattern."""
        node = self.root
        for word in pattern.split("."):
            node = node.add(word)
        node.value = value

    def remove(self, pattern: str) -> None:
        """Remove a pattern, and the nodes that only it needed."""
        words = pattern.split(".")
        path = [self.root]
        for word in words:
            child = path[-1].child(word)
            if child is None:
                return
            path.append(child)
        path[-1].value = None
        while words and path[-1].empty:
            path.pop()
            path[-1].remove(words.pop())

    def match(self, topic: str) -> List[T]:
        """List the values of the patterns that match a topic."""
        root = self.root
        if root.empty:
            return []
        first = step = self.step + 1
        found: List[T] = []
        reached = [root]
        if root.any_number is not None:
            _follow(root, step, first, reached, found)
        for word in topic.split("."):
            step += 1
            onward: List[_Node[T]] = []
            for node in reached:
                if node.repeats and node.seen != step:
                    node.seen = step
                    onward.append(node)
                    if node.any_number is not None:
                        _follow(node, step, first, onward, found)
                child = node.exact.get(word)
                if child is not None:
                    onward.append(child)
                    if child.any_number is not None:
                        _follow(child, step, first, onward, found)
                child = node.single
                if child is not None:
                    onward.append(child)
                    if child.any_number is not None:
                        _follow(child, step, first, onward, found)
            reached = onward
            if not reached:
                break
        self.step = step
        found += [node.value for node in reached if node.value is not None]
        return found


def _follow(node: _Node[T], step: int, first: int, reached: List[_Node[T]], found: List[T]) -> None:
    """Add the nodes that a following `#` reaches with no word at all.

    One that ends its pattern matches whatever words are left: its value is found, once since step `first`.
    """
    following = node.any_number
    while following is not None and following.seen != step:
        seen, following.seen = following.seen, step
        if not (following.exact or following.single or following.any_number):
            if seen < first and following.value is not None:
                found.append(following.value)
            return
        reached.append(following)
        following = following.any_number
