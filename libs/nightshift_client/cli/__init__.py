"""The ``nightshift`` command. One file a group of commands; grpc is loaded only when a call is made."""

from __future__ import annotations


def main() -> None:
    """Runs the command and exits."""
    try:
        from nightshift_client.cli.app import run

        status = run()
    except KeyboardInterrupt:
        # Before a command has begun, while its modules load.
        status = 130
    raise SystemExit(status)
