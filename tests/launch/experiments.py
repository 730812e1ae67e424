"""The experiments that there are, part by part."""

import importlib

from ml_collections import ConfigDict

# Each experiment and the parts that its get_config knows; None where it takes no part.
PARTS = {
    "ffhq": [None],
    "portraits_base": ["vae", "unet"],
    "portraits_judges": ["recogniser", "scenes", "segmenter", "landmarks", "realism"],
    "portraits_wplus": [None],
    "quickstart": ["short", "long"],
}
CONFIGS = [(name, part) for name, parts in PARTS.items() for part in parts]
EMBEDDED = [(name, part) for name, part in CONFIGS if name != "ffhq"]


def get_config(name: str, part: str | None = None) -> ConfigDict:
    """The config of experiments/NAME.py:PART."""
    return importlib.import_module(f"experiments.{name}").get_config(*([part] if part else []))
