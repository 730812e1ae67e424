"""A table of pictures with names on its rows and columns, and small pictures in the corners of the cells."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pidiff_jax.arrays import byte_pixels

BACKGROUND, INK, FAINT = (255, 255, 255), (24, 28, 36), (90, 98, 112)
_MARGIN, _GAP, _TEXT = 20, 6, 15


def labelled_grid(
    cells: Sequence[Sequence[Any]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    insets: Sequence[Sequence[Any]] | None = None,
    cell_px: int = 160,
) -> Image.Image:
    """Draws the table.

    Args:
        cells: pixels (h, w, 3) in [0, 1], row by row; None leaves one empty.
        rows, columns: their names.
        insets: pictures for the lower right corners of the cells, like `cells`.
        cell_px: height of a cell; its width is that of the widest picture.
    """
    font, heading = label_font(_TEXT), label_font(_TEXT + 5)
    width = round(cell_px * max(cell.shape[1] / cell.shape[0] for row in cells for cell in row if cell is not None))
    left = _MARGIN + max((round(font.getlength(line)) for row in rows for line in row.split("\n")), default=0) + 10
    lines = [wrap_text(name, font, width) for name in columns]
    top = _MARGIN + (34 if title else 0) + max(map(len, lines)) * (_TEXT + 4) + 6
    size = (
        max(left + len(columns) * (width + _GAP) + _MARGIN, 2 * _MARGIN + round(heading.getlength(title))),
        top + len(rows) * (cell_px + _GAP) + _MARGIN,
    )
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN - 4), title, INK, heading)
    for column, words in enumerate(lines):
        x = left + column * (width + _GAP) + width / 2
        for number, line in enumerate(words):
            draw.text((x, top - 6 - (len(words) - number) * (_TEXT + 4)), line, FAINT, font, anchor="mt")
    for row, name in enumerate(rows):
        y = top + row * (cell_px + _GAP)
        draw.multiline_text((left - 10, y + cell_px / 2), name, FAINT, font, anchor="rm", align="right")
        for column, cell in enumerate(cells[row]):
            corner = (left + column * (width + _GAP), y)
            if cell is None:
                continue
            picture = _picture(cell, (round(cell_px * cell.shape[1] / cell.shape[0]), cell_px))
            canvas.paste(picture, (corner[0] + (width - picture.width) // 2, y))
            inset = None if insets is None else insets[row][column]
            if inset is not None:
                small = _picture(inset, (cell_px // 3,) * 2)
                place = (corner[0] + width - small.width, corner[1] + cell_px - small.height)
                canvas.paste(BACKGROUND, (place[0] - 2, place[1] - 2, place[0] + small.width, place[1] + small.height))
                canvas.paste(small, place)
    return canvas


def _picture(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(byte_pixels(pixels))
    return picture.resize(size, Image.Resampling.LANCZOS if picture.width > size[0] else Image.Resampling.BICUBIC)


@functools.cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has the letters of most languages and comes with Matplotlib."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)


def wrap_text(text: str, font: Any, width: int) -> list[str]:
    """Lines that fit into a width in pixels, of whole words; what is longer, such as a path, is broken anywhere."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines or [""]
