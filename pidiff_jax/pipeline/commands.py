"""What the commands that draw have in common: a run is opened, and pictures are written with their recipes."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pidiff_jax.convert.files import read_tensors, write_safetensors
from pidiff_jax.diffusion.samplers import check_sampler
from pidiff_jax.evaluation.report.labelled_grid import labelled_grid
from pidiff_jax.locations import local_path, make_folder
from pidiff_jax.pipeline.people import as_pixels, check_identities
from pidiff_jax.pipeline.pipeline import Pipeline, PipelineOutput
from pidiff_jax.pipeline.recipe import Job, Recipe, code_hash, devices_here, pixels_hash, read_recipe, save_picture
from pidiff_jax.pipeline.settings import Settings
from pidiff_jax.ranges import MAX_SEED, check_count

ATTENTION, GRID, IDENTITIES = "attention", "grid.png", "identities.safetensors"


@dataclass(frozen=True)
class Opening:
    """Which run is opened, and how; see `Pipeline.from_pretrained`."""

    workdir: Path | None
    base: Path | None = None
    wplus_encoder: Path | None = None
    step: int | None = None
    batch_size: int = 4

    def pipeline(self, recorded: Mapping[str, Any] | None = None) -> Pipeline:
        """The pipeline; recorded: a recipe's run, for what isn't given here.

        Raises:
            ValueError: no run is named.
        """
        own = recorded or {}
        check_count("--batch_size", self.batch_size)
        if self.workdir is None and "folder" not in own:
            raise ValueError("expected --workdir, the folder of a run or an adapter file, got none; name it")
        return Pipeline.from_pretrained(
            self.workdir or local_path(own["folder"], "the recipe's run"),
            self.base,
            wplus_encoder=self.wplus_encoder,
            step=own.get("step") if self.step is None and self.workdir is None else self.step,
            batch_size=self.batch_size,
        )


@dataclass(frozen=True)
class Writing:
    """Where and how files are written. mark: see `save_picture`."""

    folder: Path
    overwrite: bool = False
    mark: bool = True


@dataclass(frozen=True)
class Order:
    """What launch.sample is asked for. settings: of `Pipeline.__call__`, identity_scale as a text."""

    prompts: Sequence[str]
    identities: Sequence[str]
    regions: Sequence[str]
    image: Path | None
    mask_image: str | None
    negative_prompt: str | None
    seed: int
    num_images: int
    settings: Mapping[str, Any]


def draw_order(opening: Opening, writing: Writing, order: Order) -> Iterator[str]:
    """Every person in every prompt; writes, and yields a line on each file.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: it can't be done; before anything is drawn.
    """
    if not order.prompts:
        raise ValueError("expected a --prompt or --from-recipe, got neither; say what to draw")
    if order.regions and len(order.regions) != len(order.identities):
        raise ValueError(
            f"expected a --region for each --identity, got {len(order.regions)} and {len(order.identities)}; pair them"
        )
    if order.image is not None and not order.image.is_file():
        raise FileNotFoundError(f"expected a picture at --image={order.image}, found none; check the path")
    check_count("--num_images", order.num_images)
    check_count("--seed", order.seed, least=0, most=MAX_SEED)
    mask = _mask(order.mask_image)
    check_identities(order.identities)
    regions = [_region(text) for text in order.regions] or None
    changes = parsed_settings(order.settings)
    with claimed(writing):
        pipeline = opening.pipeline()
        settings = pipeline.settings(**changes)
        people = pipeline.codes(list(order.identities))
        groups = [people] if regions else [[person] for person in people] or [[]]
        texts = pipeline.jobs(
            order.prompts, negative_prompt=order.negative_prompt, seed=order.seed, num_images=order.num_images
        )
        jobs = [replace(job, people=tuple(group)) for group in groups for job in texts]
        output = pipeline.draw(jobs, settings, image=order.image, mask_image=mask, regions=regions)
    yield from write_pictures(writing, output, jobs)
    if len(jobs) > 1:
        yield _write_table(writing, output, len(texts), references(pipeline, groups))


def references(pipeline: Pipeline, groups: Sequence[Sequence[tuple[str | None, np.ndarray]]]) -> list[tuple[str, Any]]:
    """A name for each group of people and, where each is of one, its code as a picture, if something here renders it."""
    names = [" and ".join(Path(str(source)).name for source, _ in group) or "no identity" for group in groups]
    alone = all(len(group) == 1 for group in groups)
    codes = [group[0][1] for group in groups if alone]
    rendered = pipeline.run.world.render_codes(np.stack(codes)) if codes else None
    return list(zip(names, [None] * len(groups) if rendered is None else list(rendered), strict=True))


def _write_table(writing: Writing, output: PipelineOutput, width: int, people: Sequence[tuple[str, Any]]) -> str:
    """Everybody in one picture: people are rows, prompts and seeds columns."""
    starts = range(0, len(output.pixels), width)
    recipes = output.recipes[:width]
    seeds = {recipe.seed for recipe in recipes}
    columns = [recipe.prompt + (f" ({recipe.seed})" if len(seeds) > 1 else "") for recipe in recipes]
    cells = [[face, *output.pixels[start : start + width]] for start, (_, face) in zip(starts, people, strict=True)]
    if all(face is None for _, face in people):
        cells = [row[1:] for row in cells]
    else:
        columns = ["W+ code", *columns]
    path = writing.folder / GRID
    note = {"people": [name for name, _ in people], "columns": columns}
    table = labelled_grid(cells, [name for name, _ in people], columns)
    save_picture(path, table, None, mark=writing.mark, note=note)
    return f"{path}: all of them"


def draw_again(opening: Opening, writing: Writing, order: Order, path: Path) -> Iterator[str]:
    """The picture of a recipe once more; like `draw_order`.

    order: must ask for nothing; the recipe has it all.
    """
    pictures = order.regions or order.image or order.mask_image or order.seed != 0 or order.num_images != 1
    if order.prompts or order.negative_prompt or order.identities or order.settings or pictures:
        raise ValueError(
            "expected --from-recipe alone, got more about the picture; the recipe has it all, leave it out"
        )
    with claimed(writing):
        recipe = read_recipe(path)
        pipeline = opening.pipeline(recipe.run)
        output, job = draw_recipe(pipeline, recipe, path)
    yield from _differences(pipeline, recipe)
    yield from write_pictures(writing, output, [job])


def parsed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the command line has them, for `Pipeline.settings`.

    Raises:
        ValueError: one that no run could be drawn with.
    """
    if "sampler" in settings:
        check_sampler(settings["sampler"])
    if "num_steps" in settings:
        check_count("--num_steps", settings["num_steps"])
    scale = settings.get("identity_scale")
    return {**settings, **({} if scale is None else {"identity_scale": parse_scale(scale)})}


def parse_scale(text: str) -> Any:
    """identity_scale as it is written on the command line: a number, or coarse=1,fine=0.5.

    Raises:
        ValueError: neither.
    """
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.partition("=") for part in text.split(",")]
        numbers = {name.strip(): float(value) for name, _, value in pairs}
        if len(numbers) < len(pairs):
            raise ValueError("a level twice")
        return numbers
    except ValueError:
        raise ValueError(
            f"expected --identity_scale as a number, or as coarse=1,middle=1,fine=0.5, got {text!r}; correct it"
        ) from None


@contextlib.contextmanager
def claimed(writing: Writing) -> Iterator[None]:
    """Makes the folder, before the work that is done inside; if that fails, no empty folder stays behind.

    Raises:
        FileExistsError: it holds something, and nobody said that it may be written over.
        ValueError: it can't be made.
    """
    folder, is_new = writing.folder, not writing.folder.exists()
    if folder.is_dir() and any(folder.iterdir()) and not writing.overwrite:
        raise FileExistsError(
            f"expected an empty or new folder as --output, got {folder} with files; choose another, or pass --overwrite"
        )
    make_folder(folder, f"a folder to write to at --output={folder}")
    try:
        yield
    except BaseException:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def draw_recipe(pipeline: Pipeline, recipe: Recipe, path: Path) -> tuple[PipelineOutput, Job]:
    """Draws a picture again, and says of what. Codes are looked for beside it, then where the recipe says.

    Raises:
        ValueError: a person, or a picture that was changed, isn't there any more, or is another one.
    """
    if recipe.regions is not None and None in recipe.regions:
        raise ValueError(
            f"expected regions as boxes or files in the recipe {path}, got masks that were in memory; draw anew"
        )
    people = tuple((each["source"], _code(pipeline, each, path.parent)) for each in recipe.people)
    job = Job(recipe.prompt, recipe.negative_prompt, recipe.seed, people)
    image = recipe.image or {}
    if image:
        _check_picture(image)
    output = pipeline.draw(
        [job],
        Settings.from_json(recipe.settings),
        image=image.get("image"),
        mask_image=image.get("mask_image"),
        regions=None
        if recipe.regions is None
        else [each["mask"] if isinstance(each, dict) else each for each in recipe.regions],
        place=(recipe.place[0], recipe.place[1]),
    )
    for old, new in zip(recipe.regions or [], output.recipes[0].regions or [], strict=True):
        if isinstance(old, dict) and old != new:
            raise ValueError(f"expected the mask {old['mask']} as the recipe knows it, got another; bring it back")
    found = output.recipes[0].image or {}
    if changed := [name for name, value in image.items() if found.get(name) != value]:
        raise ValueError(
            f"expected the same {changed[0]} as the recipe has, got another; the picture or mask has changed"
        )
    return output, job


def _check_picture(image: Mapping[str, Any]) -> None:
    if image["image"] is None:
        raise ValueError("expected a picture's file in the recipe, got one that was in memory; draw anew")
    if pixels_hash(as_pixels(image["image"])) != image["image_sha256"]:
        raise ValueError(f"expected the picture {image['image']} as the recipe knows it, got another; bring it back")


def _code(pipeline: Pipeline, person: Mapping[str, Any], folder: Path) -> np.ndarray:
    kept = folder / IDENTITIES
    codes = list(read_tensors(kept, np.float32).values()) if kept.is_file() else []
    if person["source"] is not None and not any(code_hash(code) == person["sha256"] for code in codes):
        with contextlib.suppress(ValueError, OSError):  # of an edited code it only says what was done
            codes = list(pipeline.people(person["source"]).values())
    for code in codes:
        if code_hash(code) == person["sha256"]:
            return code
    where = f"{kept} or {person['source']}" if person["source"] else str(kept)
    raise ValueError(
        f"expected the W+ code of the recipe's person in {where}, found none with its hash; bring the file back"
    )


def _region(text: str) -> Any:
    """A box where there are four numbers, in [0, 1] or not; else the name of a mask's file."""
    with contextlib.suppress(ValueError):
        numbers = tuple(float(x) for x in text.split(","))
        if len(numbers) == 4:
            return numbers
    return str(_mask_file(text, "--region", "give a box left,top,right,bottom"))


def _mask(text: str | None) -> str | None:
    return text if text in (None, "face") else str(_mask_file(text, "--mask_image", "give 'face'"))


def _mask_file(text: str, flag: str, or_else: str) -> Path:
    path = local_path(text, flag)
    if not path.is_file():
        raise FileNotFoundError(f"expected a picture at {flag}={path}, found none; check the path, or {or_else}")
    return path


def _differences(pipeline: Pipeline, recipe: Recipe) -> Iterator[str]:
    """What keeps a picture from being the same bit for bit."""
    here = devices_here(pipeline.run.mesh)
    theirs, ours = recipe.run["fingerprints"], pipeline.fingerprints
    if others := sorted(part for part in theirs if theirs[part] != ours.get(part)):
        yield f"warning: the run has other weights than the recipe's ({', '.join(others)}); the picture is another one"
    elif here != recipe.devices:
        yield f"warning: drawn on {here}, not on {recipe.devices}; the picture may differ in its last bits"


def write_pictures(writing: Writing, output: PipelineOutput, jobs: Sequence[Job]) -> Iterator[str]:
    """Writes pictures with recipes, heat maps, and the codes of the jobs; yields a line on each."""
    folder, heat_folder = writing.folder, writing.folder / ATTENTION
    for index, (image, recipe) in enumerate(zip(output.images, output.recipes, strict=True)):
        path = folder / f"{index:04d}.png"
        save_picture(path, image, recipe, mark=writing.mark)
        yield f"{path}: {recipe.prompt!r}, seed {recipe.seed}" + "".join(f", {p['source']}" for p in recipe.people)
    if output.attention.any():
        heat_folder.mkdir(exist_ok=True)
        for index, overlay in enumerate(output.overlays()):
            note = {"attention_of": f"{index:04d}.png", "brightest_in_means": round(output.brightest_overlay, 2)}
            save_picture(heat_folder / f"{index:04d}.png", overlay, None, mark=writing.mark, note=note)
        yield f"{heat_folder}: where the identity acts; the brightest is {output.brightest_overlay:.0f} times the mean"
    codes = {code_hash(code): code for job in jobs for _, code in job.people}
    if codes:
        kept = folder / IDENTITIES
        if kept.is_file():  # of pictures that are written over, or stay
            codes = {**read_tensors(kept, np.float32), **codes}
        write_safetensors(kept, codes, replace=writing.overwrite)
        yield f"{kept}: the W+ codes, for --from-recipe; they are faces, keep them as such"
