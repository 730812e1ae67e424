"""Checkpoints of face networks are recognised, and come out as safetensors that are read as the checkpoints were."""

import jax
import numpy as np
import pytest
import torch

from pidiff_jax.convert import conversion
from pidiff_jax.convert.face_networks import rewrite_arcface, rewrite_e4e, stylegan2_spec
from pidiff_jax.convert.files import open_tensors, write_safetensors
from pidiff_jax.convert.ir_se import (
    arcface_table,
    e4e_table,
    load_arcface_checkpoint,
    load_e4e_checkpoint,
)
from pidiff_jax.convert.recognise import recognise
from pidiff_jax.convert.stylegan2 import load_stylegan2_checkpoint, stylegan2_table, stylegan2_to_pytorch
from pidiff_jax.convert.table import foreign_lazily
from pidiff_jax.models.arcface import ArcFaceSpec
from pidiff_jax.models.e4e import E4eSpec
from pidiff_jax.models.ir_se import IRSESpec
from pidiff_jax.models.stylegan2 import StyleGan2Spec
from pidiff_jax.paths import unflatten

BACKBONE = IRSESpec(units=(1, 1, 1, 1), widths=(16, 16, 16, 16))
E4E = E4eSpec(BACKBONE, input_size=64, style_width=16)
ARCFACE = ArcFaceSpec(BACKBONE, embedding_dim=8, input_size=32)
STYLEGAN2 = StyleGan2Spec(size=8, style_dim=16, num_mapping_layers=2, channels=(16, 8))


def random_tensors(table):
    rng = np.random.default_rng(0)
    ours = {entry.ours: rng.standard_normal(entry.shape).astype(np.float32) for entry in table}
    return {name: torch.from_numpy(np.array(tensor)) for name, tensor in foreign_lazily(table, ours).items()}, ours


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_e4e_keeps_encoder_and_average(tmp_path):
    tensors, _ = random_tensors(e4e_table(E4E))
    tensors |= {"decoder.style.1.weight": torch.ones(3), "encoder.input_layer.1.num_batches_tracked": torch.tensor(3)}
    path, output = tmp_path / "e4e.pt", tmp_path / "e4e.safetensors"
    torch.save({"state_dict": tensors, "latent_avg": torch.ones(18, 512), "opts": {"size": 8}}, path)
    assert recognise(path).kind == "e4e"
    rewrite_e4e(path, output, E4E)
    assert_same(load_e4e_checkpoint(output, E4E), load_e4e_checkpoint(path, E4E))
    assert not any(name.startswith("decoder.") for name in open_tensors(output)) and recognise(output).kind == "e4e"
    with pytest.raises(FileExistsError, match="expected nothing at"):
        rewrite_e4e(path, output, E4E)


def test_arcface_keeps_what_is_read(tmp_path):
    tensors, _ = random_tensors(arcface_table(ARCFACE))
    path, output = tmp_path / "arcface.pth", tmp_path / "arcface.safetensors"
    torch.save(tensors | {"output_layer.0.num_batches_tracked": torch.tensor(3)}, path)
    assert recognise(path).kind == "arcface"
    rewrite_arcface(path, output, ARCFACE)
    assert_same(load_arcface_checkpoint(output, ARCFACE), load_arcface_checkpoint(path, ARCFACE))
    torch.save({"surprise": torch.ones(2), **tensors}, path)
    with pytest.raises(ValueError, match=r"arcface.pth: .*unknown 'surprise' of shape \(2,\)"):
        rewrite_arcface(path, tmp_path / "other.safetensors", ARCFACE)
    assert not (tmp_path / "other.safetensors").exists()


def test_stylegan2_is_converted_whatever_its_size(tmp_path):
    _, ours = random_tensors(stylegan2_table(STYLEGAN2))
    parts = unflatten(ours)
    tensors = stylegan2_to_pytorch(STYLEGAN2, parts["mapping"], parts["synthesis"])
    assert stylegan2_spec({name: tensor.shape for name, tensor in tensors.items()}) == STYLEGAN2
    path, output = tmp_path / "stylegan2.pt", tmp_path / "stylegan2.safetensors"
    average = torch.ones(16)
    named = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    torch.save({"g_ema": named, "latent_avg": average, "d": {"convs.0.weight": average}}, path)
    line = conversion.convert(path, output)
    assert line == f"{path} is a StyleGAN2 generator (rosinality's layout); wrote {output}, its tensors as safetensors"
    assert_same(load_stylegan2_checkpoint(output, STYLEGAN2), load_stylegan2_checkpoint(path, STYLEGAN2))
    with pytest.raises(ValueError, match="expected --output to end in .safetensors"):
        conversion.convert(path, tmp_path / "folder")
    with pytest.raises(ValueError, match="expected no --dtype for a StyleGAN2 generator"):
        conversion.convert(path, tmp_path / "new.safetensors", dtype="float16")


@pytest.mark.parametrize(
    ("names", "title"),
    [(("w_proj.a", "wplus_adapter.b"), "a w-plus-adapter"), (("image_proj.a", "ip_adapter.b"), "an IP-Adapter")],
)
def test_adapters_are_recognised_and_taken_as_they_are(names, title, tmp_path):
    path = tmp_path / "adapter.safetensors"
    write_safetensors(path, {name: np.ones(2) for name in names})
    with pytest.raises(ValueError, match=f"got {title} at .*give it as --config.init.adapter="):
        conversion.convert(path, tmp_path / "output")
