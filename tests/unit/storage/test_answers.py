"""What a destination answered, alike answers together, what is not stored first."""

from storage.database import Database
from storage.ledger import AnswerCount, answer_counts
from tests.unit.storage.stored import Stored


def test_nothing_was_asked_yet(database: Database, stored: Stored) -> None:
    stored.ask("k", destinations=("pacs",))
    stored.succeed()
    (delivery,) = stored.ledger.of_job(1)
    assert answer_counts(database, delivery.id) == (AnswerCount(None, False, 2, 0),)


def test_alike_answers_are_counted_together(database: Database, stored: Stored) -> None:
    stored.ask("k", destinations=("pacs",))
    stored.succeed()
    delivery = stored.start_delivery()
    first, second = stored.ledger.unsent(delivery)
    stored.ledger.answered(delivery, first.id, 0x0000, stored=True)
    assert answer_counts(database, delivery.id) == (
        AnswerCount(None, False, 1, 0),
        AnswerCount(0x0000, True, 1, 1),
    )
    stored.ledger.answered(delivery, second.id, 0xA700, stored=False)
    assert answer_counts(database, delivery.id) == (
        AnswerCount(0xA700, False, 1, 1),
        AnswerCount(0x0000, True, 1, 1),
    )


def test_answers_of_another_destination_are_not_mixed_in(
    database: Database, stored: Stored
) -> None:
    stored.ask("k", destinations=("pacs", "other"))
    stored.succeed()
    stored.deliver("pacs")
    other = next(d for d in stored.ledger.of_job(1) if d.destination == "other")
    assert answer_counts(database, other.id) == (AnswerCount(None, False, 2, 0),)
    assert answer_counts(database, 999) == ()
