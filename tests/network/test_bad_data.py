"""What no scanner should send, sent to a whole node: it goes on, loses nothing, and says why."""

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from pydicom import Dataset, dcmread
from pydicom.uid import EnhancedCTImageStorage, JPEG2000Lossless, JPEGLSLossless

from tests import node_rows, phantoms
from tests.node_process import NodeProcess, route, running, wait_for
from tests.peers import echoscu, storescu
from tests.phantoms import Patient, Series
from tests.raw_peer import CT, RawPeer, associate_request, fragment, store_command
from tests.traffic import data_set_of, padded, send_as_it_lies

MUTATIONS = 300 * int(os.environ.get("FAULT_ROUNDS", "1"))
SLICES = 5
SEED = 20260101
NO_COMPRESSION = ("1.2.840.10008.1.2.1",)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path_factory.mktemp("node"), route(destinations=[]), quiet_seconds=0.5
    )
    with running(process):
        yield process


@pytest.fixture(autouse=True)
def still_right(node: NodeProcess) -> Iterator[None]:
    """After each test the node answers, has no litter, and each verdict has a sentence."""
    yield
    assert echoscu(node.port).code == 0
    node_rows.wait_until_idle(node, 120.0)
    incoming = node.folder / "var" / "incoming"
    wait_for("no litter", lambda: list(incoming.iterdir()) == [])
    for job in node_rows.all_jobs(node):
        assert job.state in {"succeeded", "refused", "held", "cancelled"}, job
        assert job.state == "succeeded" or (job.reason and job.sentence.endswith(".")), job
    assert node.found("arrival not closed") == []
    assert node.found("sweep failed") == []


def damaged(data: bytes, dice: random.Random) -> bytes:
    """One thing wrong, somewhere; more often in the header than in the pixels."""
    end = len(data) if dice.random() < 0.3 else 1200
    at = dice.randrange(end)
    kind = dice.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + dice.randbytes(dice.randrange(1, 9)) + data[at + 8 :]
    if kind == 3:
        return data[:at] + data[at + dice.randrange(1, 60) :]
    return data[:at] + data[max(0, at - dice.randrange(1, 60)) :]


def test_damaged_data_sets_are_answered_kept_as_answered_and_judged(
    node: NodeProcess, tmp_path: Path
) -> None:
    dice = random.Random(SEED)
    acknowledged: set[tuple[str, str]] = set()
    statuses: list[int] = []
    with RawPeer(node.port) as peer:
        peer.associate()
        for round_ in range(MUTATIONS // SLICES):
            series = Series(slices=SLICES, seed=f"damaged {round_}")
            spared = dice.randrange(SLICES + 1)  # some rounds leave a slice as it is
            for index, path in enumerate(phantoms.write(tmp_path / str(round_), series)):
                whole = data_set_of(path)
                data = whole if index == spared else damaged(whole, dice)
                uid = phantoms.uid(series.seed, series.number, "instance", index)
                status = peer.status(store_command(padded(uid)), data)
                statuses.append(status)
                if status == 0x0000:
                    acknowledged.add((uid, blake3(data).hexdigest()))
        assert peer.release() != 0
    assert set(statuses) - {0x0000, 0xA900} <= set(range(0xC000, 0xD000)) - {0xC211}
    node_rows.wait_until_idle(node, 120.0)
    kept = node_rows.kept(node)
    assert acknowledged <= kept.keys()
    for version in acknowledged:
        assert blake3(data_set_of(kept[version])).hexdigest() == version[1]
    jobs = node_rows.all_jobs(node)
    assert "cancelled" not in {job.state for job in jobs}  # no stack of a series replaces another
    reasons = {job.reason for job in jobs}
    assert len(acknowledged) > MUTATIONS // 2
    assert "PIXEL_DATA_ERROR" in reasons
    assert len(reasons) > 3


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "../../etc/passwd", "1'; DROP TABLE job; --"])
def test_without_a_uid_nothing_is_kept_and_the_answer_says_so(
    node: NodeProcess, tmp_path: Path, keyword: str, value: str | None
) -> None:
    path = tmp_path / "0.dcm"
    made = phantoms.dataset(Series(seed=f"{keyword} {value}"), 0)
    uid = str(made.SOPInstanceUID)
    phantoms.save(path, made)
    whole = data_set_of(path)
    element = made[keyword]  # as it lies in the file: tag, "UI", length, value
    begin = whole.index(struct.pack("<HH", element.tag.group, element.tag.element) + b"UI")
    rest = whole[begin + 8 + len(padded(str(element.value))) :]
    wrong = padded(value or "")
    other = whole[begin : begin + 6] + struct.pack("<H", len(wrong)) + wrong
    data = whole[:begin] + (b"" if value is None else other) + rest
    before = node_rows.kept(node).keys()
    with RawPeer(node.port) as peer:
        peer.associate()
        status = peer.status(store_command(padded(uid)), data)
    assert status & 0xF000 == 0xC000
    assert status != 0xC211
    assert node_rows.kept(node).keys() == before


UIDS_OF_GATEWAYS = {
    "StudyInstanceUID": "1.02.3.STUDY",
    "SeriesInstanceUID": "550e8400-e29b-41d4-a716-446655440000",
    "FrameOfReferenceUID": "1.2.3.",
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_uids_that_break_the_rules_are_kept_in_every_role_and_are_no_path(
    node: NodeProcess, tmp_path: Path
) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.SOPInstanceUID = f"IMG_{index:02d}.x"
        for keyword, uid in UIDS_OF_GATEWAYS.items():
            setattr(made, keyword, uid)

    files = phantoms.write(tmp_path, Series(seed="gateway", slices=3, edit=edit))
    assert send_as_it_lies(node, files) == [0, 0, 0]
    series_uid = UIDS_OF_GATEWAYS["SeriesInstanceUID"]
    node_rows.wait_until_settled(node, [series_uid])
    (job,) = node_rows.jobs(node, series_uid)
    assert job.state == "succeeded", job
    assert node.cli("series", series_uid)
    kept = {uid: path for (uid, _), path in node_rows.kept(node).items() if "IMG" in uid}
    assert sorted(kept) == [f"IMG_{index:02d}.x" for index in range(3)]
    assert not any(word in str(path) for path in kept.values() for word in ("IMG", "STUDY", "550e"))
    folder = node.folder / "var" / "derived" / f"{job.id}-1"
    for path in folder.glob("*.dcm"):
        made = dcmread(path)
        assert made.StudyInstanceUID == UIDS_OF_GATEWAYS["StudyInstanceUID"]
        assert made.FrameOfReferenceUID == UIDS_OF_GATEWAYS["FrameOfReferenceUID"]
        assert made.RelatedSeriesSequence[0].SeriesInstanceUID == series_uid
        assert {item.ReferencedSOPInstanceUID for item in made.SourceImageSequence} <= kept.keys()


@pytest.mark.parametrize("vr", [b"XX\0\0\x06\0\0\0", b"XX\x06\0", b"??\x06\0"])
def test_an_unknown_value_representation_and_a_patient_behind_the_pixels_cost_nothing(
    node: NodeProcess, tmp_path: Path, vr: bytes
) -> None:
    series = Series(seed=f"odd {vr!r}", slices=3)
    files = phantoms.write(tmp_path, series)
    for path in files:
        content = path.read_bytes()
        begin = content.index(b"\x10\0\x10\0PN")
        end = content.index(b"\x10\0\x30\0DA")  # Patient's Birth Date
        patient, unknown = content[begin:end], b"\x08\0\x90\x10" + vr + b"HELLO1"
        path.write_bytes(content[:begin] + unknown + content[end:] + patient)
    assert send_as_it_lies(node, files) == [0, 0, 0]
    series_uid = phantoms.uid(series.seed, "series", series.number)
    node_rows.wait_until_settled(node, [series_uid])
    (job,) = node_rows.jobs(node, series_uid)
    assert job.state == "succeeded", job
    folder = node.folder / "var" / "derived" / f"{job.id}-1"
    made = [dcmread(path) for path in folder.glob("*.dcm")]
    patients = {(str(each.PatientName), each.PatientID) for each in made}
    assert patients == {(series.patient.name, series.patient.id)}


def only_job(node: NodeProcess, files: list[Path], *options: str) -> node_rows.JobRow:
    """Send a series; what became of it."""
    sent = storescu(node.port, *files, options=options)
    assert sent.code == 0, sent.output
    uid = str(dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)
    node_rows.wait_until_settled(node, [uid])
    (job,) = node_rows.jobs(node, uid)
    return job


@pytest.mark.parametrize(
    ("syntax", "option"), [(JPEGLSLossless, "-xt"), (JPEG2000Lossless, "-xv")], ids=["ls", "2000"]
)
@pytest.mark.parametrize("left", [2, 30, 200])
def test_a_code_stream_that_cannot_be_decoded_holds_the_job(
    node: NodeProcess, tmp_path: Path, syntax: str, option: str, left: int
) -> None:
    series = Series(seed=f"stream {syntax} {left}", transfer_syntax=syntax, slices=4)
    files = phantoms.write(tmp_path, series)
    dataset = dcmread(files[2])
    phantoms.truncated_stream(dataset, left)
    dataset.save_as(files[2])
    job = only_job(node, files, option)
    assert (job.state, job.reason) == ("held", "PIXEL_DATA_ERROR")


def test_a_series_that_was_damaged_and_is_sent_again_whole_is_processed(
    node: NodeProcess, tmp_path: Path
) -> None:
    series = Series(seed="whole again", slices=4)
    files = phantoms.write(tmp_path / "whole", series)
    uid = phantoms.uid(series.seed, series.number, "instance", 3)
    whole = data_set_of(files[3])
    with RawPeer(node.port) as peer:
        peer.associate(associate_request(calling="STORESCU"))
        assert peer.status(store_command(padded(uid)), whole[: len(whole) // 2]) == 0
    job = only_job(node, files[:3])
    assert (job.state, job.reason) == ("held", "PIXEL_DATA_ERROR")
    assert "send it again" in job.sentence
    assert storescu(node.port, *files).code == 0
    node_rows.wait_until_settled(node, [phantoms.uid(series.seed, "series", 3)], arrivals=2)
    last = node_rows.jobs(node, phantoms.uid(series.seed, "series", 3))[-1]
    assert last.state == "succeeded"


ITEM, ENDLESS = b"\xfe\xff\x00\xe0", b"\xff\xff\xff\xff"
SEQUENCE = struct.pack("<HH", 0x0018, 0x9346) + b"SQ\0\0"  # CTDI Phantom Type Code Sequence
BROKEN_SEQUENCES = {
    "never ends": SEQUENCE + ENDLESS + ITEM + ENDLESS,
    "is nested 300 deep": (SEQUENCE + ENDLESS + ITEM + ENDLESS) * 300,
    "has an item longer than the file": SEQUENCE + ENDLESS + ITEM + b"\xf0\xff\xff\x7f",
    "is longer than the file": SEQUENCE + b"\xf0\xff\xff\x7f" + ITEM + b"\0\0\0\0",
    "ends in its first tag": SEQUENCE + b"\x03\0\0\0" + ITEM[:3],
    "holds no item": SEQUENCE + b"\x08\0\0\0" + b"\x08\0\x05\0CS\0\0",
}


@pytest.mark.parametrize("fault", BROKEN_SEQUENCES)
def test_a_slice_with_a_broken_sequence_stops_nothing_and_has_its_verdict(
    node: NodeProcess, tmp_path: Path, fault: str
) -> None:
    series = Series(seed=f"sequence {fault}", slices=3)
    files = phantoms.write(tmp_path, series)
    content = files[1].read_bytes()
    at = content.index(struct.pack("<HH", 0x0020, 0x0010) + b"SH")  # Study ID, after the UIDs
    files[1].write_bytes(content[:at] + BROKEN_SEQUENCES[fault] + content[at:])
    assert send_as_it_lies(node, files) in ([0, 0, 0], [0, 0xC000, 0])
    series_uid = phantoms.uid(series.seed, "series", series.number)
    node_rows.wait_until_settled(node, [series_uid])
    (job,) = node_rows.jobs(node, series_uid)
    assert (job.state, job.reason) in {
        ("held", "PIXEL_DATA_ERROR"),  # it can be read no further: nobody knows which slice it is
        ("held", "MISSING_SLICES"),
        ("succeeded", ""),  # the sequence is not needed
    }, job


def multi_frame(dataset: Dataset, index: int) -> None:
    dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = 2
    dataset.PixelData = dataset.PixelData * 2


def test_a_multi_frame_object_is_kept_and_refused(node: NodeProcess, tmp_path: Path) -> None:
    files = phantoms.write(tmp_path, Series(seed="frames", slices=1, edit=multi_frame))
    job = only_job(node, files)
    assert (job.state, job.reason) == ("refused", "ENHANCED_NOT_SUPPORTED")


def test_a_series_of_one_slice_is_refused(node: NodeProcess, tmp_path: Path) -> None:
    job = only_job(node, phantoms.write(tmp_path, Series(seed="one", slices=1)))
    assert (job.state, job.reason) == ("refused", "TOO_FEW_SLICES")
    assert "1 slice" in job.sentence


@pytest.mark.parametrize(
    "text",
    ["A" * 200, "../../../etc/passwd", "x'; DROP TABLE job; --", "<script>alert(1)</script>"],
)
def test_a_text_of_any_kind_is_carried_and_harms_nothing(
    node: NodeProcess, tmp_path: Path, text: str
) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        for keyword in ("PatientName", "SeriesDescription", "AccessionNumber", "ProtocolName"):
            phantoms.put(dataset, keyword, text.encode())

    series = Series(seed=f"text {text}", slices=3, patient=Patient(id="PH-7"), edit=edit)
    job = only_job(node, phantoms.write(tmp_path, series))
    assert job.state == "succeeded"
    folder = node.folder / "var" / "derived" / f"{job.id}-1"
    made = [dcmread(path, stop_before_pixels=True) for path in folder.glob("*.dcm")]
    names = {bytes(dataset.get_item("PatientName").value).rstrip() for dataset in made}
    assert names == {text.encode()}
    assert not any(text in line for line in node.lines)


def test_an_association_that_is_dropped_in_mid_instance_loses_nothing_of_the_others(
    node: NodeProcess, tmp_path: Path
) -> None:
    series = replace(Series(seed="dropped"), slices=4)
    files = phantoms.write(tmp_path, series)
    uids = [phantoms.uid(series.seed, series.number, "instance", index) for index in range(4)]
    with RawPeer(node.port) as peer:
        peer.associate(associate_request(contexts=((CT, NO_COMPRESSION),)))
        for uid, path in zip(uids[:3], files[:3], strict=True):
            assert peer.status(store_command(padded(uid)), data_set_of(path)) == 0
        peer.send(fragment(store_command(padded(uids[3])), command=True))
        peer.send(fragment(data_set_of(files[3])[:1000], last=False))
    series_uid = phantoms.uid(series.seed, "series", series.number)
    node_rows.wait_until_settled(node, [series_uid])
    assert {uid for uid, _ in node_rows.kept(node)} & set(uids) == set(uids[:3])
    assert node_rows.jobs(node, series_uid)[0].state == "succeeded"
    assert storescu(node.port, *files).code == 0  # the scanner tries again
    node_rows.wait_until_settled(node, [series_uid], arrivals=2)
    assert {uid for uid, _ in node_rows.kept(node)} >= set(uids)
    assert node_rows.jobs(node, series_uid)[-1].state == "succeeded"
