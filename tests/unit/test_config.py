"""config.toml: what it may say, and what is said about each mistake in it."""

import json
import pickle
import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import Config, load
from node.config.reading import from_values, to_values
from node.errors import ConfigError, UsageError

SHIPPED = Path(__file__).parents[2] / "config.toml"
DESTINATION = '[[destination]]\nname = "pacs"\nae_title = "PACS"\nhost = "h"\nport = 104\n'
ROUTE = '[[route]]\nname = "r"\nmodel = "linear"\nfactor = 2\ndestinations = []\n'


def read(folder: Path, text: str, name: str = "config.toml") -> Config:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load(path)


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    prefix = f"{folder / 'config.toml'}: "
    assert all(problem.startswith(prefix) for problem in caught.value.problems)
    return [problem.removeprefix(prefix) for problem in caught.value.problems]


def mistake(folder: Path, text: str) -> str:
    (only,) = mistakes(folder, text)
    return only


def test_the_shipped_file_is_accepted_and_shows_every_default() -> None:
    shipped = load(SHIPPED)
    for section in ("node", "storage", "completion", "inference", "delivery", "web"):
        kind = type(getattr(shipped, section))
        defaults = kind.model_validate({}, context={"folder": SHIPPED.parent})
        assert getattr(shipped, section) == defaults, section
    assert [d.name for d in shipped.destinations] == ["pacs"]
    (route,) = shipped.routes
    assert (route.model, route.target_spacing_mm, route.destinations) == (
        "midslice",
        1.25,
        ("pacs",),
    )
    assert route.match["Modality"].values == ("CT",)
    assert route.match["ImageType"].has == "AXIAL"
    assert route.match["gap_mm"].min == 2.0


def test_the_shipped_file_names_every_key_that_there_is() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    for part in Config.model_fields:
        value = getattr(load(SHIPPED), part)
        for section in value if isinstance(value, tuple) else [value]:
            for name, field in getattr(type(section), "model_fields", {}).items():
                key = field.alias or name
                assert f"{key} = " in text or f"[{part}.{key}]" in text, f"{part}: {name}"
    assert "# class = " in text
    assert "# weights_sha256 = " in text


def test_an_empty_file_is_a_node_without_routes(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert config.node.port == 11112
    assert (config.destinations, config.routes, config.models) == ((), (), ())
    assert config.called_ae_titles == ("MIDSLICE",)


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = (
        '[storage]\nfolder = "kept"\nsecret_file = "../secret"\ndatabase = "sqlite:///rows.db"\n'
        '[[model]]\nname = "ours"\nclass = "ours.net:Net"\nweights = "net.bin"\n'
    )
    config = read(tmp_path, text)
    assert config.folder == tmp_path / "kept"
    assert config.storage.secret_file == tmp_path.parent / "secret"
    assert config.storage.database == f"sqlite:///{tmp_path}/rows.db"
    assert config.models[0].weights == tmp_path / "net.bin"


def test_absolute_paths_and_a_server_database_stay_as_they_are(tmp_path: Path) -> None:
    url = "postgresql+psycopg://user:word@db/midslice"
    config = read(tmp_path, f'[storage]\nfolder = "/srv/midslice"\ndatabase = "{url}"\n')
    assert (config.folder, config.storage.database) == (Path("/srv/midslice"), url)


def test_a_configuration_cannot_be_changed_and_can_go_to_another_process(tmp_path: Path) -> None:
    config = read(tmp_path, DESTINATION + ROUTE + 'match = { Modality = "CT" }\n')
    with pytest.raises(ValueError, match="frozen"):
        config.node.port = 1
    assert pickle.loads(pickle.dumps(config)) == config


def test_every_mistake_is_found_at_once(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        "[node]\nport = 70000\n[web]\nport = -1\n"
        '[[destination]]\nname = "a b"\nae_title = "X"\nhost = "h"\nport = "x"\n'
        '[[route]]\nname = "r"\nmodel = "nothing"\nfactor = 2\ndestinations = ["pac"]\n',
    )
    assert [line.split(" = ")[0].split(":")[0] for line in found] == [
        "node.port",
        "web.port",
        "destination[0].name",
        "destination[0].port",
        "route[0].destinations",
        "route[0].model",
    ]


def test_a_mistake_names_the_key_the_value_and_what_is_allowed(tmp_path: Path) -> None:
    text = DESTINATION * 2 + DESTINATION.replace("104", '"x"')
    assert 'destination[2].port = "x": integer 1-65535' in mistakes(tmp_path, text)


def test_an_unknown_key_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    said = mistake(tmp_path, DESTINATION.replace("port", 'ae_titel = "X"\nport'))
    assert said.startswith(
        "destination[0]: unknown key 'ae_titel'; allowed: ae_title, answer_seconds, "
        "associations, calling_ae_title, commitment, host, kind, leave_out, name,"
    )
    assert said.endswith("did you mean ae_title?")


def test_what_is_left_out_for_a_destination_is_a_kind_of_object(tmp_path: Path) -> None:
    said = mistake(tmp_path, DESTINATION.replace("port", 'leave_out = ["mask"]\nport'))
    assert said.startswith("destination[0].leave_out")
    assert "segmentation" in said
    unknown = mistake(tmp_path, "[nodes]\n")
    assert unknown.startswith("unknown key 'nodes'; allowed: audit, completion,")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[node]\nport = "x"', 'node.port = "x": integer 0-65535'),
        ("[node]\nport = true", "node.port = true: integer 0-65535"),
        ("[node]\nport = 104.0", "node.port = 104.0: integer 0-65535"),
        ("[node]\nidle_seconds = nan", "node.idle_seconds = NaN: a number above 0"),
        ("[node]\nmax_associations = 0", "node.max_associations = 0: integer 1-1000"),
        ("[completion]\nquiet_seconds = 0", "completion.quiet_seconds = 0: a number above 0"),
        ('[inference]\ndevice = "gpu"', 'inference.device = "gpu": "auto", "cpu", "cuda" or'),
        ("[storage]\nfolder = 3", "storage.folder = 3: a path"),
        ('[storage]\nfolder = ""', 'storage.folder = "": a path'),
        (
            "[delivery]\nretry_seconds = [30]",
            "delivery.retry_seconds[1]: missing; [first, longest]",
        ),
        ("[delivery]\nretry_seconds = [9, 3]", "delivery.retry_seconds = [9, 3]: [first, longest]"),
        ("node = 3", "node = 3: a table, written [node]"),
        ("destination = 3", "destination = 3: tables, each written [[destination]]"),
        ("[destination]\n", "destination = {}: tables, each written [[destination]]"),
        ("[web]\nport = 11112", "web.port = 11112: another port than node.port"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert mistake(tmp_path, text).startswith(expected)


@pytest.mark.parametrize("title", ["", "SEVENTEEN_LETTERS", "A\\\\B", "TAB\\tTAB", "ÄRZTE", "   "])
def test_an_ae_title_has_1_to_16_characters_without_backslash_or_control(
    tmp_path: Path, title: str
) -> None:
    assert "1-16 ASCII characters without backslash" in mistake(
        tmp_path, f'[node]\nae_title = "{title}"\n'
    )


def test_spaces_around_an_ae_title_do_not_count(tmp_path: Path) -> None:
    assert read(tmp_path, '[node]\nae_title = " CT 1 "\n').node.ae_title == "CT 1"


def test_networks_are_cidr_and_a_single_address_is_one(tmp_path: Path) -> None:
    config = read(tmp_path, '[node]\nallowed_networks = ["10.1.0.0/16", "fd00::/8", "10.2.3.4"]\n')
    assert config.node.allowed_networks == tuple(
        map(ip_network, ["10.1.0.0/16", "fd00::/8", "10.2.3.4/32"])
    )


def test_a_wrong_network_is_told_what_was_probably_meant(tmp_path: Path) -> None:
    text = '[node]\nallowed_networks = ["10.1.2.3/16"]\n'
    assert mistake(tmp_path, text) == (
        'node.allowed_networks[0] = "10.1.2.3/16": a network without host bits, as "10.1.0.0/16"'
    )
    assert "a network as" in mistake(tmp_path, '[node]\nallowed_networks = ["all"]\n')


def test_a_time_zone_must_exist(tmp_path: Path) -> None:
    assert read(tmp_path, '[node]\ntimezone = "Europe/Paris"\n').node.zone is not None
    assert "did you mean Europe/Berlin?" in mistake(tmp_path, '[node]\ntimezone = "Europe/Berln"\n')


def test_the_password_of_a_database_is_not_repeated(tmp_path: Path) -> None:
    said = mistake(tmp_path, '[storage]\ndatabase = "mysql://user:geheim@db/x"\n')
    assert "geheim" not in said
    assert "SQLite or PostgreSQL" in said


def test_the_address_of_a_webhook_is_not_repeated(tmp_path: Path) -> None:
    said = mistake(tmp_path, '[notify]\nwebhooks = ["htps://anna:geheim@chat.example/T0KEN"]\n')
    assert "geheim" not in said and "T0KEN" not in said
    assert 'an address as "https://' in said


def test_a_password_among_the_parameters_of_a_database_is_not_shown(tmp_path: Path) -> None:
    text = '[storage]\ndatabase = "postgresql://node@db/x?password=hunter2&sslpassword=geheim"\n'
    shown = json.dumps(to_values(read(tmp_path, text)))
    assert "hunter2" not in shown and "geheim" not in shown
    assert "postgresql://node@db/x" in shown


def test_a_destination_is_asked_for_storage_commitment_at_itself_or_elsewhere(
    tmp_path: Path,
) -> None:
    (alone,) = read(tmp_path, DESTINATION).destinations
    assert (alone.commitment, alone.reporting_ae_titles) == (None, frozenset())
    (itself,) = read(tmp_path, DESTINATION + "commitment = { }\n").destinations
    assert itself.commitment_address("MIDSLICE") == itself.address("MIDSLICE")
    assert itself.reporting_ae_titles == {"PACS"}
    other = 'commitment = { ae_title = "CMT", host = "other", port = 11 }\nsends_as = ["PACS2"]\n'
    (elsewhere,) = read(tmp_path, DESTINATION + other).destinations
    assert elsewhere.commitment_address("MIDSLICE") == ("CMT", "other", 11, "MIDSLICE", None)
    assert elsewhere.reporting_ae_titles == {"PACS", "PACS2", "CMT"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{ port = 0 }", "destination[0].commitment.port = 0: integer 1-65535"),
        ("{ give_up_hours = 0 }", "destination[0].commitment.give_up_hours = 0: a number above 0"),
        (
            '{ aetitle = "X" }',
            "destination[0].commitment: unknown key 'aetitle'; allowed: ae_title, give_up_hours, "
            "host, port, wait_seconds; did you mean ae_title?",
        ),
        (
            "true",
            "destination[0].commitment = true: a table of ae_title, host, port, give_up_hours, "
            "wait_seconds; { } = all as they are",
        ),
    ],
)
def test_a_mistake_in_a_table_within_a_table_is_named_like_any_other(
    tmp_path: Path, value: str, said: str
) -> None:
    assert mistake(tmp_path, DESTINATION + f"commitment = {value}\n") == said


def test_a_sender_that_may_ask_for_storage_commitment_has_an_address(tmp_path: Path) -> None:
    sender = '[[sender]]\nae_title = "CT1"\nsilent_hours = 0\n'
    said = mistake(tmp_path, sender + 'commitment = { host = "ct1" }\n')
    assert said == "sender[0].commitment.port: missing; integer 1-65535"
    (ct,) = read(tmp_path, sender + 'commitment = { host = "ct1", port = 104 }\n').senders
    assert (ct.commitment is not None) and ct.commitment.port == 104


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    said = mistake(tmp_path, DESTINATION.replace("port = 104\n", ""))
    assert said == "destination[0].port: missing; integer 1-65535"


def test_names_are_used_once(tmp_path: Path) -> None:
    said = mistakes(tmp_path, DESTINATION * 2 + ROUTE * 3)
    assert said == [
        'destination.name = "pacs": different for each destination, but 2 have it',
        'route.name = "r": different for each route, but 3 have it',
    ]


def test_a_route_names_destinations_that_exist(tmp_path: Path) -> None:
    text = DESTINATION + ROUTE.replace("[]\n", '["pacs", "pac", "pacs"]\n')
    assert mistakes(tmp_path, text) == [
        'route[0].destinations: "pacs" is named 2 times',
        'route[0].destinations: unknown destination "pac"; allowed: pacs, sender; '
        "did you mean pacs?",
    ]


def test_a_mistake_in_a_destination_does_not_make_the_routes_to_it_wrong(tmp_path: Path) -> None:
    text = DESTINATION.replace("104", "0") + ROUTE.replace("[]\n", '["pacs"]\n')
    assert mistake(tmp_path, text) == "destination[0].port = 0: integer 1-65535"


def test_sender_means_one_destination(tmp_path: Path) -> None:
    route = ROUTE.replace("[]\n", '["sender"]\n')
    other = DESTINATION.replace('"pacs"', '"old"').replace('"PACS"', '"OLD"')
    assert read(tmp_path, DESTINATION + other + route).routes[0].destinations == ("sender",)
    said = mistake(tmp_path, DESTINATION + other + 'sends_as = ["PACS"]\n' + route)
    assert '2 destinations have the AE title "PACS"' in said
    assert "sender" in mistake(tmp_path, DESTINATION.replace('"pacs"', '"sender"'))


def test_a_route_has_a_factor_or_a_target_spacing(tmp_path: Path) -> None:
    both = mistake(tmp_path, ROUTE + "target_spacing_mm = 1.0\n")
    assert both == "route[0]: factor and target_spacing_mm exclude each other; give one of them"
    neither = mistake(tmp_path, ROUTE.replace("factor = 2\n", ""))
    assert neither == "route[0]: missing factor or target_spacing_mm; give one of them"


MASKED = '[[route]]\nname = "r"\nmodel = "brain"\ndestinations = []\n'


def test_a_route_to_a_model_of_masks_has_no_option_on_slices(tmp_path: Path) -> None:
    (route,) = read(tmp_path, MASKED).routes
    assert not route.makes_slices
    for option in ("factor = 2", "target_spacing_mm = 1.0", "hold_below = 0.1", "overlay = true"):
        name = option.partition(" ")[0]
        said = f"route[0].{name}: only for a model that makes slices; brain makes a mask"
        assert mistake(tmp_path, f"{MASKED}{option}\n") == said


def test_a_model_of_the_site_says_that_it_makes_masks(tmp_path: Path) -> None:
    ours = '[[model]]\nname = "ours"\nclass = "ours.net:Net"\nproduces = "mask"\n'
    config = read(tmp_path, MASKED.replace("brain", "ours") + ours)
    assert config.models[0].spec.produces == "mask"
    other = mistake(tmp_path, ours.replace('"mask"', '"words"'))
    assert other == 'model[0].produces = "words": "slices", "mask", "scores" or "findings"'


def test_a_route_to_a_model_of_scores_may_take_children_and_says_nothing_of_slices(
    tmp_path: Path,
) -> None:
    scored = MASKED.replace("brain", "haemorrhage")
    (route,) = read(tmp_path, f"{scored}accept_children = true\n").routes
    assert route.output.accept_children
    said = "route[0].factor: only for a model that makes slices; haemorrhage makes scores"
    assert mistake(tmp_path, f"{scored}factor = 2\n") == said
    said = "only for a model that makes scores or findings; brain makes a mask"
    assert mistake(tmp_path, f"{MASKED}accept_children = true\n").endswith(said)


def test_a_route_to_a_model_of_findings_says_how_many_and_in_which_report(
    tmp_path: Path,
) -> None:
    ours = '[[model]]\nname = "ours"\nclass = "ours.net:Net"\nproduces = "findings"\n'
    found = MASKED.replace("brain", "ours")
    (route,) = read(tmp_path, f'{found}max_findings = 3\nreport = "2d"\n{ours}').routes
    assert (route.output.max_findings, route.output.report) == (3, "2d")
    (plain,) = read(tmp_path, found + ours).routes
    assert (plain.output.max_findings, plain.output.report) == (10, "3d")
    for fault, said in (
        ("max_findings = 0", "route[0].max_findings = 0: integer 1-100"),
        ('report = "pdf"', 'route[0].report = "pdf": "3d" or "2d"'),
        ("factor = 2", "route[0].factor: only for a model that makes slices; ours makes findings"),
    ):
        assert mistake(tmp_path, f"{found}{fault}\n{ours}") == said
    said = "only for a model that makes findings; brain makes a mask"
    assert mistake(tmp_path, f"{MASKED}max_findings = 3\n").endswith(said)


def test_the_self_test_runs_a_model_of_slices(tmp_path: Path) -> None:
    said = mistake(tmp_path, '[selftest]\nmodel = "brain"\n')
    assert said == 'selftest.model = "brain": a model that makes slices'


@pytest.mark.parametrize("factor", [-1, 0, 1, 11, 2.0])
def test_a_factor_is_a_whole_number_from_2_to_10(tmp_path: Path, factor: float) -> None:
    text = ROUTE.replace("factor = 2", f"factor = {factor}")
    assert mistake(tmp_path, text) == f"route[0].factor = {factor}: integer 2-10"


def test_a_route_names_a_model_of_the_product_or_of_the_site(tmp_path: Path) -> None:
    route = ROUTE.replace('"linear"', '"ours"')
    assert mistake(tmp_path, route).startswith(
        'route[0].model = "ours": brain, brain-unet, haemorrhage, linear'
    )
    model = '[[model]]\nname = "ours"\nclass = "ours.net:Net"\n'
    assert read(tmp_path, route + model).models[0].class_path == "ours.net:Net"
    taken = mistake(tmp_path, model.replace('"ours"', '"linear"'))
    assert taken.startswith('model.name = "linear": another name')
    no_class = mistake(tmp_path, model.replace("ours.net:Net", "ours.net"))
    assert no_class.endswith('an importable class as "package.module:Class"')


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ('Modalty = "CT"', "route[0].match: unknown keyword 'Modalty'; allowed: a keyword of"),
        ('PixelData = "x"', "route[0].match: 'PixelData' holds no text or number"),
        ('SourceImageSequence = "x"', "route[0].match: 'SourceImageSequence' holds no"),
        ('Modality = { hass = "x" }', "route[0].match.Modality: unknown key 'hass'; allowed: has"),
        ('Modality = { regex = "(" }', 'route[0].match.Modality.regex = "(": a regular expression'),
        ("Modality = true", "route[0].match.Modality = true: a value, a list of values"),
        ("Modality = []", "route[0].match.Modality = []: a value, a list of values"),
        ("Modality = { }", "route[0].match.Modality = {}: a value, a list of values"),
        ("KVP = { min = 3, max = 2 }", "route[0].match.KVP = "),
        ('KVP = { min = "x" }', 'route[0].match.KVP.min = "x": '),
        ('gap_mm = "x"', "route[0].match.gap_mm: a number, a list of numbers"),
        ('tilt_degrees = { regex = "1" }', "route[0].match.tilt_degrees: a number, a list"),
        ('contrast = "none"', "route[0].match.contrast: one of yes, no, unknown; a list of them"),
        ('kernel = ["soft", "B30f"]', "route[0].match.kernel: one of soft, sharp, unknown;"),
        ('body_part = { has = "HEAD" }', "route[0].match.body_part: one of head, neck, chest,"),
        ('body_part = { regex = "head" }', "route[0].match.body_part: one of head, neck,"),
        ("contrast = true", "route[0].match.contrast = true: a value, a list of values"),
        ('bodypart = "head"', "route[0].match: unknown keyword 'bodypart'; allowed: a keyword"),
    ],
)
def test_a_mistake_in_a_match_is_named(tmp_path: Path, match: str, expected: str) -> None:
    assert mistake(tmp_path, ROUTE + f"match = {{ {match} }}\n").startswith(expected)


def test_a_file_that_is_no_toml_or_not_there_is_one_line(tmp_path: Path) -> None:
    assert "line 2" in mistake(tmp_path, "[node]\nport =\n")
    (tmp_path / "config.toml").write_bytes(b"[node]\nae_title = '\xff'\n")
    with pytest.raises(ConfigError, match="not UTF-8 text, at byte 19"):
        load(tmp_path / "config.toml")
    with pytest.raises(ConfigError, match="absent.toml: no such file; name one with --config"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)


def test_called_ae_titles_are_those_of_the_node_and_of_its_routes(tmp_path: Path) -> None:
    other = ROUTE.replace('"r"', '"s"') + 'called_ae_title = "MIDSLICE4"\n'
    assert read(tmp_path, ROUTE + other).called_ae_titles == ("MIDSLICE", "MIDSLICE4")


def test_asking_for_an_unknown_destination_says_which_there_are(tmp_path: Path) -> None:
    config = read(tmp_path, DESTINATION)
    assert config.destination("pacs").port == 104
    with pytest.raises(UsageError, match="unknown destination 'x'; there are: pacs"):
        config.destination("x")


def test_a_reload_takes_over_what_it_may_and_names_what_needs_a_restart(tmp_path: Path) -> None:
    old = read(tmp_path, DESTINATION + ROUTE)
    new = read(
        tmp_path,
        '[node]\nport = 104\nallowed_ae_titles = ["CT1"]\n[inference]\nworkers = 2\n'
        "[completion]\nquiet_seconds = 5.0\n",
    )
    assert list(old.needs_restart(new)) == ["node.port", "inference.workers"]
    now = old.reloaded(new)
    assert (now.node.port, now.node.allowed_ae_titles) == (11112, ("CT1",))
    assert (now.completion.quiet_seconds, now.routes, now.inference.workers) == (5.0, (), 1)


@given(st.text(max_size=40))
def test_any_text_is_a_configuration_or_one_line_an_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "config.toml"
    path.write_text(f"[node]\nae_title = {text}\n", encoding="utf-8", errors="replace")
    try:
        assert 1 <= len(load(path).node.ae_title) <= 16
    except ConfigError as error:
        assert all(problem.startswith(str(path)) for problem in error.problems)


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in mistake(tmp_path, text)


WHOLE = f"""
[node]
ae_title = "NODE"
allowed_networks = ["10.0.0.0/8"]
[storage]
folder = "var"
secret_file = "secret"
database = "postgresql://node:hunter2@db/midslice"
[notify]
webhooks = ["https://chat.example.org/hook/T0KEN", "https://anna:PASSW0RD@b.example:8443?key=K3Y"]
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
    config = read(tmp_path, WHOLE)
    again = from_values(json.loads(json.dumps(to_values(config))))
    changed = {"storage", "notify"}  # their secrets are left out
    for name in Config.model_fields.keys() - changed:
        assert getattr(again, name) == getattr(config, name), name
    assert again.storage.folder == config.storage.folder
    assert again.notify.mail_to == config.notify.mail_to


def test_no_password_gets_into_the_database(tmp_path: Path) -> None:
    text = json.dumps(to_values(read(tmp_path, WHOLE)))
    assert "hunter2" not in text
    for key in ("T0KEN", "anna", "PASSW0RD", "K3Y"):
        assert key not in text
    assert "https://chat.example.org/..." in text
    assert "https://b.example:8443/..." in text


def test_an_empty_file_has_everything_that_a_page_asks_for(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert from_values(to_values(config)) == config
    assert (config.web.session_hours, config.web.idle_minutes) == (12.0, 60.0)
    assert (config.notify.webhooks, config.selftest.every_hours, config.senders) == ((), 0.0, ())


TLS = '[tls]\ncertificate = "node.pem"\nkey = "node.key"\nauthorities = "ca.pem"\n'


def test_a_destination_takes_of_tls_what_it_does_not_say_itself(tmp_path: Path) -> None:
    (plain,) = read(tmp_path, TLS + DESTINATION).destinations
    assert plain.tls is None
    (short,) = read(tmp_path, TLS + DESTINATION + "tls = true\n").destinations
    assert short.tls is not None
    assert (short.tls.certificate, short.tls.key) == (tmp_path / "node.pem", tmp_path / "node.key")
    assert short.tls.authorities == tmp_path / "ca.pem"
    own = 'tls = { certificate = "other.pem", server_name = "pacs.example" }\n'
    (long,) = read(tmp_path, TLS + DESTINATION + own).destinations
    assert long.tls is not None
    assert (long.tls.certificate, long.tls.key) == (tmp_path / "other.pem", None)
    pinned = f'tls = {{ fingerprint = "{"AB:" * 31}AB" }}\n'
    (alone,) = read(tmp_path, DESTINATION + pinned).destinations
    assert alone.tls is not None
    assert alone.tls.authorities is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[tls]\ncertificate = "node.pem"\n', "authorities is missing"),
        ("[tls]\nrequired = true\n", "need a certificate"),
        (TLS + 'verify_clients = false\nae_titles = { CT1 = ["ct1"] }\n', "verify_clients = true"),
        (TLS + "port = 11112\n", "tls.port = 11112: another port than node.port"),
        (DESTINATION + "tls = true\n", 'destination "pacs".tls: by what is it known?'),
        (TLS + DESTINATION + 'tls = { fingerprint = "AB" }\n', "SHA-256 fingerprint"),
    ],
)
def test_a_mistake_about_tls_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        read(tmp_path, text)


def test_who_may_call_by_tls_is_read_again_and_the_port_is_not(tmp_path: Path) -> None:
    before = read(tmp_path, TLS)
    after = read(tmp_path, TLS + 'port = 2763\nrequired = true\nae_titles = { CT1 = ["ct1"] }\n')
    assert list(before.needs_restart(after)) == ["tls.port"]
    taken = before.reloaded(after).tls
    assert (taken.required, dict(taken.ae_titles), taken.port) == (True, {"CT1": ("ct1",)}, 2762)


@pytest.mark.parametrize(
    "address", ["javascript:alert({study_uid})", "https://viewer/", "https://v/{study_uid}{other}"]
)
def test_the_address_of_a_viewer_is_one_with_a_study(tmp_path: Path, address: str) -> None:
    said = mistake(tmp_path, f'[web]\nviewer_url = "{address}"\n')
    assert said.startswith("web.viewer_url = ")
