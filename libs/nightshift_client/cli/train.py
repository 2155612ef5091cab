"""Training: estimates, jobs, adapters."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from nightshift_client.cli.acting import (
    CommentOption,
    DryRunOption,
    NoWaitOption,
    ProposeOption,
    YesOption,
    act,
    conclude,
)
from nightshift_client.cli.session import EXIT_FAILED, CommandFailed, Session, command, named
from nightshift_client.cli.words import instant, label, seconds_of, size, span, visible

if TYPE_CHECKING:
    from nightshift.skills.v1 import resources_pb2 as skills_types
    from nightshift.trainer.v1 import resources_pb2

BaseModelOption = Annotated[Path, typer.Option("--base-model", help="Folder in Hugging Face format.")]
DatasetOption = Annotated[Path, typer.Option("--dataset", help="JSON Lines of chat rows.")]
PresetOption = Annotated[str, typer.Option("--preset", help="workshop or tiny.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
StepsOption = Annotated[
    int, typer.Option("--max-steps", min=0, help="Optimiser steps; 0: as the epochs need.")
]
EpochsOption = Annotated[float, typer.Option("--epochs", min=0)]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0)]
JobArgument = Annotated[str, typer.Argument(help="Training job; left out: the newest.")]

LINE_INTERVAL_S = 1.0
# A training that was confirmed begins once the machine is quiet; nobody watches longer than this.
START_WAIT_S = 600.0
OPEN_STATES = frozenset({"STARTING", "RUNNING", "PAUSED"})


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Training adapters at night.", no_args_is_help=True)
    command(group, "start")(start)
    command(group, "estimate")(estimate)
    command(group, "list")(list_jobs)
    command(group, "watch")(watch)
    command(group, "pause")(pause)
    command(group, "resume")(resume)
    command(group, "cancel")(cancel)
    app.add_typer(group, name="train")
    adapters = typer.Typer(help="Trained adapters.", no_args_is_help=True)
    command(adapters, "list")(list_adapters)
    command(adapters, "show")(show_adapter)
    app.add_typer(adapters, name="adapters")


def start(
    session: Session,
    base_model: BaseModelOption,
    dataset: DatasetOption,
    preset: PresetOption = "",
    adapter_id: Annotated[str, typer.Option("--adapter-id", help="Name of the adapter.")] = "",
    device: DeviceOption = "",
    max_steps: StepsOption = 0,
    epochs: EpochsOption = 0.0,
    learning_rate: Annotated[float, typer.Option("--learning-rate", min=0)] = 0.0,
    seed: SeedOption = None,
    quantization: Annotated[str, typer.Option("--quantization", help="nf4 or none.")] = "",
    lora_rank: Annotated[int, typer.Option("--lora-rank", min=0)] = 0,
    lora_alpha: Annotated[int, typer.Option("--lora-alpha", min=0)] = 0,
    lora_dropout: Annotated[float | None, typer.Option("--lora-dropout", min=0)] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=0)] = 0,
    gradient_accumulation: Annotated[int, typer.Option("--gradient-accumulation", min=0)] = 0,
    max_length: Annotated[int, typer.Option("--max-length", min=0)] = 0,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    propose: ProposeOption = False,
    comment: CommentOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Train a LoRA: plan, confirm, follow. Users go first; it goes on after quiet."""
    given: dict[str, Any] = {
        "base_model": str(base_model.expanduser().absolute()),
        "dataset": str(dataset.expanduser().absolute()),
        "preset": preset,
        "adapter_id": adapter_id,
        "device": device,
        "max_steps": max_steps,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "quantization": quantization,
        "lora_rank": lora_rank,
        "lora_alpha": lora_alpha,
        "batch_size": batch_size,
        "gradient_accumulation": gradient_accumulation,
        "max_length": max_length,
    }
    # What is left out comes from the preset; a seed or dropout of 0 is a wish, not an omission.
    parameters = {key: value for key, value in given.items() if value}
    parameters |= {
        key: value for key, value in (("seed", seed), ("lora_dropout", lora_dropout)) if value is not None
    }
    run = act(
        session,
        "train_adapter",
        parameters,
        yes=yes,
        dry_run=dry_run,
        propose=propose,
        comment=comment,
        no_wait=True,
    )
    if run is None or no_wait or propose or session.json:
        return
    job = _job_of(session, run)
    if job:
        _watch(session, job)


def estimate(
    session: Session,
    base_model: BaseModelOption,
    dataset: DatasetOption,
    preset: PresetOption = "",
    device: DeviceOption = "",
    max_steps: StepsOption = 0,
    epochs: EpochsOption = 0.0,
) -> None:
    """Memory and time of a training, and whether it fits now; starts nothing."""
    from nightshift.trainer.v1 import resources_pb2
    from nightshift.trainer.v1 import trainer_service_pb2 as messages

    spec = resources_pb2.TrainingSpec(
        base_model=str(base_model.expanduser().absolute()),
        dataset=str(dataset.expanduser().absolute()),
        preset=preset,
        device=device,
        max_steps=max_steps,
        epochs=epochs,
    )
    answer = session.call(
        "trainer", "EstimateTraining", messages.EstimateTrainingRequest(spec=spec), timeout_s=120
    )
    if session.json:
        session.print_json(answer)
        return
    session.say(f"{'fits' if answer.fits else 'does not fit'}: {answer.detail}")
    session.say(f"  memory     {size(answer.memory_bytes)}")
    for part, size_bytes in sorted(answer.memory_parts_bytes.items(), key=lambda item: -item[1]):
        session.say(f"    {part:<14} {size(size_bytes)}")
    session.say(f"  steps      {answer.total_steps} over {answer.row_count} rows")
    time = span(seconds_of(answer.duration)) if answer.HasField("duration") else "not measured yet"
    session.say(f"  time       {time}")


def list_jobs(session: Session, limit: Annotated[int, typer.Option("--limit", min=1)] = 20) -> None:
    """Training jobs, newest first."""
    from nightshift.trainer.v1 import trainer_service_pb2 as messages

    answer = session.call("trainer", "ListTrainingJobs", messages.ListTrainingJobsRequest(page_size=limit))
    if session.json:
        session.print_json(answer)
        return
    if not answer.training_jobs:
        session.say("No training yet; begin one with: nightshift train start --base-model DIR --dataset FILE")
    for job in answer.training_jobs:
        state = label(_state(job), "") + (f" ({job.pause_cause})" if job.pause_cause else "")
        loss = f", loss {job.loss:.3f}" if job.step else ""
        session.say(f"{instant(job.create_time)}  {state}, step {job.step}/{job.total_steps}{loss}")
        session.say(f"  {job.name}")
        if job.adapter or job.failure.reason:
            session.say(f"  {job.adapter or f'{job.failure.reason}: {job.failure.message}'}")


def watch(
    session: Session,
    job: JobArgument = "",
    after_seq: Annotated[int, typer.Option("--after-seq", help="Only later points.")] = 0,
) -> None:
    """Follow a training; Ctrl-C leaves it running."""
    _watch(session, named("trainingJobs", job) if job else _newest(session), after_seq)


def pause(
    session: Session, job: JobArgument = "", yes: YesOption = False, dry_run: DryRunOption = False
) -> None:
    """Stop a training so that it can go on later, bit by bit the same."""
    _job_command(session, "pause_training", job, yes=yes, dry_run=dry_run)


def resume(
    session: Session, job: JobArgument = "", yes: YesOption = False, dry_run: DryRunOption = False
) -> None:
    """Go on with a paused training."""
    _job_command(session, "resume_training", job, yes=yes, dry_run=dry_run)


def cancel(
    session: Session, job: JobArgument = "", yes: YesOption = False, dry_run: DryRunOption = False
) -> None:
    """End a training; its checkpoints are removed."""
    _job_command(session, "cancel_training", job, yes=yes, dry_run=dry_run)


def list_adapters(session: Session, limit: Annotated[int, typer.Option("--limit", min=1)] = 50) -> None:
    """Trained adapters, newest first."""
    from nightshift.trainer.v1 import trainer_service_pb2 as messages

    answer = session.call("trainer", "ListAdapters", messages.ListAdaptersRequest(page_size=limit))
    if session.json:
        session.print_json(answer)
        return
    if not answer.adapters:
        session.say("No adapter yet; a training makes one: nightshift train start")
        return
    for found in answer.adapters:
        session.say(f"{instant(found.create_time)}  loss {found.loss:.3f}, {size(found.size_bytes)}")
        session.say(f"  {found.name}")
        session.say(f"  weights {found.weights_digest}")


def show_adapter(session: Session, adapter: Annotated[str, typer.Argument(help="Adapter.")]) -> None:
    """One adapter: where it lies and what it was made of."""
    from nightshift.trainer.v1 import trainer_service_pb2 as messages
    from nightshift_client.cli.runs import show_message

    answer = session.call(
        "trainer", "GetAdapter", messages.GetAdapterRequest(name=named("adapters", adapter))
    )
    show_message(session, answer)


def _job_command(session: Session, skill: str, job: str, *, yes: bool, dry_run: bool) -> None:
    name = named("trainingJobs", job) if job else _newest(session)
    act(session, skill, {"training_job": name}, yes=yes, dry_run=dry_run)


def _newest(session: Session) -> str:
    """The newest open job, else the newest.

    Raises:
        CommandFailed: where there is none.
    """
    from nightshift.trainer.v1 import trainer_service_pb2 as messages

    jobs = session.call(
        "trainer", "ListTrainingJobs", messages.ListTrainingJobsRequest(page_size=20)
    ).training_jobs
    if not jobs:
        raise CommandFailed(
            EXIT_FAILED,
            "there is no training job",
            advice="Start one with: nightshift train start --base-model DIR --dataset FILE",
        )
    still_open = [job for job in jobs if _state(job) in OPEN_STATES]
    return str((still_open or list(jobs))[0].name)


def _job_of(session: Session, run: skills_types.SkillRun) -> str:
    """The job that a run of train_adapter made; "" where it has none yet and will not soon."""
    from nightshift.skills.v1 import skills_service_pb2 as messages
    from nightshift_client.cli.acting import ENDED, state_of

    deadline = time.monotonic() + START_WAIT_S
    columns = (SpinnerColumn(), TextColumn("waits for quiet and its turn"), TimeElapsedColumn())
    later = f"{run.name} waits for its turn; follow it later with: nightshift train watch"
    with Progress(*columns, console=session.errors, transient=True, disable=not session.lively) as bar:
        bar.add_task("", total=None)
        try:
            while time.monotonic() < deadline:
                for result in run.results:
                    name = result.fields["name"].string_value if "name" in result.fields else ""
                    if name.startswith("trainingJobs/"):
                        return str(name)
                if state_of(run) in ENDED | {"AWAITING_APPROVAL"}:
                    bar.stop()
                    conclude(session, run)
                    return ""
                for job in _jobs(session):
                    if job.skill_run == run.name:
                        return str(job.name)
                time.sleep(0.3)
                run = session.call("skills", "GetSkillRun", messages.GetSkillRunRequest(name=run.name))
        except KeyboardInterrupt:
            bar.stop()
            session.errors.print(later, soft_wrap=True)
            raise
    session.say(f"{later}; why it waits: nightshift status")
    return ""


def _jobs(session: Session) -> Any:
    from nightshift.trainer.v1 import trainer_service_pb2 as messages

    return session.call(
        "trainer", "ListTrainingJobs", messages.ListTrainingJobsRequest(page_size=20)
    ).training_jobs


def _watch(session: Session, name: str, after_seq: int = 0) -> None:
    from nightshift.trainer.v1 import trainer_service_pb2 as messages

    request = messages.WatchTrainingJobRequest(name=name, after_seq=after_seq)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
        TimeElapsedColumn(),
    )
    job: Any = None
    next_line = 0.0
    with Progress(*columns, console=session.errors, disable=not session.lively) as bar:
        task = bar.add_task("waiting", total=None, news="")
        try:
            for message in session.stream("trainer", "WatchTrainingJob", request):
                job = message.training_job
                bar.update(task, description=label(_state(job), ""), total=job.total_steps or None)
                if session.json:
                    session.print_json(message, compact=True)
                    continue
                for point in message.points:
                    if point.event:
                        session.say(f"{instant(point.point_time)}  {point.event}: {point.message}")
                    elif not session.lively and point.step and time.monotonic() >= next_line:
                        # No bar into a pipe: a line now and then.
                        next_line = time.monotonic() + LINE_INTERVAL_S
                        session.say(f"step {point.step}/{point.total_steps}  {_news(point)}")
                    bar.update(
                        task,
                        description=visible(point.phase) or label(_state(job), ""),
                        completed=point.step,
                        total=point.total_steps or None,
                        news=_news(point),
                    )
        except KeyboardInterrupt:
            bar.stop()
            session.errors.print(f"{name} goes on; follow it with: nightshift train watch", soft_wrap=True)
            raise
    if job is None:
        return
    state = _state(job)
    if not session.json:
        session.say(f"{job.name} is {label(state, '')}" + (f": {job.adapter}" if job.adapter else ""))
    if state == "FAILED":
        if session.json:
            raise typer.Exit(EXIT_FAILED)
        raise CommandFailed(EXIT_FAILED, job.failure.message, reason=job.failure.reason)


def _news(point: resources_pb2.ProgressPoint) -> str:
    parts = [f"loss {point.smoothed_loss or point.loss:.3f}"] if point.loss else []
    parts += [f"{point.tokens_per_second:,.0f} tok/s"] if point.tokens_per_second else []
    parts += [f"eta {span(seconds_of(point.eta))}"] if point.HasField("eta") else []
    return "  ".join(parts)


def _state(job: resources_pb2.TrainingJob) -> str:
    from nightshift.trainer.v1 import resources_pb2

    return resources_pb2.TrainingJobState.Name(job.state).removeprefix("TRAINING_JOB_STATE_")
