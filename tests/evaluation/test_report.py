"""The report is one self-contained file; metrics.json has the promised schema; pictures show what they should."""

import json
import math
import os
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from pidiff_jax.checkpoint.atomic_file import write_atomically
from pidiff_jax.evaluation.metrics_file import SCORES, write_metrics
from pidiff_jax.evaluation.report.charts import line_chart
from pidiff_jax.evaluation.report.heat_map import colour_bar, heat_maps
from pidiff_jax.evaluation.report.labelled_grid import label_font, labelled_grid, wrap_text
from pidiff_jax.evaluation.report.page import chart_groups, detail_meaning, scores_text, write_report
from pidiff_jax.evaluation.report.pictures import draw_samples, png_bytes, save_png
from tests.evaluation import tiny_evaluation as tiny

FACTS = {
    "num_steps": 400,
    "seconds_training": 250.123,
    "versions": {"jax": "0.10.2"},
    "fingerprints": {"unet": "sha256:0123"},
    "protocol": {
        "split": "test", "num_people": 10, "num_prompts": 3, "num_references": 3, "num_diversity_people": 8, "num_seeds": 4,
        "identity_scale": 1.0, "identity_start": 0.1, "guidance_scale": 2.5, "sampling_steps": 20, "seed": 0,
    },
}  # fmt: skip
HISTORY = [
    {"step": 100, "loss": 0.5, "loss/denoising": 0.4, "grad_norm/identity": 1.0},
    {"step": 200, "loss": 0.3, "loss/denoising": 0.2, "validation/loss": 0.35, "validation/identity_similarity": 0.2},
]


@pytest.fixture(scope="module")
def evaluation():
    return tiny.evaluate()


@pytest.fixture
def html(evaluation, tmp_path):
    write_report(
        tmp_path / "report.html",
        title="A <tiny> run",
        scores=evaluation.scores,
        details=evaluation.details,
        samples=draw_samples(evaluation.grid, cell_px=32),
        history=HISTORY,
        config={"learning_rate": 0.123, "name": "</pre><script>"},
        parameter_table="unet/attn2/to_k_id  trained",
        facts=FACTS,
    )
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_report_needs_no_other_file(html):
    class Links(HTMLParser):
        found: list[str] = []

        def handle_starttag(self, tag, attrs):
            assert tag not in ("script", "link", "iframe")
            self.found += [value for name, value in attrs if name in ("src", "href")]

    links = Links()
    links.feed(html)
    assert links.found and all(link.startswith("data:image/png;base64,") for link in links.found)
    assert "url(" not in html.replace("url(#", "") and "@import" not in html  # charts refer to their own parts
    assert "://" not in html.replace("http://www.w3.org", "")  # "http" alone may stand in a picture's base64


def test_the_report_holds_everything_and_escapes_it(html):
    for expected in (
        "A &lt;tiny&gt; run",
        "0.123",
        "to_k_id",
        "0.10.2",
        "sha256:0123",
        "400 steps",
        "attention in face",
    ):
        assert expected in html
    assert "<script>" not in html
    assert html.count("<svg") == len(chart_groups(HISTORY)) == 3


def test_the_report_says_what_was_scored_and_what_every_row_means(html, evaluation):
    assert (
        "10 people and 3 prompts of the test split; diversity over 8 people x 4 seeds; identity scale 1, "
        "from 10% of the steps on; guidance 2.5, 20 steps; W+ codes from the mean of 3 photographs of each person"
        in html
    )
    assert "250</td>" in html and "250.123" not in html
    assert "has no width" in html
    assert all(detail_meaning(name) in html and detail_meaning(name) for name in evaluation.details)
    assert "sees the wall that the prompt asked for; identity off" in html


def test_a_run_that_nobody_judged_has_a_report_without_scores(evaluation, tmp_path):
    facts = {name: value for name, value in FACTS.items() if name != "protocol"}
    write_report(
        tmp_path / "report.html",
        title="Photographs",
        scores={},
        details={},
        samples=draw_samples(evaluation.grid, cell_px=32),
        history=[],
        config={},
        parameter_table="",
        facts=facts,
    )
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "nothing is scored" in html and "people" not in html.split("<h2>Training")[0].split("<body>")[1]


def test_charts_are_xml_and_join_training_with_validation():
    groups = chart_groups(HISTORY)
    assert groups["loss"] == {"training": [(100, 0.5), (200, 0.3)], "validation": [(200, 0.35)]}
    assert set(groups) == {"loss", "loss: denoising", "identity similarity"}
    for title, lines in groups.items():
        ElementTree.fromstring(line_chart(title, lines))


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [0.0, 0.0], [-1e-6, 1e-6], [1.0, math.nan, 1e6]])
def test_charts_take_any_numbers(values):
    chart = ElementTree.fromstring(line_chart("a & b", {"x": list(enumerate(values))}))
    assert "a & b" in "".join(chart.itertext())


def test_a_chart_without_finite_points_is_refused():
    with pytest.raises(ValueError, match="at least one finite point"):
        line_chart("loss", {"training": [(1, math.nan)]})


def test_metrics_have_the_promised_schema(evaluation, tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(path, evaluation.scores, details=evaluation.details, **FACTS)
    metrics = json.loads(path.read_text(encoding="utf-8"))
    for name in SCORES:
        for key in ("on", "off"):
            low, mean, high = (metrics[name][key][part] for part in ("low", "mean", "high"))
            assert low - 1e-9 <= mean <= high + 1e-9
    assert metrics["num_steps"] == 400 and metrics["seconds_training"] == 250.123
    assert metrics["protocol"] == FACTS["protocol"]
    assert metrics["versions"] == {"jax": "0.10.2"} and metrics["fingerprints"] == {"unet": "sha256:0123"}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_metrics_without_a_score_are_refused(evaluation, tmp_path):
    incomplete = {name: pair for name, pair in evaluation.scores.items() if name != "diversity"}
    with pytest.raises(ValueError, match="diversity"):
        write_metrics(tmp_path / "metrics.json", incomplete, **FACTS)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_atomically(path, b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_the_table_for_the_terminal_has_every_score(evaluation):
    text = scores_text(evaluation.scores)
    assert all(name in text for name in SCORES) and max(map(len, text.splitlines())) <= 80


def test_samples_have_a_row_per_person_and_their_pictures(evaluation):
    picture = draw_samples(evaluation.grid, cell_px=40)
    assert picture.dtype == np.uint8 and picture.shape[0] > 4 * 40 and picture.shape[1] > 6 * 40
    blue = (picture[..., 2] > 100) & (picture[..., 0] < 30) & (picture[..., 1] < 30)
    assert blue.sum() > 4 * 2 * 40 * 15  # the second prompt's background, on and off
    assert png_bytes(picture).startswith(b"\x89PNG")


GREY = np.full((2, 64, 64, 3), 0.5, np.float32)


def test_heat_is_brightest_where_attention_is_and_has_one_scale_for_all_maps():
    attention = np.full((2, 8, 8), 1.0, np.float32)
    attention[0, :4, :4], attention[1, :4, :4] = 40.0, 4.0
    heat, top = heat_maps(GREY, attention)
    brightness = heat.sum(-1)
    assert brightness[0, 8, 8] == pytest.approx(brightness.max(), rel=0.05)
    assert brightness[1, 8, 8] < brightness[0, 8, 8] - 0.3
    assert top == pytest.approx(40.0 / attention[0].mean(), rel=0.05)  # of attention that is spread evenly
    np.testing.assert_allclose(colour_bar(1, 64)[0, -1], heat[0, 8, 8], atol=0.05)


def test_heat_has_no_squares_of_a_coarse_map():
    attention = np.kron(np.eye(4, dtype=np.float32), np.ones((4, 4), np.float32))[None]
    heat, _ = heat_maps(GREY[:1], attention)
    assert np.abs(np.diff(heat, axis=1)).max() < 0.2 < np.ptp(heat)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_attention_leaves_the_picture_in_grey_and_even_attention_is_no_peak(value):
    pixels = np.random.default_rng(0).random((1, 16, 16, 3)).astype(np.float32)
    heat, top = heat_maps(pixels, np.full((1, 4, 4), value, np.float32))
    assert top == 2.0
    expected = np.repeat(pixels.mean(-1, keepdims=True), 3, -1)
    assert np.allclose(heat, expected, atol=1e-6) == (value == 0.0)
    assert heat.mean() < colour_bar(1, 16)[0, -1].mean() - 0.2


@pytest.mark.parametrize(
    ("pixels", "file", "expected"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "a.png", r"one picture \(h, w, 3\), got \(2, 4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), "a.png", "floating-point pixels in .*, got uint8"),
        (np.full((4, 4, 3), np.nan, np.float32), "a.png", "finite floating-point"),
        (np.zeros((4, 4, 3), np.float32), "none/a.png", "expected a folder at .*none, found none"),
    ],
)
def test_what_is_not_one_picture_for_a_folder_is_not_saved(pixels, file, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        save_png(tmp_path / file, pixels)
    assert list(tmp_path.iterdir()) == []


def test_a_grid_has_each_cell_in_its_place_and_room_for_every_label():
    colours = [[np.full((8, 8, 3), level, np.float32) for level in row] for row in ((0.2, 0.4), (0.6, 0.8))]
    rows, columns = ["a very long name of a row", "b"], ["pictures/of_nobody/" + "x" * 80, "second"]
    picture = labelled_grid(
        colours, rows, columns, title="t" * 200, insets=[[None, colours[0][0]], [None, None]], cell_px=60
    )
    pixels = np.asarray(picture)
    flat = [np.argwhere((pixels == round(level * 255)).all(-1)) for level in (0.4, 0.6, 0.8)]
    assert [len(places) >= 60 * 60 - 24 * 24 for places in flat] == [True] * 3
    right, below, corner = (places.min(0) for places in flat)
    assert corner.tolist() == [below[0], right[1]] and below[0] > right[0] and below[1] < right[1]
    inset = np.argwhere((pixels == round(0.2 * 255)).all(-1))
    assert inset.max(0).tolist() == [right[0] + 59, right[1] + 59]  # the lower right corner of its cell
    border = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3)])
    assert (border == 255).all()


def test_long_words_are_broken_and_every_letter_is_drawn():
    font = label_font(15)
    lines = wrap_text("runs/" + "x" * 60 + " of Müller", font, 100)
    assert "".join(lines).replace(" ", "") == "runs/" + "x" * 60 + "ofMüller"
    assert all(font.getlength(line) <= 100 for line in lines) and wrap_text("", font, 100) == [""]
    assert font.getmask("ü").getbbox() and bytes(font.getmask("ü")) != bytes(font.getmask("\U0010ffff"))
