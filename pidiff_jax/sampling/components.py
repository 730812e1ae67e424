"""The modules and constants of a text-to-image model with identity; parameters travel separately."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jax.typing import DTypeLike
from transformers import CLIPTokenizer

from pidiff_jax.convert.diffusers_config import ScheduleSettings
from pidiff_jax.diffusion.samplers import Spacing
from pidiff_jax.diffusion.schedule import NoiseSchedule
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.text_conditioning import ClipConditioner
from pidiff_jax.models.unet import IdentityAttentionSpec, UNet
from pidiff_jax.models.vae import AutoencoderKL


@dataclass(frozen=True)
class Components:
    """The modules and constants that drawing needs beside the parameters.

    Parameters are one tree: {"unet", "text_encoder", "vae", "mapper"}.

    latent_size: height and width of the latents that the model was made for.
    mapper: None in a model without identity.
    null_text_ids: of the empty text, which guidance leads away from.
    """

    unet: UNet
    conditioner: ClipConditioner
    vae: AutoencoderKL
    mapper: IdentityMapper | None
    schedule: NoiseSchedule
    prediction_type: str
    null_text_ids: tuple[int, ...]
    latent_size: tuple[int, int]
    tokenizer: CLIPTokenizer
    timestep_spacing: Spacing = "trailing"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the initial noise."""
        return (*self.latent_size, self.unet.spec.in_channels)

    @property
    def identity_mapper(self) -> IdentityMapper:
        """The mapper of a model with identity.

        Raises:
            ValueError: it is one without.
        """
        if self.mapper is None:
            raise ValueError("expected a model with an identity branch, got one without; see Components.with_identity")
        return self.mapper

    def with_identity(self, attention: IdentityAttentionSpec, mapper: MapperSpec) -> "Components":
        """The same model with an identity branch in the UNet, and the mapper that feeds it."""
        return replace(
            self, unet=self.unet.clone(spec=replace(self.unet.spec, identity=attention)), mapper=IdentityMapper(mapper)
        )

    def with_dtype(self, dtype: DTypeLike) -> "Components":
        """Networks that compute in `dtype`; the VAE, which only prepares and shows pictures, keeps float32."""
        return replace(
            self,
            unet=self.unet.clone(dtype=dtype),
            conditioner=self.conditioner.with_dtype(dtype),
            mapper=None if self.mapper is None else self.mapper.clone(dtype=dtype),
        )


@dataclass(frozen=True)
class BaseModel:
    """A text-to-image model without identity.

    load: reads its parameters, {"unet", "text_encoder", "vae"}, as plain nested dicts of host arrays; may take minutes.
    schedule: how its noise schedule and sampler are described to others.
    """

    components: Components
    load: Callable[[], Mapping[str, Any]]
    schedule: ScheduleSettings
