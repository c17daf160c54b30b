"""The fault tests end with one table; each test says what it did to the node and what it saw."""

from collections.abc import Callable

import pytest

from tests.faults import table
from tests.faults.table import Fault


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[[str], Fault]:
    """Begins a row of the table: what the test counts until its end stands there, pass or fail."""

    def row(name: str) -> Fault:
        begun = Fault(name)
        request.node.user_properties.append((table.PROPERTY, vars(begun)))
        return begun

    return row


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
    ]
    faults = table.collected(pair for report in reports for pair in report.user_properties)
    if faults:
        terminalreporter.section("faults")
        terminalreporter.write_line(table.markdown(faults))
