"""Files of a job that are no derived series: who makes them, and what is said of each."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from inference import header as h
from inference.families.family import Task
from inference.header import Elements, text_of
from inference.request import File, ObjectKind
from inference.results.derived import frame_uid, local_time
from inference.results.making import Algorithm, Making
from inference.runner import Run
from inference.uids import node_uid


def making_of(job: Run, task: Task, main_series: str) -> Making:
    """The maker of all results of a job.

    `main_series` is the place of that one of its series whose UID stands for all of them: the job
    is known by it.
    """
    request, model = job.request, task.model
    revision = f"rev {request.mark.revision}" if request.mark.revision > 1 else ""
    words = filter(None, (revision, request.output.label, request.mark.route))
    return Making(
        algorithm=Algorithm(
            model.name,
            model.version,
            model.weights_sha256,
            str(getattr(model, "operating_point", "")),
        ),
        uid_of=lambda place: (
            task.series_uid if place == main_series else task.maker.instance(place)
        ),
        at=local_time(request.started_at, task.layout.headers[0]),
        station_name=request.station_name,
        creator_uid=node_uid(request.secret, request.station_name),
        frame_uid=frame_uid(task.layout, request.secret),
        content_qualification=request.output.content_qualification,
        label=" ".join(words),
        place=request.mark.place,
    )


def written(
    folder: Path,
    name: str,
    elements: Elements,
    kind: ObjectKind = "image",
    *,
    is_supplement: bool = False,
) -> File:
    """Write one result, bring it to the disk, and say what it is."""
    digest = h.write_file(folder / name, elements)
    return File(
        name=name,
        instance_uid=text_of(elements, "SOPInstanceUID"),
        sop_class_uid=text_of(elements, "SOPClassUID"),
        digest=digest,
        generated=False,
        series_uid=text_of(elements, "SeriesInstanceUID"),
        kind=kind,
        is_supplement=is_supplement,
    )


def facts_of(files: Iterable[File]) -> list[Mapping[str, object]]:
    """For the record of a job: the objects that it made, each in a series of its own."""
    return [
        {"kind": file.kind, "sop_class_uid": file.sop_class_uid, "series_uid": file.series_uid}
        for file in files
    ]
