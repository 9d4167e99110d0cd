"""Help for the tests of programs that use Synap.

`memory://` is the fastest double there is: the engine itself, in the test's process. Where a test wants the network
too, `ThrowawayServer` starts a real service on a free port and takes it down again; `TestClock` is time that a test
moves by hand. The pytest fixtures (`synap_server`, `synap_url`, `synap_client`, `sync_synap_client`) come with the
package.
"""

from synap.testing.clock import TestClock
from synap.testing.server import ThrowawayServer

__all__ = ["TestClock", "ThrowawayServer"]
