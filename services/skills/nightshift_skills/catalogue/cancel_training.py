"""Ends a training for good."""

from __future__ import annotations

from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift_kit.grants import Tier
from nightshift_skills.catalogue.resume_training import JobParameters
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import PlanContext, Skill

METHOD = "/nightshift.trainer.v1.TrainerService/CancelTrainingJob"
_ENDED = (
    trainer_types.TRAINING_JOB_STATE_SUCCEEDED,
    trainer_types.TRAINING_JOB_STATE_FAILED,
    trainer_types.TRAINING_JOB_STATE_CANCELLED,
)


async def plan(context: PlanContext, parameters: JobParameters) -> Plan | NothingToDo:
    """Cancels one open job."""
    job = await context.trainer.get_job(parameters.training_job)
    if job.state in _ENDED:
        return NothingToDo(reason="The training has ended already.")
    return Plan(
        skill="skills/cancel_training",
        subject=job.name,
        summary=f"Cancel {job.name} at step {job.step} of {job.total_steps} and remove its checkpoints.",
        calls=(PlannedCall.of(METHOD, trainer_pb.CancelTrainingJobRequest(name=job.name)),),
        reversibility=Reversibility.IRREVERSIBLE,
    )


SKILL = Skill(
    id="cancel_training",
    tier=Tier.MANUAL,
    on_purpose=True,
    description="Ends a training for good; its checkpoints are removed.",
    triggers=("command",),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    parameters=JobParameters,
    call_timeout_s=30,
)
