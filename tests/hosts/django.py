"""Run Django's cache and session tests against `synap.contrib.django`.

Get Django's source, say `pip download --no-deps --no-binary :all: django==5.2.*`, unpack it, and run
`python -m tests.hosts.django django-5.2.19`. That very Django is tested, with the Python that runs this; `asgiref` and
`sqlparse` have to be installed. These are the classes that Django runs for its own Redis cache (`BaseCacheTests`) and
for each of its session engines (`SessionTestsMixin`).

Django itself skips the three tests of culling, as it does for Redis and memcached: the service doesn't cull, values
expire. Nothing else is left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from synap.testing.server import ThrowawayServer
from tests.hosts.runs import checkout

CACHE_TESTS = """
import os

from cache.tests import BaseCacheTests, caches_setting_for_tests

from django.test import TestCase, override_settings

PLACE = {"BACKEND": "synap.contrib.django.cache.SynapCache", "LOCATION": os.environ["SYNAP_URL"]}


@override_settings(CACHES=caches_setting_for_tests(base=PLACE, exclude={"cull", "zero_cull"}))
class SynapCacheTests(BaseCacheTests, TestCase):
    pass
"""

SESSION_TESTS = """
import os

from sessions_tests.tests import SessionTestsMixin

from django.contrib.sessions.backends import cache
from django.test import SimpleTestCase, override_settings
from synap.contrib.django.sessions import SessionStore

PLACE = {"BACKEND": "synap.contrib.django.cache.SynapCache", "LOCATION": os.environ["SYNAP_URL"]}


@override_settings(SESSION_SYNAP_URL=os.environ["SYNAP_URL"], SESSION_ENGINE="synap.contrib.django.sessions")
class SynapSessionTests(SessionTestsMixin, SimpleTestCase):
    backend = SessionStore


@override_settings(CACHES={"default": PLACE}, SESSION_ENGINE="django.contrib.sessions.backends.cache")
class CachedSessionTests(SessionTestsMixin, SimpleTestCase):
    backend = cache.SessionStore
"""


def main() -> int:
    """Lay Django's tests and ours side by side, and let Django's own runner run ours."""
    source = checkout(__doc__, "tests/runtests.py")
    with tempfile.TemporaryDirectory() as folder, ThrowawayServer() as server:
        tests = Path(folder, "tests")
        tests.mkdir()
        for entry in (source / "tests").iterdir():
            (tests / entry.name).symlink_to(entry)
        (tests / "runtests.py").unlink()  # Python would look for modules beside the file that a link leads to
        shutil.copy(source / "tests" / "runtests.py", tests)
        for app, text in (("cache", CACHE_TESTS), ("sessions_tests", SESSION_TESTS)):
            (tests / app).unlink()
            shutil.copytree(source / "tests" / app, tests / app)
            (tests / app / "test_synap.py").write_text(text, "utf-8")
        path = os.pathsep.join([str(source), str(Path(__file__).resolve().parents[2] / "src")])
        environment = {**os.environ, "SYNAP_URL": server.url, "PYTHONPATH": path, "PYTHONWARNINGS": "default"}
        command = [sys.executable, str(tests / "runtests.py"), "--parallel=1"]
        command += ["cache.test_synap", "sessions_tests.test_synap"]
        return subprocess.run(command, cwd=tests, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
