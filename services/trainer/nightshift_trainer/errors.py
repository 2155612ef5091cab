"""What can go wrong in the trainer.

NightshiftError
├── INVALID_ARGUMENT      ChatRowInvalid, NonFinite
├── NOT_FOUND             BaseModelUnknown, DatasetUnknown, TrainingJobUnknown, AdapterUnknown
├── ALREADY_EXISTS        AdapterExists
├── PERMISSION_DENIED     UnsafeFormat
├── FAILED_PRECONDITION   CorpusEmpty, TokenizerMismatch, GpuBusy, GpuUnavailable, VramInsufficient,
│                         JobState
├── ABORTED               CorpusChanged
├── OUT_OF_RANGE          SeqGone
└── DATA_LOSS             CheckpointCorrupt

What ends a job instead of a call (TRAINER_OOM, LOSS_NON_FINITE, …) is a Failure in the job, not an error
here.
"""

from __future__ import annotations

from nightshift_kit.errors import Code, NightshiftError


class ChatRowInvalid(NightshiftError):
    """A row of the dataset is no chat; metadata `row` counts from 1."""

    code = Code.INVALID_ARGUMENT
    reason = "CHAT_ROW_INVALID"


class NonFinite(NightshiftError):
    """A number is NaN or infinite."""

    code = Code.INVALID_ARGUMENT
    reason = "NON_FINITE"


class BaseModelUnknown(NightshiftError):
    """There is no base model in that folder."""

    code = Code.NOT_FOUND
    reason = "BASE_MODEL_UNKNOWN"


class DatasetUnknown(NightshiftError):
    """There is no such dataset file."""

    code = Code.NOT_FOUND
    reason = "DATASET_UNKNOWN"


class TrainingJobUnknown(NightshiftError):
    """There is no such job."""

    code = Code.NOT_FOUND
    reason = "TRAINING_JOB_UNKNOWN"


class AdapterUnknown(NightshiftError):
    """There is no such adapter."""

    code = Code.NOT_FOUND
    reason = "ADAPTER_UNKNOWN"


class AdapterExists(NightshiftError):
    """The asked-for adapter name is taken."""

    code = Code.ALREADY_EXISTS
    reason = "ADAPTER_EXISTS"


class UnsafeFormat(NightshiftError):
    """A file would have to be unpickled."""

    code = Code.PERMISSION_DENIED
    reason = "UNSAFE_FORMAT"


class CorpusEmpty(NightshiftError):
    """The dataset has no rows."""

    code = Code.FAILED_PRECONDITION
    reason = "CORPUS_EMPTY"


class TokenizerMismatch(NightshiftError):
    """Tokenizer and base model do not belong together, or the tokenizer cannot render chats."""

    code = Code.FAILED_PRECONDITION
    reason = "TOKENIZER_MISMATCH"


class GpuBusy(NightshiftError):
    """Another job is open."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_BUSY"


class GpuUnavailable(NightshiftError):
    """CUDA was asked for and there is no GPU."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_UNAVAILABLE"


class VramInsufficient(NightshiftError):
    """The estimate exceeds what is free."""

    code = Code.FAILED_PRECONDITION
    reason = "VRAM_INSUFFICIENT"


class JobState(NightshiftError):
    """The job is not in a state in which this can be done."""

    code = Code.FAILED_PRECONDITION
    reason = "JOB_STATE"


class CorpusChanged(NightshiftError):
    """Dataset or base model differ from the digest that was planned with."""

    code = Code.ABORTED
    reason = "CORPUS_CHANGED"


class SeqGone(NightshiftError):
    """The points asked for are no longer kept."""

    code = Code.OUT_OF_RANGE
    reason = "SEQ_GONE"


class CheckpointCorrupt(NightshiftError):
    """None of a job's checkpoints is good."""

    code = Code.DATA_LOSS
    reason = "CHECKPOINT_CORRUPT"
