"""Words of headers: contrast, kernel and body part, and which attribute decides."""

from collections.abc import Mapping, Sequence

import pytest

from inference.descriptions import READINGS, Said, body_part, contrast, kernel, word_of_contrast

SERIES, PROTOCOL, STUDY = "SeriesDescription", "ProtocolName", "StudyDescription"


def read(key: str, values: Mapping[str, str]) -> Said:
    def values_of(keyword: str) -> Sequence[str]:
        return tuple(values[keyword].split("\\")) if keyword in values else ()

    return READINGS[key][0](values_of)


@pytest.mark.parametrize(
    ("values", "expected", "where"),
    [
        ({}, "unknown", ""),
        ({"ContrastBolusAgent": "Ultravist 370"}, "yes", "ContrastBolusAgent has a value"),
        ({"ContrastBolusRoute": "IV"}, "yes", "ContrastBolusRoute has a value"),
        ({"ContrastBolusAgent": "NONE"}, "unknown", ""),
        ({"ContrastBolusAgent": "Iomeron", SERIES: "Head native"}, "yes", "ContrastBolusAgent has"),
        ({SERIES: "CTA Carotids 0.6"}, "yes", "SeriesDescription says CTA"),
        ({SERIES: "Abdomen C+ 5mm"}, "yes", "says C+"),
        ({SERIES: "Thorax portalvenoes"}, "yes", "says portalvenoes"),
        ({SERIES: "Abdomen_KM_5.0"}, "yes", "says KM"),
        ({SERIES: "Head POST contrast"}, "yes", "says POST"),
        ({SERIES: "Head wo_contrast"}, "no", "says wo_contrast"),
        ({SERIES: "NON-CONTRAST HEAD"}, "no", "says NON-CONTRAST"),
        ({SERIES: "Head without IV contrast"}, "no", "says without IV contrast"),
        ({SERIES: "CCT nativ 4.0"}, "no", "says nativ"),
        ({SERIES: "Schaedel ohne KM"}, "no", "says ohne KM"),
        ({SERIES: "Head C-"}, "no", "says C-"),
        ({SERIES: "C-spine 2.0"}, "unknown", ""),
        ({SERIES: "posterior fossa"}, "unknown", ""),
        ({SERIES: "Post Fossa 2.5"}, "unknown", ""),
        ({SERIES: "Head post-op"}, "unknown", ""),
        ({SERIES: "post-processed"}, "unknown", ""),
        ({SERIES: "portable head"}, "unknown", ""),
        ({SERIES: "Angiolini"}, "unknown", ""),
        ({SERIES: "CTAngio 0.6"}, "yes", "says CTAngio"),
        ({SERIES: "HeadAngio 0.6"}, "yes", "says Angio"),
        ({STUDY: "CT Head w/wo contrast"}, "unknown", "StudyDescription says w/wo"),
        ({STUDY: "CT Abdomen with and without contrast"}, "unknown", "says with and without"),
        # What is said of the series comes before what is said of the study.
        ({STUDY: "CT Angio Head", SERIES: "Head plain 5.0"}, "no", "SeriesDescription says plain"),
        ({PROTOCOL: "Head CTA", STUDY: "CT head w/o contrast"}, "yes", "ProtocolName says CTA"),
    ],
)
def test_contrast_is_read_from_the_agent_and_then_from_the_words(
    values: dict[str, str], expected: str, where: str
) -> None:
    said = read("contrast", values)
    assert said.values == (expected,)
    assert where in said.where
    assert bool(said.where) == bool(where)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            (name, "soft")
            for name in ("B30f", "H31s", "Br40d\\3", "I26f", "B08s", "Hr38h", "BR36D")
        ),
        *((name, "sharp") for name in ("B70f", "H60s", "Br64", "I70f\\3", "Bl80", "U90u")),
        *((name, "soft") for name in ("STANDARD", "SOFT", "STND", "FC08", "FC12", "FC64", "UB")),
        *((name, "sharp") for name in ("BONEPLUS", "LUNG", "EDGE", "FC30", "FC51", "FC81", "YC")),
        *((name, "unknown") for name in ("B50f", "DETAIL", "FC44", "CHST", "C", "", "Standing")),
    ],
)
def test_a_kernel_is_soft_or_sharp_by_the_name_that_its_vendor_gives(name: str, kind: str) -> None:
    values = {"ConvolutionKernel": name} if name else {}
    assert kernel(lambda keyword: values.get(keyword, "").split("\\")).values == (kind,)


def test_an_unnamed_kernel_is_unknown() -> None:
    assert read("kernel", {}) == Said(("unknown",))
    assert read("kernel", {"ConvolutionKernel": "B70f"}).where == "ConvolutionKernel is B70f"


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({}, ["unknown"]),
        ({"BodyPartExamined": "HEAD"}, ["head"]),
        ({"BodyPartExamined": "HEADNECK"}, ["head", "neck"]),
        ({"BodyPartExamined": "CHESTABDPELVIS"}, ["chest", "abdomen", "pelvis"]),
        ({"BodyPartExamined": "CSPINE"}, ["spine"]),
        ({"BodyPartExamined": "BRAIN"}, ["head"]),
        ({STUDY: "CT Thorax/Abdomen mit KM"}, ["chest", "abdomen"]),
        ({STUDY: "Sch\u00e4del nativ"}, ["head"]),
        ({STUDY: "Sch\u00e4del".encode().decode("latin-1")}, ["head"]),
        ({PROTOCOL: "01_HeadRoutine (Adult)"}, ["head"]),
        ({PROTOCOL: "Head_Routine"}, ["head"]),
        ({PROTOCOL: "LungenCT low dose"}, ["chest"]),
        ({SERIES: "Brustwirbelsaeule sag"}, ["spine"]),
        ({SERIES: "coronal 3.0", "BodyPartExamined": "CHEST"}, ["chest"]),
        ({SERIES: "HRCT", "BodyPartExamined": "ABDOMEN"}, ["chest"]),
        # Of a polytrauma the study names all, the series the one that it shows.
        ({STUDY: "CT Head Neck Chest Abdomen", SERIES: "Thorax 1.0 I70f"}, ["chest"]),
        ({STUDY: "CT Head Neck Chest", "BodyPartExamined": "CHEST"}, ["chest"]),
        ({STUDY: "hip-hop thoracic handed"}, ["limb"]),
    ],
)
def test_a_body_part_is_read_from_the_words_of_the_series_first(
    values: dict[str, str], parts: list[str]
) -> None:
    assert list(read("body_part", values).values) == parts


def test_the_word_that_decided_is_told_with_its_attribute() -> None:
    said = read("body_part", {"BodyPartExamined": "", STUDY: "CT Kopf/Hals"})
    assert said == Said(("head", "neck"), "StudyDescription says Kopf, Hals")
    assert word_of_contrast("Kopf mit KM") == "KM"


@pytest.mark.parametrize("key", READINGS)
def test_only_the_values_of_the_table_are_read(key: str) -> None:
    _, allowed = READINGS[key]
    for words in ("CT head chest C+", "B70f", "native", ""):
        values = {SERIES: words, "ConvolutionKernel": words}
        assert set(read(key, values).values) <= set(allowed)


def test_attributes_that_are_read_are_those_that_say_it() -> None:
    assert contrast(lambda _: ()).values == body_part(lambda _: ()).values == ("unknown",)
