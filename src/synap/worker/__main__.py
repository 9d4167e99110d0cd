"""One worker process, as `synap worker` starts it: `python -m synap.worker module:worker`."""

from __future__ import annotations

from synap.worker.process import main

if __name__ == "__main__":
    main()
