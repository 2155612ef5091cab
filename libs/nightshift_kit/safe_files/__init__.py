"""The platform's files: read and changed without ever leaving their folder, and never half done."""

from nightshift_kit.safe_files.effects import FileEffects
from nightshift_kit.safe_files.intents import EffectPending, Intent, Outcome, Recovery
from nightshift_kit.safe_files.root import Root, check_relative

__all__ = ["EffectPending", "FileEffects", "Intent", "Outcome", "Recovery", "Root", "check_relative"]
