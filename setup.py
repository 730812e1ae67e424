"""Package metadata; exact versions that are known to work together are in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGES = ("pidiff_jax", "data_pipeline", "experiments", "launch")

setup(
    name="pidiff_jax",
    version="0.1.0.dev0",
    description="PIDiff in JAX/Flax: text-to-image diffusion that draws a given person, from W+ codes",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"": "."},  # so that an editable install is found even from the folder that holds the clone
    packages=find_packages(include=[f"{name}{rest}" for name in PACKAGES for rest in ("", ".*")]),
    package_data={"pidiff_jax": ["worlds/portraits/weights/*", "evaluation/report/*.j2", "export/torch_files/*.py"]},
    install_requires=[
        "absl-py>=2.1",
        "filelock>=3.30",
        "flax>=0.12,<0.13",
        "grain>=0.2.15",
        "importlib_resources>=6.4",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10,<0.11",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "matplotlib>=3.10",
        "ml_collections>=1.1",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=11",
        "safetensors>=0.6",
        "scipy>=1.15",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.9",
        "tqdm>=4.66",
        "transformers>=5.0,<6",
    ],
    extras_require={
        # To read weight files in PyTorch's own formats, and to prove exports by drawing from them in PyTorch.
        "torch": ["diffusers>=0.42,<0.43", "torch>=2.6"],
        "test": [
            "accelerate>=1.10",
            "beartype>=0.22",
            "diffusers>=0.42,<0.43",
            "import-linter>=2.5",
            "mypy==2.4.1",
            "peft>=0.21",
            "pytest>=9.0",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "ruff==0.17.6",
            "scikit-image>=0.26",
            "torch>=2.6",
        ],
    },
)
