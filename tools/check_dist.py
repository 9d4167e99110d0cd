"""Look into what `python -m build` made, and run the demo from the wheel.

    python tools/check_dist.py dist [--no-demo]

`twine check --strict`; in the wheel and the sdist what has to be there and nothing that hasn't; README's pictures as
absolute URLs, which PyPI shows; the wheel installed into a fresh environment; `synap demo` from it, in an empty folder.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path
from typing import List

__all__ = ["main"]

IN_WHEEL = (
    r"synap/py\.typed",
    r"synap/__init__\.py",
    r"synap/client/_sync/client\.py",
    r"synap/contrib/django/cache\.py",
    r"synap/contrib/celery/transport\.py",
    r"synap/server/console/bundle/.*\.html",
    r"synap/server/console/bundle/.*\.js",
    r".*\.dist-info/licenses/LICENSE",
    r".*\.dist-info/entry_points\.txt",
)
"""What is in the wheel, as patterns. The functions of the cluster are asked for where their folder is in the source."""
NOT_IN_WHEEL = (r"tests/.*", r"bench/.*", r"tools/.*", r".*__pycache__.*", r".*node_modules.*", r"docs/.*")
NOT_IN_SDIST = (r"[^/]+/build/.*", r".*__pycache__.*", r".*node_modules.*", r".*\.egg-info/.*")


def wrong(names: List[str], wanted: tuple[str, ...], unwanted: tuple[str, ...]) -> List[str]:
    """Return what is missing, and what shouldn't be there."""
    missing = [f"missing: {pattern}" for pattern in wanted if not any(re.fullmatch(pattern, name) for name in names)]
    return missing + [f"unwanted: {name}" for name in names if any(re.fullmatch(p, name) for p in unwanted)]


def look_into(wheel: Path, sdist: Path) -> List[str]:
    """Return what is wrong with the two."""
    root = Path(__file__).resolve().parents[1]
    wanted: tuple[str, ...] = IN_WHEEL
    for function in sorted((root / "src" / "synap" / "cluster").rglob("*.lua")):
        wanted = (*wanted, re.escape(str(function.relative_to(root / "src"))))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        found = [f"{wheel.name}: {what}" for what in wrong(names, wanted, NOT_IN_WHEEL)]
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", str(message_from_string(metadata).get_payload()))
    found += [f"{wheel.name}: PyPI won't show {url}" for url in pictures if not url.startswith("https://")]
    with tarfile.open(sdist) as archive:
        found += [
            f"{sdist.name}: {what}" for what in wrong(archive.getnames(), (r"[^/]+/pyproject\.toml",), NOT_IN_SDIST)
        ]
    return found


def run_from(wheel: Path) -> int:
    """Install the wheel into a fresh environment and run the demo there; returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "venv")
        venv.create(place, with_pip=True)
        python = str(place / "bin" / "python")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", f"{wheel.resolve()}[server]"], cwd=folder, check=True
        )
        return subprocess.run([str(place / "bin" / "synap"), "demo"], cwd=folder, check=False).returncode


def main() -> int:
    """Check everything there is in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-demo", action="store_true", help="don't install the wheel and run the demo")
    options = parser.parse_args()
    [wheel], [sdist] = list(options.folder.glob("*.whl")), list(options.folder.glob("*.tar.gz"))
    checked = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], check=False)
    found = look_into(wheel, sdist)
    print("\n".join(found) or f"{wheel.name} and {sdist.name} hold what they should", file=sys.stderr)
    if found or checked.returncode:
        return 1
    return 0 if options.no_demo else run_from(wheel)


if __name__ == "__main__":
    sys.exit(main())
