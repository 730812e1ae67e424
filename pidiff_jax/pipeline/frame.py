"""What all pictures of one call have in common: size, the identity's strength in time and space, and what they start from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from pidiff_jax.arrays import byte_pixels
from pidiff_jax.convert.clip_tokenizer import tokenize
from pidiff_jax.pipeline.canvas import Canvas, name_of
from pidiff_jax.pipeline.identity_scale import identity_schedule, region_masks
from pidiff_jax.pipeline.recipe import Job, pixels_hash
from pidiff_jax.pipeline.settings import Settings
from pidiff_jax.ranges import check_count
from pidiff_jax.sampling.compiled import Request, initial_noise
from pidiff_jax.sampling.components import Components
from pidiff_jax.worlds import Faces


@dataclass(frozen=True)
class Frame:
    """See above; made by `of`.

    schedule: the strength of each token of each person in each step; None where nobody is drawn: then the pictures are the
        base's, bit for bit.
    masks: where each of p people is, at the latents' resolution; None: everywhere.
    regions: the same as a recipe keeps it.
    """

    latent_size: tuple[int, int]
    schedule: Float[np.ndarray, "n 1 pt"] | None
    masks: Float[np.ndarray, "p h w"] | None
    regions: list[Any] | None
    canvas: Canvas | None
    first_step: int

    @classmethod
    def of(
        cls,
        components: Components,
        settings: Settings,
        num_people: int,
        *,
        image: Any,
        mask_image: Any,
        regions: Sequence[Any] | None,
        encode: Callable[[Float[np.ndarray, "h w 3"]], Float[np.ndarray, "_h _w c"]],
        faces: Callable[[], Faces],
    ) -> "Frame":
        """What a user asks for, as `Pipeline.__call__` has it.

        encode, faces: as `Canvas.of` takes them.

        Raises:
            ValueError: what can't be drawn; says why.
        """
        size = picture_size(components, settings)
        factor = components.vae.spec.downsampling
        latent_size = size[0] // factor, size[1] // factor
        if mask_image is not None and image is None:
            raise ValueError("expected a picture to put the drawn part into, got mask_image alone; pass image too")
        canvas = None if image is None else Canvas.of(image, mask_image, size, encode, faces)
        masks = where = None
        if regions is not None:
            masks = region_masks(regions, size, latent_size)
            if len(masks) != num_people:
                raise ValueError(f"expected a region for each of {num_people} people, got {len(masks)}; pair them")
            where = [_kept(region, mask) for region, mask in zip(regions, masks, strict=True)]
        schedule = identity_schedule(
            settings.identity_scale, settings.num_steps, components.identity_mapper.spec, start=settings.identity_start,
            end=settings.identity_end, over_time=settings.identity_over_time,
        )  # fmt: skip
        of_all = np.tile(schedule, (1, num_people))[:, None] if num_people and schedule.any() else None
        return cls(latent_size, of_all, masks, where, canvas, _first_step(settings, canvas))

    def request(
        self,
        components: Components,
        jobs: Sequence[Job],
        tokens: Callable[[Float[np.ndarray, "l d"]], Float[np.ndarray, "t d_id"]],
        guided: bool,
    ) -> Request:
        """A batch of single pictures as the sampler takes it.

        tokens: of a person's W+ code. guided: whether negative prompts are read.
        """
        tokenizer, canvas = components.tokenizer, self.canvas
        seeds = np.array([job.seed for job in jobs], np.uint32)
        negatives = people = regions = None
        if guided and any(job.negative_prompt for job in jobs):
            negatives = tokenize(tokenizer, [job.negative_prompt or "" for job in jobs])
        if self.schedule is not None:
            people = np.stack([[tokens(code) for _, code in job.people] for job in jobs])
            if self.masks is not None:
                regions = np.repeat(np.moveaxis(self.masks, 0, -1), people.shape[2], axis=-1)[None]
        repeat = lambda x: np.repeat(x[None], len(jobs), 0)  # noqa: E731
        return Request(
            text_ids=tokenize(tokenizer, [job.prompt for job in jobs]),
            noise=initial_noise(seeds, (*self.latent_size, components.unet.spec.in_channels)),
            tokens=people,
            schedule=self.schedule,
            regions=regions,
            negative_ids=negatives,
            seeds=seeds,
            known=None if canvas is None else repeat(canvas.latents),
            redraw=None if canvas is None or canvas.latent_mask is None else repeat(canvas.latent_mask),
            first_step=self.first_step,
        )

    def where(self, attention: Float[np.ndarray, "n p h w"]) -> Float[np.ndarray, "n p h w"]:
        """The part of each person's attention that has an effect."""
        return attention if self.masks is None else attention * self.masks[None]


def picture_size(components: Components, settings: Settings) -> tuple[int, int]:
    """Height and width in pixels, the model's own where nothing else is asked for.

    Raises:
        ValueError: one that the UNet can't halve as often as it does.
    """
    factor = components.vae.spec.downsampling
    multiple = factor * 2 ** (len(components.unet.spec.block_out_channels) - 1)
    asked, size = (settings.height, settings.width), []
    for name, pixels, own in zip(("height", "width"), asked, components.latent_size, strict=True):
        pixels = factor * own if pixels is None else pixels
        check_count(name, pixels)
        if pixels % multiple:
            lower = max(pixels // multiple, 1) * multiple
            raise ValueError(
                f"expected {name} as a multiple of {multiple} pixels, as this model draws, got {pixels}; take {lower} or "
                f"{lower + multiple}"
            )
        size.append(pixels)
    return size[0], size[1]


def _first_step(settings: Settings, canvas: Canvas | None) -> int:
    if canvas is None:
        if settings.strength != 1.0:
            raise ValueError(
                f"expected strength with a picture to change, got {settings.strength} alone; pass image too"
            )
        return 0
    taken = int(settings.num_steps * settings.strength)
    if taken < 1:
        raise ValueError(
            f"expected strength * num_steps of at least one step, got {settings.strength} * {settings.num_steps}; raise one"
        )
    return settings.num_steps - taken


def _kept(region: Any, mask: Float[np.ndarray, "h w"]) -> Any:
    """A box as a list, a file by its name and what it holds; a mask in memory leaves no trace but that it was there."""
    if np.ndim(region) == 1:
        return [float(x) for x in region]
    name = name_of(region)
    return name and {"mask": name, "sha256": pixels_hash(byte_pixels(mask))}
