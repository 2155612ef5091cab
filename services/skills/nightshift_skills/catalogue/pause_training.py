"""Pauses a training for a person, with a checkpoint from which it can go on."""

from __future__ import annotations

from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift_kit.grants import Tier
from nightshift_skills.catalogue.resume_training import JobParameters
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import PlanContext, Skill

METHOD = "/nightshift.trainer.v1.TrainerService/PauseTrainingJob"
_OPEN = (
    trainer_types.TRAINING_JOB_STATE_STARTING,
    trainer_types.TRAINING_JOB_STATE_RUNNING,
    trainer_types.TRAINING_JOB_STATE_PAUSED,
)


async def plan(context: PlanContext, parameters: JobParameters) -> Plan | NothingToDo:
    """Pauses one open job."""
    job = await context.trainer.get_job(parameters.training_job)
    if job.state not in _OPEN:
        return NothingToDo(reason="The training has ended.")
    if job.state == trainer_types.TRAINING_JOB_STATE_PAUSED and job.pause_cause == "person":
        return NothingToDo(reason="The training is paused already.")
    return Plan(
        skill="skills/pause_training",
        subject=job.name,
        summary=f"Pause {job.name}; it goes on only by resume_training.",
        calls=(PlannedCall.of(METHOD, trainer_pb.PauseTrainingJobRequest(name=job.name)),),
        reversibility=Reversibility.REVERSIBLE,
    )


SKILL = Skill(
    id="pause_training",
    tier=Tier.MANUAL,
    on_purpose=True,
    description="Pauses a training until a person resumes it.",
    triggers=("command",),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    parameters=JobParameters,
    call_timeout_s=30,
)
