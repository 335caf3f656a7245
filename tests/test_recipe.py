"""The recipe across a federation: moments that survive rounds, the server's optimiser, counts that nodes share."""

import copy

import numpy as np
import pytest
import torch
from builders import architecture, lively_model, plan_of, run_here, tiny_config
from flwr.app import Message
from safetensors.torch import load_file

from fedskew.apps import make_client_app
from fedskew.config.schema import FederationConfig
from fedskew.federation.checks import Update
from fedskew.federation.folding import make_folding
from fedskew.federation.grids import LocalGrid
from fedskew.federation.mean import server_step
from fedskew.federation.messages import MessageError, Task, pack_task, unpack_task
from fedskew.federation.server import FederatedRun
from fedskew.federation.strategy import RoundStrategy
from fedskew.federation.weights import layout, layout_of, to_record
from fedskew.learning import local
from fedskew.learning.freezing import without_stages
from fedskew.learning.optimiser import FIRST, SECOND, STEPS, moments_layout, no_moments
from fedskew.methods.base import MOMENTS, Work
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.slicing import slice_companions, slice_model
from fedskew.runs.resume import new_folder, open_checkpoint

ARCH = architecture(image_size=32, stages=2)


class Stop(Exception):
    """Ends a run after a round."""


AVERAGED = {"train": {"moments": "averaged"}, "prune": {"first_round": 1, "reading": "mean"}}


@pytest.fixture
def run(generated, tmp_path):
    def start(**overrides):
        overrides["run"] = {"output_dir": str(tmp_path)} | overrides.get("run", {})
        folder = run_here(tiny_config(**overrides))
        return folder, folder.records()

    return start


def test_one_node_goes_on_with_the_moments_it_sent(generated, tmp_path, monkeypatch):
    seen = []
    original = local.train

    def spy(model, data, config, **options):
        result = original(model, data, config, **options)
        seen.append((options["moments"], result.moments))
        return result

    monkeypatch.setattr(local, "train", spy)
    config = tiny_config(train={"moments": "averaged"}, prune={"criterion": "none"}, run={"output_dir": str(tmp_path)})
    folder = run_here(config, nodes=1)
    (start, first), (carried, _) = seen
    assert not any(tensor.any() for tensor in start.values()), "nothing to carry on with"
    assert carried.keys() == first.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(carried[name], tensor, rtol=1e-6, atol=0)
    assert float(carried[STEPS]) == float(first[STEPS]) > 0
    assert folder.records()[-1]["clients_ok"] == 1


def test_moments_are_averaged_by_examples_and_cut_with_the_model(run):
    folder, records = run(**AVERAGED)
    assert records[-1]["parameters"] < records[-1]["dense_parameters"]
    _, checkpoint = open_checkpoint(folder.path)
    shapes = layout(checkpoint.architecture)
    assert set(checkpoint.companions) == set(moments_layout(shapes))
    for name, spec in shapes.items():
        assert tuple(checkpoint.companions[FIRST + name].shape) == spec.shape, name
        assert (checkpoint.companions[SECOND + name] >= 0).all()
    steps = [node["steps"] for node in records[1]["nodes"].values()]
    assert steps[0] * 2 - 1 <= float(checkpoint.companions[STEPS]) <= max(steps) * 2


def test_moments_cost_three_times_the_bytes(run):
    (_, plain), (_, moments) = (
        run(prune={"criterion": "none"}),
        run(train={"moments": "averaged"}, prune={"criterion": "none"}),
    )
    for key in ("bytes_up", "bytes_down"):
        assert moments[1][key] / plain[1][key] == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        AVERAGED,
        {"federation": {"server_optimiser": "avgm", "server_momentum": 0.5}},
        {"federation": {"server_optimiser": "yogi", "server_lr": 0.01}},
        {"train": {"class_counts": "global", "logit_adjustment": 1.0}},
    ],
)
def test_what_survives_a_round_survives_a_restart(run, tmp_path, settings):
    """Stopped after every round and resumed: the same model, bit for bit."""
    rounds = {"rounds": 3}
    whole, _ = run(**(settings | {"federation": settings.get("federation", {}) | rounds}))
    config = tiny_config(**(settings | {"federation": settings.get("federation", {}) | rounds}),
                         run={"output_dir": str(tmp_path / "stopped")})  # fmt: skip
    folder, checkpoint = new_folder(config), None
    for _ in range(4):
        going = FederatedRun(LocalGrid(make_client_app(), 3), config, folder, checkpoint)
        after = going._after_round

        def stop(number, arrays, after=after, first=checkpoint):
            result = after(number, arrays)
            if number or first is None:
                raise Stop
            return result

        going._after_round = stop
        with pytest.raises(Stop):
            going.run()
        checkpoint = folder.latest()
    assert checkpoint.round_number == 3
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder.path, whole.path))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_companions_lose_what_the_model_loses():
    state = lively_model(ARCH).state_dict()
    plan = plan_of(
        ARCH, {SublayerKey(0, 1, ATTENTION): (1,), SublayerKey(1, 0, MLP): (0, 2, 5), SublayerKey(1, 1, MLP): ()}
    )
    marked = {FIRST + name: tensor for name, tensor in state.items()} | {
        "server-momentum/" + n: -t for n, t in state.items()
    }
    smaller, _ = slice_model(state, ARCH, plan)
    found = slice_companions(marked | {STEPS: torch.tensor([3.0])}, ARCH, plan)
    assert found.pop(STEPS).tolist() == [3.0]
    assert len(found) == 2 * len(smaller)
    for name, tensor in smaller.items():
        assert torch.equal(found[FIRST + name], tensor)
        assert torch.equal(found["server-momentum/" + name], -tensor)


def test_server_momentum_is_that_of_sgd():
    config = FederationConfig(server_optimiser="avgm", server_lr=0.5, server_momentum=0.8)
    before = {
        "b": np.array([1.0, 2.0], np.float32),
        "a": np.array([[4.0]], np.float32),
        "frozen": np.ones(1, np.float32),
    }
    mean = {"b": np.array([0.0, 3.0], np.float32), "a": np.array([[2.0]], np.float32)}
    after, memory = server_step(config, 1, before, mean, {})
    assert after["b"].tolist() == [0.5, 2.5], "old − lr · (old − mean)"
    assert after["a"].tolist() == [[3.0]]
    assert memory["server-momentum/b"].tolist() == [1.0, -1.0]
    second, memory = server_step(config, 2, after, {"b": after["b"] - 1, "a": after["a"]}, memory)
    assert memory["server-momentum/b"].tolist() == pytest.approx([0.8 + 1, -0.8 + 1])
    assert second["b"].tolist() == pytest.approx([0.5 - 0.5 * 1.8, 2.5 - 0.5 * 0.2])
    assert second["a"].item() == pytest.approx(3.0 - 0.5 * 0.8 * 2.0)


def test_the_servers_momentum_goes_from_round_to_round_of_a_run(generated, tmp_path):
    """The oracle: SGD with momentum by hand, on what the only node sent."""
    app, sent = make_client_app(), []

    def spy(message, context):
        reply = app(message, context)
        sent.append(next(iter(reply.content["arrays"].values())).numpy().astype(np.float64))
        return reply

    federation = {"rounds": 3, "server_optimiser": "avgm", "server_momentum": 0.5, "server_lr": 0.8}
    config = tiny_config(federation=federation, prune={"criterion": "none"},
                         run={"output_dir": str(tmp_path), "keep_checkpoints": 9})  # fmt: skip
    folder = run_here(config, grid=LocalGrid(spy, 1))
    velocity = 0.0
    for number, mean in enumerate(sent, start=1):
        before, after = (
            flat(folder.path / f"checkpoints/round-{n:04d}/model.safetensors") for n in (number - 1, number)
        )
        velocity = 0.5 * velocity + (before - mean)
        np.testing.assert_allclose(after, before - 0.8 * velocity, rtol=1e-5, atol=1e-7)


def flat(path):
    """A model's values in the order in which they travel."""
    tensors = load_file(path)
    return np.concatenate([tensors[name].double().numpy().ravel() for name in sorted(tensors)])


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_adaptive_server_optimisers_follow_their_paper(kind):
    """Reddi et al., Adaptive federated optimization, Algorithm 2, with Flower's correction of the learning rate."""
    config = FederationConfig(server_optimiser=kind, server_lr=0.1, server_momentum=0.9, server_tau=1e-2)
    x, m, v, memory = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), {}
    for number, mean in ((1, np.array([0.5, -1.0])), (2, np.array([2.0, -2.0]))):
        after, memory = server_step(config, number, {"w": x.astype(np.float32)}, {"w": mean.astype(np.float32)}, memory)
        delta = mean - x
        m = 0.9 * m + 0.1 * delta
        v = 0.99 * v + 0.01 * delta**2 if kind == "adam" else v - 0.01 * delta**2 * np.sign(v - delta**2)
        eta = 0.1 * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1)) if kind == "adam" else 0.1
        x = x + eta * m / (np.sqrt(v) + 1e-2)
        assert after["w"].tolist() == pytest.approx(x.tolist(), rel=1e-5)
        assert memory["server-second/w"].tolist() == pytest.approx(v.tolist(), rel=1e-5)


@pytest.mark.parametrize("kind", ["avgm", "adam", "yogi"])
def test_a_tensor_that_thaws_is_stepped_like_a_new_one(kind):
    """Frozen ones leave the mean and the memory; when they came back the run ended with a KeyError."""
    config = FederationConfig(server_optimiser=kind, server_lr=0.1)
    ones = {name: np.ones(2, np.float32) for name in ("frozen", "other")}
    _, memory = server_step(config, 1, ones, {"other": np.zeros(2, np.float32)}, {})
    both = {name: np.array([0.5, 3.0], np.float32) for name in ones}
    after, _ = server_step(config, 2, ones, both, memory)
    alone, _ = server_step(config, 2, ones, {"frozen": both["frozen"]}, {})
    assert after["frozen"].tolist() == alone["frozen"].tolist() != after["other"].tolist()


def test_without_a_server_optimiser_the_mean_is_the_model():
    mean = {"w": np.ones(2, np.float32)}
    after, memory = server_step(FederationConfig(), 1, {"w": np.zeros(2, np.float32)}, mean, {})
    assert after["w"].tolist() == [1.0, 1.0]
    assert memory == {}


@pytest.mark.parametrize(("weighting", "expected"), [("examples", 2.5), ("equal", 2.0)])
@pytest.mark.parametrize("limits", [
    {"max_weight_ratio": 0.0}, {"max_weight_ratio": 9.0}, {"max_weight_ratio": 0.0, "norm_bound": 100.0},
], ids=["at once", "spooled", "bounded"])  # fmt: skip
def test_nodes_weigh_by_examples_or_alike(tmp_path, weighting, limits, expected):
    folding = make_folding(FederationConfig(weighting=weighting, **limits), 1, tmp_path)
    for name, examples, value in (("a", 10, 1.0), ("b", 30, 3.0)):
        update = Update(name, (), {}, {}, examples, {"w": np.full(2, value, np.float32)}, value)
        folding.add(name, update)
    assert folding.result().arrays["w"].tolist() == [expected, expected]


def test_from_the_second_round_on_nodes_use_the_counts_of_all(run, monkeypatch):
    seen = []
    original = local.train
    monkeypatch.setattr(local, "train", lambda *a, **o: seen.append(o["counts"].tolist()) or original(*a, **o))
    _, records = run(train={"class_counts": "global"}, data={"partition": "dirichlet", "alpha": 0.3})
    first, second = seen[:3], seen[3:]
    assert len({tuple(counts) for counts in first}) == 3, "in the first round each has its own"
    total = np.array(first).sum(0).tolist()
    assert second == [total] * 3
    told = list(records[1]["class_counts"].values())
    assert sum(sum(counts.values()) for counts in told) == sum(total)


def test_local_counts_stay_at_the_node(run):
    _, records = run()
    assert records[1]["class_counts"] == {}


@pytest.mark.parametrize(("values", "words"), [
    ({"work": Work("average", extras=("gradients",))}, "gradients"),
    ({"work": Work("unheard-of")}, "unheard-of"),
    ({"class_counts": (1, 2)}, "5 numbers of images"),
    ({"class_counts": (0,) * 5}, "5 numbers of images"),
    ({"class_counts": (1, 1, 1, 1, -1)}, "5 numbers of images"),
])  # fmt: skip
def test_a_task_with_odd_extras_or_counts_is_refused(values, words):
    task = Task(1, 2, ARCH, tiny_config(), **values)
    content = pack_task(task, to_record(lively_model(ARCH).state_dict()))
    with pytest.raises(MessageError, match=words):
        unpack_task(Message(content, dst_node_id=1, message_type="train"))


def test_the_moments_of_frozen_stages_do_not_travel():
    trained = without_stages(ARCH, (0,))
    task = Task(1, 2, ARCH, tiny_config(), Work("skewness", trained, trained, (MOMENTS,)))
    up, down = task.uploaded(), task.downloaded()
    assert not any("layers.0." in name or "patch_embed" in name for name in up)
    assert any(name.startswith("encoder.layers.0.") for name in down), "its weights do"
    assert not any("layers.0." in name for name in down if name.startswith((FIRST, SECOND)))
    assert {FIRST + "classifier.weight", SECOND + "classifier.weight", STEPS} <= up.keys()
    plain = copy.copy(layout_of(lively_model(ARCH).state_dict()))
    assert moments_layout(plain).keys() == no_moments(lively_model(ARCH).state_dict()).keys()


def test_a_class_that_only_a_silent_node_has_still_counts(run, monkeypatch):
    """Where a site keeps its counts to itself, those of the others must not weigh its classes with zero."""
    seen = []
    original = local.train
    monkeypatch.setattr(local, "train", lambda *a, **o: seen.append(o["counts"].tolist()) or original(*a, **o))
    monkeypatch.setattr(RoundStrategy, "_total_counts", lambda self: (0, 0, 0, 0, 0, 50, 0))
    run(train={"class_counts": "global"}, federation={"rounds": 1})
    assert all(counts[5] == 50 for counts in seen)
    assert all(any(counts[:5]) for counts in seen), "its own classes"
