"""What a person looks at before a run: every setting, and what a pruning step would remove."""

from __future__ import annotations

import io
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fedskew.architecture import Architecture
from fedskew.config import Config, load_config
from fedskew.data.masks import read_masks
from fedskew.data.prepare import batches, divide_open, open_data, scoring_images, split_server
from fedskew.data.samples import DataError
from fedskew.model import cost
from fedskew.pruning.decide import Plan, apply_plan
from fedskew.pruning.focus import control_masks, measure_focus
from fedskew.pruning.focus_summary import focus_summary
from fedskew.pruning.score import few_value_warnings, sign_tables
from fedskew.pruning.step import propose
from fedskew.pruning.units import ATTENTION, MLP, SublayerKey, unit_count
from fedskew.runs.folder import CONFIG, MODEL
from fedskew.runs.modelfile import load_model
from fedskew.runs.record import sign_rows


def option_table() -> str:
    """Every setting with its default, its choices or bounds, and what it is for."""
    table = Table("setting", "default", "allowed", "what it is for")
    for section in fields(Config):
        kind = section.default_factory
        if not is_dataclass(kind):
            continue
        for spec in fields(kind):
            doc, choices, low, high = (spec.metadata[key] for key in ("doc", "choices", "low", "high"))
            bounds = " | ".join(map(str, choices)) if choices else _bounds(low, high)
            default = ", ".join(spec.default) if isinstance(spec.default, tuple) else str(spec.default)
            table.add_row(f"{section.name}.{spec.name.replace('_', '-')}", default, bounds, doc)
    return _render(table, 150)


def _bounds(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    return f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"


def plan_report(run: Path, data: Path, overrides: str) -> str:
    """What the next pruning step of a run's model would remove, block by block; nothing is changed.

    All stages are scored, whatever the schedule; `overrides` may set any `prune.*` key.
    """
    model = load_model(run / MODEL)
    config = load_config(file=run / CONFIG, overrides=f"{overrides} data.dir={data} data.source=folder".strip())
    opened = open_data(config.data, model.architecture.image_size)
    training, _ = divide_open(opened, split_server(opened, config.data), config.data)
    scoring = scoring_images(training, config.prune.batch_size, config.run.seed)
    images = next(iter(batches(opened, scoring, model.architecture, batch_size=len(scoring)))).images
    proposal = propose(model, images, config.prune, tuple(range(len(model.architecture.stages))), config.run.seed)
    warnings = [f"warning: {line}" for line in few_value_warnings(proposal.scored, config.prune.reading)]
    return "\n".join([
        plan_table(model.architecture, proposal.plan, config.prune.mlp_group),
        sign_table(sign_rows(sign_tables(proposal.scored)), len(scoring), config.prune.views),
        *warnings,
    ])  # fmt: skip


def sign_table(rows: list[dict[str, Any]], images: int, views: int) -> str:
    """How two halves of the scoring images judge the units: as a table, or why there is none."""
    if not rows:
        return "signs: not compared, as the scores do not come from images or there is only one of them"
    table = Table("stage", "kind", "units", "same sign", "by chance", "κ")
    for row in rows:
        kappa = "-" if row["kappa"] is None else f"{row['kappa']:.2f}"
        cells = (str(row["stage"]), row["kind"], str(row["units"]), f"{row['share']:.1%}", f"{row['chance']:.1%}")
        table.add_row(*cells, kappa)
    seen = f"{images - images // 2} images against {images // 2} others, views of each: {views}"
    return f"Signs by {seen}\n{_render(table, 100)}".rstrip()


def focus_report(run: Path, data: Path, masks: Path, images: int, *, best: bool = False) -> dict[str, Any]:
    """Whether the units that skewness keeps look at the lesion more than those it prunes, on open images.

    One image a lesion, so that images are independent and another image's mask is another lesion's. The result has
    `model`, `images` (how many were looked at), `reading`, and for `attention` and `mlp` what
    `focus_summary.focus_summary` describes.
    """
    model = load_model(run / ("best" if best else "") / MODEL)
    arch = model.architecture
    config = load_config(file=run / CONFIG, overrides=f"data.dir={data} data.source=folder")
    opened = open_data(config.data, arch.image_size)
    order = np.random.default_rng(config.run.seed).permutation(split_server(opened, config.data).open)
    _, first = np.unique([opened.samples[i].group for i in order], return_index=True)
    chosen = np.sort(order[np.sort(first)][:images])
    ids = [opened.samples[i].image_id for i in chosen]
    if len(ids) < 2:
        raise DataError(f"{len(ids)} open lesion of {opened.place} is chosen, a control needs another: raise --images")
    inside = torch.from_numpy(read_masks(masks, ids, image_size=arch.image_size, fit=config.data.fit))
    batch = next(iter(batches(opened, chosen, arch, batch_size=len(chosen))))
    found = measure_focus(model, batch.images, control_masks(inside, config.run.seed), reading=config.prune.reading)
    return {
        "model": str(run),
        "images": len(ids),
        "reading": config.prune.reading,
        **focus_summary(found, seed=config.run.seed),
    }


def plan_table(arch: Architecture, plan: Plan, group: str) -> str:
    """A plan as a table: heads with their scores, MLP groups as counts, and the size of what would be left."""
    table = Table("stage", "block", "heads that go", "head scores", "MLP groups that go", "hidden width")
    after = apply_plan(arch, plan, group)
    for stage, block in arch.positions():
        heads, groups = SublayerKey(stage, block, ATTENTION), SublayerKey(stage, block, MLP)
        scores = plan.scores.get(heads)
        names = [str(arch.block(stage, block).heads[unit]) for unit in plan.remove.get(heads, ())]
        gone = len(plan.remove.get(groups, ()))
        width = f"{arch.block(stage, block).hidden} → {after.block(stage, block).hidden}"
        shown = " ".join(f"{score:.2f}" for score in scores.tolist()) if scores is not None else ""
        table.add_row(
            str(stage), str(block), " ".join(names) or "-", shown, f"{gone} of {unit_count(arch, groups, group)}", width
        )
    parameters = cost.parameters(after) / cost.parameters(arch)
    macs = cost.macs(after).linear / cost.macs(arch).linear
    return (
        _render(table, 140)
        + f"{plan.units} units would go; left: {parameters:.1%} of the parameters, {macs:.1%} of the MACs"
    )


def _render(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
