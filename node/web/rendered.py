"""Pictures of DICOMweb (WADO-RS, PS3.18 10.4): rendered instances and frames, and thumbnails."""

import base64
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as InPath
from starlette.requests import Request
from starlette.responses import Response

from node.web.dicomweb import (
    OF_INSTANCE,
    OF_SERIES,
    OF_STUDY,
    Held,
    HeldOne,
    HeldSeries,
    HeldStudy,
    Read,
    asked,
    check_accept,
)
from node.web.problems import Problem
from storage.errors import NotFound

PNG, JPEG = "image/png", "image/jpeg"
FORMATS = {PNG: "PNG", JPEG: "JPEG"}
THUMBNAIL = (128, 128)
LARGEST = 4096  # pixels of a side

Frame = Annotated[int, InPath(ge=1, le=100_000)]
router = APIRouter(prefix="/dicom-web", include_in_schema=False)


@dataclass(frozen=True)
class Drawing:
    """A question to the other process: this frame in this format, not larger than a box."""

    path: Path
    frame: int
    file_format: str
    box: tuple[int, int] | None


@router.get(f"{OF_INSTANCE}/rendered")
def rendered(request: Request, held: HeldOne) -> Response:
    """A picture of an instance, or of its first frame, in the window that it names."""
    return _picture(request, held, 1)


@router.get(f"{OF_INSTANCE}/frames/{{frame}}/rendered")
def rendered_frame(request: Request, held: HeldOne, frame: Frame) -> Response:
    """A picture of a frame; the first one has the number 1."""
    return _picture(request, held, frame)


@router.get(f"{OF_STUDY}/thumbnail")
def study_thumbnail(request: Request, held: HeldStudy) -> Response:
    """A small picture of an instance of a study."""
    return _picture(request, held, 1, THUMBNAIL)


@router.get(f"{OF_SERIES}/thumbnail")
def series_thumbnail(request: Request, held: HeldSeries) -> Response:
    """A small picture of an instance of a series."""
    return _picture(request, held, 1, THUMBNAIL)


@router.get(f"{OF_INSTANCE}/thumbnail")
def instance_thumbnail(request: Request, held: HeldOne) -> Response:
    """A small picture of an instance."""
    return _picture(request, held, 1, THUMBNAIL)


@router.get(f"{OF_INSTANCE}/frames/{{frame}}/thumbnail")
def frame_thumbnail(request: Request, held: HeldOne, frame: Frame) -> Response:
    """A small picture of a frame."""
    return _picture(request, held, frame, THUMBNAIL)


def _picture(
    request: Request, held: Held, frame: int, box: tuple[int, int] | None = None
) -> Response:
    check_accept(request, PNG, JPEG)
    given = request.headers.get("accept", "").lower()
    kind = JPEG if JPEG in given and PNG not in given else PNG
    path = held.paths[len(held.paths) // 2]  # of several one that is neither first nor last
    drawing = Drawing(path, frame, FORMATS[kind], _viewport(request) or box)
    answer = asked(picture_of, drawing, held.parts).text
    if not answer:
        raise NotFound(f"the instance has no frame {frame} that can be shown")
    return Response(base64.b64decode(answer), media_type=kind)


def _viewport(request: Request) -> tuple[int, int] | None:
    """The size that is asked for: PS3.18 8.3.5.1.3, without a region."""
    text = request.query_params.get("viewport", "")
    if not text:
        return None
    sizes = text.split(",")
    if len(sizes) == 2 and all(it.isascii() and it.isdigit() and len(it) < 5 for it in sizes):
        width, height = map(int, sizes)
        if 0 < width <= LARGEST and 0 < height <= LARGEST:
            return width, height
    detail = f"viewport={text[:40]}: width and height, 1 to {LARGEST}, as 256,256; no region."
    raise Problem(HTTPStatus.BAD_REQUEST, detail)


def picture_of(drawing: Drawing) -> Read:
    """Draw a frame in the window that the file names, in the other process."""
    from io import BytesIO

    import numpy as np
    from PIL import Image
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    dataset = dcmread(drawing.path)
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if drawing.frame > frames or "PixelData" not in dataset:
        return Read("")
    shown = pixel_array(dataset, index=drawing.frame - 1)
    if dataset.get("SamplesPerPixel", 1) == 1:
        shown = apply_voi_lut(apply_modality_lut(shown, dataset), dataset).astype(np.float64)
        low, high = float(shown.min()), float(shown.max())
        shown = (shown - low) * (255.0 / max(high - low, 1e-9))
        if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
            shown = 255.0 - shown
    picture = Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8))
    if drawing.box is not None:
        picture.thumbnail(drawing.box)
    file = BytesIO()
    picture.save(file, drawing.file_format)
    return Read(base64.b64encode(file.getvalue()).decode())
