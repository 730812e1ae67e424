"""Photographs to records: pixels, landmarks, face mask and caption to latents, W+ code and token ids."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image
from tqdm import tqdm

from data_pipeline.prepare.align import align_face
from data_pipeline.prepare.photographs import (
    Photograph,
    Skipped,
    check_photographs,
    check_size,
    face_square,
    latent_mask,
    read_photograph,
)
from data_pipeline.records import write_records
from pidiff_jax.arrays import fill_up, signed_pixels

SKIPPED_FILE = "skipped.jsonl"
IdentityFrom = Literal["same_photograph", "other_photograph"]


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
    skipped: list[Skipped] | None = None,
    checked: bool = False,
) -> dict[str, int]:
    """Encodes photographs and writes them as a data set, with a progress bar; see `encode_records`, `write_records`.

    Returns the number of records in each split.

    skipped: those that were left out so far; others that can't be used are added, and `skipped.jsonl` beside the records
        names them all. None: they are an error.
    checked: `read_photographs` or `check_photographs` has returned these photographs; else all are checked first.
    """
    check_size(size_px)
    if not checked:
        everybody = [photograph for split in splits.values() for photograph in split]
        good = set(map(id, check_photographs(everybody, skipped, size_px)))
        splits = {name: [each for each in split if id(each) in good] for name, split in splits.items()}
    numbers = {person: index for index, person in enumerate(sorted({p.person for s in splits.values() for p in s}))}
    settings = {"size_px": size_px, "face_size_px": face_size_px, "identity_from": identity_from}
    encode = functools.partial(
        encode_records,
        encoders=encoders,
        person_numbers=numbers,
        size_px=size_px,
        face_size_px=face_size_px,
        identity_from=identity_from,
        skipped=skipped,
    )
    num_records = dict.fromkeys(splits, 0)

    def counted(name: str) -> Iterator[dict[str, Any]]:
        for record in tqdm(encode(splits[name]), name, len(splits[name]), unit="photograph"):
            num_records[name] += 1
            yield record

    def name_skipped(folder: Path) -> None:
        if skipped:
            lines = [json.dumps(asdict(each)) + "\n" for each in skipped]
            (folder / SKIPPED_FILE).write_text("".join(lines), encoding="utf-8")

    records = {name: counted(name) for name in splits}
    write_records(directory, records, {**settings, **(metadata or {})}, finish=name_skipped)
    return num_records


def encode_records(
    photographs: Sequence[Photograph],
    encoders: Encoders,
    person_numbers: Mapping[str, int],
    *,
    size_px: int,
    face_size_px: int = 256,
    identity_from: IdentityFrom = "other_photograph",
    batch_size: int = 8,
    skipped: list[Skipped] | None = None,
) -> Iterator[dict[str, Any]]:
    """Makes one record a photograph, in order.

    size_px: side of the square that the diffusion model sees: the largest one around the face, resized.
    identity_from: whose W+ code a record has: the photograph's own, or that of the same person's next photograph (of a
        person with one photograph, its own).
    skipped: gets those added of which the networks make no finite numbers; None: they are an error.

    Raises:
        ValueError: a photograph can't be used; names it. `check_photographs` tells before.
    """
    check_size(size_px)
    partners = _next_of_person(photographs) if identity_from == "other_photograph" else photographs
    for start in range(0, len(photographs), batch_size):
        batch = photographs[start : start + batch_size]
        squares = [square_crop(p, size_px) for p in batch]
        faces = [_aligned(p, face_size_px) for p in partners[start:][: len(batch)]]
        mean, log_variance = _batched(encoders.latents, [pixels for pixels, _ in squares], batch_size)
        wplus = _batched(lambda x: (encoders.wplus(x),), faces, batch_size)[0]
        text_ids = encoders.tokenize([p.caption for p in batch])
        for index, photograph in enumerate(batch):
            encoded = {"latent_mean": mean[index], "latent_log_variance": log_variance[index], "wplus": wplus[index]}
            if wrong := [name for name, values in encoded.items() if not np.isfinite(values).all()]:
                reason = f"expected finite values of the networks, got NaN or infinity as {wrong[0]}"
                if skipped is None:
                    raise ValueError(f"{photograph.picture}: {reason}; replace the picture, or go on by --skip_bad")
                skipped.append(Skipped(photograph.line, photograph.picture, reason))
                continue
            yield {
                **encoded,
                "text_ids": text_ids[index].astype(np.int32),
                "face_mask": _named(photograph, latent_mask, squares[index][1], *mean.shape[1:3]),
                "person_id": np.int32(person_numbers[photograph.person]),
                "caption": photograph.caption,
                "picture": photograph.picture,
            }


def square_crop(photograph: Photograph, size_px: int) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "s2 s2"]]:
    """The largest square of a photograph, as central around the face as it goes: resized pixels, and mask as it is.

    Raises:
        ValueError: landmarks, mask or picture can't be used; names the photograph.
    """
    pixels, mask, landmarks = _named(photograph, read_photograph, photograph)
    square = face_square(mask, landmarks)
    resized = Image.fromarray(pixels[square]).resize((size_px, size_px), Image.Resampling.LANCZOS)
    return np.array(resized), mask[square]


def _aligned(photograph: Photograph, face_size_px: int) -> UInt8[np.ndarray, "s s 3"]:
    pixels, _, landmarks = _named(photograph, read_photograph, photograph)
    return _named(photograph, align_face, pixels, landmarks, face_size_px)


def _next_of_person(photographs: Sequence[Photograph]) -> list[Photograph]:
    """For each photograph the same person's next one of another picture, or itself where there is none."""
    of_person: dict[str, list[Photograph]] = {}
    for photograph in photographs:
        of_person.setdefault(photograph.person, []).append(photograph)

    def following(group: list[Photograph], place: int) -> Photograph:
        others = group[place + 1 :] + group[:place]
        return next((other for other in others if other.picture != group[place].picture), group[place])

    places = dict.fromkeys(of_person, -1)
    partners = []
    for photograph in photographs:
        places[photograph.person] += 1
        partners.append(following(of_person[photograph.person], places[photograph.person]))
    return partners


def _batched(function: Callable, pictures: list[np.ndarray], batch_size: int) -> list[np.ndarray]:
    """Applies a network to uint8 pictures; a short batch is filled up, so that one shape is compiled."""
    outputs = function(signed_pixels(fill_up(np.stack(pictures), batch_size)))
    return [np.asarray(output, np.float32)[: len(pictures)] for output in outputs]


def _named(photograph: Photograph, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function makes of its arguments; its errors get the photograph's name."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{photograph.picture}: {error}") from error
