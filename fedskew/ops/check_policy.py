"""A site's policy file and audit log."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from fedskew.ops.findings import Finding, fail, ok, warn
from fedskew.site.accounting import (
    HARMLESS,
    NO_PRIVACY,
    AccountingError,
    answers_within,
    epsilon,
    noise_in_words,
    noise_multiplier,
    noise_ratio,
)
from fedskew.site.audit import AuditError
from fedskew.site.ledger import MULTIPLIER, beside, read_books, spent
from fedskew.site.limits import Limits
from fedskew.site.policy import Budget, Policy, PolicyError
from fedskew.site.policy_file import load_policy

SWIN_T_WEIGHTS = 27_550_000  # of the model of the preset `hospitals`, dense
MEANINGFUL = 10.0  # above it a factor of e^ε between two sites' answers says nothing
POLICY_HELP = "write one (docs/deployment.md) and name it in the node configuration: policy='/absolute/policy.yaml'"


def check_policy(
    path: Path | None, count: Callable[[], int] | None = None, weights: int = SWIN_T_WEIGHTS
) -> list[Finding]:
    """Whether the policy can be read, what it lets out, and what its numbers mean.

    Args:
        count: tells how many images the site has; None if that is unknown.
        weights: of the model that noise is judged for.
    """
    if path is None:
        return [warn("policy", "none: this site answers whatever the coordinator asks", POLICY_HELP)]
    try:
        policy = load_policy(path)
    except PolicyError as error:
        return [fail("policy", str(error), "correct it; until then the site refuses every task")]
    found = [ok("policy", f"{path}: {'; '.join(summary(policy))}")]
    if stat.S_IMODE(path.stat().st_mode) & 0o022:
        found.append(fail("policy", f"{path} can be changed by other accounts", f"chmod go-w {shlex.quote(str(path))}"))
    if policy.allowed_runs is None and policy.app_hashes is None:
        remedy = "list allowed-runs, or pin the app: app-hashes (`fedskew bundle-hash` prints its hash)"
        found.append(warn("policy", "any app and any run of the coordinator is answered", remedy))
    if policy.max_rounds is not None and policy.max_rounds_total is None:
        text = "max-rounds is counted for each run, and a coordinator can start as many runs as it likes"
        found.append(warn("policy", text, "set max-rounds-total too"))
    if count is not None and policy.min_examples > 1 and (images := count()) < policy.min_examples:
        text = f"min-examples is {policy.min_examples}, but there are {images} images: every answer would be refused"
        found.append(fail("policy", text, "lower min-examples, or add images"))
    return found + _privacy(policy, weights)


def check_audit(path: Path, ledger: Path | None = None) -> list[Finding]:
    """Whether audit log and ledger are whole and fit each other.

    Args:
        ledger: of the site; None: it lies beside the audit log.
    """
    ledger = ledger or beside(path)
    if not path.exists() and not ledger.exists():
        return [ok("audit log", f"{path} does not exist yet; the first message makes it")]
    try:
        books = read_books(path, ledger)
    except AuditError as error:
        return [fail("audit log", str(error), "find out who changed it before you go on")]
    text = f"{path}: {len(books.audit)} entries, chain whole, fits its ledger; last hash {books.audit_hash[:16]}…"
    return [ok("audit log", text)]


def check_spent(path: Path | None, log: Path, ledger: Path) -> list[Finding]:
    """What the updates that have left cost, of all runs and of the last one, and what is left of the budget.

    Raises:
        PolicyError, AuditError: the other checks name these too.
    """
    books, policy = read_books(log, ledger), load_policy(path) if path else Policy()
    found, multipliers = [], books.multipliers()
    told = policy.privacy_budget or policy.noise
    if multipliers and told:
        run = next(entry["run"] for entry in reversed(books.ledger) if entry.get(MULTIPLIER))
        total = spent(books, told.delta)
        text = (
            f"{len(multipliers)} updates have left with noise: ε={total:.4g} over all runs, "
            f"{spent(books, told.delta, run):.4g} of run {run} (δ={told.delta:g})"
        )
        text += f", of a budget of {policy.privacy_budget.epsilon:g}" if policy.privacy_budget else ""
        found.append(ok("privacy spent", text))
    if multipliers and (bare := books.without_noise()):
        text = f"besides, {bare} answers have left without noise: for these there is {NO_PRIVACY}, and no ε counts them"
        found.append(warn("privacy spent", text, "say so wherever you tell that ε"))
    return found


def summary(policy: Policy) -> list[str]:
    """A policy in words."""
    runs = "any run" if policy.allowed_runs is None else f"{len(policy.allowed_runs)} runs"
    apps = "any app" if policy.app_hashes is None else f"pinned apps ({len(policy.app_hashes)})"
    words = [f"answers {runs} of {apps}"]
    words += [f"at least {policy.min_examples} images"] if policy.min_examples > 1 else []
    words += [f"at most {policy.max_rounds} rounds of a run"] if policy.max_rounds else []
    words += [f"at most {policy.max_rounds_total} rounds of all runs"] if policy.max_rounds_total else []
    minutes = policy.max_task_minutes
    words += [f"at most {minutes} minutes a task" if minutes else "no limit of a task's minutes (max-task-minutes)"]
    words += [f"a task of at most {limits_in_words(policy.limits)}"]
    words += [f"updates clipped to norm {policy.clipping_norm:g}"] if policy.clipping_norm else []
    words += [f"noise of deviation {policy.noise.deviation:.3g}" if policy.noise else "no noise"]
    budget = policy.privacy_budget
    words += [f"a privacy budget of ε={budget.epsilon:g} at δ={budget.delta:g} over all runs"] if budget else []
    flags = {"metrics": policy.report_metrics, "class counts": policy.report_class_counts,
             "names of unreadable images": policy.report_notes}  # fmt: skip
    return [*words, f"reports {_listed([name for name, told in flags.items() if told])}"]


def limits_in_words(limits: Limits) -> str:
    """The most that a task may ask for."""
    threads = limits.threads or "all"
    return (
        f"{limits.local_epochs} epochs, batches of {limits.batch_size} ({limits.eval_batch_size} in evaluation), "
        f"{limits.image_size} pixels a side, {limits.parameters:,} weights, {threads} CPU threads"
    )


def _privacy(policy: Policy, weights: int) -> list[Finding]:
    noise, norm = policy.noise, policy.clipping_norm
    if noise is None or norm is None:
        return [ok("privacy", f"{NO_PRIVACY}: the policy adds no noise to updates")]
    multiplier = noise_multiplier(noise.deviation, norm)
    try:
        text = f"each update is (ε={epsilon([multiplier], noise.delta):.4g}, δ={noise.delta:g}) differentially private"
        for most, runs in ((policy.max_rounds, "one run gets"), (policy.max_rounds_total, "all runs get")):
            if most:
                text += f"; {most} of them, all that {runs}: ε={epsilon([multiplier] * most, noise.delta):.4g}"
    except AccountingError as error:
        return [fail("privacy", str(error), "install it; until then the site refuses to train")]
    found = [ok("privacy", text + ". Example counts carry no noise"), _utility(noise.deviation, norm, weights)]
    if epsilon([multiplier], noise.delta) > MEANINGFUL:
        text = f"an ε above {MEANINGFUL:g} promises nothing in practice: the noise only blurs what an update shows"
        found.append(warn("privacy", text, "do not call it differential privacy towards patients"))
    if policy.report_metrics:
        found.append(warn("privacy", "losses and accuracies leave without noise", "set report-metrics: false"))
    if policy.privacy_budget is None:
        text = "the loss of privacy grows with every answer, without a limit over all runs"
        found.append(warn("privacy", text, "set privacy-budget"))
    else:
        found.append(_held(policy.privacy_budget, multiplier))
    return found


def _held(budget: Budget, multiplier: float) -> Finding:
    """How many updates the budget holds."""
    held = answers_within(budget.epsilon, multiplier, budget.delta)
    text = f"the budget of ε={budget.epsilon:g} at δ={budget.delta:g} holds {held} updates, of all runs together"
    return ok("privacy", text) if held else fail("privacy", text, "a larger budget, more noise, or neither of both")


def _utility(deviation: float, norm: float, weights: int) -> Finding:
    text = f"for a model of the size of Swin-T: {noise_in_words(deviation, norm, weights)}"
    if noise_ratio(deviation, norm, weights) <= HARMLESS:
        return ok("privacy", text)
    return warn("privacy", text, "less noise, a smaller model, or no part in it: docs/deployment.md has what was tried")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if names else "nothing but updates and example counts"
