"""Training in one place: `fedskew train` is one plain training, `fedskew prune` is Algorithm 1, and both are runs."""

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from builders import MICRO, run_here, tiny_config
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from fedskew.apps import simulate_config
from fedskew.cli.main import app
from fedskew.config import ConfigError, load_config
from fedskew.config.central import algorithm_1
from fedskew.config.load import from_mapping
from fedskew.config.schema import MetadataColumn
from fedskew.data.samples import DataError
from fedskew.learning.datasets import open_data
from fedskew.learning.initial import initial_model
from fedskew.learning.local import local_seed, training_batches
from fedskew.learning.optimiser import learning_rate, parameter_groups
from fedskew.model.catalogue import dense_architecture, model_settings
from fedskew.model.fusion import build
from fedskew.model.modelfile import load_model, read_about
from fedskew.pruning.schedule import stages_to_prune
from fedskew.runs.central import Asked, check_labels, pruning_config, training_config
from fedskew.runs.resume import open_checkpoint
from fedskew.runs.starts import read_split

TINY = (
    f"model.name={MICRO} data.source=generated data.generated-images=160 data.open=0.2 train.batch-size=16 "
    "train.threads=1 run.threads=1 prune.batch-size=16 run.keep-checkpoints=9"
)


def asked(tmp_path, more="", **given):
    return Asked(overrides=f"{TINY} {more}", output_dir=str(tmp_path), **given)


@pytest.fixture(scope="module")
def trained(generated, tmp_path_factory):
    """A dense run of three rounds in one place."""
    settings = asked(tmp_path_factory.mktemp("trained"), "federation.rounds=3 train.lr=1e-3 model.drop-path=0")
    return simulate_config(training_config(settings), 1)


@pytest.fixture(scope="module")
def pruned(trained, tmp_path_factory):
    """Algorithm 1 on its model."""
    return simulate_config(pruning_config(trained.path, asked(tmp_path_factory.mktemp("pruned"))), 1)


def state(folder, number):
    return load_file(folder.path / "checkpoints" / f"round-{number:04d}" / "model.safetensors")


def test_one_place_trains_on_everything_but_the_test_and_the_held_back_images(trained):
    split = read_split(trained.path)
    (part,) = split["ids"]["parts"]
    everything = {sample.image_id for sample in open_data(training_config(asked("")).data, 32).samples}
    assert set(part) == everything - set(split["ids"]["test"]) - set(split["held_back"])
    assert set(split["ids"]["open"]) & set(part), "the open images that are not held back too"
    assert trained.records()[-1]["nodes"]["partition-0"]["num-examples"] == len(part)


def test_a_training_in_one_place_is_one_plain_training(trained):
    """The oracle: a loop with one optimiser from the first step to the last."""
    config = load_config(file=trained.path / "config.yaml")
    data = open_data(config.data, 32)
    ids = read_split(trained.path)["ids"]["parts"][0]
    images = np.array([i for i, sample in enumerate(data.samples) if sample.image_id in set(ids)])
    weights, arch = initial_model(config)
    model = build(arch, weights)
    optimiser = torch.optim.AdamW(parameter_groups(model, config.train.weight_decay), fused=True)
    for number in range(1, 4):
        batches = training_batches(data, images, arch, config.train, local_seed(0, number, "partition-0"))
        batches.set_epoch(0)
        for step, batch in enumerate(batches):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config.train, (number - 1 + step / len(batches)) / 3)
            optimiser.zero_grad()
            cross_entropy(model(batch.images, batch.metadata), batch.labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
            optimiser.step()
    for name, tensor in state(trained, 3).items():
        pair = tensor, model.state_dict()[name]
        if name.endswith(
            "qkv.bias"
        ):  # softmax does not see the keys': their gradient is rounding, Adam makes steps of it
            pair = tuple(torch.cat([bias.chunk(3)[part] for part in (0, 2)]) for bias in pair)
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6, msg=name)


def test_nothing_travels_in_one_place(pruned):
    assert all(record["bytes_down"] == record["bytes_up"] == 0 for record in pruned.records())


def test_algorithm_1_cuts_and_freezes_one_stage_a_phase(pruned):
    records = pruned.records()
    cut = [
        {row["stage"] for row in record["blocks"] if row["hidden_after"] < row["hidden_before"]} for record in records
    ]
    assert cut == [{0}, {1}, set()], "a stage is cut once, in order, and the last phase only trains"
    assert [record["round"] for record in records] == [0, 1, 2]
    for number, frozen in ((1, ("encoder.layers.0.", "encoder.patch_embed.")), (2, ("encoder.layers.",))):
        before, after = state(pruned, number - 1), state(pruned, number)
        same = {name for name in before if torch.equal(before[name], after.get(name, torch.zeros(0)))}
        assert {name for name in before if name.startswith(frozen)} <= same, f"phase {number}"
        assert "classifier.weight" not in same, "the rest is fine-tuned"


def test_a_pruning_starts_from_the_model_and_with_the_split_of_its_run(trained, pruned):
    assert read_split(pruned.path)["ids"] == read_split(trained.path)["ids"]
    first = pruned.records()[0]["blocks"]
    assert all(row["heads_before"] == heads for row, heads in zip(first, (3, 3, 6, 6), strict=True))
    start, given = initial_model(load_config(file=pruned.path / "config.yaml")), state(trained, 3)
    assert all(torch.equal(start[0][name], tensor) for name, tensor in given.items())
    sha256 = read_about(pruned.path / "model.safetensors")["lineage"]["from"]
    assert sha256 == read_sha256(trained.path / "model.safetensors")


def read_sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pruning_that_was_stopped_ends_with_the_same_bits(pruned, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pruned.path, copy)
    shutil.rmtree(copy / "checkpoints/round-0002")
    (copy / "summary.json").unlink()
    assert open_checkpoint(copy)[1].round_number == 1
    result = CliRunner().invoke(app, ["prune", "--resume", str(copy)])
    assert result.exit_code == 0, result.output
    assert (copy / "model.safetensors").read_bytes() == (pruned.path / "model.safetensors").read_bytes()


def test_pooled_data_are_one_node_s(generated, tmp_path):
    config = tiny_config(data={"partition": "pooled"}, run={"output_dir": str(tmp_path)})
    with pytest.raises(DataError, match="there are 3 nodes: use 1"):
        run_here(config)
    assert not list(tmp_path.iterdir())
    result = CliRunner().invoke(app, ["simulate", "--set", "data.partition=pooled"])
    assert result.exit_code == 2
    assert "give --nodes 1" in " ".join(result.output.split())


def test_a_single_stage_has_one_step_and_is_not_frozen():
    schedule = algorithm_1(1)["prune"]
    config = load_config(file=algorithm_1(1), overrides="federation.rounds=9")
    assert not schedule["freeze"]
    assert [stages_to_prune(config.prune, number, 1) for number in range(10)] == [(0,)] + [()] * 9


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three classes in folders by name, told apart by their brightness."""
    place, draw = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for level, (name, count) in enumerate({"a": 12, "b": 15, "c": 10}.items()):
        (place / name).mkdir()
        for number in range(count):
            pixels = (70 * level + 60 * draw.random((32, 32, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(place / name / f"{number}.jpg")
    return place


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """timm's own model of the tests' small Swin, with a classifier of three outputs, and its file."""
    torch.manual_seed(5)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(3, 6),
        num_classes=3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(model.state_dict(), path)
    return model.eval(), path


def test_the_classifier_of_a_timm_checkpoint_is_kept_where_there_are_as_many_classes(checkpoint, folders, tmp_path):
    model, path = checkpoint
    config = pruning_config(
        path, Asked(overrides=f"model.name={MICRO}", data_dir=str(folders), output_dir=str(tmp_path))
    )
    assert (config.model.classes, config.model.head) == (("a", "b", "c"), "keep")
    assert (config.prune.first_round, config.federation.rounds) == (0, 2)
    weights, arch = initial_model(config)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        ours = build(arch, weights).eval()(images, torch.zeros(4, 0, dtype=torch.long))
        torch.testing.assert_close(ours, model(images), rtol=1e-4, atol=1e-5)


def test_a_new_classifier_is_trained_before_the_first_cut(checkpoint, folders, tmp_path):
    shutil.copytree(folders, tmp_path / "two")
    shutil.rmtree(tmp_path / "two/c")
    words = ["prune", checkpoint[1], "--data-dir", tmp_path / "two", "--output-dir", tmp_path, "--name", "run", "--set",
             f"model.name={MICRO} train.local-epochs=1 train.threads=1 data.open=0.4 data.held-back=0.5"]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "a phase of training comes before the first cut" in " ".join(result.output.split())
    assert load_model(tmp_path / "run/model.safetensors").architecture.classes == ("a", "b")
    config = load_config(file=tmp_path / "run/config.yaml")
    assert (config.prune.first_round, config.federation.rounds) == (1, 3)


def fails(path, tmp_path, more="", **given):
    with pytest.raises((ConfigError, DataError)) as caught:
        config = pruning_config(path, Asked(overrides=more, output_dir=str(tmp_path / "out"), **given))
        simulate_config(config, 1)
    assert not (tmp_path / "out").exists(), "nothing is left behind"
    return str(caught.value)


def test_a_checkpoint_of_another_architecture_is_named(checkpoint, folders, tmp_path):
    said = fails(checkpoint[1], tmp_path, "model.name=vit_micro_patch4_32", data_dir=str(folders))
    assert "does not fit vit_micro_patch4_32" in said
    assert "its name in model.name" in said


def test_labels_that_a_model_does_not_know_and_classes_without_an_image_are_named(trained, folders, tmp_path):
    said = fails(trained.path, tmp_path, data_dir=str(folders))
    assert "labelled a (12 images), b (15 images), c (10 images)" in said
    assert "akiec, bcc, bkl, df, mel, nv, vasc" in said
    samples = [sample for sample in open_data(training_config(asked("")).data, 32).samples if sample.label != "df"]
    with pytest.raises(DataError, match="no image of the data is labelled df"):
        check_labels(samples, ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"), "the model")


def test_an_empty_folder_of_a_class_is_named(checkpoint, folders, tmp_path):
    shutil.copytree(folders, tmp_path / "data")
    (tmp_path / "data/rare").mkdir()
    said = fails(checkpoint[1], tmp_path, f"model.name={MICRO}", data_dir=str(tmp_path / "data"))
    assert "no image is in the class folder rare" in said


def test_what_is_no_model_is_named(folders, tmp_path):
    assert "neither a model file nor a run folder" in fails(tmp_path / "nowhere", tmp_path, data_dir=str(folders))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"image_size": 64}, f"it is {MICRO} for 32 pixels, model.name and its settings make {MICRO} for 64"),
        ({"classes": ("a", "b")}, "its classes are akiec, bcc, bkl, df, mel, nv, vasc, model.classes a, b"),
        ({"image_only": True}, r"its metadata \(sex, age, localization\) have other values or weights"),
    ],
    ids=["size", "classes", "metadata"],
)
def test_another_model_than_the_settings_describe_is_named(trained, other, said):
    with pytest.raises(ConfigError, match=said):
        initial_model(tiny_config(model=other | {"from_run": str(trained.path)}))


def test_a_run_starts_from_one_thing():
    with pytest.raises(ConfigError, match="a run starts from one thing"):
        tiny_config(model={"from_run": "x", "architecture_from": "x"})


def test_the_pruned_shape_can_be_trained_from_scratch(pruned):
    shape = load_model(pruned.path / "model.safetensors").architecture
    config = tiny_config(model={"architecture_from": str(pruned.path)})
    weights, arch = initial_model(config)
    assert arch == shape
    assert not torch.equal(weights["encoder.norm.weight"], state(pruned, 2)["encoder.norm.weight"])
    again, _ = initial_model(config)
    other, _ = initial_model(replace(config, run=replace(config.run, seed=1)))
    name = "encoder.layers.1.blocks.0.mlp.fc1.weight"
    assert torch.equal(weights[name], again[name])
    assert not torch.equal(weights[name], other[name])


@pytest.mark.parametrize(
    ("width", "widths", "heads"), [(0.67, (16, 32), (2, 4)), (0.2, (8, 16), (1, 2)), (2.0, (48, 96), (6, 12))]
)
def test_a_narrower_dense_model_is_timm_s_of_that_width(width, widths, heads):
    arch = dense_architecture(tiny_config(model={"width": width, "image_only": True}).model)
    assert tuple(stage.width for stage in arch.spec.stages) == widths
    same = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=widths[0], depths=(2, 2), num_heads=heads,
        num_classes=7,
    )  # fmt: skip
    assert arch.cost.parameters == sum(parameter.numel() for parameter in same.parameters())
    assert build(arch)(torch.zeros(1, 3, 32, 32), torch.zeros(1, 0).long()).shape == (1, 7)


def test_a_narrower_vit_keeps_the_size_of_its_heads():
    spec = dense_architecture(tiny_config(model={"name": "vit_micro_patch4_32", "width": 0.34}).model).spec
    assert (spec.heads, spec.width, spec.head_dim, spec.hidden) == (1, 12, 12, 48)


COLUMNS = {"skin": {"values": ("i", "ii"), "weight": 0.1}, "sex": {"weight": 0.2}, "size": {"bins": (0.0, 2.5)}}


@pytest.mark.parametrize(
    "model",
    [{}, {"sex_weight": 0.3, "image_weight": 0.5}, {"image_only": True}, {"width": 0.67, "stem": "conv"}, "own"],
    ids=["plain", "weights", "images", "narrow", "own"],
)
def test_the_settings_of_a_model_can_be_read_off_its_architecture(model):
    if model == "own":
        model = {"metadata": tuple(MetadataColumn(name, **values) for name, values in COLUMNS.items())}
    arch = dense_architecture(tiny_config(model=model).model)
    assert dense_architecture(from_mapping({"model": model_settings(arch)}, "test").model) == arch


def test_a_model_that_lost_nothing_may_lose_sublayers_otherwise(trained):
    _, arch = initial_model(tiny_config(model={"from_run": str(trained.path)}, prune={"removed": "skip"}))
    assert arch.removed == "skip"


def test_a_budget_below_what_the_floors_allow_is_told_before_anything_is_made(trained, tmp_path):
    said = fails(trained.path, tmp_path, f"{TINY} prune.rule=budget prune.min-parameters=0.01")
    assert "prune.min-heads" in said
    assert "raise the budget" in said
