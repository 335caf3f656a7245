"""What pruning is compared with: a node alone, one cut instead of many, distillation, and models drawn small."""

import json
import shutil

import pytest
import torch
from builders import run_here, tiny_config
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, kl_div

from fedskew.apps import make_client_app
from fedskew.config import ConfigError
from fedskew.config.schema import FederationConfig, PruneConfig
from fedskew.federation.grids import LocalGrid
from fedskew.federation.selection import select_nodes
from fedskew.federation.server import FederatedRun
from fedskew.learning.initial import initial_model
from fedskew.learning.teacher import Teacher
from fedskew.methods.distillation import SCORE, STATE
from fedskew.pruning.schedule import stages_to_prune
from fedskew.runs.resume import open_checkpoint
from fedskew.runs.start_checks import check_combination, check_enough_nodes
from fedskew.sweeps.references import PlannedRun, resolved, unmet


def test_the_only_node_is_asked_in_every_round_and_no_other():
    nodes = {7: "partition-0", 3: "partition-1", 5: "partition-2"}
    settings = FederationConfig(only_node="partition-1", min_nodes=3)
    assert [select_nodes(nodes, settings, 1.0, seed=0, number=n) for n in range(3)] == [{3: "partition-1"}] * 3


def test_a_node_alone_trains_the_model_by_itself(generated, tmp_path):
    alone = {"federation": {"only_node": "partition-2", "rounds": 1}, "prune": {"criterion": "none"}}
    folder = run_here(tiny_config(**alone, run={"output_dir": str(tmp_path)}))
    record = folder.records()[-1]
    assert record["weights"].keys() == record["participation"].keys() == {"partition-2"}
    with pytest.raises(ConfigError, match="only-node is partition-2, and the simulated nodes are partition-0"):
        check_enough_nodes(tiny_config(federation={"only_node": "partition-2"}), 2)


def test_all_stages_can_be_cut_in_one_step():
    once = PruneConfig(steps_per_stage=0, first_round=3, last_round=3)
    assert [stages_to_prune(once, number, 4) for number in (2, 3, 4)] == [(), (0, 1, 2, 3), ()]
    assert stages_to_prune(PruneConfig(steps_per_stage=0, max_stage=1), 1, 4) == (0, 1)
    with pytest.raises(ConfigError, match="unlocks all at once"):
        check_combination(tiny_config(prune={"steps_per_stage": 0, "freeze": True}))


def test_the_loss_of_a_teacher_is_that_of_its_softened_answers():
    """The oracle: the formula of Hinton et al. with probabilities instead of their logarithms."""
    torch.manual_seed(1)
    student, teacher, labels = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    labelled = cross_entropy(student, labels)
    found = Teacher(None, share=0.3, temperature=4.0).loss(labelled, student, teacher)  # type: ignore[arg-type]
    p, q = (teacher / 4).softmax(-1), (student / 4).softmax(-1)
    expected = 0.7 * labelled + 0.3 * 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(kl_div(q.log(), p, reduction="batchmean"), (p * (p / q).log()).sum(1).mean())


DISTILLED = {
    "train": {"distil_epochs": 1, "distil_rounds": 1, "local_epochs": 1},
    "federation": {"rounds": 3},
    "prune": {"first_round": 2, "last_round": 2},
}


@pytest.fixture(scope="module")
def distilled(generated, tmp_path_factory):
    """Three rounds, cut after the second, taught after the third by the best dense model of the first two."""
    place = str(tmp_path_factory.mktemp("distilled"))
    return run_here(tiny_config(**DISTILLED, run={"output_dir": place, "keep_checkpoints": 9}))


def part(folder, number, name):
    return load_file(folder.path / "checkpoints" / f"round-{number:04d}" / f"{name}.safetensors")


def test_the_best_dense_model_of_the_run_teaches_the_pruned_one(distilled):
    records = distilled.records()
    assert [("distillation" in record) for record in records] == [False, False, False, True]
    told = records[-1]["distillation"]
    assert told["steps"] == 2, "25 open images that are not held back, 16 a batch"
    companions = part(distilled, 3, "companions")
    taught = {name.removeprefix(STATE): tensor for name, tensor in companions.items() if name.startswith(STATE)}
    judged = [record["held_back"]["balanced_accuracy"] for record in records[:2]]
    assert float(companions[SCORE]) >= max(judged) - 1e-6, "the model before the cut of round 2 may be better still"
    dense = {name: tensor.shape for name, tensor in part(distilled, 0, "model").items()}
    assert {name: tensor.shape for name, tensor in taught.items()} == dense, "the teacher is never cut"
    assert records[-1]["parameters"] < records[-1]["dense_parameters"]


def test_a_distilled_run_that_was_stopped_ends_with_the_same_bits(distilled, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(distilled.path, copy)
    shutil.rmtree(copy / "checkpoints/round-0003")
    (copy / "summary.json").unlink()
    folder, checkpoint = open_checkpoint(copy)
    config = tiny_config(**DISTILLED, run={"output_dir": str(distilled.path.parent), "keep_checkpoints": 9})
    FederatedRun(LocalGrid(make_client_app(), 3), config, folder, checkpoint).run()
    assert (copy / "model.safetensors").read_bytes() == (distilled.path / "model.safetensors").read_bytes()


def test_a_finished_run_can_be_the_teacher(distilled, dense_run, tmp_path):
    teacher = DISTILLED["train"] | {"distil_teacher": str(dense_run.path)}
    config = tiny_config(**DISTILLED | {"train": teacher}, run={"output_dir": str(tmp_path), "keep_checkpoints": 9})
    folder = run_here(config)
    assert not (folder.path / "checkpoints/round-0003/companions.safetensors").exists(), "nothing to carry along"
    ours, other = (part(run, 2, "model") for run in (folder, distilled))
    assert all(torch.equal(ours[name], other[name]) for name in other), "off until the last round"
    assert not torch.equal(
        part(folder, 3, "model")["classifier.weight"], part(distilled, 3, "model")["classifier.weight"]
    )


def test_without_a_teacher_there_is_one_line(finished_run, tmp_path):
    start = {"model": {"from_run": str(finished_run.path)}, "federation": {"rounds": 1}}
    config = tiny_config(**DISTILLED | start, run={"output_dir": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"give train.distil-teacher, a run or a model file"):
        run_here(config)


def planned(cell, needs=(), seed=0):
    return PlannedRun(cell, seed, 1, tiny_config(), needs)


def test_a_cell_may_name_another_one_s_run_of_its_seed(tmp_path):
    config = tiny_config(model={"architecture_from": "@pruned"}, train={"distil_teacher": "@dense/best"})
    found, needs = resolved(config, tmp_path, 2)
    assert needs == ("pruned-s2", "dense-s2")
    assert found.model.architecture_from == str(tmp_path / "pruned-s2")
    assert found.train.distil_teacher == str(tmp_path / "dense-s2/best")
    assert resolved(tiny_config(model={"from_run": "/x"}), tmp_path, 2)[1] == ()


def test_references_to_nothing_and_in_a_circle_are_told():
    assert unmet([planned("a"), planned("b", ("a-s0",))]) == []
    assert unmet([planned("b", ("a-s0",))]) == ["cell b: @a is no cell of this study with seed 0"]
    circle = [planned("a", ("c-s0",)), planned("b", ("a-s0",)), planned("c", ("b-s0",))]
    assert unmet(circle)[0] == "cell a: it starts from c-s0, which starts from it"
    assert unmet([planned("a", ("a-s0",))]) == ["cell a: it starts from a-s0, which starts from it"]


def test_the_initial_model_of_a_later_run_is_the_pruned_one(finished_run):
    weights, arch = initial_model(tiny_config(model={"from_run": str(finished_run.path)}))
    found = load_file(finished_run.path / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in found.items())
    assert json.loads((finished_run.path / "architecture.json").read_text()) == json.loads(arch.to_json())
