"""report.html: what a run gave, in one file without links to others."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pidiff_jax.evaluation.bootstrap import Interval
from pidiff_jax.evaluation.charts import Point, line_chart
from pidiff_jax.evaluation.metrics_file import SCORES, write_atomically
from pidiff_jax.evaluation.pictures import png_bytes

_EXPLANATIONS = {
    "identity_similarity": "cosine between the drawn face and a photograph of the person, by an independent recogniser",
    "retrieval_top1": "the person is the nearest of all held-out people",
    "prompt_accuracy": "an independent classifier sees what the prompt asked for",
    "attention_in_face": "share of the identity attention inside the face; off: of attention spread evenly",
    "background_change": "mean change of the picture outside the face when the identity is switched on",
    "diversity": "mean difference between pictures of one person and prompt with different noise",
}
_TEMPLATE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #181c24; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 2px solid #181c24; padding-bottom: .2rem; }
.lead, .note { color: #5a6270; }
table { border-collapse: collapse; width: 100%; }
td:first-child { white-space: nowrap; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #e2e5ea; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td .interval { color: #5a6270; font-size: .88em; }
.samples { width: 100%; border: 1px solid #e2e5ea; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 1.2rem; }
pre { background: #f5f6f8; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.4; }
summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="lead">$lead</p>
$sections
</body>
</html>
""")


def write_report(
    path: Path,
    *,
    title: str,
    scores: Mapping[str, Mapping[str, Interval]],
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
        history: reports of the training, each with "step" and metrics by name; see `chart_groups` for what is drawn.
        config: of the run; anything that fits into JSON.
        parameter_table: which parameters are trained, as text.
        facts: of the run: `num_steps`, `seconds_training`, `versions`, `fingerprints`, and others.
    """
    image = base64.b64encode(png_bytes(samples)).decode()
    charts = "".join(f"<div>{line_chart(name, lines)}</div>" for name, lines in chart_groups(history).items())
    sections = [
        _section("Scores", _scores_table(scores) if scores else "<p>This run has no judges, so nothing is scored.</p>"),
        _section("Samples", f'<img class="samples" alt="Samples" src="data:image/png;base64,{image}">'),
        _section("Training", f'<div class="charts">{charts}</div>' if charts else "<p>No history was recorded.</p>"),
        _section("Details of the scores", _details_table(details)),
        _section("Parameters", f"<pre>{escape(parameter_table)}</pre>"),
        _section("Configuration", f"<pre>{escape(json.dumps(config, indent=2, default=str))}</pre>"),
        _section("Environment", _facts_table(facts)),
    ]
    lead = f"{facts['num_steps']:,} steps in {_duration(facts['seconds_training'])}"
    html = _TEMPLATE.substitute(title=escape(title), lead=escape(lead), sections="\n".join(sections))
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


def scores_text(scores: Mapping[str, Mapping[str, Interval]]) -> str:
    """A short table of the scores for the terminal."""
    lines = [f"{'':22}{'identity on':>24}{'identity off':>24}"]
    lines += [f"{name:22}{str(scores[name]['on']):>24}{str(scores[name]['off']):>24}" for name in SCORES]
    return "\n".join([*lines, "means with 95 % intervals over people"])


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _scores_table(scores: Mapping[str, Mapping[str, Interval]]) -> str:
    rows = "".join(
        f"<tr><td>{name.replace('_', ' ')}</td>{_cell(scores[name]['on'])}{_cell(scores[name]['off'])}"
        f'<td class="note">{_EXPLANATIONS[name]}</td></tr>'
        for name in SCORES
    )
    head = "<tr><th>score</th><th>identity on</th><th>identity off</th><th>meaning</th></tr>"
    note = '<p class="note">Means over held-out people and prompts, with 95 % bootstrap intervals over people.</p>'
    return f"<table>{head}{rows}</table>{note}"


def _details_table(details: Mapping[str, Interval]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td>{_cell(interval)}</tr>" for name, interval in details.items())
    return f"<table>{rows}</table>"


def _cell(interval: Interval) -> str:
    ends = f'<span class="interval">{interval.low:.3f} to {interval.high:.3f}</span>'
    return f'<td class="number"><b>{interval.mean:.3f}</b> {ends}</td>'


def _facts_table(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        for inner, leaf in value.items() if isinstance(value, Mapping) else [("", value)]:
            label = f"{name}: {inner}" if inner else name
            rows.append(
                f'<tr><td>{escape(label.replace("_", " "))}</td><td class="number">{escape(str(leaf))}</td></tr>'
            )
    return f"<table>{''.join(rows)}</table>"


def _duration(seconds: float | int) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
