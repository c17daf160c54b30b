"""Values as people say them."""

from datetime import UTC
from zoneinfo import ZoneInfo

import pytest

from node import wording
from node.web.pages import render

NOON = 1_763_726_400.0  # 2025-11-21 12:00:00 UTC


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, ""),
        (0.0, "0.0 s"),
        (0.04, "under 0.1 s"),
        (9.94, "9.9 s"),
        (10.4, "10 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (168.0, "2 min 48 s"),
        (601.0, "10 min"),
        (7199.0, "119 min"),
        (7200.0, "2 h"),
        (172800.0, "2 days"),
        (-5.0, "0 s"),
    ],
)
def test_a_duration_is_no_more_exact_than_needed(seconds: float | None, said: str) -> None:
    assert wording.duration(seconds) == said


def test_what_counts_on_a_page_has_no_parts_of_a_second() -> None:
    assert wording.whole_duration(3.4) == "3 s"
    assert wording.whole_duration(-1.0) == "0 s"
    assert wording.whole_duration(130.0) == "2 min"  # as page.js counts on


def test_a_moment_of_today_is_a_time_and_an_older_one_has_its_day() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert render.clock(NOON, berlin, NOON + 60) == "13:00:00"
    assert render.clock(NOON - 86400, berlin, NOON) == "20 Nov 13:00"
    assert render.clock(NOON - 400 * 86400, UTC, NOON) == "2024-10-17 12:00"
    assert render.clock(None, UTC, NOON) == ""
    assert render.exact(NOON, berlin) == "2025-11-21 13:00:00 +0100"
    assert render.machine_time(NOON, UTC) == "2025-11-21T12:00:00+00:00"


def test_a_day_of_the_pages_begins_at_midnight_of_their_zone() -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    assert render.clock(NOON, tokyo, NOON + 4 * 3600) == "21 Nov 21:00"


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (7e14, "700.0 TB")],
)
def test_sizes_are_decimal(count: float, said: str) -> None:
    assert wording.size(count) == said


def test_a_number_agrees_with_its_noun() -> None:
    assert wording.count(1, "gap") == "1 gap"
    assert wording.count(2, "series", "series") == "2 series"
    assert wording.count(12345, "slice") == "12\u202f345 slices"
    assert wording.amount(1.0, "day") == "1 day"
    assert wording.amount(0.5, "hour") == "0.5 hours"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Phantom^One", "Phantom, One"),
        ("Meyer^Anna^Maria^Dr", "Meyer, Anna Maria Dr"),
        ("Yamada^Tarou=\u5c71\u7530^\u592a\u90ce", "Yamada, Tarou"),
        ("Single", "Single"),
        ("", ""),
        ("^^", ""),
    ],
)
def test_a_person_is_named_without_the_separators(text: str, said: str) -> None:
    assert render.person(text) == said


AXIAL = "1.00 0.00 0.00 0.00 1.00 0.00"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"AXIAL, 120 kV, 96x96 at 3.6 3.6 mm, along {AXIAL}, 2", "axial plane, 2"),
        (
            "at 0.703125 0.703125 mm, along 1.00 0.00 0.00 0.00 0.00 -1.00",
            "0.703 mm, coronal plane",
        ),
        ("at 1 2 mm, along 0.00 1.00 0.00 0.00 0.00 -1.00", "1 2 mm, sagittal plane"),
        ("along 1.00 0.00 0.00 0.00 0.97 -0.26", "oblique axial plane"),
        ("no geometry", "no geometry"),
        ("at 1.2.3 1.2.3 mm, 111111 1.1.1", "111111 1.1.1"),
    ],
)
def test_a_stack_names_its_plane(text: str, said: str) -> None:
    assert render.stack(text).endswith(said)
    assert "along" not in render.stack(text)


def test_the_zone_of_the_pages_is_named() -> None:
    assert render.zone_name(NOON, ZoneInfo("Europe/Berlin")) == "CET (UTC+01:00)"
    assert render.zone_name(NOON, ZoneInfo("America/Sao_Paulo")) == "UTC-03:00"
    assert render.zone_name(NOON, UTC) == "UTC"


@pytest.mark.parametrize(
    ("text", "said"),
    [("20240305", "2024-03-05"), ("", ""), ("2024", "2024"), ("unknown!", "unknown!")],
)
def test_a_study_date_is_read_or_left_as_it_is(text: str, said: str) -> None:
    assert render.study_date(text) == said


def test_a_share_near_an_end_keeps_a_digit() -> None:
    assert [render.percent(share) for share in (0.0, 0.004, 0.5, 0.996, 1.0)] == [
        "0 %",
        "0.4 %",
        "50 %",
        "99.6 %",
        "100 %",
    ]
