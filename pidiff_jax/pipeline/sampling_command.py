"""What launch.sample does: an order from the command line to files of pictures."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pidiff_jax.convert.files import read_tensors, write_safetensors
from pidiff_jax.locations import local_path
from pidiff_jax.pipeline.pipeline import Pipeline, PipelineOutput, Settings
from pidiff_jax.pipeline.recipe import Job, Recipe, code_hash, devices_here, read_recipe, save_picture

IDENTITIES = "identities.safetensors"
_BOX = re.compile(r"[\d.]+(,[\d.]+){3}")


@dataclass(frozen=True)
class Order:
    """What the command line asks for; see launch.sample. settings: of `Pipeline.__call__`, identity_scale as a text."""

    workdir: Path | None
    output: Path
    prompts: Sequence[str]
    identities: Sequence[str]
    regions: Sequence[str]
    negative_prompt: str | None
    seed: int
    num_images: int
    image: Path | None
    mask_image: str | None
    settings: Mapping[str, Any]
    batch_size: int
    wplus_encoder: Path | None
    base: Path | None
    step: int | None
    recipe: Path | None
    overwrite: bool
    mark: bool


def draw_order(order: Order) -> Iterator[str]:
    """Draws, writes, and yields a line on each file.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: it can't be done; before anything is drawn.
    """
    _check(order)
    claim_folder(order.output, order.overwrite)
    if order.recipe is not None:
        recipe = read_recipe(order.recipe)
        pipeline = _opened(order, recipe.run)
        output, jobs = draw_recipe(pipeline, recipe, order.recipe), None
        yield from _differences(pipeline, recipe)
    else:
        pipeline = _opened(order, {})
        output, jobs = _draw_new(pipeline, order)
    yield from _write(order, output, jobs)


def parse_scale(text: str) -> Any:
    """identity_scale as it is written on the command line: a number, or coarse=1,fine=0.5.

    Raises:
        ValueError: neither.
    """
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.partition("=") for part in text.split(",")]
        return {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        raise ValueError(
            f"expected --identity_scale as a number, or as coarse=1,middle=1,fine=0.5, got {text!r}; correct it"
        ) from None


def claim_folder(folder: Path, overwrite: bool) -> None:
    """Makes a folder for pictures.

    Raises:
        FileExistsError: it holds something, and nobody said that it may be written over.
        ValueError: it can't be made.
    """
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(
            f"expected an empty or new folder as --output, got {folder} with files; choose another, or pass --overwrite"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"expected a folder to write to at --output={folder}, got: {error.strerror}; choose another"
        ) from error


def draw_recipe(pipeline: Pipeline, recipe: Recipe, path: Path) -> PipelineOutput:
    """Draws a picture again. Codes are looked for beside it, then where the recipe says.

    Raises:
        ValueError: a person, or a picture that was changed, isn't there any more, or is another one.
    """
    people = tuple((each["source"], _code(pipeline, each, path.parent)) for each in recipe.people)
    job = Job(recipe.prompt, recipe.negative_prompt, recipe.seed, people)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe.settings.items()}
    image = recipe.image or {}
    output = pipeline.draw(
        [job], Settings(**settings), image=image.get("image"), mask_image=image.get("mask_image"), regions=recipe.regions,
        place=(recipe.place[0], recipe.place[1]),
    )  # fmt: skip
    found = output.recipes[0].image or {}
    if changed := [name for name, value in image.items() if found.get(name) != value]:
        raise ValueError(
            f"expected the same {changed[0]} as the recipe has, got another; the picture or mask has changed"
        )
    return output


def _code(pipeline: Pipeline, person: Mapping[str, Any], folder: Path) -> np.ndarray:
    kept = folder / IDENTITIES
    codes = list(read_tensors(kept, np.float32).values()) if kept.is_file() else []
    if person["source"] is not None and not any(code_hash(code) == person["sha256"] for code in codes):
        codes = list(pipeline.people(person["source"]).values())
    for code in codes:
        if code_hash(code) == person["sha256"]:
            return code
    where = f"{kept} or {person['source']}" if person["source"] else str(kept)
    raise ValueError(
        f"expected the W+ code of the recipe's person in {where}, found none with its hash; bring the file back"
    )


def _check(order: Order) -> None:
    if order.recipe is None and not order.prompts:
        raise ValueError("expected a --prompt or --from-recipe, got neither; say what to draw")
    if order.recipe is not None and (
        order.prompts or order.identities or order.settings or order.regions or order.image
    ):
        raise ValueError(
            "expected --from-recipe alone, got more about the picture; the recipe has it all, leave it out"
        )
    if order.recipe is None and order.workdir is None:
        raise ValueError("expected --workdir, the folder of a run or an adapter file, got none; name it")
    if order.regions and len(order.regions) != len(order.identities):
        raise ValueError(
            f"expected a --region for each --identity, got {len(order.regions)} and {len(order.identities)}; pair them"
        )
    if order.recipe is None and order.image is not None and not order.image.is_file():
        raise FileNotFoundError(f"expected a picture at --image={order.image}, found none; check the path")


def _opened(order: Order, run: Mapping[str, Any]) -> Pipeline:
    step = run.get("step") if order.step is None else order.step
    return Pipeline.from_pretrained(
        order.workdir or local_path(run["folder"], "the recipe's run"), order.base, wplus_encoder=order.wplus_encoder,
        step=step, batch_size=order.batch_size, compilation_cache=None,
    )  # fmt: skip


def _draw_new(pipeline: Pipeline, order: Order) -> tuple[PipelineOutput, Sequence[Job]]:
    """Every person in every prompt."""
    changes = dict(order.settings)
    if "identity_scale" in changes:
        changes["identity_scale"] = parse_scale(changes["identity_scale"])
    settings = pipeline.settings(**changes)
    regions = [_region(text) for text in order.regions] or None
    people = [pair for text in order.identities for pair in pipeline._codes(text)]
    groups = [people] if regions else [[person] for person in people] or [[]]
    jobs = [
        Job(job.prompt, job.negative_prompt, job.seed, tuple(group))
        for group in groups
        for job in pipeline._jobs(
            order.prompts, None, order.negative_prompt, order.seed, order.num_images, together=False
        )
    ]
    return pipeline.draw(jobs, settings, image=order.image, mask_image=order.mask_image, regions=regions), jobs


def _region(text: str) -> Any:
    return tuple(float(x) for x in text.split(",")) if _BOX.fullmatch(text) else str(local_path(text, "--region"))


def _differences(pipeline: Pipeline, recipe: Recipe) -> Iterator[str]:
    """What keeps a picture from being the same bit for bit."""
    here = devices_here(pipeline.run.mesh)
    if pipeline.fingerprints != recipe.run["fingerprints"]:
        yield "warning: the run has other weights than the recipe's; the picture is another one"
    elif here != recipe.devices:
        yield f"warning: drawn on {here}, not on {recipe.devices}; the picture may differ in its last bits"


def _write(order: Order, output: PipelineOutput, jobs: Sequence[Job] | None) -> Iterator[str]:
    folder, overlays = order.output, output.overlays()
    for index, (image, overlay, recipe) in enumerate(zip(output.images, overlays, output.recipes, strict=True)):
        path = folder / f"{index:04d}.png"
        save_picture(path, image, recipe, mark=order.mark)
        yield f"{path}: {recipe.prompt!r}, seed {recipe.seed}" + "".join(f", {p['source']}" for p in recipe.people)
        if recipe.people and output.attention[index].any():
            (folder / "attention").mkdir(exist_ok=True)
            save_picture(
                folder / "attention" / path.name, overlay, None, mark=order.mark, note={"attention_of": path.name}
            )
    codes = {code_hash(code): code for job in jobs or () for _, code in job.people}
    kept = folder / IDENTITIES
    if codes:
        if kept.is_file():
            codes = {**read_tensors(kept, np.float32), **codes}
            kept.unlink()
        write_safetensors(kept, codes)
        yield f"{kept}: the W+ codes, for --from-recipe; they are faces, keep them as such"
