"""Charts as PNG files: lines over two axes, drawn with Pillow; and the same numbers as CSV."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 720, 480
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 60
COLOURS = ("#1f6feb", "#d29922", "#2da44e", "#cf222e", "#8250df", "#57606a")
INK, GRID = "#24292f", "#d0d7de"
TICKS = 5


def write_lines(
    path: Path, lines: Mapping[str, Points], *, title: str, across: str, up: str
) -> None:
    """A chart of named lines beside a CSV file of the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _chart(lines, title, across, up).save(path)
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("line", across, up))
        for name, points in lines.items():
            writer.writerows((name, f"{x:.6g}", f"{y:.6g}") for x, y in points)


def _chart(lines: Mapping[str, Points], title: str, across: str, up: str) -> Image.Image:
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    points = [point for line in lines.values() for point in line]
    spans = [_span([point[axis] for point in points]) for axis in range(2)]
    for tick in range(TICKS + 1):
        x, y = (span[0] + (span[1] - span[0]) * tick / TICKS for span in spans)
        column, row = _pixel((x, y), spans)
        draw.line([(column, TOP), (column, HEIGHT - BOTTOM)], GRID)
        draw.line([(LEFT, row), (WIDTH - RIGHT, row)], GRID)
        draw.text((column, HEIGHT - BOTTOM + 6), f"{x:.3g}", INK, font, "ma")
        draw.text((LEFT - 6, row), f"{y:.3g}", INK, font, "rm")
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        draw.line([_pixel(point, spans) for point in line], colour, 2)
        draw.text((WIDTH - RIGHT - 6, TOP + 4 + 16 * number), name, colour, font, "ra")
    draw.text((LEFT, 12), title, INK, ImageFont.load_default(16))
    draw.text((LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 14), across, INK, font, "ms")
    draw.text((8, TOP - 12), up, INK, font, "lm")
    return picture


def _span(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _pixel(point: tuple[float, float], spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    shares = [(value - low) / (high - low) for value, (low, high) in zip(point, spans, strict=True)]
    return (
        LEFT + shares[0] * (WIDTH - LEFT - RIGHT),
        HEIGHT - BOTTOM - shares[1] * (HEIGHT - TOP - BOTTOM),
    )
