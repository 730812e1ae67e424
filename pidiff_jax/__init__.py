"""PIDiff in JAX/Flax: text-to-image diffusion that draws a given person.

Open a run, draw a person, save the picture:

    >>> from pidiff_jax import Pipeline
    >>> pipeline = Pipeline.from_pretrained("runs/quickstart")
    >>> anna = pipeline.encode_identity("anna.png")
    >>> output = pipeline("a person in a red shirt before a blue striped wall", identity=anna, seed=2)
    >>> output.images[0].save("anna_in_red.png")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pidiff_jax.evaluation.report.pictures import save_png
    from pidiff_jax.pipeline.pipeline import Pipeline
    from pidiff_jax.runs.saved_run import open_run
    from pidiff_jax.sampling.components import Components
    from pidiff_jax.sampling.generate import Sampling, generate

_PUBLIC = {
    "Pipeline": "pidiff_jax.pipeline.pipeline",
    "open_run": "pidiff_jax.runs.saved_run",
    "save_png": "pidiff_jax.evaluation.report.pictures",
    "Components": "pidiff_jax.sampling.components",
    "Sampling": "pidiff_jax.sampling.generate",
    "generate": "pidiff_jax.sampling.generate",
}
__all__ = ["Components", "Pipeline", "Sampling", "generate", "open_run", "save_png"]


def __getattr__(name: str) -> Any:
    """Imports a public name, and JAX with it, when it is first asked for."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
