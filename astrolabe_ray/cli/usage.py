"""Mistakes on the command line as one line each, like all others: what, where, and what was meant."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from typer.core import TyperGroup
from typer.exceptions import TyperException

from astrolabe_ray.errors import ConfigError

PROGRAM = "python launch.py"


class OneLineErrors(TyperGroup):
    """All commands. What typer would put into a box is raised as a ConfigError; help stays as it is."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        typed = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except TyperException as error:
            line = usage_error(error, typed)
            if line is None:
                sys.exit(2)
            raise ConfigError(line) from None
        sys.exit(code if isinstance(code, int) else 0)


def usage_error(error: TyperException, typed: Sequence[str]) -> str | None:
    """The line for what typer found in `typed`; None where it printed the help instead.

    Its classes of mistakes are not public, so they are told apart by what they hold.
    """
    message, context = getattr(error, "message", ""), getattr(error, "ctx", None)
    option, parameter = getattr(error, "option_name", None), getattr(error, "param", None)
    where = _command(context, typed)
    help_hint = f"see `{' '.join(filter(None, (PROGRAM, where, '--help')))}`"
    if option is not None and context is not None:
        return _no_option(option, where, _options(context), help_hint)
    if option is not None:
        return f"{where}: {option} needs a value; {help_hint}"
    if parameter is not None and not message:
        return _missing(parameter, where, typed, _options(context), help_hint)
    if parameter is not None:
        return f"{where}: {_name(parameter)}: {_lowered(message)}; {help_hint}"
    named = re.search(r"'(.*?)'", message)
    if named is not None and context is not None and named[1] not in _commands(context):
        return _no_command(named[1], where, _commands(context))
    extra = re.search(r" \((.*)\)$", message)
    if extra is not None:
        return f"{where} has no place for '{extra[1]}'; a text with spaces needs quotes; {help_hint}"
    return f"{where}: {_lowered(message)}; {help_hint}" if message else None


def _no_option(option: str, where: str, known: Sequence[str], help_hint: str) -> str:
    return f"there is no option '{option}'{_of(where)}; {_meant(option, known) or help_hint}"


def _missing(parameter: Any, where: str, typed: Sequence[str], known: Sequence[str], help_hint: str) -> str:
    """Something that must be given is not, unless it is spelt wrong where any option may follow."""
    name = _name(parameter)
    for word in (word.partition("=")[0] for word in typed if word.startswith("--")):
        if word not in known and difflib.get_close_matches(name, [word], n=1):
            return _no_option(word, where, known, help_hint)
    value = f" {parameter.metavar}" if name.startswith("-") and parameter.metavar else ""
    return f"{where} needs {name}{value}; {help_hint}"


def _no_command(name: str, where: str, known: Sequence[str]) -> str:
    meant = _meant(name, known)
    hint = f"{meant} " if meant else ""
    return f"there is no command '{f'{where} {name}'.strip()}'; {hint}There are: {', '.join(known)}"


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else ""


def _of(where: str) -> str:
    return f" of {where}" if where else ""


def _command(context: Any, typed: Sequence[str]) -> str:
    """Example: `models check`; nothing for the program itself."""
    if context is None:
        return " ".join(takewhile(lambda word: not word.startswith("-"), typed))
    names = []
    while context.parent is not None:
        names.append(context.info_name)
        context = context.parent
    return " ".join(reversed(names))


def _options(context: Any) -> list[str]:
    return [name for p in context.command.params for name in (*p.opts, *p.secondary_opts) if name[0] == "-"]


def _commands(context: Any) -> list[str]:
    return list(getattr(context.command, "commands", ()))


def _name(parameter: Any) -> str:
    """`--config`, or an argument as the help writes it."""
    first = parameter.opts[0]
    return first if first.startswith("-") else (parameter.metavar or first.upper())


def _lowered(message: str) -> str:
    return (message[:1].lower() + message[1:]).rstrip(".")
