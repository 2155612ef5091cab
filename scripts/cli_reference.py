"""Write docs/cli.md: every command with its arguments and options, read from the command itself.

Usage: python scripts/cli_reference.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from nightshift_client.cli.app import build

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
SHARED = ("--json", "--timeout", "--home", "--help")
HEAD = """# The command line

Generated from the command by `python scripts/cli_reference.py`; do not edit. How to use it stands in the
README and in [operations.md](operations.md).

Every command takes three options more:

- `--json` prints the RPC's answer as protobuf JSON with proto field names, streams one message a line;
  nothing is asked then, so acting commands need `--yes`, `--propose` or `--dry-run` beside it. `status`,
  `up`, `down` and `credentials create` print an object of their own. Errors are JSON on stderr:
  `{"error": {"code", "reason", "message", "metadata", "advice"}}`.
- `--timeout SECONDS` bounds each call (30; streams have no limit).
- `--home FOLDER` is the plane's folder (`NIGHTSHIFT_HOME`, else `~/.local/state/nightshift`).

`NIGHTSHIFT_CLIENT_PERSON` names the credential below `credentials/person/` to call with; left out, it is the
one of your user id. With `NIGHTSHIFT_CLIENT_TOKEN_FILE` it is the local token in that file instead
(`nightshift tokens`), and no certificate is needed. A name may be given whole (`approvals/0190…`) or as its
last part.

Exit status: 0 done · 1 what was asked about failed · 2 usage · 3 refused · 4 unreachable, or no plane ·
130 interrupted.
"""


def commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a group with the words that lead to it, in the order of the help."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def section(path: tuple[str, ...], command: Any) -> str:
    """One command."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [
        each
        for each in command.params
        if each.param_type_name == "option" and not set(each.opts) & set(SHARED)
    ]
    usage = [
        *path,
        *(f"{each.name.upper()}" if each.required else f"[{each.name.upper()}]" for each in arguments),
    ]
    usage += [f"{each.opts[0]} …" for each in options if each.required]
    lines = [f"## `{' '.join(usage)}`", "", command.help]
    rows = [(f"`{each.name.upper()}`", each.help or "") for each in arguments]
    rows += [
        (", ".join(f"`{word}`" for word in sorted(each.opts, key=len, reverse=True)), _told(each))
        for each in options
    ]
    if rows:
        lines += [
            "",
            "| | |",
            "|---|---|",
            *(f"| {left} | {right.replace('|', '/')} |" for left, right in rows),
        ]
    return "\n".join(lines)


def _told(option: Any) -> str:
    words = option.help or ""
    if option.required:
        words = f"{words} Required."
    elif option.default not in (None, False, "", 0, 0.0) and not callable(option.default):
        words = f"{words} Default: {option.default}."
    return words.strip()


def page() -> str:
    """The page's text."""
    root = typer.main.get_command(build())
    return "\n".join([HEAD, *(f"{section(*found)}\n" for found in commands(root, ("nightshift",)))])


def main() -> int:
    """Writes the page, or with --check says whether it is as the command would have it."""
    parser = argparse.ArgumentParser(description="Write docs/cli.md.")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 where they differ")
    text = page()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write("docs/cli.md is not what the command says; run: python scripts/cli_reference.py\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
