"""Local training: one learning-rate curve over all rounds, weights where they belong, the same bits again."""

import itertools
import time

import numpy as np
import pytest
import scipy.special
import torch
from builders import architecture, lively_model, tiny_config

from fedskew.config.schema import TrainConfig
from fedskew.data.batches import ImageBatches
from fedskew.federation.client import local_seed
from fedskew.learning import train as training
from fedskew.learning.freezing import train_only, without_stages
from fedskew.learning.imbalance import class_counts, class_weights
from fedskew.learning.optimiser import learning_rate, parameter_groups
from fedskew.learning.train import (
    TrainingError,
    cpu_threads,
    evaluate,
    pick_device,
    predict,
    train,
)

ARCH = architecture(image_size=32, stages=2)


def batches(count=12, **options):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 36, 36, 3), dtype=np.uint8)
    metadata = np.zeros((count, 3), dtype=np.int64)
    labels = np.arange(count) % 5
    return ImageBatches(images, np.arange(count), metadata, labels, batch_size=4, image_size=32, **options)


def trained(seed=0, **settings):
    model = lively_model(ARCH)
    config = TrainConfig(device="cpu", **settings)
    result = train(model, batches(seed=seed), config, round_number=1, rounds=2, seed=seed)
    return model, result


def test_the_learning_rate_is_one_curve_over_all_rounds():
    config, rounds, steps = TrainConfig(lr=1.0, warmup=0.2, lr_floor=0.1), 5, 20
    curve = [learning_rate(config, (r + s / steps) / rounds) for r in range(rounds) for s in range(steps)]
    jumps = [abs(a - b) for a, b in itertools.pairwise(curve)]
    assert max(jumps) <= 0.051, "no step at a round's boundary is larger than the warm-up's own"
    assert curve[:20] == sorted(curve[:20])
    assert curve[20:] == sorted(curve[20:], reverse=True)
    assert max(curve) == pytest.approx(1.0)
    assert learning_rate(config, 1.0) == pytest.approx(0.1)


def test_training_follows_that_curve_from_round_to_round(monkeypatch):
    seen = []
    monkeypatch.setattr(training, "learning_rate", lambda config, progress, step: seen.append(progress) or 1e-4)
    config = TrainConfig(device="cpu", local_epochs=2)
    for number in (1, 2, 3):
        train(lively_model(ARCH), batches(seed=0), config, round_number=number, rounds=3, seed=0)
    assert seen == pytest.approx([step / 18 for step in range(18)]), "three rounds of two epochs of three steps"


def test_every_node_has_its_own_order_in_every_round():
    seeds = {local_seed(seed, number, node) for seed in (0, 1) for number in (1, 2) for node in ("a", "b")}
    assert len(seeds) == 8
    assert local_seed(0, 1, "a") == 2_454_853_367, "the same in every process and on every machine"


def test_the_same_seed_trains_the_same_model_bit_for_bit():
    (first, one), (second, two) = trained(seed=4, local_epochs=2), trained(seed=4, local_epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert (one.loss, one.first_loss, one.steps) == (two.loss, two.first_loss, two.steps)
    assert one.steps == 6
    other, _ = trained(seed=5, local_epochs=2)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_frozen_stages_are_not_trained():
    model = lively_model(ARCH)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    part = without_stages(ARCH, (0,))
    train_only(model, part)
    frozen = {name for name in before if name not in part}
    assert frozen
    train(model, batches(seed=0), TrainConfig(device="cpu"), round_number=1, rounds=1, seed=0)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not changed & frozen
    assert {"encoder.layers.1.downsample.reduction.weight", "classifier.weight"} <= changed
    assert all(name.startswith(("encoder.layers.0.", "encoder.patch_embed.")) for name in frozen)


def test_weight_decay_is_for_matrices_only():
    model = lively_model(ARCH)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, plain = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.05))
    assert len(decay) + len(plain) == len(names)
    assert all(name.endswith("weight") and "norm" not in name for name in decay)
    assert not any("table" in name or name.startswith("embeddings") for name in decay)
    assert all(parameter.ndim >= 2 for parameter in parameter_groups(model, 0.05)[0]["params"])


def test_class_weights_average_to_one_over_the_examples():
    labels = np.array([0, 0, 0, 0, 1, 3])
    counts = class_counts(labels, 5)
    for setting in ("sqrt", "inverse"):
        weights = class_weights(counts, setting)
        assert weights[labels].mean().item() == pytest.approx(1.0)
        assert weights[2] == weights[4] == 0, "a class that the node does not have"
        assert weights[1] > weights[0]
    assert class_weights(counts, "inverse")[1] == pytest.approx(4 * class_weights(counts, "inverse")[0])
    assert class_weights(counts, "none") is None


def test_training_that_diverges_says_what_to_change():
    model = lively_model(ARCH)
    with torch.no_grad():
        model.classifier.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"the training loss is (nan|inf) in local epoch 1; lower train\.lr"):
        train(model, batches(seed=0), TrainConfig(device="cpu"), round_number=1, rounds=1, seed=0)


def test_a_result_tells_the_mean_losses_of_its_first_and_last_epoch(monkeypatch):
    seen, step, begun = [], training._Step.__call__, time.perf_counter()
    monkeypatch.setattr(training._Step, "__call__", lambda *args: seen.append(step(*args)) or seen[-1])
    _, result = trained(local_epochs=3, lr=0.01)
    assert len(seen) == result.steps == 9
    assert result.first_loss == pytest.approx(float(sum(seen[:3])) / 3)
    assert result.loss == pytest.approx(float(sum(seen[6:])) / 3)
    assert result.loss < result.first_loss
    assert 0 < result.seconds < time.perf_counter() - begun


def test_what_is_predicted_is_the_softmax_in_evaluation_mode_image_by_image():
    model = lively_model(ARCH, drop_path=0.5)
    labels, probabilities = predict(model.train(), batches(), TrainConfig(device="cpu"))
    logits = torch.cat([model.eval()(images, metadata) for images, metadata, _ in batches()])
    np.testing.assert_allclose(probabilities, scipy.special.softmax(logits.detach().numpy(), axis=1), atol=1e-6)
    assert labels.tolist() == [number % 5 for number in range(12)]
    none, nothing = predict(model, batches(count=0), TrainConfig(device="cpu"))
    assert (none.shape, none.dtype, nothing.shape) == ((0,), np.int64, (0, 5))


def test_evaluating_restores_the_mode_and_needs_no_gradients():
    model = lively_model(ARCH).train()
    found = evaluate(model, batches(), tiny_config().train)
    assert found["examples"] == 12
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_threads_are_restored():
    before = torch.get_num_threads()
    with cpu_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="x"), cpu_threads(3):
        raise ValueError("x")
    assert torch.get_num_threads() == before


def test_the_device_is_the_one_asked_for():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
