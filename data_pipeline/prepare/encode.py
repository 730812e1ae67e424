"""Photographs to records: pixels, landmarks, face mask and caption to latents, W+ code and token ids."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image, ImageOps
from tqdm import tqdm

from data_pipeline.prepare.align import align_face, check_landmarks
from data_pipeline.records import write_records
from pidiff_jax.arrays import fill_up, signed_pixels

INDEX_FILE = "photographs.jsonl"
IdentityFrom = Literal["same_photograph", "other_photograph"]


@dataclass(frozen=True)
class Photograph:
    """A picture of one person, with what is known about it.

    pixels: uint8 (h, w, 3), or the file.
    face_mask: uint8 (h, w), 255 on the head with its hair, or the file.
    landmarks: 5 or 68 points (x, y) in pixels, see data_pipeline/prepare/align.py.
    person: a name or number; photographs of one person share it.
    """

    picture: str
    pixels: UInt8[np.ndarray, "h w 3"] | Path
    face_mask: UInt8[np.ndarray, "h w"] | Path
    landmarks: Float[np.ndarray, "n 2"]
    caption: str
    person: str


@dataclass(frozen=True)
class Encoders:
    """The networks that make a record; each takes a batch.

    latents: pixels (b, h, w, 3) in [-1, 1] -> posterior mean and log-variance (b, h2, w2, c), unscaled.
    wplus: aligned faces (b, s, s, 3) in [-1, 1] -> W+ codes (b, l, d), the average code included.
    tokenize: captions -> token ids (b, m) int32.
    """

    latents: Callable[[np.ndarray], tuple[Any, Any]]
    wplus: Callable[[np.ndarray], Any]
    tokenize: Callable[[Sequence[str]], Int32[np.ndarray, "b m"]]


def read_photographs(folder: str | Path) -> list[Photograph]:
    """Reads the list of a folder's photographs; the pictures themselves are read when they are encoded.

    `photographs.jsonl` has one JSON object a line, with `file` and `face_mask` (files in the folder), `landmarks`,
    `caption` and `person`, as `Photograph` describes them.

    Raises:
        FileNotFoundError: the list or a file that it names is missing.
        ValueError: a line is no such object, or has landmarks that `check_landmarks` refuses.
    """
    folder = Path(folder)
    if not (folder / INDEX_FILE).is_file():
        raise FileNotFoundError(
            f"expected {INDEX_FILE} in {folder}, got none; list the photographs there, one JSON a line"
        )
    return [
        _parse_line(folder, number, line)
        for number, line in enumerate((folder / INDEX_FILE).read_text().splitlines(), start=1)
        if line.strip()
    ]


def split_by_person(photographs: Sequence[Photograph], validation_fraction: float) -> dict[str, list[Photograph]]:
    """Splits into "train" and "validation" so that nobody is in both; who goes where depends on the names only."""
    people = sorted({p.person for p in photographs}, key=lambda person: hashlib.sha256(person.encode()).digest())
    if len(people) < 2:
        raise ValueError(f"expected photographs of at least 2 people to split, got {len(people)}; add people")
    held_out = set(people[: min(max(1, round(validation_fraction * len(people))), len(people) - 1)])
    return {
        "train": [p for p in photographs if p.person not in held_out],
        "validation": [p for p in photographs if p.person in held_out],
    }


def write_photographs(
    directory: str | Path,
    splits: Mapping[str, Sequence[Photograph]],
    encoders: Encoders,
    *,
    size_px: int,
    face_size_px: int = 256,
    identity_from: IdentityFrom = "other_photograph",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Encodes photographs and writes them as a data set, with a progress bar; see `encode_records`, `write_records`."""
    numbers = {person: index for index, person in enumerate(sorted({p.person for s in splits.values() for p in s}))}
    settings = {"size_px": size_px, "face_size_px": face_size_px, "identity_from": identity_from}
    encode = functools.partial(
        encode_records,
        encoders=encoders,
        person_numbers=numbers,
        size_px=size_px,
        face_size_px=face_size_px,
        identity_from=identity_from,
    )
    records = {name: _with_progress(encode(split), name, len(split)) for name, split in splits.items()}
    write_records(directory, records, {**settings, **(metadata or {})})


def encode_records(
    photographs: Sequence[Photograph],
    encoders: Encoders,
    person_numbers: Mapping[str, int],
    *,
    size_px: int,
    face_size_px: int = 256,
    identity_from: IdentityFrom = "other_photograph",
    batch_size: int = 8,
) -> Iterator[dict[str, Any]]:
    """Makes one record a photograph, in order.

    size_px: side of the square that the diffusion model sees: the largest one around the face, resized.
    identity_from: whose W+ code a record has: the photograph's own, or that of the same person's next photograph (of a
        person with one photograph, its own).
    """
    partners = _next_of_person(photographs) if identity_from == "other_photograph" else photographs
    for start in range(0, len(photographs), batch_size):
        batch = photographs[start : start + batch_size]
        squares = [square_crop(p, size_px) for p in batch]
        faces = [
            _named(p, lambda q: align_face(_pixels(q), q.landmarks, face_size_px))
            for p in partners[start:][: len(batch)]
        ]
        mean, log_variance = _batched(encoders.latents, [pixels for pixels, _ in squares], batch_size)
        wplus = _batched(lambda x: (encoders.wplus(x),), faces, batch_size)[0]
        text_ids = encoders.tokenize([p.caption for p in batch])
        for index, photograph in enumerate(batch):
            yield {
                "latent_mean": mean[index],
                "latent_log_variance": log_variance[index],
                "wplus": wplus[index],
                "text_ids": text_ids[index].astype(np.int32),
                "face_mask": _resize_mask(squares[index][1], mean.shape[2], mean.shape[1]),
                "person_id": np.int32(person_numbers[photograph.person]),
                "caption": photograph.caption,
                "picture": photograph.picture,
            }


def square_crop(photograph: Photograph, size_px: int) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "s2 s2"]]:
    """The largest square of a photograph, as central around the face as it goes: resized pixels, and mask as it is.

    Raises:
        ValueError: landmarks, mask or picture can't be used; names the photograph.
    """
    _named(photograph, lambda p: check_landmarks(p.landmarks))
    pixels, mask = _pixels(photograph), _mask(photograph)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(
            f"{photograph.picture}: expected a face mask of {pixels.shape[:2]} pixels, got {mask.shape}; redo it"
        )
    if not mask.any():
        raise ValueError(f"{photograph.picture}: expected a face mask with a face, got zeros only; mark the head")
    height, width = mask.shape
    side = min(height, width)
    centre_x, centre_y = photograph.landmarks.mean(0)
    left = int(np.clip(round(centre_x - side / 2), 0, width - side))
    top = int(np.clip(round(centre_y - side / 2), 0, height - side))
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    resized = square.resize((size_px, size_px), Image.Resampling.LANCZOS)
    return np.array(resized), mask[top : top + side, left : left + side]


def _with_progress(records: Iterator[dict[str, Any]], name: str, total: int) -> Iterator[dict[str, Any]]:
    yield from tqdm(records, name, total, unit="photograph")


def _next_of_person(photographs: Sequence[Photograph]) -> list[Photograph]:
    of_person: dict[str, list[int]] = {}
    for index, photograph in enumerate(photographs):
        of_person.setdefault(photograph.person, []).append(index)
    following = {i: j for group in of_person.values() for i, j in zip(group, group[1:] + group[:1], strict=True)}
    return [photographs[following[index]] for index in range(len(photographs))]


def _batched(function: Callable, pictures: list[np.ndarray], batch_size: int) -> list[np.ndarray]:
    """Applies a network to uint8 pictures; a short batch is filled up, so that one shape is compiled."""
    outputs = function(signed_pixels(fill_up(np.stack(pictures), batch_size)))
    return [np.asarray(output, np.float32)[: len(pictures)] for output in outputs]


def _resize_mask(mask: np.ndarray, width: int, height: int) -> Float[np.ndarray, "h w"]:
    resized = Image.fromarray(mask).convert("F").resize((width, height), Image.Resampling.BOX)
    return np.clip(np.array(resized) / 255.0, 0.0, 1.0).astype(np.float32)


def _pixels(photograph: Photograph) -> np.ndarray:
    return _open(photograph.pixels, "RGB") if isinstance(photograph.pixels, Path) else photograph.pixels


def _mask(photograph: Photograph) -> np.ndarray:
    return _open(photograph.face_mask, "L") if isinstance(photograph.face_mask, Path) else photograph.face_mask


def _open(path: Path, mode: str) -> np.ndarray:
    try:
        return np.array(ImageOps.exif_transpose(Image.open(path)).convert(mode))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"expected a picture at {path}, got a file that can't be read ({error}); replace it"
        ) from error


def _named(photograph: Photograph, function: Callable[[Photograph], Any]) -> Any:
    """What the function makes of the photograph, whose name its errors get."""
    try:
        return function(photograph)
    except ValueError as error:
        raise ValueError(f"{photograph.picture}: {error}") from error


def _parse_line(folder: Path, number: int, line: str) -> Photograph:
    where = f"{folder / INDEX_FILE}, line {number}"
    try:
        entry = json.loads(line)
        file, mask = folder / entry["file"], folder / entry["face_mask"]
        landmarks = np.array(entry["landmarks"], np.float64)
        caption, person = str(entry["caption"]), str(entry["person"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected JSON with file, face_mask, landmarks, caption, person, got {error!r}; correct it"
        ) from error
    if landmarks.ndim != 2 or landmarks.shape[1] != 2:
        raise ValueError(f"{where}: expected landmarks [[x, y], ...], got shape {landmarks.shape}; correct it")
    try:
        check_landmarks(landmarks)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if missing := [path for path in (file, mask) if not path.is_file()]:
        raise FileNotFoundError(f"{where}: expected the file {missing[0]}, got none; correct its name")
    return Photograph(entry["file"], file, mask, landmarks, caption, person)
