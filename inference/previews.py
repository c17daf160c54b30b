"""Pictures of slices, for reports, and the previews that a worker writes beside its result."""

import base64
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from inference.geometry import TOUCHING_RATIO, Layout, thickness_mm
from inference.request import PREVIEWS
from inference.results.derived import Planned
from inference.volume import STEP_HU, Plane, StoredMap, Vector

Grey = NDArray[np.uint8]

BASE_FOLDER = Path(__file__).parent  # of `page.html`, which every page extends
DIFFERENCE_HU = 250.0  # full colour of a difference
LESS, EQUAL, MORE = (56, 189, 248), (11, 15, 20), (251, 146, 60)  # told apart by the colour-blind
QUALITY = 88


@dataclass(frozen=True)
class DisplayWindow:
    """The HU that become black and white."""

    centre: float
    width: float

    def grey(self, hounsfield: NDArray[np.generic]) -> Grey:
        """0 to 255, linear between the ends (PS3.3 C.11.2.1.2)."""
        share = (hounsfield.astype(np.float32) - (self.centre - self.width / 2)) / self.width
        grey: Grey = np.rint(np.clip(share, 0.0, 1.0) * 255.0).astype(np.uint8)
        return grey

    def __str__(self) -> str:
        return f"window {self.centre:g} / {self.width:g} HU"


def difference(plane: NDArray[np.floating], true: NDArray[np.floating]) -> Image.Image:
    """Plane - true: dark where equal, blue where too low, orange where too high."""
    share = np.clip((plane - true) / DIFFERENCE_HU, -1.0, 1.0)[..., np.newaxis]
    middle = np.array(EQUAL, float)
    towards = np.where(share < 0, np.array(LESS, float), np.array(MORE, float))
    colours = middle + np.abs(share) * (towards - middle)
    return Image.fromarray(np.rint(colours).astype(np.uint8))


def shrunk(plane: NDArray[np.floating], side: int) -> NDArray[np.floating]:
    """No side longer than `side` pixels; each pixel is the mean of those it covers."""
    longest = max(plane.shape)
    if longest <= side:
        return plane
    rows, columns = (max(1, round(length * side / longest)) for length in plane.shape)
    picture = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BOX), np.float32)


def uri(picture: Image.Image, quality: int = QUALITY) -> str:
    """The picture itself as an address: a page that needs no other file."""
    raw = io.BytesIO()
    picture.save(raw, "JPEG", quality=quality, optimize=True, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(raw.getvalue()).decode()


def page(template: Path, context: Mapping[str, object]) -> str:
    """A whole page from a template that extends `page.html`; every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, BASE_FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(context)


# Hounsfield units become 256 levels, finest where soft tissue lies; a page turns levels into greys
# with any window, by a table. What a level means stands in `index.json`, with each slice's place.

Scalar = TypeVar("Scalar", bound=np.generic)
logger = logging.getLogger(__name__)

INDEX = "index.json"
# Reformats through the middle column and the middle row of every slice: `column-received.png`, ...
PLANES = ("column", "row")
PLANE_NAMES = ("sagittal", "coronal", "axial")  # by the axis that stands on the plane: x, y, z
RECEIVED, DERIVED = "received", "derived"
# What no slice shows is hatched, in whatever window: lines of this value on black.
HATCH_HU, HATCH_EVERY, HATCH_WIDTH = 40, 8, 2
# (first HU, last HU, levels): steps of 14 HU in lung and fat, 2.5 in soft tissue, wide in bone.
BANDS = ((-1024, -160, 62), (-160, 240, 160), (240, 1000, 19), (1000, 3072, 15))
LEVELS = np.concatenate([np.linspace(a, b, n, endpoint=False) for a, b, n in BANDS])
LEAST_HU, MOST_HU = BANDS[0][0], BANDS[-1][1]
# The level of every whole number of HU from LEAST_HU to MOST_HU.
TABLE = (np.searchsorted(LEVELS, np.arange(LEAST_HU, MOST_HU + 1), side="right") - 1).astype(
    np.uint8
)
# The pictures of a series take at most this part of its pixels; a slice may take FLOOR_BYTES.
SHARE = 0.15
FLOOR_BYTES = 16384
SIDES = (512, 384, 256, 192, 128, 96, 64)  # of the longer side, in pixels
REFORMAT_SIDE = 512
BODY_HU = -500.0  # below it is air and lung: an error there says little about a slice


# An expected error of 20 HU begins to show; 110 HU and more are as orange as it gets.
TINT, TINT_STEP_HU = "-error", 10.0
OUTLINE, HEAT = "-mask", "-heat"
HEAT_STEPS = 10  # of how much a place counted: from clear to as orange as it gets
TINT_ALPHA = bytes([0, 0, *(20 * step for step in range(1, 11))])


class Previews:
    """Collects the pictures of one job; a job without them is as good, its page says less.

    What cannot be written is left out: the folder then has no index.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        slices: Sequence[Planned],
        read: Callable[[int], Plane],
    ) -> None:
        self._folder = folder / PREVIEWS
        self._layout = layout
        self._slices = slices
        self._read = read  # a received slice, in HU
        self._order = _order(slices, len(layout.headers))
        # plane -> place -> the middle column or row
        self._lines: dict[str, dict[float, NDArray[np.float32]]] = {plane: {} for plane in PLANES}
        self._errors: dict[float, float] = {}
        self._side = 0  # 0 = not chosen yet
        self._is_hatched = False  # some reformat
        self._is_tinted = False  # some slice
        self._mask: NDArray[np.bool_] | None = None  # (slices, rows, columns)
        self._organs: NDArray[np.bool_] | None = None
        self._shows = ""  # what the mask shows
        self._heat: Mapping[int, Plane] = {}
        self._is_hu = True
        self._failed = False

    def judged(self, place: int, plane: Plane, expected: Plane) -> None:
        """The generated slice at a place of the derived series, with its expected error."""
        body = expected[plane > BODY_HU]
        mean = float((body if body.size else expected).mean())
        self._errors[_where(self._slices[place])] = round(mean, 2)

    def generated(self, place: int, plane: Plane) -> None:
        """The generated slice at a place of the derived series, in HU as it was stored."""
        self._write(_where(self._slices[place]), plane)

    def expected(self, place: int, expected: StoredMap) -> None:
        """The map of a generated slice's expected error, to be laid over its picture."""
        if self._failed:
            return
        where = _where(self._slices[place])
        try:
            (self._folder / f"{self._order[where]:05d}{TINT}.png").write_bytes(
                tinted(self._in_shape(expected))
            )
            self._is_tinted = True
        except OSError as error:
            self._give_up(error)

    def outline(
        self,
        mask: NDArray[np.bool_],
        shows: str,
        *,
        organs: NDArray[np.bool_] | None = None,
        is_hu: bool = False,
    ) -> None:
        """Have each received slice get the outline of a mask, to be laid over its picture.

        `organs` are outlined in another colour. Where values are no HU a page names no units.
        """
        self._mask, self._shows = mask, shows
        self._organs, self._is_hu = organs, is_hu

    def heat(self, maps: Mapping[int, Plane]) -> None:
        """Have received slices get a map, 0 to 1, of what a score came from, to be laid over."""
        self._heat = maps

    def finish(self) -> list[str]:
        """Write the received slices, the reformats and the index; notes for the job's record."""
        for index in range(len(self._layout.headers)):
            self._write(float(index), self._read(index))
            self._lay_over(index)
        if not self._failed:
            try:
                self._reformats()
                index_ = json.dumps(self._index(), separators=(",", ":"))
                (self._folder / INDEX).write_text(index_, encoding="ascii")
            except OSError as error:
                self._give_up(error)
        return ["no previews: they could not be written"] if self._failed else []

    def _write(self, where: float, plane: Plane) -> None:
        if self._failed:
            return
        try:
            if not self._side:
                self._folder.mkdir(exist_ok=True)
                self._side = _fitting_side(
                    self._in_shape(self._read(len(self._layout.headers) // 2))
                )
            picture = encoded(shrunk(self._in_shape(plane), self._side))
            (self._folder / f"{self._order[where]:05d}.png").write_bytes(picture)
        except OSError as error:
            self._give_up(error)
        rows, columns = plane.shape
        self._lines["column"][where] = plane[:, columns // 2].astype(np.float32)
        self._lines["row"][where] = plane[rows // 2].astype(np.float32)

    def _in_shape(self, plane: NDArray[Scalar]) -> NDArray[Scalar]:
        """The plane with pixels that are squares: those of a picture on a page are."""
        spacing = self._layout.geometry.pixel_spacing
        for axis, share in enumerate(np.array(spacing) / min(spacing)):
            length = plane.shape[axis]
            wanted = round(length * float(share))
            if wanted != length:
                plane = plane.take(np.arange(wanted) * length // wanted, axis=axis)
        return plane

    def _lay_over(self, index: int) -> None:
        """Write what can be laid over a received slice."""
        if self._failed:
            return
        try:
            number = f"{self._order[float(index)]:05d}"
            if self._mask is not None:
                organs = None if self._organs is None else self._in_shape(self._organs[index])
                outline = outlined(self._in_shape(self._mask[index]), self._side, organs)
                (self._folder / f"{number}{OUTLINE}.png").write_bytes(outline)
            if index in self._heat:
                heat = heated(self._in_shape(self._heat[index]), self._side)
                (self._folder / f"{number}{HEAT}.png").write_bytes(heat)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._failed = True
        logger.warning("previews not written", extra={"error": type(error).__name__})

    def _index(self) -> Mapping[str, object]:
        geometry = self._layout.geometry
        numbers = {_where(slice_): slice_.number for slice_ in self._slices}
        across = np.abs(geometry.orientation).argmax(axis=1)  # of the columns' plane, of the rows'
        return {
            "levels_hu": [round(float(level), 2) for level in LEVELS],
            "columns": geometry.columns,
            "rows": geometry.rows,
            "pixel_spacing_mm": [float(x) for x in geometry.pixel_spacing],
            "thickness_mm": geometry.thickness_mm,
            "tilt_degrees": round(self._layout.shear_degrees, 2),
            "missing": sorted(self._layout.missing),
            "left": self._left,
            "axis": "xyz"[geometry.axis],
            "planes": {plane: PLANE_NAMES[across[at]] for at, plane in enumerate(PLANES)},
            "first_is_up": self._first_is_up,
            "hatched": self._is_hatched,
            "tinted": self._is_tinted,
            "mask": self._shows,
            "heat": [self._order[float(index)] for index in sorted(self._heat)],
            "is_hu": self._is_hu,
            "slices": [
                {
                    "at_mm": geometry.place_mm(self._position(where)),
                    "generated": not where.is_integer(),
                    "number": numbers.get(where),
                    "received_number": self._received_number(where),
                    "expected_error_hu": self._errors.get(where),
                }
                for where in self._order
            ],
        }

    def _distance(self, where: float) -> float:
        """Along the normal from the first slice, mm."""
        distances = self._layout.geometry.distances_mm
        at_mm = np.interp(where, np.arange(len(distances)), distances)
        return float(at_mm - distances[0])

    def _position(self, where: float) -> Vector:
        """The position of the slice's first pixel, on the line between its two neighbours."""
        positions = self._layout.geometry.positions
        first = min(int(where), len(positions) - 1)
        second = min(first + 1, len(positions) - 1)
        position: Vector = positions[first] + (where - first) * (
            positions[second] - positions[first]
        )
        return position

    def _received_number(self, where: float) -> int | None:
        """The Instance Number that a received slice came with; None for a generated one."""
        if not where.is_integer():
            return None
        return self._layout.headers[int(where)].integer("InstanceNumber")

    @property
    def _first_is_up(self) -> bool:
        """True where the first slice is the topmost of a reformat: the head is up."""
        return bool(self._layout.geometry.normal[2] < 0)

    @property
    def _left(self) -> list[int]:
        """The gaps that were not filled although their slices do not touch.

        A result without any generated slice was never to fill one.
        """
        if not self._is_filled:
            return []
        filled = {int(where) for where in self._order if not where.is_integer()}
        gaps = range(len(self._layout.headers) - 1)
        return [gap for gap in gaps if gap not in filled and self._is_apart(gap)]

    @property
    def _is_filled(self) -> bool:
        """True where slices were generated."""
        return not all(where.is_integer() for where in self._order)

    def _is_apart(self, gap: int) -> bool:
        gap_mm = float(self._layout.geometry.gaps_mm[gap])
        return gap_mm > TOUCHING_RATIO * 2 * self._seen_mm(gap)

    def _seen_mm(self, gap: int) -> float:
        """The reach into a gap of the slices beside it: half of their thickness.

        Where it is unknown they are taken to touch; where slices are missing, to touch those.
        """
        thickness = thickness_mm(self._layout, gap)
        if thickness is None:
            is_hole = gap in self._layout.missing
            thickness = self._layout.gap_mm if is_hole else self._layout.geometry.gaps_mm[gap]
        return float(min(thickness, self._layout.geometry.gaps_mm[gap])) / 2

    def _reformats(self) -> None:
        """Both planes, received and derived, to one scale; the head is up."""
        spacings = self._layout.geometry.pixel_spacing
        every = list(range(len(self._layout.headers) - 1)) if self._is_filled else []
        for plane, spacing in zip(PLANES, spacings, strict=True):
            derived = dict(sorted(self._lines[plane].items()))
            received = {where: line for where, line in derived.items() if where.is_integer()}
            for name, lines, gaps in ((RECEIVED, received, every), (DERIVED, derived, self._left)):
                at = np.array([self._distance(where) for where in lines])
                picture = shrunk(
                    _reformat(np.stack(list(lines.values())), at, spacing), REFORMAT_SIDE
                )
                unseen = self._unseen(np.linspace(at[-1], at[0], len(picture)), gaps)
                self._is_hatched |= bool(unseen.any())
                picture = np.where(unseen[:, None], hatched(picture.shape), picture)
                picture = picture[::-1] if self._first_is_up else picture
                (self._folder / f"{plane}-{name}.png").write_bytes(encoded(picture))

    def _unseen(self, at_mm: NDArray[np.float64], gaps: Sequence[int]) -> NDArray[np.bool_]:
        """The places, along the normal, that lie in one of the gaps and in none of its slices."""
        slices = self._layout.geometry.distances_mm - self._layout.geometry.distances_mm[0]
        unseen = np.zeros(len(at_mm), bool)
        pitch = float(np.ptp(at_mm)) / max(1, len(at_mm) - 1)
        for gap in gaps:
            first, last = slices[gap] + self._seen_mm(gap), slices[gap + 1] - self._seen_mm(gap)
            if last - first >= pitch:  # what is thinner than a line of the picture is not drawn
                unseen |= (at_mm > first) & (at_mm < last)
        return unseen


def hatched(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(rows, columns) in HU: the drawing of what was not acquired and not generated."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    is_line = (rows + columns) % HATCH_EVERY < HATCH_WIDTH
    return np.where(is_line, HATCH_HU, LEAST_HU).astype(np.float32)


def tinted(expected: StoredMap) -> bytes:
    """A map of the expected error as a PNG: clear where little is expected, orange where much."""
    steps = np.minimum(expected * STEP_HU / TINT_STEP_HU, len(TINT_ALPHA) - 1).astype(np.uint8)
    return _indexed(steps, MORE * len(TINT_ALPHA), TINT_ALPHA)


def outlined(mask: NDArray[np.bool_], side: int, organs: NDArray[np.bool_] | None = None) -> bytes:
    """The outline of a mask as a PNG, one pixel wide and clear elsewhere.

    That of the organs that it lies in has another colour, and is drawn under it.
    """
    edge = _edge_of(mask, side)
    picture = np.zeros(edge.shape, np.uint8)
    if organs is not None:
        picture[_edge_of(organs, side)] = 2
    picture[edge] = 1
    return _indexed(picture, (*MORE, *MORE, *LESS), bytes([0, 255, 255]))


def heated(heat: NDArray[np.floating], side: int) -> bytes:
    """A map, 0 to 1, as a PNG: clear where it is low, orange where it is high."""
    share = shrunk(heat.astype(np.float32), side).clip(0.0, 1.0)
    steps = np.rint(share * HEAT_STEPS).astype(np.uint8)
    alpha = bytes([0, *(round(160 * step / HEAT_STEPS) for step in range(1, HEAT_STEPS + 1))])
    return _indexed(steps, MORE * len(alpha), alpha)


def _edge_of(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """The pixels of a mask at its edge."""
    inside = np.pad(shrunk(mask.astype(np.float32), side) >= 0.5, 1)
    inner = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return np.asarray(inside[1:-1, 1:-1] & ~inner, bool)


def _indexed(levels: Grey, colours: Sequence[int], alpha: bytes) -> bytes:
    """A PNG of few colours, each with its opacity."""
    picture = Image.fromarray(levels, "P")
    picture.putpalette(list(colours))
    raw = io.BytesIO()
    picture.save(raw, "PNG", transparency=alpha)
    return raw.getvalue()


def encoded(plane: NDArray[np.floating]) -> bytes:
    """A plane in HU as a grey PNG of levels."""
    levels = TABLE[np.rint(plane).clip(LEAST_HU, MOST_HU).astype(np.int32) - LEAST_HU]
    raw = io.BytesIO()
    Image.fromarray(levels).save(raw, "PNG", compress_level=4)
    return raw.getvalue()


def _where(slice_: Planned) -> float:
    """Its place among the received slices: 3.25 is a quarter of the gap after slice 3."""
    return slice_.base + slice_.fraction if slice_.is_generated else float(slice_.base)


def _order(slices: Sequence[Planned], received: int) -> Mapping[float, int]:
    """The picture's number of each slice, received or generated, by its place in the stack."""
    places = {_where(slice_) for slice_ in slices if slice_.is_generated}
    places |= {float(index) for index in range(received)}
    return {where: number for number, where in enumerate(sorted(places))}


def _fitting_side(plane: Plane) -> int:
    """The largest side at which a slice like this one keeps within the share of its pixels."""
    most = max(FLOOR_BYTES, int(SHARE * plane.size * 2))
    whole = min(int(max(plane.shape)), SIDES[0])
    sides = [whole, *(side for side in SIDES if side < whole)]
    # The middle slice says what the others take; some of them take more.
    fitting = (side for side in sides if len(encoded(shrunk(plane, side))) <= most * 0.8)
    return next(fitting, sides[-1])


def _reformat(
    lines: NDArray[np.float32], at_mm: NDArray[np.float64], spacing_mm: float
) -> NDArray[np.float32]:
    """(height, rows): every line as high as its share of the way to its neighbours, last one up."""
    height = max(2, round(float(np.ptp(at_mm)) / spacing_mm))
    places = np.linspace(at_mm[-1], at_mm[0], height)
    between = (at_mm[1:] + at_mm[:-1]) / 2
    return lines[np.searchsorted(between, places)]
