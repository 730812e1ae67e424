"""Drawing in PyTorch by diffusers' pipelines, which are imported here, where they are asked for."""

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pidiff_jax.export.format import Scenes

# (one person's code (l, d), whether guidance is on) -> what the pipeline is given of it
InputsFn = Callable[[np.ndarray, bool], Mapping[str, Any]]


def missing_packages() -> list[str]:
    """Which of the packages that drawing in PyTorch needs aren't installed."""
    return [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]


def check_torch(name: str) -> None:
    """Raises ValueError where torch isn't there to write a format's files."""
    if "torch" in missing_packages():
        raise ValueError(
            f"expected torch to write --format={name}, it is not installed; pip install torch, or export as safetensors"
        )


def save_torch(path: Path, content: Any) -> None:
    """Writes an array, or nested dicts of arrays, as `torch.save` does."""
    import torch

    def tensor(array: np.ndarray) -> Any:
        array = np.ascontiguousarray(array)
        if array.dtype == ml_dtypes.bfloat16:  # numpy's own types have no such one: reinterpret the bits
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def tensors(content: Any) -> Any:
        if isinstance(content, Mapping):
            return {name: tensors(value) for name, value in content.items()}
        return tensor(content)

    torch.save(tensors(content), path)


def open_pipeline(folder: Path, variant: str | None = None) -> Any:
    """The `StableDiffusionPipeline` of a folder, in float32 on the CPU."""
    with quiet():
        from diffusers import StableDiffusionPipeline

    return prepared(StableDiffusionPipeline, folder, variant=variant)


def prepared(pipeline_class: Any, folder: Path, **options: Any) -> Any:
    """A pipeline in float32, with diffusers' DDIM."""
    import torch

    with quiet():
        from diffusers import DDIMScheduler

        pipeline = pipeline_class.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True, **options)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_pictures(pipeline: Any, scenes: Scenes, inputs: InputsFn | None = None) -> np.ndarray:
    """Draws the scenes one by one; returns pixels (n, h, w, 3) in [0, 1].

    inputs: None leaves the person out.
    """
    import torch

    guided, pictures = scenes.guidance_scale > 1, []
    for code, text, noise in zip(scenes.wplus, scenes.texts, scenes.noise, strict=True):
        start = torch.from_numpy(np.ascontiguousarray(noise.transpose(2, 0, 1)[None]))
        with quiet():
            pictures.append(
                pipeline(
                    text,
                    num_inference_steps=scenes.num_steps,
                    guidance_scale=scenes.guidance_scale,
                    output_type="np",
                    latents=start,
                    **({} if inputs is None else inputs(code, guided)),
                ).images[0]
            )
    return np.stack(pictures)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' bars and advice, which aren't about the files."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    libraries = (logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
