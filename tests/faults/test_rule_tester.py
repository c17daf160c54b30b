"""The process that answers a question to the rules: it may die, fail or take too long."""

import pytest

from node.web import rule_tester
from node.web.problems import Problem
from tests.unit.web.questions import answer_doubled, die, fail


def test_a_question_is_answered_by_another_process() -> None:
    assert rule_tester.ask(answer_doubled, 21, int, log_as_json=True) == 42


@pytest.mark.parametrize("find", [die, fail])
def test_a_process_that_dies_or_fails_hurts_nobody_here(
    find: object, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Problem):
        rule_tester.ask(find, 1, int, log_as_json=True)  # type: ignore[arg-type]
    assert "PATIENT" not in "".join(capfd.readouterr())


def test_one_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_tester, "DEADLINE_SECONDS", 0.01)
    with pytest.raises(Problem):
        rule_tester.ask(answer_doubled, 1, int, log_as_json=True)
