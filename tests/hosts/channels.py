"""Run channels_redis's tests of its core layer against `synap.contrib.channels.SynapChannelLayer`.

Get them with `git clone https://github.com/django/channels_redis`, then
`python -m tests.hosts.channels channels_redis`. `channels`, `async_timeout` and `pytest-asyncio` have to be installed.
A module named `channels_redis.core` gives the tests our layer under the name they use.
"""

from __future__ import annotations

import sys

from tests.hosts.runs import checkout, exceptions, pytest_run

SHIM = """
import os

from channels.exceptions import ChannelFull

from synap.contrib.channels import SynapChannelLayer


class RedisChannelLayer(SynapChannelLayer):
    def __init__(self, hosts=None, **options):
        super().__init__(os.environ["SYNAP_URL"], **options)

    async def close_pools(self):
        pass  # the tests close connections of an event loop that ends; ours is in an event loop of its own
"""

LEFT_OUT = {
    "inner methods of the Redis layer": (
        "test_core.py::test_default_group_key_format",
        "test_core.py::test_custom_group_key_format",
        "test_core.py::test_receive_buffer_respects_capacity",
    ),
    "a channel that workers share can't be in a group: it is refused": ("test_core.py::test_groups_channel_full",),
}

if __name__ == "__main__":
    source = checkout(__doc__, "tests/test_core.py")
    files = {
        "test_core.py": (source / "tests" / "test_core.py").read_text("utf-8"),
        "channels_redis/__init__.py": "",
        "channels_redis/core.py": SHIM,
    }
    arguments = [*exceptions(LEFT_OUT), "-o", "asyncio_mode=auto"]
    sys.exit(pytest_run(arguments, files))
