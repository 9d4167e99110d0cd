"""Starts and kills services quickly: a process that has everything imported and forks a service when told to.

Run with the service's arguments, `--port` left out. Reads lines: `start PORT` forks a service, `kill` ends it with SIGKILL
and says `killed`. When its input ends it kills the service and is gone.
"""

import os
import signal
import sys

import synap.server  # noqa: F401  (imported now, so that a fork needn't)
from synap.cli import main


def run(port: str) -> None:
    """Be the service. Doesn't return."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        main(["serve", "--port", port, *sys.argv[1:]])
    finally:
        sys.stdout.flush()
        os._exit(1)


def obey() -> None:
    """Do what the lines of the input say."""
    child = 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests; they close the input
    while True:
        order, _, argument = sys.stdin.readline().strip().partition(" ")
        if order == "start":
            child = os.fork()
            if child == 0:
                run(argument)
            continue
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            child = 0
        if order != "kill":
            return
        print("killed", flush=True)


if __name__ == "__main__":
    obey()
