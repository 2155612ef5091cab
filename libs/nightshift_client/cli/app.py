"""All groups of commands, put together."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Annotated

import typer

from nightshift_client.cli import (
    approvals,
    audit,
    autonomy,
    configs,
    gpus,
    incidents,
    lab,
    now,
    plane,
    profiles,
    runs,
    sessions,
    skills,
    tokens,
    train,
    tuning,
)
from nightshift_client.cli.session import EXIT_USAGE


def build() -> typer.Typer:
    """The whole command."""
    app = typer.Typer(
        name="nightshift",
        help="The self-improvement plane: what happened, what it would change, and your word on it.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
        ] = False,
    ) -> None:
        """The self-improvement plane: what happened, what it would change, and your word on it."""

    groups = (
        plane,
        runs,
        sessions,
        profiles,
        tuning,
        skills,
        approvals,
        autonomy,
        lab,
        configs,
        train,
        gpus,
        now,
        incidents,
        tokens,
        audit,
    )
    for group in groups:
        group.register(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nightshift {importlib.metadata.version('nightshift-plane')}")
        raise typer.Exit


def run() -> int:
    """Runs the command line of this process; returns its exit status."""
    # grpc would tell of every failed connection on stderr; the command says it in its own words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        status = build()(standalone_mode=True)
    except SystemExit as end:
        if isinstance(end.code, int) or end.code is None:
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return EXIT_USAGE
    except BrokenPipeError:
        # Whoever read us (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(status or 0)
