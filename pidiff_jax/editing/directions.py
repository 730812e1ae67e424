"""Directions in W+: read from the files of others, found in codes, and gone along."""

import codecs
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pidiff_jax.convert.files import read_array, read_tensors
from pidiff_jax.editing.levels import layers_of

Direction = Float[np.ndarray, "l d"]


def move(
    code: Float[np.ndarray, "l d"],
    direction: Float[np.ndarray, "_l _d"],
    strength: float,
    layers: str | int | Sequence[Any] = "all",
) -> Float[np.ndarray, "l d"]:
    """The code, `strength` times along a direction, in the given layers; see `layers_of`.

    Example:
        >>> move(np.zeros((18, 512)), np.ones((18, 512)), 2.0, "fine").mean(1)[[0, 8]]
        array([0., 2.])

    Raises:
        ValueError: a direction of another shape, or layers that there aren't.
    """
    if direction.shape != code.shape:
        raise ValueError(f"expected a direction of shape {code.shape}, got {direction.shape}; it is of another encoder")
    moved, chosen = np.array(code), layers_of(layers, len(code))
    with np.errstate(over="ignore", invalid="ignore"):
        moved[chosen] += strength * direction[chosen]
    return moved


def read_directions(path: Path, num_layers: int, wplus_dim: int) -> dict[str, Direction]:
    """Directions by name, float32, of a file in one of the public formats.

    - `.npy`, `.safetensors` and `.pt`: arrays (d,), (1, d), (l, d) or (1, l, d), also lists of them: InterFaceGAN's, which go
      along all layers alike, and those of single layers. The name is the file's, or that of the tensor; the longest
      come first.
    - `.pt` with `mean`, `comp` and `std`: principal components as in GANSpace; `pc0`, `pc1`, ... are one standard
      deviation long.
    - `.csv` beside such a file: rows `component,start,end[,strength][,name]` of components and the layers that they act in; the
      file is the only `.pt` of its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, or arrays of another shape; says which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of directions at {path}, found none; check the path")
    if path.suffix == ".csv":
        return _named_components(path, num_layers, wplus_dim)
    if path.suffix == ".npy":
        tensors = {path.stem: read_array(path)}
    elif path.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        tensors = read_tensors(path, np.float32)
    else:
        raise ValueError(f"expected directions as .npy, .safetensors, .pt or .csv, got {path}; convert the file")
    if {"comp", "std"} <= tensors.keys():
        return {f"pc{i}": each for i, each in enumerate(_components(tensors, path, num_layers, wplus_dim))}
    if not tensors:
        raise ValueError(f"expected directions in {path}, got no arrays; take another file")
    found = {
        _name(name, path): _as_direction(array, f"{name} of {path}", num_layers, wplus_dim)
        for name, array in tensors.items()
    }
    return dict(sorted(found.items(), key=lambda pair: -float(np.linalg.norm(pair[1]))))


def _name(tensor: str, path: Path) -> str:
    """A single tensor has no name of its own, and those of a list have numbers."""
    return path.stem if tensor == "tensor" else f"{path.stem}_{tensor}" if tensor.isdigit() else tensor


def _as_direction(array: np.ndarray, name: str, num_layers: int, wplus_dim: int) -> Direction:
    squeezed = array.reshape([n for n in array.shape if n != 1] or [1]) if array.ndim > 2 else array
    if squeezed.dtype.kind not in "fiu":
        raise ValueError(f"expected real numbers in {name}, got {array.dtype}; take another file")
    if squeezed.shape not in [(wplus_dim,), (1, wplus_dim), (num_layers, wplus_dim)]:
        raise ValueError(
            f"expected a direction of shape ({num_layers}, {wplus_dim}), or ({wplus_dim},) for all layers, got {array.shape} "
            f"in {name}; it is of another encoder"
        )
    with np.errstate(over="ignore"):
        single = squeezed.astype(np.float32)
    if not np.isfinite(single).all():
        raise ValueError(f"expected finite numbers in {name}, got others; take another file")
    return np.broadcast_to(single, (num_layers, wplus_dim)).copy()


def _components(
    tensors: Mapping[str, np.ndarray], path: Path, num_layers: int, wplus_dim: int
) -> Float[np.ndarray, "k l d"]:
    components, spread = tensors["comp"], tensors["std"]
    if len(components) != len(spread.reshape(-1)):
        raise ValueError(
            f"expected as many comp as std in {path}, got {len(components)} and {spread.size}; take another file"
        )
    return np.stack([
        _as_direction(each, f"comp of {path}", num_layers, wplus_dim) * float(std)
        for each, std in zip(components, spread.reshape(-1), strict=True)
    ])  # fmt: skip


def _named_components(path: Path, num_layers: int, wplus_dim: int) -> dict[str, Direction]:
    files = sorted(path.parent.glob("*.pt"))
    if len(files) != 1:
        raise ValueError(f"expected one .pt with the components beside {path}, found {len(files)}; put the one there")
    tensors = read_tensors(files[0], np.float32)
    if not {"comp", "std"} <= tensors.keys():
        raise ValueError(
            f"expected principal components, comp and std, in {files[0]}, which {path} is of, got others; put those there"
        )
    components = _components(tensors, files[0], num_layers, wplus_dim)
    found: dict[str, Direction] = {}
    for place, (number, row) in enumerate(read_rows(path)):
        try:
            index, start, end = (int(float(value)) for value in row[:3])
        except (ValueError, OverflowError):
            if place == 0 and not any(map(_is_number, row)):
                continue  # a header
            raise ValueError(
                f"{path}, line {number}: expected component,start,end, got {','.join(row)!r}; correct it"
            ) from None
        if not (0 <= index < len(components) and 0 <= start < end <= num_layers):
            raise ValueError(
                f"{path}, line {number}: expected a component below {len(components)} and layers up to {num_layers}, got "
                f"{','.join(row)!r}; correct it"
            )
        direction = np.zeros_like(components[index])
        direction[start:end] = components[index, start:end]
        words = [value.strip() for value in row[3:] if value.strip() and not _is_number(value)]
        name = words[0] if words else f"pc{index}_{start}_{end}"
        if name in found:
            raise ValueError(f"{path}, line {number}: expected each name once, got {name!r} again; rename one")
        found[name] = direction
    if not found:
        raise ValueError(f"expected rows component,start,end[,strength][,name] in {path}, got none; add some")
    return found


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows of a CSV file, each with the number of its line; without empty ones.

    Raises:
        ValueError: it isn't CSV, or not in UTF-8; names the line.
    """
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = content[: error.start].count(b"\n") + 1, content[error.start]
        raise ValueError(f"{path}, line {line}: expected UTF-8, got byte 0x{byte:02x}; save it as UTF-8") from None
    # str.splitlines would cut names too, at U+2028 or U+0085.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: expected CSV, got: {error}; correct it") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Found:
    """Directions that were found in codes, the longest first.

    variance: the share of the codes' variance that each explains. sureness: of labels, how well the codes tell the label
        (the coefficient of determination on codes that weren't used, 1 is perfectly); None of components.
    """

    directions: dict[str, Direction]
    variance: dict[str, float]
    sureness: dict[str, float] | None = None

    def without_unsure(self, least: float) -> "Found":
        """Without labels that the codes tell less surely."""
        if self.sureness is None:
            return self
        kept = [name for name, sure in self.sureness.items() if sure >= least]
        own = ({name: each[name] for name in kept} for each in (self.directions, self.variance, self.sureness))
        return Found(*own)  # type: ignore[arg-type]


def from_labels(codes: Float[np.ndarray, "n l d"], labels: Float[np.ndarray, "n a"], names: Sequence[str]) -> Found:
    """Directions of attributes: how codes change with one label while all others stay, one standard deviation long.

    Codes are regressed on all labels together, so that attributes that come together in people (beards and short hair, say)
    have directions of their own.

    Raises:
        ValueError: fewer codes than twice the labels, or a label that is the same for all.
    """
    flat, count = codes.reshape(len(codes), -1).astype(np.float64), len(codes)
    if count < 2 * (len(names) + 1):
        raise ValueError(
            f"expected at least {2 * (len(names) + 1)} labelled codes for {len(names)} labels, got {count}; add some"
        )
    spread = labels.std(0)
    if len(constant := np.flatnonzero(spread < 1e-9)):
        raise ValueError(
            f"expected labels that differ, got the same {names[constant[0]]!r} for everybody; leave it out"
        )
    standard = (labels - labels.mean(0)) / spread
    centred = flat - flat.mean(0)
    coefficients, *_ = np.linalg.lstsq(standard, centred, rcond=None)
    total = centred.var(0).sum()
    variance = {name: float((row**2).sum() / total) for name, row in zip(names, coefficients, strict=True)}
    sure = _readable(centred, standard)
    order = sorted(range(len(names)), key=lambda i: -variance[names[i]])
    shaped = coefficients.reshape(len(names), *codes.shape[1:]).astype(np.float32)
    return Found(
        {names[i]: shaped[i] for i in order}, {names[i]: variance[names[i]] for i in order},
        {names[i]: float(sure[i]) for i in order},
    )  # fmt: skip


def from_components(codes: Float[np.ndarray, "n l d"], count: int = 10) -> Found:
    """The principal components of codes, one standard deviation long; the sign makes the largest entry positive.

    Source: Härkönen et al. 2020 (arXiv 2004.02546), section 2.

    Raises:
        ValueError: fewer codes than components.
    """
    if len(codes) <= count:
        raise ValueError(f"expected more than {count} codes for {count} components, got {len(codes)}; ask for fewer")
    if count > (most := int(np.prod(codes.shape[1:]))):
        raise ValueError(f"expected at most {most} components, as codes have numbers, got {count}; ask for fewer")
    centred = codes.reshape(len(codes), -1).astype(np.float64)
    centred = centred - centred.mean(0)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    spread = singular / np.sqrt(len(codes) - 1)
    share = spread**2 / (spread**2).sum()
    signs = np.sign(vectors[np.arange(count), np.abs(vectors[:count]).argmax(1)])
    shaped = (vectors[:count] * (signs * spread[:count])[:, None]).reshape(count, *codes.shape[1:]).astype(np.float32)
    return Found({f"pc{i}": shaped[i] for i in range(count)}, {f"pc{i}": float(share[i]) for i in range(count)})


def _readable(codes: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n a"]) -> Float[np.ndarray, "a"]:
    """R^2 of a ridge regression from codes to labels, on the last fifth; it was fitted on the others."""
    order: Int[np.ndarray, "n"] = np.random.default_rng(0).permutation(len(codes))
    fit, held = order[: -max(len(codes) // 5, 1)], order[-max(len(codes) // 5, 1) :]
    x = codes[fit]
    ridge = 1e-2 * np.trace(x.T @ x) / x.shape[1]
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ labels[fit])
    error = ((codes[held] @ weights - labels[held]) ** 2).mean(0)
    return 1.0 - error / np.maximum(labels[held].var(0), 1e-12)
