"""Who is meant by --identity: W+ codes from photographs, files, records, or of held-out people of the run's world."""

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data_pipeline.prepare.pictures import read_pixels
from data_pipeline.records import open_records
from pidiff_jax.convert.files import read_array, read_tensors
from pidiff_jax.evaluation.subjects import mean_codes
from pidiff_jax.locations import local_path
from pidiff_jax.models.identity_mapper import MapperSpec
from pidiff_jax.ranges import about
from pidiff_jax.worlds import Faces, World

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".tif", ".tiff", ".gif", ".dng")  # of photographs that must be converted
_NAME = re.compile(r"[\w-][\w.-]*")
_HELD_OUT = re.compile(r"(validation|test):(\d+)")
_RECORD = re.compile(r"(.+):(train|validation):(\d+)")


def read_people(
    identities: Sequence[str], world: World, spec: MapperSpec, faces: Callable[[], Faces] | None = None
) -> dict[str, Float[np.ndarray, "l d"]]:
    """W+ codes, float32, by a name that says where each is from.

    Args:
        identities: photographs, or folders of photographs of one person, whose codes are averaged; files of W+ codes, .npy
            with one code (l, d) or .safetensors with one a tensor; "test:3", the fourth held-out person of that split; or
            "FOLDER:validation:3", the fourth record of a folder of records.
        world: of the run.
        spec: of the mapper that reads the codes.
        faces: gives what encodes photographs; None: that of the world.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing of the kind, codes of another size, or two people of one name.
    """
    people: dict[str, np.ndarray] = {}
    for text in identities:
        if match := _HELD_OUT.fullmatch(text):
            found = _held_out(match, world)
        elif match := _RECORD.fullmatch(text):
            found = _from_record(match)
        else:
            found = _from_file(text, faces or world.faces)
        if not found:
            raise ValueError(f"--identity={text}: expected W+ codes, got a file without tensors; save one with a code")
        for name, code in found.items():
            if code.shape != (spec.num_layers, spec.wplus_dim):
                raise ValueError(
                    f"--identity={text}: expected a W+ code of shape ({spec.num_layers}, {spec.wplus_dim}), got {code.shape} "
                    f"in {name!r}; encode the person with the run's own encoder, and save the code alone, without an axis for "
                    "a batch"
                )
            if not np.isfinite(code).all():
                raise ValueError(f"--identity={text}: expected finite numbers, got others in {name!r}; encode it again")
            if not _NAME.fullmatch(name):  # it becomes that of a file
                raise ValueError(
                    f"--identity={text}: expected a name of letters, digits, dots, - and _, got {name!r}; rename it"
                )
            if name in people:
                raise ValueError(
                    f"--identity={text}: expected one person of each name, got another {name!r}; rename one"
                )
            people[name] = code
    return people


def check_identities(identities: Sequence[str]) -> None:
    """Looks whether there are the files that are named: at once, where opening a run may take minutes.

    Raises:
        FileNotFoundError, ValueError: see `read_people`.
    """
    for text in identities:
        if match := _RECORD.fullmatch(text):
            local_path(match[1], "--identity")
        elif not _HELD_OUT.fullmatch(text):
            _existing(text)


def _existing(text: str) -> Path:
    path = local_path(text, "--identity")
    if not path.exists():
        raise FileNotFoundError(
            f"expected a photograph, a file of W+ codes, a record (FOLDER:validation:0) or a held-out person (test:0) as "
            f"--identity, found no file {path}; check it"
        )
    return path


def _held_out(match: re.Match[str], world: World) -> dict[str, np.ndarray]:
    split, number = match[1], int(match[2])
    held_out = world.held_out(split)
    if held_out is None:
        raise ValueError(
            f"expected a file of W+ codes, or FOLDER:validation:0 for a record of a folder, as --identity for a run "
            f"{world.title}, got {match[0]!r}; nobody is held out there"
        )
    with about(f"--identity={match[0]}"):
        held_out.check_people(number + 1)
    return {f"{split}_{number}": np.asarray(held_out.people(1, start=number).wplus[0], np.float32)}


def _from_record(match: re.Match[str]) -> dict[str, np.ndarray]:
    source, split, number = open_records(local_path(match[1], "--identity"), match[2]), match[2], int(match[3])
    if number >= len(source):
        raise ValueError(
            f"--identity={match[0]}: expected a number below {len(source)}, the records of {split}, got {number}; correct it"
        )
    return {f"{split}_{number}": np.asarray(source[number]["wplus"], np.float32)}


def _from_file(text: str, faces: Callable[[], Faces]) -> dict[str, np.ndarray]:
    path = _existing(text)
    if path.is_dir():
        pictures = sorted(each for each in path.iterdir() if _has_suffix(each, PICTURE_SUFFIXES))
        if not pictures:
            raise ValueError(
                f"--identity={text}: expected a folder with photographs of a person ({', '.join(PICTURE_SUFFIXES)}), found "
                "none; name another, or convert what is there"
            )
        if others := sorted(each.name for each in path.iterdir() if _has_suffix(each, _UNREAD_SUFFIXES)):
            warnings.warn(
                f"--identity={text}: left out {len(others)} of another format, such as {others[0]}; convert them too",
                stacklevel=4,
            )
        return {_as_name(path.resolve().name): encode_photographs(pictures, faces())}
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return {_as_name(path.stem): encode_photographs([path], faces())}
    if path.suffix == ".safetensors":
        return read_tensors(path, np.float32)
    if path.suffix == ".npy":
        return {path.stem: read_array(path)}
    raise ValueError(
        f"expected a photograph ({', '.join(PICTURE_SUFFIXES)}), W+ codes (.npy, .safetensors), a record (FOLDER:validation:0) "
        f"or a held-out person (test:0) as --identity, got {path}; convert it"
    )


def _has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """Of a file; hidden ones, such as ._1.png that macOS leaves, are none."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def _as_name(text: str) -> str:
    """Of a photograph or folder, which may have spaces and brackets in theirs."""
    return re.sub(r"[^\w.-]+", "_", text).lstrip(".") or "person"


def encode_photographs(
    pictures: Sequence[Any], faces: Faces, landmarks: Sequence[Any] | None = None
) -> Float[np.ndarray, "l d"]:
    """The mean W+ code of photographs of one person.

    pictures: files, PIL pictures, or arrays: uint8, or floating-point in [0, 1].

    Raises:
        ValueError: one that can't be read, or has no face or several; says which.
    """
    codes = []
    for index, picture in enumerate(pictures):
        name = str(picture) if isinstance(picture, str | Path) else f"photograph {index + 1}"
        with about(name):
            codes.append(faces.encode(as_pixels(picture), None if landmarks is None else landmarks[index]))
    return mean_codes(np.stack(codes)[None])[0]


def as_pixels(picture: Any) -> UInt8[np.ndarray, "h w 3"]:
    """What `read_pixels` makes of a file's name, a PIL picture or an array."""
    if isinstance(picture, str | Path):
        return read_pixels(local_path(picture, "the picture"))
    return read_pixels(picture if isinstance(picture, Image.Image) else np.asarray(picture))
