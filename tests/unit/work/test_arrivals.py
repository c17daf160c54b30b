"""From received instances to jobs: a real archive, made series, and a clock in the test's hand."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from inference.request import Derived
from node import wording
from node.config import Config, Destination, Route
from node.dicom.handlers import identify_file
from node.errors import UsageError
from node.rules.reasons import OF_A_NODE, why_no_job
from node.work.arrivals import RETRY_SECONDS, Arrivals, Rules
from storage.archive import newest_arrival
from storage.enqueue import UNREADABLE
from storage.errors import Busy, NotFound, WrongState
from storage.queries.overview import not_closed
from storage.records import (
    Arrival,
    ArrivalState,
    ClosingFault,
    Enqueued,
    Job,
    JobState,
    KeptInstance,
    NewJob,
    Peer,
    Received,
    Requeued,
)
from storage.site import notices
from storage.site.audit import Audit
from tests import phantoms
from tests.jobs.test_bad_input import OF_MODEL, SMALL, outcome_of
from tests.jobs.test_bad_input import THIN as THIN_STACK
from tests.phantoms import Patient, Series
from tests.unit.inference.case import assign
from tests.unit.storage.stored import Stored

CT = {"Modality": "CT"}
PACS = Destination(name="pacs", ae_title="PACS", host="192.0.2.1", port=104, sends_as=("CT1",))
THICK = Series(slices=6, spacing_mm=5.0)
THIN = Series(slices=26, spacing_mm=1.0, number=4)
QUIET_SECONDS = 30.0


def route(name: str = "ct-slices", **changes: object) -> Route:
    values: dict[str, object] = {"name": name, "model": "linear", "factor": 2, "match": CT}
    return Route.model_validate(values | {"destinations": ["pacs"]} | changes)


@dataclass
class Site:
    """A node's arrivals, and the scanner that sends to it."""

    stored: Stored
    settings: Config
    folder: Path
    never: dict[str, str] = field(default_factory=dict)
    of_tests: dict[str, Route] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stored = self.stored
        self.arrivals = Arrivals(
            stored.archive,
            stored.queue,
            stored.files,
            Rules("MIDSLICE", self.settings.completion, (route(),), (PACS,), {"linear": "v1"}),
            stored.clock,
            never=lambda series_uid: self.never.get(series_uid, ""),
            self_tests=self.of_tests,
        )

    def follow(self, *routes: Route, model: str = "v1") -> None:
        """Read the configuration again, with other routes or another release of the model."""
        models = {"linear": model}
        self.arrivals.rules = replace(self.arrivals.rules, routes=routes, models=models)

    def receive(
        self, series: Series = THICK, *, calling_ae: str = "CT9", association: int | None = None
    ) -> str:
        """Receive a made series; its Series Instance UID."""
        for path in phantoms.write(self.folder / str(self.stored.numbers()), series):
            kept = self.keep(path, calling_ae=calling_ae, association=association)
        return kept.series_uid

    def keep(
        self, path: Path, *, calling_ae: str = "CT9", association: int | None = None
    ) -> Received:
        """Receive one file, as the SCP hands it over."""
        incoming = self.stored.files.incoming / f"{self.stored.numbers()}.dcm"
        shutil.copy(path, incoming)
        received = identify_file(incoming)
        assert received is not None
        peer = Peer(calling_ae, "MIDSLICE", association)
        assert isinstance(self.stored.archive.keep(received, peer, incoming), KeptInstance)
        return received

    def sweep(self, seconds: float = QUIET_SECONDS) -> list[Job]:
        """Let this much time pass, and look; all jobs, the oldest first."""
        self.stored.clock.now += seconds
        self.arrivals.sweep()
        return list(reversed(self.stored.jobs()))

    def arrival(self, series_uid: str) -> Arrival:
        arrival = newest_arrival(self.stored.database, series_uid)
        assert arrival is not None
        return arrival


@pytest.fixture
def site(stored: Stored, settings: Config, tmp_path: Path) -> Iterator[Site]:
    yield Site(stored, settings, tmp_path / "sent")


def states(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    return [(job.state, job.reason) for job in jobs]


def test_a_series_that_is_quiet_is_complete_and_its_route_asks_for_a_job(site: Site) -> None:
    series_uid = site.receive()
    assert site.sweep(QUIET_SECONDS - 1.0) == []
    (job,) = site.sweep(1.0)
    assert (job.state, job.kind, job.route, job.model) == ("queued", "infer", "ct-slices", "linear")
    assert (job.series_uid, job.destinations, job.priority) == (series_uid, ("pacs",), 5)
    assert job.parameters["factor"] == 2
    assert len(site.stored.queue.instances(job.id)) == THICK.slices
    arrival = site.arrival(series_uid)
    assert arrival.state is ArrivalState.COMPLETE
    assert arrival.evidence["rule"] == "quiet"


class Failing(dict[str, str]):
    """Says of one series who excluded it, and fails for this many times before."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def get(self, series_uid: str, default: str = "") -> str:  # type: ignore[override]
        self.left -= 1
        if self.left >= 0:
            raise KeyError(series_uid)
        return default


def told(site: Site) -> list[tuple[str, str]]:
    notices_ = notices.address(site.stored.database, site.stored.clock(), (), ())
    return [(notice.event, str(notice.facts["sentence"])) for notice in notices_]


def test_a_series_that_fails_to_be_closed_is_told_to_a_person_until_it_is(site: Site) -> None:
    site.never = Failing(times=5)
    series_uid = site.receive()
    for _ in range(2):
        site.sweep()
    assert told(site) == []
    site.sweep()
    first = site.stored.clock.now - 2 * QUIET_SECONDS
    ((event, sentence),) = told(site)
    assert event == "attention"
    assert sentence.startswith("A series of 6 instances from CT9 (arrival 1) is complete, but not")
    assert "(KeyError)" in sentence
    assert series_uid not in sentence
    assert ClosingFault.of(site.arrival(series_uid)) == ClosingFault("KeyError", first)
    assert [arrival.series_uid for arrival in not_closed(site.stored.database)] == [series_uid]
    for _ in range(2):  # nobody is told twice, also where the node was started again
        site.__post_init__()
        site.sweep()
    assert told(site) == []
    (job,) = site.sweep()
    assert job.state == "queued"
    assert not_closed(site.stored.database) == ()
    assert site.arrival(series_uid).evidence["rule"] == "quiet"


def test_one_failure_is_told_to_nobody_and_stops_no_other_series(site: Site) -> None:
    site.never = Failing(times=1)
    site.receive()
    site.receive(replace(THICK, number=9, seed="other"))
    assert len(site.sweep()) == 1
    assert len(site.sweep()) == 2
    assert told(site) == []


def test_an_open_association_makes_the_node_wait_longer(site: Site) -> None:
    number = site.stored.archive.associated("CT9", "MIDSLICE", "192.0.2.7")
    site.receive(association=number)
    assert site.sweep(QUIET_SECONDS) == []
    site.stored.archive.dissociated(number, "released")
    assert len(site.sweep(0.0)) == 1


def test_a_node_that_was_down_waits_a_quiet_period_from_its_start(site: Site) -> None:
    site.receive()
    site.stored.clock.now += 3600.0
    site.__post_init__()
    assert site.sweep(0.0) == []
    assert len(site.sweep(QUIET_SECONDS)) == 1


def test_every_route_that_matches_asks_and_no_other(site: Site) -> None:
    site.follow(route(), route("twice"), route("mr", match={"Modality": "MR"}))
    site.receive()
    assert [job.route for job in site.sweep()] == ["ct-slices", "twice"]


def test_a_series_without_a_route_is_kept_and_makes_no_job(site: Site) -> None:
    site.follow()
    series_uid = site.receive()
    assert site.sweep() == []
    assert site.arrival(series_uid).state is ArrivalState.COMPLETE


def test_a_series_that_is_sent_again_asks_for_nothing_new(site: Site) -> None:
    site.receive()
    (first,) = site.sweep()
    site.receive()
    (again,) = site.sweep()
    assert (again.id, again.key) == (first.id, first.key)


@pytest.mark.parametrize("change", ["model", "route", "slice"])
def test_whatever_changes_the_result_makes_another_job(site: Site, change: str) -> None:
    site.receive()
    (first,) = site.sweep()
    if change == "model":
        site.follow(route(), model="v2")
    elif change == "route":
        site.follow(route(factor=3))
    site.receive(replace(THICK, slices=7) if change == "slice" else THICK)
    *_, second = site.sweep()
    assert second.key != first.key
    assert second.state is JobState.QUEUED
    assert site.stored.queue.get(first.id).state is JobState.CANCELLED  # the newer one replaces it


def test_sender_means_the_destination_that_the_series_came_from(site: Site) -> None:
    site.follow(route(destinations=["sender"]))
    site.receive(calling_ae="CT1")
    site.receive(replace(THICK, seed="another"), calling_ae="CT8")
    assert [job.destinations for job in site.sweep()] == [("pacs",), ("sender CT8",)]


def test_localizers_stand_in_the_evidence_and_in_no_job(site: Site) -> None:
    series_uid = site.receive(replace(THICK, localizer=True))
    (job,) = site.sweep()
    assert len(site.stored.queue.instances(job.id)) == THICK.slices
    assert site.arrival(series_uid).evidence["set_aside"] == {"NOT_A_CT_SLICE": 1}
    # Before a worker has looked, and where none ever does, the job names them.
    assert wording.set_aside(job.record) == ["1 instance (image 99): The image is a localizer."]


def test_two_patients_under_one_series_uid_are_held(site: Site) -> None:
    site.receive()
    site.sweep()
    other = replace(THICK, patient=Patient("Another^One", "PH-0002"))
    site.receive(replace(other, edit=lambda made, index: _renumber(made, index)))
    jobs = site.sweep()
    assert {(state, reason) for state, reason in states(jobs)} == {("held", "PATIENT_MISMATCH")}


def _renumber(made: Dataset, index: int) -> None:
    made.SOPInstanceUID = phantoms.uid("another patient", index)


def test_one_series_uid_in_two_studies_is_held(site: Site) -> None:
    site.receive()
    site.sweep()
    site.receive(replace(THICK, study="another", edit=_renumber))
    jobs = site.sweep()
    assert all(state == "held" for state, _ in states(jobs))
    assert "in another study too" in jobs[-1].sentence


def test_thin_slices_of_the_study_refuse_a_job_unless_the_route_wants_it_all_the_same(
    site: Site,
) -> None:
    site.receive(THIN)
    site.sweep()
    site.follow(route(), route("despite", despite_thin=True))
    site.receive(THICK)
    jobs = [job for job in site.sweep() if job.series_uid != site.stored.queue.get(1).series_uid]
    by_route = {job.route: (job.state, job.reason) for job in jobs}
    assert by_route == {
        "ct-slices": ("refused", "ACQUIRED_THIN_SERIES_EXISTS"),
        "despite": ("queued", ""),
    }


def test_thin_slices_that_come_later_refuse_a_job_that_waits(site: Site) -> None:
    site.receive(THICK)
    (waiting,) = site.sweep()
    site.receive(THIN)
    site.sweep()
    refused = site.stored.queue.get(waiting.id)
    assert (refused.state, refused.reason) == ("refused", "ACQUIRED_THIN_SERIES_EXISTS")


def damaged(site: Site, series_uid: str) -> None:
    """Overwrite every file that is kept of the series."""
    for instance in site.stored.archive.instances(site.arrival(series_uid).id):
        assert instance.path is not None
        site.stored.files.path(instance.path).write_bytes(bytes(400))


def test_a_series_of_which_no_file_can_be_read_is_held_for_whoever_sent_it(site: Site) -> None:
    series_uid = site.receive()
    damaged(site, series_uid)
    (job,) = site.sweep()
    assert (job.state, job.reason, job.stack) == ("held", "PIXEL_DATA_ERROR", UNREADABLE)
    assert job.sentence.startswith(f"None of the {THICK.slices} received files")


def test_a_file_that_cannot_be_read_belongs_to_every_job(
    site: Site,
) -> None:
    series_uid = site.receive()
    first, *_ = site.stored.archive.instances(site.arrival(series_uid).id)
    assert first.path is not None
    site.stored.files.path(first.path).write_bytes(bytes(400))
    (job,) = site.sweep()
    assert first.id in {instance.id for instance in site.stored.queue.instances(job.id)}


def derived_by_node(made: Dataset, _index: int) -> None:
    """As the node's own results come back from a PACS."""
    made.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    made.SeriesInstanceUID = "2.25.7"


def test_the_nodes_own_result_that_comes_back_is_kept_and_never_processed(site: Site) -> None:
    stored = site.stored
    site.receive()
    (job,) = site.sweep()
    claimed = stored.claim()
    stored.queue.succeed(claimed, stored.derive(claimed, "2.25.7"))
    site.receive(replace(THICK, edit=derived_by_node))
    assert [job.id for job in site.sweep()] == [job.id]
    assert site.arrival("2.25.7").own


@pytest.mark.parametrize("model", SMALL)
def test_no_object_of_any_result_becomes_a_job_when_it_comes_back(
    site: Site, tmp_path: Path, model: str
) -> None:
    """Routes without a condition ask for every model; the results are those of another node."""
    files = OF_MODEL[model](None, replace(THIN_STACK, slices=20))(tmp_path / "received")
    outcome = outcome_of(files, tmp_path / "results", SMALL[model])
    assert isinstance(outcome, Derived), outcome
    asked = {"factor": None, "match": {}}
    site.follow(route(match={}), *(route(name, model=name, **asked) for name in SMALL))
    for path in sorted((tmp_path / "results").glob("*.dcm")):
        site.keep(path, calling_ae="PACS")
    series = {file.series_uid for file in outcome.files}
    assert len(series) > 1
    assert site.sweep() == []
    assert {line.series_uid for line in site.stored.series()} == series
    assert {why_no_job(site.arrival(uid), masked=False) for uid in series} == {OF_A_NODE}


def test_a_result_of_another_node_is_known_by_its_header(site: Site) -> None:
    header = assign(
        ContributingEquipmentSequence=phantoms.sequence(_equipment()), SeriesInstanceUID="2.25.8"
    )
    site.receive(replace(THICK, edit=header))
    assert site.sweep() == []


def _equipment() -> Dataset:
    item = Dataset()
    item.Manufacturer = "Midslice"
    item.ManufacturerModelName = "Midslice"
    return item


def test_a_series_that_somebody_excluded_makes_no_job_and_the_evidence_says_who(
    site: Site,
) -> None:
    series_uid = site.receive()
    site.never[series_uid] = "anna"
    assert site.sweep() == []
    assert site.arrival(series_uid).evidence["never"] == "anna"


def test_the_series_of_a_self_test_takes_the_route_of_the_test_alone(site: Site) -> None:
    series_uid = site.receive()
    site.of_tests[series_uid] = route("self-test", destinations=[])
    (job,) = site.sweep()
    assert (job.kind, job.route, job.destinations) == ("selftest", "self-test", ())


def test_a_person_completes_a_series_without_the_wait(site: Site) -> None:
    series_uid = site.receive()
    sentence = site.arrivals.process_now(series_uid, "anna")
    assert sentence == "The series is complete with 6 instances: 1 job."
    evidence = site.arrival(series_uid).evidence
    assert (evidence["rule"], evidence["who"]) == ("asked", "anna")
    with pytest.raises(NotFound):
        site.arrivals.process_now(series_uid, "anna")


def test_an_instance_that_comes_while_the_jobs_are_made_is_not_left_behind(site: Site) -> None:
    series_uid = site.receive()
    late = phantoms.write(site.folder / "late", replace(THICK, slices=7))[-1]
    before = site.arrival(series_uid)
    site.keep(late)
    with pytest.raises(WrongState):
        site.arrivals.complete(before, {"rule": "quiet"})
    (job,) = site.sweep()
    assert len(site.stored.queue.instances(job.id)) == 7


def test_an_arrival_that_cannot_be_closed_stops_no_other_and_is_tried_again(site: Site) -> None:
    broken = site.receive()
    site.receive(replace(THICK, seed="another"))
    wanted = site.arrivals._never
    site.arrivals._never = lambda uid: 1 // 0 if uid == broken else ""  # type: ignore[assignment]
    (job,) = site.sweep()
    assert job.series_uid != broken
    site.arrivals._never = wanted
    assert len(site.sweep(RETRY_SECONDS - 1.0)) == 1
    assert len(site.sweep(1.0)) == 2


def requeue(site: Site, *routes: Route) -> Job:
    """Read the configuration again, requeue the last job, and look; the last job by then."""
    *_, job = reversed(site.stored.jobs())
    site.follow(*routes)
    site.stored.queue.requeue(job.id, who="anna")
    site.arrivals.follow_routes()
    assert site.stored.queue.requeued() == ()
    return max(site.stored.jobs(), key=lambda job: job.id)


def test_a_requeued_job_goes_to_the_destinations_that_its_route_has_now(site: Site) -> None:
    site.receive()
    site.sweep()
    job = site.stored.hold()
    again = requeue(site, route(destinations=["pacs", "sender"]))
    assert (again.id, again.key, again.state) == (job.id, job.key, JobState.QUEUED)
    assert again.destinations == ("pacs", "sender CT9")
    assert site.stored.claim().id == job.id


def test_a_requeue_by_a_changed_route_makes_the_job_that_a_re_send_asks_for(site: Site) -> None:
    site.receive()
    (first,) = site.sweep()
    site.stored.queue.prioritise(first.id, 2)
    site.stored.hold()
    second = requeue(site, route(across_missing="leave"))
    assert (second.state, second.priority) == (JobState.QUEUED, 2)
    assert second.parameters["across_missing"] == "leave"
    assert site.stored.queue.instances(second.id) == site.stored.queue.instances(first.id)
    assert site.stored.queue.get(first.id).reason == "ROUTE_CHANGED"
    site.receive()
    assert [job.id for job in site.sweep()] == [first.id, second.id]
    # And back: the first job is what the route asks for once more.
    site.stored.hold("LOW_CONFIDENCE")
    requeue(site, route())
    assert states([site.stored.queue.get(job.id) for job in (first, second)]) == [
        ("queued", ""),
        ("cancelled", "ROUTE_CHANGED"),
    ]


def test_a_job_whose_route_is_gone_and_a_self_tests_are_requeued_as_they_were(site: Site) -> None:
    series_uid = site.receive(replace(THICK, seed="test"))
    site.of_tests[series_uid] = route("self-test", factor=3)
    site.receive()
    for job in site.sweep():
        site.stored.queue.cancel(job.id)
        changed = route("self-test", factor=4)
        site.follow(changed)  # the route of the other job is gone
        site.stored.queue.requeue(job.id)
        site.arrivals.follow_routes()
        again = site.stored.queue.get(job.id)
        assert (again.state, again.parameters) == (JobState.QUEUED, job.parameters)
        assert (again.destinations, site.stored.queue.requeued()) == (job.destinations, ())


def test_a_requeued_job_that_the_database_refuses_stops_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site.receive()
    site.receive(replace(THICK, seed="another"))
    first, second = site.sweep()
    for job in (first, second):
        site.stored.queue.cancel(job.id)
        site.stored.queue.requeue(job.id)
    follow_route = site.stored.queue.follow_route

    def busy(requeued: Requeued, jobs: Sequence[NewJob]) -> int | None:
        if requeued.job.id == first.id:
            raise Busy("the database is busy")
        return follow_route(requeued, jobs)

    monkeypatch.setattr(site.stored.queue, "follow_route", busy)
    site.arrivals.follow_routes()
    assert [requeued.job.id for requeued in site.stored.queue.requeued()] == [first.id]
    assert "requeued job not compared" in caplog.messages


def unrouted(site: Site, series: Series = THICK, **changes: object) -> str:
    """Receive a series that the only route, for 20 mm and more, does not take; its UID."""
    site.follow(route(match=CT | {"gap_mm": {"min": 20.0}}, **changes))
    series_uid = site.receive(series)
    assert site.sweep() == []
    return series_uid


def insist(site: Site, series_uid: str, name: str = "ct-slices") -> str:
    return site.arrivals.process_by_route(series_uid, name, "anna")


def test_what_speaks_against_the_routes_stands_in_the_evidence_of_a_series_without_a_job(
    site: Site,
) -> None:
    series_uid = unrouted(site)
    ((name, key, sentence),) = site.arrival(series_uid).evidence["objections"]
    assert (name, key) == ("ct-slices", "gap_mm")
    assert "gap_mm is 5, but must be at least 20" in sentence


def test_a_person_has_a_route_process_what_it_does_not_take(site: Site) -> None:
    series_uid = unrouted(site)
    sentence = insist(site, series_uid)
    (job,) = site.stored.jobs()
    assert sentence == (
        f"Job {job.id} is queued. The series does not meet what the route asks for: gap_mm."
    )
    assert (job.state, job.route, job.destinations) == ("queued", "ct-slices", ("pacs",))
    assert len(site.stored.queue.instances(job.id)) == THICK.slices
    events = [
        (e.who, e.what, e.which) for e in Audit(site.stored.database, site.stored.clock).list()
    ]
    assert events == [("anna", "process with route", f"job {job.id}")]
    # The key is that of a job that the route itself asks for: a re-send asks for this very job.
    site.follow(route(match=CT))
    site.receive()
    assert [again.id for again in site.sweep()] == [job.id]


def test_a_series_that_is_still_arriving_is_closed_first(site: Site) -> None:
    site.follow(route(), route("mr", match={"Modality": "MR"}))
    series_uid = site.receive()
    sentence = insist(site, series_uid, "mr")
    by_route = {job.route: job for job in site.stored.jobs()}
    assert by_route.keys() == {"ct-slices", "mr"}
    assert sentence.startswith(f"Job {by_route['mr'].id} is queued.")
    assert site.arrival(series_uid).evidence["who"] == "anna"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("queued", "is queued."),
        ("running", "is running."),
        ("succeeded", "by this route has succeeded already; redeliver it"),
        ("held", "by this route is held already; look at it"),
        ("refused", "by this route was refused already; requeue it"),
    ],
)
def test_what_the_route_has_processed_is_named_and_stays(site: Site, end: str, said: str) -> None:
    series_uid = site.receive()
    (job,) = site.sweep()
    if end != "queued":
        claimed = site.stored.claim()
        match end:
            case "succeeded":
                site.stored.queue.succeed(claimed, site.stored.derive(claimed))
            case "held":
                site.stored.queue.hold(claimed, "MISSING_SLICES", "One is missing.")
            case "refused":
                site.stored.queue.refuse(claimed, "TOO_FEW_SLICES", "Two are too few.")
    assert insist(site, series_uid).startswith(f"Job {job.id} {said}")
    assert [(job.id, job.state) for job in site.stored.jobs()] == [(job.id, end)]


def test_what_failed_or_was_cancelled_is_queued_again(site: Site) -> None:
    series_uid = site.receive()
    (job,) = site.sweep()
    site.stored.queue.cancel(job.id)
    assert insist(site, series_uid) == f"Job {job.id} is queued."


def test_a_result_whose_files_were_removed_is_made_again(site: Site) -> None:
    series_uid = site.receive()
    site.sweep()
    job = site.stored.succeed()
    site.stored.deliver()
    site.stored.purge_all()
    with pytest.raises(UsageError, match="no longer kept"):
        insist(site, series_uid)
    site.follow()  # no route takes what is sent again
    site.receive()
    site.sweep()
    site.follow(route())
    assert insist(site, series_uid) == f"Job {job.id} is queued."


def test_thin_slices_of_the_study_do_not_stop_a_person(site: Site) -> None:
    site.receive(THIN)
    thick = site.receive(THICK)
    refused = [job for job in site.sweep() if job.series_uid == thick]
    assert states(refused) == [("refused", "ACQUIRED_THIN_SERIES_EXISTS")]
    insist(site, thick)
    job = max(site.stored.jobs(), key=lambda job: job.id)
    assert (job.series_uid, job.state) == (thick, "queued")
    # Nor do those that come before its turn.
    site.receive(replace(THIN, number=5, seed="thin again"))
    site.sweep()
    assert site.stored.queue.get(job.id).state == "queued"


def test_a_person_cannot_insist_on_two_patients(site: Site) -> None:
    site.follow()
    site.receive()
    other = replace(THICK, patient=Patient("Another^One", "PH-0002"), edit=_renumber)
    series_uid = site.receive(other)
    assert site.sweep() == []
    site.follow(route())
    assert insist(site, series_uid).endswith("is held, PATIENT_MISMATCH.")


def test_each_peer_that_brought_the_series_gets_the_result(site: Site) -> None:
    site.follow(route(match={"Modality": "MR"}, destinations=["sender"]))
    series_uid = site.receive(calling_ae="CT1")
    site.receive(calling_ae="WS7")
    assert site.sweep() == []
    insist(site, series_uid)
    (job,) = site.stored.jobs()
    assert job.destinations == ("pacs", "sender WS7")


def half_coronal(made: Dataset, index: int) -> None:
    if index >= THICK.slices // 2:
        made.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        made.ImagePositionPatient = [0.0, 5.0 * index, 0.0]


def test_every_stack_of_the_series_gets_a_job(site: Site) -> None:
    sentence = insist(site, unrouted(site, replace(THICK, edit=half_coronal)))
    jobs = site.stored.jobs()
    assert len({job.stack for job in jobs}) == len(jobs) == 2
    assert all(f"Job {job.id} is queued." in sentence for job in jobs)


OWN = {"ContributingEquipmentSequence": phantoms.sequence(_equipment())}


@pytest.mark.parametrize(
    ("series", "name", "said"),
    [
        (THICK, "nowhere", "no route 'nowhere' is configured; configured: ct-slices"),
        (None, "ct-slices", "no series 1.2.9 was received"),
        (replace(THICK, edit=assign(**OWN)), "ct-slices", "a result of a node"),
    ],
    ids=["unknown-route", "unknown-series", "own"],
)
def test_what_cannot_be_processed_says_why(
    site: Site, series: Series | None, name: str, said: str
) -> None:
    series_uid = "1.2.9" if series is None else site.receive(series)
    with pytest.raises(UsageError, match=said):
        insist(site, series_uid, name)
    assert site.stored.jobs() == ()


def test_a_person_cannot_insist_on_what_another_one_excluded(site: Site) -> None:
    series_uid = site.receive()
    site.never[series_uid] = "ben"
    with pytest.raises(WrongState, match="excluded from processing by ben"):
        insist(site, series_uid)
    assert site.stored.jobs() == ()


def test_an_instance_that_comes_while_a_person_insists_is_not_left_behind(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    series_uid = unrouted(site)
    late = phantoms.write(site.folder / "late", replace(THICK, slices=7))[-1]
    ask = site.stored.queue.insist
    arriving = iter([late])

    def with_a_late_one(jobs: Sequence[NewJob], *, who: str) -> tuple[Enqueued, ...]:
        for path in arriving:
            site.keep(path)
        return ask(jobs, who=who)

    monkeypatch.setattr(site.stored.queue, "insist", with_a_late_one)
    insist(site, series_uid)
    (job,) = site.stored.jobs()
    assert len(site.stored.queue.instances(job.id)) == 7
