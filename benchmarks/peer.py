"""Torch-Pruning as the outside peer: the same dense model, the same sizes, the same fine-tuning.

    pip install 'fedskew[peer]'
    python benchmarks/peer.py HAM10000 --work WORK --minutes 8     # until it says "finished"; WORK of criteria_quick

Torch-Pruning (Fang et al., DepGraph, 2023) by its magnitude and its Taylor importance, with one ratio for all layers
(`uniform`) or one ranking over all (`global`), of heads and hidden channels (`inner`, what fedskew removes) or of the
width of the residual stream too: with a pruner for patch merging that its user writes (`all`), or without (`plain`).
fedskew by `l2-norm`, `taylor` and `skewness` with `prune.rule=budget`. For each size, both end at the same share of the
dense parameters, then at the same share of the dense MACs; the ratio that Torch-Pruning needs for it is found by
halving, from above: it may keep a little more. Latency is that of a forward pass over the dense model's, in turns
(`timing`). What cannot be done is on record with its message.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
import torch_pruning as tp
from central import FINAL, ONE_SHOT, UNFINISHED, Bench, Pause, cell, dense_model, in_points, parser, predictions_of
from timing import finish, interleaved, median_ratio
from timm.models.swin_transformer import PatchMerging, WindowAttention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedskew.data.batches import Batch
from fedskew.metrics.paired import paired_over_seeds
from fedskew.model.fusion import MultimodalModel, build
from fedskew.pruning.annotations import Annotations
from fedskew.pruning.budget import check_budget, only_step
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.step import propose

Record = dict[str, Any]
OURS = ("skewness", "l2-norm", "taylor")
THEIRS = (
    *(f"tp-{importance}-{ranking}-{scope}" for importance in ("taylor", "magnitude")
      for ranking, scope in (("global", "inner"), ("global", "all"), ("uniform", "inner"), ("uniform", "all"))),
    "tp-magnitude-uniform-plain",
)  # fmt: skip
HALVINGS = 9
METRICS = ("balanced_accuracy", "auroc_macro")


class MergingPruner(tp.BasePruningFunc):
    """Patch merging for Torch-Pruning, which does not see that one channel of a token is four of the merged one."""

    def prune_out_channels(self, layer: PatchMerging, idxs: list[int]) -> PatchMerging:
        """Less channels behind it."""
        tp.prune_linear_out_channels(layer.reduction, idxs)
        return layer

    def prune_in_channels(self, layer: PatchMerging, idxs: list[int]) -> PatchMerging:
        """Less channels before it."""
        width = self.get_in_channels(layer)
        merged = [index + part * width for part in range(4) for index in idxs]
        tp.prune_layernorm_out_channels(layer.norm, merged)
        tp.prune_linear_in_channels(layer.reduction, merged)
        return layer

    def get_out_channels(self, layer: PatchMerging) -> int:
        """Channels behind it."""
        return layer.reduction.out_features

    def get_in_channels(self, layer: PatchMerging) -> int:
        """Channels before it."""
        return layer.reduction.in_features // 4


def theirs(model: nn.Module, batch: Batch, ratio: float, importance: str, ranking: str, scope: str) -> nn.Module:
    """Prune a model in place with Torch-Pruning, as its user has to write it for timm's Swin."""
    attentions = [module for module in model.modules() if isinstance(module, WindowAttention)]
    mergings = [module for module in model.modules() if isinstance(module, PatchMerging)]
    ignored = [model.classifier, *(attention.relative_position_bias_table for attention in attentions)]
    merging: dict[str, Any] = {}
    if scope == "all":
        merging = {"customized_pruners": {PatchMerging: MergingPruner()},
                   "root_module_types": [nn.Linear, nn.Conv2d, PatchMerging]}  # fmt: skip
    elif scope == "inner":
        ignored += [model.encoder.patch_embed.proj, *(layer.reduction for layer in mergings)]
    if importance == "taylor":
        model.zero_grad()
        nn.functional.cross_entropy(model(batch.images, batch.metadata), batch.labels).backward()
    measure = {"taylor": tp.importance.GroupTaylorImportance, "magnitude": tp.importance.GroupMagnitudeImportance}
    pruner = tp.pruner.BasePruner(
        model, (batch.images[:2], batch.metadata[:2]), measure[importance](), global_pruning=ranking == "global",
        pruning_ratio=ratio, head_pruning_ratio=ratio, prune_num_heads=True, prune_head_dims=False,
        num_heads={attention.qkv: attention.num_heads for attention in attentions}, ignored_layers=ignored, **merging,
    )  # fmt: skip
    owner = {attention.qkv: attention for attention in attentions}
    for group in pruner.step(interactive=True):
        gone = {dep.target.module: indices for dep, indices in group
                if dep.target.module in owner and pruner.DG.is_out_channel_pruning_fn(dep.handler)}  # fmt: skip
        widths = {layer: layer.out_features // 3 for layer in gone}
        group.prune()
        for layer, indices in gone.items():
            attention, width = owner[layer], widths[layer]
            heads = {index % width * attention.num_heads // width for index in indices}
            kept = [head for head in range(attention.num_heads) if head not in heads]
            table = attention.relative_position_bias_table.detach()[:, kept]
            attention.relative_position_bias_table, attention.num_heads = nn.Parameter(table), len(kept)
    model.zero_grad()
    return model


def ours(model: MultimodalModel, batch: Batch, settings: Any) -> MultimodalModel:
    """The same with fedskew: `fedskew.prune` does this, with the checks."""
    known, stages = Annotations(batch.labels, batch.metadata), tuple(range(model.architecture.stages))
    plan = propose(model, batch.images, settings, stages, 0, known=known).plan
    state, smaller = slice_model(model.state_dict(), model.architecture, plan)
    return build(smaller, state)


def size(model: nn.Module, batch: Batch) -> dict[str, int]:
    """Parameters, and MACs of linear and convolution layers, counted as they run: for models of either."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch.images[:1], batch.metadata[:1])
    flops = counter.get_flop_counts()["Global"]
    linear = sum(count for operation, count in flops.items() if "bmm" not in str(operation))
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "macs": linear // 2}


def to_size(dense: nn.Module, batch: Batch, kind: str, share: float, variant: tuple[str, ...]) -> nn.Module:
    """The smallest model of a variant that is not below a share of the dense one, by halving the ratio."""
    least, low, high = share * size(dense, batch)[kind], 0.0, 0.98
    best = None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        model = theirs(copy.deepcopy(dense), batch, ratio, *variant)
        if size(model, batch)[kind] >= least:
            low, best = ratio, model
        else:
            high = ratio
    if best is None:
        raise RuntimeError(f"no ratio up to {high:.3f} keeps {share:.0%} of the {kind}")
    return best


def latency(dense: nn.Module, model: nn.Module, batch: Batch, images: int, repeats: int) -> float:
    """Of a forward pass, over that of the dense model."""

    def forward(of: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode():
                return of.eval()(batch.images[:images], batch.metadata[:images])

        return run

    seconds = interleaved({"dense": forward(dense), "pruned": forward(model)}, repeats)
    return round(median_ratio(seconds["pruned"], seconds["dense"]), 4)


def lines_of_code(*functions: Any) -> int:
    """Lines that say something."""
    lines = [line.strip() for function in functions for line in inspect.getsource(function).splitlines()]
    return sum(bool(line) and not line.startswith(("#", '"""')) for line in lines)


def shrunk(bench: Bench, dense: MultimodalModel, batch: Batch, method: str, kind: str, share: float) -> nn.Module:
    """The dense model by a method at a size."""
    if method.startswith("tp-"):
        return to_size(dense, batch, kind, share, tuple(method.split("-")[1:]))
    budget = {"min_parameters": share if kind == "parameters" else 0.0, "min_macs": share if kind == "macs" else 0.0}
    settings = replace(bench.config.prune, criterion=method, rule="budget", **budget)
    check_budget(dense.architecture, settings, only_step(range(dense.architecture.stages)))
    return ours(dense, batch, settings)


def measured(
    bench: Bench, dense: MultimodalModel, batch: Batch, asked: Any, method: str, kind: str, share: float
) -> tuple[nn.Module, Record]:
    """The dense model by a method at a size, how large it is and how fast, as shares of the dense one."""
    model = shrunk(bench, dense, batch, method, kind, share)
    whole, now = size(dense, batch), size(model, batch)
    times = {f"latency {images}": latency(dense, model, batch, images, asked.repeats) for images in (1, 16)}
    return model, {key: round(value / whole[key], 4) for key, value in now.items()} | times


def run(bench: Bench, asked: Any) -> list[Record]:
    """Every record; raises `Pause`."""
    records = []
    for seed in asked.seeds:
        dense = dense_model(bench, seed, asked.dense_epochs)
        batch, _ = bench.batch(dense, seed)
        for share, kind, method in product(sorted(asked.sizes), asked.kinds, asked.methods):
            make = partial(measured, bench, dense, batch, asked, method, kind, share)
            try:
                record = cell(bench, f"{method}-{kind}-{share:g}", seed, asked.epochs, make)
            except (RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
                record = {"seed": seed, "failed": f"{type(error).__name__}: {error}"}
                print(f"{method}, {share:.0%} of the {kind}: {record['failed']}", flush=True)
            records.append({"method": method, "kind": kind, "size": share} | record)
    return records


def rows_of(bench: Bench, records: list[Record]) -> list[Record]:
    """What is compared: each method at each size, and what fedskew's Taylor has over it at the same size."""
    rows = []
    for record in records:
        row = {key: record[key] for key in ("method", "kind", "size", "seed")}
        if "failed" in record:
            rows.append(row | {"failed": record["failed"]})
            continue
        row |= {key: record[key] for key in ("parameters", "macs", "latency 1", "latency 16")}
        row |= {f"{when} {metric}": record[when][metric] for when in (ONE_SHOT, FINAL) for metric in METRICS}
        own = next((other for other in records if other["method"] == "taylor" and "failed" not in other and all(
            other[key] == record[key] for key in ("kind", "size", "seed"))), None)  # fmt: skip
        if own and own is not record:
            pair = [[predictions_of(bench, each, FINAL)] for each in (own, record)]
            row |= {f"{metric} over taylor": in_points(found) for metric in METRICS
                    if (found := paired_over_seeds(*pair, metric))}  # fmt: skip
        rows.append(row)
    return rows


def main() -> int:
    """Exit code 0 when all is done, `UNFINISHED` when the time was up."""
    options = parser(__doc__)
    options.add_argument("--sizes", type=float, nargs="+", default=[0.5, 0.3, 0.15])
    options.add_argument("--kinds", nargs="+", default=["parameters", "macs"], choices=["parameters", "macs"])
    options.add_argument("--methods", nargs="+", default=[*OURS, *THEIRS])
    options.add_argument("--repeats", type=int, default=30, help="of the latency")
    asked = options.parse_args()
    bench = Bench.opened(asked)
    try:
        records = run(bench, asked)
    except Pause:
        return UNFINISHED
    lines = {"fedskew": lines_of_code(ours), "Torch-Pruning": lines_of_code(theirs, MergingPruner)}
    print(f"lines of user code: {lines}")
    finish("peer", rows_of(bench, records), asked.out)
    print("finished")
    return 0


if __name__ == "__main__" and (code := main()):
    sys.exit(code)
