"""Every `nightshift …` in README and docs is a command that exists, with options that it has."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from nightshift_client.cli.app import build
from nightshift_client.cli.failures import ADVICE

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/operations.md", "docs/platform-developers.md", "docs/architecture.md")


def _told(text: str) -> Iterator[str]:
    """Command lines in code blocks and in inline code."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for block in blocks:
        yield from re.findall(r"^(?:\.venv/bin/)?(nightshift [a-z].*)$", block, re.MULTILINE)
    yield from re.findall(r"`(nightshift [a-z][^`]*)`", text)


def _unknown(line: str) -> str:
    """What of a command line does not exist; "" where all does."""
    node: Any = typer.main.get_command(build())
    words = line.split("#")[0].split()[1:]
    while words and hasattr(node, "commands"):
        word = words.pop(0)
        if word not in node.commands:
            return f"no command {word!r}"
        node = node.commands[word]
    if hasattr(node, "commands"):
        return "" if line.count(" ") < 2 else "a group, not a command"
    known = {option for parameter in node.params for option in parameter.opts} | {"--help"}
    return ", ".join(word for word in words if word.startswith("-") and word.partition("=")[0] not in known)


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_documents_exist(page: str) -> None:
    lines = list(_told((ROOT / page).read_text(encoding="utf-8")))
    wrong = {line: problem for line in lines if (problem := _unknown(line))}
    assert not wrong
    assert lines or page == "docs/architecture.md"


def test_advice_names_commands_that_exist() -> None:
    for reason, advice in ADVICE.items():
        for line in re.findall(r"(nightshift [a-z][^;.,()|]*)", advice):
            assert not _unknown(line), (reason, line)


def test_the_command_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "cli_reference.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_command_would_be_found() -> None:
    assert _unknown("nightshift frobnicate") == "no command 'frobnicate'"
    assert _unknown("nightshift runs list --colour red") == "--colour"
    assert _unknown("nightshift runs list --limit 3 # some") == ""
