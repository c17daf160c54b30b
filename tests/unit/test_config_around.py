"""The tables around the work: who may look, who is told, what is tried by itself."""

import json
from pathlib import Path

import pytest

from node import config
from node.config import Config
from node.config.reading import from_values, to_values
from node.errors import ConfigError

DESTINATION = '[[destination]]\nname = "pacs"\nae_title = "P"\nhost = "h"\nport = 1\n'


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return config.load(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[notify]\nevents = ["job_heldd"]', "notify.events[0]"),
        ('[notify]\nwebhooks = ["chat.example.org"]', 'an address as "https://'),
        ('[notify]\nwebhooks = ["http://:80/"]', 'an address as "https://'),
        ('[notify]\nwebhooks = ["file:///etc/passwd"]', 'an address as "https://'),
        ('[notify]\nmail_to = ["a b@c"]', 'a mail address as "pacs@example.org"'),
        ('[notify]\nmail_to = ["a@b\\nBcc: x@y"]', "a mail address as"),
        ('[notify]\nmail_to = ["a@b"]', "mail_to needs smtp_host and mail_from"),
        ('[notify]\nsmtp_security = "ssl"', '"none", "starttls" or "tls"'),
        ('[[sender]]\nae_title = "CT2"\nhours = "7-18"', 'two times as "07:00-18:00"'),
        ('[[sender]]\nae_title = "CT2"\nhours = "07:00-24:00"', 'two times as "07:00-18:00"'),
        ('[[sender]]\nae_title = "CT2"\ndays = ["monday"]', "sender[0].days"),
        ('[[sender]]\nhours = ""', "sender[0].ae_title: missing"),
        (
            '[[sender]]\nae_title = "CT2"\n[[sender]]\nae_title = "CT2"',
            'sender.ae_title = "CT2": different for each sender',
        ),
        ('[selftest]\ndestination = "pasc"\n' + DESTINATION, "did you mean pacs?"),
        ('[selftest]\nmodel = "liner"', "did you mean linear?"),
        ("[selftest]\nminutes = 0", "selftest.minutes = 0: a number above 0"),
        ('[web]\nuser_header = "Remote-User"', "name the web.trusted_proxies too"),
        ('[web]\ntrusted_proxies = ["10.0.0.1/8"]', 'as "10.0.0.0/8"'),
        ('[web]\nuser_header = "Remote User"', "web.user_header"),
        ("[web]\nsession_hours = 0.0", "web.session_hours"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    (problem,) = refused.value.problems
    assert said in problem


WHOLE = f"""
[node]
ae_title = "NODE"
allowed_networks = ["10.0.0.0/8"]
[storage]
folder = "var"
secret_file = "secret"
database = "postgresql://node:hunter2@db/midslice"
[notify]
webhooks = ["https://chat.example.org/hook/T0KEN"]
mail_to = ["a@example.org"]
mail_from = "m@example.org"
smtp_host = "mail"
smtp_password_file = "password"
[web]
trusted_proxies = ["10.1.0.0/16"]
user_header = "Remote-User"
[[sender]]
ae_title = "CT2"
hours = "07:00-18:00"
days = ["mon"]
{DESTINATION}
sends_as = ["WS1", "WS2"]
[[route]]
name = "a"
match = {{ Modality = ["CT", "PT"], gap_mm = {{ min = 2 }}, ImageType = {{ has = "AXIAL" }} }}
model = "linear"
factor = 3
destinations = ["pacs"]
"""


def test_the_configuration_comes_back_from_the_database_as_it_was(tmp_path: Path) -> None:
    read = load(tmp_path, WHOLE)
    again = from_values(json.loads(json.dumps(to_values(read))))
    changed = {"storage", "notify"}  # their secrets are left out
    for name in Config.model_fields.keys() - changed:
        assert getattr(again, name) == getattr(read, name), name
    assert again.storage.folder == read.storage.folder
    assert again.notify.mail_to == read.notify.mail_to


def test_no_password_gets_into_the_database(tmp_path: Path) -> None:
    told = json.dumps(to_values(load(tmp_path, WHOLE)))
    assert "hunter2" not in told
    assert "T0KEN" not in told
    assert "chat.example.org" in told


def test_an_empty_file_has_everything_that_a_page_asks_for(tmp_path: Path) -> None:
    read = load(tmp_path, "")
    assert from_values(to_values(read)) == read
    assert (read.web.session_hours, read.web.idle_minutes) == (12.0, 60.0)
    assert (read.notify.webhooks, read.selftest.every_hours, read.senders) == ((), 0.0, ())
