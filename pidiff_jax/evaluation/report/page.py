"""report.html: what a run gave, in one file without links to others."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8

from pidiff_jax.checkpoint.atomic_file import write_atomically
from pidiff_jax.evaluation.bootstrap import Interval
from pidiff_jax.evaluation.metrics_file import SCORES
from pidiff_jax.evaluation.on_off import OnOff
from pidiff_jax.evaluation.report.charts import Point, line_chart
from pidiff_jax.evaluation.report.pictures import png_bytes

_EXPLANATIONS = {
    "identity_similarity": "cosine between the drawn face and a photograph of the person, by an independent recogniser",
    "retrieval_top1": "the person is the nearest of all held-out people",
    "prompt_accuracy": "an independent classifier sees what the prompt asked for",
    "attention_in_face": "share of the identity attention inside the face; off: of attention spread evenly",
    "background_change": "mean change of the picture outside the face when the identity is switched on",
    "diversity": "mean difference between pictures of one person and prompt with different noise",
}
_PAIRED = "identity on minus off, person by person"
_DIVERSITY = "like diversity, between embeddings of an independent recogniser: (1 - cosine) / 2; identity "
_DETAILS = {
    "identity_similarity/photographs": "two photographs of the same person: what a picture can reach at best",
    "identity_similarity/change": _PAIRED,
    "prompt_accuracy/change": _PAIRED,
    "embedding_diversity/on": _DIVERSITY + "on",
    "embedding_diversity/off": _DIVERSITY + "off",
}


def write_report(
    path: Path,
    *,
    title: str,
    scores: Mapping[str, OnOff[Interval]],
    details: Mapping[str, Interval],
    samples: UInt8[np.ndarray, "h w 3"],
    history: Sequence[Mapping[str, float | int]],
    config: Mapping[str, Any],
    parameter_table: str,
    facts: Mapping[str, Any],
) -> None:
    """Writes the report as one HTML file.

    Args:
        path: of the file; an older report there is replaced in one piece.
        title: heading.
        scores, details: of `Evaluation`; empty where nobody judged.
        samples: of `draw_samples`.
        history: reports of the run, each with "step" and metrics by name; see `chart_groups` for what is drawn.
        config: of the run; anything that fits into JSON.
        parameter_table: which parameters are trained, as text.
        facts: of the run: `num_steps`, `seconds_training`, `versions`, `fingerprints`, where it was scored
            `protocol` (see `protocol_text`), and others.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = templates.get_template("report.html.j2").render(
        title=title,
        duration=_duration(facts["seconds_training"]),
        scores=scores,
        explanations=_EXPLANATIONS,
        protocol=protocol_text(facts["protocol"]) if scores and "protocol" in facts else "",
        details=[(name, detail_meaning(name), interval) for name, interval in details.items()],
        samples=base64.b64encode(png_bytes(samples)).decode(),
        charts=[line_chart(name, lines) for name, lines in chart_groups(history).items()],
        config=json.dumps(config, indent=2, default=str),
        parameter_table=parameter_table,
        facts={name: round(x) if name.startswith("seconds") else x for name, x in facts.items()},
    )
    write_atomically(path, html.encode())


def chart_groups(history: Sequence[Mapping[str, float | int]]) -> dict[str, dict[str, list[Point]]]:
    """Chart title -> line name -> points: losses in training beside validation, and all other validation metrics."""
    groups: dict[str, dict[str, list[Point]]] = {}
    for entry in history:
        for name, value in entry.items():
            rest = name.removeprefix("validation/")
            validated = rest != name
            if rest == "loss" or rest.startswith("loss/"):
                title, line = rest.replace("loss/", "loss: "), "validation" if validated else "training"
            elif validated:
                title, line = rest.replace("_", " "), "validation"
            else:
                continue
            groups.setdefault(title, {}).setdefault(line, []).append((entry["step"], value))
    return groups


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """What was scored, in one line.

    protocol: as in metrics.json: split, num_people, num_prompts, num_references, num_diversity_people, num_seeds,
        identity_scale, identity_start, guidance_scale, sampling_steps, seed.
    """
    p = protocol
    photographs = "1 photograph" if p["num_references"] == 1 else f"the mean of {p['num_references']} photographs"
    return (
        f"{p['num_people']} people and {p['num_prompts']} prompts of the {p['split']} split; diversity over "
        f"{p['num_diversity_people']} people x {p['num_seeds']} seeds; identity scale {p['identity_scale']:g}, "
        f"from {p['identity_start']:.0%} of the steps on; guidance {p['guidance_scale']:g}, {p['sampling_steps']} steps; "
        f"W+ codes from {photographs} of each person"
    )


def detail_meaning(name: str) -> str:
    """What a row of the details says; empty for a name that isn't known here."""
    if name in _DETAILS:
        return _DETAILS[name]
    score, *rest = name.split("/")
    if score == "prompt_accuracy" and len(rest) == 2:
        return f"the classifier sees the {rest[0]} that the prompt asked for; identity {rest[1]}"
    return ""


def scores_text(scores: Mapping[str, OnOff[Interval]]) -> str:
    """A short table of the scores for the terminal."""
    lines = [f"{'':22}{'identity on':>24}{'identity off':>24}"]
    lines += [f"{name:22}{str(scores[name].on):>24}{str(scores[name].off):>24}" for name in SCORES]
    return "\n".join([*lines, "means with 95 % intervals over people"])


def _duration(seconds: float | int) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
