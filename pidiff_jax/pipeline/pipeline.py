"""Pipeline: a trained run to draw people with, at home for whoever knows diffusers."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from PIL import Image
from tqdm import tqdm

from pidiff_jax.arrays import byte_pixels
from pidiff_jax.checkpoint.fingerprint import fingerprint
from pidiff_jax.compilation_cache import use_compilation_cache
from pidiff_jax.convert.clip_tokenizer import words_beyond
from pidiff_jax.evaluation.report.heat_map import heat_maps
from pidiff_jax.locations import local_path, optional_path
from pidiff_jax.paths import flatten
from pidiff_jax.pipeline.frame import Frame
from pidiff_jax.pipeline.people import encode_photographs, read_people
from pidiff_jax.pipeline.recipe import Job, Recipe, code_hash, devices_here
from pidiff_jax.pipeline.settings import Settings
from pidiff_jax.ranges import MAX_SEED, check_count
from pidiff_jax.runs.saved_run import SavedRun, open_run
from pidiff_jax.sampling.compiled import CompiledSampler
from pidiff_jax.sampling.generate import sampler_for
from pidiff_jax.worlds import Faces

Code = Float[np.ndarray, "l d"]
_MAX_IMAGES = 100_000  # of a prompt in one call; all are held in memory


@dataclass(frozen=True)
class PipelineOutput:
    """n pictures, prompt by prompt.

    images: PIL pictures, or pixels in [0, 1].
    pixels: the same, float32 in [0, 1]. attention: where each person's identity acts, at the latents' resolution; each
        picture's sum is 1, zero without identity.
    recipes: what each was made from (`pipeline.recipe`).
    """

    images: Any
    pixels: Float[np.ndarray, "n h w 3"] = field(repr=False)
    attention: Float[np.ndarray, "n p _h _w"] = field(repr=False)
    recipes: Sequence[Recipe] = field(repr=False)

    def overlays(self) -> list[Image.Image]:
        """The attention as colours over each picture in grey, in one scale for all."""
        return [_as_pil(each) for each in self._heat_maps[0]]

    @property
    def brightest_overlay(self) -> float:
        """What the strongest colour of the overlays stands for, as a multiple of attention that is spread evenly."""
        return self._heat_maps[1]

    @cached_property
    def _heat_maps(self) -> tuple[Float[np.ndarray, "n h w 3"], float]:
        return heat_maps(self.pixels, self.attention.sum(1))


class Pipeline:
    """Draws people with a trained run; made by `from_pretrained`.

    Example:
        >>> pipeline = Pipeline.from_pretrained("runs/quickstart")
        >>> anna = pipeline.encode_identity("anna.png")
        >>> output = pipeline("a person in a red shirt before a blue striped wall", identity=anna, seed=3)
        >>> output.images[0].save("anna_in_red.png")

    The first call of a size, batch and kind of sampler compiles one step, later ones use it again, whatever their numbers;
    programs are also kept on disk, as `launch` does (see `from_pretrained`).
    """

    def __init__(self, run: SavedRun, wplus_encoder: Path | None = None, batch_size: int = 4):
        check_count("a batch_size", batch_size)
        self.run, self.components, self.batch_size = run, run.components, batch_size
        self._encoder_path = wplus_encoder
        self._sampler = CompiledSampler(run.components, run.mesh)
        self._encode = jax.jit(partial(run.components.vae.apply, method="encode"))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        base: str | Path | None = None,
        *,
        wplus_encoder: str | Path | None = None,
        step: int | None = None,
        mesh: Mesh | None = None,
        batch_size: int = 4,
        compilation_cache: str | None = None,
    ) -> "Pipeline":
        """Opens a run.

        Args:
            source: folder of a run, or the adapter file that was made of it.
            base: Stable Diffusion, a folder in diffusers' format or one file; None: where it was in the training.
            wplus_encoder: checkpoint of encoder4editing, to encode photographs; the embedded world has its own.
            step: of the checkpoint; None takes the newest.
            mesh: to lie on; None takes all devices.
            batch_size: pictures that are drawn at once, at most.
            compilation_cache: folder for compiled programs, or "off"; None: as `--compilation_cache` of the commands, unless
                the program that calls has told JAX already.

        Raises:
            FileNotFoundError, ValueError: something isn't there, or doesn't fit; says what.
        """
        if compilation_cache is not None or not getattr(jax.config, "jax_compilation_cache_dir", None):
            use_compilation_cache(compilation_cache)
        overrides = {} if base is None else {"base.path": local_path(base, "base")}
        run = open_run(source, step, mesh, overrides)
        return cls(run, optional_path(wplus_encoder, "wplus_encoder"), batch_size)

    @cached_property
    def faces(self) -> Faces:
        """What encodes photographs."""
        return self.run.world.faces(self._encoder_path)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Content hashes of the adapter and of what it stands on."""
        flat = flatten(self.run.params)
        return {
            "adapter": fingerprint({path: flat[path] for path in self.run.trained}),
            "vae": fingerprint({path: leaf for path, leaf in flat.items() if path.startswith("vae/")}),
            **self.run.facts["fingerprints"],
        }

    def encode_identity(self, pictures: Any, landmarks: Any = None) -> Code:
        """The W+ code of a person: of a photograph, or the mean of several of the same person.

        Args:
            pictures: a file, PIL picture or array (uint8, or floating-point in [0, 1]), or a list of such.
            landmarks: of each picture 5 or 68 points (x, y), as `launch.prepare` reads them, where nothing finds faces.

        Raises:
            ValueError: a picture without a face, or with several.
        """
        if isinstance(pictures, list | tuple):
            if not pictures:
                raise ValueError("expected photographs of a person, got none; pass at least one")
            if landmarks is not None and len(landmarks) != len(pictures):
                raise ValueError(f"expected landmarks of {len(pictures)} photographs, got {len(landmarks)}; pair them")
            return encode_photographs(pictures, self.faces, landmarks)
        return encode_photographs([pictures], self.faces, None if landmarks is None else [landmarks])

    def people(self, *identities: str) -> dict[str, Code]:
        """W+ codes by name, of what the commands take as --identity (see `read_people`)."""
        return read_people(identities, self.run.world, self.components.identity_mapper.spec, lambda: self.faces)

    def tokens(self, code: Code) -> Float[np.ndarray, "t d_id"]:
        """The identity tokens of a W+ code, which can be drawn in its place; tokens stay as they are."""
        spec = self.components.identity_mapper.spec
        if code.shape != (spec.num_layers, spec.wplus_dim):
            return code
        return self._sampler.tokens(self.run.params, code[None, None])[0, 0]

    def settings(self, **changes: Any) -> Settings:
        """The run's own settings, with changes; None leaves one as it is.

        Raises:
            TypeError: there is no such setting; says what it is called here.
        """
        own = self.run.config.sampling
        settings = Settings(own.num_steps, own.guidance_scale, own.identity_scale, identity_start=own.identity_start)
        return settings.changed(changes)

    def __call__(
        self,
        prompt: str | Sequence[str],
        identity: Any = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        num_images: int = 1,
        image: Any = None,
        mask_image: Any = None,
        regions: Sequence[Any] | None = None,
        output_type: Literal["pil", "np"] = "pil",
        show_progress: bool = True,
        **settings: Any,
    ) -> PipelineOutput:
        """Draws `num_images` pictures of each prompt.

        Args:
            prompt: one text, or several.
            identity: a W+ code (l, d), as `encode_identity` gives it; several: one for each prompt or, with `regions`, all
                together in each picture; None draws what the base draws. A text names people as --identity does.
            negative_prompt: what guidance leads away from; one, or one for each prompt.
            seed: of the first picture of each prompt, whose others have the following ones; or one for each.
            image: a picture to start from: changed as a whole (how much: `strength`) or, with `mask_image`, inside of it.
            mask_image: white where the picture is drawn anew; "face" for the head that is in it. Outside, the picture stays.
            regions: where each of several people is: boxes (left, top, right, bottom) in shares of the picture, or masks.
            output_type: "pil", or "np" for pixels in [0, 1].
            show_progress: a bar of all steps.
            settings: by default as in the run's config:
                num_steps, sampler ("ddim", "dpmpp_2m_karras", ...: `diffusion.samplers.SAMPLERS`), eta (of ddim);
                guidance_scale, guidance_rescale, identity_guidance_scale (see `Sampling`);
                identity_scale: a number, one for each W+ layer, or {"coarse": 1.0, "fine": 0.5}; normalise_identity;
                identity_start, identity_end: shares of the steps; identity_over_time: factors, linear in between;
                strength: share of the steps that `image` is changed for, 1 by default;
                height, width: pixels; the model's own by default.

        Raises:
            ValueError: what can't be drawn; one line that says what was expected, what came and what to do.
            TypeError: a setting that there isn't.
        """
        chosen = self.settings(**settings)
        if output_type not in ("pil", "np"):
            raise ValueError(f"expected output_type 'pil' or 'np', got {output_type!r}; correct it")
        jobs = self.jobs(
            prompt,
            identity,
            negative_prompt=negative_prompt,
            seed=seed,
            num_images=num_images,
            together=regions is not None,
        )
        return self.draw(
            jobs, chosen, image=image, mask_image=mask_image, regions=regions, output_type=output_type,
            show_progress=show_progress,
        )  # fmt: skip

    def draw(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        *,
        image: Any = None,
        mask_image: Any = None,
        regions: Sequence[Any] | None = None,
        output_type: Literal["pil", "np"] = "pil",
        show_progress: bool = True,
        place: tuple[int, int] | None = None,
    ) -> PipelineOutput:
        """What `__call__` does, of jobs that each have their own text, people and seed.

        place: of a single job, its place in a batch and that batch's size, so that it is drawn again bit for bit.
        """
        settings.check()
        sampler_for(self.components, settings.sampling)
        self._warn_of_cut_prompts(jobs, settings)
        frame = Frame.of(
            self.components, settings, len(jobs[0].people), image=image, mask_image=mask_image, regions=regions,
            encode=self._encode_picture, faces=lambda: self.faces,
        )  # fmt: skip
        at, size = place if place is not None else (0, min(self.batch_size, len(jobs)))
        batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        pixels, attention, recipes = [], [], []
        num_steps = len(batches) * (settings.num_steps - frame.first_step)
        with tqdm(total=num_steps, unit="step", disable=not show_progress) as bar:
            for batch in batches:
                drawn, heat = self._draw_batch([*batch, *[batch[-1]] * (size - len(batch))], settings, frame, bar)
                keep = slice(at, at + 1) if place is not None else slice(len(batch))
                pixels.append(drawn[keep])
                attention.append(frame.where(heat)[keep])
                recipes += [self._recipe(job, settings, frame, (at + i, size)) for i, job in enumerate(batch)]
        joined = np.concatenate(pixels)
        if not np.isfinite(joined).all():
            raise ValueError(
                "expected finite pixels, got NaN or infinity from the model; lower identity_scale or guidance_scale, or check "
                "the run"
            )
        if frame.canvas is not None:
            joined = frame.canvas.paste(joined)
        images = [_as_pil(each) for each in joined] if output_type == "pil" else joined
        return PipelineOutput(images, joined, np.concatenate(attention), recipes)

    def _draw_batch(
        self, jobs: Sequence[Job], settings: Settings, frame: Frame, bar: tqdm
    ) -> tuple[Float[np.ndarray, "n h w 3"], Float[np.ndarray, "n p _h _w"]]:
        """Pixels, and the attention of everybody."""
        params, sampling = self.run.params, settings.sampling
        request = frame.request(self.components, jobs, self.tokens, guided=sampling.passes > 1)
        latents, heat = self._sampler.draw(params, request, sampling, on_step=lambda done, total: bar.update())
        pixels = self._sampler.decode(params["vae"], latents / self.components.vae.spec.scaling_factor)
        return np.asarray(pixels), np.asarray(heat)

    def jobs(
        self,
        prompt: Any,
        identity: Any = None,
        *,
        negative_prompt: Any = None,
        seed: Any = 0,
        num_images: int = 1,
        together: bool = False,
    ) -> list[Job]:
        """The single pictures that `__call__` is asked for; together: all people are in each of them."""
        prompts = _texts("prompt", prompt)
        negatives = [None] * len(prompts) if negative_prompt is None else _texts("negative_prompt", negative_prompt)
        negatives = negatives * len(prompts) if len(negatives) == 1 else negatives
        if len(negatives) != len(prompts):
            raise ValueError(f"expected one negative_prompt, or {len(prompts)}, got {len(negatives)}; pair them")
        check_count("num_images", num_images, most=_MAX_IMAGES)
        single = not isinstance(seed, list | tuple | range | np.ndarray)
        if single:
            check_count("a seed", int(seed) if isinstance(seed, np.integer) else seed, least=0, most=MAX_SEED)
        seeds = [seed + i for i in range(num_images)] if single else list(seed)
        if not single and num_images not in (1, len(seeds)):
            raise ValueError(f"expected num_images={len(seeds)}, as there are seeds, got {num_images}; leave it out")
        for each in seeds:
            check_count("a seed", int(each) if isinstance(each, np.integer) else each, least=0, most=MAX_SEED)
        people = self.codes(identity)
        if together:
            if not people:
                raise ValueError("expected people for the regions, got no identity; pass one for each region")
            groups = [tuple(people)] * len(prompts)
        elif len(people) <= 1:
            groups = [tuple(people)] * len(prompts)
        elif len(people) == len(prompts):
            groups = [(person,) for person in people]
        else:
            raise ValueError(
                f"expected one identity, or one for each of {len(prompts)} prompts, got {len(people)}; pair them, or pass "
                "regions to have all of them in each picture"
            )
        return [
            Job(text, negative, int(each), group)
            for text, negative, group in zip(prompts, negatives, groups, strict=True)
            for each in seeds
        ]

    def codes(self, identity: Any) -> list[tuple[str | None, Code]]:
        """(where it is from, W+ code) of each person that `__call__` takes as identity.

        Raises:
            ValueError: codes of another shape, or with numbers that aren't finite.
        """
        if identity is None:
            return []
        if isinstance(identity, str | Path):
            return [(str(identity), code) for code in self.people(str(identity)).values()]
        spec = self.components.identity_mapper.spec
        if isinstance(identity, list | tuple) and all(isinstance(each, str | Path) for each in identity):
            return [pair for each in identity for pair in self.codes(each)]
        codes = np.asarray(identity, np.float32)
        if codes.ndim == 2:
            codes = codes[None]
        tokens = (spec.num_tokens, spec.token_dim)
        if codes.ndim != 3 or codes.shape[1:] not in [(spec.num_layers, spec.wplus_dim), tokens]:
            raise ValueError(
                f"expected W+ codes of shape ({spec.num_layers}, {spec.wplus_dim}) as identity, got {np.shape(identity)}; make "
                "one with encode_identity"
            )
        if not np.isfinite(codes).all():
            raise ValueError("expected finite numbers in the identity, got others; encode it again")
        return [(None, code) for code in codes]

    def _warn_of_cut_prompts(self, jobs: Sequence[Job], settings: Settings) -> None:
        for text in dict.fromkeys(each for job in jobs for each in (job.prompt, job.negative_prompt) if each):
            if cut := words_beyond(self.components.tokenizer, text):
                limit = self.components.tokenizer.model_max_length
                warnings.warn(
                    f"the text is longer than {limit} tokens; this was cut: {cut!r}", UserWarning, stacklevel=4
                )
        if settings.sampling.passes == 1 and any(job.negative_prompt for job in jobs):
            warnings.warn("a negative_prompt does nothing with guidance_scale=1", UserWarning, stacklevel=4)

    def _encode_picture(self, pixels: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "_h _w c"]:
        """Scaled latents of a picture in [0, 1]: the mean of the posterior."""
        mean, _ = self._encode({"params": self.run.params["vae"]}, pixels[None] * 2.0 - 1.0)
        return np.asarray(mean)[0] * self.components.vae.spec.scaling_factor

    def _recipe(self, job: Job, settings: Settings, frame: Frame, place: tuple[int, int]) -> Recipe:
        return Recipe(
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            seed=job.seed,
            people=[{"source": source, "sha256": code_hash(code)} for source, code in job.people],
            regions=frame.regions,
            image=None if frame.canvas is None else frame.canvas.source,
            settings=asdict(settings),
            place=list(place),
            run={
                "folder": str(self.run.folder),
                "step": self.run.facts["num_steps"],
                "fingerprints": self.fingerprints,
            },
            versions=self.run.facts["versions"],
            devices=devices_here(self.run.mesh),
        )


def _texts(name: str, texts: Any) -> list[str]:
    listed = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Iterable) else []
    if not listed or (wrong := [each for each in listed if not isinstance(each, str)]):
        raise ValueError(f"expected {name} as a text or several, got {wrong[0] if listed else texts!r}; correct it")
    return listed


def _as_pil(pixels: Float[np.ndarray, "h w 3"]) -> Image.Image:
    return Image.fromarray(byte_pixels(pixels))
