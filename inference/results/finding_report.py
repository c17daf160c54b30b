"""The report of findings (TID 1500): a measurement group for each of them, on its segment."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from inference.dataset import Header
from inference.header import Elements
from inference.model import Segment
from inference.results.findings import SIDES, NumberedFinding
from inference.results.making import Making, Reference
from inference.results.reports import algorithm, coded, report, source_image, tracking

if TYPE_CHECKING:
    from highdicom.sr import (
        FindingSite,
        Measurement,
    )

MM, MM3, PERCENT = codes.UCUM.Millimeter, codes.UCUM.CubicMillimeter, codes.UCUM.Percent
DIAMETER, VOLUME = codes.SCT.Diameter, codes.SCT.Volume
LONG_AXIS, SHORT_AXIS = codes.SCT.LongAxis, codes.SCT.ShortAxis
CERTAINTY = codes.DCM.CertaintyOfFinding
ABSENT = Code("272519000", "SCT", "Absent")
REPORT = "report"  # its place among the UIDs of a job


def report_on_segments(
    findings: Sequence[NumberedFinding],
    segmented: Reference,
    headers: Sequence[Header],
    text: str,
    making: Making,
) -> Elements:
    """A Comprehensive 3D SR with a group for each finding (TID 1411), on its segment."""
    from highdicom.sr import (  # takes seconds to load
        ReferencedSegment,
        SourceSeriesForSegmentation,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    source = SourceSeriesForSegmentation(headers[0].text("SeriesInstanceUID"))
    groups = [
        VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=tracking(making, of.label),
            referenced_segment=ReferencedSegment(
                segmented.sop_class_uid, segmented.instance_uid, of.number, source_series=source
            ),
            finding_type=coded(of.kind.kind),
            algorithm_id=algorithm(making),
            finding_sites=_sites(of.kind, of.finding.site),
            measurements=_measurements(of),
        )
        for of in findings
    ]
    return report(
        headers[0],
        groups,
        [segmented],
        text,
        making,
        what=f"{findings[0].kind.label} report",
        number=0,
        place=REPORT,
        sop_class="Comprehensive 3D",
    )


def report_on_outlines(
    findings: Sequence[NumberedFinding], headers: Sequence[Header], text: str, making: Making
) -> Elements:
    """A Comprehensive SR for those who take no 3D one (TID 1410).

    A group for each finding, on its outline in the slice where it is largest.
    """
    from highdicom.sr import (
        ImageRegion,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        SourceImageForRegion,
    )

    middle = {of.number: Reference.of(headers[of.middle]) for of in findings}
    groups = [
        PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=tracking(making, of.label),
            referenced_region=ImageRegion(
                "POLYLINE",
                np.array(of.outline(), float),
                SourceImageForRegion(
                    middle[of.number].sop_class_uid, middle[of.number].instance_uid
                ),
            ),
            finding_type=coded(of.kind.kind),
            algorithm_id=algorithm(making),
            finding_sites=_sites(of.kind, of.finding.site),
            measurements=_measurements(of),
        )
        for of in findings
    ]
    return report(
        headers[0],
        groups,
        list(dict.fromkeys(middle.values())),
        text,
        making,
        what=f"{findings[0].kind.label} report",
        number=0,
        place=REPORT,
    )


def report_of_absence(
    kind: Segment, headers: Sequence[Header], text: str, making: Making, *, is_3d: bool = True
) -> Elements:
    """A report with one group, of the series (TID 1501): nothing reached the threshold.

    The algorithm of the group states the threshold, and the group one slice of the series.
    """
    from highdicom.sr import (
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
    )

    middle = Reference.of(headers[len(headers) // 2])
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking(making, f"{kind.label} of the series"),
        finding_type=coded(kind.kind),
        algorithm_id=algorithm(making),
        finding_sites=_sites(kind, ""),
        qualitative_evaluations=[QualitativeEvaluation(coded(kind.kind), ABSENT)],
        source_images=[source_image(middle)],
    )
    return report(
        headers[0],
        [group],
        [middle],
        text,
        making,
        what=f"{kind.label} report",
        number=0,
        place=REPORT,
        sop_class="Comprehensive 3D" if is_3d else "Comprehensive",
    )


def _sites(kind: Segment, side: str) -> list["FindingSite"] | None:
    from highdicom.sr import FindingSite

    if kind.region is None:
        return None
    laterality = SIDES.get(side)
    return [FindingSite(coded(kind.region), coded(laterality) if laterality else None)]


def measured(finding: NumberedFinding) -> list[tuple[str, float]]:
    """(code, value) of all that a report says of a finding in numbers."""
    return [(name.value, value) for name, value, _ in _values(finding)]


def _values(finding: NumberedFinding) -> list[tuple[Code, float, Code]]:
    of = finding.finding
    return [
        (DIAMETER, of.diameter_mm, MM),
        (LONG_AXIS, round(of.long_axis_mm, 1), MM),
        (SHORT_AXIS, round(of.short_axis_mm, 1), MM),
        (VOLUME, round(of.volume_mm3, 1), MM3),
        (CERTAINTY, round(100.0 * of.score, 1), PERCENT),
    ]


def _measurements(finding: NumberedFinding) -> list["Measurement"]:
    from highdicom.sr import Measurement

    return [Measurement(name, value, unit) for name, value, unit in _values(finding)]
