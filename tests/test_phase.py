"""How far a round is: who answered, how many images that was, how long the rest may take."""

from __future__ import annotations

import logging

from builders import run_here, tiny_config

from fedskew.console import PROGRESS
from fedskew.federation.roll_call import Phase


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_the_time_left_follows_the_round_before_then_those_that_have_answered():
    clock = Clock()
    phase = Phase("round 3/8", "trained", 4, before=30.0, clock=clock)
    assert phase.text() == "round 3/8: 0 of 4 nodes have trained, about 0m30s left"
    clock.now += 10
    assert phase.text().endswith("about 0m20s left")
    phase.answer(1_120)
    assert phase.text() == "round 3/8: 1 of 4 nodes have trained, 1,120 images, about 0m30s left"
    clock.now += 20
    phase.answer(0)  # one whose reply cannot be used
    assert phase.text() == "round 3/8: 2 of 4 nodes have trained, 1,120 images, about 0m30s left"
    phase.answer(80)
    phase.answer(800)
    assert phase.text() == "round 3/8: all 4 nodes have trained, 2,000 images; now the server"
    assert phase.seconds == 30.0


def test_without_a_round_before_nothing_is_guessed():
    assert Phase("round 1/8", "evaluated", 2, clock=Clock()).text() == "round 1/8: 0 of 2 nodes have evaluated"


def test_a_run_tells_every_answer_and_where_its_folder_is(generated, tmp_path, caplog):
    logging.getLogger(PROGRESS).setLevel(logging.DEBUG)
    try:
        with caplog.at_level(logging.DEBUG, logger=PROGRESS):
            config = tiny_config(federation={"rounds": 1, "evaluate_clients": True}, run={"output_dir": str(tmp_path)})
            run = run_here(config, 2)
    finally:
        logging.getLogger(PROGRESS).setLevel(logging.NOTSET)
    told = [record for record in caplog.records if record.name == PROGRESS]
    texts = [record.getMessage().split(",")[0].split(";")[0] for record in told]
    assert texts == [
        "round 1/1: 0 of 2 nodes have trained", "round 1/1: 1 of 2 nodes have trained",
        "round 1/1: all 2 nodes have trained", "round 1/1: 0 of 2 nodes have evaluated",
        "round 1/1: 1 of 2 nodes have evaluated", "round 1/1: all 2 nodes have evaluated",
    ]  # fmt: skip
    assert {record.folder for record in told} == {run.path}
    images = sum(node["num-examples"] for node in run.records()[-1]["nodes"].values())
    assert f"{images:,} images; now the server" in told[2].getMessage()
