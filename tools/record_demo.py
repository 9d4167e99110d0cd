"""Record a real run of `synap demo` as an animated SVG, for the README.

    python tools/record_demo.py [docs/demo.svg]
    python tools/record_demo.py --cluster [docs/demo-cluster.svg]

Nothing is staged: the demo runs as `synap demo` does, and what its screen showed is kept. Of the many pictures a few
are chosen, evenly over the time the work took; the last one, with the figures, stays longest. Without animation
(a viewer that does not know it) the last one is what is seen.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import sys
import time
from pathlib import Path
from typing import Any, List, Optional, Tuple

from rich.console import Console, Group, RenderableType
from rich.text import Text

from synap.demo.check import Verdict
from synap.demo.display import Screen, picture, summary
from synap.demo.progress import Progress
from synap.demo.run import Settings, run

WIDTH = 100
FRAMES = 14
STAY = 6.0
"""Seconds the last picture stays."""


class Recorder(Screen):
    """A screen that keeps what it is shown, drawn at once: the state behind it goes on changing."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.frames: List[Tuple[float, str]] = []
        self.last: Optional[str] = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def show(self, progress: Progress) -> None:
        if progress.workers:
            self.frames.append((time.monotonic(), draw(picture(progress, WIDTH), f"f{len(self.frames)}", self.title)))

    def finish(self, progress: Progress, verdict: Verdict, redelivered: int) -> None:
        figures = summary(progress, verdict, redelivered)
        self.last = draw(Group(picture(progress, WIDTH), Text(), figures), "end", self.title)


def draw(thing: RenderableType, name: str, title: str) -> str:
    """Draw as SVG; `name` keeps the styles of pictures in one file apart."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(thing)
    svg = console.export_svg(title=title, unique_id=name)
    # Fonts from elsewhere are not loaded where this is shown, and need not be.
    return re.sub(r"@font-face\s*\{[^}]*\}\s*", "", svg)


def animate(frames: List[Tuple[float, str]], last: str, title: str) -> str:
    """Put the pictures into one SVG in which they follow each other as they did, over and over."""
    chosen = choose(frames)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', last)
    assert box is not None
    width, height = box.groups()
    began = chosen[0][0]
    times = [at - began for at, _ in chosen]
    work = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1.0)
    total = work + STAY
    styles, body = [], []
    for index, (start, (_, svg)) in enumerate(zip(times, chosen)):
        end = times[index + 1] if index + 1 < len(times) else work
        before, after = 100 * start / total, 100 * end / total
        hidden = f"0%,{before:.3f}%{{visibility:hidden}}" if start else ""
        shown = f"{before + 0.001:.3f}%{{visibility:visible}}{after:.3f}%,100%{{visibility:hidden}}"
        styles.append(
            f"@keyframes k{index}{{{hidden}{shown}}}"
            f".k{index}{{visibility:hidden;animation:k{index} {total:.2f}s step-end infinite}}"
        )
        body.append(f'<g class="k{index}">{svg}</g>')
    share = 100 * work / total
    styles.append(
        f"@keyframes kend{{0%{{visibility:hidden}}{share:.3f}%,100%{{visibility:visible}}}}"
        f".kend{{animation:kend {total:.2f}s step-end infinite}}"
    )
    body.append(f'<g class="kend">{last}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        f"<style>{''.join(styles)}</style>{''.join(body)}</svg>\n"
    )


def choose(frames: List[Tuple[float, str]]) -> List[Tuple[float, str]]:
    """Take at most `FRAMES` of the pictures, evenly over time."""
    first, end = frames[0][0], frames[-1][0]
    chosen: List[Tuple[float, str]] = []
    for index in range(FRAMES):
        moment = first + (end - first) * index / (FRAMES - 1)
        nearest = min(frames, key=lambda frame: abs(frame[0] - moment))
        if not chosen or nearest[0] > chosen[-1][0]:
            chosen.append(nearest)
    return chosen


def main() -> int:
    """Run the demo, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--cluster", action="store_true", help="of `synap demo --cluster`")
    parser.add_argument("target", nargs="?", type=Path)
    given = parser.parse_args()
    target: Path = given.target or Path("docs/demo-cluster.svg" if given.cluster else "docs/demo.svg")
    title = "synap demo --cluster" if given.cluster else "synap demo"
    recorder = Recorder(title)
    outcome = asyncio.run(run(Settings(cluster=given.cluster), recorder))
    assert recorder.last is not None
    target.write_text(animate(recorder.frames, recorder.last, title), encoding="utf-8")
    sys.stderr.write(f"{target}: {target.stat().st_size >> 10} KiB\n")
    return 0 if outcome.verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
