"""What a training step really does: the loss, the optimiser, the augmentation, each against a second derivation."""

import math
import platform
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from builders import architecture, inputs, lively_model, tiny_config
from test_training import batches

from fedskew.config.schema import TrainConfig
from fedskew.data.augment import RandAugment, seeded_globals, turn_and_zoom
from fedskew.data.batches import Augmentation
from fedskew.data.samples import DataError
from fedskew.learning.imbalance import class_counts, class_weights, drawing_weights, logit_offsets
from fedskew.learning.initial import initial_model
from fedskew.learning.mixing import Mixing
from fedskew.learning.optimiser import FIRST, SECOND, STEPS, Proximal, impossible_moments, learning_rate, no_moments
from fedskew.learning.train import make_objective, train
from fedskew.model.fusion import build

ARCH = architecture(image_size=32, stages=2)
COUNTS = np.array([10, 1, 4, 0, 5])


def loss_by_hand(logits, targets, weights, smoothing):
    """Weighted, smoothed cross entropy of labels [B]; of soft targets [B, classes] the plain one."""
    log_p = logits.log_softmax(-1)
    if targets.ndim == 2:
        return -(targets * log_p).sum(-1).mean()
    weights = torch.ones(log_p.shape[1]) if weights is None else weights
    true = -(weights[targets] * log_p[torch.arange(len(targets)), targets]).sum()
    spread = -(weights * log_p).sum() / log_p.shape[1]
    return ((1 - smoothing) * true + smoothing * spread) / weights[targets].sum()


def hand_written_adamw(model, data, config, *, rates, weights=None, offsets=None, start=None, moments=None):
    """AdamW by Loshchilov and Hutter's formulas in float64 on the gradients of autograd; in place."""
    named = dict(model.named_parameters())
    start = {name: parameter.detach().clone() for name, parameter in named.items()}
    first = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in named.items()}
    second = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in named.items()}
    done, mixing = 0, Mixing(config.mixup, 0.0, classes=5, smoothing=config.label_smoothing, seed=7)
    if moments:
        first = {name: moments[FIRST + name].double() for name in named}
        second = {name: moments[SECOND + name].double() for name in named}
        done = int(moments[STEPS])
    torch.manual_seed(7)
    model.train()
    for step, (images, metadata, labels) in enumerate(data):
        model.zero_grad()
        images, targets = mixing(images, labels)
        logits = model(images, metadata)
        loss_by_hand(
            logits if offsets is None else logits + offsets, targets, weights, config.label_smoothing
        ).backward()
        grads = {name: p.grad.double() + config.proximal * (p.detach() - start[name]) for name, p in named.items()}
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        scale = min(1.0, config.clip_norm / (norm + 1e-6)) if config.clip_norm else 1.0
        with torch.no_grad():
            for name, parameter in named.items():
                g = grads[name] * scale
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g**2
                m = first[name] / (1 - 0.9 ** (done + step + 1))
                v = second[name] / (1 - 0.999 ** (done + step + 1))
                matrix = parameter.ndim >= 2 and "table" not in name and not name.startswith("embeddings")
                decay = config.weight_decay if matrix else 0.0
                new = parameter.double() * (1 - rates[step] * decay) - rates[step] * m / (v.sqrt() + 1e-8)
                parameter.copy_(new.float())
    return {FIRST + name: value for name, value in first.items()} | {SECOND + n: v for n, v in second.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip_norm": 0.05, "weight_decay": 0.3, "proximal": 0.7},
        {"clip_norm": 1e3},
        {"class_weights": "inverse"},
        {"logit_adjustment": 0.8, "class_weights": "sqrt", "round_warmup": 2},
        {"label_smoothing": 0.3, "class_weights": "sqrt"},
        {"label_smoothing": 0.2, "mixup": 0.8},
        {"drop_path": 0.5},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_training_is_adamw_as_its_authors_wrote_it(settings):
    drop_path = settings.get("drop_path", 0.0)
    config = TrainConfig(device="cpu", lr=2e-3, warmup=0.0, **{k: v for k, v in settings.items() if k != "drop_path"})
    model, other = lively_model(ARCH, drop_path=drop_path), lively_model(ARCH, drop_path=drop_path)
    moments = {name: 0.01 * torch.rand_like(value) for name, value in no_moments(model.state_dict()).items()}
    moments[STEPS] = torch.tensor([4.0])
    result = train(model, batches(seed=7), config, round_number=2, rounds=5, seed=7, counts=COUNTS, moments=moments)
    rates = [learning_rate(config, (1 + step / 3) / 5, step) for step in range(3)]
    weights, offsets = class_weights(COUNTS, config.class_weights), logit_offsets(COUNTS, config.logit_adjustment)
    expected = hand_written_adamw(
        other, batches(seed=7), config, rates=rates, weights=weights, offsets=offsets, moments=moments
    )
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-6, msg=name)
    for name, value in expected.items():
        torch.testing.assert_close(result.moments[name].double(), value, rtol=1e-3, atol=1e-7, msg=name)
    assert float(result.moments[STEPS]) == 7.0


def test_moments_that_are_not_given_start_at_zero():
    fresh, given = lively_model(ARCH), lively_model(ARCH)
    one = train(fresh, batches(seed=1), TrainConfig(device="cpu"), round_number=1, rounds=1, seed=1)
    zero = no_moments(given.state_dict())
    two = train(given, batches(seed=1), TrainConfig(device="cpu"), round_number=1, rounds=1, seed=1, moments=zero)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), given.parameters(), strict=True))
    assert one.moments.keys() == two.moments.keys() == zero.keys()


def test_a_negative_second_moment_counts_as_zero():
    model = lively_model(ARCH)
    moments = no_moments(model.state_dict())
    moments = {name: value - 1 if name.startswith(SECOND) else value for name, value in moments.items()}
    result = train(model, batches(seed=1), TrainConfig(device="cpu"), round_number=1, rounds=1, seed=1, moments=moments)
    assert all((value >= 0).all() for name, value in result.moments.items() if name.startswith(SECOND))


@pytest.mark.parametrize("clip_norm", [0.05, 1.0])
def test_moments_of_clipped_gradients_keep_within_what_such_can_be(clip_norm):
    config = TrainConfig(device="cpu", clip_norm=clip_norm, proximal=0.7)
    moments = no_moments(lively_model(ARCH).state_dict())
    for number in (1, 2):
        model = lively_model(ARCH)
        moments = train(model, batches(seed=number), config, round_number=1, rounds=1, seed=1, moments=moments).moments
        assert impossible_moments({name: value.numpy() for name, value in moments.items()}, clip_norm) == ""


def test_moments_that_no_clipped_gradients_have_are_named():
    """A mean of vectors of norm 2 has at most norm 2, and that of their squares the sum 4."""
    edge = {f"{FIRST}a": [1.2], f"{FIRST}b": [0.0, -1.6], f"{SECOND}a": [4.0], f"{SECOND}b": [0.0, 0.0], "a": [1e9]}
    arrays = {name: np.array(value, np.float32) for name, value in edge.items()}
    assert impossible_moments(arrays, 2.0) == ""
    for name, factor, words in (
        (f"{FIRST}b", 1.01, "the norm of its first moments is 2.013, and with train.clip-norm=2 at most 2"),
        (f"{SECOND}a", 1.01, "the sum of its second moments is 4.04, and with train.clip-norm=2 at most 4"),
        (f"{SECOND}a", 1e38, "inf, and"),
        (f"{SECOND}a", -1e-9, "its second moments are below 0"),
    ):
        with np.errstate(over="ignore"):
            wrong = arrays | {name: arrays[name] * np.float32(factor)}
        assert words in impossible_moments(wrong, 2.0)
        assert bool(impossible_moments(wrong, 0.0)) == (factor < 0), "without clipping only the sign is known"


def test_the_ramp_climbs_to_the_curve_in_every_round():
    config = TrainConfig(lr=1.0, warmup=0.0, lr_floor=1.0, round_warmup=4)
    assert [learning_rate(config, 0.5, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(config, 0.5) == 1.0


def test_label_smoothing_and_mixed_targets_reach_the_loss():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]]), torch.tensor([0, 2])
    log_p = logits.log_softmax(-1)
    smooth = 0.7 * torch.nn.functional.one_hot(labels, 3) + 0.3 / 3
    objective = make_objective(TrainConfig(label_smoothing=0.3), None, torch.device("cpu"))
    assert objective(logits, labels).item() == pytest.approx(-(smooth * log_p).sum(-1).mean().item())
    soft = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.5, 0.5]])
    assert objective(logits, soft).item() == pytest.approx(-(soft * log_p).sum(-1).mean().item())


def test_logit_offsets_are_the_log_of_the_class_shares():
    assert logit_offsets(COUNTS, 0.0) is None
    shares = np.array([10.5, 1.5, 4.5, 0.5, 5.5]) / 22.5
    assert logit_offsets(COUNTS, 1.5).tolist() == pytest.approx((1.5 * np.log(shares)).tolist())


def test_drawing_weights_make_rare_classes_frequent():
    labels = np.array([0] * 9 + [2])
    assert drawing_weights(labels, "natural") is None
    balanced, root = drawing_weights(labels, "balanced"), drawing_weights(labels, "sqrt")
    assert balanced[:9].sum() == pytest.approx(0.5)
    assert root[:9].sum() / root[9] == pytest.approx(3.0), "classes as the roots of 9 and 1"
    assert class_counts(labels, 4).tolist() == [9, 0, 1, 0]


def test_an_epoch_draws_by_these_weights():
    data = batches(seed=3, drawing=np.array([0.5, 0.5] + [0.0] * 10))
    drawn = torch.cat([batch.labels for batch in data])
    assert len(drawn) == 12
    assert set(drawn.tolist()) == {0, 1}
    again = torch.cat([batch.labels for batch in batches(seed=3, drawing=np.array([0.5, 0.5] + [0.0] * 10))])
    assert drawn.tolist() == again.tolist()
    with pytest.raises(DataError, match="12 indices need as many probabilities"):
        batches(seed=3, drawing=np.ones(3) / 3)


def test_the_proximal_term_pulls_back_to_where_the_round_began():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    proximal = Proximal([parameter], 0.5)
    with torch.no_grad():
        parameter += torch.tensor([3.0, -1.0])
    parameter.grad = torch.tensor([10.0, 10.0])
    proximal.add()
    assert parameter.grad.tolist() == [11.5, 9.5]


def test_mixing_keeps_every_image_and_the_global_generators():
    images, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4])
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    mixing = Mixing(0.8, 0.0, classes=5, smoothing=0.0, seed=3)
    mixed, targets = mixing(images, labels)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert mixed.shape == images.shape
    assert torch.equal(mixed[4], images[4]), "the odd one stays"
    assert targets[4].tolist() == [0, 0, 0, 0, 1]
    share = targets[0, 0].item()
    assert 0 < share < 1
    assert torch.allclose(mixed[0], share * images[0] + (1 - share) * images[3], atol=1e-6), "timm pairs from the ends"
    assert targets.sum(-1).tolist() == pytest.approx([1.0] * 5)
    same = Mixing(0.8, 0.0, classes=5, smoothing=0.0, seed=3)(images, labels)
    assert torch.equal(same[0], mixed)
    assert not torch.equal(mixing(images, labels)[0], mixed), "every step draws anew"
    assert Mixing(0.0, 0.0, classes=5, smoothing=0.1, seed=3)(images, labels) == (images, labels)


def test_turn_and_zoom_moves_what_it_should():
    images = torch.zeros(200, 3, 33, 33)
    images[:, 0, 16, 16] = 1.0  # the centre stays where it is
    images[:, 1, 11, 16] = 1.0  # five pixels above it
    turned = turn_and_zoom(images, 0.2, np.random.default_rng(0))
    assert torch.allclose(turned[:, 0, 16, 16], torch.ones(200), atol=0.05)
    rows, columns = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    mass = turned[:, 1].sum((1, 2)).clamp_min(1e-6)
    y, x = (turned[:, 1] * rows).sum((1, 2)) / mass, (turned[:, 1] * columns).sum((1, 2)) / mass
    radius, angle = torch.hypot(y, x), torch.atan2(x, y)
    assert 5 * math.exp(-0.2) - 0.3 < radius.min() < 4.6
    assert 5.5 < radius.max() < 5 * math.exp(0.2) + 0.3
    assert all(((angle > low) & (angle < low + math.pi / 2)).any() for low in (-math.pi, -math.pi / 2, 0, math.pi / 2))


def test_rand_augment_is_timm_s_seeded_by_the_batch():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    change = RandAugment("rand-m9-n2")
    one, two, three = change(pixels, 5), change(pixels, 5), change(pixels, 6)
    assert one.dtype == np.uint8
    assert one.shape == pixels.shape
    assert (one == two).all()
    assert (one != three).any()
    assert (one != pixels).any()
    with pytest.raises(DataError, match="rand-m5-n2"):
        RandAugment("nonsense-z9")
    plain = batches(seed=2, augmentation=Augmentation(False, False, 0.0, False))
    with_it = batches(seed=2, augmentation=Augmentation(False, False, 0.0, False, rand_augment="rand-m9-n2"))
    assert not torch.equal(next(iter(plain)).images, next(iter(with_it)).images)


def test_seeded_globals_restore_even_after_an_error():
    random.seed(3)
    expected = random.random()
    random.seed(3)
    with pytest.raises(KeyError), seeded_globals(1):
        random.random()
        raise KeyError
    assert random.random() == expected


def test_metadata_matter_from_the_start():
    """With embeddings of 0.02 they changed 26 of 1,692 predictions: a model blind to age went unnoticed."""
    torch.manual_seed(0)
    arch = architecture(image_size=32, stages=2)
    model = build(arch).eval()
    images, metadata = inputs(arch, count=64)
    with torch.no_grad():
        fused = model.architecture.weights[0] * model.encoder(images)
        logits = model(images, metadata)
        swapped = model(images, metadata.flip(0))
        for i, embedding in enumerate(model.embeddings.values()):
            fused = fused + model.architecture.weights[i + 1] * embedding(metadata[:, i])
    torch.testing.assert_close(model.classifier(fused), logits)
    moved = (logits - swapped).std() / logits.std()
    assert moved > 0.02, "the metadata's share of the logits is within a few times its weight of 5 %"


def test_embeddings_begin_as_wide_as_the_model_s_settings_say():
    for width in (0.02, 1.0):
        weights, _ = initial_model(tiny_config(model={"embedding_std": width}))
        values = torch.cat([tensor.flatten() for name, tensor in weights.items() if name.startswith("embeddings.")])
        assert float(values.std()) == pytest.approx(width, rel=0.1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_training_steps_fault_no_pages_in_again():
    """Freshly mapped activations and gradients took a tenth of every step: 9,473 faults a step became 39."""
    script = """
import resource, torch
from fedskew.learning.memory import keep_freed_memory
assert keep_freed_memory()
def step():
    parts = [torch.ones(2**20) for _ in range(16)]  # 64 MB, page by page
    return sum(float(part[0]) for part in parts)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert faults < 16_384, "as many in each of the four steps without it"
