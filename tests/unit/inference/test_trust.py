"""What becomes of slices that a model is sure or not sure of."""

from dataclasses import replace

import numpy as np
import pytest

from inference.errors import Reason, Unprocessable
from inference.geometry import Layout
from inference.model import Prediction, Step, Trust
from inference.request import Output
from inference.results.derived import Planned
from inference.runner import SliceJudge, check_gaps, word_of
from inference.volume import Geometry

SURE, UNSURE, LOST = Trust(10.0, 0.97, 2.3), Trust(190.0, 0.09, 2.3), Trust(300.0, 0.04, 2.3)


def geometry(*gaps_mm: float) -> Geometry:
    positions = np.zeros((len(gaps_mm) + 1, 3))
    positions[1:, 2] = np.cumsum(gaps_mm)
    return Geometry(positions, np.eye(3)[:2], (1.0, 1.0), 2, 2)


def layout() -> Layout:
    """Three slices that say no thickness."""
    return Layout((), geometry(5.0, 5.0), {}, 0.0, ())


def planned(number: int) -> Planned:
    """The slice of that place, 1 mm after the one before it."""
    return Planned("1.2", number + 1, np.array([0.0, 0.0, 1.0 + number]), 0, (0, 1), 0)


def prediction(*trust: Trust) -> Prediction:
    count = len(trust)
    return Prediction(
        planes=tuple(np.full((2, 2), 1.0, np.float32) for _ in range(count)),
        classical=tuple(np.full((2, 2), 9.0, np.float32) for _ in range(count)),
        classical_name="dis",
        trust=trust,
        record={"network_weight": 0.9, "classical": "dis", "surveyed": 7},
    )


def judged(
    *trust: Trust, output: Output | None = None
) -> tuple[SliceJudge, list[float], list[str]]:
    judge = SliceJudge(output or Output(), layout())
    made = prediction(*trust)
    chosen = [judge.chosen(planned(number), number, made) for number in range(len(trust))]
    return judge, [float(each.plane[0, 0]) for each in chosen], [each.note for each in chosen]


def test_a_slice_that_its_model_is_sure_of_is_kept_and_says_how_sure() -> None:
    judge, values, notes = judged(SURE)
    assert values == [1.0]
    assert notes == ["expected error 10 HU, confidence 0.97"]
    assert judge.facts["confidence"] == [
        {
            "number": 1,
            "at_mm": 1.0,
            "word": "sure",
            "error_hu": 10.0,
            "confidence": 0.97,
            "how": "network",
        }
    ]
    assert judge.facts["confidence_counts"] == {
        "sure": 1,
        "fair": 0,
        "unsure": 0,
        "large_anatomy_only": 0,
    }
    assert judge.facts["gate"] == {"network_weight": 0.9, "classical": "dis", "surveyed": 7}
    assert judge.notes == []
    judge.check()


def test_a_slice_of_little_confidence_is_the_classical_one_and_says_so() -> None:
    judge, values, notes = judged(SURE, UNSURE)
    assert values == [1.0, 9.0]
    assert notes[1] == (
        "expected error 190 HU, confidence 0.09, below 0.1: optical flow instead of the network"
    )
    entries = judge.facts["confidence"]
    assert isinstance(entries, list)
    assert [entry["how"] for entry in entries] == ["network", "dis"]
    assert judge.notes == ["1 slice was interpolated without the network"]
    judge.check()


def test_what_is_expected_of_the_classical_slice_is_said_where_it_is_known() -> None:
    judge = SliceJudge(Output(), layout())
    made = replace(prediction(UNSURE), classical_trust=(Trust(120.0, 0.2, 2.3),))
    note = judge.chosen(planned(0), 0, made).note
    assert note.endswith("optical flow instead of the network, expected error 120 HU")
    (entry,) = judge.entries
    assert (entry["error_hu"], entry["confidence"], entry["how"]) == (120.0, 0.2, "dis")
    assert entry["word"] == "unsure"


def test_the_record_says_of_each_slice_how_much_of_it_is_the_networks() -> None:
    judge = SliceJudge(Output(), layout())
    made = replace(prediction(SURE), weights=(0.25,))
    judge.chosen(planned(0), 0, made)
    (entry,) = judge.entries
    assert (entry["how"], entry["network_weight"]) == ("network", 0.25)


def test_the_notes_are_ascii_and_fit_their_attribute() -> None:
    _, _, notes = judged(SURE, UNSURE, LOST)
    assert all(note.isascii() and len(note) < 200 for note in notes)


def test_below_the_second_threshold_the_series_is_held_with_what_to_do() -> None:
    judge, _, _ = judged(SURE, LOST, LOST)
    with pytest.raises(Unprocessable) as held:
        judge.check()
    assert held.value.reason is Reason.LOW_CONFIDENCE
    assert held.value.is_held
    assert held.value.sentence == (
        "The model is not sure enough of 2 of 3 slices (confidence down to 0.04, an error of "
        "300 HU; the route asks for 0.05). Send thinner slices, or lower hold_below in the route "
        "and process the series again."
    )


def test_a_route_may_accept_everything() -> None:
    judge, values, _ = judged(LOST, output=Output(hold_below=0.0, classical_below=0.0))
    assert values == [1.0]
    judge.check()


def test_a_model_that_says_nothing_is_taken_at_its_word() -> None:
    judge = SliceJudge(Output(), layout())
    plane = np.full((2, 2), 4.0, np.float32)
    chosen = judge.chosen(planned(0), 0, Prediction(planes=(plane,)))
    assert chosen.plane is plane
    assert chosen.note == ""
    assert judge.facts == {}
    judge.check()


def test_a_series_without_surveys_says_that_training_alone_serves() -> None:
    judge = SliceJudge(Output(), layout())
    few = Prediction(planes=(np.zeros((2, 2), np.float32),), trust=(SURE,), record={"surveyed": 0})
    judge.chosen(planned(0), 0, few)
    assert judge.notes == [
        "too few slices to test the network on this series; only its calibration from training "
        "was used"
    ]


def test_a_gap_wider_than_the_route_allows_is_held() -> None:
    steps = [Step((0, 1), 0, (0.5,)), Step((1, 2), 1, (0.5,))]
    with pytest.raises(Unprocessable) as held:
        check_gaps(steps, geometry(5.0, 12.5), Output())
    assert held.value.reason is Reason.LOW_CONFIDENCE
    assert held.value.sentence.startswith("1 gap is wider than 12 mm (up to 12.5 mm)")
    check_gaps(steps, geometry(5.0, 12.004), Output())  # a decimal string of 12
    check_gaps(steps[:1], geometry(5.0, 12.5), Output())  # nothing is filled there
    check_gaps(steps, geometry(5.0, 12.5), Output(most_gap_mm=13.0))


@pytest.mark.parametrize(
    ("confidence", "word", "undersampled"),
    [
        (1.0, "sure", "large_anatomy_only"),
        (0.8, "sure", "large_anatomy_only"),
        (0.79, "fair", "large_anatomy_only"),
        (0.5, "fair", "large_anatomy_only"),
        (0.49, "unsure", "unsure"),
        (0.0, "unsure", "unsure"),
        (None, "", "large_anatomy_only"),
    ],
)
def test_a_word_follows_confidence_and_what_was_never_seen(
    confidence: float | None, word: str, undersampled: str
) -> None:
    trust = None if confidence is None else Trust(10.0, confidence, 2.3)
    assert word_of(trust, undersampled=False) == word
    assert word_of(trust, undersampled=True) == undersampled
