"""What a person looks at before a run: what a pruning step would remove, and what kept units look at."""

from __future__ import annotations

import io
import shlex
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fedskew.cli.terminal import wrapped
from fedskew.config import Config, ConfigError
from fedskew.config.load import load_saved
from fedskew.data.masks import read_masks
from fedskew.data.samples import DataError
from fedskew.learning.datasets import batches, divide_open, open_data, scoring_images, split_server
from fedskew.learning.judging import best_record
from fedskew.model import cost
from fedskew.model.architecture import Architecture
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.model.modelfile import load_model
from fedskew.pruning.annotations import Annotations
from fedskew.pruning.budget import check_budget, only_step
from fedskew.pruning.decide import Plan, apply_plan
from fedskew.pruning.schedule import stages_to_prune
from fedskew.pruning.score import few_value_warnings, sign_tables
from fedskew.pruning.step import propose
from fedskew.runs.folder import CONFIG, METRICS, MODEL, RunFolder, RunFolderError
from fedskew.runs.record import sign_rows
from fedskew.runs.start_checks import check_rule
from fedskew.tools.lesion_attention import control_masks, measure_focus
from fedskew.tools.lesion_summary import focus_summary


@dataclass(frozen=True)
class PlanReport:
    """What the next pruning step of a model would remove, and how stable the scores behind it are.

    Attributes:
        signs: rows of `runs.record.sign_rows`.
        images, views: that the scores come from.
        schedule: which step the run itself takes next.
    """

    architecture: Architecture
    plan: Plan
    signs: list[dict[str, Any]]
    images: int
    views: int
    warnings: list[str]
    schedule: str


def run_config(run: Path, overrides: str = "", *, data: str = "", manifest: str = "") -> Config:
    """The configuration of a run, on other data than its own where such are given (absolute paths).

    Raises:
        RunFolderError: no run folder.
        ConfigError: overrides that cannot be used.
    """
    if not (run / CONFIG).is_file():
        raise RunFolderError(f"{run} is no run folder: it holds no {CONFIG}")
    given = {"data.dir": data, "data.source": "folder" if data else "", "data.manifest": manifest}
    own = [shlex.quote(f"{key}={value}") for key, value in given.items() if value]
    return load_saved(run / CONFIG, overrides=" ".join([overrides, *own]).strip())


def plan_report(run: Path, config: Config, *, best: bool = False) -> PlanReport:
    """What the next pruning step of a run's model would remove; nothing is changed.

    All stages are scored, whatever the schedule, which the report tells.

    Raises:
        ConfigError: the run prunes nothing (`prune.criterion=none`), or by a rule that removes nothing.
    """
    if config.prune.criterion == "none":
        raise ConfigError(
            f"{run} is a run without pruning (prune.criterion=none): no step would remove anything. See what a "
            "criterion would remove with --set prune.criterion=skewness"
        )
    check_rule(config.prune)
    model = load_model(run / ("best" if best else "") / MODEL)
    opened = open_data(config.data, model.architecture.image_size)
    training, _ = divide_open(opened, split_server(opened, config.data), config.data)
    scoring = scoring_images(training, config.prune.batch_size, config.run.seed)
    images, metadata, labels = next(iter(batches(opened, scoring, model.architecture, batch_size=len(scoring))))
    stages = tuple(range(model.architecture.stages))
    check_budget(model.architecture, config.prune, only_step(stages))
    proposal = propose(model, images, config.prune, stages, config.run.seed, known=Annotations(labels, metadata))
    return PlanReport(
        model.architecture, proposal.plan, sign_rows(sign_tables(proposal.scored)),
        len(scoring), config.prune.views, few_value_warnings(proposal.scored, config.prune.reading),
        schedule_text(config, _round_of(run, best=best), model.architecture.stages),
    )  # fmt: skip


def _round_of(run: Path, *, best: bool) -> int:
    """The round that a run's model is of; 0 before there is any."""
    records = RunFolder(run).records() if (run / METRICS).is_file() else []
    record = best_record(records) if best else None
    return int((record or records[-1])["round"]) if records else 0


def schedule_text(config: Config, number: int, stages: int) -> str:
    """What the schedule of a run has next after round `number`, which the plan of all stages is not bound by."""
    last = config.federation.rounds
    step = next((after for after in range(number + 1, last + 1) if stages_to_prune(config.prune, after, stages)), None)
    head = "this plan scores all stages, whatever the schedule"
    if step is None:
        return f"{head}; the run itself takes no more step after round {number} of {last}"
    names = ", ".join(str(stage) for stage in stages_to_prune(config.prune, step, stages))
    own = f"the run's own next step is that after round {step} of {last}"
    return f"{head}; {own}, in stages {names} (of 0 to {stages - 1})"


def plan_text(report: PlanReport) -> str:
    """A plan for a person: block by block, then how two halves of the images judge the units."""
    return "\n".join([
        plan_table(report.architecture, report.plan),
        sign_table(report.signs, report.images, report.views),
        wrapped(report.schedule),
        *(wrapped(f"warning: {line}") for line in report.warnings),
    ])  # fmt: skip


def plan_data(report: PlanReport) -> dict[str, Any]:
    """The same, JSON-ready. `heads` are numbers of the dense model; scores are None where there are none."""
    arch, plan = report.architecture, report.plan
    after, blocks = apply_plan(arch, plan), []
    for stage, block in arch.blocks:
        heads, channels = SublayerKey(stage, block, ATTENTION), SublayerKey(stage, block, MLP)
        blocks.append({
            "stage": stage,
            "block": block,
            "heads": _heads_that_go(arch, plan, heads),
            "mlp_groups": list(plan.remove.get(channels, ())),
            "attention_scores": _scores(plan, heads),
            "mlp_scores": _scores(plan, channels),
            "hidden_before": arch.units[channels],
            "hidden_after": after.units[channels],
        })  # fmt: skip
    shares = {"parameters_left": cost.parameters(after) / cost.parameters(arch),
              "macs_left": cost.macs(after).linear / cost.macs(arch).linear}  # fmt: skip
    return {"units": plan.units, **shares, "blocks": blocks, "signs": report.signs, "images": report.images,
            "views": report.views, "warnings": report.warnings, "schedule": report.schedule}  # fmt: skip


def _heads_that_go(arch: Architecture, plan: Plan, key: SublayerKey) -> list[int]:
    """Their numbers in the dense model."""
    kept = arch.left[key]
    return [] if isinstance(kept, int) else [kept[unit] for unit in plan.remove.get(key, ())]


def _scores(plan: Plan, key: SublayerKey) -> list[float | None] | None:
    """Scores of a sublayer; None for what is not finite, as JSON knows no NaN."""
    scores = plan.scores.get(key)
    return None if scores is None else [score if np.isfinite(score) else None for score in scores.tolist()]


def sign_table(rows: list[dict[str, Any]], images: int, views: int) -> str:
    """How two halves of the scoring images judge the units: as a table, or why there is none."""
    if not rows:
        return wrapped("signs: not compared, as the scores do not come from images or there is only one of them")
    table = Table("stage", "kind", "units", "same sign", "by chance", "κ")
    for row in rows:
        kappa = "-" if row["kappa"] is None else f"{row['kappa']:.2f}"
        cells = (str(row["stage"]), row["kind"], str(row["units"]), f"{row['share']:.1%}", f"{row['chance']:.1%}")
        table.add_row(*cells, kappa)
    seen = f"{images - images // 2} images against {images // 2} others, views of each: {views}"
    return f"Signs by {seen}\n{_render(table)}".rstrip()


def focus_report(run: Path, config: Config, masks: Path, images: int, *, best: bool = False) -> dict[str, Any]:
    """Whether the units that skewness keeps look at the lesion more than those it prunes, on open images.

    One image a lesion, so that images are independent and another image's mask is another lesion's. The result has
    `model`, `images` (how many were looked at), `reading`, and for `attention` and `mlp` what
    `focus_summary.focus_summary` describes.
    """
    model = load_model(run / ("best" if best else "") / MODEL)
    arch = model.architecture
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


def focus_text(found: dict[str, Any]) -> str:
    """The focus for a person: kept against pruned units, for heads and MLP groups, in every scope."""
    table = Table("units", "kept/pruned", "own mask", "minus another's", "minus a disc")
    verdicts = []
    for kind in (ATTENTION, MLP):
        for scope, row in found.get(kind, {}).items():
            own, other, disc = (row[key] for key in ("own", "own_minus_other", "own_minus_disc"))
            table.add_row(
                f"{kind}, {scope}", f"{row['kept']}/{row['pruned']}",
                _interval(own, "probability", ""), _interval(other, "difference", "+"),
                _interval(disc, "difference", "+"),
            )  # fmt: skip
            verdicts += [f"{kind}, {scope}: {row['verdict']}"] if not scope.startswith("stage") else []
    return (
        f"{found['model']}, {found['images']} images, reading {found['reading']}\n{_render(table)}"
        "own mask: probability that a kept unit looks at the lesion more than a pruned one\n"
        "(0.5: no difference); all with 95 % intervals\n" + "\n".join(verdicts)
    )


def _interval(figure: dict[str, float | None] | None, key: str, sign: str) -> str:
    if figure is None or figure[key] is None:
        return "-"
    return "{0:{s}.2f} [{1:{s}.2f}, {2:{s}.2f}]".format(figure[key], figure["low"], figure["high"], s=sign)


def plan_table(arch: Architecture, plan: Plan) -> str:
    """A plan as a table: heads with their scores, MLP groups as counts, and the size of what would be left."""
    table = Table("stage", "block", "heads that go", "head scores", "MLP groups that go", "hidden width")
    after = apply_plan(arch, plan)
    for stage, block in arch.blocks:
        heads, channels = SublayerKey(stage, block, ATTENTION), SublayerKey(stage, block, MLP)
        scores = plan.scores.get(heads)
        names = [str(head) for head in _heads_that_go(arch, plan, heads)]
        gone, of = len(plan.remove.get(channels, ())), arch.units[channels] // plan.size(channels)
        width = f"{arch.units[channels]} → {after.units[channels]}"
        shown = " ".join(f"{score:.2f}" for score in scores.tolist()) if scores is not None else ""
        table.add_row(str(stage), str(block), " ".join(names) or "-", shown, f"{gone} of {of}", width)
    parameters = cost.parameters(after) / cost.parameters(arch)
    macs = cost.macs(after).linear / cost.macs(arch).linear
    left = f"left: {parameters:.1%} of the parameters, {macs:.1%} of the MACs"
    return f"{_render(table)}{plan.units} units would go; {left}"


def _render(table: Table) -> str:
    console = Console(file=io.StringIO(), width=get_terminal_size().columns)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
