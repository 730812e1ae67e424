"""What a picture was made from, so that it can be made again bit for bit; and the picture's file, which says so."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin

from pidiff_jax.checkpoint.atomic_file import write_atomically
from pidiff_jax.ranges import MAX_SEED, about, check_count
from pidiff_jax.strict_json import parse_json

# In a picture's metadata.
RECIPE_KEY = "pidiff_jax.recipe"
_XMP_KEY = "XML:com.adobe.xmp"
# IPTC's words for what was made by a trained model, as a whole or inside of a picture.
_SYNTHETIC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_PARTLY_SYNTHETIC = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


@dataclass(frozen=True)
class Job:
    """One picture. people: (where the code is from, W+ code (l, d)) of everybody in it."""

    prompt: str
    negative_prompt: str | None
    seed: int
    people: tuple[tuple[str | None, Float[np.ndarray, "l d"]], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """All that a picture depends on; as JSON in and beside its file.

    people: where each W+ code is from, and its hash: the code itself, which is a face, isn't in the picture.
    regions: boxes; masks as {"mask": file, "sha256": hash of where it lets the person be}; None of one that was in memory.
    image: of a picture that was changed: files and hashes of it and of its mask.
    settings: `pipeline.Settings`. place: in which batch it was drawn, [place, size].
    run: its folder, step and content hashes.
    """

    prompt: str
    negative_prompt: str | None
    seed: int
    people: Sequence[Mapping[str, Any]]
    regions: Sequence[Any] | None
    image: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    place: Sequence[int]
    run: Mapping[str, Any]
    versions: Mapping[str, str]
    devices: Mapping[str, Any]

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, name: str) -> "Recipe":
        """name: of the file, for errors.

        Raises:
            ValueError: not a recipe.
        """
        try:
            recipe = cls(**parse_json(text))
        except (ValueError, TypeError, RecursionError) as error:
            got = f"a mistake ({error})" if isinstance(error, ValueError) else "something else"
            raise ValueError(
                f"expected the recipe of a picture in {name}, got {got}; give a PNG or JSON file of launch.sample"
            ) from None
        with about(f"the recipe {name}"):
            recipe.check()
        return recipe

    def check(self) -> None:
        """Raises ValueError where a value is none that was written here, as after a slip of the pen."""
        check_count("seed", self.seed, least=0, most=MAX_SEED)
        place = isinstance(self.place, list) and len(self.place) == 2 and all(type(each) is int for each in self.place)
        parts = {
            "prompt": isinstance(self.prompt, str),
            "negative_prompt": isinstance(self.negative_prompt, str | None),
            "place": place and 0 <= self.place[0] < self.place[1],
            "people": _has(self.people, "source", "sha256")
            and all(isinstance(each["source"], str | None) for each in self.people),
            "regions": self.regions is None
            or (isinstance(self.regions, list) and all(isinstance(each, list | dict | None) for each in self.regions)),
            "image": self.image is None or _has([self.image], "image", "image_sha256"),
            "settings": isinstance(self.settings, dict),
            "run": _has([self.run], "folder", "step", "fingerprints")
            and isinstance(self.run["fingerprints"], dict)
            and isinstance(self.run["folder"], str)
            and isinstance(self.run["step"], int),
        }
        if wrong := [part for part, fits in parts.items() if not fits]:
            raise ValueError(
                f"expected {wrong[0]} as launch.sample writes it, got {getattr(self, wrong[0])!r}; restore it"
            )


def _has(parts: Any, *names: str) -> bool:
    return isinstance(parts, list) and all(isinstance(part, dict) and part.keys() >= set(names) for part in parts)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a picture's metadata, or in the JSON file beside it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no recipe.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a picture or recipe at {path}, found none; check the path")
    if path.suffix == ".json":
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"expected a recipe in UTF-8 at {path}, got {error}; save it as UTF-8") from None
        return Recipe.from_json(text, str(path))
    try:
        with Image.open(path) as picture:
            text = picture.info.get(RECIPE_KEY, "")
    except OSError as error:
        raise ValueError(
            f"expected a picture or recipe at {path}, got: {error}; give a file of launch.sample"
        ) from error
    return Recipe.from_json(text, str(path))


def save_picture(
    path: Path, picture: Image.Image, recipe: Recipe | None, *, mark: bool = True, note: Any = None
) -> None:
    """Writes a PNG with its recipe, and a JSON file of the same name beside it.

    mark: say in XMP that a model made it (IPTC DigitalSourceType), as platforms and laws ask for.
    note: in place of a recipe: what a picture shows that was put together of several, as JSON takes it.
    """
    text = recipe.to_json() if recipe is not None else json.dumps(note, indent=2, sort_keys=True)
    information = PngImagePlugin.PngInfo()
    information.add_itxt(RECIPE_KEY if recipe is not None else "pidiff_jax.note", text)
    if mark:
        partly = recipe is not None and recipe.image is not None
        information.add_itxt(_XMP_KEY, _xmp(_PARTLY_SYNTHETIC if partly else _SYNTHETIC))
    content = io.BytesIO()
    picture.save(content, "PNG", pnginfo=information)
    write_atomically(path, content.getvalue())
    write_atomically(path.with_suffix(".json"), (text + "\n").encode())


def _xmp(source_type: str) -> str:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="pidiff_jax">'
        f"<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>"
        '</rdf:Description></rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    )


def code_hash(code: Float[np.ndarray, "l d"]) -> str:
    """SHA-256 of a W+ code."""
    return hashlib.sha256(np.ascontiguousarray(code, np.float32).tobytes()).hexdigest()


def pixels_hash(pixels: UInt8[np.ndarray, "..."]) -> str:
    """SHA-256 of a picture's pixels, whatever its file."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def devices_here(mesh: Mesh) -> dict[str, Any]:
    """Kind and number of the devices of a mesh."""
    first = mesh.devices.flat[0]
    return {"platform": first.platform, "kind": first.device_kind, "count": int(mesh.size), "jax": jax.__version__}
