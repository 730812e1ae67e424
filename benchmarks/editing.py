"""What editing does to drawings, by judges that had no part in the training: directions, mixed levels, and what is copied.

python benchmarks/editing.py --workdir=runs/quickstart_long

On validation people of the embedded world, drawn with one prompt each. Three tables (docs/gallery.md):
- directions, found by labels in training people's codes (`launch.directions`): the attribute as its judge reads it from the
  drawing at each strength; how often its order is that of the strengths; similarity to the drawing without the edit and change
  outside the face, at half and at full strength.
- levels: of drawings with coarse (or fine) layers of a donor, overlap of the head and distance of its mean colour to the
  donor's drawing and to the host's.
- copying: two photographs of a person with other poses and expressions, drawn from the same noise. How much of the difference
  between the photographs (turn of the head, opening of the mouth) is in the drawings: 0 is nothing, 1 is all. Both are read
  from the pictures, and renders show how much of a difference such a reading sees.
"""

import argparse
import json

import numpy as np

from pidiff_jax.arrays import in_batches
from pidiff_jax.editing.directions import from_labels, move
from pidiff_jax.editing.levels import mix
from pidiff_jax.evaluation import scores
from pidiff_jax.pipeline.pipeline import Pipeline
from pidiff_jax.pipeline.recipe import Job
from pidiff_jax.worlds.portraits import renderer
from pidiff_jax.worlds.portraits.judges import HeldOutPortraits, load_attributes, load_landmarks
from pidiff_jax.worlds.portraits.sources import load_wplus_encoder, pictures, wplus_codes

STRENGTHS = (-1.5, -0.75, 0.0, 0.75, 1.5)
ATTRIBUTES = ("hair_tone", "tone", "hair_length", "width", "beard", "glasses", "eye_gap", "eye_size", "eye_tone")
NUM_LABELLED = 2000
BATCH_SIZE = 64
LEFT_EYE, RIGHT_EYE = 0, 1


class Drawing:
    """Draws codes of people, each with a prompt and a seed of their own."""

    def __init__(self, pipeline: Pipeline, num_people: int, num_steps: int):
        self.pipeline, self.settings = pipeline, pipeline.settings(num_steps=num_steps)
        texts = HeldOutPortraits("validation").prompts(24).texts
        self.texts = [texts[i % len(texts)] for i in range(num_people)]

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Pixels of codes (n, l, d), the i-th with the i-th prompt and seed."""
        jobs = [Job(self.texts[i], None, i, ((None, code),)) for i, code in enumerate(codes)]
        return self.pipeline.draw(jobs, self.settings).pixels


def main() -> None:
    """Prints the tables as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="run of the embedded world")
    parser.add_argument("--num_people", type=int, default=48)
    parser.add_argument("--num_steps", type=int, default=20)
    args = parser.parse_args()
    pipeline = Pipeline.from_pretrained(args.workdir, batch_size=16)
    draw = Drawing(pipeline, args.num_people, args.num_steps)
    judges = HeldOutPortraits("validation").judges()
    codes = _codes(args.num_people, 0)
    host = draw(codes)
    result = {
        "directions": _directions(pipeline, draw, codes, host, judges),
        "levels": _levels(draw, codes, host, judges),
        "copying": _copying(draw, judges, host, args.num_people),
    }
    print(json.dumps(result, indent=2))


def _directions(pipeline, draw, codes, host, judges):
    known = pipeline.run.world.known_codes(NUM_LABELLED)
    found = from_labels(known.wplus, known.labels, known.names)
    judge, table = load_attributes(), {}
    for name in ATTRIBUTES:
        column, read, similar, changed = renderer.Face._fields.index(name), [], {}, {}
        for strength in STRENGTHS:
            edited = (
                host if strength == 0 else draw(np.stack([move(c, found.directions[name], strength) for c in codes]))
            )
            read.append(_judged(judge, edited)[:, column])
            mask = np.maximum(_judged(judges.face_mask, host), _judged(judges.face_mask, edited))
            both = (_judged(judges.recogniser, edited), _judged(judges.recogniser, host))
            similar[strength] = float(scores.identity_similarity(*both).mean())
            changed[strength] = float(scores.background_change(edited, host, mask).mean())
        readings = np.stack(read, 1)
        table[name] = {
            "judged": readings.mean(0).round(3).tolist(),
            "monotonic_in_the_mean": bool((np.diff(readings.mean(0)) > 0).all()),
            "pairs_in_order": round(float((np.diff(readings, axis=1) > 0).mean()), 3),
            "similarity_half": round(min(similar[-0.75], similar[0.75]), 3),
            "similarity_full": round(min(similar[-1.5], similar[1.5]), 3),
            "background_half": round(max(changed[-0.75], changed[0.75]), 4),
            "background_full": round(max(changed[-1.5], changed[1.5]), 4),
        }
    return table


def _levels(draw, codes, host, judges):
    donor_codes = np.roll(codes, 1, axis=0)
    donor, table = draw(donor_codes), {}
    for levels in ("coarse", "middle", "fine"):
        mixed = draw(np.stack([mix(a, b, levels) for a, b in zip(codes, donor_codes, strict=True)]))
        table[levels] = {
            f"{what}_{whom}": round(float(measure(judges, mixed, other).mean()), 3)
            for what, measure in (("outline", _overlap), ("colour", _colour_distance))
            for whom, other in (("to_donor", donor), ("to_host", host))
        }
    return table


def _copying(draw, judges, host, num_people):
    other = pictures("validation", num_people, 1, "aligned", first_picture=2)
    drawn = draw(wplus_codes(load_wplus_encoder(), other["pixels"]))
    # What the same readings make of renders that differ as much: the world's own wild pictures.
    wild = [pictures("validation", num_people, 1, "wild", first_picture=i)["pixels"] / np.float32(255) for i in (1, 3)]
    result = {}
    for index, (name, attribute) in enumerate((("turn", "yaw"), ("mouth", "mouth_open"))):
        for where, numbers, view, (one, two) in (
            ("", (0, 2), "aligned", (host, drawn)), ("_of_renders", (1, 3), "wild", wild)
        ):  # fmt: skip
            poses = [renderer.poses(other["person_id"], np.full(num_people, i, np.int32), view) for i in numbers]
            difference = getattr(poses[1], attribute) - getattr(poses[0], attribute)
            read = [_read_face(judges, x)[index] for x in (one, two)]
            result[name + where] = _slope(difference, read[1] - read[0])
        result[f"{name}_copied"] = result[name] / result[f"{name}_of_renders"]
    return {name: round(value, 3) for name, value in result.items()}


def _codes(num_people, picture):
    shown = pictures("validation", num_people, 1, "aligned", first_picture=picture)
    return wplus_codes(load_wplus_encoder(), shown["pixels"])


def _judged(judge, pixels):
    return in_batches(judge, pixels, batch_size=BATCH_SIZE)


def _overlap(judges, pixels, other):
    """Intersection over union of the heads."""
    one, two = (_judged(judges.face_mask, x) > 0.5 for x in (pixels, other))
    return (one & two).sum((1, 2)) / np.maximum((one | two).sum((1, 2)), 1)


def _colour_distance(judges, pixels, other):
    """Mean absolute difference of the heads' mean colours, in [0, 1]."""
    return np.abs(_head_colour(judges, pixels) - _head_colour(judges, other)).mean(-1)


def _head_colour(judges, pixels):
    mask = _judged(judges.face_mask, pixels) > 0.5
    factor = pixels.shape[1] // mask.shape[1]
    full = mask.repeat(factor, 1).repeat(factor, 2)[..., None]
    return (pixels * full).sum((1, 2)) / np.maximum(full.sum((1, 2)), 1)


def _read_face(judges, pixels):
    """How far the middle of the eyes is from the middle of the head, in its width: the turn; and how dark the mouth is."""
    points = in_batches(load_landmarks(), pixels, batch_size=BATCH_SIZE)[0]
    mask = _judged(judges.face_mask, pixels) > 0.5
    columns = (np.arange(mask.shape[2]) + 0.5) * pixels.shape[2] / mask.shape[2]
    across = mask.sum(1) > 0
    width = np.maximum(across.sum(1), 1) * pixels.shape[2] / mask.shape[2]
    middle = (across * columns).sum(1) / np.maximum(across.sum(1), 1)
    turn = (points[:, [LEFT_EYE, RIGHT_EYE], 0].mean(1) - middle) / width
    mouth = points[:, 3:].mean(1)
    rows, places = (np.clip(np.rint(mouth[:, axis]).astype(int), 2, pixels.shape[1] - 3) for axis in (1, 0))
    dark = [1 - pixels[i, rows[i] - 1 : rows[i] + 4, places[i] - 2 : places[i] + 3].mean() for i in range(len(pixels))]
    return turn, np.array(dark)


def _slope(x, y):
    """Of the line through the origin's mean: what y changes with x."""
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


if __name__ == "__main__":
    main()
