"""The presets end at the size that they say: the share rule takes numbers of units, whatever the scores are."""

from pathlib import Path

import pytest
import torch
import yaml

from fedskew.config import load_config
from fedskew.model import cost
from fedskew.model.catalogue import dense_architecture
from fedskew.pruning.decide import apply_plan, decide, within_budget
from fedskew.pruning.schedule import stages_to_prune
from fedskew.pruning.step import limits_of, table_of

STUDY = Path(__file__).parents[1] / "benchmarks" / "studies" / "targets.yaml"


def final_shares(config):
    """Parameters and MACs that a schedule leaves, as shares of the dense model."""
    arch = dense = dense_architecture(config.model)
    prune, generator = config.prune, torch.Generator().manual_seed(0)
    for number in range(1, config.federation.rounds + 1):
        table = table_of(arch, prune, stages_to_prune(prune, number, arch.stages))
        scores = {key: torch.randn(units.count, generator=generator) for key, units in table.items()}
        plan = decide(scores, table, limits_of(prune), rule=prune.rule, share=prune.share)
        budget = {"min_parameters": prune.min_parameters, "min_macs": prune.min_macs}
        arch = apply_plan(arch, within_budget(plan, arch, table, limits_of(prune), **budget))
    return cost.parameters(arch) / cost.parameters(dense), cost.macs(arch).linear / cost.macs(dense).linear


@pytest.mark.parametrize("preset", ["ham10000-small", "ham10000-sites"])
def test_the_small_presets_end_at_a_quarter(preset):
    parameters, macs = final_shares(load_config(preset))
    assert parameters == pytest.approx(0.246, abs=5e-4)
    assert macs == pytest.approx(0.233, abs=5e-4)


def test_the_deep_target_ends_below_twelve_percent():
    settings = yaml.safe_load(STUDY.read_text())["cells"]["deep"]["set"]
    parameters, macs = final_shares(load_config("ham10000-small", overrides=" ".join(settings)))
    assert parameters == pytest.approx(0.116, abs=5e-4)
    assert macs == pytest.approx(0.119, abs=5e-4)
