"""Build the site into build/site, strictly, and keep it from loading anything from elsewhere.

    python tools/build_site.py

Zensical fails where a link or an anchor leads nowhere. The search of pages that are opened from a folder needs a worker
in a frame, which its template loads from a CDN: here it is part of the pages. Fails where a page still names another
origin in a script, style, picture or frame.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["foreign", "main"]

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
SHIM = re.compile(r"https://unpkg\.com/iframe-worker/shim")
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(https?://[^\"' >]+)"
    r"|<link\b[^>]*\bhref=[\"']?(https?://[^\"' >]+)"
)


def foreign(html: str) -> list[str]:
    """Return what a page loads from elsewhere; a canonical link loads nothing."""
    tags = [match for match in LOADED.finditer(html) if 'rel="canonical"' not in match.group(0)]
    return [match.group(1) or match.group(2) for match in tags]


def main() -> int:
    """Build, put the worker in place, and look at every page."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0]).parse_args()
    shutil.rmtree(SITE, ignore_errors=True)
    zensical = Path(sys.executable).with_name("zensical")
    command = [str(zensical) if zensical.exists() else "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, check=False)
    if built.returncode:
        return built.returncode
    failed = 0
    for page in sorted(SITE.rglob("*.html")):
        here = "../" * (len(page.relative_to(SITE).parts) - 1)
        html = SHIM.sub(f"{here}assets/iframe-worker.js", page.read_text("utf-8"))
        page.write_text(html, "utf-8")
        for url in foreign(html):
            print(f"{page.relative_to(SITE)} loads {url}", file=sys.stderr)
            failed = 1
    print(f"{SITE.relative_to(ROOT)}: {len(list(SITE.rglob('*.html')))} pages")
    return failed


if __name__ == "__main__":
    sys.exit(main())
