"""PIDiff in JAX/Flax: text-to-image diffusion that draws a given person."""

from typing import Any

__all__ = ["Components", "Sampling", "generate"]


def __getattr__(name: str) -> Any:
    """Imports the pipeline, and JAX with it, when one of its names is first asked for."""
    if name in __all__:
        from pidiff_jax import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
