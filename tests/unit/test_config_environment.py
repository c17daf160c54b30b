"""Values of the environment take the place of those of config.toml, and say so."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import check
from node.config import Config, load
from node.config.environment import override
from node.config.reading import LISTS, TABLES, from_values, to_values
from node.errors import ConfigError

FILE = """
[node]
port = 104
[notify]
webhooks = ["https://chat.example.org/hook"]
[[destination]]
name = "my-pacs"
ae_title = "PACS"
host = "h"
port = 4242
[[sender]]
ae_title = "CT 2"
[[route]]
name = "r"
model = "linear"
factor = 2
destinations = ["my-pacs"]
"""


def read(folder: Path, **environ: str) -> Config:
    path = folder / "config.toml"
    path.write_text(FILE)
    return load(path, environ)


def mistakes(folder: Path, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(folder, **environ)
    return tuple(caught.value.problems)


def mistake(folder: Path, **environ: str) -> str:
    (only,) = mistakes(folder, **environ)
    return only


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("NODE__PORT", "11113", "node.port", 11113),
        ("NODE__AE_TITLE", "1234", "node.ae_title", "1234"),
        ("NODE__TIMEZONE", "", "node.timezone", ""),
        ("NODE__DIRECT_RECEIVE", "false", "node.direct_receive", False),
        ("NODE__IDLE_SECONDS", "5", "node.idle_seconds", 5.0),
        ("NODE__ALLOWED_AE_TITLES", '["A", "B"]', "node.allowed_ae_titles", ("A", "B")),
        ("STORAGE__FOLDER", "/srv/kept", "storage.folder", Path("/srv/kept")),
        ("STORAGE__SECRET_FILE", "/srv/s", "storage.secret_file", Path("/srv/s")),
        ("DELIVERY__RETRY_SECONDS", "[1, 2]", "delivery.retry_seconds", (1.0, 2.0)),
        ("NOTIFY__SMTP_SECURITY", "tls", "notify.smtp_security", "tls"),
        ("DESTINATION__MY_PACS__HOST", "orthanc", "destinations.0.host", "orthanc"),
        ("DESTINATION__MY_PACS__COMMITMENT", "{}", "destinations.0.commitment.port", None),
        ("DESTINATION__MY_PACS__COMMITMENT__PORT", "105", "destinations.0.commitment.port", 105),
        ("SENDER__CT_2__SILENT_HOURS", "1.5", "senders.0.silent_hours", 1.5),
        ("ROUTE__R__MATCH", '{ Modality = "MR" }', "routes.0.match.Modality.values", ("MR",)),
    ],
)
def test_a_variable_sets_a_key_of_any_kind(
    tmp_path: Path, variable: str, text: str, key: str, value: object
) -> None:
    here: object = read(tmp_path, **{f"MIDSLICE_{variable}": text})
    for name in key.split("."):
        if isinstance(here, tuple):
            here = here[int(name)]
        else:
            here = here[name] if isinstance(here, dict) else getattr(here, name)
    assert here == value


def test_the_environment_comes_before_the_file_and_the_file_before_the_default(
    tmp_path: Path,
) -> None:
    config = read(tmp_path, MIDSLICE_NODE__PORT="105")
    assert config.node.port == 105
    assert read(tmp_path).node.port == 104
    assert config.web.port == 8080
    assert config.environment == {"node.port": "MIDSLICE_NODE__PORT"}


def test_a_value_can_stand_in_a_file_as_secrets_do(tmp_path: Path) -> None:
    secret = tmp_path / "database_url"
    url = "postgresql+psycopg://midslice:pa'ss@database/midslice"
    secret.write_text(f"{url}\n")
    config = read(tmp_path, MIDSLICE_STORAGE__DATABASE_FILE=str(secret))
    assert config.storage.database == url
    assert "pa'ss" not in str(to_values(config))


@pytest.mark.parametrize(
    "variable", ["MIDSLICE_PORT", "MIDSLICE_SERVICE_HOST", "MIDSLICE", "OTHER_NODE__PORT"]
)
def test_a_variable_of_somebody_else_sets_nothing(tmp_path: Path, variable: str) -> None:
    assert read(tmp_path, **{variable: "tcp://10.0.0.1:80"}) == read(tmp_path)


@pytest.mark.parametrize(
    ("variable", "text", "sentence"),
    [
        ("NODE__PORT", "x", 'node.port = "x": integer 0-65535'),
        ("NODE__PORT", "", 'node.port = "": integer 0-65535'),
        ("NODE__AE_TITEL", "x", "unknown key 'ae_titel'; allowed: ae_title, "),
        ("NOED__PORT", "1", "unknown section 'noed'; allowed: "),
        ("DESTINATION__HOST", "x", "which destination? write MIDSLICE_DESTINATION__NAME__KEY"),
        ("DESTINATION__PACS2__HOST", "x", "no destination is called 'pacs2' in the file; there"),
        ("MODEL__OURS__WEIGHTS", "x", "no model is called 'ours' in the file; there are: none; a"),
        ("TLS__AE_TITLES__X", "x", "tls.ae_titles is no table whose keys can be set one by one"),
        ("DESTINATION__MY_PACS__COMMITMENT__X", "x", "unknown key 'x'; allowed: ae_title"),
        ("DESTINATION__MY_PACS__PORT", "0", "destination[0].port = 0: integer 1-65535"),
        ("STORAGE__DATABASE_FILE", "/no/such", "/no/such: No such file or directory; the value"),
        ("WEB__PORT", "104", "web.port = 104: another port than node.port"),
    ],
)
def test_a_mistake_names_the_variable(
    tmp_path: Path, variable: str, text: str, sentence: str
) -> None:
    said = mistake(tmp_path, **{f"MIDSLICE_{variable}": text})
    assert said.startswith(f"MIDSLICE_{variable}: {sentence}")


def test_a_mistake_of_the_file_still_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[web]\nport = 70000\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {"MIDSLICE_NODE__PORT": "70001"})
    assert [line.split(": ")[0] for line in caught.value.problems] == [
        "MIDSLICE_NODE__PORT",
        str(path),
    ]


def test_two_variables_for_one_key_are_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("sqlite:///a.db")
    said = mistake(
        tmp_path,
        MIDSLICE_STORAGE__DATABASE="sqlite:///b.db",
        MIDSLICE_STORAGE__DATABASE_FILE=str(tmp_path / "url"),
    )
    assert said.endswith("MIDSLICE_STORAGE__DATABASE sets storage.database too; keep one of them")


def test_no_message_repeats_a_password(tmp_path: Path) -> None:
    said = mistakes(
        tmp_path,
        MIDSLICE_STORAGE__DATABASE="mysql://midslice:hunter2@database/midslice",
        MIDSLICE_NOTIFY__WEBHOOKS="hunter2",
    )
    assert len(said) == 2
    assert "hunter2" not in str(said)


@pytest.mark.parametrize("section", sorted(TABLES))
def test_every_key_of_every_table_can_be_set(tmp_path: Path, section: str) -> None:
    for key in TABLES[section].model_fields:
        variable = f"MIDSLICE_{section}__{key}".upper()
        if key in ("certificate", "oidc"):  # each needs others
            continue
        value = getattr(getattr(load_defaults(tmp_path), section), key)
        if value is None and not key.endswith(("key", "authorities", "file")):
            continue  # a table that there is not
        text = written(value)
        assert load(tmp_path / "config.toml", {variable: text}).environment == {
            f"{section}.{key}": variable
        }


def test_a_table_in_a_table_is_set_as_a_whole(tmp_path: Path) -> None:
    load_defaults(tmp_path)
    text = (
        '{ issuer = "https://sso.example.org", client_id = "midslice", roles = { a = "viewer" }, '
    )
    text += 'public_url = "https://pages.example.org" }'
    oidc = load(tmp_path / "config.toml", {"MIDSLICE_WEB__OIDC": text}).web.oidc
    assert oidc is not None and oidc.roles == {"a": "viewer"}


def load_defaults(folder: Path) -> Config:
    path = folder / "config.toml"
    path.write_text("")
    return load(path, {})


def written(value: object) -> str:
    """A value as a variable has it: text as it is, anything else as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str([str(item) if isinstance(item, str) else item for item in value])
    return "" if value is None else str(value)


@settings(deadline=None)  # the first example makes the schemas
@given(
    st.sampled_from(["NODE__PORT", "NODE__HOST", "TLS__AE_TITLES", "NODE__PORT_FILE", "ROUTE__R"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0")),
)
def test_no_value_ends_in_anything_but_a_key_that_is_set_or_a_sentence(
    name: str, text: str
) -> None:
    variable = f"MIDSLICE_{name}"
    result = override({}, {variable: text}, TABLES, LISTS)
    assert [*result.variables.values(), *(it.split(": ")[0] for it in result.problems)] == [
        variable
    ]


def test_check_and_pages_say_what_the_environment_sets(tmp_path: Path) -> None:
    config = read(tmp_path, MIDSLICE_NODE__PORT="0", MIDSLICE_DESTINATION__MY_PACS__PORT="1")
    said = [finding.sentence for finding in check.run(config) if finding.what == "environment"]
    assert said == [
        "MIDSLICE_DESTINATION__MY_PACS__PORT sets destination[0].port, whatever the file says",
        "MIDSLICE_NODE__PORT sets node.port, whatever the file says",
    ]
    assert from_values(to_values(config)).environment == config.environment


def test_a_list_that_may_be_set_names_its_entries() -> None:
    for name, kind in LISTS.items():
        assert {"name", "ae_title"} & set(kind.model_fields), name
