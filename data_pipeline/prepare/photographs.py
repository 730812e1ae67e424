"""Photographs with landmarks, face mask and caption: listed in a folder, read, and checked before anything is made of them."""

import json
import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from tqdm import tqdm

from data_pipeline.prepare.align import check_landmarks, eyes_and_mouth
from data_pipeline.prepare.pictures import read_mask, read_pixels
from pidiff_jax.locations import local_path
from pidiff_jax.strict_json import parse_json

INDEX_FILE = "photographs.jsonl"
LATENT_PX = 8  # side of a latent position of Stable Diffusion's VAE
_NUM_SHOWN = 20


@dataclass(frozen=True)
class Photograph:
    """A picture of one person, with what is known about it.

    pixels: uint8 (h, w, 3), or what `read_pixels` makes that of: a file, or an array of another form.
    face_mask: uint8 (h, w), 255 on the head with its hair, or what `read_mask` makes that of.
    landmarks: 5 or 68 points (x, y) in pixels, see data_pipeline/prepare/align.py.
    person: a name or number; photographs of one person share it.
    line: of the list that it comes from.
    """

    picture: str
    pixels: Shaped[np.ndarray, "h w ..."] | Path
    face_mask: Shaped[np.ndarray, "_h _w ..."] | Path
    landmarks: Shaped[np.ndarray, "n 2"]
    caption: str
    person: str
    line: int | None = None


@dataclass(frozen=True)
class Skipped:
    """A photograph that can't be used: its line in the list and its file, where they are known, and why."""

    line: int | None
    file: str | None
    reason: str

    def __str__(self) -> str:
        places = ([f"{INDEX_FILE}, line {self.line}"] if self.line else []) + ([self.file] if self.file else [])
        return ": ".join([*places, self.reason])


def read_photographs(folder: str | Path, skipped: list[Skipped] | None = None, size_px: int = 512) -> list[Photograph]:
    """Reads the list of a folder's photographs, and checks each of them as `check_photographs` does.

    `photographs.jsonl` has one JSON object a line, in UTF-8, with `file` and `face_mask` (files in the folder),
    `landmarks`, `caption` and `person`, as `Photograph` describes them.

    skipped, size_px: see `check_photographs`.

    Raises:
        FileNotFoundError: there is no list.
        ValueError: it isn't UTF-8; or lines or photographs can't be used: all are listed.
    """
    check_size(size_px)
    folder, listed, problems = local_path(folder, "the photographs"), [], []
    for number, line in _lines(folder / INDEX_FILE):
        try:
            entry = _parse(line)
        except ValueError as error:
            problems.append(Skipped(number, None, str(error)))
            continue
        try:
            listed.append(_photograph(folder, number, entry))
        except (ValueError, OSError) as error:  # a name that is too long, a folder that can't be searched
            file = entry.get("file")
            problems.append(Skipped(number, file if isinstance(file, str) else None, str(error)))
    return _without_bad(listed, problems, skipped, size_px)


def check_photographs(
    photographs: Sequence[Photograph], skipped: list[Skipped] | None = None, size_px: int = 512
) -> list[Photograph]:
    """Those photographs that can be used, once every file was read: picture, face mask and landmarks fit each other.

    skipped: gets the others added; None: they are an error.
    size_px: of the square that the diffusion model sees, in whose latents there must be a face.

    Raises:
        ValueError: lists all photographs that can't be used, if `skipped` is None or none can be.
    """
    check_size(size_px)
    return _without_bad(photographs, [], skipped, size_px)


def check_size(size_px: int) -> None:
    """Checks that the square has whole latents.

    Raises:
        ValueError: it hasn't.
    """
    if size_px <= 0 or size_px % LATENT_PX:
        raise ValueError(
            f"expected size_px to be a multiple of {LATENT_PX}, got {size_px}; set "
            f"--size_px={max(size_px // LATENT_PX, 1) * LATENT_PX}"
        )


def read_photograph(
    photograph: Photograph,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"], Float[np.ndarray, "n 2"]]:
    """Pixels, face mask (255 on the head) and landmarks of a photograph, its files read.

    Raises:
        ValueError: one of them can't be used, or they don't fit each other.
    """
    pixels, mask = read_pixels(photograph.pixels), read_mask(photograph.face_mask)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"expected a face mask of {pixels.shape[:2]} pixels, got {mask.shape}; redo it")
    landmarks = np.asarray(photograph.landmarks, np.float64)
    face = eyes_and_mouth(landmarks)
    low, high = np.floor(face.min(0)).astype(int), np.ceil(face.max(0)).astype(int) + 1
    inside = mask[max(low[1], 0) : max(high[1], 0), max(low[0], 0) : max(high[0], 0)]
    if not inside.size:
        raise ValueError(
            f"expected landmarks inside the picture of {mask.shape[::-1]} pixels, got eyes and mouth from {low} to {high}; "
            "correct them"
        )
    if (covered := inside.mean() / 255) < 0.5:
        raise ValueError(
            f"expected eyes and mouth on the face mask, got {covered:.0%} of what lies between them there; correct the "
            "landmarks, or the mask (white on the head, black elsewhere)"
        )
    return pixels, mask, landmarks


def face_square(mask: UInt8[np.ndarray, "h w"], landmarks: Float[np.ndarray, "n 2"]) -> tuple[slice, slice]:
    """Rows and columns of the largest square of a photograph, as central around the face as it goes."""
    height, width = mask.shape
    side = min(height, width)
    centre_x, centre_y = landmarks.mean(0)
    left = int(np.clip(round(centre_x - side / 2), 0, width - side))
    top = int(np.clip(round(centre_y - side / 2), 0, height - side))
    return slice(top, top + side), slice(left, left + side)


def latent_mask(mask: UInt8[np.ndarray, "s s"], height: int, width: int) -> Float[np.ndarray, "h2 w2"]:
    """Share of each latent position that is face, in [0, 1].

    Raises:
        ValueError: the face fills not even half of any.
    """
    resized = Image.fromarray(mask).convert("F").resize((width, height), Image.Resampling.BOX)
    shares = np.clip(np.array(resized) / 255.0, 0.0, 1.0).astype(np.float32)
    if shares.max() < 0.5:
        raise ValueError(
            f"expected a face of several pixels, got one that fills {shares.max():.0%} of a latent position of "
            f"{height} x {width}; cut the picture closer to it"
        )
    return shares


def _without_bad(
    photographs: Sequence[Photograph], problems: list[Skipped], skipped: list[Skipped] | None, size_px: int
) -> list[Photograph]:
    def reason(photograph: Photograph) -> str | None:
        try:
            _, mask, landmarks = read_photograph(photograph)
            latent_mask(mask[face_square(mask, landmarks)], size_px // LATENT_PX, size_px // LATENT_PX)
        except ValueError as error:
            return str(error)
        return None

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
    try:
        reasons = list(
            tqdm(pool.map(reason, photographs), "checked", len(photographs), unit="photograph", disable=None)
        )
    finally:
        pool.shutdown(cancel_futures=True)
    checked = list(zip(photographs, reasons, strict=True))
    bad = problems + [Skipped(each.line, each.picture, why) for each, why in checked if why is not None]
    bad.sort(key=lambda each: each.line or 0)
    good = [photograph for photograph, why in checked if why is None]
    if bad and (skipped is None or not good):
        raise ValueError(_listing(bad, len(good) + len(bad)))
    if skipped is not None:
        skipped.extend(bad)
    return good


def _listing(bad: Sequence[Skipped], total: int) -> str:
    remedy = "mend them" if len(bad) == total else "mend them, or go on without them by --skip_bad"
    lines = [f"expected photographs that can be used, got {len(bad)} of {total} that can't; {remedy}"]
    lines += [f"  {each}" for each in bad[:_NUM_SHOWN]]
    return "\n".join(lines + ([f"  and {len(bad) - _NUM_SHOWN} more"] if len(bad) > _NUM_SHOWN else []))


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines with their numbers, without empty ones."""
    if not path.is_file():
        raise FileNotFoundError(
            f"expected {path.name} in {path.parent}, got none; list the photographs there, one JSON a line"
        )
    lines = []
    # Only a line feed ends a line: str.splitlines and text mode also cut captions, at U+2028 or a lone carriage return.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip("\ufeff \t\r")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: expected UTF-8, got byte 0x{line[error.start]:02x}; save the list as UTF-8"
            ) from error
        if text:
            lines.append((number, text))
    return lines


def _parse(line: str) -> dict[str, Any]:
    try:
        entry = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"expected JSON with file, face_mask, landmarks, caption, person, got {line[:40]!r} ({error}); correct it"
        ) from error
    if not isinstance(entry, dict):
        raise ValueError(
            f"expected JSON with file, face_mask, landmarks, caption, person, got {line[:40]!r}; write an object {{...}}"
        )
    return entry


def _photograph(folder: Path, number: int, entry: dict[str, Any]) -> Photograph:
    if missing := [key for key in ("file", "face_mask", "landmarks", "caption", "person") if key not in entry]:
        raise ValueError(
            f"expected JSON with file, face_mask, landmarks, caption, person, got no {missing[0]!r}; add it to the line"
        )
    file, mask, caption = (_text(entry, key) for key in ("file", "face_mask", "caption"))
    person = str(entry["person"]) if type(entry["person"]) is int else _text(entry, "person", "a name or whole number")
    person = unicodedata.normalize("NFC", person.strip())  # one name in two spellings is one person
    for path in (folder / file, folder / mask):
        if not path.is_file():
            raise ValueError(f"expected the file {path}, got none; correct its name")
    landmarks = _landmarks(entry["landmarks"])
    return Photograph(file, folder / file, folder / mask, landmarks, caption, person, line=number)


def _text(entry: dict[str, Any], key: str, expected: str = "text") -> str:
    value = entry[key]
    if not isinstance(value, str) or not (value.strip() or key == "caption"):
        raise ValueError(f"expected {expected} as {key!r}, got {json.dumps(value)[:40]}; correct it")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"expected {expected} as {key!r}, got half a character in {value!a:.40}; correct it")
    return value


def _landmarks(value: Any) -> np.ndarray:
    try:
        points = np.array(value)
    except ValueError:
        raise ValueError("expected landmarks [[x, y], ...], got points of unequal lengths; correct it") from None
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"expected landmarks [[x, y], ...], got shape {points.shape}; correct it")
    if points.dtype.kind not in "if" or any(isinstance(number, bool) for point in value for number in point):
        raise ValueError(f"expected numbers as landmarks, got {json.dumps(value)[:40]}; correct it")
    check_landmarks(points.astype(np.float64))
    return points.astype(np.float64)
