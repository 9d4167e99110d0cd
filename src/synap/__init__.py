"""The job of Redis, RabbitMQ and Kafka behind one small API, async and sync, from a notebook to a server.

`AsyncSynapClient` and `SynapClient` are the two clients; the rest is what goes in and comes out. What isn't listed in
`synap.__all__` may change at any time.
"""

import importlib
from typing import TYPE_CHECKING, Any, List

from synap._version import __version__ as __version__

if TYPE_CHECKING:
    from synap._public import *
    from synap._public import __all__ as __all__
else:
    # The server and most of the command line use no client, and importing one takes longer than importing those.

    def __getattr__(name: str) -> Any:
        """Import the clients when the first of the public names is asked for: all of them are classes."""
        if name in ("config", "errors", "results"):
            return importlib.import_module(f"synap.{name}")
        if name != "__all__" and not name[0].isupper():  # most often a module that is about to be imported
            raise _missing(name)
        public = importlib.import_module("synap._public")
        names = sorted([*public.__all__, "__version__"])
        if name != "__all__" and name not in names:
            raise _missing(name)
        value = globals()[name] = names if name == "__all__" else getattr(public, name)
        return value

    def __dir__() -> List[str]:
        return __getattr__("__all__")

    def _missing(name: str) -> AttributeError:
        return AttributeError(f"module 'synap' has no attribute {name!r}")
