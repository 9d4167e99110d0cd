"""A trie of topic patterns.

A pattern is words between dots; a word that is `*` stands for exactly one word, one that is `#` for any number, none
included. Matching walks the trie with the set of nodes that the words so far can reach (as an NFA). In the trie each
run of wildcards with a `#` is `*`s and then one `#`, which matches the same: otherwise a few thousand patterns of many
`#` would have hundreds of thousands of nodes that any topic reaches.

What a `#` has reached stays reached, so the trie ends behind a pattern's second `#`: with ten thousand patterns of
sixty, one topic took fifteen seconds. What is left is looked for in the topic's text, each part between two `#` as
early as possible, which leaves most to those after it.
"""

from __future__ import annotations

from typing import Dict, Generic, List, Optional, Sequence, Tuple, TypeVar

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


def _cut(pattern: str) -> Tuple[List[str], List[str]]:
    """Split a pattern in the words that are nodes of the trie, and those behind its second `#`."""
    words = _steps(pattern)
    if words.count("#") < 2:
        return words, []
    end = words.index("#", words.index("#") + 1) + 1
    return words[:end], words[end:]


class _Rest(Generic[T]):
    """What is left of patterns behind their second `#`, as it is found in a topic's text with a dot at both ends."""

    __slots__ = ("_ends", "_parts", "values")

    def __init__(self, words: Sequence[str]) -> None:
        self.values: Dict[str, T] = {}
        """By pattern."""
        self._ends = words[-1] != "#"
        """Whether the last part is the topic's end."""
        parts: List[List[Tuple[int, str]]] = [[]]
        """Of each part: how many `*`, and the words behind them."""
        stars, run = 0, "."
        for word in [*words, "#"] if self._ends else words:
            if word not in ("*", "#"):
                run += f"{word}."
                continue
            if run != "." or (word == "#" and stars):
                parts[-1].append((stars, run))
                stars, run = 0, "."
            stars += word == "*"
            if word == "#":
                parts.append([])
        self._parts = [(part[0][1], part[1:]) for part in parts if part]

    def fits(self, text: str, at: int) -> bool:
        """Return whether a topic has the parts in this order, from the dot at `at` on."""
        last = len(self._parts) - 1 if self._ends else -1
        for number, (head, more) in enumerate(self._parts):
            at = text.find(head, at)
            if more or number == last:
                while at >= 0:
                    end = _end(text, at + len(head) - 1, more)
                    if end >= 0 and (number != last or end == len(text) - 1):
                        break
                    at = text.find(head, at + 1)
                else:
                    return False
                at = end
            elif at < 0:
                return False
            else:
                at += len(head) - 1
        return True


def _end(text: str, at: int, more: Sequence[Tuple[int, str]]) -> int:
    """Return the dot behind words that follow the one at `at`, each after as many others as it says; -1: they don't."""
    for stars, run in more:
        for _ in range(stars):
            at = text.find(".", at + 1)
            if at < 0:
                return -1
        if not text.startswith(run, at):
            return -1
        at += len(run) - 1
    return at


class _Node(Generic[T]):
    __slots__ = ("any_number", "exact", "repeats", "rests", "seen", "single", "values")

    def __init__(self, repeats: bool = False) -> None:
        self.exact: Dict[str, _Node[T]] = {}
        self.single: Optional[_Node[T]] = None
        self.any_number: Optional[_Node[T]] = None
        self.values: Optional[Dict[str, T]] = None
        """By patterns that end here."""
        self.rests: Optional[Dict[str, _Rest[T]]] = None
        """What follows behind a second `#`."""
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
        return not (self.values or self.exact or self.single or self.any_number or self.rests)


class Trie(Generic[T]):
    """Patterns, and a value for each."""

    __slots__ = ("root", "step")

    def __init__(self) -> None:
        self.root: _Node[T] = _Node()
        self.step = 0

    def add(self, pattern: str, value: T) -> None:
        """Store `value` for a pattern."""
        node = self.root
        words, rest = _cut(pattern)
        for word in words:
            node = node.add(word)
        if rest:
            if node.rests is None:
                node.rests = {}
            text = ".".join(rest)
            if text not in node.rests:
                node.rests[text] = _Rest(rest)
            node.rests[text].values[pattern] = value
            return
        if node.values is None:
            node.values = {}
        node.values[pattern] = value

    def remove(self, pattern: str) -> None:
        """Remove a pattern, and the nodes that only it needed."""
        words, rest = _cut(pattern)
        path = [self.root]
        for word in words:
            child = path[-1].child(word)
            if child is None:
                return
            path.append(child)
        values = path[-1].values
        if rest:
            rests, text = path[-1].rests or {}, ".".join(rest)
            values = rests[text].values if text in rests else {}
            values.pop(pattern, None)
            if not values:
                rests.pop(text, None)
        elif values:
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
        text, at = f".{topic}.", 0
        if root.any_number is not None:
            _follow(root.any_number, step, first, reached, found, text, at)
        for word in topic.split("."):
            step += 1
            at += len(word) + 1
            onward: List[_Node[T]] = []
            for node in reached:
                if node.repeats and node.seen != step:
                    node.seen = step
                    onward.append(node)
                child = node.exact.get(word)
                if child is not None:
                    onward.append(child)
                    if child.any_number is not None:
                        _follow(child.any_number, step, first, onward, found, text, at)
                child = node.single
                if child is not None:
                    onward.append(child)
                    if child.any_number is not None:
                        _follow(child.any_number, step, first, onward, found, text, at)
            reached = onward
            if not reached:
                break
        self.step = step
        for node in reached:
            if node.values:
                found += node.values.values()
        return found


def _follow(node: _Node[T], step: int, first: int, reached: List[_Node[T]], found: List[T], text: str, at: int) -> None:
    """Reach a node by `#`, with no word at all; what is left of the topic begins at `at` of `text`.

    One that ends its pattern matches whatever words are left: its values are found, once since step `first`. So are
    those of what fits: what doesn't fit here doesn't further on.
    """
    if node.seen == step:
        return
    if node.exact:
        reached.append(node)
    elif node.seen < first:
        if node.values:
            found += node.values.values()
        for rest in node.rests.values() if node.rests else ():
            if rest.fits(text, at):
                found += rest.values.values()
    node.seen = step
