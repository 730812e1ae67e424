"""What launch.edit draws: attributes by strength, people mixed by levels, and the way from one person to the next."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pidiff_jax.editing.directions import move, read_directions
from pidiff_jax.editing.levels import interpolate, layers_of, mix
from pidiff_jax.evaluation.report.labelled_grid import labelled_grid
from pidiff_jax.pipeline.commands import GRID, Opening, Writing, claimed, parsed_settings, write_pictures
from pidiff_jax.pipeline.people import check_identities
from pidiff_jax.pipeline.pipeline import Code, Pipeline
from pidiff_jax.pipeline.recipe import Job, save_picture
from pidiff_jax.ranges import MAX_SEED, check_count

_MAX_ROWS = 6  # of attributes that nobody chose


@dataclass(frozen=True)
class Edits:
    """What launch.edit is asked for; see there. settings: of `Pipeline.__call__`, identity_scale as a text."""

    prompt: str
    identities: Sequence[str]
    seed: int
    directions: Path | None
    attributes: Sequence[str]
    strengths: Sequence[str]
    layers: str | None
    interpolate: int | None
    by: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Codes to draw, row by row, each with a name that says what was done; and the names of rows and columns."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[tuple[str, Code]]]


def draw_edits(opening: Opening, writing: Writing, edits: Edits) -> Iterator[str]:
    """Draws a table, writes it and its cells, and yields a line on each file.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: it can't be done; before anything is drawn.
    """
    strengths = _numbers(edits.strengths)
    _check_together(edits)
    check_count("--seed", edits.seed, least=0, most=MAX_SEED)
    check_identities(edits.identities)
    if edits.directions is not None and not edits.directions.is_file():
        raise FileNotFoundError(f"expected a file at --directions={edits.directions}, found none; check the path")
    changes = parsed_settings(edits.settings)
    with claimed(writing):
        pipeline = opening.pipeline()
        people = pipeline.codes(list(edits.identities))
        if edits.directions is not None:
            table = _attributes(pipeline, people, edits, strengths)
        elif edits.interpolate is not None:
            table = _ways(pipeline, people, edits)
        else:
            table = _mixtures(people, edits)
        if not all(np.isfinite(code).all() for row in table.cells for _, code in row):
            raise ValueError("expected finite W+ codes, got others; take smaller --strengths")
        jobs = [Job(edits.prompt, None, edits.seed, ((name, code),)) for row in table.cells for name, code in row]
        output = pipeline.draw(jobs, pipeline.settings(**changes))
    width = len(table.columns)
    drawn = [list(output.pixels[start : start + width]) for start in range(0, len(jobs), width)]
    rendered = _rendered(pipeline, table)
    picture = labelled_grid(drawn, table.rows, table.columns, title=table.title, insets=rendered)
    path = writing.folder / GRID
    note = {"rows": list(table.rows), "columns": list(table.columns), "prompt": edits.prompt, "seed": edits.seed}
    save_picture(path, picture, None, mark=writing.mark, note=note)
    yield f"{path}: {len(table.rows)} x {width}, {table.title}"
    yield from write_pictures(writing, output, jobs)


def _attributes(pipeline: Pipeline, people: Sequence[Any], edits: Edits, strengths: Sequence[float]) -> Table:
    if len(people) != 1:
        raise ValueError(f"expected one --identity to move along --directions, got {len(people)}; name one")
    spec = pipeline.components.identity_mapper.spec
    assert edits.directions is not None
    found = read_directions(edits.directions, spec.num_layers, spec.wplus_dim)
    names = list(edits.attributes) or list(found)[:_MAX_ROWS]
    if unknown := [name for name in names if name not in found]:
        raise ValueError(f"expected an attribute of {', '.join(found)}, got {unknown[0]!r}; correct --attribute")
    layers = edits.layers or "all"
    layers_of(layers, spec.num_layers)
    source, code = people[0]
    cells = [
        [
            (f"{source}, {name} {strength:+g} ({layers})", move(code, found[name], strength, layers))
            for strength in strengths
        ]
        for name in names
    ]
    return Table(f"{_short(source)}: attribute by strength", names, [f"{strength:+g}" for strength in strengths], cells)


def _mixtures(people: Sequence[Any], edits: Edits) -> Table:
    if len(people) < 2:
        raise ValueError(
            f"expected --directions, or several --identity to mix, got {len(people)} people and no directions; add one"
        )
    layers = edits.layers or "coarse"
    short = [_short(source) for source, _ in people]
    cells = [
        [(f"{layers} of {a}, the rest of {b}", mix(code_b, code_a, layers)) for b, code_b in people]
        for a, code_a in people
    ]
    return Table(f"rows give {layers}, columns the rest", short, short, cells)


def _ways(pipeline: Pipeline, people: Sequence[Any], edits: Edits) -> Table:
    count = edits.interpolate or 0
    if len(people) < 2 or count < 2:
        raise ValueError(
            f"expected several --identity and at least --interpolate=2, got {len(people)} people and {count}; add some"
        )
    pairs, shares = list(itertools.pairwise(people)), np.linspace(0.0, 1.0, count)
    as_drawn = pipeline.tokens if edits.by == "tokens" else lambda code: code
    cells = [
        [
            (f"{share:.0%} from {a} to {b} by {edits.by}", code)
            for share, code in zip(shares, interpolate(as_drawn(code_a), as_drawn(code_b), count), strict=True)
        ]
        for (a, code_a), (b, code_b) in pairs
    ]
    rows = [f"{_short(a)}\nto {_short(b)}" for (a, _), (b, _) in pairs]
    return Table(f"from one to the next, by {edits.by}", rows, [f"{share:.0%}" for share in shares], cells)


def _short(source: str | None) -> str:
    """A person's name in a grid: of a file, without its folder."""
    return Path(str(source)).name


def _rendered(pipeline: Pipeline, table: Table) -> list[list[np.ndarray]] | None:
    """The codes themselves, where something here renders them."""
    spec = pipeline.components.identity_mapper.spec
    codes = np.stack([code for row in table.cells for _, code in row])
    if codes.shape[1:] != (spec.num_layers, spec.wplus_dim):
        return None
    pictures = pipeline.run.world.render_codes(codes)
    width = len(table.columns)
    return None if pictures is None else [list(pictures[i : i + width]) for i in range(0, len(pictures), width)]


def _check_together(edits: Edits) -> None:
    """Refuses flags that others make idle."""
    way, along = edits.interpolate is not None, edits.directions is not None
    for flag, is_given, needed in (
        ("--attribute", bool(edits.attributes) and not along, "with --directions"),
        ("--by=tokens", edits.by == "tokens" and (along or not way), "with --interpolate"),
        ("--interpolate", way and along, "without --directions"),
        ("--layers", edits.layers is not None and way, "without --interpolate"),
    ):
        if is_given:
            raise ValueError(f"expected {flag} {needed}, got it otherwise; correct the flags")


def _numbers(texts: Sequence[str]) -> list[float]:
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise ValueError(
            f"expected --strengths as numbers such as -2,0,2, got {','.join(texts)!r}; correct them"
        ) from None
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected --strengths as finite numbers, got {','.join(texts)!r}; correct them")
    return numbers
