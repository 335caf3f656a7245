"""The report's values against other derivations, runs of every kind, and what a damaged run is told."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from builders import architecture, inputs, lively_model, run_here, tiny_config, vit
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.config.schema import PruneConfig
from fedskew.data.groups import age_band
from fedskew.learning.datasets import open_data, split_server
from fedskew.metrics import Predictions, classification_metrics
from fedskew.metrics.calibration import expected_calibration_error, reliability
from fedskew.metrics.groups import by_group, estimates
from fedskew.metrics.resampling import lesion_draws
from fedskew.model.modelfile import ABOUT as MODEL_ABOUT
from fedskew.pruning.step import prune_step
from fedskew.report.content import ABOUT, read_content
from fedskew.report.coverage import coverage_of
from fedskew.report.network import CHANNELS, HEADS, blocks_of, steps_of
from fedskew.report.page import write_report
from fedskew.report.traffic import traffic_of
from fedskew.runs.predictions import encode_predictions, read_predictions
from fedskew.runs.record import RoundLog, round_record

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "results" / "targets"
FIGURES = ["over-rounds", "recall", "confusion", "calibration", "groups", "size", "traffic", "network", "pruning-heads",
           "pruning-hidden", "scores", "signs", "coverage"]  # fmt: skip


def figures_in(page: str) -> list[str]:
    return re.findall(r'data-figure="([^"]+)"', page)


def drawn(count=120, classes=("mel", "nv", "df"), seed=4) -> Predictions:
    """Two images a lesion, three sites of unequal size, one class that only one site has."""
    generator = np.random.default_rng(seed)
    raw = generator.random((count, len(classes))).astype(np.float32)
    labels = np.repeat(generator.integers(0, len(classes), count // 2), 2)
    raw[np.arange(count), labels] += 0.4
    site = np.where(labels == 2, "north", np.where(np.arange(count) % 3 == 0, "south", "east"))
    names = np.array([f"i{i}" for i in range(count)])
    return Predictions(names, np.repeat(names[::2], 2), labels, classes, raw / raw.sum(1, keepdims=True), 3,
                       groups={"site": site})  # fmt: skip


@pytest.fixture(scope="module")
def page(finished_run, tmp_path_factory):
    return write_report(finished_run.path, tmp_path_factory.mktemp("page") / "report.html").read_text()


def test_an_interval_is_that_of_the_metric_on_every_draw_of_lesions_written_out():
    found, draws = drawn(), 40
    weights = lesion_draws(found.lesions, found.labels, draws=draws, seed=5)
    values = []
    for column in weights.T[1:].astype(int):
        chosen = np.repeat(np.arange(len(found.images)), column)
        values.append(
            classification_metrics(found.labels[chosen], found.probabilities[chosen], found.classes)["f1_macro"]
        )
    low, high = np.quantile(values, [0.025, 0.975])
    made = estimates(found, draws=draws, seed=5)["f1_macro"]
    whole = classification_metrics(found.labels, found.probabilities, found.classes)
    assert (made.value, made.low, made.high) == pytest.approx((whole["f1_macro"], low, high), abs=1e-9)


def test_a_group_is_what_its_images_are_alone():
    found = drawn()
    rows = {row.name: row for row in by_group(found, draws=20)}
    assert set(rows) == {"north", "south", "east"}
    assert sum(row.images for row in rows.values()) == len(found.images)
    south = found.groups["site"] == "south"
    alone = classification_metrics(found.labels[south], found.probabilities[south], found.classes)
    assert rows["south"].metrics["balanced_accuracy"].value == pytest.approx(alone["balanced_accuracy"], abs=1e-12)
    assert rows["south"].images == south.sum()
    assert rows["north"].classes == 1, "the mean is over one class, and is said to be"


def test_reliability_bins_add_up_to_the_calibration_error():
    found = drawn()
    bins = reliability(found.labels, found.probabilities)
    known = [one for one in bins if one.count]
    total = sum(one.count * abs(one.accuracy - one.confidence) for one in known) / len(found.labels)
    assert total == pytest.approx(expected_calibration_error(found.labels, found.probabilities), abs=1e-12)
    assert all(one.low < one.confidence <= one.high for one in known)


@pytest.mark.parametrize(("years", "band"), [(0, "under 30"), (29.9, "under 30"), (30, "30–49"), (69, "50–69"),
                                             (70, "70 and over"), (104, "70 and over"), (None, "unknown"),
                                             (-1, "unknown")])  # fmt: skip
def test_ages_become_bands(years, band):
    assert age_band(years) == band


def test_predictions_say_site_sex_and_band_of_each_test_image_and_nothing_finer(finished_run, generated):
    found = read_predictions(finished_run.path)
    data = open_data(tiny_config().data, 32)
    shown = [data.samples[i] for i in split_server(data, tiny_config().data).test]
    assert found.groups["site"].tolist() == [sample.site for sample in shown]
    assert found.groups["sex"].tolist() == [sample.sex or "unknown" for sample in shown]
    assert found.groups["age"].tolist() == [age_band(sample.age) for sample in shown]
    again = encode_predictions(found)
    assert again == encode_predictions(replace(found, groups=dict(reversed(found.groups.items()))))


@pytest.mark.parametrize("make", [architecture, vit])
@pytest.mark.parametrize("rule", ["share", "sign"])
def test_which_scores_went_is_what_the_plan_removed(make, rule):
    arch = make(classes=3)
    config = PruneConfig(rule=rule, share=0.4, min_heads=0, batch_size=8)
    done = prune_step(lively_model(arch), inputs(arch, 8)[0], config, stages=tuple(range(arch.stages)), seed=0,
                      judge=lambda _: 1.0)  # fmt: skip
    log = RoundLog(5, before=arch, step=done)
    record = json.loads(json.dumps(round_record(log, done.architecture, {"accuracy": None}, {})))
    (step,) = steps_of([record])
    for kind in ("attention", "mlp"):
        expected = [float(f"{done.plan.scores[key][unit]:.4g}") for key, gone in done.plan.remove.items()
                    if key.kind == kind for unit in gone if done.plan.scores[key][unit].isfinite()]  # fmt: skip
        assert sorted(step.removed[kind]) == pytest.approx(sorted(expected))
        units = sum(len(scores) for key, scores in done.plan.scores.items() if key.kind == kind)
        assert len(step.kept[kind]) + step.gone[kind] == units
    for block in blocks_of([record]):
        keys = {key.kind: key for key in arch.groups if (key.stage, key.block) == (block.stage, block.number)}
        assert block.left[HEADS] == [done.architecture.units[keys["attention"]]]
        assert block.left[CHANNELS] == [done.architecture.units[keys["mlp"]]]
        assert block.dense == {HEADS: arch.units[keys["attention"]], CHANNELS: arch.units[keys["mlp"]]}


def test_what_the_dense_model_would_have_sent_is_what_it_sent(finished_run, dense_run):
    pruned, dense = traffic_of(finished_run.records()), traffic_of(dense_run.records())
    assert pruned.total < dense.total
    assert list(pruned.dense) == pytest.approx(
        [a + b for a, b in zip(dense.sent, dense.received, strict=True)], rel=2e-3
    )
    assert dense.total_dense == dense.total


def test_every_figure_and_section_is_there_in_order(page):
    assert figures_in(page) == FIGURES
    places = [page.index(f'<section id="{name}"') for name in ("quality", "size", "pruning", "coverage", "again")]
    assert places == sorted(places)
    assert page.index("The data of 3 of 3 sites are in this model") < places[0], "before anything else is believed"


def test_the_page_says_what_the_record_says(page, finished_run):
    last = finished_run.records()[-1]
    assert f">{last['balanced_accuracy']:.3f}<" in page
    assert f"{last['parameters'] / 1e6:.3f} M" in page
    split = json.loads((finished_run.path / "split.json").read_text())
    assert split["split_hash"] in page
    assert not [image for image in split["ids"]["test"] if image in page], "no image is named"


def test_warnings_about_data_are_counted_and_not_told_as_they_name_images(copy):
    split = json.loads((copy / "split.json").read_text())
    (copy / "split.json").write_text(json.dumps(split | {"warnings": ["copies: IMG-SECRET-1 = IMG-SECRET-2"]}))
    page = write_report(copy).read_text()
    assert "The data gave 1 warning: split.json says which." in page
    assert "SECRET" not in page


def test_what_the_page_says_of_reproducing_it_does(page, finished_run, tmp_path):
    found = re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)
    commands, configuration = map(html.unescape, found)
    assert str(finished_run.path.parent) not in configuration, "no place of this machine"
    (tmp_path / "config.yaml").write_text(configuration)
    words = shlex.split(commands.splitlines()[0].replace("config.yaml", str(tmp_path / "config.yaml")))
    assert words[:2] == ["fedskew", "run"]
    done = CliRunner().invoke(app, ["simulate", *words[2:], "--output-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    again = tmp_path / f"{finished_run.path.name}-again" / "model.safetensors"
    assert again.read_bytes() == (finished_run.path / "model.safetensors").read_bytes()


def test_it_is_one_file_without_script_or_anything_from_outside(page):
    class Tags(HTMLParser):
        found: list = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.found.append((tag, dict(attrs)))

    Tags().feed(page)
    tags = Tags.found
    assert not {tag for tag, _ in tags} & {"script", "img", "iframe", "object", "embed", "form"}
    links = [attrs.get(key, "") for _, attrs in tags for key in ("href", "src", "xlink:href")]
    assert all(link.startswith(("#", "data:")) for link in links if link)
    assert "http://" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_same_run_is_the_same_page(finished_run, tmp_path, page):
    assert write_report(finished_run.path, tmp_path / "again.html").read_text() == page


def test_the_name_of_what_a_model_file_says_is_that_of_the_model_room():
    assert ABOUT == MODEL_ABOUT


@pytest.fixture
def copy(finished_run, tmp_path):
    return Path(shutil.copytree(finished_run.path, tmp_path / "run"))


def test_a_class_and_a_site_that_look_like_html_stay_text(copy):
    evil = "<script>alert(1)</script>$x$"
    found = read_predictions(copy)
    classes = (evil, *found.classes[1:])
    (copy / "predictions.npz").write_bytes(encode_predictions(replace(found, classes=classes)))
    text = (copy / "metrics.jsonl").read_text()
    text = text.replace(json.dumps(found.classes[0]), json.dumps(evil)).replace(
        '"partition-1"', json.dumps("<b>site</b>")
    )
    (copy / "metrics.jsonl").write_text(text)
    page = write_report(copy).read_text()
    assert "<script" not in page
    assert "<b>site" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x$" in page
    assert "&lt;b&gt;site&lt;/b&gt;" in page


def test_an_unfinished_run_without_evaluations_has_a_report(copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    bare = first | dict.fromkeys(("accuracy", "balanced_accuracy", "f1_macro", "auroc_macro", "recall"))
    (copy / "metrics.jsonl").write_text(json.dumps(bare) + "\n")
    (copy / "summary.json").unlink()
    page = write_report(copy).read_text()
    assert "unfinished, after round 0 of 2" in page
    assert "No round of this run was evaluated on the test set yet." in page
    assert "No site&#39;s data is in this model yet" in page


def test_after_a_round_without_evaluation_the_last_tested_model_is_shown_with_its_own_size(copy):
    records = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    later = records[-1] | {"round": 3, "accuracy": None, "balanced_accuracy": None, "parameters": 1000, "macs": 1000}
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(later) + "\n")
    (copy / "predictions.npz").unlink()  # as a run does
    content = read_content(copy)
    assert content.predictions is not None, "from the checkpoint"
    assert content.judged["round"] == 2
    page = write_report(copy).read_text()
    size = records[-1]["parameters"] / records[-1]["dense_parameters"]
    assert f"The model of round 2, with {100 * size:.0f}\u00a0% of" in page
    shutil.rmtree(copy / "checkpoints")
    shutil.rmtree(copy / "best")
    assert "is not in this folder (any more)" in write_report(copy).read_text()
    assert figures_in(write_report(copy).read_text()) == [
        name for name in FIGURES if name not in ("confusion", "calibration", "groups")
    ]


def test_runs_of_an_earlier_version_have_a_report_that_says_what_is_not_on_record(tmp_path):
    page = write_report(RECORDS / "pruned-s0", tmp_path / "r.html").read_text()
    assert "Whose data is in this model is not on record." in page
    assert {"confusion", "network", "pruning-heads"} <= set(figures_in(page))
    assert "There are no groups" in page


def test_the_best_round_instead_of_the_last(finished_run, tmp_path):
    best = next(record for record in reversed(finished_run.records()) if record["selection"]["best"])
    done = CliRunner().invoke(app, ["report", str(finished_run.path), "--best", "--out", str(tmp_path / "b.html")])
    assert done.exit_code == 0, done.output
    assert f"The model of round {best['round']}" in (tmp_path / "b.html").read_text()


def test_an_image_only_model_that_loses_whole_sublayers_has_a_report(generated, tmp_path):
    run = run_here(tiny_config(
        model={"image_only": True},
        prune={"criterion": "l1-norm", "rule": "share", "share": 1.0, "min_heads": 0},
        federation={"rounds": 1}, run={"output_dir": str(tmp_path)},
    ), 2)  # fmt: skip
    page = write_report(run.path).read_text()
    assert re.search(r"Blocks that were emptied: 0\.0 \(attention\)", page)
    assert set(FIGURES) - set(figures_in(page)) <= {"signs"}


def test_runs_are_compared_with_paired_intervals_and_coverage_of_each(finished_run, dense_run, tmp_path):
    done = CliRunner().invoke(
        app, ["report", str(dense_run.path), str(finished_run.path), "--out", str(tmp_path / "c.html")]
    )
    assert done.exit_code == 0, done.output
    page = (tmp_path / "c.html").read_text()
    assert figures_in(page) == ["accuracy", "differences", "tradeoff", "parameters", "traffic"]
    assert page.count("The data of 3 of 3 sites are in this model") == 2
    assert "no difference seen" in page


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.jsonl", b'{"round": 0}\n', "has no accuracy"),
        ("metrics.jsonl", b'{"round": 0, "acc\n', "line 1"),
        ("metrics.jsonl", b"[1]\n", "expected a JSON object"),
        ("metrics.jsonl", b"\xff\xfe\n", "is damaged"),
        ("metrics.jsonl", b"", "holds no finished round yet"),
        ("config.yaml", b"train: {learning: 3}\n", "unknown key train.learning"),
        ("summary.json", b"{", "summary.json is damaged"),
        ("split.json", b"[]", "split.json is damaged"),
        ("starts.jsonl", b"{}}\n", "starts.jsonl, line 1 is damaged"),
        ("predictions.npz", b"PK", "cannot be read as predictions"),
        ("model.safetensors", b"\x00" * 20, "model.safetensors is damaged"),
    ],
)
def test_a_damaged_run_is_one_line_that_names_the_file_and_leaves_nothing(copy, file, content, said):
    (copy / file).unlink()
    (copy / file).write_bytes(content)
    done = CliRunner().invoke(app, ["report", str(copy)])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (copy / "report.html").exists()


def test_a_folder_that_is_no_run_and_a_place_that_cannot_be_written_are_named(copy, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = CliRunner().invoke(app, ["report", str(empty)])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "is no run folder" in done.stderr
    done = CliRunner().invoke(app, ["report", str(copy), "--out", str(tmp_path / "nowhere" / "r.html")])
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr


def test_the_line_of_coverage_names_who_is_missing(copy):
    records = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    records[1]["participation"] |= {"partition-0": "late", "site-x": "missing"}
    records[2]["participation"] |= {"site-x": "refused"}
    records[1]["weights"].pop("partition-0")
    records[2]["failed"] |= {"site-x": "its answer is <b>too large</b>"}
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    found = coverage_of(copy)
    assert found.line == (
        "The data of 3 of 4 sites are in this model. Never in it: site-x. Not in every round: partition-0 (1 of 2 "
        "rounds)."
    )
    assert not found.is_whole
    shares = {row.name: row.share for row in found.sites}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["site-x"] == 0
    page = write_report(copy).read_text()
    assert "site-x, round 2, refused: its answer is &lt;b&gt;too large&lt;/b&gt;" in page
    assert page.count("Never in it: site-x.") == 2, "at the top, and where it is told in full"


def test_a_hundred_rounds_are_small_and_quick(copy):
    """The targets: 3 MB and 5 s on the command line; here without its start, and many blocks, scores and sites."""
    records = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    pruned = next(record for record in records if any("mlp_scores" in block for block in record["blocks"]))
    block = next(block for block in pruned["blocks"] if "mlp_scores" in block)
    generator, sites = np.random.default_rng(0), [f"hospital-{i:02d}" for i in range(30)]
    lines = []
    for number in range(101):
        left = {"heads_before": 12, "heads_after": max(1, 12 - number // 9), "hidden_before": 96, "hidden_after": 96}
        blocks = [block | left | {"stage": i // 6, "block": i % 6,
                                  "attention_scores": generator.normal(size=12).tolist(),
                                  "mlp_scores": generator.normal(size=96).tolist()} for i in range(24)]  # fmt: skip
        words = {
            site: str(word) for site, word in zip(sites, generator.choice(["in", "late", "missing"], 30), strict=True)
        }
        lines.append(pruned | {"round": number, "blocks": blocks, "participation": words, "weights": {}, "failed": {}})
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = read_predictions(copy)
    (copy / "predictions.npz").write_bytes(encode_predictions(replace(found, round_number=100)))
    taken = []
    for _ in range(2):  # the first also fills matplotlib's caches
        started = time.process_time()
        written = write_report(copy)
        taken.append(time.process_time() - started)
    assert min(taken) < 5
    assert 100_000 < written.stat().st_size < 3_000_000
    assert set(figures_in(written.read_text())) == set(FIGURES)
