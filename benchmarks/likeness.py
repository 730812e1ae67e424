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
    shown = {
        "drawn": pipeline.draw(jobs, pipeline.settings(), show_progress=False).pixels,
        "renders": np.asarray(renderer.draw(ids, numbers, "wild").pixels),
    }

    recogniser, attributes = held_out.judges().recogniser, load_attributes()
    gallery = in_batches(recogniser, people.gallery, batch_size=BATCH_SIZE)
    embedded = {name: in_batches(recogniser, x, batch_size=BATCH_SIZE) for name, x in shown.items()}
    read = {name: in_batches(attributes, x, batch_size=BATCH_SIZE) for name, x in shown.items()}
    similarity = {name: round(float(identity_similarity(x, gallery).mean()), 3) for name, x in embedded.items()}
    found = {
        attribute: {name: round(float(np.corrcoef(x[:, i], true[:, i])[0, 1]), 2) for name, x in read.items()}
        for i, attribute in enumerate(Face._fields)
    }
    print(json.dumps({"similarity": similarity, "correlation": found}, indent=1))


if __name__ == "__main__":
    main()
