"""The rule tester: which routes take a series or some files, and what its geometry allows."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from fastapi import UploadFile

from node.web import aside, trial
from node.web.parts import Parts
from node.web.problems import Problem
from node.web.shield import FILE_BOUNDS, MOST_FILES
from node.web.trial import Question, Tried
from storage.archive import newest_arrival
from storage.errors import NotFound, WrongState
from storage.files import UPLOADS, scratch_folder

TRY = "try rules"  # an audit event


def try_series(
    parts: Parts, who: str, series_uid: str, called_ae: str = "", calling_ae: str = ""
) -> Tried:
    """What the routes say to a received series, brought as it was or by somebody else.

    It is an audit event: where a route asks for a patient's attribute, the answer repeats it.
    """
    arrival = newest_arrival(parts.database, series_uid)
    if arrival is None:
        raise NotFound(f"no series {series_uid} was received")
    latest: dict[str, Path] = {}
    for instance in parts.store.archive.instances(arrival.id):  # the newest version first
        if instance.path is not None:
            latest.setdefault(instance.instance_uid, parts.store.files.path(instance.path))
    if not latest:
        raise WrongState(f"the files of series {series_uid} are no longer kept")
    parts.store.audit.record(who, TRY, f"series {series_uid}")
    return _tried(
        parts,
        tuple(latest.values()),
        called_ae or arrival.called_ae,
        calling_ae or arrival.calling_ae,
    )


def try_files(
    parts: Parts,
    who: str,
    files: Sequence[UploadFile],
    called_ae: str = "",
    calling_ae: str = "",
) -> Tried:
    """What the routes say to files that somebody has dropped; they are not kept."""
    if not 1 <= len(files) <= MOST_FILES:
        said = f"These are {len(files)} files: {FILE_BOUNDS}."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, said)
    node_ae = parts.config().node.ae_title
    parts.store.audit.record(who, TRY, "files", {"files": len(files)})
    with _written(parts, files) as paths:
        return _tried(parts, paths, called_ae or node_ae, calling_ae)


@contextmanager
def _written(parts: Parts, files: Sequence[UploadFile]) -> Iterator[tuple[Path, ...]]:
    """The files on disk, for this block only, under names of ours."""
    with scratch_folder(parts.store.files, UPLOADS, parts.settings.node_id) as folder:
        paths = []
        for number, file in enumerate(files):
            path = folder / f"{number}.dcm"
            with path.open("wb") as kept:
                shutil.copyfileobj(file.file, kept)
            paths.append(path)
        yield tuple(paths)


def _tried(parts: Parts, paths: tuple[Path, ...], called_ae: str, calling_ae: str) -> Tried:
    settings = parts.config()
    question = Question(
        paths=paths,
        called_ae=called_ae,
        calling_ae=calling_ae,
        node_ae=settings.node.ae_title,
        routes=settings.routes,
    )
    return aside.ask(trial.tried, question, log_as_json=parts.settings.log_as_json)
