"""Built-in skills, one file each."""

from nightshift_skills.catalogue import (
    aggregate_experience,
    build_embeddings,
    cancel_training,
    cleanup_vram,
    detect_opportunities,
    forget_device,
    health_check,
    pause_training,
    preload_models,
    promote_config,
    propose_config,
    reject_proposal,
    resume_training,
    rollback,
    set_autonomy,
    set_tuning,
    summarize_sessions,
    train_adapter,
    translate_configs,
    validate_configs,
)
from nightshift_skills.skill import Skill

# In the order in which waiting idle work is taken where nothing has run yet.
BUILT_IN: tuple[Skill, ...] = (
    health_check.SKILL,
    aggregate_experience.SKILL,
    build_embeddings.SKILL,
    summarize_sessions.SKILL,
    detect_opportunities.SKILL,
    validate_configs.SKILL,
    translate_configs.SKILL,
    propose_config.SKILL,
    cleanup_vram.SKILL,
    preload_models.SKILL,
    train_adapter.SKILL,
    resume_training.SKILL,
    promote_config.SKILL,
    rollback.SKILL,
    set_autonomy.SKILL,
    set_tuning.SKILL,
    reject_proposal.SKILL,
    pause_training.SKILL,
    cancel_training.SKILL,
    forget_device.SKILL,
)

__all__ = ["BUILT_IN"]
