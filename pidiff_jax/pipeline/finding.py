"""What launch.directions does: directions found in the codes of a world or of records, written with a picture of each."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from data_pipeline.records import open_records
from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.editing.directions import Found, from_components, from_labels, move, read_rows
from pidiff_jax.evaluation.report.labelled_grid import labelled_grid
from pidiff_jax.pipeline.commands import Opening, Writing, claimed
from pidiff_jax.pipeline.pipeline import Pipeline
from pidiff_jax.pipeline.recipe import Job, save_picture
from pidiff_jax.ranges import about, check_count
from pidiff_jax.worlds import KnownCodes

DIRECTIONS = "directions"
_LEAST_SURENESS = 0.2
_LARGEST = 1e30  # of a label, so that squares are finite
_STRENGTHS = (-3.0, -1.5, 0.0, 1.5, 3.0)


@dataclass(frozen=True)
class Search:
    """What launch.directions is asked for; see there."""

    records: Path | None
    labels: Path | None
    method: str | None
    num_codes: int
    num_components: int
    prompt: str


def find_directions(opening: Opening, writing: Writing, search: Search) -> Iterator[str]:
    """Finds, writes, and yields a line on each direction and file.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: it can't be done; says why.
    """
    check_count("--num_codes", search.num_codes)
    check_count("--num_components", search.num_components)
    if search.labels is not None and search.records is None:
        raise ValueError("expected --records, which the --labels are of, got none; name the folder")
    if search.labels is not None and not search.labels.is_file():
        raise FileNotFoundError(f"expected a CSV file at --labels={search.labels}, found none; check the path")
    if search.records is not None and not search.records.is_dir():
        raise FileNotFoundError(
            f"expected a folder of records at --records={search.records}, found none; check the path"
        )
    with claimed(writing):
        pipeline = opening.pipeline()
        known = _known(pipeline, search)
        found, left_out = _found(known, search)
    if left_out:
        yield f"left out, since the codes hardly tell them: {', '.join(left_out)}"
    for name, share in found.variance.items():
        sure = "" if found.sureness is None else f", told from codes with R2 {found.sureness[name]:.2f}"
        yield f"{name}: {share:.1%} of the variance{sure}"
    path = writing.folder / f"{DIRECTIONS}.safetensors"
    write_safetensors(path, found.directions, replace=writing.overwrite)
    facts = {
        "method": "components" if found.sureness is None else "labels",
        "num_codes": len(known.wplus), "variance": found.variance, "sureness": found.sureness,
        "layers_share": {name: _layer_shares(d) for name, d in found.directions.items()},
    }  # fmt: skip
    save_picture(
        path.with_suffix(".png"), _picture(pipeline, found, known, search.prompt), None, mark=writing.mark, note=facts
    )
    yield f"{path}: for launch.edit --directions; what each does is in {DIRECTIONS}.png, its figures in {DIRECTIONS}.json"


def _found(known: KnownCodes, search: Search) -> tuple[Found, list[str]]:
    """The directions, and the names of labels that were left out."""
    method = search.method or ("labels" if known.names else "components")
    if method == "components":
        return from_components(known.wplus, search.num_components), []
    if not known.names:
        raise ValueError("expected labels, got codes without any; pass --labels=FILE.csv, or --method=components")
    everything = from_labels(known.wplus, known.labels, known.names)
    found = everything.without_unsure(_LEAST_SURENESS)
    if not found.directions:
        raise ValueError(
            "expected a label that the codes tell, got none; add labelled codes, or pass --method=components"
        )
    return found, sorted(everything.directions.keys() - found.directions.keys())


def _known(pipeline: Pipeline, search: Search) -> KnownCodes:
    if search.records is None:
        return pipeline.run.world.known_codes(search.num_codes)
    source = open_records(search.records, "train")
    numbers = range(min(search.num_codes, len(source)))
    codes = np.stack([source[index]["wplus"] for index in numbers])
    spec = pipeline.components.identity_mapper.spec
    wanted = (spec.num_layers, spec.wplus_dim)
    if codes.shape[1:] != wanted:
        raise ValueError(
            f"expected records with codes of shape {wanted} in {search.records}, as the run reads, "
            f"got {codes.shape[1:]}; prepare them with the run's encoder"
        )
    if search.labels is None:
        return KnownCodes(codes, np.zeros((len(codes), 0)), ())
    return _labelled(codes, [source.note(index, "picture") for index in numbers], search.labels)


def _labelled(codes: Float[np.ndarray, "n l d"], pictures: list[str], path: Path) -> KnownCodes:
    """The codes whose pictures have a row in the file."""
    rows = read_rows(path)
    columns = rows[0][1] if rows else []
    names = tuple(name for name in columns if name != "picture")
    if len(names) != len(columns) - 1 or not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"expected a column 'picture' and others in {path}, each with a name of its own, got {', '.join(columns)}; "
            "correct its first line"
        )
    known: dict[str, list[float]] = {}
    for line, row in rows[1:]:
        with about(f"{path}, line {line}"):
            if len(row) != len(columns):
                raise ValueError(f"expected {len(columns)} values, got {len(row)}; correct it, or leave the row out")
            values = dict(zip(columns, row, strict=True))
            if (picture := values.pop("picture")) in known:
                raise ValueError(f"expected each picture once, got {picture!r} again; leave one out")
            known[picture] = [_number(name, text) for name, text in values.items()]
    found = [index for index, picture in enumerate(pictures) if picture in known]
    if not found:
        raise ValueError(
            f"expected rows of the records' pictures, such as {pictures[0]!r}, in {path}, got none; correct the names"
        )
    return KnownCodes(codes[found], np.array([known[pictures[index]] for index in found]), names)


def _number(name: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        number = float(text)
        if abs(number) < _LARGEST:
            return number
    raise ValueError(f"expected a number as {name!r}, got {text!r}; correct it, or leave the row out")


def _layer_shares(direction: Float[np.ndarray, "l d"]) -> list[float]:
    """How much of a direction lies in each layer; sums to 1."""
    squares = (direction**2).sum(1)
    return [round(float(share), 4) for share in squares / max(float(squares.sum()), 1e-12)]


def _picture(pipeline: Pipeline, found: Found, known: KnownCodes, prompt: str) -> Image.Image:
    """The mean code along each direction: the code itself where something here renders it, else a drawing of it."""
    middle = known.wplus.mean(0)
    codes = np.stack([move(middle, direction, s) for direction in found.directions.values() for s in _STRENGTHS])
    pictures = pipeline.run.world.render_codes(codes)
    if pictures is None:
        jobs = [Job(prompt, None, 0, ((None, code),)) for code in codes]
        pictures = pipeline.draw(jobs, pipeline.settings()).pixels
    width = len(_STRENGTHS)
    cells = [list(pictures[start : start + width]) for start in range(0, len(pictures), width)]
    return labelled_grid(
        cells, [f"{name}\n{share:.1%}" for name, share in found.variance.items()], [f"{s:+g} sd" for s in _STRENGTHS],
        title="the mean code along each direction", cell_px=112,
    )  # fmt: skip
