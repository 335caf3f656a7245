"""Who is asked and who has answered, without any training: the roll of the server alone."""

import logging

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedskew.config.schema import FederationConfig
from fedskew.federation.checks import check_answer
from fedskew.federation.grids import LocalGrid, StreamingGrid
from fedskew.federation.roll_call import RollCall
from fedskew.runs.record import RoundLog

TASK = RecordDict({"config": ConfigRecord({"server-round": 1})})


def answer(task, examples=5, **report):
    """What a node says to a task, under its nonce."""
    report = {"node": "", "notes": [], "nonce": task.content["config"]["nonce"]} | report
    content = {"metrics": MetricRecord({"num-examples": examples}), "report": ConfigRecord(report)}
    return Message(RecordDict(content), reply_to=task)


@pytest.fixture
def asked():
    """A roll that has asked the nodes with these names, their tasks by node, and what pushing them made known."""

    def ask(names, **settings):
        grid = StreamingGrid(LocalGrid(lambda message, context: message, 3))
        roll = RollCall(grid, FederationConfig(**settings), None)
        roll.round = RoundLog(1)
        tasks = roll.messages(TASK, "train", names)
        grid.send_and_receive(tasks)
        return roll, {task.metadata.dst_node_id: task for task in tasks}

    return ask


def test_a_task_lives_as_long_as_its_round(asked):
    """One that outlived it would keep a slow node from the next."""
    _, tasks = asked({1: "a", 2: "b"}, round_deadline=77.0, join_deadline=5.0)
    assert [task.metadata.ttl for task in tasks.values()] == [77.0, 77.0]
    nonces = {task.content["config"]["nonce"] for task in tasks.values()}
    assert len(nonces) == 2, "each has a nonce of its own"


def test_whoever_has_not_answered_is_late_by_name_and_too_late_after_that(asked, caplog):
    roll, tasks = asked({1: "a", 2: "b", 3: "node 3"})
    assert roll.accept(answer(tasks[1]), check_answer)[0] == "a"
    roll.close()
    assert set(roll.round.failed) == {"b", "node 3"}
    assert all(reason.startswith("no reply within ") for reason in roll.round.failed.values())
    with caplog.at_level(logging.ERROR):
        assert roll.accept(answer(tasks[2]), check_answer) == ("", None)
    assert roll.round.ok == ["a"], "the round is over"


def test_whoever_fails_in_any_phase_of_a_round_is_not_among_those_that_were_good(asked):
    roll, tasks = asked({1: "a", 2: "b"})
    for node in (1, 2):
        roll.accept(answer(tasks[node]), check_answer)
    assert roll.round.ok == ["a", "b"]
    roll.fail("a", "its update is too large")
    assert (roll.round.ok, roll.round.failed) == (["b"], {"a": "its update is too large"})


def test_a_node_that_was_good_twice_in_a_round_counts_once(asked):
    """It trains, and it evaluates."""
    roll, tasks = asked({1: "a"})
    roll.accept(answer(tasks[1]), check_answer)
    again = roll.messages(TASK, "evaluate", {1: "a"})
    roll._grid.send_and_receive(again)
    roll.accept(answer(again[0]), check_answer, prefix="validation-")
    assert roll.round.ok == ["a"]
    assert set(roll.round.nodes["a"]) == {"num-examples", "validation-num-examples"}


def test_a_nonce_of_the_phase_before_is_none_of_this_one(asked):
    roll, tasks = asked({1: "a"})
    old = tasks[1].content["config"]["nonce"]
    (again,) = roll.messages(TASK, "evaluate", {1: "a"})
    roll._grid.send_and_receive([again])
    assert roll.accept(answer(again, nonce=old), check_answer) == ("a", None)
    assert "nonce of its task" in roll.round.failed["a"]


@pytest.mark.parametrize(
    ("entries", "noted"), [((3, 4), False), ((3, 30), False), ((3, 3), True), ((30, 4), True), ((2, 1), True)]
)
def test_an_audit_log_that_does_not_grow_was_cut(asked, entries, noted):
    roll, _ = asked({1: "a"})
    for count in entries:
        (task,) = roll.messages(TASK, "train", {1: "a"})
        roll._grid.send_and_receive([task])
        roll.accept(answer(task, **{"audit-entries": count, "audit-sha256": f"{count:064x}"}), check_answer)
    assert any("it was cut or begun anew" in note for note in roll.round.notes.get("a", [])) == noted
    assert roll.audit == {"a": {"entries": entries[1], "sha256": f"{entries[1]:064x}"}}
    assert roll.round.audit == roll.audit


def test_an_unregistered_node_does_not_take_a_name_that_another_has(asked):
    roll, tasks = asked({1: "site-a", 2: "node 2", 3: "node 3"})
    assert roll.accept(answer(tasks[2], node="site-a"), check_answer)[0] == "site-a (node 2)"
    assert roll.accept(answer(tasks[3], node="site-c"), check_answer)[0] == "site-c"
    assert roll.accept(answer(tasks[1], node="site-c"), check_answer)[0] == "site-a", "a registered name stays"
