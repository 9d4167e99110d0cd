"""A trie of topic patterns.

A pattern is words between dots; a word that is `*` stands for exactly one word, one that is `#` for any number, none
included. Matching walks the trie with the set of nodes that the words so far can reach (as an NFA). In the trie each
run of wildcards with a `#` is `*`s and then one `#`, which matches the same: otherwise a few thousand patterns of many
`#` would have hundreds of thousands of nodes that any topic reaches.
"""

from __future__ import annotations

from typing import Dict, Generic, List, Optional, TypeVar

T = TypeVar("T")


def is_wild(pattern: str) -> bool:
    """Return whether a pattern has a wildcard: a word that is `*` or `#`. Inside other words they are refused."""
    return "*" in pattern or "#" in pattern


def _steps(pattern: str) -> List[str]:
    """Split a pattern in words, each run of wildcards in its shortest form."""
    words: List[str] = []
    any_number = False
    for word in pattern.split("."):
        if word == "#":
            any_number = True
        else:
            if any_number and word != "*":
                words.append("#")
                any_number = False
            words.append(word)
    if any_number:
        words.append("#")
    return words


class _Node(Generic[T]):
    __slots__ = ("any_number", "exact", "repeats", "seen", "single", "values")

    def __init__(self, repeats: bool = False) -> None:
        self.exact: Dict[str, _Node[T]] = {}
        self.single: Optional[_Node[T]] = None
        self.any_number: Optional[_Node[T]] = None
        self.values: Optional[Dict[str, T]] = None
        """By patterns that end here."""
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
        return not (self.values or self.exact or self.single or self.any_number)


class Trie(Generic[T]):
    """Patterns, and a value for each."""

    __slots__ = ("root", "step")

    def __init__(self) -> None:
        self.root: _Node[T] = _Node()
        self.step = 0

    def add(self, pattern: str, value: T) -> None:
        """Store `value` for a pattern."""
        node = self.root
        for word in _steps(pattern):
            node = node.add(word)
        if node.values is None:
            node.values = {}
        node.values[pattern] = value

    def remove(self, pattern: str) -> None:
        """Remove a pattern, and the nodes that only it needed."""
        words = _steps(pattern)
        path = [self.root]
        for word in words:
            child = path[-1].child(word)
            if child is None:
                return
            path.append(child)
        values = path[-1].values
        if values:
            values.pop(pattern, None)
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
            _follow(root.any_number, step, first, reached, found)
        for word in topic.split("."):
            step += 1
            onward: List[_Node[T]] = []
            for node in reached:
                if node.repeats and node.seen != step:
                    node.seen = step
                    onward.append(node)
                child = node.exact.get(word)
                if child is not None:
                    onward.append(child)
                    if child.any_number is not None:
                        _follow(child.any_number, step, first, onward, found)
                child = node.single
                if child is not None:
                    onward.append(child)
                    if child.any_number is not None:
                        _follow(child.any_number, step, first, onward, found)
            reached = onward
            if not reached:
                break
        self.step = step
        for node in reached:
            if node.values:
                found += node.values.values()
        return found


def _follow(node: _Node[T], step: int, first: int, reached: List[_Node[T]], found: List[T]) -> None:
    """Reach a node by `#`, with no word at all.

    One that ends its pattern matches whatever words are left: its values are found, once since step `first`.
    """
    if node.seen == step:
        return
    if node.exact:
        reached.append(node)
    elif node.seen < first and node.values:
        found += node.values.values()
    node.seen = step
