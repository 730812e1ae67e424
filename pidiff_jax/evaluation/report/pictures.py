"""Pictures of samples: every person beside their reference, with the identity, without it, and where it attends."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from pidiff_jax.arrays import byte_pixels
from pidiff_jax.checkpoint.atomic_file import write_atomically
from pidiff_jax.evaluation.report.heat_map import colour_bar, heat_maps
from pidiff_jax.evaluation.report.labelled_grid import BACKGROUND, FAINT, INK, label_font, wrap_text
from pidiff_jax.locations import local_path

_MARGIN, _GAP, _GROUP_GAP, _CAPTION_HEIGHT = 24, 6, 26, 24
_TITLE_SIZE, _PROMPT_SIZE, _CAPTION_SIZE = 20, 15, 15
_BAR_HEIGHT, _NUM_LEGEND_LINES = 10, 3


@dataclass(frozen=True)
class SamplesGrid:
    """What `draw_samples` shows: n people (rows) and p prompts; pixels in [0, 1].

    with_identity and without_identity have the same prompts and the same noise. attention: any scale, any resolution.
    similarity_with, similarity_without: cosines to the person, written below the pictures; None where nobody judged.
    """

    prompts: tuple[str, ...]
    references: Float[np.ndarray, "n _h _w 3"]
    with_identity: Float[np.ndarray, "n p h w 3"]
    without_identity: Float[np.ndarray, "n p h w 3"]
    attention: Float[np.ndarray, "n p _h2 _w2"]
    similarity_with: Float[np.ndarray, "n p"] | None = None
    similarity_without: Float[np.ndarray, "n p"] | None = None


def draw_samples(grid: SamplesGrid, *, cell_px: int = 192) -> UInt8[np.ndarray, "h w 3"]:
    """Draws one row per person: reference, samples with identity, the same without it, and the attention (`heat_maps`).

    cell_px: side of one picture; 64 px pictures are enlarged to it, large ones reduced.
    """
    num_prompts = len(grid.prompts)
    left = _column_positions(num_prompts, cell_px)
    prompt_lines = [wrap_text(text, label_font(_PROMPT_SIZE), cell_px - 8) for text in grid.prompts]
    heat, strongest = heat_maps(
        np.stack([_enlarged(p, cell_px) for p in grid.with_identity[:, 0]]), grid.attention[:, 0]
    )
    top = _MARGIN + _TITLE_SIZE + 16 + max(_NUM_LEGEND_LINES, *map(len, prompt_lines)) * (_PROMPT_SIZE + 4) + 10
    row_height = cell_px + _CAPTION_HEIGHT
    size = (left[-1] + cell_px + _MARGIN, top + len(grid.references) * row_height + _MARGIN - 8)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    _draw_header(draw, left, cell_px, prompt_lines)
    _draw_legend(canvas, (left[-1], top), cell_px, strongest)
    for row, reference in enumerate(grid.references):
        y = top + row * row_height
        cells = [reference, *grid.with_identity[row], *grid.without_identity[row], heat[row]]
        captions = [f"person {row + 1}", *_captions(grid, row), ""]
        for x, cell, caption in zip(left, cells, captions, strict=True):
            canvas.paste(_resized(cell, cell_px), (x, y))
            draw.text((x + cell_px / 2, y + cell_px + 4), caption, FAINT, label_font(_CAPTION_SIZE), anchor="mt")
    return np.asarray(canvas)


def _captions(grid: SamplesGrid, row: int) -> list[str]:
    captions = []
    for similarity in (grid.similarity_with, grid.similarity_without):
        for q in range(len(grid.prompts)):
            captions.append("" if similarity is None else f"similarity {similarity[row, q]:.2f}")
    return captions


def png_bytes(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: Path | str, pixels: Any) -> None:
    """Writes a picture in [0, 1] as a PNG file, replacing an older one in one piece.

    Raises:
        ValueError: not one picture, values that are no numbers in floating point, or a folder that isn't there.
    """
    path, pixels = local_path(path, "the picture"), np.asarray(pixels)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"expected one picture (h, w, 3), got {pixels.shape}; of a batch, save pixels[0]")
    if not np.issubdtype(pixels.dtype, np.floating) or not np.isfinite(pixels).all():
        raise ValueError(f"expected finite floating-point pixels in [0, 1], got {pixels.dtype}; divide bytes by 255")
    if not path.parent.is_dir():
        raise ValueError(f"expected a folder at {path.parent}, found none; make it first")
    write_atomically(path, png_bytes(byte_pixels(pixels)))


def _column_positions(num_prompts: int, cell_px: int) -> list[int]:
    """Left edges of all columns: the reference, the prompts twice, the attention; groups are set apart."""
    positions, x = [], _MARGIN
    for group in (1, num_prompts, num_prompts, 1):
        for _ in range(group):
            positions.append(x)
            x += cell_px + _GAP
        x += _GROUP_GAP - _GAP
    return positions


def _draw_header(draw: ImageDraw.ImageDraw, left: list[int], cell_px: int, prompt_lines: list[list[str]]) -> None:
    num_prompts = len(prompt_lines)
    groups = (
        ("Reference", 1),
        ("With the identity", num_prompts),
        ("Identity off, same noise", num_prompts),
        ("Attention", 1),
    )
    column, y = 0, _MARGIN + _TITLE_SIZE + 8
    for title, width in groups:
        start, end = left[column], left[column + width - 1] + cell_px
        draw.text((start, _MARGIN - 4), title, INK, label_font(_TITLE_SIZE))
        draw.line((start, y, end, y), INK, 2)
        column += width
    for x, lines in zip(left, [[], *prompt_lines, *prompt_lines, ["of the first prompt"]], strict=True):
        for number, line in enumerate(lines):
            position = (x + cell_px / 2, y + 8 + number * (_PROMPT_SIZE + 4))
            draw.text(position, line, FAINT, label_font(_PROMPT_SIZE), anchor="mt")


def _draw_legend(canvas: Image.Image, corner: tuple[int, int], cell_px: int, strongest: float) -> None:
    """The colours of the attention and what they mean, above the column whose upper left corner is given."""
    draw, (x, y) = ImageDraw.Draw(canvas), corner
    text_y, bar_y = y - _PROMPT_SIZE - 10, y - _PROMPT_SIZE - 14 - _BAR_HEIGHT
    canvas.paste(Image.fromarray(byte_pixels(colour_bar(_BAR_HEIGHT, cell_px))), (x, bar_y))
    draw.text((x, text_y), "none", FAINT, label_font(_PROMPT_SIZE))
    draw.text((x + cell_px, text_y), f"{strongest:.0f} x the mean", FAINT, label_font(_PROMPT_SIZE), anchor="ra")


def _enlarged(pixels: np.ndarray, cell_px: int) -> Float[np.ndarray, "h w 3"]:
    return np.asarray(_resized(pixels, cell_px), np.float32) / 255.0


def _resized(pixels: np.ndarray, cell_px: int) -> Image.Image:
    picture = Image.fromarray(byte_pixels(pixels))
    larger = picture.width > cell_px
    return picture.resize((cell_px, cell_px), Image.Resampling.LANCZOS if larger else Image.Resampling.BICUBIC)
