"""Training jobs, as a run that lasts as long as its job sees them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift_skills.patience import patiently
from nightshift_skills.ports import TrainerPort
from nightshift_skills.runs import Failure


class JobPhase(Enum):
    """What a job's state means for its run."""

    WORKING = auto()
    PAUSED = auto()
    HELD = auto()
    SUCCEEDED = auto()
    FAILED = auto()
    CANCELLED = auto()


@dataclass(frozen=True, slots=True)
class JobView:
    """A job in the words of a run."""

    name: str
    phase: JobPhase
    outcome: str
    skill_run: str
    failure: Failure | None = None


def view(job: trainer_types.TrainingJob) -> JobView:
    """What a job's state means."""
    at = f"at step {job.step} of {job.total_steps}"
    failure = None
    match job.state:
        case trainer_types.TRAINING_JOB_STATE_SUCCEEDED:
            phase, outcome = JobPhase.SUCCEEDED, f"{job.adapter} is trained, loss {job.loss:.3f}."
        case trainer_types.TRAINING_JOB_STATE_FAILED:
            phase, outcome = JobPhase.FAILED, f"The training failed {at}."
            failure = Failure(job.failure.reason, job.failure.message, dict(job.failure.metadata))
        case trainer_types.TRAINING_JOB_STATE_CANCELLED:
            phase, outcome = JobPhase.CANCELLED, f"The training was cancelled {at}."
        case trainer_types.TRAINING_JOB_STATE_PAUSED if job.pause_cause == "person":
            phase, outcome = JobPhase.HELD, f"Paused by a person {at}; resume_training lets it go on."
        case trainer_types.TRAINING_JOB_STATE_PAUSED:
            phase, outcome = JobPhase.PAUSED, f"Paused {at} ({job.pause_cause}); goes on after quiet."
        case _:
            phase, outcome = JobPhase.WORKING, f"Trains, {at}."
    return JobView(job.name, phase, outcome, job.skill_run.removeprefix("skillRuns/"), failure)


async def look(trainer: TrainerPort, name: str, *, patience_s: float) -> JobView:
    """The job now; waits for a trainer that is starting anew.

    Raises:
        Upstream: the trainer refuses, or stays away longer than `patience_s`.
    """
    looking = patiently("GetTrainingJob", patience_s, first_s=0.2, longest_s=5.0)
    return view(await looking(trainer.get_job, name))
