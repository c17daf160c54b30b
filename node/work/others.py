"""What else was received that speaks against processing a series: a mix-up, or thinner slices."""

from collections.abc import Iterable, Sequence
from functools import cached_property

from inference import geometry, twins
from inference.errors import Reason
from inference.request import Output
from inference.stacks import Header, Stack, newest, patient_mismatch, read_headers, stacks_of
from node.work.infer import sources
from storage.archive import Archive
from storage.files import Files
from storage.records import Arrival, Instance, JobState, Verdict

OTHER_STUDY = (
    "The same Series Instance UID was received in another study too, so the images may belong to "
    "two patients. Find out which study is right, then requeue or cancel."
)
# What a thinner series may have against it that makes no difference here.
ANY_SLICES = Output(across_missing="leave")


class Others:
    """Read when somebody asks, once an arrival: most studies have nothing to read."""

    def __init__(self, archive: Archive, files: Files, arrival: Arrival) -> None:
        self._archive = archive
        self._files = files
        self._arrival = arrival

    def mixed_up(self, stacks: Iterable[Stack]) -> Verdict | None:
        """Held where the Series UID of these stacks stands for two studies or two patients."""
        sentence = OTHER_STUDY if self._archive.other_studies(self._arrival) else ""
        if not sentence:
            theirs = self._stacks(self._archive.brought_by_others(self._arrival))
            headers = [h for stack in (*stacks, *theirs) for h in newest(stack.headers)]
            sentence = patient_mismatch(headers)
        return Verdict(JobState.HELD, Reason.PATIENT_MISMATCH, sentence) if sentence else None

    def thinner(self, stack: Stack) -> Verdict | None:
        """Refused where the study holds a received stack that makes generated slices pointless."""
        found = twins.acquired_thin(stack, self._beside)
        if found is None:
            return None
        return Verdict(JobState.REFUSED, found.reason, found.sentence)

    def outdone(
        self, instances: Sequence[Instance], key: str, thin: Sequence[Stack]
    ) -> Verdict | None:
        """Refused where these stacks, received just now, make a stack of another job pointless."""
        usable = [stack for stack in thin if geometry.verdict(stack, ANY_SLICES) is None]
        thick = [stack for stack in self._stacks(instances) if stack.key == key]
        for stack in thick if usable else ():
            found = twins.acquired_thin(stack, usable)
            if found is not None:
                return Verdict(JobState.REFUSED, found.reason, found.sentence)
        return None

    @cached_property
    def _beside(self) -> list[Stack]:
        """The stacks of slices in the other series of the study; no result of any node."""
        return [
            stack
            for instances in self._archive.beside(self._arrival)
            for stack in self._stacks(instances)
            if geometry.verdict(stack, ANY_SLICES) is None
        ]

    def _stacks(self, instances: Sequence[Instance]) -> list[Stack]:
        headers: list[Header] = read_headers(sources(instances, self._files))
        return stacks_of(headers)
