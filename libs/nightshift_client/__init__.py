"""The SDK for platforms and the ``nightshift`` command.

    from nightshift_client import Client

    plane = Client(project="workshop")
    plane.report_activity()
    plane.record_run({"run_id": "run_1767600000000_a1b2c3", "prompt": "…", "outcome": "succeeded"})
    plane.record_feedback("run_1767600000000_a1b2c3", "favorite")

Importing this package loads nothing heavy; making a client loads grpc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightshift_client.aio import AsyncClient
    from nightshift_client.client import Client
    from nightshift_client.delivery import Delivery, DeliveryState, Statistics
    from nightshift_client.errors import (
        ClientClosed,
        ClientError,
        DeliveryFailed,
        PlaneNotFound,
        RecordRefused,
    )
    from nightshift_client.tuned import TunedSettings

_HOMES = {
    "AsyncClient": "aio",
    "Client": "client",
    "ClientClosed": "errors",
    "ClientError": "errors",
    "Delivery": "delivery",
    "DeliveryFailed": "errors",
    "DeliveryState": "delivery",
    "PlaneNotFound": "errors",
    "RecordRefused": "errors",
    "Statistics": "delivery",
    "TunedSettings": "tuned",
}

__all__ = [
    "AsyncClient",
    "Client",
    "ClientClosed",
    "ClientError",
    "Delivery",
    "DeliveryFailed",
    "DeliveryState",
    "PlaneNotFound",
    "RecordRefused",
    "Statistics",
    "TunedSettings",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for (PEP 562)."""
    module = _HOMES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value
