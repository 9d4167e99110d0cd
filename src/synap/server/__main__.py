"""`python -m synap.server`: the service alone, every option as on `synap serve`."""

from __future__ import annotations

import argparse
import sys

from synap.errors import SynapError
from synap.server.run import UNUSABLE, serve
from synap.server.settings import OPTIONS, load
from synap.terminal import fill_streams


def main() -> int:
    """Read the command line and serve; returns the exit code."""
    fill_streams()
    parser = argparse.ArgumentParser("python -m synap.server")
    parser.add_argument("--config", metavar="FILE.toml")
    for option in OPTIONS:
        text = option.doc.replace("%", "%%")
        if option.kind == "flag":
            parser.add_argument(option.on_command_line, dest=option.name, action="store_true", default=None, help=text)
        else:
            action = "append" if option.kind == "keys" else "store"
            parser.add_argument(option.on_command_line, dest=option.name, action=action, help=text)
    arguments = vars(parser.parse_args())
    try:
        config = load(arguments, config=arguments.pop("config"))
    except SynapError as error:
        sys.stderr.write(f"synap serve: {error.message}\n")
        return UNUSABLE
    return serve(config)


if __name__ == "__main__":
    sys.exit(main())
