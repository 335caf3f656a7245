"""Whoever is limited has no say in the limit: weights, norms, class counts, and robust choices that protect nobody."""

import itertools
import math
import re
import statistics

import numpy as np
import pytest
from builders import run_here, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from fedskew.apps import make_client_app
from fedskew.config.schema import ConfigError, FederationConfig
from fedskew.federation.aggregate import limited_counts, limited_weights, reference_norms, too_large, total_counts
from fedskew.federation.checks import MAX_EXAMPLES, Update
from fedskew.federation.folding import (
    SpooledFolding,
    check_effect,
    least_updates,
    make_folding,
    robust_aggregate,
    without_effect,
)
from fedskew.federation.grids import LocalGrid

HUGE = 1e30


def fold(config, updates, own_norm=None, tmp_path=None):
    """What (node, examples, value, norm) come to: each update is a tensor [3] of one value."""
    folding = make_folding(config, 1, tmp_path, own_norm)
    for node, examples, value, norm in updates:
        folding.add(node, Update(node, (), {}, {}, examples, {"w": np.full(3, value, np.float32)}, norm))
    return folding.result()


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"max_weight_ratio": 0.0}, {"a": 10, "b": 20, "c": 30, "d": 100, "e": 40}),
        ({"max_weight_ratio": 2.0}, {"a": 10, "b": 20, "c": 30, "d": 60, "e": 40}),
        ({"max_weight_ratio": 0.0, "weighting": "equal"}, dict.fromkeys("abcde", 1)),
        ({"weighting": "equal", "norm_bound": 3.0}, dict.fromkeys("abcd", 1)),
        ({"aggregation": "median"}, dict.fromkeys("abcde", 1)),
        ({"aggregation": "krum", "malicious_nodes": 1}, {"b": 1}),  # the nearest to its two nearest
        ({"aggregation": "krum", "malicious_nodes": 2}, {}),  # needs seven
    ],
)
def test_whose_update_is_in_the_aggregate_is_said(settings, weights, tmp_path):
    updates = [("a", 10, 1.0, 1.0), ("b", 20, 1.2, 1.0), ("c", 30, 1.5, 1.0), ("d", 100, 3.0, 1.0), ("e", 40, 9.0, 9.0)]
    assert fold(FederationConfig(**settings), updates, tmp_path=tmp_path).weights == weights


@pytest.mark.parametrize(
    ("examples", "ratio", "expected"),
    [
        ((100, 300, 400), 5, (100, 300, 400)),
        ((100, 300, 1600), 5, (100, 300, 1500)),
        ((100, MAX_EXAMPLES), 5, (100, 500)),  # of two the smaller counts: whoever claims more gains nothing
        ((100, 300, 400, MAX_EXAMPLES), 2, (100, 300, 400, 600)),  # lower median 300
        ((1, MAX_EXAMPLES, MAX_EXAMPLES), 0, (1, MAX_EXAMPLES, MAX_EXAMPLES)),
        ((3, 100), 0.1, (1, 1)),  # never nothing
    ],
)
def test_nobody_weighs_more_than_a_multiple_of_the_median(examples, ratio, expected):
    found = limited_weights({f"site-{i}": count for i, count in enumerate(examples)}, ratio)
    assert tuple(found.values()) == expected


def test_the_default_leaves_the_hospitals_of_fed_isic_nearly_alone():
    """FLamby's Fed-ISIC2019 (du Terrail et al., 2022): six hospitals that share 23,247 dermoscopic images."""
    images = {"a": 12413, "b": 3954, "c": 3363, "d": 2259, "e": 819, "f": 439}
    weights = limited_weights(images, FederationConfig().max_weight_ratio)
    assert weights == images | {"a": 11295}
    assert images["a"] / sum(images.values()) - weights["a"] / sum(weights.values()) < 0.03


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=7), st.data())
def test_a_minority_moves_no_limit_beyond_what_honest_nodes_say(honest, data):
    bad = data.draw(st.lists(st.integers(1, MAX_EXAMPLES), max_size=len(honest) - 1))
    found = limited_weights({str(i): count for i, count in enumerate([*honest, *bad])}, 3)
    assert max(found.values()) <= 3 * max(honest)
    norms = {str(i): float(norm) for i, norm in enumerate([*honest, *bad])}
    for node, reference in reference_norms(norms).items():
        if int(node) < len(honest):
            assert reference >= min(honest), "no honest node is set aside for being larger than nothing"
        else:
            assert reference <= max(honest), "no other hides behind its like"


def test_a_reference_is_the_median_of_the_others():
    norms = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0, "e": HUGE}
    found = reference_norms(norms)
    for node in norms:
        others = sorted(norm for other, norm in norms.items() if other != node)
        assert found[node] == others[2] == statistics.median_high(others)
    assert too_large(norms, 3.0) == {"e": 4.0}
    assert reference_norms({"a": 1.0}) == {}
    assert too_large({"a": 1.0, "b": 1.0, "c": 3.0}, 3.0) == {}, "the bound itself is allowed"
    assert too_large({"a": 1.0, "b": 1.0, "c": 3.001}, 3.0) == {"c": 1.0}, "and nothing above it"
    assert too_large({"a": 0.0, "b": 0.0, "c": 0.0}, 3.0) == {}, "nobody changed anything"


def test_class_counts_are_scaled_down_like_weights():
    told = {"a": {"mel": 10, "nv": 90}, "b": {"mel": 20, "nv": 80}, "c": {"mel": 2**28, "nv": 0}}
    assert limited_counts(told, 5) == told | {"c": {"mel": 500, "nv": 0}}
    assert limited_counts({"a": {"mel": 0}}, 5) == {"a": {"mel": 0}}
    scaled = limited_counts({"a": {"mel": 1, "nv": 2}, "b": {"mel": 4, "nv": 7}}, 1)["b"]
    assert scaled == {"mel": 1, "nv": 1}, "11 are told to be 3: 12 / 11 and 21 / 11, rounded down"
    assert all(type(count) is int for count in scaled.values())


def test_the_counts_of_all_are_limited_and_a_suppressed_one_is_not_none():
    told = {"a": {"mel": 10, "nv": 90}, "b": {"mel": 20, "nv": 80}, "c": {"mel": None, "nv": 900}}
    assert total_counts(told, ("nv", "mel", "df"), 0) == (1070, 31, 0)
    assert total_counts(told, ("nv", "mel", "df"), 5) == (90 + 80 + 499, 30, 0), "c counts as 500 of its 901"


def test_zeros_with_two_to_the_28_examples_no_longer_leave_nobody_else_any_weight():
    """The attack of the audit: the mean was 7e-7 of the honest sites' model."""
    sites = [("a", 100, 1.0, 1.0), ("b", 200, 1.0, 1.0), ("c", MAX_EXAMPLES, 0.0, 50.0)]
    found = fold(FederationConfig(), sites)
    assert found.arrays["w"] == pytest.approx([300 / 1300] * 3)
    assert found.limited == {"c": 1000}
    assert fold(FederationConfig(max_weight_ratio=0), sites).arrays["w"].max() < 1e-5, "the attack without the limit"


def test_with_limits_that_bind_nobody_the_mean_has_the_same_bits(tmp_path):
    generator = np.random.default_rng(3)
    updates = [(name, count, generator.normal(), 1.0) for name, count in (("a", 7), ("b", 11), ("c", 9))]
    plain = fold(FederationConfig(max_weight_ratio=0), updates).arrays["w"]
    for order in itertools.permutations(updates):
        for config in (FederationConfig(), FederationConfig(norm_bound=2.0)):
            assert fold(config, order).arrays["w"].tobytes() == plain.tobytes()


def test_updates_that_do_not_fit_into_memory_go_by_disk_with_the_same_result(tmp_path, monkeypatch):
    updates = [("b", 5, 2.0, 1.0), ("a", 3, 1.5, 1.0), ("c", 4, -1.0, 1.0)]
    folding = SpooledFolding(FederationConfig(), 1, tmp_path)
    folding._spool._left = 20  # one tensor of 12 bytes fits
    for node, examples, value, norm in updates:
        folding.add(node, Update(node, (), {}, {}, examples, {"w": np.full(3, value, np.float32)}, norm))
    assert len(list(tmp_path.glob(".updates-*/[0-9]*"))) == 2
    assert folding.result().arrays["w"].tolist() == fold(FederationConfig(), updates).arrays["w"].tolist()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("norms", "bad"),
    [
        ((1.0, 1.2, HUGE), {2}),
        ((1.0, 1.2, 1e-9), set()),  # sending next to nothing sets no honest node aside
        ((1.0, 1.2, 2.5), set()),
        ((1.0, 1.2, 0.9, 1.1, HUGE), {4}),
        ((1.0, 1.2, 0.9, HUGE, HUGE), {3, 4}),  # two of five
        ((1.0, 1.2, 0.9, 1e-9, 1e-9), set()),
    ],
)
def test_the_norm_bound_withstands_a_minority(norms, bad):
    sites = [(f"site-{i}", 10, 1.0, norm) for i, norm in enumerate(norms)]
    found = fold(FederationConfig(norm_bound=3.0), sites, own_norm=lambda: pytest.fail("the majority is enough"))
    assert set(found.refused) == {f"site-{i}" for i in bad}
    assert all("median of the other nodes'" in reason for reason in found.refused.values())


@pytest.mark.parametrize(
    ("norms", "refused"),
    [((1.0, HUGE), {"b"}), ((1.0, 1e-9), set()), ((1e-9, 1.0), set()), ((HUGE, HUGE), {"a", "b"})],
)
def test_of_two_that_contradict_each_other_the_servers_own_step_tells_which(norms, refused):
    """With the median of the round (half of it the attacker's own) 1e30 passed any bound above 2."""
    asked = []
    sites = [(name, 10, 1.0, norm) for name, norm in zip("ab", norms, strict=True)]
    found = fold(FederationConfig(norm_bound=3.0), sites, own_norm=lambda: asked.append(1) or 0.8)
    if norms == (HUGE, HUGE):  # they agree
        assert found.refused == {}, "two of two: nobody contradicts; only the model that comes of it can be judged"
        return
    assert set(found.refused) == refused
    assert asked == [1]


def test_two_that_agree_cost_the_server_nothing():
    found = fold(FederationConfig(norm_bound=3.0), [("a", 1, 1.0, 1.0), ("b", 1, 1.0, 2.9)], lambda: 1e-9)
    assert found.refused == {}, "the server's own step is not asked for"


def test_one_alone_is_compared_with_the_server():
    assert fold(FederationConfig(norm_bound=3.0), [("a", 1, 1.0, 2.0)], lambda: 0.5).refused
    assert not fold(FederationConfig(norm_bound=3.0), [("a", 1, 1.0, 1.4)], lambda: 0.5).refused


def test_where_the_server_has_no_step_of_its_own_nobody_counts_whom_no_other_confirms():
    """One alone, and two that contradict each other; by name and with the reason."""
    for sites in ([("a", 1, 1.0, 2.0)], [("a", 1, 1.0, 1.0), ("b", 1, 1.0, HUGE)]):
        found = fold(FederationConfig(norm_bound=3.0), sites)
        assert set(found.refused) == {name for name, *_ in sites}
        assert all("no other can tell" in reason for reason in found.refused.values())
        assert found.arrays == {}


def test_a_step_of_the_server_that_is_no_number_lets_nobody_through():
    found = fold(FederationConfig(norm_bound=3.0), [("a", 1, 1.0, HUGE)], lambda: math.nan)
    assert set(found.refused) == {"a"}


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"aggregation": "mean"}, 1),
        ({"aggregation": "median"}, 3),
        ({"aggregation": "trimmed-mean"}, 5),
        ({"aggregation": "trimmed-mean", "trim": 0.34}, 3),
        ({"aggregation": "trimmed-mean", "trim": 0.25}, 4),
        ({"aggregation": "krum", "malicious_nodes": 1}, 5),
        ({"aggregation": "krum", "malicious_nodes": 2}, 7),
    ],
)
def test_below_this_number_a_robust_aggregation_protects_nobody(settings, least):
    config = FederationConfig(**settings)
    assert least_updates(config) == least
    assert without_effect(config, least) == ""
    if least > 1:
        reason = without_effect(config, least - 1)
        assert settings["aggregation"] in reason
        assert f"needs {least}" in reason


@pytest.mark.parametrize(("kind", "nodes"), [("median", 3), ("trimmed-mean", 5), ("krum", 5)])
def test_from_this_number_on_flowers_aggregation_withstands_one(kind, nodes):
    """Flower itself: the least number is enough, and with one node fewer the bad value shows."""
    config = FederationConfig(aggregation=kind, malicious_nodes=1)
    for count, withstands in ((nodes, True), (2, False)):
        values = [1.0 + 0.1 * i for i in range(count - 1)] + [1e6]
        if kind == "krum" and count == 2:
            continue
        found = robust_aggregate(config, [(1, {"w": np.full(2, v, np.float32)}) for v in values], 1)
        assert (found["w"].max() < 2) == withstands


@pytest.mark.parametrize(
    ("federation", "nodes", "words"),
    [
        ({"aggregation": "trimmed-mean"}, 3, ("trimmed-mean", "trim=0.2", "needs 5", "there are 3", "connect more")),
        ({"aggregation": "trimmed-mean", "min_nodes": 3}, None, ("needs 5", "federation.min-nodes")),
        ({"aggregation": "krum", "malicious_nodes": 1}, 4, ("krum", "needs 5", "there are 4")),
        ({"aggregation": "krum"}, 9, ("malicious-nodes is 0",)),
        ({"aggregation": "trimmed-mean", "trim": 0.0}, 9, ("trim is 0",)),
        ({"aggregation": "median"}, 2, ("median", "needs 3")),
        ({"aggregation": "median", "fraction": 0.2}, 10, ("needs 3", "there are 2")),
        ({"aggregation": "trimmed-mean", "min_nodes": 5}, 3, ("needs 5", "there are 3")),  # five will never be there
    ],
)
def test_a_robust_choice_without_effect_is_refused_at_the_start(federation, nodes, words):
    with pytest.raises(ConfigError) as error:
        check_effect(tiny_config(federation=federation), nodes)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("federation", "nodes"),
    [({}, 1), ({"aggregation": "median"}, 3), ({"aggregation": "trimmed-mean", "min_nodes": 5}, None)],
)
def test_one_that_has_an_effect_is_not(federation, nodes):
    check_effect(tiny_config(federation=federation), nodes)


def test_a_round_that_falls_to_a_number_without_effect_has_no_aggregate():
    config = FederationConfig(aggregation="median")
    found = fold(config, [("a", 1, 1.0, 1.0), ("b", 1, 5.0, 1.0)])
    assert found.arrays == {}
    assert "median needs 3 updates" in found.no_effect
    bounded = FederationConfig(aggregation="median", norm_bound=2.0)
    found = fold(bounded, [("a", 1, 1.0, 1.0), ("b", 1, 1.0, 1.0), ("c", 1, 1.0, HUGE)])
    assert set(found.refused) == {"c"}
    assert "there are 2" in found.no_effect


@pytest.mark.parametrize(
    ("clients", "federation", "level", "words"),
    [
        ("own", {"norm_bound": 3.0}, "WARNING", "aggregation=mean: one patient hostile site .*norm-bound=3.*median"),
        ("own", {}, "WARNING", "aggregation=mean: one patient hostile site .* by any distance.*median"),
        ("own", {"aggregation": "median", "min_nodes": 3}, "INFO", "=median: one .* fewer than 3 good answers"),
        ("partition", {}, "", ""),  # a simulation: nobody is hostile there
    ],
)
def test_the_start_of_a_run_says_what_one_hostile_site_can_do(
    clients, federation, level, words, generated, tmp_path, caplog
):
    folders = {node: {"data-dir": str(generated), "name": f"site-{node}"} for node in (1, 2, 3)}
    config = tiny_config(
        data={"clients": clients}, prune={"criterion": "none"}, federation={"rounds": 1, **federation},
        run={"output_dir": str(tmp_path)},
    )  # fmt: skip
    grid = LocalGrid(make_client_app(), 3, node_configs=folders if clients == "own" else None)
    with caplog.at_level("INFO"):
        run_here(config, grid=grid)
    found = [record for record in caplog.records if "hostile site" in record.getMessage()]
    assert [record.levelname for record in found] == ([level] if level else [])
    assert all(re.search(words, record.getMessage()) for record in found)
