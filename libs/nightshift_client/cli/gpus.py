"""The GPUs: how full they are, who holds their memory, and whose models lie there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightshift_client.cli.session import Session, command
from nightshift_client.cli.words import ago, label, size, table, visible

if TYPE_CHECKING:
    from nightshift.trainer.v1 import resources_pb2

_OUTCOMES = {
    "UNLOAD_OUTCOME_ENOUGH_FREE": "enough is free; nothing unloaded",
    "UNLOAD_OUTCOME_NONE_IDLE": "none is idle; nothing unloaded",
}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="The GPUs, and the models on them.", no_args_is_help=True)
    command(group, "list")(list_gpus)
    command(group, "models")(models)
    app.add_typer(group, name="gpus")


def list_gpus(
    session: Session, watch: Annotated[bool, typer.Option("--watch", help="Follow the changes.")] = False
) -> None:
    """GPUs with their memory, utilisation and processes, as NVML of the plane's machine tells of them."""
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


def models(session: Session) -> None:
    """Loaded models in the order in which they would be unloaded, and what is in use where they are."""
    from nightshift.trainer.v1 import resources_pb2
    from nightshift.trainer.v1 import trainer_service_pb2 as messages

    host = session.call("trainer", "GetGpuHost", messages.GetGpuHostRequest())
    if session.json:
        session.print_json(host)
        return
    used = host.total_bytes - host.free_bytes
    share = f" ({100 * used / host.total_bytes:.0f} %)" if host.total_bytes else ""
    form = label(resources_pb2.GpuHostForm.Name(host.form), "GPU_HOST_FORM_")
    session.say(f"{size(used)} of {size(host.total_bytes)} in use{share}, {size(host.free_bytes)} free")
    told = "NVML" if form == "nvml" else f"the GPU service, {form} form"
    session.say(f"told by {told}; {size(host.reserve_bytes)} stay free beside preloaded models")
    if host.foreign_bytes:
        session.say(f"{size(host.foreign_bytes)} belong to processes of others")
    if host.eviction_in_progress:
        session.say("the GPU service is making room by itself right now")
    for problem in host.problems:
        session.say(f"! {visible(problem.source)}: {visible(problem.message)}")
    if host.models:
        rows = [_row(model) for model in host.models]
        session.show(table("model", "backend", ("holds", "right"), "used", "unloads", rows=rows))
    if host.preload_models:
        wanted = [
            (
                one.model.model,
                one.model.backend,
                size(one.vram_bytes) if one.vram_bytes else "?",
                _stands(one),
            )
            for one in host.preload_models
        ]
        session.show(table("to preload", "backend", ("takes", "right"), "", rows=wanted))


def told(result: Mapping[str, Any]) -> Sequence[str]:
    """Lines on one call of cleanup_vram or preload_models, as a run keeps it; none for calls of others."""
    lines: list[str] = []
    outcome = str(result.get("outcome", ""))
    if outcome == "UNLOAD_OUTCOME_UNLOADED":
        lines.append(f"unloaded {_name(result)}, {size(int(result.get('freed_bytes') or 0))} freed")
    elif outcome in _OUTCOMES:
        lines.append(_OUTCOMES[outcome])
    elif "free_bytes" in result and isinstance(result.get("model"), Mapping):
        # False is not written in protobuf JSON.
        verb = "was loaded already" if result.get("already_loaded") else "loaded"
        lines.append(f"{_name(result)} {verb}, holds {size(int(result.get('vram_bytes') or 0))}")
    lines += [
        f"  spared {_name(one)}: {visible(str(one.get('reason', '')))}" for one in result.get("spared", ())
    ]
    return lines


def _row(model: resources_pb2.LoadedModel) -> tuple[str, ...]:
    if model.in_use:
        used = f"now, by {model.in_use}"
    elif model.HasField("last_used_time"):
        used = ago(model.last_used_time)
    else:
        used = "idle" if model.use_known else "not told"
    return (
        model.model.model,
        model.model.backend,
        size(model.vram_bytes),
        used,
        "yes" if model.unloadable else "no",
    )


def _stands(model: resources_pb2.PreloadModel) -> str:
    if model.loaded:
        return "loaded"
    return "not loaded" if model.installed else "not installed"


def _name(result: Mapping[str, Any]) -> str:
    model = result.get("model") or {}
    return visible(f"{model.get('model', '?')} ({model.get('backend', '?')})")


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
