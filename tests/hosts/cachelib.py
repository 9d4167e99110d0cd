"""Run cachelib's tests for caches against `synap.contrib.cachelib.SynapCache`.

Get them with `git clone https://github.com/pallets-eco/cachelib` and what they need with `pip install pytest-xprocess
psutil`, then `python -m tests.hosts.cachelib cachelib`.
These are the classes of tests that cachelib runs for its Redis cache, with and without a prefix and with a serializer
of one's own. Nothing is left out.
"""

from __future__ import annotations

import sys

from tests.hosts.runs import checkout, pytest_run

TESTS = """
import os

import pytest
from clear import ClearTests
from common import CommonTests
from delete_many_with_prefix import DeleteManyWithPrefixTests
from has import HasTests
from serializer import SerializerTests

from cachelib.serializers import BaseRedisSerializer
from synap.contrib.cachelib import SynapCache


class ReprSerializer(BaseRedisSerializer):
    def dumps(self, value):
        return repr(value).encode()

    def loads(self, bvalue):
        return None if bvalue is None else eval(bvalue.decode())


class CustomCache(SynapCache):
    serializer = ReprSerializer()


@pytest.fixture(autouse=True, params=[SynapCache, CustomCache])
def cache_factory(request, key_prefix):
    def factory(self, *args, **kwargs):
        kwargs.setdefault("key_prefix", key_prefix)
        cache = request.param(os.environ["SYNAP_URL"], *args, **kwargs)
        cache.clear()
        return cache

    request.cls.cache_factory = factory


class TestSynapCache(CommonTests, ClearTests, HasTests, DeleteManyWithPrefixTests, SerializerTests):
    pass
"""

if __name__ == "__main__":
    source = checkout(__doc__, "tests/common.py")
    conftest = (source / "tests" / "conftest.py").read_text("utf-8")
    files = {"conftest.py": conftest, "test_synap_cache.py": TESTS}
    sys.exit(pytest_run([], files, path=[source / "tests"]))
