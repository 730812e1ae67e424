"""What of a person arrives in a drawing, and what doesn't, attribute by attribute.

python benchmarks/likeness.py --workdir=runs/quickstart_long

Validation people of the embedded world, each drawn once in a held-out scene, as the run draws. The judge of attributes,
which had no part in any training of an adapter, reads what a face was drawn from off the drawings and off renders of the
same people. Prints JSON: the similarity of both to another photograph and, for each identity parameter, how far the
readings correlate with the truth.
"""

import argparse
import json

import numpy as np

from pidiff_jax.arrays import in_batches
from pidiff_jax.evaluation.scores import identity_similarity
from pidiff_jax.pipeline.pipeline import Pipeline
from pidiff_jax.pipeline.recipe import Job
from pidiff_jax.worlds.portraits import renderer
from pidiff_jax.worlds.portraits.judges import HeldOutPortraits, load_attributes
from pidiff_jax.worlds.portraits.painter import Face

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
    shown = {
        "drawn": pipeline.draw(jobs, pipeline.settings(), show_progress=False).pixels,
        "renders": np.asarray(renderer.draw(ids, numbers, "wild").pixels),
    }

    recogniser, attributes = held_out.judges().recogniser, load_attributes()
    gallery = _read(recogniser, people.gallery)
    similarity = {name: identity_similarity(_read(recogniser, x), gallery).mean() for name, x in shown.items()}
    read = {name: _read(attributes, x)[:, : true.shape[1]] for name, x in shown.items()}
    found = {
        attribute: {name: round(float(np.corrcoef(x[:, i], true[:, i])[0, 1]), 2) for name, x in read.items()}
        for i, attribute in enumerate(Face._fields)
    }
    print(
        json.dumps(
            {"similarity": {k: round(float(v), 3) for k, v in similarity.items()}, "correlation": found}, indent=1
        )
    )


def _read(judge, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(in_batches(judge, np.asarray(pixels, np.float32), batch_size=min(50, len(pixels))))


if __name__ == "__main__":
    main()
