"""What of a person arrives in a drawing, and what doesn't, attribute by attribute.

python benchmarks/likeness.py --workdir=runs/quickstart_long

Validation people of the embedded world, each drawn once in a held-out scene, as the run draws. The judge of attributes,
which had no part in any training of an adapter, reads what a face was drawn from off the drawings, off renders of the
same people, and off what the VAE leaves of these. Prints JSON: the similarity of all to another photograph and, for each
identity parameter, how far the readings correlate with the truth, and what they cost: by how much the similarity of a
render falls when it has this one parameter as it was read. What the VAE's pictures cost is the reading's own error.
"""

import argparse
import json

import jax
import numpy as np

from pidiff_jax.arrays import byte_pixels, in_batches, signed_pixels
from pidiff_jax.evaluation.scores import identity_similarity
from pidiff_jax.pipeline.pipeline import Pipeline
from pidiff_jax.pipeline.recipe import Job
from pidiff_jax.sampling.generate import decode_latents
from pidiff_jax.worlds.portraits import renderer
from pidiff_jax.worlds.portraits.judges import HeldOutPortraits, load_attributes
from pidiff_jax.worlds.portraits.painter import Face
from pidiff_jax.worlds.portraits.sources import encode_latents

BATCH_SIZE = 50
NUM_PROMPTS = 24
RENDERED_PICTURE = 2  # neither the photograph that the code is of nor the one of the gallery


def main() -> None:
    """Prints the readings as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="run of the embedded world")
    parser.add_argument("--num_people", type=int, default=100)
    args = parser.parse_args()
    if args.num_people < 3:
        parser.error("expected at least 3 people, whose readings are correlated; correct --num_people")
    held_out = HeldOutPortraits("validation")
    people, prompts = held_out.people(args.num_people), held_out.prompts(NUM_PROMPTS)
    pipeline = Pipeline.from_pretrained(args.workdir, batch_size=min(20, args.num_people))
    jobs = [Job(prompts.texts[i % NUM_PROMPTS], None, i, ((None, code),)) for i, code in enumerate(people.wplus)]
    ids = renderer.person_ids("validation", args.num_people)
    true, numbers = renderer.identities(ids), np.full(len(ids), RENDERED_PICTURE, np.int32)
    renders = np.asarray(renderer.draw(ids, numbers, "wild").pixels)
    shown = {
        "drawn": pipeline.draw(jobs, pipeline.settings(), show_progress=False).pixels,
        "reconstructions": _reconstructed(pipeline, renders),
        "renders": renders,
    }

    recogniser, attributes = held_out.judges().recogniser, load_attributes()
    gallery = in_batches(recogniser, people.gallery, batch_size=BATCH_SIZE)

    def likeness(pixels: np.ndarray) -> float:
        return float(identity_similarity(in_batches(recogniser, pixels, batch_size=BATCH_SIZE), gallery).mean())

    def cost(column: int, values: np.ndarray) -> float:
        changed = np.array(true)
        changed[:, column] = values
        return similarity["renders"] - likeness(
            np.asarray(renderer.draw_identity(changed, ids, numbers, "wild").pixels)
        )

    read = {name: in_batches(attributes, x, batch_size=BATCH_SIZE) for name, x in shown.items()}
    similarity = {name: likeness(x) for name, x in shown.items()}
    found = {}
    for i, attribute in enumerate(Face._fields):
        correlation = {name: round(float(np.corrcoef(x[:, i], true[:, i])[0, 1]), 2) for name, x in read.items()}
        costs = {name: round(cost(i, read[name][:, i]), 3) for name in ("drawn", "reconstructions")}
        found[attribute] = {"correlation": correlation, "cost": costs}
    print(json.dumps({"similarity": {k: round(v, 3) for k, v in similarity.items()}, "attributes": found}, indent=1))


def _reconstructed(pipeline: Pipeline, pixels: np.ndarray) -> np.ndarray:
    c, params = pipeline.components, pipeline.run.params["vae"]
    encode = encode_latents(c.vae, params)
    decoded = jax.jit(lambda x: decode_latents(c, params, encode(signed_pixels(x))[0]))
    return in_batches(decoded, byte_pixels(pixels), batch_size=BATCH_SIZE)


if __name__ == "__main__":
    main()
