"""Wrong files beside right ones, and the claim that they are refused in one line and nothing is written, changed or run."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
)  # fmt: skip
NAN, INFINITY = float("nan"), float("inf")
DAMAGED = r"expected a whole safetensors file, got .*model\.safetensors, which is "
FINITE = r"expected finite numbers in '.*' of .*{}, got {}; download or copy it again, or take another model's"


@dataclass(frozen=True)
class Place:
    """Where a case makes its wrong files, of right ones of a tiny Stable Diffusion 1.x, which stay as they are.

    Methods return what `convert` is given.
    """

    path: Path
    folder: Path
    file: Path
    words: Path

    def bytes(self, content: bytes, name="model.safetensors"):
        """A file of these bytes."""
        (self.path / name).write_bytes(content)
        return {"source": self.path / name}

    def tensors(self, changes, name="model.safetensors"):
        """The file with tensors changed; None takes one away."""
        tensors = {n: tensor for n, tensor in (load_file(self.file) | changes).items() if tensor is not None}
        save_file(tensors, self.path / name)
        return {"source": self.path / name, "tokenizer": self.words}

    def alone(self, shapes, name="model.safetensors"):
        """A file of tensors of these shapes."""
        save_file({n: torch.ones(shape) for n, shape in shapes.items()}, self.path / name)
        return {"source": self.path / name}

    def copy(self):
        """The folder, where it can be changed."""
        shutil.copytree(self.folder, self.path / "model")
        return self.path / "model"

    def without(self, *names):
        """The folder, these files taken away."""
        folder = self.copy()
        for name in names:
            (folder / name).unlink()
        return {"source": folder}

    def config(self, part, **fields):
        """The folder, fields of a part's config changed."""
        folder, name = self.copy(), f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json"
        name = "model_index.json" if part == "index" else name
        config = json.loads((folder / name).read_text(encoding="utf-8")) | fields
        (folder / name).write_text(json.dumps(config), encoding="utf-8")
        return {"source": folder}

    def swapped(self, name, content: bytes):
        """The folder, a file's bytes changed."""
        folder = self.copy()
        (folder / name).write_bytes(content)
        return {"source": folder}

    def edited(self, name, change):
        """The folder, one tensor of a weight file changed."""
        folder = self.copy()
        tensors = load_file(folder / name)
        first = min(tensors)
        save_file(tensors | {first: change(tensors[first])}, folder / name)
        return {"source": folder}

    def lora(self, tensors, metadata=None):
        """The folder, with a LoRA of these tensors."""
        save_file(tensors, self.path / "style.safetensors", metadata)
        return {"source": self.folder, "loras": [(self.path / "style.safetensors", 1.0)]}


def with_number(number):
    """Puts a number in the middle of a tensor."""

    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[tensor.numel() // 2] = number
        return tensor

    return change


class _Code:
    """Makes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def pickle_with_code(x, name="model.ckpt", **how):
    torch.save(
        {"state_dict": {"a": torch.ones(1)}, "hook": _Code(x.path / "it_ran")}, x.path / name, pickle_protocol=2, **how
    )
    return {"source": x.path / name}


def broken_link(x, name="model.safetensors"):
    (x.path / name).symlink_to(x.path / "gone")
    return x.path / name


def content(folder):
    """Every path below a folder with what it is: none may come, go or change."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and hash_of(path)
        for path in folder.rglob("*")
    }


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_refused(place: Place, message: str, act: Callable[[], Any]) -> None:
    """What is said matches, in one line with a remedy; no file at the place, and none of the right ones, has changed."""
    before = content(place.path), content(place.folder.parent)
    with pytest.raises((ValueError, FileNotFoundError, FileExistsError)) as error:
        act()
    said = str(error.value)
    assert re.search(message, said) and "\n" not in said and "; " in said
    assert (content(place.path), content(place.folder.parent)) == before
