"""What the client may raise where it was asked to (``raise_errors=True``).

ClientError
├── PlaneNotFound     no plane is known here, or its credentials cannot be read
├── DeliveryFailed    the plane did not take a record in time; the record waits in the spool, if that took it
├── RecordRefused     the plane, or the client itself, refuses the record; sending it again would not help
└── ClientClosed      the client was closed
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of everything that the client raises."""


class PlaneNotFound(ClientError):
    """No plane is known here, or its credentials cannot be read."""


class DeliveryFailed(ClientError):
    """The plane did not take a record in time."""


class RecordRefused(ClientError):
    """A record that the plane refuses; ``reason`` is stable, in upper snake case."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ClientClosed(ClientError):
    """The client was closed."""
