"""Metrics are egress too: which of them leave, from how many images, and that suppressed is never shown as zero."""

import pytest
from builders import run_here, tiny_config

from fedskew.apps import make_client_app
from fedskew.federation.grids import LocalGrid
from fedskew.federation.messages import TRAINING_METRICS, VALIDATION_METRICS
from fedskew.runs.round_table import round_heading, round_line
from fedskew.site.egress import EFFORT, split_metrics, suppress_counts
from fedskew.site.policy import PolicyError
from fedskew.site.policy_file import METRICS, parse_policy
from fedskew.tools.compare import comparison, read_runs, to_markdown

COUNTS = {"nv": 50, "mel": 12, "bcc": 3, "df": 0}


def test_small_counts_are_suppressed_and_the_others_told():
    assert suppress_counts(COUNTS | {"bcc": 9, "df": 8}, 10) == ({"nv": 50, "mel": 12}, ("bcc", "df"))
    assert suppress_counts(COUNTS, 1) == (COUNTS, ()), "by default everything is told, none as well"
    assert suppress_counts({"nv": 10, "mel": 10}, 10) == ({"nv": 10, "mel": 10}, ())


def test_a_single_small_count_does_not_follow_from_the_others_and_the_sum():
    told, hidden = suppress_counts({"nv": 50, "mel": 12, "bcc": 11, "df": 3}, 10)
    assert (told, hidden) == ({"nv": 50, "mel": 12}, ("bcc", "df"))
    assert suppress_counts({"nv": 3}, 10) == ({}, ("nv",))


@pytest.mark.parametrize(
    ("counts", "hidden"),
    [
        ({"nv": 50, "mel": 12, "bcc": 3, "df": 0}, {"bcc", "df", "mel"}),  # 62 of 65: the three would be a cell of 3
        ({"nv": 50, "mel": 12, "bcc": 0, "df": 0}, {"bcc", "df", "mel"}),  # nor is it told that nobody has them
        ({"nv": 50, "mel": 12, "bcc": 5, "df": 5}, {"bcc", "df"}),
        ({"nv": 50, "mel": 12, "bcc": 5, "df": 4}, {"bcc", "df", "mel"}),
        ({"nv": 5, "mel": 1}, {"nv", "mel"}),  # all of it is told as the number of examples anyway
    ],
)
def test_what_is_hidden_together_is_no_small_cell_either(counts, hidden):
    """The sum of the suppressed counts is the number of examples less those that are told."""
    told, names = suppress_counts(counts, 10)
    assert set(names) == hidden
    assert told == {name: count for name, count in counts.items() if name not in hidden}


@pytest.mark.parametrize(
    ("counts", "least", "allowed", "kept", "hidden"),
    [
        ({"nv": 50, "mel": 12}, 10, None, {"loss", "accuracy", "f1_macro"}, set()),
        ({"nv": 50, "mel": 9}, 10, None, {"loss", "accuracy"}, {"f1_macro"}),
        ({"nv": 50, "mel": 12, "df": 0}, 10, None, {"loss", "accuracy", "f1_macro"}, set()),
        ({"nv": 4, "mel": 5}, 10, None, set(), {"loss", "accuracy", "f1_macro"}),
        ({"nv": 4, "mel": 6}, 10, None, {"loss", "accuracy"}, {"f1_macro"}),
        ({"nv": 10}, 10, None, {"loss", "accuracy", "f1_macro"}, set()),
        ({"nv": 4, "mel": 5}, 10, frozenset({"loss"}), set(), {"loss"}),
        ({"nv": 50, "mel": 9}, 10, frozenset({"loss"}), {"loss"}, set()),
        ({"nv": 50, "mel": 9}, 1, frozenset(), set(), set()),
    ],
)
def test_which_metrics_leave(counts, least, allowed, kept, hidden):
    names = ["num-examples", "steps", "seconds", "loss", "accuracy", "f1_macro"]
    found = split_metrics(names, counts, least, allowed)
    assert found == ({"num-examples", "steps", "seconds"} | kept, tuple(sorted(hidden)))


def test_the_policy_can_name_every_metric_of_the_images_content_and_no_other():
    """Its list stands apart from the messages', whose module would load torch into every SuperNode."""
    assert set(METRICS) == {*TRAINING_METRICS, *VALIDATION_METRICS} - EFFORT


def test_the_policy_lists_metrics_by_name():
    policy = parse_policy({"report-metrics": ["loss", "accuracy"], "min-count": 5}, "p.yaml")
    assert (policy.report_metrics, policy.metrics, policy.min_count) == (True, {"loss", "accuracy"}, 5)
    assert parse_policy({"report-metrics": []}, "p.yaml").report_metrics is False
    assert parse_policy({}, "p.yaml").metrics is None
    with pytest.raises(PolicyError, match="report-metrics holds 'acc', expected some of loss, first-loss, accuracy"):
        parse_policy({"report-metrics": ["acc"]}, "p.yaml")
    with pytest.raises(PolicyError, match="min-count is 0"):
        parse_policy({"min-count": 0}, "p.yaml")


@pytest.fixture
def record(generated, tmp_path):
    """The last line of a run with an open site and one that has this policy, and the run's folder."""

    def run(policy, **config):
        (tmp_path / "policy.yaml").write_text(policy)
        own = {"data-dir": str(generated)}
        nodes = {1: own | {"name": "closed", "policy": str(tmp_path / "policy.yaml"),
                           "audit-log": str(tmp_path / "log.jsonl")}}  # fmt: skip
        settings = tiny_config(
            data={"clients": "own"},
            federation={"rounds": 1, "evaluate_clients": True},
            train={"class_counts": "global"},
            run={"output_dir": str(tmp_path / "runs")},
        )
        folder = run_here(settings, grid=LocalGrid(make_client_app(), 1, node_configs=nodes))
        return folder.records()[-1], folder, settings

    return run


def test_what_is_suppressed_is_null_in_the_record_and_said_in_the_table(record):
    """160 generated images: of most classes a site has fewer than 20, of all together more."""
    line, folder, settings = record("min-count: 20\nreport-class-counts: true")
    node, counts = line["nodes"]["closed"], line["class_counts"]["closed"]
    assert node["loss"] > 0
    assert node["validation-loss"] > 0
    for name in ("balanced_accuracy", "f1_macro", "auroc_macro"):
        assert node[f"validation-{name}"] is None, "a class of few images is a cell"
    small = [name for name, count in counts.items() if count is None]
    assert len(small) >= 2
    assert all(count is None or count >= 20 for count in counts.values())
    assert set(counts) == set(settings.model.classes), "every class is told or suppressed"
    assert line["selection"]["value"] is None
    heading, row = round_heading(settings), round_line(line, settings, 1.0)[-1]
    assert row.split()[-1] == "supp."
    assert heading.split()[-1] == "judged"
    assert not any(value == 0 for value in (*node.values(), *counts.values()))
    table = to_markdown(comparison(read_runs([folder.path])))
    assert "closed" not in table, "what is compared is what the coordinator found on its own images"


def test_a_loss_that_is_suppressed_is_no_loss_of_zero(record):
    line, _, settings = record("min-count: 1000")
    assert line["nodes"]["closed"]["loss"] is None
    assert line["train_loss"] is None
    wide = dict(zip(round_heading(settings, 200).replace("params M", "p").replace("MACs M", "m")
                    .replace("MB down/up", "mb").split(),
                    round_line(line, settings, 1.0, 200)[-1].split(), strict=True))  # fmt: skip
    assert wide["loss"] == "supp."


def test_only_the_listed_metrics_leave(record):
    line, _, _ = record("report-metrics: [accuracy]")
    counts = {"num-examples", "steps", "seconds", "seconds-train", "validation-num-examples"}
    assert set(line["nodes"]["closed"]) == counts | {"validation-accuracy"}
    assert line["train_loss"] is None


def test_a_suppressed_count_does_not_count_as_none_of_a_class(record, monkeypatch):
    """Nodes weigh a class by the sum over sites: one that a site hides would weigh as if nobody had it."""
    from fedskew.federation.strategy import RoundStrategy  # noqa: PLC0415

    totals = []
    real = RoundStrategy._total_counts
    monkeypatch.setattr(RoundStrategy, "_total_counts", lambda self: totals.append(real(self)) or totals[-1])
    line, _, settings = record("min-count: 20\nreport-class-counts: true")
    counts = line["class_counts"]["closed"]
    assert totals[-1] == tuple(1 if counts[name] is None else counts[name] for name in settings.model.classes)
