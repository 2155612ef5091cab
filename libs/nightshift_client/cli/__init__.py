"""The ``nightshift`` command. One file a group of commands; grpc is loaded only when a call is made."""

from __future__ import annotations


def main() -> None:
    """Runs the command and exits."""
    from nightshift_client.cli.app import run

    raise SystemExit(run())
