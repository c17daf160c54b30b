"""config.schema.json is what the configuration's own models say, and fits what they take."""

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from node.config.reading import first
from node.config.schema import schema

ROOT = Path(__file__).parents[2]
DESTINATION = '[[destination]]\nname = "pacs"\nae_title = "PACS"\nhost = "h"\nport = 104\n'
ROUTE = '[[route]]\nname = "r"\nmodel = "linear"\nfactor = 2\ndestinations = []\n'


def mistakes(text: str) -> list[str]:
    validator = jsonschema_rs.validator_for(json.loads(json.dumps(schema())))
    document: Any = tomllib.loads(text)
    return [error.message for error in validator.iter_errors(document)]


def test_the_file_in_the_repository_is_current() -> None:
    held = (ROOT / "config.schema.json").read_text()
    assert json.loads(held) == json.loads(json.dumps(schema())), "make docs"


def test_it_is_a_schema() -> None:
    assert jsonschema_rs.meta.is_valid(json.loads(json.dumps(schema())))


def test_what_is_shipped_is_valid() -> None:
    assert mistakes((ROOT / "config.toml").read_text()) == []
    assert mistakes(first()) == []
    assert mistakes("") == []


@pytest.mark.parametrize(
    "text",
    [
        f"{DESTINATION}tls = true\n",
        f'{DESTINATION}tls = {{ server_name = "a" }}\ncommitment = {{}}\n',
        f"{DESTINATION}sends_as = ['A', 'B']\nleave_out = ['report']\n",
        f'{ROUTE}match = {{ Modality = "CT", gap_mm = {{ min = 2 }}, kernel = ["soft"] }}\n',
        '[[model]]\nname = "ours"\nclass = "ours.net:Net"\n',
        '[tls]\nae_titles = { CT1 = ["ct1.example.org"] }\n',
        '[node]\nallowed_networks = ["10.0.0.0/8"]\n',
    ],
)
def test_what_the_configuration_takes_is_valid(text: str) -> None:
    assert mistakes(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "[node]\nae_titel = 'X'\n",
        "[node]\nport = 70000\n",
        "[node]\nport = '104'\n",
        "[noed]\nport = 104\n",
        "[destination]\nname = 'pacs'\n",
        '[[destination]]\nname = "pacs"\n',
        f"{DESTINATION}tls = 'yes'\n",
        f"{ROUTE}match = {{ Modality = {{}} }}\n",
        f"{ROUTE}match = {{ Modality = {{ like = 'CT' }} }}\n",
        f"{ROUTE}factor = 11\n".replace("factor = 2\n", ""),
        "[notify]\nevents = ['job_hold']\n",
    ],
)
def test_a_mistake_is_marked(text: str) -> None:
    assert mistakes(text) != []
