"""Stable Diffusion that draws a given person, in PyTorch: the mapper and the identity attention beside diffusers' own parts.

    from diffusers import DiffusionPipeline
    from safetensors.torch import load_file

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    code = load_file(f"{folder}/people.safetensors")["person_0"]  # (W+ layers, width)
    picture = pipe("a person in a red shirt", wplus=code).images[0]

The identity lies in `identity/` beside this file. Written by pidiff_jax, which computes the same.
"""

import itertools
import json
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn


class IdentityMapper(nn.Module):
    """W+ codes (b, l, d) -> identity tokens: each group of layers by itself, then one LayerNorm."""

    def __init__(self, groups, wplus_dim, token_dim, tokens_per_group, hidden_width):
        super().__init__()
        self.groups, self.token_dim = groups, token_dim
        widths = [(end - start) * wplus_dim for start, end in groups]
        self.hidden = None
        if hidden_width is not None:
            self.hidden = nn.ModuleList(nn.Linear(width, hidden_width) for width in widths)
            widths = [hidden_width] * len(groups)
        self.proj = nn.ModuleList(nn.Linear(width, tokens_per_group * token_dim, bias=False) for width in widths)
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, wplus):
        tokens = []
        for i, (start, end) in enumerate(self.groups):
            group = wplus[:, start:end].flatten(1)
            if self.hidden is not None:  # the zero code stays zero
                group = F.gelu(self.hidden[i](group)) - F.gelu(self.hidden[i].bias)
            tokens.append(self.proj[i](group).unflatten(1, (-1, self.token_dim)))
        return self.norm(torch.cat(tokens, dim=1))


class IdentityAttention(nn.Module):
    """Processor of a cross-attention: attention to the text plus, while `tokens` are set, to the identity.

    variant: "decoupled" reads the tokens with the text's query, "independent" with its own, "residual" with its own of what the
        text attention has made. sink: one more key and value of zeros, by which a position can decline the identity.
    """

    def __init__(self, width, token_dim, variant, sink):
        super().__init__()
        self.variant, self.sink = variant, sink
        self.to_k_id = nn.Linear(token_dim, width, bias=False)
        self.to_v_id = nn.Linear(token_dim, width, bias=False)
        if variant != "decoupled":
            self.to_q_id = nn.Linear(width, width, bias=False)
        self.tokens, self.scale = None, 0.0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        def attend(query, key, value):
            heads = [x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)]
            return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

        query = attn.to_q(hidden_states)
        out = attend(query, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        if self.tokens is not None:
            if self.variant != "decoupled":
                query = self.to_q_id(hidden_states if self.variant == "independent" else out)
            rows = (0, 0, 0, 1 if self.sink else 0)
            key, value = F.pad(self.to_k_id(self.tokens), rows), F.pad(self.to_v_id(self.tokens), rows)
            out = out + self.scale * attend(query, key, value)
        return attn.to_out[1](attn.to_out[0](out))


class PIDiffPipeline(StableDiffusionPipeline):
    """`StableDiffusionPipeline`, whose call takes a person too."""

    mapper = None

    @torch.no_grad()
    def __call__(
        self, prompt=None, *, wplus=None, identity_scale=None, identity_start=None, num_images_per_prompt=1, **options
    ):
        """Draws; see `StableDiffusionPipeline.__call__` for everything else.

        wplus: one code (l, d) for all prompts, or one for each (b, l, d); None draws nobody in particular.
        identity_scale: strength of the identity.
        identity_start: share of the steps before the identity is there.
        What isn't given of these, of `guidance_scale` and of `num_inference_steps` is what the run drew its pictures with.
        """
        settings = self.load_identity()
        for name in ("guidance_scale", "num_inference_steps"):
            options.setdefault(name, settings[name])
        scale = settings["identity_scale"] if identity_scale is None else identity_scale
        start = settings["identity_start"] if identity_start is None else identity_start
        hook = None
        if wplus is not None:
            texts = options.get("prompt_embeds", []) if prompt is None else prompt
            codes = self.codes(wplus, 1 if isinstance(texts, str) else len(texts))
            codes = codes.repeat_interleave(num_images_per_prompt, dim=0)
            if options["guidance_scale"] > 1:  # diffusers puts what guidance leads away from first
                codes = torch.cat([torch.zeros_like(codes), codes])
            tokens, step = self.mapper(codes), itertools.count()

            def appear(unet, inputs):
                if next(step) == round(start * self.num_timesteps):
                    self.set_identity(tokens, scale)

            hook = self.unet.register_forward_pre_hook(appear)
        try:
            return super().__call__(prompt, num_images_per_prompt=num_images_per_prompt, **options)
        finally:
            if hook is not None:
                hook.remove()
            self.set_identity(None, 0.0)

    def codes(self, wplus, count):
        """One code for each of the prompts, (count, l, d)."""
        codes = torch.as_tensor(wplus, device=self._execution_device, dtype=self.unet.dtype)
        size = (max(end for _, end in self.mapper.groups), self.settings["mapper"]["wplus_dim"])
        if codes.shape not in (size, (1, *size), (count, *size)):
            raise ValueError(
                f"expected one W+ code {size}, or one for each of {count} prompts, got the shape {tuple(codes.shape)}"
            )
        return codes.expand(count, -1, -1)

    def set_identity(self, tokens, scale):
        """What all cross-attentions read until the next call; a scale of 0 leaves the base as it is, bit for bit."""
        for processor in self.processors.values():
            processor.tokens, processor.scale = (tokens if scale else None), scale

    def load_identity(self):
        """Reads mapper and processors at the first call, and puts them in place at every one; returns the settings."""
        if self.mapper is None:
            self.folder = Path(self.config._name_or_path).resolve()
            weights = load_file(self.folder / "identity/identity.safetensors")
            self.settings = json.loads((self.folder / "identity/config.json").read_text(encoding="utf-8"))

            def part(prefix):
                return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

            self.processors, self.others = {}, {}
            for name in self.unet.attn_processors:
                path = name.removesuffix(".processor")
                if path.endswith("attn2"):
                    width = self.unet.get_submodule(path).to_q.out_features
                    self.processors[name] = IdentityAttention(width, **self.settings["attention"])
                    self.processors[name].load_state_dict(part(f"unet.{path}."))
            mapper = IdentityMapper(**self.settings["mapper"])
            mapper.load_state_dict(part("mapper."))
            self.mapper = mapper
        current = self.unet.attn_processors
        # Not only at the first call: attention slicing, for one, puts others in their place.
        others = {name: current[name] for name in self.processors if current[name] is not self.processors[name]}
        if others:
            self.others = {**self.others, **others}
            self.unet.set_attn_processor({**current, **self.processors})
        for module in (self.mapper, *self.processors.values()):
            module.to(self._execution_device, self.unet.dtype)
        return self.settings

    def save_pretrained(self, save_directory, **options):
        """Saves a folder of the same kind: diffusers' parts as they are now, and the identity as it was opened."""
        self.load_identity()
        self.unet.set_attn_processor(
            {**self.unet.attn_processors, **self.others}
        )  # ours would be saved as the UNet's own
        super().save_pretrained(save_directory, **options)
        if Path(save_directory).resolve() != self.folder:
            shutil.copytree(self.folder / "identity", Path(save_directory) / "identity", dirs_exist_ok=True)
            for name in ("pipeline.py", "people.safetensors"):
                shutil.copyfile(self.folder / name, Path(save_directory) / name)
