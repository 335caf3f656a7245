"""Divide samples among clients: evenly, with Dirichlet label skew, or by the institution that took them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedskew.data.choices import PartitionKind, Unit
from fedskew.data.samples import DataError, Sample
from fedskew.data.units import (
    Group,
    flatten,
    group_by_class,
    image_count,
    majority,
    to_indices,
    unit_of,
)  # fmt: skip

Classes = Mapping[str, Sequence[Group]]


def partition(
    samples: Sequence[Sample],
    indices: Sequence[int] | np.ndarray,
    *,
    nodes: int,
    kind: PartitionKind,
    alpha: float,
    unit: Unit,
    seed: int,
) -> tuple[np.ndarray, ...]:
    """Divide samples among clients; no unit is in two parts, no part is empty.

    Args:
        samples: all samples.
        indices: those to divide.
        nodes: number of clients.
        kind: `"iid"` deals each class out evenly. `"dirichlet"` draws each class's shares from
            Dirichlet(alpha): the smaller alpha, the more a client has of few classes. `"site"` follows
            `Sample.site`: a lesion of two sites goes to that with more of its images; with fewer clients than
            sites, sites are merged (the largest first, each to the least loaded); with more, the largest are
            divided evenly. With as many clients as sites, parts are in the order of the sites' names.
        alpha: for `"dirichlet"` only.
        unit: what must stay together.
        seed: another seed gives other parts.

    Returns:
        For each client its sample indices, int64, ascending.

    Raises:
        DataError: more clients than units, an unknown kind, a bad alpha, or no site known.
    """
    classes = group_by_class(samples, indices, unit, seed, "partition")
    count = sum(len(groups) for groups in classes.values())
    if nodes < 1:
        raise DataError(f"{nodes} clients make no federation; expected at least 1")
    if count < nodes:
        raise DataError(f"{nodes} clients, but only {count} {unit}s to divide among them; "
                        f"use at most {count} clients or more data")  # fmt: skip
    if kind == "iid":
        parts = _deal(flatten(classes), nodes)
    elif kind == "dirichlet":
        parts = _dirichlet(classes, nodes, alpha, seed)
    elif kind == "site":
        parts = _by_site(samples, classes, nodes)
    else:
        raise DataError(f"partition {kind!r} is unknown; expected 'iid', 'dirichlet' or 'site'")
    return tuple(to_indices(part) for part in _without_empty(parts))


def _deal(groups: Sequence[Group], nodes: int) -> list[list[Group]]:
    """Deal groups like cards. Sorted by class, each client's share of each class is even to within one."""
    return [list(groups[node::nodes]) for node in range(nodes)]


def _dirichlet(classes: Classes, nodes: int, alpha: float, seed: int) -> list[list[Group]]:
    if not (0 < alpha < math.inf):
        raise DataError(f"alpha {alpha} must be a positive number; 0.5 is usual, 100 is nearly even")
    generator = np.random.default_rng([seed, nodes])
    parts: list[list[Group]] = [[] for _ in range(nodes)]
    for groups in classes.values():
        shares = generator.dirichlet([alpha] * nodes)  # [nodes]
        ends = np.rint(np.cumsum(shares) * len(groups)).astype(int)
        ends[-1] = len(groups)  # whatever floating point made of the sum
        for part, (start, end) in zip(parts, itertools.pairwise([0, *ends]), strict=True):
            part.extend(groups[start:end])
    return parts


def _by_site(samples: Sequence[Sample], classes: Classes, nodes: int) -> list[list[Group]]:
    sites = _sites(samples, flatten(classes))
    if nodes < len(sites):
        merged: list[list[Group]] = [[] for _ in range(nodes)]
        for site in sorted(sites, key=lambda site: (-image_count(sites[site]), site)):
            min(merged, key=image_count).extend(sites[site])
        return merged
    clients = dict.fromkeys(sites, 1)
    for _ in range(nodes - len(sites)):
        divisible = [site for site in sites if clients[site] < len(sites[site])]
        clients[max(divisible, key=lambda site: image_count(sites[site]) / clients[site])] += 1
    return [part for site in sites for part in _deal(sites[site], clients[site])]


def sites_of(samples: Sequence[Sample], parts: Sequence[np.ndarray], unit: Unit) -> list[list[str]]:
    """For each part the names of the sites that it holds; a lesion of two is that of more of its images."""
    found = []
    for part in parts:
        units: dict[str, list[str]] = {}
        for index in part:
            units.setdefault(unit_of(samples[int(index)], unit), []).append(str(samples[int(index)].site))
        found.append(sorted({majority(sites) for sites in units.values()}))
    return found


def _sites(samples: Sequence[Sample], groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups by site, sorted by the site's name."""
    lacking = [index for group in groups for index in group.indices if samples[index].site is None]
    if lacking:
        raise DataError(f"partition 'site': {len(lacking)} images have no site "
                        f"(e.g. {samples[lacking[0]].image_id}); use a table with the site of every image "
                        "(HAM10000: column dataset), or partition 'iid' or 'dirichlet'")  # fmt: skip
    sites: dict[str, list[Group]] = {}
    for group in groups:
        site = majority(str(samples[index].site) for index in group.indices)
        sites.setdefault(site, []).append(group)
    return dict(sorted(sites.items()))


def _without_empty(parts: list[list[Group]]) -> list[list[Group]]:
    """Give every empty part one group of whoever has most groups (a skewed draw may leave a client nothing)."""
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return parts
