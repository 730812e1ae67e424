"""How much of a person a W+ code tells, and so how like the person a picture drawn from it can be expected to be.

python benchmarks/wplus.py                                          # the shipped weights
python benchmarks/wplus.py --wplus=runs/portraits_wplus/weights

A ridge regression on the codes of training people reads what a face was drawn from; the renderer draws validation people from
what it reads, in another pose, light and scene, and the recogniser compares that with the gallery, as it does in
`metrics.json`. Beside it stand the pictures that the W+ space's own synthesis makes of the codes, and renders of the true
parameters.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from pidiff_jax.arrays import in_batches
from pidiff_jax.evaluation.scores import identity_similarity, retrieval_top1
from pidiff_jax.models.e4e import E4eEncoder, encode_wplus
from pidiff_jax.models.stylegan2 import Synthesis
from pidiff_jax.worlds.portraits import networks, renderer
from pidiff_jax.worlds.portraits.judges import held_out_people, load_judges
from pidiff_jax.worlds.portraits.painter import Face
from pidiff_jax.worlds.portraits.sources import pictures, wplus_codes
from pidiff_jax.worlds.portraits.weight_files import load_weights

BATCH_SIZE = 50
RIDGE = 50.0  # of codes in standard deviations
FIRST_PICTURE = 2  # beside that of the gallery and that of the code


class Reading(NamedTuple):
    """Identity parameters as a linear function of codes in standard deviations."""

    mean: Float[np.ndarray, "n"]
    std: Float[np.ndarray, "n"]
    kernel: Float[np.ndarray, "n+1 p"]

    @classmethod
    def fit(cls, codes: Float[np.ndarray, "b n"], identity: Float[np.ndarray, "b p"]) -> "Reading":
        """By ridge regression."""
        mean, std = codes.mean(0), codes.std(0) + 1e-6
        x = _with_one((codes - mean) / std)
        return cls(mean, std, np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ identity))

    def __call__(self, codes: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b p"]:
        """Parameters in [0, 1], as the renderer wants them."""
        return np.clip(_with_one((codes - self.mean) / self.std) @ self.kernel, 0.0, 1.0).astype(np.float32)


def main() -> None:
    """Prints the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wplus", help="folder of wplus.safetensors; left out: the shipped one")
    parser.add_argument("--num_training_people", type=int, default=8000)
    parser.add_argument("--num_people", type=int, default=100)
    args = parser.parse_args()
    if not all(2 <= n <= 1_000_000 for n in (args.num_people, args.num_training_people)):
        parser.error(
            "expected 2 to 1000000 people, whose scatter is read; correct --num_people or --num_training_people"
        )
    if args.wplus is not None and not Path(args.wplus, "wplus.safetensors").is_file():
        parser.error(f"expected wplus.safetensors in the folder --wplus={args.wplus}, found none; check the path")

    weights, encoder = load_weights("wplus", args.wplus), E4eEncoder(networks.ENCODER)

    def encode(pixels):
        return encode_wplus(encoder, weights["encoder"], weights["latent_avg"], pixels)

    trained_on = renderer.person_ids("train", args.num_training_people)
    pixels = pictures("train", args.num_training_people, 1, "aligned")["pixels"]
    read = Reading.fit(_flat(wplus_codes(encode, pixels)), renderer.identities(trained_on))
    people = held_out_people("validation", args.num_people, encode)
    identity = renderer.identities(renderer.person_ids("validation", args.num_people))
    found = read(_flat(people.wplus))
    r2 = 1.0 - np.square(found - identity).mean(0) / identity.var(0)

    judge = load_judges().recogniser
    gallery = _each(judge, people.gallery)
    synthesis = Synthesis(networks.STYLEGAN2)
    synthesise = jax.jit(lambda codes: synthesis.apply({"params": weights["synthesis"]}, codes))
    synthesised = np.clip(_each(synthesise, people.wplus) * 0.5 + 0.5, 0.0, 1.0)
    shown = {"synthesised": synthesised, "read": _rendered(found), "true": _rendered(identity)}
    scores = {}
    for name, pixels in shown.items():
        embeddings = _each(judge, pixels)
        scores[name] = {
            "identity_similarity": float(identity_similarity(embeddings, gallery).mean()),
            "retrieval_top1": float(retrieval_top1(embeddings, gallery, np.arange(args.num_people)).mean()),
        }
    by_name = {name: round(float(value), 2) for name, value in zip(Face._fields, r2, strict=True)}
    mse = np.square(synthesised - people.references).mean((1, 2, 3))
    psnr = float((10.0 * np.log10(1.0 / mse)).mean())
    print(json.dumps({"psnr_db": psnr, **scores, "r2": {"mean": float(r2.mean()), **by_name}}, indent=1))


def _rendered(identity: Float[np.ndarray, "b p"]) -> Float[np.ndarray, "b h w 3"]:
    people = renderer.person_ids("validation", len(identity))
    drawn = renderer.draw_identity(identity, people, np.full(len(identity), FIRST_PICTURE, np.int32), "wild")
    return np.asarray(drawn.pixels)


def _flat(codes: Float[np.ndarray, "b l d"]) -> Float[np.ndarray, "b n"]:
    return np.asarray(codes).reshape(len(codes), -1)


def _with_one(x: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b n+1"]:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _each(function, x: np.ndarray) -> np.ndarray:
    return in_batches(function, x, batch_size=BATCH_SIZE)


if __name__ == "__main__":
    main()
