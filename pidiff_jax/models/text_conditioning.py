"""What a UNet reads of the text, as one value, and the conditioner that makes it from token ids."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pidiff_jax.models.clip import ClipText


class TextConditioning(NamedTuple):
    """Everything that a UNet reads besides latents, timesteps and identity; every array begins with the batch.

    embeds: hidden states of the text encoder, which the cross-attentions read.

    Models that read more, as SDXL reads a pooled text and the picture's sizes, get it as further fields: whoever draws or
    trains hands the value on as it is.
    """

    embeds: Float[Array, "b m d"]


@dataclass(frozen=True)
class ClipConditioner:
    """The conditioner of Stable Diffusion 1.x and 2.x: one CLIP text encoder, whose hidden states are all there is.

    Called with the whole parameter tree, of which it reads "text_encoder".
    """

    text_encoder: ClipText

    def __call__(self, params: Mapping[str, Any], text_ids: Int[Array, "b m"]) -> TextConditioning:
        return TextConditioning(self.text_encoder.apply({"params": params["text_encoder"]}, text_ids))

    def with_dtype(self, dtype: DTypeLike) -> "ClipConditioner":
        """The same conditioner, computing in `dtype`."""
        return replace(self, text_encoder=self.text_encoder.clone(dtype=dtype))
