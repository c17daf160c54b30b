"""The whole API, asked with everything its description allows and much that it does not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from storage.records import Role
from tests.conftest import EXAMPLES
from tests.unit.web.site import Site, listening_site

# Each question to the rules starts a process; 503 is what a node that does not run is to answer.
APART = "^(/api/v1/rules/|/readyz)"
OF_EACH = max(1, EXAMPLES // 12)  # operation, allowed ones and others
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Site]:
    """A site with a row of each kind, so that not every answer is 404."""
    with listening_site(tmp_path_factory.mktemp("schema"), migrated_sqlite) as made:
        rows = made.rows
        rows.ask("a", destinations=("pacs",))
        rows.succeed()
        rows.receive("2.1", series_uid="1.2.3.5")
        made.user("anna")
        yield made


@pytest.fixture(scope="module")
def api(filled: Site) -> schemathesis.BaseSchema:
    document = filled.client().get("/api/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=filled.url)
    return schema


def questions(api: schemathesis.BaseSchema) -> Iterator[SearchStrategy[schemathesis.Case]]:
    """For each operation what it allows, and, where it takes anything at all, what it does not."""
    for found in api.exclude(path_regex=APART).get_all_operations():
        operation = found.ok()
        yield operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        if operation.path_parameters or operation.query or operation.body:
            yield operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)


def test_nothing_that_is_asked_makes_the_server_fail(
    filled: Site, api: schemathesis.BaseSchema
) -> None:
    assert sum(_asked(question, _token(filled)) for question in questions(api)) > 300


def _asked(question: SearchStrategy[schemathesis.Case], token: str) -> int:
    """Ask some of them; how many."""
    asked = 0

    @settings(
        max_examples=OF_EACH,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=question)
    def ask(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        headers = {"Authorization": f"Bearer {token}"}
        case.call_and_validate(headers=headers, checks=CHECKS, timeout=30.0)

    ask()
    return asked


def _token(filled: Site) -> str:
    """A new one, since a question may be to revoke it."""
    client = filled.program(Role.ADMINISTRATOR, "schemathesis")
    return str(client.headers["Authorization"]).removeprefix("Bearer ")
