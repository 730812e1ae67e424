"""Weight files are read whole and strictly, written atomically, and never run code."""

import argparse
import collections
import datetime
import fractions
import json
import pickle
import re
import types
import uuid
from pathlib import Path, PureWindowsPath

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from pidiff_jax.convert import files
from pidiff_jax.convert.files import read_metadata, read_tensors, write_safetensors
from pidiff_jax.convert.ir_se import load_arcface_checkpoint, load_e4e_checkpoint
from pidiff_jax.convert.stylegan2 import load_stylegan2_checkpoint
from pidiff_jax.models.arcface import ArcFaceSpec
from pidiff_jax.models.e4e import E4eSpec
from pidiff_jax.worlds.portraits.networks import STYLEGAN2

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    "half": np.array([1.5, -2.0], np.float16),
    "brain": np.array([1.0, 3.0], ml_dtypes.bfloat16),
    "count": np.array(7, np.int64),
}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and actual[name].shape == value.shape, name
        np.testing.assert_array_equal(actual[name], value)


def test_written_tensors_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "new" / "weights.safetensors"
    write_safetensors(path, TENSORS, {"made_by": "a test"})
    assert_same(read_tensors(path), TENSORS)
    assert read_metadata(path) == {"made_by": "a test"}
    assert [p.name for p in path.parent.iterdir()] == ["weights.safetensors"]


def test_casting_touches_floats_only(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", TENSORS)
    kinds = {name: tensor.dtype for name, tensor in read_tensors(tmp_path / "w.safetensors", np.float32).items()}
    assert kinds == {"a.weight": np.float32, "half": np.float32, "brain": np.float32, "count": np.int64}


def test_a_file_is_never_overwritten(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="expected nothing at"):
        write_safetensors(path, TENSORS)
    assert path.read_bytes() == b"precious"


def test_a_file_made_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"

    def save_and_lose_the_race(descriptor):
        path.write_bytes(b"precious")

    monkeypatch.setattr(files.os, "fsync", save_and_lose_the_race)
    with pytest.raises(FileExistsError, match="expected nothing at"):
        write_safetensors(path, TENSORS)
    assert path.read_bytes() == b"precious"


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match="metadata|argument|str"):
        write_safetensors(tmp_path / "w.safetensors", TENSORS, {"number": 3})
    assert list(tmp_path.iterdir()) == []


def test_torch_files_are_flattened_to_dotted_names(tmp_path):
    path = tmp_path / "adapter.bin"
    content = {"w_proj": {"norm.weight": torch.ones(2)}, "rows": [torch.zeros(1), torch.ones(1).bfloat16()], "step": 3}
    torch.save(content, path)
    assert_same(
        read_tensors(path),
        {
            "w_proj.norm.weight": np.ones(2, np.float32),
            "rows.0": np.zeros(1, np.float32),
            "rows.1": np.ones(1, ml_dtypes.bfloat16),
        },
    )
    torch.save(torch.arange(3), tmp_path / "direction.pt")
    assert_same(read_tensors(tmp_path / "direction.pt"), {"tensor": np.arange(3)})


def test_code_in_a_torch_file_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "written_by_payload"), "w"))

    torch.save({"weight": Payload()}, tmp_path / "model.ckpt", pickle_protocol=2)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Payload(), protocol=2))
    torch.save({"weight": Payload()}, tmp_path / "old.pt", pickle_protocol=2, _use_new_zipfile_serialization=False)
    for name in ("model.ckpt", "plain.bin", "old.pt"):
        with pytest.raises(
            ValueError, match=rf"expected a PyTorch file of plain tensors, got .*{name}.*\.open: code"
        ) as error:
            read_tensors(tmp_path / name)
        assert "weights_only" not in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "written_by_payload").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_that_only_hold_data_are_left_out(tmp_path, zipped):
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {
        "g_ema": {"weight": torch.ones(2)}, "rows": rows, "args": argparse.Namespace(path=Path("x"), size=256),
        "opts": types.SimpleNamespace(lr=np.float64(1e-3)), "by_name": collections.defaultdict(list, {"a": [torch.zeros(1)]}),
        "sizes": torch.Size([1]), "type": torch.float16, "device": torch.device("cpu"), "seen": collections.Counter("aa"),
        "kind": np.dtype("float32"), "other": PureWindowsPath("y"), "when": datetime.datetime(2020, 1, 1),
        "last": collections.deque([torch.zeros(1)], 2), "half": fractions.Fraction(1, 2), "names": frozenset("a"),
        "to": range(3),
    }  # fmt: skip
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    expected = {"g_ema.weight": np.ones(2, np.float32), "rows": rows, "by_name.a.0": np.zeros(1, np.float32)}
    expected["last.0"] = np.zeros(1, np.float32)
    assert_same(read_tensors(tmp_path / "w.pt"), expected)


def test_refused_classes_are_named_and_torch_advises_nothing(tmp_path):
    torch.save({"model": torch.nn.Linear(1, 1), "also": uuid.UUID(int=1)}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=r"w\.ckpt, which holds torch\.nn.*Linear, uuid\.UUID: .*state dict") as error:
        read_tensors(tmp_path / "w.ckpt")
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04 cut short", "damaged or of another kind"),
    ],
)
def test_what_is_there_instead_of_weights_is_said(tmp_path, suffix, content, reason):
    (tmp_path / f"w.{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"w\.{suffix}, which is {reason}") as error:
        read_tensors(tmp_path / f"w.{suffix}")
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("load", "tensors"),
    [
        (lambda path: load_arcface_checkpoint(path, ArcFaceSpec()), {"a": np.zeros(1)}),
        (lambda path: load_e4e_checkpoint(path, E4eSpec()), {"encoder.a": np.zeros(1), "latent_avg": np.zeros(3)}),
        (lambda path: load_e4e_checkpoint(path, E4eSpec()), {"encoder.a": np.zeros(1), "latent_avg": np.zeros(512)}),
        (lambda path: load_stylegan2_checkpoint(path, STYLEGAN2), {"g_ema.input.input": np.zeros(1)}),
    ],
)
def test_weights_of_another_model_are_refused_with_their_file(tmp_path, load, tensors):
    write_safetensors(tmp_path / "w.safetensors", tensors)
    with pytest.raises(ValueError, match=r"/w\.safetensors: (expected latent_avg|the weights don't fit)") as error:
        load(tmp_path / "w.safetensors")
    assert "\n" not in str(error.value)


def write_shards(folder):
    names = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(TENSORS)}
    for shard in set(names.values()):
        write_safetensors(folder / shard, {n: TENSORS[n] for n, s in names.items() if s == shard})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8"
    )
    return folder / "model.safetensors.index.json", names


def test_shards_are_joined(tmp_path):
    index, _ = write_shards(tmp_path)
    assert_same(read_tensors(index), TENSORS)


def test_missing_shards_are_listed(tmp_path):
    index, names = write_shards(tmp_path)
    for shard in set(names.values()):
        (tmp_path / shard).unlink()
    with pytest.raises(FileNotFoundError, match="missing model-00001-of-00002.safetensors, model-00002"):
        read_tensors(index)


def test_shards_that_differ_from_their_index_are_refused(tmp_path):
    index, names = write_shards(tmp_path)
    index.write_text(json.dumps({"weight_map": names | {"extra": names["half"]}}), encoding="utf-8")
    with pytest.raises(ValueError, match="difference in extra"):
        read_tensors(index)
    index.write_text(json.dumps({"weight_map": names | {"extra": "../elsewhere.safetensors"}}), encoding="utf-8")
    with pytest.raises(ValueError, match="elsewhere"):
        read_tensors(index)
    index.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="weight_map"):
        read_tensors(index)
    index.write_text('{"weight_map": {"half": "a.safetensors", "half": "b.safetensors"}}', encoding="utf-8")
    with pytest.raises(ValueError, match="a weight_map, each key once"):
        read_tensors(index)


def test_an_index_that_names_itself_or_another_index_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for shard in (index.name, "other.bin.index.json"):
        index.write_text(json.dumps({"weight_map": {"a": shard}}), encoding="utf-8")
        with pytest.raises(ValueError, match=f"got the index {shard}"):
            read_tensors(index)


def itself_in_a_list():
    content = [torch.ones(1)]
    content.append(content)
    return {"rows": content}


def deeply_nested():
    content = {"weight": torch.ones(1)}
    for _ in range(100):
        content = [content]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (itself_in_a_list, r"nested at most 32 deep in .*w\.bin, got more at 'rows\.1\.1"),
        (deeply_nested, r"nested at most 32 deep in .*w\.bin"),
        (lambda: {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}, r"expected one tensor 'a\.b' in .*w\.bin"),
        (lambda: {"0": torch.ones(1), 0: torch.zeros(1)}, "expected one tensor '0'"),
        (lambda: {"fine": torch.ones(1), "f8": torch.ones(2).to(torch.float8_e4m3fn)}, r"w\.bin, got 'f8' \(torch.float8"),
        (lambda: {"empty": torch.ones(2, device="meta")}, r"w\.bin, got 'empty' \(torch.float32"),
        (lambda: {"sparse": torch.eye(2).to_sparse()}, r"'sparse' \(torch\.float32, torch\.sparse_coo\)"),
    ],
)  # fmt: skip
def test_contents_that_have_no_plain_form_are_named_in_one_line(tmp_path, content, message):
    torch.save(content(), tmp_path / "w.bin")
    with pytest.raises(ValueError, match=message) as error:
        read_tensors(tmp_path / "w.bin")
    assert "\n" not in str(error.value)


def test_safetensors_of_types_without_a_numpy_type_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"fine": torch.ones(1), "f8": torch.ones(2).to(torch.float8_e5m2)}, path)
    with pytest.raises(ValueError, match=r"w\.safetensors, got 'f8' \(F8_E5M2\)"):
        read_tensors(path)


@pytest.mark.parametrize("version", ["2.5.1+cu121", "1.13.1"])
def test_a_torch_that_would_run_code_is_refused(tmp_path, monkeypatch, version):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.bin")
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read the file"))
    with pytest.raises(ValueError, match=rf"torch 2\.6 or newer .* got {re.escape(version)}"):
        read_tensors(tmp_path / "w.bin")


def test_newer_torches_are_used(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.bin")
    for version in ("2.6.0", "2.10.0a0+git", "3.0"):
        monkeypatch.setattr(torch, "__version__", version)
        assert_same(read_tensors(tmp_path / "w.bin"), {"a": np.ones(1, np.float32)})


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.ckpt"])
def test_damaged_and_missing_files_give_one_clear_line(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="expected a weight file"):
        read_tensors(tmp_path / name)
    (tmp_path / name).write_bytes(b"\x10\x00\x00\x00garbage")
    with pytest.raises(ValueError, match="copy it again|damaged") as error:
        read_tensors(tmp_path / name)
    assert "\n" not in str(error.value)


def test_other_kinds_of_file_are_refused(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="take the model's .safetensors file"):
        read_tensors(tmp_path / "weights.npz")
