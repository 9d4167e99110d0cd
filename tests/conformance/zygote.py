"""Starts and kills services quickly: a process that has everything imported and forks a service when told to.

Run with the service's arguments. Reads lines: `start` forks a service, `kill` ends it with SIGKILL and says `killed`.
A service that ends by itself says `gone`. When the input ends, it kills the service and ends too.
"""

import importlib
import os
import signal
import sys
import traceback

from synap.cli import main

for module in ("synap.cli.serve", "synap.server.run", "synap.storage"):
    importlib.import_module(module)  # now, so that a fork needn't


def say(what: str) -> None:
    """Tell the tests."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


def run() -> None:
    """Be the service. Doesn't return."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.argv[:] = ["synap", "serve", *sys.argv[1:]]
    try:
        main()
    except BaseException:
        traceback.print_exc()
    say("gone")
    os._exit(1)


def obey() -> None:
    """Do what the lines of the input say."""
    child = 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests; they close the input
    while True:
        order = sys.stdin.readline().strip()
        if order == "start":
            child = os.fork()
            if child == 0:
                run()
            continue
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            child = 0
        if order != "kill":
            return
        say("killed")


if __name__ == "__main__":
    obey()
