"""Is the sign of a unit's skewness more than noise? Agreement between disjoint sets of scoring images.

    python benchmarks/sign_stability.py /path/to/HAM10000 [--seeds 0 1 2] [--epochs 12] [--set SETTINGS]

For each seed a small Swin is trained on the open images alone; then two disjoint sets of open images are scored
apart, for every reading, 64, 128 or 256 images and 1, 4 or 8 views, several times with other sets. The table gives
the share of units with the same sign and the share by chance (stages 0 to 3, heads and MLP groups; mean over draws
and seeds), and over all units: Cohen's kappa, and the share that the sign rule would remove.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import defaultdict
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import finish, parser

from fedskew.config import Config, load_config
from fedskew.config.schema import PruneConfig
from fedskew.learning.datasets import batches, open_data, split_server
from fedskew.learning.initial import initial_model
from fedskew.learning.server_data import ServerData
from fedskew.model.catalogue import image_size
from fedskew.model.fusion import MultimodalModel, build
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.agreement import SignTable
from fedskew.pruning.criteria import READINGS, Summary, skewness
from fedskew.pruning.observe import Observation, observe
from fedskew.pruning.score import view
from fedskew.pruning.units import bundles

IMAGES, VIEWS = (64, 128, 256), (1, 4, 8)
DRAWS = 6
Place = tuple[int, int]  # (block of images, view)
Summaries = dict[Place, dict[tuple[str, SublayerKey], Summary]]


def trained(config: Config) -> tuple[MultimodalModel, torch.Tensor]:
    """A model trained on the open images, and those images [N, 3, S, S] in an order drawn from the seed."""
    data = open_data(config.data, image_size(config.model))
    split = split_server(data, config.data)
    server = ServerData(config, data, split)
    state, arch = initial_model(config)
    model = build(arch, server.warm_start(state, arch)[0]).eval()
    order = np.random.default_rng(config.run.seed).permutation(split.open)
    return model, next(iter(batches(data, order, arch, batch_size=len(order)))).images


def summaries(model: MultimodalModel, images: torch.Tensor, size: int, views: int, prune: PruneConfig) -> Summaries:
    """What every reading keeps of every sublayer, for every block of so many images and every view of it."""
    found: Summaries = {}
    table = bundles(model.architecture, prune.mlp_group)
    for block, number in itertools.product(range(len(images) // size), range(views)):
        here = found[block, number] = {}

        def look(seen: Observation, here: dict[tuple[str, SublayerKey], Summary] = here) -> None:
            here.update({(reading, seen.key): skewness(seen, reading=reading) for reading in READINGS})

        chunk = view(images[block * size : (block + 1) * size], number)
        observe(model, chunk, look, table, activation=prune.mlp_activation)
    return found


def signs(found: Summaries, reading: str, blocks: np.ndarray, views: int) -> dict[SublayerKey, torch.Tensor]:
    """Scores of every unit from some blocks of images, all their views together."""
    places = [(int(block), number) for number in range(views) for block in blocks]  # `first` takes the plain view
    keys = [key for read, key in found[places[0]] if read == reading]
    merged = {key: reduce(lambda a, b: a.merged(b), (found[place][reading, key] for place in places)) for key in keys}
    return {key: summary.scores() for key, summary in merged.items()}


def compared(found: Summaries, reading: str, half: int, views: int, seed: int) -> list[dict[SublayerKey, SignTable]]:
    """Tables of the signs from two disjoint sets of `half` blocks of images, for several draws."""
    generator = np.random.default_rng(seed)
    tables = []
    for _ in range(DRAWS):
        blocks = generator.permutation(1 + max(block for block, _ in found))[: 2 * half]
        pair = [signs(found, reading, part, views) for part in (blocks[:half], blocks[half:])]
        tables.append({key: SignTable.of(pair[0][key], pair[1][key]) for key in pair[0]})
    return tables


def row(reading: str, images: int, views: int, tables: list[dict[SublayerKey, SignTable]]) -> dict[str, Any]:
    """One line of the table."""
    groups: dict[tuple[str, int], SignTable] = defaultdict(SignTable)
    for table in tables:
        for key, signs_ in table.items():
            groups[key.kind, key.stage] += signs_
    line: dict[str, Any] = {"reading": reading, "images": images, "views": views}
    for kind, name in ((ATTENTION, "heads"), (MLP, "MLP")):
        stages = {stage: table for (found, stage), table in sorted(groups.items()) if found == kind}
        for stage, table in stages.items():
            line |= {f"{name} {stage}": table.share, f"{name} {stage} chance": table.chance}
        whole = sum(stages.values(), SignTable())
        line |= {f"{name} kappa": whole.kappa, f"{name} chance": whole.chance,
                 f"{name} removed": 1 - (whole.both + (whole.first + whole.second) / 2) / whole.units}  # fmt: skip
    return line


def options() -> argparse.Namespace:
    """What was asked for on the command line."""
    found = parser(__doc__)
    found.add_argument("data", type=Path)
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--epochs", type=int, default=12)
    found.add_argument("--images", type=int, nargs="+", default=IMAGES, help="in each of the two sets")
    found.add_argument("--views", type=int, nargs="+", default=VIEWS)
    found.add_argument(
        "--set", default="", metavar="SETTINGS", help="on top of the preset, as `model.name=… data.open=…`"
    )
    return found.parse_args()


def main() -> None:
    """Train, score and print."""
    asked = options()
    size = math.gcd(*asked.images)  # images whose summaries are kept together
    tables: dict[tuple[str, int, int], list[dict[SublayerKey, SignTable]]] = defaultdict(list)
    for seed in asked.seeds:
        settings = f"data.dir={asked.data.resolve()} train.warm-start-epochs={asked.epochs} run.seed={seed} {asked.set}"
        config = load_config("ham10000-small", overrides=settings)
        torch.set_num_threads(max(1, config.run.threads))
        model, images = trained(config)
        if len(images) < 2 * (most := max(asked.images)):
            sys.exit(f"two sets of {most} open images are needed, and there are {len(images)}: lower --images")
        found = summaries(model, images, size, max(asked.views), config.prune)
        for reading, count, views in itertools.product(READINGS, asked.images, asked.views):
            tables[reading, count, views] += compared(found, reading, count // size, views, seed)
    finish("sign_stability", [row(*case, tables[case]) for case in tables], asked.out)


if __name__ == "__main__":
    main()
