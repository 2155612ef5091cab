"""What can go wrong in the trainer.

NightshiftError
├── INVALID_ARGUMENT      ChatRowInvalid, NonFinite
├── NOT_FOUND             BaseModelUnknown, DatasetUnknown, TrainingJobUnknown, AdapterUnknown, ModelUnknown
├── ALREADY_EXISTS        AdapterExists
├── PERMISSION_DENIED     UnsafeFormat
├── FAILED_PRECONDITION   CorpusEmpty, TokenizerMismatch, GpuBusy, GpuUnavailable, VramInsufficient,
│                         JobState, GpuHostUnconfigured, GpuHostInvalid, UnloadRefused
├── UNAVAILABLE           GpuHostUnavailable, EvictionInProgress
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


class ModelUnknown(NightshiftError):
    """The backend does not have the model."""

    code = Code.NOT_FOUND
    reason = "MODEL_UNKNOWN"


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


class GpuHostUnconfigured(NightshiftError):
    """No setting says who tells what is on the GPU, and NVML finds none; metadata `setting`."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_HOST_UNCONFIGURED"


class GpuHostInvalid(NightshiftError):
    """A service of the platform answers what it must not; metadata `source` and `path`."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_HOST_INVALID"


class UnloadRefused(NightshiftError):
    """The backend was asked to unload a model and did not."""

    code = Code.FAILED_PRECONDITION
    reason = "UNLOAD_REFUSED"


class GpuHostUnavailable(NightshiftError):
    """A service of the platform does not answer; a call that acts may have acted."""

    code = Code.UNAVAILABLE
    reason = "GPU_HOST_UNAVAILABLE"


class EvictionInProgress(NightshiftError):
    """The GPU service unloads by itself right now; what it leaves is not known yet."""

    code = Code.UNAVAILABLE
    reason = "EVICTION_IN_PROGRESS"


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
