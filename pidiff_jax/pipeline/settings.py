"""How pictures are drawn, in a user's words."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from pidiff_jax.pipeline.identity_scale import Scale
from pidiff_jax.ranges import check_number
from pidiff_jax.sampling.generate import Sampling

# Names that diffusers' pipelines have for what is called otherwise here.
_OTHERS_NAMES = {
    "num_inference_steps": "num_steps", "num_images_per_prompt": "num_images", "generator": "seed", "scheduler": "sampler",
    "ip_adapter_image_embeds": "identity", "ip_adapter_image": "identity", "mask": "mask_image", "steps": "num_steps",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn, beside whom and what they show; what a recipe keeps. See `Pipeline.__call__`."""

    num_steps: int
    guidance_scale: float
    identity_scale: Scale
    sampler: str = "ddim"
    eta: float = 0.0
    guidance_rescale: float = 0.0
    identity_guidance_scale: float | None = None
    normalise_identity: bool = False
    identity_start: float = 0.0
    identity_end: float = 1.0
    identity_over_time: tuple[float, ...] | None = None
    strength: float = 1.0
    height: int | None = None
    width: int | None = None

    @property
    def sampling(self) -> Sampling:
        """What a step reads of them."""
        names = ("num_steps", "guidance_scale", "guidance_rescale", "sampler", "eta", "identity_guidance_scale")
        return Sampling(**{name: getattr(self, name) for name in names}, normalise_identity=self.normalise_identity)

    def check(self) -> None:
        """Raises ValueError for numbers that can't be meant."""
        check_number("guidance_scale", self.guidance_scale)
        check_number("identity_guidance_scale", self.identity_guidance_scale, none_means="that of the text")
        check_number("guidance_rescale", self.guidance_rescale, least=0.0, most=1.0)
        check_number("strength", self.strength, above=0.0, most=1.0)

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """With other values; None leaves one as it is.

        Raises:
            TypeError: there is no such setting; says what it is called here.
        """
        known = [each.name for each in fields(self)]
        if unknown := [name for name in changes if name not in known]:
            name = unknown[0]
            hint = f"here it is {_OTHERS_NAMES[name]!r}" if name in _OTHERS_NAMES else f"there are {', '.join(known)}"
            raise TypeError(f"expected a setting of the pipeline, got {name!r}; {hint}")
        return replace(self, **{name: _plain(value) for name, value in changes.items() if value is not None})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Of a recipe, where tuples have become lists.

        Raises:
            ValueError: other settings than there are here.
        """
        try:
            own: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
            return cls(**own)
        except TypeError as error:
            raise ValueError(
                f"expected a recipe of this version, got other settings: {error}; draw the picture anew"
            ) from None


def _plain(value: Any) -> Any:
    """As JSON has it, of numpy's numbers and arrays; sequences become tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value
