"""Weight files as named numpy arrays: safetensors, sharded files, PyTorch files. Nothing here runs code of a file."""

import argparse
import contextlib
import datetime
import decimal
import fractions
import json
import math
import os
import re
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors

from pidiff_jax.convert.drafts import draft_of
from pidiff_jax.convert.lazy_tensors import LazyTensors, finite
from pidiff_jax.paths import listing
from pidiff_jax.strict_json import parse_json

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# Before this, a file could run code in spite of `weights_only=True` (CVE-2025-32434).
_SAFE_TORCH = (2, 6)
_MAX_DEPTH = 32
_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool), "C64": np.dtype(np.complex64), "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"{kind.upper()}{8 * size}": np.dtype(f"<{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_tensors(path: Path | str, dtype: np.dtype | type | None = None) -> dict[str, np.ndarray]:
    """Reads every tensor of a weight file.

    Args:
        path: `*.safetensors`, a shard index (`*.index.json`, `*.index.fp16.json`), or a PyTorch file (.bin, .pt, .pth,
            .ckpt), which needs torch. Nested dictionaries and lists of a PyTorch file become dotted names, such as
            "w_proj.norm.weight"; a bare tensor is named "tensor"; numeric numpy arrays are tensors too; numbers, strings,
            None and objects that only hold data (`argparse.Namespace`, paths, dates) are left out.
        dtype: what floating-point tensors are cast to; None keeps each as it is in the file.

    Raises:
        FileNotFoundError: the file, or a shard that the index names, is not there.
        ValueError: another kind of file, a damaged one, a PyTorch file with other classes (they are named), a torch that is
            too old to refuse code, tensors that numpy can't hold (float8, sparse, quantised), or numbers that aren't finite.
    """
    path = Path(path)
    _check_is_file(path)
    tensors = _finite(path, LazyTensors.of(_read_torch(path))) if path.suffix in TORCH_SUFFIXES else open_tensors(path)
    return dict(tensors.cast(dtype))


def open_tensors(path: Path | str) -> LazyTensors:
    """The tensors of a weight file, each read, and looked through for NaN, when it is asked for; as strict as `read_tensors`.

    PyTorch files are mapped into memory, so that only what is asked for is read; those from before PyTorch 1.6 are read whole.
    """
    path = Path(path)
    _check_is_file(path)
    if path.suffix == ".safetensors":
        return _finite(path, _open_safetensors(path))
    if path.suffix in TORCH_SUFFIXES:
        return _finite(path, LazyTensors.of(_read_torch(path, mapped=zipfile.is_zipfile(path))))
    if not _is_index(path):
        raise ValueError(_other_kind(path))
    names = read_shard_index(path)
    shards = {shard: open_tensors(path.parent / shard) for shard in _shards(path, names)}
    for shard, tensors in shards.items():
        _check_shard(path, shard, names, tensors)
    structs = {name: shards[shard].structs[name] for name, shard in names.items()}
    return LazyTensors(structs, lambda name: shards[names[name]].read(name))


def read_array(path: Path) -> np.ndarray:
    """The real numbers of a .npy file, float32; runs no code that is in it.

    Raises:
        ValueError: a file of another kind, of several arrays, or without real numbers.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):  # whose texts advise to allow pickles
        raise ValueError(f"expected an array in {path}, got a file of another kind; save it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"expected one array in {path}, got an archive of arrays; save one with numpy.save")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"expected real numbers in {path}, got {array.dtype}; save others with numpy.save")
    with np.errstate(over="ignore"):  # who reads it refuses what is infinite then
        return array.astype(np.float32)


def write_safetensors(
    path: Path | str,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    replace: bool = False,
) -> None:
    """Writes a safetensors file that appears whole or not at all; of `LazyTensors`, one tensor at a time is in memory.

    replace: an older file there gives way to it.

    Raises:
        FileExistsError: something is at `path` already, and `replace` isn't set; it is left as it is.
    """
    with draft_of(Path(path), replace=replace) as draft:
        _stream_safetensors(draft, LazyTensors.of(tensors), metadata)


def _stream_safetensors(path: Path, tensors: LazyTensors, metadata: Mapping[str, Any] | None) -> None:
    """Header, then one tensor after the other.

    Source: the format's description in the README of huggingface/safetensors.
    """
    if wrong := [key for key, value in (metadata or {}).items() if not isinstance(value, str)]:
        raise ValueError(
            f"expected strings as metadata, got something else in {', '.join(wrong)}; write it as JSON, say"
        )
    # The widest types first, so that every tensor is aligned to its own.
    names = sorted(tensors.structs, key=lambda name: (-tensors.structs[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        struct = tensors.structs[name]
        start, end = end, end + math.prod(struct.shape) * struct.dtype.itemsize
        kind = _DTYPE_NAMES[np.dtype(struct.dtype)]
        header[name] = {"dtype": kind, "shape": list(struct.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            struct, tensor = tensors.structs[name], np.asarray(tensors.read(name), order="C")
            assert (tensor.shape, tensor.dtype) == (struct.shape, struct.dtype), name
            file.write(tensor.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def read_metadata(path: Path | str) -> dict[str, str]:
    """The free-form metadata in the header of a safetensors file; empty if it has none."""
    with _readable(Path(path)), safetensors.safe_open(path, "numpy") as file:
        return file.metadata() or {}


def _open_safetensors(path: Path) -> LazyTensors:
    with _readable(path), safetensors.safe_open(path, "numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        kinds = {name: part.get_dtype() for name, part in slices.items()}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    if other := {name: kind for name, kind in kinds.items() if kind not in _DTYPES}:
        raise ValueError(_unreadable(path, other))
    structs = {name: jax.ShapeDtypeStruct(shape, _DTYPES[kinds[name]]) for name, shape in shapes.items()}

    def read(name: str) -> np.ndarray:
        # Opened anew, since whatever has been read of an open file stays mapped into memory beside its copy.
        with _readable(path), safetensors.safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    return LazyTensors(structs, read)


def _finite(path: Path, tensors: LazyTensors) -> LazyTensors:
    def read(name: str) -> np.ndarray:
        return finite(tensors.read(name), f"{name!r} of {path}", "download or copy it again, or take another model's")

    return LazyTensors(tensors.structs, read)


@contextlib.contextmanager
def naming(source: Path | str) -> Iterator[None]:
    """Puts the name of a file before errors about what it holds."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except safetensors.SafetensorError:
        raise ValueError(
            f"expected a whole safetensors file, got {path}, which is {_damage(path)}; download or copy it again"
        ) from None


def read_shard_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name beside the index.

    Raises:
        ValueError: not an index, or one that points outside its folder.
    """
    try:
        names = parse_json(index.read_text(encoding="utf-8-sig"))["weight_map"]
        shards = {str(shard) for shard in names.values()}
        outside = sorted(shard for shard in shards if Path(shard).name != shard)
        indices = sorted(shard for shard in shards if Path(shard).suffix == ".json")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"expected a shard index with a weight_map, each key once, got {index}; download or copy it again"
        ) from None
    if outside:
        raise ValueError(f"expected shards beside {index}, got {', '.join(outside)}; the index is not to be trusted")
    if indices:
        raise ValueError(
            f"expected {index} to list weight files, got the index {', '.join(indices)}; download or copy it again"
        )
    return names


def _shards(index: Path, names: Mapping[str, str]) -> list[str]:
    shards = sorted(set(names.values()))
    if missing := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise FileNotFoundError(
            f"expected the {len(shards)} shards of {index}, missing {', '.join(missing)}; download or copy them too"
        )
    return shards


def _check_shard(index: Path, shard: str, names: Mapping[str, str], found: Mapping[str, Any]) -> None:
    expected = {name for name, file in names.items() if file == shard}
    if wrong := sorted(expected ^ set(found)):
        raise ValueError(
            f"expected {shard} to hold what {index.name} lists, got a difference in {', '.join(wrong[:12])}; the "
            "index and the shards are of different models"
        )


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"expected a weight file at {path}, found none; check the path")


def _is_index(path: Path) -> bool:
    return path.suffix == ".json" and ".index" in path.name


def _other_kind(path: Path) -> str:
    return (
        f"expected a .safetensors, .index.json or PyTorch file ({', '.join(TORCH_SUFFIXES)}), got {path}; take the model's "
        ".safetensors file"
    )


def _read_torch(path: Path, *, mapped: bool = False) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"expected torch to read {path}, it is not installed; install torch or convert the file to safetensors"
        ) from None
    if tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2]) < _SAFE_TORCH:
        raise ValueError(
            f"expected torch 2.6 or newer to read {path}, got {torch.__version__}, which would run code in it "
            "(CVE-2025-32434); update torch or convert the file to safetensors"
        )
    content = _load_torch(path, torch, mapped)
    tensors: dict[str, np.ndarray] = {}
    unreadable: dict[str, str] = {}
    for name, tensor in _tensors_in(content, "", path):
        if name in tensors or name in unreadable:
            raise ValueError(
                f"expected one tensor {name!r} in {path}, got another of that name (flat and nested, say); rename one"
            )
        array = tensor if isinstance(tensor, np.ndarray) else _to_numpy(tensor, torch)
        if array is None:
            unreadable[name] = f"{tensor.dtype}, {tensor.layout}"
        else:
            tensors[name] = array
    if unreadable:
        raise ValueError(_unreadable(path, unreadable))
    return tensors


def _load_torch(path: Path, torch: Any, mapped: bool) -> Any:
    with torch.serialization.safe_globals(_data_classes()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # torch raises anything from EOFError to UnpicklingError
            refused, damage = _refused_classes(path, str(error), torch), _damage(path)
            if zipfile.is_zipfile(path) and "Unsupported operand" in str(error):
                damage = "damaged, or saved with another pickle_protocol than torch.save's own"
    if refused:
        raise ValueError(
            f"expected a PyTorch file of plain tensors, got {path}, which holds {listing(refused)}: code that is never run "
            "here; where it was made, save its state dict alone, with torch.save or as safetensors"
        ) from None
    raise ValueError(
        f"expected a whole PyTorch file, got {path}, which is {damage}; download or copy it again"
    ) from None


def _data_classes() -> list[Any]:
    """Classes that hold data and whose making runs nothing else, under the names that a file may call them by.

    Paths are read as pure ones: those of another system load too, and none touches a disk.
    """
    paths = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}
    paths |= {kind.__name__: kind for kind in (PurePosixPath, PureWindowsPath)}
    numpy_types = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type) and issubclass(kind, np.dtype)]
    constructors: list[Any] = [example.__reduce__()[0] for example in (np.float32(0), np.zeros(0))]
    return [
        (_Unused, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
        argparse.Namespace, types.SimpleNamespace, (_plain_dict, "collections.defaultdict"), (_plain_list, "collections.deque"),
        list, dict, tuple, set, frozenset, int, float, bool, str, range, slice, decimal.Decimal, fractions.Fraction,
        datetime.date, datetime.datetime, datetime.timedelta, datetime.timezone, np.ndarray, np.dtype, *numpy_types,
        *((kind, f"{module}.{name}") for name, kind in paths.items() for module in ("pathlib", "pathlib._local")),
        *((make, f"{module}.multiarray.{make.__name__}") for make in constructors for module in ("numpy.core", "numpy._core")),
    ]  # fmt: skip


class _Unused:
    """Takes the place of a class that published files name and never make: the key of a callback's state in .ckpt files."""


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Takes the place of a `defaultdict`, which torch makes but can't fill."""
    return {}


def _plain_list(*_: Any) -> list[Any]:
    """Takes the place of a `deque`, likewise."""
    return []


def _refused_classes(path: Path, error: str, torch: Any) -> list[str]:
    """The names in a PyTorch file that torch refuses to load; none if something else is wrong with it."""
    if zipfile.is_zipfile(path):
        with contextlib.suppress(Exception):  # a damaged file, or TorchScript
            if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
                return sorted(names)
        if "TorchScript" in error:
            return ["a TorchScript program"]
    return sorted(set(re.findall(r"GLOBAL ([\w.]+)", error)))


def _damage(path: Path) -> str:
    """What the first bytes say about a weight file that can't be read."""
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        return "empty"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS instead of the file (git lfs pull gets it)"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    if path.suffix in TORCH_SUFFIXES and start[8:].startswith(b'{"'):
        return "a safetensors file (rename it to .safetensors)"
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):
        return "a PyTorch file or another zip archive (rename it to .ckpt)"
    return "damaged or of another kind"


def _tensors_in(content: Any, name: str, path: Path, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if hasattr(content, "detach"):
        yield name or "tensor", content.detach()
        return
    if isinstance(content, np.ndarray) and content.dtype.kind in "biufc":
        yield name or "tensor", content
        return
    if depth > _MAX_DEPTH:
        raise ValueError(
            f"expected tensors nested at most {_MAX_DEPTH} deep in {path}, got more at {name[:80]!r}...; the file may "
            "contain itself: save a plain state dict"
        )
    items: Iterable[tuple[Any, Any]] = content.items() if isinstance(content, Mapping) else ()
    items = enumerate(content) if isinstance(content, list | tuple) else items
    for key, value in items:
        yield from _tensors_in(value, f"{name}.{key}" if name else str(key), path, depth + 1)


def _to_numpy(tensor: Any, torch: Any) -> np.ndarray | None:
    """The tensor as an array; None where numpy has none like it."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    if tensor.dtype == torch.bfloat16:  # numpy has no name for it: reinterpret the bits
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return tensor.contiguous().numpy()
    except (TypeError, RuntimeError):  # a type that numpy lacks, or no memory behind the tensor
        return None


def _unreadable(path: Path, kinds: Mapping[str, str]) -> str:
    listing = ", ".join(f"{name!r} ({kind})" for name, kind in sorted(kinds.items())[:12])
    return (
        f"expected dense tensors of types that numpy has in {path}, got {listing}; "
        "save them as dense float32 or bfloat16"
    )
