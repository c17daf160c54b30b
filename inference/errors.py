"""Reasons why a series gives no result: one code a cause, and the state that each leads to.

InferenceError
+-- Unprocessable   a verdict on the series, with a reason code: refused or held
+-- ModelLoadError  a model or its weights cannot be used
+-- PredictionError a model planned or predicted what cannot be
+-- Cancelled       somebody asked for the job to stop
+-- NoSeries        a folder holds nothing to train or to judge on
"""

import errno
from collections.abc import Iterator
from enum import StrEnum


class Reason(StrEnum):
    """Reason codes of refused and held jobs; the words that operators, pages and logs use."""

    NOTHING_TO_DO = "NOTHING_TO_DO"
    TOO_FEW_SLICES = "TOO_FEW_SLICES"
    NOT_A_CT_SLICE = "NOT_A_CT_SLICE"
    NOT_AN_MR_SLICE = "NOT_AN_MR_SLICE"
    DERIVED_INPUT = "DERIVED_INPUT"
    MIXED_ACQUISITIONS = "MIXED_ACQUISITIONS"
    ENHANCED_NOT_SUPPORTED = "ENHANCED_NOT_SUPPORTED"
    NO_GEOMETRY = "NO_GEOMETRY"
    BAD_ORIENTATION = "BAD_ORIENTATION"
    OUT_OF_SCOPE = "OUT_OF_SCOPE"
    NOT_HU = "NOT_HU"
    NO_DECODER = "NO_DECODER"
    TOO_LARGE = "TOO_LARGE"
    ACQUIRED_THIN_SERIES_EXISTS = "ACQUIRED_THIN_SERIES_EXISTS"
    DUPLICATE_POSITIONS = "DUPLICATE_POSITIONS"
    MISSING_UIDS = "MISSING_UIDS"
    CONFLICTING_INSTANCES = "CONFLICTING_INSTANCES"
    PATIENT_MISMATCH = "PATIENT_MISMATCH"
    PEERS_DISAGREE = "PEERS_DISAGREE"
    MISSING_SLICES = "MISSING_SLICES"
    PIXEL_DATA_ERROR = "PIXEL_DATA_ERROR"
    DAMAGED_FILES = "DAMAGED_FILES"
    OUTPUT_CHECK_FAILED = "OUTPUT_CHECK_FAILED"
    LOW_CONFIDENCE = "LOW_CONFIDENCE"
    UNDERSAMPLED = "UNDERSAMPLED"


# A person decides about these; every other reason is final and needs nobody.
HELD = frozenset(
    {
        Reason.CONFLICTING_INSTANCES,
        Reason.PATIENT_MISMATCH,
        Reason.PEERS_DISAGREE,
        Reason.MISSING_SLICES,
        Reason.PIXEL_DATA_ERROR,
        Reason.DAMAGED_FILES,
        Reason.OUTPUT_CHECK_FAILED,
        Reason.LOW_CONFIDENCE,
        Reason.UNDERSAMPLED,
    }
)


class InferenceError(Exception):
    """Anything that this package raises on purpose; its text holds no patient data."""


class Unprocessable(InferenceError):
    """A series that is not processed, with the reason code and one sentence for a technologist."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(f"{reason}: {sentence}")
        self.reason = reason
        self.sentence = sentence

    def __reduce__(self) -> tuple[type["Unprocessable"], tuple[Reason, str]]:
        return type(self), (self.reason, self.sentence)

    @property
    def is_held(self) -> bool:
        """True where a person must decide, False where the verdict is final."""
        return self.reason in HELD


class ModelLoadError(InferenceError):
    """A model, its class or its weights cannot be loaded; the text says which and why."""


class PredictionError(InferenceError):
    """A model's plan or prediction is not what was asked for; the text says what it is instead."""


class Cancelled(InferenceError):
    """The job was cancelled between two steps."""


def duplicates(count: int, of: int) -> Unprocessable:
    """The verdict on slices that lie at one place and are not one image."""
    sentence = (
        f"{count} of the {of} slices lie where another one lies, "
        "and nothing tells which of them belong together."
    )
    return Unprocessable(Reason.DUPLICATE_POSITIONS, sentence)


# The machine lacks room on the disk, open files or memory for them, or its disk went read-only:
# later the same may work.
SHORTAGES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


# The texts of torch, CUDA's libraries, OpenCV and codecs, which raise a class of their own, or
# RuntimeError.
NO_MEMORY_WORDS = (
    "out of memory",
    "allocate memory",
    "failed to allocate",
    "alloc_failed",
    "bad_alloc",
    "insufficient memory",
    "can't start new thread",
)


def shortage(error: BaseException | None) -> str:
    """The system's word for what the machine lacked, behind whatever was raised of it; or none."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in SHORTAGES:
            return cause.strerror or str(cause)
    return ""


def is_out_of_memory(error: BaseException | None) -> bool:
    """True where memory lacked, on the machine or the GPU, behind whatever was raised of it.

    Recognised by name: the libraries whose classes these are must not be imported for it.
    """
    return any(map(_lacks_memory, _causes(error)))


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    is_of_library = isinstance(error, RuntimeError) or type(error).__module__ == "cv2"
    return is_of_library and any(words in str(error).lower() for words in NO_MEMORY_WORDS)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
