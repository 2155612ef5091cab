"""Lets a training go on that a person paused."""

from __future__ import annotations

from pydantic import Field

from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift_kit.grants import Tier
from nightshift_skills.catalogue.train_adapter import LEAST_USEFUL_S
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Parameters, PlanContext, Skill

METHOD = "/nightshift.trainer.v1.TrainerService/ResumeTrainingJob"


class JobParameters(Parameters):
    """Format: "trainingJobs/{training_job}"."""

    training_job: str = Field(pattern=r"^trainingJobs/[^/]+$")


async def plan(context: PlanContext, parameters: JobParameters) -> Plan | NothingToDo:
    """Resumes one paused job."""
    job = await context.trainer.get_job(parameters.training_job)
    if job.state != trainer_types.TRAINING_JOB_STATE_PAUSED:
        state = trainer_types.TrainingJobState.Name(job.state).removeprefix("TRAINING_JOB_STATE_")
        return NothingToDo(reason=f"The training is not paused, it is {state}.")
    return Plan(
        skill="skills/resume_training",
        subject=job.name,
        summary=f"Go on with {job.name} from step {job.step} of {job.total_steps}.",
        calls=(PlannedCall.of(METHOD, trainer_pb.ResumeTrainingJobRequest(name=job.name)),),
        base_versions={job.name: job.checkpoint_digest},
        reversibility=Reversibility.REVERSIBLE,
        evidence=(f"Paused {job.pause_count} times, the last time for: {job.pause_cause}.",),
    )


SKILL = Skill(
    id="resume_training",
    tier=Tier.CONFIRM,
    description="Lets a training go on that a person paused.",
    triggers=("command",),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    parameters=JobParameters,
    call_timeout_s=60,
    follows_job=True,
    least_useful_s=LEAST_USEFUL_S,
)
