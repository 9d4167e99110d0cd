"""Durability: what was answered is there after a crash.

layout       what lies in a data directory; errors that name what is wrong with one
lock         one process at a time
rows         sealed bodies: content that says where it belongs and that it is whole
store        the container, one SQLite database
mark         how far the log must reach
commit       the log: a writing thread that commits in groups
snapshot     what lets the log be cut
recovery     from a directory to an engine, everything checked
durable      all of it together: `open_host`
doctor       what can be saved of a damaged directory
backup       a copy of a directory in use
portable     content as JSON lines
"""

from synap.storage.durable import Durable, open_host
from synap.storage.layout import Damaged, Locked, Unusable

__all__ = ["Damaged", "Durable", "Locked", "Unusable", "open_host"]
