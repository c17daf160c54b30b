"""Drafts: what a model makes of the gaps of a series that still arrives, and when it counts.

A draft counts for what is the same to the bit: the pixels and places of the same instances, the
same gap, model and limits. Whatever comes late, comes again or comes by another route has another
key, and is made as if there were no drafts.
"""

import hashlib
import threading
from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

import numpy as np

from inference.geometry import Layout
from inference.model import Draft, Limits, Measured, Model, Prediction, Step, Window

Key = bytes
SURVEY_BYTES = 4096  # of a dictionary of a dozen numbers, roughly


class Drafts:
    """Drafts and surveys of a few series, in memory, up to a fixed size."""

    def __init__(self, most_bytes: int) -> None:
        self._room = most_bytes
        self._made: dict[str, dict[Key, Draft | Measured]] = {}  # by Series Instance UID
        self._lock = threading.Lock()

    @property
    def has_room(self) -> bool:
        """True where a further draft is kept."""
        return self.nbytes < self._room

    @property
    def nbytes(self) -> int:
        """The memory that all of them take."""
        with self._lock:
            made = [draft for drafts in self._made.values() for draft in drafts.values()]
        return sum(it.nbytes if isinstance(it, Draft) else SURVEY_BYTES for it in made)

    def holds(self, series_uid: str) -> bool:
        """True where anything was made of a series."""
        with self._lock:
            return series_uid in self._made

    def find(self, series_uid: str, key: Key) -> Draft | Measured | None:
        """What was made of that step; None where nothing was, or of something else."""
        with self._lock:
            return self._made.get(series_uid, {}).get(key)

    def keep(self, series_uid: str, key: Key, made: Draft | Measured) -> None:
        """Keep what was made, where there is room."""
        if self.has_room:
            with self._lock:
                self._made.setdefault(series_uid, {})[key] = made

    def keep_only(self, series_uids: Collection[str]) -> None:
        """Forget all other series."""
        with self._lock:
            self._made = {uid: made for uid, made in self._made.items() if uid in series_uids}


class KeptDrafts(Protocol):
    """A place for drafts."""

    def holds(self, series_uid: str) -> bool: ...

    def find(self, series_uid: str, key: Key) -> Draft | Measured | None: ...

    def keep(self, series_uid: str, key: Key, made: Draft | Measured) -> None: ...


class StackDrafts:
    """The drafts of one stack by one model."""

    def __init__(self, drafts: KeptDrafts, model: Model, layout: Layout) -> None:
        first = layout.headers[0]
        self.model = model
        self.used = 0  # steps of which something had been made
        self._drafts = drafts
        self._series_uid = first.text("SeriesInstanceUID")
        self._uids = [header.uid for header in layout.headers]
        self._of = (
            *(first.text("StudyInstanceUID"), self._series_uid),
            *(model.name, model.version, model.weights_sha256, getattr(model, "runtime", "")),
        )

    def run(self, step: Step, window: Window, limits: Limits) -> Prediction:
        """The prediction of a step, from what was made of it before where there is anything."""
        made = self._drafts.find(self._series_uid, self._key(step, window, limits))
        self.used += made is not None
        if isinstance(made, Draft):
            return self.model.run(step, replace(window, draft=made), limits)
        return self.model.run(step, window, limits) if made is None else Prediction(measured=made)

    def make(self, step: Step, window: Window, limits: Limits) -> Prediction:
        """Keep the draft of a gap, or what a survey measures; the survey is the result."""
        key = self._key(step, window, limits)
        made = self._drafts.find(self._series_uid, key)
        if made is not None:
            return Prediction() if isinstance(made, Draft) else Prediction(measured=made)
        if step.survey is not None:
            surveyed = self.model.run(step, window, limits)
            self._drafts.keep(self._series_uid, key, surveyed.measured)
            return surveyed
        draft: Draft = self.model.draft(step, window, limits)  # type: ignore[attr-defined]
        self._drafts.keep(self._series_uid, key, draft)
        return Prediction()

    def _key(self, step: Step, window: Window, limits: Limits) -> Key:
        """SHA-256 over all that the model is shown, but for what it is told of surveys."""
        geometry, needs, first = window.geometry, list(step.needs), step.needs[0]
        size = geometry.rows, geometry.columns, geometry.pixel_spacing, geometry.thickness_mm
        gap = None if step.gap is None else step.gap - first
        survey = None if step.survey is None else step.survey - first
        asked = [index - first for index in needs], gap, step.fractions, survey
        uids = [self._uids[index] for index in needs]
        digest = hashlib.sha256(repr((self._of, size, asked, uids, limits)).encode())
        places = geometry.positions[needs], geometry.distances_mm[needs], geometry.orientation
        for shown in (*places, *(window.slices[index] for index in needs)):
            digest.update(np.ascontiguousarray(shown).data)
        return digest.digest()
