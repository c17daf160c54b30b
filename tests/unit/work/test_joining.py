"""One series that several peers bring: what is joined, what stays a part, and what is held."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from inference.dataset import Header
from inference.stacks import read_headers, stacks_of
from node.config import Config
from node.work.joining import AskedStack, stacks_asked_by
from storage.enqueue import requesters
from storage.records import Arrival, ArrivalState, Brought, Instance, Job, JobState
from tests import phantoms
from tests.mr_series import as_mr
from tests.phantoms import Patient, Series
from tests.unit.inference.case import assign
from tests.unit.storage.stored import Stored
from tests.unit.work.test_arrivals import Site, route

VOLUME = Series(slices=9, spacing_mm=5.0)
ODD, EVEN = range(0, 9, 2), range(1, 9, 2)
WHOLE = range(9)


@dataclass
class Peers:
    """A node's arrivals, and peers that bring slices of one volume, each by its number."""

    site: Site
    volumes: Iterator[int] = field(default_factory=lambda: count(1))

    def bring(
        self, calling_ae: str, slices: Sequence[int], series: Series = VOLUME, **changed: object
    ) -> None:
        """Receive these slices of a series from a peer; the series may be changed for it."""
        made = replace(series, **changed)  # type: ignore[arg-type]
        files = phantoms.write(self.site.folder / f"volume {next(self.volumes)}", made)
        for index in slices:
            self.site.keep(files[index], calling_ae=calling_ae)

    def jobs(self, seconds: float = 30.0) -> list[Job]:
        return self.site.sweep(seconds)

    def uids(self, job: Job) -> list[int]:
        """The slices that a job works on, by their places in the volume."""
        uids = [phantoms.uid(VOLUME.seed, VOLUME.number, "instance", index) for index in WHOLE]
        used = {i.instance_uid for i in self.site.stored.queue.instances(job.id)}
        return [index for index, uid in enumerate(uids) if uid in used]

    def requesters(self, job: Job) -> set[str]:
        """The calling AE titles that get the result of a job."""
        with self.site.stored.database.reading() as db:
            return set(requesters(db, job.id).values())


@pytest.fixture
def peers(stored: Stored, settings: Config, tmp_path: Path) -> Iterator[Peers]:
    site = Site(stored, settings, tmp_path / "sent")
    site.follow(route(destinations=["sender"]))
    yield Peers(site)


def of(job: Job) -> tuple[str, str]:
    return str(job.state), job.reason


def finish(peers: Peers, series_uid: str = "2.25.1") -> Job:
    """Let a worker make what is due, and everybody have it."""
    job = peers.site.stored.claim()
    made = replace(peers.site.stored.derive(job, series_uid), mark=job.mark)
    peers.site.stored.queue.succeed(job, made)
    for destination in peers.site.stored.queue.get(job.id).destinations:
        peers.site.stored.deliver(destination)
    return peers.site.stored.queue.get(job.id)


SPLITS = {
    "interleaved": (ODD, EVEN),
    "halves": (range(5), range(5, 9)),
    "overlapping halves": (range(6), range(4, 9)),
    "a hole": ((0, 1, 2, 5, 6, 7, 8), (3, 4)),
    "three peers": (range(0, 9, 3), range(1, 9, 3), range(2, 9, 3)),
    "a part that goes on beyond": (range(6), range(3, 9)),
}
CALLING = ("CT1", "CT2", "CT3")


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_parts_that_come_at_once_are_one_job_that_all_who_brought_them_get(
    peers: Peers, split: Sequence[Sequence[int]]
) -> None:
    for calling_ae, slices in zip(CALLING, split, strict=False):
        peers.bring(calling_ae, slices)
    (job,) = peers.jobs()
    assert (of(job), peers.uids(job)) == (("queued", ""), [*WHOLE])
    assert peers.requesters(job) == set(CALLING[: len(split)])
    assert job.destinations[0] == "pacs"  # which sends as CT1, who came first


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_what_comes_hours_after_a_result_makes_a_revision_of_it_for_all(
    peers: Peers, split: Sequence[Sequence[int]]
) -> None:
    for calling_ae, slices in zip(CALLING, split, strict=False):
        peers.bring(calling_ae, slices)
        peers.jobs(4 * 3600.0)
        finish(peers, f"2.25.{calling_ae[-1]}")
    *earlier, last = peers.jobs(0.0)
    assert [job.state for job in earlier] == [JobState.SUCCEEDED] * (len(split) - 1)
    assert (peers.uids(last), last.mark.revision) == ([*WHOLE], len(split))
    assert peers.requesters(last) == set(CALLING[: len(split)])
    assert all(peers.requesters(job) == set() for job in earlier)


@pytest.mark.parametrize("calling_ae", ["CT1", "WORKSTATION"])
@pytest.mark.parametrize("slices", [(3, 4), WHOLE])
def test_what_a_held_job_misses_may_come_from_any_peer(
    peers: Peers, calling_ae: str, slices: Sequence[int]
) -> None:
    peers.bring("CT1", (0, 1, 2, 5, 6, 7, 8))
    peers.jobs()
    held = peers.site.stored.hold()
    peers.bring(calling_ae, slices)
    first, second = peers.jobs()
    assert (first.id, *of(first)) == (held.id, "cancelled", "SUPERSEDED")
    assert f"job {second.id}" in first.sentence
    assert (of(second), peers.uids(second)) == (("queued", ""), [*WHOLE])
    assert peers.requesters(second) == {"CT1", calling_ae}


def test_a_peer_whose_part_has_a_hole_gets_the_result_of_the_whole(peers: Peers) -> None:
    peers.bring("WORKSTATION", WHOLE)
    peers.jobs()
    finish(peers)
    peers.bring("CT1", (0, 1, 2, 5, 6, 7, 8))
    (job,) = peers.jobs()
    assert peers.requesters(job) == {"WORKSTATION", "CT1"}
    # Who has had the result is not sent it once more.
    states = dict(peers.site.stored.states(job.id))
    assert (states["sender WORKSTATION"], states["pacs"]) == ("sent", "queued")


@pytest.mark.parametrize("part", [range(2, 6), range(4), WHOLE])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_part_or_a_copy_stays_as_it_was_sent(
    peers: Peers, part: Sequence[int], is_first: bool
) -> None:
    senders = {"CT1": WHOLE, "WORKSTATION": part}
    for calling_ae in sorted(senders, reverse=is_first):
        peers.bring(calling_ae, senders[calling_ae])
        jobs = peers.jobs()
    wanted = {peers.requesters(job).__repr__(): peers.uids(job) for job in jobs}
    if part == WHOLE:
        (both,) = jobs
        assert peers.requesters(both) == set(senders)
    else:
        assert wanted == {"{'CT1'}": [*WHOLE], "{'WORKSTATION'}": [*part]}
    assert {job.state for job in jobs} == {JobState.QUEUED}


def test_a_copy_under_other_instance_uids_stays_as_it_was_sent(peers: Peers) -> None:
    peers.bring("CT1", WHOLE)
    peers.bring("WORKSTATION", WHOLE, edit=_renamed)
    jobs = peers.jobs()
    assert [len(peers.site.stored.queue.instances(job.id)) for job in jobs] == [9, 9]
    assert [peers.requesters(job) for job in jobs] == [{"CT1"}, {"WORKSTATION"}]


def _renamed(made: Dataset, index: int) -> None:
    made.SOPInstanceUID = phantoms.uid("renamed", index)


def test_who_sends_its_part_again_is_sent_the_joined_result_again(peers: Peers) -> None:
    peers.bring("CT1", ODD)
    peers.bring("CT2", EVEN)
    peers.jobs()
    job = finish(peers)
    for calling_ae, slices in (("CT1", ODD), ("CT2", EVEN)):
        peers.bring(calling_ae, slices)
        assert [job.id for job in peers.jobs()] == [job.id]
    states = dict(peers.site.stored.states(job.id))
    assert states == {"pacs": "queued", "sender CT2": "queued"}


def test_the_route_of_who_came_first_counts(peers: Peers) -> None:
    of_first = route("of-ct1", calling_ae_title="CT1", factor=3)
    peers.site.follow(of_first, route("of-ct2", calling_ae_title="CT2", factor=2))
    peers.bring("CT1", ODD)
    peers.jobs()
    peers.bring("CT2", EVEN)
    jobs = peers.jobs()
    assert [job.route for job in jobs] == ["of-ct1", "of-ct1"]
    assert peers.requesters(jobs[-1]) == {"CT1", "CT2"}


def test_where_no_route_takes_the_first_the_next_one_counts(peers: Peers) -> None:
    peers.site.follow(route("of-ct2", calling_ae_title="CT2"))
    peers.bring("CT1", ODD)
    peers.bring("CT2", EVEN)
    (job,) = peers.jobs()
    assert (job.route, peers.uids(job)) == ("of-ct2", [*WHOLE])


def test_an_arrival_waits_for_the_other_peer_that_sends_the_series_but_not_for_ever(
    peers: Peers,
) -> None:
    peers.bring("CT1", ODD)
    for index in EVEN:
        peers.site.stored.clock.now += 20.0
        peers.bring("CT2", (index,))
        assert peers.jobs(0.0) == []
    (job,) = peers.jobs(30.0)
    assert peers.uids(job) == [*WHOLE]
    other = replace(VOLUME, seed="slow peer")
    peers.bring("CT1", ODD, other)
    most = 30.0 + peers.site.settings.completion.open_association_seconds
    for _ in range(int(most / 20.0) + 1):
        peers.site.stored.clock.now += 20.0
        peers.bring("CT2", EVEN[:1], other)
        peers.site.arrivals.sweep()
    assert len(peers.jobs(0.0)) == 2  # CT1 has waited long enough


def test_two_patients_from_two_peers_are_held_and_the_sentence_names_the_peers(
    peers: Peers,
) -> None:
    peers.bring("CT1", ODD)
    peers.jobs()
    peers.bring("CT2", EVEN, patient=Patient("Another^One", "PH-0002"))
    first, second = peers.jobs()
    assert of(first) == of(second) == ("held", "PATIENT_MISMATCH")
    assert second.sentence.endswith("They came from CT1 and CT2.")


def test_two_studies_from_two_peers_are_held_and_the_sentence_names_the_other(
    peers: Peers,
) -> None:
    peers.bring("CT1", ODD)
    peers.jobs()
    peers.bring("CT2", EVEN, study="another")
    *_, second = peers.jobs()
    assert of(second) == ("held", "PATIENT_MISMATCH")
    assert "in another study too, from CT1," in second.sentence


def _moved(made: Dataset, index: int) -> None:
    x, y, z = made.ImagePositionPatient
    made.ImagePositionPatient = [x, y, f"{float(z) + 2.0:.1f}"]


def _turned(made: Dataset, index: int) -> None:
    made.ImageOrientationPatient = [1, 0, 0, 0, "0.98", "0.199"]


DISAGREEING: dict[str, tuple[Callable[[Dataset, int], None], str]] = {
    "pixel spacing": (assign(PixelSpacing=["0.9", "0.9"]), "Pixel Spacing"),
    "orientation": (_turned, "Image Orientation (Patient)"),
    "frame of reference": (assign(FrameOfReferenceUID="1.2.3"), "Frame of Reference UID"),
    "places": (_moved, "Two acquisitions are interleaved"),
}


@pytest.mark.parametrize("slices", [EVEN, (7, 8), (3,)], ids=["between", "beyond", "one"])
@pytest.mark.parametrize("what", DISAGREEING)
def test_slices_of_another_peer_that_do_not_fit_are_held_and_the_sentence_names_it(
    peers: Peers, what: str, slices: Sequence[int]
) -> None:
    edit, word = DISAGREEING[what]
    peers.bring("CT1", range(7) if slices == (7, 8) else ODD)
    peers.jobs()
    finish(peers)
    peers.bring("CT2", slices, edit=edit)
    done, second = peers.jobs()
    assert of(done) == ("succeeded", "")
    if what == "places" and slices != EVEN:
        return  # an uneven step says nothing
    assert of(second) == ("held", "PEERS_DISAGREE")
    assert "do not fit those of" in second.sentence
    assert "CT1" in second.sentence
    assert word in second.sentence


def test_mr_slices_of_two_peers_are_joined_or_held_as_those_of_ct_are(peers: Peers) -> None:
    mask = {"model": "brain", "factor": None, "match": {"Modality": "MR"}}
    peers.site.follow(route(**mask, destinations=["sender"]))
    peers.bring("CT1", range(5), edit=lambda made, index: as_mr(made))
    peers.bring("CT2", range(5, 9), edit=lambda made, index: as_mr(made))
    (job,) = peers.jobs()
    assert peers.uids(job) == [*WHOLE]
    assert peers.requesters(job) == {"CT1", "CT2"}


def test_mr_slices_of_two_peers_that_lie_between_each_other_are_held(peers: Peers) -> None:
    mask = {"model": "brain", "factor": None, "match": {"Modality": "MR"}}
    peers.site.follow(route(**mask, destinations=["sender"]))

    def moved(made: Dataset, index: int) -> None:
        as_mr(made)
        _moved(made, index)

    peers.bring("CT1", ODD, edit=lambda made, index: as_mr(made))
    peers.jobs()
    finish(peers)
    peers.bring("CT2", EVEN, edit=moved)
    _, second = peers.jobs()
    assert of(second) == ("held", "PEERS_DISAGREE")


def test_another_kind_of_image_from_another_peer_is_a_stack_of_its_own(peers: Peers) -> None:
    peers.bring("CT1", range(5), kernel="B30f")
    peers.bring("CT2", range(4, 9), kernel="B70f", edit=_renamed)
    jobs = peers.jobs()
    assert [of(job) for job in jobs] == [("queued", "")] * 2
    assert [peers.requesters(job) for job in jobs] == [{"CT1"}, {"CT2"}]


def test_the_other_stacks_of_a_peer_keep_their_jobs_when_one_is_joined(peers: Peers) -> None:
    peers.bring("CT1", range(5))
    peers.bring("CT1", WHOLE, kernel="B70f", edit=_renamed)
    peers.jobs()
    peers.bring("CT2", range(5, 9))
    jobs = peers.jobs()
    by_state = {(job.stack, *of(job)) for job in jobs}
    assert sum(state == "queued" for _, state, _ in by_state) == 2
    assert sum(reason == "SUPERSEDED" for _, _, reason in by_state) == 1
    (joined,) = [job for job in jobs if peers.requesters(job) == {"CT1", "CT2"}]
    assert peers.uids(joined) == [*WHOLE]


# Whatever is split among whom, nothing received lies in a gap of what is processed.

SMALL = replace(VOLUME, slices=6, rows=4, columns=4)
SHARES = st.sets(st.integers(0, SMALL.slices - 1), min_size=1).map(frozenset)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Header]:
    return read_headers(phantoms.write(tmp_path_factory.mktemp("volume"), SMALL))


@settings(deadline=None)  # on a machine that others use too
@given(shares=st.lists(SHARES, min_size=2, max_size=4))
def test_no_received_slice_lies_in_a_gap_of_a_stack_that_is_asked_for(
    volume: Sequence[Header], shares: Sequence[frozenset[int]]
) -> None:
    place_of = {header.uid: index for index, header in enumerate(volume)}
    each: list[Brought] = []
    received: frozenset[int] = frozenset()
    for number, share in enumerate(shares):
        received |= share
        each.append(brought(number, share, volume))
        for asked in asked_by(each[-1], each, share, received - share, volume):
            assert asked.disagreement == ""
            places = {place_of[header.uid] for header in asked.stack.headers}
            between = {place for place in received if min(places) < place < max(places)}
            assert between <= places
            assert share & places


def brought(number: int, share: frozenset[int], volume: Sequence[Header]) -> Brought:
    arrival = Arrival(
        id=number,
        series_id=1,
        study_uid="1",
        series_uid="2",
        calling_ae=f"CT{number}",
        called_ae="MIDSLICE",
        state=ArrivalState.ARRIVING,
        first_at=0.0,
        last_at=0.0,
        completed_at=None,
        instances=len(share),
        open_associations=0,
        released=1,
        aborted=0,
        own=False,
    )
    instances = tuple(
        Instance(index, header.uid, "", "", "", 1, str(header.path), float(number))
        for index, header in enumerate(volume)
        if index in share
    )
    return Brought(arrival, instances)


def asked_by(
    own: Brought,
    each: Sequence[Brought],
    share: frozenset[int],
    others: frozenset[int],
    volume: Sequence[Header],
) -> list[AskedStack]:
    headers, theirs = ([volume[index] for index in sorted(part)] for part in (share, others))
    return stacks_asked_by(own, each, stacks_of(headers), headers, theirs)
