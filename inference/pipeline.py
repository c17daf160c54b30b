"""The one function from the paths of a stack to the verified files of its results.

It is the same for all models. What differs between those that make slices, a mask or scores stands
in their families.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from inference import header as h
from inference import parts
from inference.dataset import Stack, newest, read_headers
from inference.descriptions import contrast_of_series
from inference.drafts import Drafts, KeptDrafts
from inference.errors import (
    Cancelled,
    InferenceError,
    ModelLoadError,
    PredictionError,
    Reason,
    Unprocessable,
    is_out_of_memory,
    shortage,
)
from inference.families.family import Family, Result, Task
from inference.families.finding_family import FindingFamily
from inference.families.mask_family import MaskFamily
from inference.families.score_family import ScoreFamily
from inference.families.slice_family import SliceFamily
from inference.geometry import Layout
from inference.model import Model, Step
from inference.pixels import PixelReader, check_copies, digests, padding_notes
from inference.registry import choose_device, load_once
from inference.request import (
    LACKING,
    Derived,
    Failed,
    Kept,
    Outcome,
    OutOfMemory,
    OutOfResources,
    Produces,
    Progress,
    Request,
    Stopped,
    Verdict,
)
from inference.runner import JobRecord, Run, share_cores
from inference.scope import differences, oddities
from inference.stacks import facts_of, set_aside, stacks_of
from inference.uids import Identity, marked
from inference.volume import REDUCTION

FAMILIES: Mapping[Produces, Family] = {
    "slices": SliceFamily(),
    "mask": MaskFamily(),
    "scores": ScoreFamily(),
    "findings": FindingFamily(),
}
logger = logging.getLogger(__name__)


def process(
    request: Request,
    *,
    progress: Callable[[Progress], None],
    cancelled: Callable[[], bool],
    later: list[Callable[[], object]] | None = None,
    drafts: Drafts | None = None,
) -> Outcome:
    """Make the results of a stack. A fault of the series, the model or our code is an outcome.

    With a list for what can be done later, the pictures for the page of the job are not drawn: the
    result need not wait for them. Drafts make the same files in less time.
    """
    record = JobRecord()
    outcome: Outcome
    try:
        pixels = PixelReader(scratch_folder=request.folder)
        known: KeptDrafts | None = parts.opened(request, drafts) if request.in_parts else drafts
        run = Run(request, record, progress, cancelled, pixels, known)
        outcome = _run(run, later)
    except Unprocessable as verdict:
        outcome = lacking(verdict) or _verdict(verdict, record)
    except Cancelled:
        outcome = Stopped()
    except Exception as error:  # noqa: BLE001  (a model is foreign code and may raise anything)
        outcome = lacking(error) or failure(error)
    if isinstance(outcome, Derived | Verdict) and not _is_storable(outcome.record):
        outcome = failure(PredictionError("the record of the model is not of plain values (JSON)"))
    if not isinstance(outcome, Derived):
        _clear(request.folder)
    return outcome


def _is_storable(record: Mapping[str, object]) -> bool:
    """True for what a database and a page can hold; a model may put anything into its record."""
    try:
        json.dumps(record)
    except (TypeError, ValueError):
        return False
    return True


def foreseen(request: Request, stack: Stack) -> Unprocessable | None:
    """The verdict on a stack that headers and the plan of its model tell; no pixel is read."""
    job = Run(request, JobRecord(), report=lambda _: None, cancelled=lambda: False)
    family = _family(request.model.produces)
    try:
        layout = family.examined(job, stack)
        family.planned(job, _load(request)[0], layout)
    except Unprocessable as verdict:
        return verdict
    return None


class OutputCheckFailed(Unprocessable):
    """The files on disk are not the results that were planned."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        sentence = (
            f"The result did not pass its own check ({len(faults)} faults; "
            f"the first: {faults[0]}); nothing was sent."
        )
        super().__init__(Reason.OUTPUT_CHECK_FAILED, sentence)
        self.faults = faults


def _verdict(verdict: Unprocessable, record: JobRecord) -> Verdict:
    facts = dict(record.as_json())
    if isinstance(verdict, OutputCheckFailed):
        facts["faults"] = list(verdict.faults)
    return Verdict(verdict.reason, verdict.sentence, verdict.is_held, facts)


def lacking(error: Exception) -> OutOfResources | OutOfMemory | None:
    """The outcome where it was the machine that lacked something, whatever came of that."""
    if is_out_of_memory(error):
        return OutOfMemory(_frames(error))
    lacked = shortage(error)
    return OutOfResources(LACKING.format(lacked=lacked)) if lacked else None


def failure(error: Exception) -> Failed:
    """An exception as type and frames; its message only where the class is ours."""
    name, frames = type(error).__name__, _frames(error)
    logger.error("processing failed", extra={"error": name, "frames": frames})
    detail = f": {error}" if isinstance(error, InferenceError) else ""
    if isinstance(error, OSError) and error.strerror:
        detail = f": {error.strerror}"
    return Failed(name, f"The model or the node failed ({name}{detail}).", frames)


def _frames(error: Exception) -> str:
    return " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in reversed(traceback.extract_tb(error.__traceback__))
    )


def bring_to_disk(folder: Path) -> None:
    """Make the names of the written files durable, as each file is already."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Remove what an unfinished job has written; the folder itself is the caller's."""
    with contextlib.suppress(OSError):  # the caller removes the folder, whatever is left in it
        for path in folder.glob("*.dcm"):
            path.unlink(missing_ok=True)


def _run(job: Run, later: list[Callable[[], object]] | None) -> Derived | Kept:
    """The frame of every job: the family says what is in scope, what is made, and how."""
    request, record, pixels = job.request, job.record, job.pixels
    family = _family(request.model.produces)
    with record.phase("reading"):
        stack = _read(job)
        layout = family.examined(job, stack)
        model, device = _load(request)
        steps = _planned(job, model, layout, stack)
        report = job.reporting("reading", len(stack))
        threads = request.resources.threads or len(os.sched_getaffinity(0))
        digest_of, notes = digests(stack.headers, pixels, threads=threads, progress=report)
    record.notes += [*_notes_on(layout), *notes]
    if request.model.produces != "slices":  # of a whole stack: what it shows depends on contrast
        _name_contrast(record, layout)
    record.notes += check_copies(layout.copies, len(stack), pixels)
    identity = _identity(request, model, layout, digest_of)
    maker, content_uid, mark = marked(request.secret, identity, request.marks, request.mark)
    series_uid = maker.series()
    if series_uid in request.kept:
        return Kept(series_uid)
    record.facts |= _facts(model, stack, layout)
    marked_job = replace(job, request=replace(request, mark=mark))
    task = Task(stack, layout, model, device, steps, maker, series_uid)
    result = family.made(marked_job, task)
    with record.phase("checking"):
        if faults := result.faults():
            raise OutputCheckFailed(faults)
        bring_to_disk(request.folder)
    if request.previews:
        _preview(job, result, later)
    files = tuple(result.files)
    return Derived(series_uid, model.version, files, record.as_json(), content_uid, mark)


def _preview(job: Run, result: Result, later: list[Callable[[], object]] | None) -> None:
    if later is not None:
        later.append(result.preview)
        return
    with job.record.phase("previews"):
        job.record.notes += result.preview()


def _family(produces: Produces) -> Family:
    if produces not in FAMILIES:
        raise ModelLoadError(f"no model that produces {produces} can be run")
    return FAMILIES[produces]


def _read(job: Run) -> Stack:
    """The one stack of the request, with what else was received of its series."""
    headers = read_headers(job.request.sources)
    for header in headers:
        if header.fault:
            sentence = f"A received file {header.fault}; send the series again."
            raise Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)
    stacks = stacks_of(headers)
    if len(stacks) != 1:
        sentence = f"The instances form {len(stacks)} stacks; each is processed by itself."
        raise Unprocessable(Reason.MIXED_ACQUISITIONS, sentence)
    own = {header.uid for header in headers}
    beside = [h for h in read_headers(job.request.beside) if h.uid not in own]
    if aside := facts_of(set_aside([*headers, *beside])):
        job.record.facts["set_aside"] = aside
    return replace(stacks[0], beside=tuple(newest(beside)))


def _planned(job: Run, model: Model, layout: Layout, stack: Stack) -> Sequence[Step]:
    """The steps of the model; an error as of a full disk where their result would make it one.

    So does what lies in scratch files meanwhile.

    A model of whole stacks writes no more than what it was given.
    """
    request = job.request
    steps = _family(request.model.produces).planned(job, model, layout)
    if request.reserve_bytes is None:
        return steps
    slices = len(layout.headers) + sum(len(step.fractions) for step in steps)
    size = slices * layout.geometry.rows * layout.geometry.columns * 2
    size += size // REDUCTION**2  # the maps of expected errors
    size += job.pixels.scratch_bytes(stack.headers)
    free = shutil.disk_usage(request.folder).free
    if free - size < request.reserve_bytes:
        lacked = f"the result needs {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
        raise OSError(errno.ENOSPC, f"{lacked}, the reserve is {request.reserve_bytes / 1e9:g} GB")
    return steps


def _load(request: Request) -> tuple[Model, str]:
    """The model and the device that it runs on."""
    device, wanted = choose_device(request.resources.device, request.model), request.model.produces
    model = load_once(request.model, device)
    if model.produces != wanted:
        raise ModelLoadError(f"model {model.name} produces {model.produces}, not {wanted}")
    share_cores(model, request.resources.threads)  # all of them, however few the last job took
    return model, device


def _identity(
    request: Request, model: Model, layout: Layout, digest_of: Mapping[str, str]
) -> Identity:
    copied = h.carried(layout.headers[0], (*h.CHARACTER_SET, *h.PATIENT_AND_STUDY))
    return Identity(
        sources=[(header.uid, digest_of[header.uid]) for header in layout.headers],
        patient_and_study=h.encoded(copied),
        model=model.name,
        version=model.version,
        weights_sha256=model.weights_sha256,
        parameters=request.parameters,
        output=request.output,
        edition=request.edition,
        runtime=getattr(model, "runtime", ""),
    )


def _facts(model: Model, stack: Stack, layout: Layout) -> Mapping[str, object]:
    return {
        "stack": stack.key,
        "model": model.name,
        "version": model.version,
        "weights_sha256": model.weights_sha256,
        "runtime": getattr(model, "runtime", ""),
        "gap_mm": round(layout.gap_mm, 4),
    }


def _name_contrast(record: JobRecord, layout: Layout) -> None:
    said = contrast_of_series(header.values for header in layout.headers)
    record.facts["contrast"] = said.values[0]
    if said.values == ("yes",):
        record.notes.append(f"a series with contrast ({said.where})")


def _notes_on(layout: Layout) -> list[str]:
    """Notes from the headers of a stack alone."""
    headers = layout.headers
    return [*layout.notes, *differences(headers), *oddities(headers), *padding_notes(headers)]
