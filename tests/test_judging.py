"""Which rounds are evaluated, what they are judged by, and which is the best: never by the test set."""

import pytest
from builders import tiny_config

from fedskew.learning.judging import (
    HELD_BACK,
    VALIDATION,
    best_record,
    evaluated,
    improves,
    in_words,
    is_evaluated,
    judge,
)


def judged(*rounds):
    """Records of rounds as a run writes them: (number, value) or (number, value, source, metric) of each."""
    best, records = None, []
    for given in rounds:
        record = line(*given)
        judgement = record["selection"]
        if improves(best, judgement, record["round"]):
            best = judgement
        records.append(record | {"selection": judgement | {"best": best is judgement}})
    return records


def line(number, value, source=HELD_BACK, metric="balanced_accuracy", accuracy=0.5):
    return {
        "round": number,
        "accuracy": accuracy,
        "balanced_accuracy": 1 - number / 100,  # of the test set: the earlier, the better
        "selection": {"source": source, "metric": metric, "value": value},
    }


@pytest.mark.parametrize(
    ("every", "rounds", "expected"),
    [(1, 3, [0, 1, 2, 3]), (2, 5, [0, 2, 4, 5]), (3, 6, [0, 3, 6]), (100, 3, [0, 3])],
)
def test_a_run_is_evaluated_at_the_start_every_so_many_rounds_and_at_the_end(every, rounds, expected):
    config = tiny_config(run={"evaluate_every": every}, federation={"rounds": rounds})
    assert [number for number in range(rounds + 1) if is_evaluated(config, number)] == expected


def test_the_nodes_judge_if_they_evaluate_else_the_held_back_images():
    metrics = {"balanced_accuracy": 0.25, "auroc_macro": 0.75}
    assert judge(tiny_config(), metrics) == {"source": HELD_BACK, "metric": "balanced_accuracy", "value": 0.25}
    asked = tiny_config(federation={"evaluate_clients": True}, run={"best_metric": "auroc_macro"})
    assert judge(asked, metrics) == {"source": VALIDATION, "metric": "auroc_macro", "value": 0.75}
    assert judge(asked, None)["value"] is None
    assert judge(asked, {"accuracy": 1.0})["value"] is None, "no node told it"
    assert in_words(judge(asked, None)) == "auroc macro on the nodes' validation images"


def test_the_best_round_is_the_first_with_the_highest_judgement_whatever_the_test_set_says():
    records = judged((0, 0.9), (1, 0.3), (2, None), (3, 0.4), (4, 0.4), (5, 0.35))
    assert best_record(records)["round"] == 3


def test_round_0_and_rounds_without_a_judgement_are_never_the_best():
    assert best_record(judged((0, 0.9), (1, None))) is None
    assert best_record(judged((0, 0.9), (1, 0.0)))["round"] == 1
    assert best_record([{"round": 1, "accuracy": 0.5}]) is None, "a run from before rounds were judged"


def test_values_of_another_kind_are_not_compared():
    rounds = (1, 0.9), (2, 0.2, VALIDATION), (3, 0.1, VALIDATION)
    assert best_record(judged(*rounds))["round"] == 2
    assert best_record(judged(*rounds, (4, 0.3, HELD_BACK, "f1_macro")))["round"] == 4
    assert best_record(judged(*rounds, (4, None, HELD_BACK, "f1_macro")))["round"] == 2


def test_a_round_is_better_only_if_it_is_really_higher():
    best = line(1, 0.5)["selection"]
    assert improves(best, line(2, 0.51)["selection"], 2)
    assert not improves(best, line(2, 0.5)["selection"], 2)
    assert improves(None, line(2, 0.0)["selection"], 2)


def test_rounds_without_evaluation_are_passed_over():
    assert [r["round"] for r in evaluated([line(0, 0.1), line(1, None, accuracy=None), line(2, 0.2)])] == [0, 2]
