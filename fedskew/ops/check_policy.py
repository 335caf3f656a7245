"""A site's policy file and audit log."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from fedskew.ops.findings import Finding, fail, ok, warn
from fedskew.site.audit import AuditError, verify_audit
from fedskew.site.limits import Limits
from fedskew.site.policy import Policy, PolicyError, load_policy

POLICY_HELP = "write one (docs/deployment.md) and name it in the node configuration: policy='/absolute/policy.yaml'"


def check_policy(path: Path | None, count: Callable[[], int] | None = None) -> list[Finding]:
    """Whether the policy can be read, what it lets out, and what its numbers mean.

    Args:
        count: tells how many images the site has; None if that is unknown.
    """
    if path is None:
        return [warn("policy", "none: this site answers whatever the coordinator asks", POLICY_HELP)]
    try:
        policy = load_policy(path)
    except PolicyError as error:
        return [fail("policy", str(error), "correct it; until then the site refuses every task")]
    found = [ok("policy", f"{path}: {'; '.join(summary(policy))}")]
    if stat.S_IMODE(path.stat().st_mode) & 0o022:
        found.append(fail("policy", f"{path} can be changed by other accounts", f"chmod go-w {path}"))
    if policy.allowed_runs is None and policy.app_hashes is None:
        remedy = "list allowed-runs, or pin the app: app-hashes (`fedskew bundle-hash` prints its hash)"
        found.append(warn("policy", "any app and any run of the coordinator is answered", remedy))
    if policy.max_rounds is not None and policy.max_rounds_total is None:
        text = "max-rounds is counted for each run, and a coordinator can start as many runs as it likes"
        found.append(warn("policy", text, "set max-rounds-total too"))
    if count is not None and policy.min_examples > 1 and (images := count()) < policy.min_examples:
        text = f"min-examples is {policy.min_examples}, but there are {images} images: every answer would be refused"
        found.append(fail("policy", text, "lower min-examples, or add images"))
    return found + _privacy(policy)


def check_audit(path: Path) -> list[Finding]:
    """Whether the chain of the audit log is whole."""
    if not path.exists():
        return [ok("audit log", f"{path} does not exist yet; the first message makes it")]
    try:
        state = verify_audit(path)
    except AuditError as error:
        return [fail("audit log", str(error), "find out who changed it before you go on")]
    return [ok("audit log", f"{path}: {state.entries} entries, chain whole; last hash {state.last_hash[:16]}…")]


def summary(policy: Policy) -> list[str]:
    """A policy in words."""
    runs = "any run" if policy.allowed_runs is None else f"{len(policy.allowed_runs)} runs"
    apps = "any app" if policy.app_hashes is None else f"pinned apps ({len(policy.app_hashes)})"
    words = [f"answers {runs} of {apps}"]
    words += [f"at least {policy.min_examples} images"] if policy.min_examples > 1 else []
    words += [f"at most {policy.max_rounds} rounds of a run"] if policy.max_rounds else []
    words += [f"at most {policy.max_rounds_total} rounds of all runs"] if policy.max_rounds_total else []
    words += [f"a task of at most {limits_in_words(policy.limits)}"]
    words += [f"updates clipped to norm {policy.clipping_norm:g}"] if policy.clipping_norm else []
    words += [f"noise of deviation {policy.noise.deviation:.3g}"] if policy.noise else []
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


def _privacy(policy: Policy) -> list[Finding]:
    noise = policy.noise
    if noise is None or policy.clipping_norm is None:
        return []
    text = f"each answer is (ε={noise.epsilon:g}, δ={noise.delta:g}) differentially private"
    if policy.max_rounds:
        most = f"(ε={policy.max_rounds * noise.epsilon:g}, δ={policy.max_rounds * noise.delta:g})"
        text += f"; {policy.max_rounds} of them, all that one run gets, are {most}"
    found = [ok("privacy", text + ". Example counts carry no noise")]
    if noise.epsilon > 1:
        text = f"epsilon is {noise.epsilon:g}: the formula that Flower computes the noise by holds up to 1"
        found.append(warn("privacy", text, "choose an epsilon of at most 1 for a guarantee"))
    if noise.sensitivity < (apart := 2 * policy.clipping_norm):
        text = (
            f"sensitivity {noise.sensitivity:g} is below twice the clipping-norm: two updates can lie {apart:g} apart, "
        )
        text += f"so ε is {apart / noise.sensitivity:.1f} times what is said"
        found.append(warn("privacy", text, "leave sensitivity out"))
    if policy.report_metrics:
        found.append(warn("privacy", "losses and accuracies leave without noise", "set report-metrics: false"))
    if policy.max_rounds is None:
        found.append(warn("privacy", "the loss of privacy grows with every answer, without a limit", "set max-rounds"))
    return found


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if names else "nothing but updates and example counts"
