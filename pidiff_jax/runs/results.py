"""What a run leaves for people and for programs: samples.png, report.html and, where somebody judges, metrics.json."""

import json
from pathlib import Path

import jax

from pidiff_jax.checkpoint.atomic_file import write_atomically
from pidiff_jax.evaluation.evaluator import Evaluator
from pidiff_jax.evaluation.metrics_file import write_metrics
from pidiff_jax.evaluation.report.page import scores_text, write_report
from pidiff_jax.evaluation.report.pictures import draw_samples, png_bytes
from pidiff_jax.runs.saved_run import SavedRun

RESULTS = ("samples.png", "report.html", "metrics.json")


def write_results(run: SavedRun, evaluator: Evaluator, folder: Path) -> None:
    """Draws and scores the run in all processes; process 0 writes the results and prints the scores."""
    evaluation, facts = evaluator.evaluate(run.params), dict(run.facts)
    if evaluation is None:
        samples, scores, details = evaluator.previewer(run.params)[0]["samples"], {}, {}
        facts["num_references"] = evaluator.settings.num_references
    else:
        samples, scores, details = draw_samples(evaluation.grid), evaluation.scores, evaluation.details
        facts["protocol"] = evaluator.settings.facts()
    if jax.process_index():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if scores:
        write_metrics(folder / "metrics.json", scores, details=details, **facts)
    write_atomically(folder / "samples.png", png_bytes(samples))
    write_report(
        folder / "report.html",
        title=f"PIDiff: {folder.name}",
        scores=scores,
        details=details,
        samples=samples,
        history=run.reports,
        config=json.loads(run.config.to_json_best_effort()),
        parameter_table=run.parameter_table,
        facts=facts,
    )
    if scores:
        print(scores_text(scores))
    for name in RESULTS:
        if (folder / name).is_file():
            print(folder / name)
