"""The GPUs, and who holds their memory."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nightshift_client.cli.session import Session, command
from nightshift_client.cli.words import size, table


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "gpus")(gpus)


def gpus(
    session: Session, watch: Annotated[bool, typer.Option("--watch", help="Follow the changes.")] = False
) -> None:
    """GPUs with their memory, utilisation and processes, as NVML tells of them."""
    from nightshift.monitor.v1 import monitor_service_pb2 as messages

    if not watch:
        answer = session.call("monitor", "ListGpus", messages.ListGpusRequest())
        if session.json:
            session.print_json(answer)
        else:
            _show(session, answer)
        return
    for message in session.stream("monitor", "WatchGpus", messages.WatchGpusRequest()):
        if session.json:
            session.print_json(message, compact=True)
        elif not message.keep_alive:
            _show(session, message)


def _show(session: Session, answer: Any) -> None:
    if not answer.gpus:
        session.say(f"No GPU: {answer.detail}")
        return
    rows = [
        (
            str(gpu.index),
            gpu.display_name + (" (MIG)" if gpu.mig else ""),
            "failed" if gpu.failed else f"{size(gpu.used_bytes)} of {size(gpu.total_bytes)}",
            "" if gpu.failed or "utilisation" in gpu.detail else f"{gpu.utilization_percent} %",
            gpu.detail,
        )
        for gpu in answer.gpus
    ]
    session.show(table("gpu", "name", ("memory", "right"), ("busy", "right"), "not told", rows=rows))
    for gpu in answer.gpus:
        for process in gpu.processes:
            held = size(process.used_bytes) if process.used_bytes else "memory not told"
            session.say(f"  gpu {gpu.index}  pid {process.pid}  {process.kind}  {held}")
