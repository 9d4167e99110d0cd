"""A trie of topic patterns.

A pattern is words between dots; a word that is `*` stands for exactly one word, one that is `#` for any number, none
included. Matching walks the trie depth first. To each node it takes the places in the topic that its words can reach,
as one number: bit n is set where they match the first n words. So a node is visited once at most, however many ways
lead to it.
"""

from __future__ import annotations

from typing import Dict, Generic, List, Optional, Tuple, TypeVar, Union

from synap.engine.callers import STEP, Steps, run

T = TypeVar("T")


def is_wild(pattern: str) -> bool:
    """Return whether a pattern has a wildcard: a word that is `*` or `#`. Inside other words they are refused."""
    return "*" in pattern or "#" in pattern


class _Node(Generic[T]):
    __slots__ = ("any_number", "exact", "single", "value")

    def __init__(self) -> None:
        self.exact: Dict[str, _Node[T]] = {}
        self.single: Optional[_Node[T]] = None
        self.any_number: Optional[_Node[T]] = None
        self.value: Optional[T] = None
        """Of the pattern that ends here."""

    def child(self, word: str) -> Optional[_Node[T]]:
        if word == "*":
            return self.single
        return self.any_number if word == "#" else self.exact.get(word)

    def add(self, word: str) -> _Node[T]:
        child = self.child(word)
        if child is None:
            child = _Node()
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

    __slots__ = ("root",)

    def __init__(self) -> None:
        self.root: _Node[T] = _Node()

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
        found = self.search(topic)
        return found if isinstance(found, list) else run(found)

    def search(self, topic: str) -> Union[List[T], Steps]:
        """List what `match` does, in steps where many nodes have to be visited.

        What is added or removed between steps may be missing, or among it.
        """
        found: List[T] = []
        if self.root.empty:
            return found
        todo, words = [(self.root, 1)], topic.split(".")
        behind: Dict[str, int] = {}
        return found if _visit(todo, words, behind, found) else _visit_all(todo, words, behind, found)


Todo = List[Tuple[_Node[T], int]]
"""Nodes, and the places at which they are reached."""


def _visit(todo: Todo[T], words: List[str], behind: Dict[str, int], found: List[T]) -> bool:
    """Visit nodes, as many as make a step; returns whether those were all.

    `behind` has the places behind each word of the topic. It is filled in once it is needed: few patterns need it.
    """
    end = 1 << len(words)
    left = STEP
    while todo:
        if left <= 0:
            return False
        left -= 1
        node, places = todo.pop()
        if places & end and node.value is not None:
            found.append(node.value)
        if node.any_number is not None:
            todo.append((node.any_number, 2 * end - (places & -places)))  # the first place, and all after it
        onward = (places & (end - 1)) << 1
        if onward and node.single is not None:
            todo.append((node.single, onward))
        if not (onward and node.exact):
            continue
        if not places & (places - 1):  # a single one
            child = node.exact.get(words[places.bit_length() - 1])
            if child is not None:
                todo.append((child, onward))
            continue
        if not behind:
            for place, word in enumerate(words, 1):
                behind[word] = behind.get(word, 0) | 1 << place
        near = node.exact if len(node.exact) < len(behind) else behind
        left -= len(near)
        for word in near:
            reached = onward & behind.get(word, 0)
            if reached and word in node.exact:
                todo.append((node.exact[word], reached))
    return True


def _visit_all(todo: Todo[T], words: List[str], behind: Dict[str, int], found: List[T]) -> Steps:
    """Go on visiting nodes to the last one."""
    yield
    while not _visit(todo, words, behind, found):
        yield
    return found
