"""The scrub comes round, tells of damage once, and takes nothing for damage that retention took."""

from pathlib import Path

from storage import scrub
from storage.records import DAY
from storage.scrub import DERIVED, RECEIVED, Damage, share_of, step
from storage.site import notices
from tests.unit.storage.stored import SERIES, Stored


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def path_of(stored: Stored, instance_uid: str) -> Path:
    for one in stored.archive.instances_of(stored.series()[0].id):
        if one.instance_uid == instance_uid:
            assert one.path is not None
            return stored.files.path(one.path)
    raise AssertionError(instance_uid)


def look(stored: Stored, share: float = 1.0) -> tuple[Damage, ...]:
    return step(stored.database, stored.files, stored.clock.now, share)


def told(stored: Stored) -> list[str]:
    posted = notices.address(stored.database, stored.clock(), (), ())
    return [str(notice.facts["sentence"]) for notice in posted]


def test_files_as_they_were_kept_are_nothing_to_tell(stored: Stored) -> None:
    assert look(stored) == ()
    stored.ask("k")
    stored.succeed()
    assert look(stored) == ()
    assert told(stored) == []


def test_damaged_and_missing_files_are_told_once(stored: Stored) -> None:
    stored.ask("k", uids=("1.1", "1.2", "1.3"))
    flip(path_of(stored, "1.2"))
    path_of(stored, "1.3").unlink()
    assert look(stored) == (Damage(RECEIVED, (2, 3), SERIES),)
    (sentence,) = told(stored)
    assert sentence.startswith("2 received files are missing or changed on the disk, the first in")
    look(stored)  # the end of the round
    assert look(stored) == (Damage(RECEIVED, (2, 3), SERIES),)
    assert told(stored) == []
    stored.receive("1.2")
    stored.receive("1.3")
    look(stored)
    assert look(stored) == ()  # mended


def test_files_of_results_are_looked_at_too(stored: Stored) -> None:
    stored.ask("k")
    job = stored.succeed("2.25.7")
    flip(stored.files.path(stored.files.derived_folder(job.id, job.attempt)) / "1.dcm")
    (damage,) = look(stored)
    assert (damage.kind, damage.series_uid) == (DERIVED, "2.25.7")
    (sentence,) = told(stored)
    assert "restore the files before they are sent again" in sentence


def test_what_was_purged_is_no_damage(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    stored.deliver()
    stored.purge_all()
    assert look(stored) == ()


def test_small_steps_come_round_and_begin_anew(stored: Stored) -> None:
    stored.ask("k", uids=[f"1.{number}" for number in range(10)])
    flip(path_of(stored, "1.9"))
    steps = [look(stored, 0.2) for _ in range(12)]
    assert [bool(it) for it in steps] == [*[False] * 4, True, *[False] * 5, True, False]


def test_the_share_of_a_step_makes_a_round_in_its_days() -> None:
    assert share_of(60.0, 30.0) * (30 * DAY / 60.0) == 1.0
    assert share_of(60.0, 0.0001) == 1.0
    assert scrub.share_of(60.0, 1.0) > share_of(60.0, 2.0)
