"""What each knob of drawing does: curves of identity, prompt and background, as one picture and as JSON.

python benchmarks/knobs.py --workdir=runs/quickstart_long --output=knobs.png

Validation people of the embedded world, each with a prompt and noise of their own, the same for all settings. Similarity is to
another photograph of the person; prompts by the classifier of scenes; change outside the face against the drawing without it.
"""

import argparse
import functools
import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from pidiff_jax.arrays import in_batches
from pidiff_jax.evaluation import scores
from pidiff_jax.pipeline.pipeline import Pipeline
from pidiff_jax.pipeline.recipe import Job
from pidiff_jax.worlds.portraits.judges import HeldOutPortraits

BATCH_SIZE = 64
# Knob -> (values, what they set).
LEVELS = ("coarse", "middle", "fine")
KNOBS = {
    "identity_scale": [(v, {"identity_scale": v}) for v in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)],
    "identity_scale, normalised": [
        (v, {"identity_scale": v, "normalise_identity": True}) for v in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    ],
    "identity_start": [(v, {"identity_start": v}) for v in (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)],
    "scale of one level, others 1": [
        (f"{level} {v:g}", {"identity_scale": {level: v}}) for level in LEVELS for v in (0.0, 0.5)
    ],
    "guidance_scale": [(v, {"guidance_scale": v}) for v in (1.0, 1.5, 2.5, 4.0, 6.0)],
    "identity_guidance_scale (text 2.5)": [(v, {"identity_guidance_scale": v}) for v in (0.5, 1.0, 2.5, 4.0)],
    "sampler, 10 steps": [
        (name, {"sampler": name, "num_steps": 10})
        for name in ("ddim", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "unipc")
    ],
    "num_steps (dpmpp_2m)": [(v, {"sampler": "dpmpp_2m", "num_steps": v}) for v in (4, 6, 10, 20, 40)],
}


def main() -> None:
    """Writes the picture, and prints the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="run of the embedded world")
    parser.add_argument("--output", required=True, type=Path, help="PNG file; a JSON file is written beside it")
    parser.add_argument("--num_people", type=int, default=48)
    parser.add_argument("--num_steps", type=int, default=20)
    args = parser.parse_args()
    if args.output.exists() or not args.output.parent.is_dir():
        parser.error(f"expected --output to name a new file in a folder that is there, got {args.output}; correct it")
    pipeline = Pipeline.from_pretrained(args.workdir, batch_size=16)
    held_out = HeldOutPortraits("validation")
    people, prompts = held_out.people(args.num_people), held_out.prompts(24)
    which = np.arange(args.num_people) % 24
    jobs = [Job(prompts.texts[which[i]], None, i, ((None, code),)) for i, code in enumerate(people.wplus)]

    def draw(changes):
        own = {"num_steps": args.num_steps} | {name: value for name, value in changes.items() if value is not None}
        output = pipeline.draw(jobs, pipeline.settings(**own), show_progress=False)
        return output.pixels

    @functools.cache
    def without_identity(sampler, num_steps):
        return draw({"sampler": sampler, "num_steps": num_steps, "identity_scale": 0.0})

    judge = _judge(held_out, people, prompts.attributes[which])
    results = {}
    for knob, choices in KNOBS.items():
        results[knob] = []
        for value, changes in choices:
            without = without_identity(changes.get("sampler"), changes.get("num_steps"))
            results[knob].append({"value": value, **judge(draw(changes), without)})
            print(knob, results[knob][-1], flush=True)
    _plot(results, args.output)
    args.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _judge(held_out, people, attributes):
    judges = held_out.judges()
    run = functools.partial(in_batches, batch_size=BATCH_SIZE)
    gallery = run(judges.recogniser, people.gallery)

    def judge(pixels, without):
        mask = np.maximum(*(run(judges.face_mask, x) for x in (pixels, without)))
        return {
            "similarity": round(float(scores.identity_similarity(run(judges.recogniser, pixels), gallery).mean()), 3),
            "prompts": round(float(scores.prompt_accuracy(run(judges.scene, pixels), attributes).mean()), 3),
            "outside": round(float(scores.background_change(pixels, without, mask).mean()), 4),
        }

    return judge


def _plot(results, path):
    matplotlib.use("Agg")
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.4), sharey=True)
    for axis, (knob, rows) in zip(axes.flat, results.items(), strict=True):
        values = [row["value"] for row in rows]
        places = values if all(isinstance(v, int | float) for v in values) else range(len(values))
        for name, style in (("similarity", "o-"), ("prompts", "s--"), ("outside", "^:")):
            factor = 10 if name == "outside" else 1
            label = {"similarity": "similarity", "prompts": "prompt obeyed", "outside": "change outside the face x 10"}[
                name
            ]
            axis.plot(places, [factor * row[name] for row in rows], style, label=label, markersize=4)
        if places is not values:
            axis.set_xticks(list(places), values, rotation=35, ha="right", fontsize=8)
        axis.set_title(knob, fontsize=10)
        axis.set_ylim(-0.1, 1.05)
        axis.grid(alpha=0.25)
    axes[0, 0].legend(fontsize=8, loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
