"""Scoring images: their views, chunks and halves, and whether two halves agree on the signs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import architecture, inputs, lively_model, tiny_config
from scipy import stats
from typer.testing import CliRunner

import fedskew.pruning.score as score_module
from fedskew.cli.main import app
from fedskew.learning.datasets import batches, divide_open, open_data, scoring_images, split_server
from fedskew.learning.initial import initial_model
from fedskew.learning.server_data import ServerData
from fedskew.methods.base import Model
from fedskew.methods.skewness import SkewnessPruning
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.model.modelfile import load_model
from fedskew.pruning.agreement import SignTable, by_stage_and_kind
from fedskew.pruning.observe import observe
from fedskew.pruning.score import SublayerScores, few_value_warnings, score_units, scoring_chunks, sign_tables, view
from fedskew.pruning.units import bundles
from fedskew.runs.record import sign_rows

STAGES = (0, 1, 2, 3)


def settings(**values):
    return replace(tiny_config().prune, **values)


def units_of(model):
    return bundles(model.architecture, "ratio")


def norms_of(model, images, **options):
    """Norms [images, windows, positions, units] and what of them lies inside the picture, of every sublayer."""
    found = {}
    observe(model, images, lambda seen: found.update({seen.key: (seen.norms.numpy(), seen.valid.numpy())}),
            units_of(model), **options)  # fmt: skip
    return found


def all_views(images, views):
    """The symmetries of the square, written with NumPy."""
    array = images.numpy()
    sides = [array, array[..., ::-1], array[..., ::-1, :], array[..., ::-1, ::-1]]
    turned = [side.swapaxes(-1, -2) for side in sides]
    return [torch.from_numpy(np.ascontiguousarray(side)) for side in (sides + turned)[:views]]


@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_views_are_symmetries_of_the_square_and_each_number_of_them_is_closed(views):
    picture = torch.arange(16).view(1, 4, 4)
    found = [view(picture, number) for number in range(views)]
    assert torch.equal(found[0], picture)
    texts = {str(image.tolist()) for image in found}
    assert len(texts) == views, "all different"
    assert {str(view(image, number).tolist()) for image in found for number in range(views)} == texts, "closed"
    if views == 8:
        turned = {str(torch.rot90(picture, turn, (1, 2)).tolist()) for turn in range(4)}
        assert turned < texts, "quarter turns are among them"
    rows_stay_rows = all(image[0, 0].sort().values.tolist() in picture[0].tolist() for image in found)
    assert rows_stay_rows == (views <= 4), "the first four keep the axes of a squashed picture"


@pytest.mark.parametrize("views", [1, 8])
@pytest.mark.parametrize("images", [1, 7])
def test_every_view_of_every_image_is_scored_once_all_in_one_half(monkeypatch, views, images):
    monkeypatch.setattr(score_module, "PIXELS_AT_ONCE", 2 * 64)
    pictures = torch.rand(images, 3, 8, 8)
    pictures[:, 0, 0, 0] = torch.arange(images)
    places = {0: set(), 1: set()}
    count = 0
    for half, chunk, _ in scoring_chunks(pictures, views):
        assert 1 <= len(chunk) <= 2, "never more pixels at once than allowed"
        corners = chunk[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]]  # a view moves a corner to a corner
        places[half] |= {int(value) for value in corners.flatten().tolist() if value >= 1 or images == 1}
        count += len(chunk)
    assert count == images * views
    assert not places[0] & places[1], "disjoint halves"
    assert images == 1 or (places[0], places[1]) == ({2, 4, 6}, {1, 3, 5})


@pytest.mark.parametrize("reading", ["pool", "mean", "per-window"])
@pytest.mark.parametrize("image_size", [64, 40], ids=["whole-windows", "padded-windows"])
def test_scores_are_those_of_all_views_together_not_a_mean_of_scores(monkeypatch, reading, image_size):
    arch = architecture(image_size=image_size, stages=2)
    model, (images, _) = lively_model(arch), inputs(arch, 5)
    monkeypatch.setattr(score_module, "PIXELS_AT_ONCE", 2 * image_size**2)  # chunks of two images
    passes = []
    handle = model.encoder.patch_embed.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    found = score_units(model, images, settings(reading=reading, views=8), units_of(model), seed=0)
    handle.remove()
    assert sum(passes) == 5 * 8, "one pass a view, for scores and halves together"
    for key, (norms, valid) in norms_of(model, torch.cat(all_views(images, 8))).items():
        if reading == "pool":
            expected, values = stats.skew(norms[:, valid], axis=(0, 1)), norms[:, valid][..., 0].size
        elif reading == "mean":
            total = (norms * valid[..., None]).sum((0, 1), dtype=np.float64)
            place = valid.any(0)
            expected = stats.skew(total[place] / (valid.sum(0)[place, None] * len(norms)), axis=0)
            values = place.sum()
        else:
            each = [stats.skew(norms[:, w, valid[w]].astype(float), axis=1) for w in range(len(valid))]
            expected, values = np.nanmean(each, axis=(0, 1)), valid.sum(1).min()
        np.testing.assert_allclose(found[key].scores.numpy(), expected, atol=2e-4, err_msg=str(key))
        assert found[key].values == values


@pytest.mark.parametrize("reading", ["pool", "mean", "per-window", "first"])
def test_signs_are_compared_between_the_images_of_even_and_odd_number(reading):
    arch = architecture(stages=2)
    model, (images, _) = lively_model(arch), inputs(arch, 5)
    config = settings(reading=reading, views=2)
    found = score_units(model, images, config, units_of(model), seed=0)
    parts = [score_units(model, images[half::2], config, units_of(model), seed=0) for half in range(2)]
    units = 0
    for key, sublayer in found.items():
        first, second = (part[key].scores.numpy() > 0 for part in parts)
        assert sublayer.signs.both == (first & second).sum()
        assert sublayer.signs.first == (first & ~second).sum()
        assert sublayer.signs.second == (~first & second).sum()
        units += sublayer.signs.units
    tables = sign_tables(found)
    assert list(tables) == [(0, ATTENTION), (0, MLP), (1, ATTENTION), (1, MLP)]
    assert sum(table.units for table in tables.values()) == units == sum(len(s.scores) for s in found.values())
    assert any(table.first + table.second for table in tables.values()), "halves of two images do not always agree"


def test_the_table_of_signs_follows_cohen():
    """The textbook example: 20 and 15 agreed of 50, κ = 0.4."""
    table = SignTable(20, 5, 10, 15)
    assert (table.units, table.share, table.chance) == (50, 0.7, 0.5)
    assert table.kappa == pytest.approx(0.4)
    assert SignTable(0, 0, 0, 7).kappa is None, "where all goes nothing is told apart"
    first, second = torch.tensor([1.0, 1, -1, 0, torch.nan, 2]), torch.tensor([2.0, -1, 1, -1, 0, 3])
    assert SignTable.of(first, second) == SignTable(2, 1, 1, 2), "0 and NaN are not kept"


def test_tables_add_up_by_stage_and_kind():
    keys = [SublayerKey(1, 0, MLP), SublayerKey(1, 1, MLP), SublayerKey(0, 0, ATTENTION)]
    found = by_stage_and_kind(
        dict(zip(keys, [SignTable(1, 2, 3, 4), SignTable(10, 20, 30, 40), SignTable(5)], strict=True))
    )
    assert found == {(0, ATTENTION): SignTable(5), (1, MLP): SignTable(11, 22, 33, 44)}


@pytest.mark.parametrize("method", ["l1-norm", "random"])
def test_scores_that_do_not_come_from_images_have_no_agreement(dense, method):
    _, model, images, _ = dense
    found = score_units(model, images, settings(criterion=method), units_of(model), seed=0)
    assert all(sublayer.signs is None and sublayer.values is None for sublayer in found.values())
    assert few_value_warnings(found, "mean") == []
    matched = score_units(
        model, images, settings(criterion=method, rule="match", reading="pool"), units_of(model), seed=0
    )
    plain = score_units(model, images, settings(reading="pool"), units_of(model), seed=0)
    for key, sublayer in matched.items():
        assert torch.equal(sublayer.scores, found[key].scores)
        assert torch.equal(sublayer.reference, plain[key].scores)
        assert sublayer.signs == plain[key].signs, "the rule `match` goes by the signs of skewness"


def test_the_reversed_criterion_agrees_as_much_as_skewness(dense):
    _, model, images, _ = dense
    plain, reverse = (score_units(model, images, settings(criterion=method), units_of(model), seed=0)
                      for method in ("skewness", "skewness-reversed"))  # fmt: skip
    for key, sublayer in plain.items():
        assert torch.equal(sublayer.scores, -reverse[key].scores)
        assert reverse[key].signs.both == sublayer.signs.neither


def test_a_single_image_has_no_halves(dense):
    _, model, images, _ = dense
    found = score_units(model, images[:1], settings(reading="pool"), units_of(model), seed=0)
    assert all(sublayer.signs is None for sublayer in found.values())
    assert all(sublayer.scores.isfinite().all() for sublayer in found.values())


@pytest.mark.parametrize(("reading", "values"), [("mean", 4), ("first", 4), ("per-window", 4), ("pool", 0)])
def test_a_skewness_of_few_values_is_warned_of(dense, reading, values):
    arch, model, images, _ = dense
    assert [arch.spec.resolution(stage) for stage in STAGES] == [16, 8, 4, 2], "one window of 2 × 2 in the last stage"
    found = score_units(model, images.repeat(2, 1, 1, 1), settings(reading=reading), units_of(model), seed=0)
    lines = few_value_warnings(found, reading)
    if not values:
        assert lines == [], "four images of 2 × 2 tokens are 16 values"
        return
    (line,) = lines
    assert all(word in line for word in ("stage 3", f"prune.reading={reading}", "4 values", "prune.reading=pool"))


def test_a_pool_of_few_values_asks_for_more_images(dense):
    _, model, images, _ = dense
    (line,) = few_value_warnings(score_units(model, images, settings(reading="pool"), units_of(model), seed=0), "pool")
    assert all(word in line for word in ("stage 3", "8 values", "prune.batch-size"))


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        ("pool", "its sign is mostly chance; raise prune.batch-size"),
        ("mean", "its sign is mostly chance; set prune.reading=pool, or a larger model.image-size"),
        ("per-window", "each is coarse, whatever their mean; set prune.reading=pool, or a larger model.image-size"),
    ],
)
def test_the_warning_is_one_line_a_stage_with_its_fewest_values(reading, why):
    seen = {(3, 0): 12, (1, 0): 15, (1, 1): 9, (0, 0): 16, (2, 0): None}
    scored = {
        SublayerKey(*place, MLP): SublayerScores(torch.zeros(1), None, None, values) for place, values in seen.items()
    }
    assert few_value_warnings(scored, reading) == [
        f"stage {stage}: prune.reading={reading} takes each score over {values} values, fewer than 16: {why}"
        for stage, values in ((1, 9), (3, 12))
    ]


def test_the_agreement_is_recorded_of_every_pruning_round_ready_for_json(finished_run):
    before, *pruned = finished_run.records()
    assert before["sign_agreement"] == [], "nothing was pruned before round 1"
    for record in pruned:
        scored = {}
        for row in record["blocks"]:
            for kind in (ATTENTION, MLP):
                if f"{kind}_scores" in row:
                    place = (row["stage"], kind)
                    scored[place] = scored.get(place, 0) + len(row[f"{kind}_scores"])
        rows = {(row["stage"], row["kind"]): row for row in record["sign_agreement"]}
        assert {place: row["units"] for place, row in rows.items()} == scored
        assert all(0 <= row["chance"] <= 1 and 0 <= row["share"] <= 1 for row in rows.values())
    assert len(pruned[-1]["sign_agreement"]) == 4


def test_a_row_of_the_record_has_the_figures_of_its_table():
    rows = sign_rows({(2, MLP): SignTable(20, 5, 10, 15), (3, ATTENTION): SignTable(8)})
    assert rows == [
        {"stage": 2, "kind": MLP, "units": 50, "share": 0.7, "chance": 0.5, "kappa": 0.4},
        {"stage": 3, "kind": ATTENTION, "units": 8, "share": 1.0, "chance": 1.0, "kappa": None},
    ]


def test_the_server_warns_once_a_run_of_few_values(generated, caplog):
    config = tiny_config(prune={"reading": "first"}, model={"name": "swin_mini_patch4_window4_64", "image_size": 24})
    data = open_data(config.data, 24)
    server = ServerData(config, data, split_server(data, config.data))
    state, arch = initial_model(config)
    assert [arch.spec.window(stage) for stage in range(3)] == [4, 3, 2]
    method = SkewnessPruning(config)
    for number in (1, 2, 3, 4):
        method.advance(Model(arch, state), number, server)
    told = [entry.getMessage() for entry in caplog.records if "takes each score" in entry.getMessage()]
    assert [line.partition(":")[0] for line in told] == ["stage 1", "stage 2"], "9 and 4 values; once, not in each step"


def call_plan(run, place, *settings_):
    words = [word for setting in settings_ for word in ("--set", setting)]
    result = CliRunner().invoke(app, ["plan", str(run.path), "--data", str(place), *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_plan_shows_how_far_the_signs_agree(finished_run, generated):
    shown = call_plan(finished_run, generated, "prune.reading=pool")
    assert "Signs by 8 images against 8 others, views of each: 1" in shown
    assert all(word in shown for word in ("same sign", "by chance", "κ"))
    assert "warning" not in shown
    model = load_model(finished_run.path / "model.safetensors")
    data = open_data(tiny_config().data, 32)
    training, _ = divide_open(data, split_server(data, tiny_config().data), tiny_config().data)
    images = next(iter(batches(data, scoring_images(training, 16, 0), model.architecture, batch_size=16))).images
    tables = sign_tables(score_units(model, images, settings(reading="pool"), units_of(model), seed=0))
    for (stage, kind), table in tables.items():
        cells = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines() if kind in line]
        assert any(row[1:4] == [str(stage), kind, str(table.units)] and row[4] == f"{table.share:.1%}" for row in cells)


def test_plan_warns_of_few_values_and_says_why_there_is_no_agreement(finished_run, generated):
    assert "warning" not in call_plan(finished_run, generated, "prune.reading=mean"), "16 values in windows of 4"
    few = call_plan(finished_run, generated, "prune.reading=pool", "prune.batch-size=1")
    assert "signs: not compared" in few
    weights = call_plan(finished_run, generated, "prune.criterion=l1-norm", "prune.rule=share")
    assert "signs: not compared" in weights
    assert "Signs by" in call_plan(finished_run, generated, "prune.order=block", "prune.views=2")
