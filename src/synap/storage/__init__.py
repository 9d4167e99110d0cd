"""Durability: what was answered is there after a crash.

layout       what lies in a data directory; errors that name what is wrong with one
lock         one process at a time
rows         the format of rows: checksums, and where each belongs
store        the container, one SQLite database
mark         the last commit that the log must reach
commit       the log as its host sees it
writer       its writing thread, which commits in groups
snapshot     descriptions of the whole state, so that the log can be truncated
recovery     restores an engine from a directory, and checks everything
durable      all of it together: `open_host`
doctor       what can be saved of a damaged directory
backup       a copy of a directory in use
portable     content as JSON lines
"""

from synap.storage.durable import Durable, open_host
from synap.storage.layout import Damaged, Locked, Unusable

__all__ = ["Damaged", "Durable", "Locked", "Unusable", "open_host"]
