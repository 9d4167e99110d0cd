"""The demo's server: `synap serve` as it is, in a process that ends with the demo."""

from __future__ import annotations

import os
import signal
import sys

from synap.cli import main
from synap.demo.processes import lifeline

if __name__ == "__main__":
    sys.argv[0] = "synap"
    lifeline(lambda: os.kill(os.getpid(), signal.SIGTERM))
    main()
