"""What a run says before its first round: its folder first of all, then what it is of; how far the warm start is."""

from __future__ import annotations

import logging
import os

from builders import run_here, tiny_config

from fedskew.console import OURS, StatusLine, in_terminal


class Status(StatusLine):
    """Keeps what it is to show."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def show(self, text):
        self.seen.append(text)


def said_by(config):
    """The messages of a run, in order, and what its status line showed."""
    messages, status = [], Status()
    with in_terminal(lambda _: None, messages.append, status):
        logging.getLogger(OURS).setLevel(logging.INFO)
        run_here(config)
    return messages, status.seen


def test_the_first_line_is_the_folder_whatever_there_is_to_warn_of(generated, tmp_path):
    """Warnings of the settings and of the scoring images came before it."""
    doubtful = {"threads": (os.cpu_count() or 1) + 1}
    settings = {"prune": {"last_round": 9, "batch_size": 999}, "federation": {"rounds": 1}}
    messages, _ = said_by(tiny_config(**settings, run=doubtful | {"output_dir": str(tmp_path)}))
    assert messages[0].startswith(f"run folder: {tmp_path}")
    told = " ".join(" ".join(messages).split())
    assert "warning: prune.last-round=9 has no effect: federation.rounds is 1" in told
    assert f"warning: run.threads is {doubtful['threads']}, and this machine has" in told
    assert "open images that are not held back (prune.batch-size asks for 999; a larger data.open has more)" in told


def test_the_warm_start_tells_how_far_it_is(generated, tmp_path):
    """Minutes of silence, with the presets for HAM10000."""
    config = tiny_config(train={"warm_start_epochs": 3}, federation={"rounds": 1}, run={"output_dir": str(tmp_path)})
    _, seen = said_by(config)
    begun = [text for text in seen if text.startswith("warm start: ")]
    assert begun[0] == "warm start: 0 of 3 epochs are done"
    assert begun[1].startswith("warm start: 1 of 3 epochs are done, about ")
    assert begun[1].endswith(" s left")
    assert begun[-1] == "warm start: 3 of 3 epochs are done"
