"""The base classes of commands: examples in their help, and arguments that may be negative numbers."""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import click

from synap.cli.connection import refuse_all

if TYPE_CHECKING:
    Type = click.ParamType[Any]
else:
    Type = click.ParamType  # not generic before click 8.4

NUMBER = re.compile(r"-(\d|\.\d)")


class Seconds(Type):
    """A number of seconds; whole ones stay whole. Whether it is in range, the service says."""

    name = "seconds"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Any:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return int(seconds) if seconds.is_integer() else seconds


SECONDS = Seconds()


class Command(click.Command):
    """A command whose help ends with examples, and that takes `-5` for a value and not for an option.

    `negative`: what exit code 1 means here, for the help.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), negative: Optional[str] = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {**self.context_settings, "ignore_unknown_options": True}
        self.examples = list(examples)
        self.negative = negative

    def parse_args(self, ctx: click.Context, args: List[str]) -> List[str]:
        self._refuse_unknown_options(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        refuse_all(self, ctx)
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)
        if self.negative is not None:
            with formatter.section("Exit code 1"):
                formatter.write_text(self.negative)

    def _refuse_unknown_options(self, ctx: click.Context, args: Sequence[str]) -> None:
        # click would refuse a value such as `-5` as an unknown option. So it ignores unknown options, and those that
        # are no numbers are refused here.
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
        takes_value = {name for option in options if not option.is_flag for name in option.opts}
        previous = ""
        for arg in args:
            if arg == "--":
                return
            name = arg.partition("=")[0] if arg.startswith("--") else arg[:2]
            known = name in names or arg == "-" or NUMBER.match(arg) is not None
            if arg.startswith("-") and previous not in takes_value and not known:
                raise click.NoSuchOption(name, possibilities=difflib.get_close_matches(name, sorted(names), 3), ctx=ctx)
            previous = arg


class Group(click.Group):
    """A group of commands that suggests the nearest name for an unknown one."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = list(examples)

    def resolve_command(
        self, ctx: click.Context, args: List[str]
    ) -> Tuple[Optional[str], Optional[click.Command], List[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(ctx), 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"there is no command {name!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write the examples as they are to be typed, never wrapped."""
    if examples:
        formatter.write("\nExamples:\n")
        for example in examples:
            formatter.write(f"  {example}\n")
