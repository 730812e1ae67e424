"""The experiments that there are, part by part."""

import importlib

from ml_collections import ConfigDict

EMBEDDED = [
    ("quickstart", "short"), ("quickstart", "long"), ("portraits_base", "vae"), ("portraits_base", "unet"),
    ("portraits_judges", "recogniser"), ("portraits_judges", "scenes"), ("portraits_judges", "segmenter"),
    ("portraits_wplus", None),
]  # fmt: skip


def get_config(name: str, part: str | None = None) -> ConfigDict:
    """The config of experiments/NAME.py:PART."""
    return importlib.import_module(f"experiments.{name}").get_config(*([part] if part else []))
