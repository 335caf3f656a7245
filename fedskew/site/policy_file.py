"""A site's policy as a small YAML file, named in its node configuration.

```yaml
# policy.yaml — a key that is absent forbids nothing, unless it says otherwise here
allowed-runs: [1234567890]   # run ids; an empty list allows none
app-hashes: [9f86d081…]      # SHA-256 of app bundles (fedskew bundle-hash)
min-examples: 100            # answers made from fewer images stay here
max-rounds: 50               # answers of each kind (train, evaluate) to one run
max-rounds-total: 200        # the same over all runs: a coordinator can start as many as it likes
max-task-minutes: 120        # a task that takes longer is given up, between two batches
limits: {local-epochs: 5, batch-size: 128, image-size: 256}   # of one task; see limits.Limits for all and for defaults
clipping-norm: 1.0           # largest 2-norm of an update
noise: {multiplier: 2.0, delta: 1e-5}   # Gaussian: its deviation over the clipping-norm, or an epsilon (up to 1)
privacy-budget: {epsilon: 50, delta: 1e-5}   # of all updates in all runs: when it is spent, no more is trained
report-metrics: true         # losses and accuracies; they carry no noise. Or those that may leave: [loss, accuracy]
min-count: 10                # metrics and class counts made from fewer images are suppressed, which is told (default 1)
report-class-counts: false   # images per class (default false)
report-notes: false          # names of unreadable images (default false: only how many)
```
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedskew.site.accounting import NO_PRIVACY
from fedskew.site.limits import LIMIT_KEYS, Limits
from fedskew.site.policy import Budget, Noise, Policy, PolicyError
from fedskew.text import nearest, read_yaml

KEYS = ("allowed-runs", "app-hashes", "min-examples", "max-rounds", "max-rounds-total", "max-task-minutes",
        "limits", "clipping-norm", "noise", "privacy-budget", "min-count",
        "report-metrics", "report-class-counts", "report-notes")  # fmt: skip
NOISE_KEYS = ("multiplier", "sensitivity", "epsilon", "delta")
BUDGET_KEYS = ("epsilon", "delta")
METRICS = ("loss", "first-loss", "accuracy", "auroc_macro", "balanced_accuracy", "f1_macro")  # beside counts and times


def load_policy(path: str | Path) -> Policy:
    """Read and validate a policy file.

    Raises:
        PolicyError: the file is absent or no YAML, a key is unknown, or a value has the wrong type or bounds.
    """
    try:
        content = read_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PolicyError(f"policy {path} cannot be read: {error}") from error
    return parse_policy({} if content is None else content, str(path))


def parse_policy(content: Any, name: str) -> Policy:
    """`load_policy` for parsed YAML; `name` is used in messages."""
    values = _mapping(content, KEYS, f"policy {name}")
    where = f"policy {name}: "
    clipping = _optional(values, "clipping-norm", lambda value: _number(value, where + "clipping-norm"))
    if "noise" in values and clipping is None:
        raise PolicyError(f"{where}noise needs a clipping-norm: without one no amount of noise hides an image")
    budget = _optional(values, "privacy-budget", lambda value: _budget(value, values, where))
    return Policy(
        allowed_runs=_optional(values, "allowed-runs", lambda value: _runs(value, where + "allowed-runs")),
        app_hashes=_optional(values, "app-hashes", lambda value: _hashes(value, where + "app-hashes")),
        min_examples=_whole(values.get("min-examples", 1), where + "min-examples"),
        max_rounds=_optional(values, "max-rounds", lambda value: _whole(value, where + "max-rounds")),
        max_rounds_total=_optional(values, "max-rounds-total", lambda value: _whole(value, where + "max-rounds-total")),
        max_task_minutes=_optional(values, "max-task-minutes", lambda value: _whole(value, where + "max-task-minutes")),
        limits=_limits(values.get("limits", {}), where),
        clipping_norm=clipping,
        noise=_noise(values["noise"], clipping, where) if "noise" in values else None,
        privacy_budget=budget,
        min_count=_whole(values.get("min-count", 1), where + "min-count"),
        **_reports(values, where),
    )


def _mapping(content: Any, keys: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise PolicyError(f"{where} must hold keys and values such as 'min-examples: 100', found {content!r:.80}")
    for key in content:
        if key not in keys:
            near = nearest(str(key).replace("_", "-"), keys)
            hint = f"did you mean {near!r}?" if near else f"valid keys: {', '.join(keys)}"
            raise PolicyError(f"{where}: unknown key {key!r}; {hint}")
        if content[key] is None:
            raise PolicyError(f"{where}: {key} has no value; give it one or delete the line")
    return content


def _optional(values: Mapping[str, Any], key: str, read: Any) -> Any:
    return read(values[key]) if key in values else None


def _reports(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the keys `report-…` say; that of the metrics may be a list."""
    given = {key: values[key] for key in KEYS if key.startswith("report-") and key in values}
    named: dict[str, Any] = {}
    if isinstance(listed := given.get("report-metrics"), list):
        named = {"metrics": _metrics(listed, where + "report-metrics")}
        given["report-metrics"] = bool(listed)
    return named | {key.replace("-", "_"): _flag(value, where + key) for key, value in given.items()}


def _noise(value: Any, clipping: float | None, where: str) -> Noise:
    content = _mapping(value, NOISE_KEYS, f"{where}noise")
    if ("multiplier" in content) == ("epsilon" in content) or "delta" not in content:
        raise PolicyError(
            f"{where}noise needs delta and either multiplier or epsilon, e.g. {{multiplier: 0.0005, delta: 1e-5}}"
        )
    if "multiplier" in content and "sensitivity" in content:
        raise PolicyError(f"{where}noise.sensitivity goes with epsilon only; leave it out")
    # two updates of norm C lie up to 2·C apart: what a site's data can change in its own answer
    apart = 2 * clipping if clipping else 0.0
    numbers = {key: _number(item, f"{where}noise.{key}") for key, item in {"sensitivity": apart, **content}.items()}
    _probability(numbers["delta"], f"{where}noise.delta")
    if "multiplier" in numbers:  # the epsilon for which Flower's formula gives this noise
        numbers["epsilon"] = 2 * math.sqrt(2 * math.log(1.25 / numbers["delta"])) / numbers.pop("multiplier")
    return Noise(**numbers)


def _budget(value: Any, values: Mapping[str, Any], where: str) -> Budget:
    content = _mapping(value, BUDGET_KEYS, f"{where}privacy-budget")
    if set(content) != set(BUDGET_KEYS):
        raise PolicyError(f"{where}privacy-budget needs epsilon and delta, e.g. {{epsilon: 50, delta: 1e-5}}")
    if "noise" not in values:
        raise PolicyError(f"{where}privacy-budget needs noise: without noise there is {NO_PRIVACY} to keep account of")
    for key in ("report-metrics", "report-class-counts", "report-notes"):
        if values.get(key, key == "report-metrics") not in (False, []):
            raise PolicyError(f"{where}privacy-budget needs {key}: false, because these leave without noise")
    numbers = {key: _number(content[key], f"{where}privacy-budget.{key}") for key in BUDGET_KEYS}
    _probability(numbers["delta"], f"{where}privacy-budget.delta")
    return Budget(**numbers)


def _probability(value: float, where: str) -> None:
    if value >= 1:
        raise PolicyError(f"{where} is {value}, expected a probability below 1, e.g. 1e-5")


def _limits(value: Any, where: str) -> Limits:
    content = _mapping(value, LIMIT_KEYS, f"{where}limits")
    return Limits(**{key.replace("-", "_"): _whole(item, f"{where}limits.{key}") for key, item in content.items()})


def _number(value: Any, where: str) -> float:
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?[eE][-+]?\d+", value):
        value = float(value)  # YAML 1.1 reads 1e-5 (no dot) as text
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise PolicyError(f"{where} is {value!r:.40}, expected a number above 0")
    return float(value)


def _whole(value: Any, where: str) -> int:
    if type(value) is not int or value < 1:
        raise PolicyError(f"{where} is {value!r:.40}, expected a whole number above 0")
    return value


def _flag(value: Any, where: str) -> bool:
    if type(value) is not bool:
        raise PolicyError(f"{where} is {value!r:.40}, expected true or false")
    return value


def _metrics(value: list[Any], where: str) -> frozenset[str]:
    unknown = [name for name in value if name not in METRICS]
    if unknown:
        raise PolicyError(f"{where} holds {unknown[0]!r:.40}, expected some of {', '.join(METRICS)}")
    return frozenset(value)


def _runs(value: Any, where: str) -> frozenset[int]:
    found = [int(item) if isinstance(item, str) and item.isdecimal() else item for item in _list(value, where)]
    if any(type(item) is not int for item in found):
        raise PolicyError(f"{where} holds {value!r:.80}, expected run ids (whole numbers, see `flwr list`)")
    return frozenset(found)


def _hashes(value: Any, where: str) -> frozenset[str]:
    found = [str(item).lower().removeprefix("sha256:") for item in _list(value, where)]
    for item in found:
        if not re.fullmatch(r"[0-9a-f]{64}", item):
            raise PolicyError(f"{where} holds {item!r:.80}, expected a SHA-256 of 64 hexadecimal digits in quotes")
    return frozenset(found)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise PolicyError(f"{where} is {value!r:.80}, expected a list in brackets, e.g. [a, b]")
    return value
