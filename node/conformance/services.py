"""Sections 1, 2 and 7 to 10 of the statement: what the node is, how it is set, what it is not."""

from inference import pipeline
from inference.header import RELEASE
from node.config import Condition, Config, Route
from node.conformance.markdown import bullets, listed, table
from node.health import DECODER_PACKAGES


def overview(config: Config) -> list[str]:
    """What the product is and what it does on the network."""
    titles = listed(config.called_ae_titles, empty="none")
    return [
        "# DICOM conformance statement of Midslice",
        f"Release {RELEASE}. Written by `midslice conformance` from the configuration of the node; "
        "the structure follows PS3.2 Annex N.",
        "## 1 Overview",
        "Midslice is a DICOM node beside a PACS. It receives CT series, generates the slices "
        "between the received ones, and sends the result back as a new derived series of the same "
        "study. The results are marked `RESEARCH` and say of each slice whether it was generated. "
        "They are not for primary diagnosis without the received slices, nor for radiotherapy "
        "planning, navigation, volumetry or dose.",
        table(
            ("service", "SCU", "SCP"),
            [
                ("Verification", "yes", "yes"),
                ("Storage", "yes", "yes"),
                ("Storage Commitment", "no", "no"),
                ("Query/Retrieve", "no", "no"),
                ("Modality Worklist, MPPS", "no", "no"),
                ("DICOMweb", "no", "no"),
                ("media", "no", "no"),
            ],
        ),
        f"It answers to {titles}. Of what it receives it creates CT Image Storage alone; it "
        "displays nothing.",
    ]


def model(config: Config) -> list[str]:
    """The implementation model: what leads to what."""
    rule = config.completion
    return [
        "## 2 Implementation model",
        "RECEIVE-AE keeps what peers send. PROCESS looks at a series when it is complete, and "
        "makes a derived series where a route asks for one. SEND-AE delivers it to the "
        "destinations of the route. They share a database and an archive on disk; each goes on "
        "without the others, and after a restart from where it stood.",
        "DICOM does not say when a series has ended. An arrival is complete when no instance of it "
        f"came for {rule.quiet_seconds:g} s; while an association that carried it is open, when "
        f"none came for {max(rule.quiet_seconds, rule.open_association_seconds):g} s. Instances "
        "that come later give a new derived series.",
        table(
            ("real-world activity", "what the node does"),
            [
                ("a peer sends a series", "keeps each instance, then answers"),
                ("a series is complete", "one job for each matching route and each stack"),
                ("a series is sent again, unchanged", "delivers the kept result once more"),
                ("a derived series is verified", "C-STORE to each destination of the route"),
                ("a peer sends a result of the node", "keeps it; no job"),
            ],
        ),
    ]


def configuration(config: Config) -> list[str]:
    """What is configured, as far as it concerns peers."""
    destinations = [
        (
            f"`{each.name}`",
            f"`{each.ae_title}`",
            f"{each.host}:{each.port}",
            listed(each.sends_as, empty="-"),
            f"`{each.calling_ae_title or config.node.ae_title}`",
        )
        for each in config.destinations
    ]
    first, longest = config.delivery.retry_seconds
    storage = config.storage
    return [
        "## 7 Configuration",
        "Everything is in `config.toml`. Of this node:",
        table(("destination", "AE title", "address", "sends as", "called by"), destinations),
        table(
            ("route", "called AE", "calling AE", "match", "model", "density", "destinations"),
            [_route(route, config) for route in config.routes],
        ),
        bullets(
            [
                f"C-STORE is answered A700 where less than {storage.min_free_gb:g} GB are free.",
                f"Delivered series are kept for {storage.keep_days:g} days, series without a route "
                f"or result for {storage.keep_unrouted_days:g} days; never removed is what is "
                "arriving, queued, running, held or unsent.",
                f"A destination that does not answer is tried again after {first:g} s, then less "
                f"often, at least every {longest:g} s; after {config.delivery.give_up_hours:g} "
                "hours the delivery is held.",
            ]
        ),
    ]


def character_sets() -> list[str]:
    """What happens to text."""
    return [
        "## 8 Character sets",
        "All character sets of PS3.3 C.12.1.1.2 pass through: copied text keeps its bytes and its "
        "Specific Character Set. What the node adds is ASCII.",
    ]


def security(config: Config) -> list[str]:
    """Who may do what."""
    node = config.node
    limits = [
        f"calling AE titles: {listed(node.allowed_ae_titles, empty='any')}",
        f"networks: {listed(node.allowed_networks, empty='any')}",
        f"associations at once: {node.max_associations}",
    ]
    return [
        "## 9 Security",
        bullets(limits),
        "TLS is not supported by this release; keep DICOM within a trusted network. The log holds "
        "no patient attribute. What a person does to a job is recorded as an audit event. Nothing "
        "is de-identified.",
    ]


def limitations() -> list[str]:
    """What the node does not do."""
    return [
        "## 10 Limitations",
        bullets(
            [
                "Only classic single-frame CT is processed; everything else is kept and has "
                "no job.",
                "Lossy sources are processed, and the result says that they were lossy.",
                f"A derived series has at most {pipeline.MOST_SLICES} slices and "
                f"{pipeline.MOST_BYTES >> 30} GiB.",
                f"{len(DECODER_PACKAGES)} compressed transfer syntaxes of CT can be decoded; "
                "others are kept, and their series refused with `NO_DECODER`.",
                "No IHE integration statement: profiles are claimed after their tests alone.",
            ]
        ),
    ]


def _route(route: Route, config: Config) -> tuple[str, ...]:
    density = f"factor {route.factor}"
    if route.target_spacing_mm is not None:
        density = f"every {route.target_spacing_mm:g} mm"
    match = "; ".join(f"{key} {_condition(each)}" for key, each in route.match.items())
    return (
        f"`{route.name}`",
        f"`{route.called_ae_title or config.node.ae_title}`",
        f"`{route.calling_ae_title}`" if route.calling_ae_title else "any",
        match or "everything",
        f"`{route.model}`",
        density,
        listed(route.destinations, empty="none (shadow mode)"),
    )


def _condition(each: Condition) -> str:
    said = []
    if each.values:
        said.append("= " + " or ".join(f"`{value}`" for value in each.values))
    if each.has is not None:
        said.append(f"has `{each.has}`")
    if each.regex is not None:
        said.append(f"matches `{each.regex}`")
    if each.min is not None:
        said.append(f"at least {each.min:g}")
    if each.max is not None:
        said.append(f"at most {each.max:g}")
    return " and ".join(said)
