"""Where a run's lines go: results and messages apart, marked in Flower's stream, plain where there is no terminal."""

from __future__ import annotations

import io
import logging

import pytest
from flwr.common.logger import console_handler

from fedskew.console import OURS, PROGRESS, PROGRESS_FILE, RESULTS, StatusLine, in_flower, in_terminal
from fedskew.data.samples import DataError


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def colours():
    before = console_handler.colored
    yield console_handler
    console_handler.colored = before


def log(name, level, text, **more):
    logging.getLogger(name).log(level, text, extra=more)


def test_results_messages_and_progress_go_their_own_ways(colours):
    results, messages, screen = [], [], Screen()
    with in_terminal(results.append, messages.append, StatusLine(screen)):
        log(RESULTS, logging.INFO, "a row")
        log(f"{OURS}.server", logging.INFO, "run folder: /x")
        log(f"{OURS}.server", logging.WARNING, "node a set aside")
        log(f"{OURS}.server", logging.ERROR, "the run stops")
        log(PROGRESS, logging.DEBUG, "1 of 4", folder=None)
        log(f"{OURS}.server", logging.DEBUG, "not for people")
    assert results == ["a row"]
    assert messages == ["run folder: /x", "warning: node a set aside", "error: the run stops"]
    assert screen.getvalue() == "1 of 4\r      \r", "shown, then taken away"


def test_afterwards_everything_is_as_it_was(colours):
    names = (OURS, RESULTS, PROGRESS)
    before = [(logging.getLogger(n).propagate, logging.getLogger(n).level, list(logging.getLogger(n).handlers))
              for n in names]  # fmt: skip
    with pytest.raises(KeyError), in_terminal(print, print, StatusLine(io.StringIO())):
        raise KeyError
    after = [(logging.getLogger(n).propagate, logging.getLogger(n).level, list(logging.getLogger(n).handlers))
             for n in names]  # fmt: skip
    assert after == before


def test_nobody_sees_progress_who_did_not_ask(capsys):
    log(PROGRESS, logging.DEBUG, "1 of 4")
    captured = capsys.readouterr()
    assert "1 of 4" not in captured.out + captured.err


def test_in_flowers_stream_every_line_is_marked(capsys, tmp_path, colours):
    with in_flower():
        log(RESULTS, logging.INFO, "first\nsecond")
        log(f"{OURS}.runs", logging.WARNING, "a checkpoint is damaged")
        log(PROGRESS, logging.DEBUG, "2 of 4", folder=tmp_path)
        log(PROGRESS, logging.DEBUG, "no folder")
    assert capsys.readouterr().out == "| first\n| second\nfedskew: warning: a checkpoint is damaged\n"
    assert (tmp_path / PROGRESS_FILE).read_text() == "2 of 4"
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS_FILE], "nothing half written is left"


def test_an_error_that_a_person_can_mend_is_one_line_of_the_stream(capsys, colours):
    with pytest.raises(DataError), in_flower():
        raise DataError("/x is empty")
    assert capsys.readouterr().out == "fedskew: error: /x is empty\n"
    with pytest.raises(KeyError), in_flower():
        raise KeyError("a fault of ours")
    assert capsys.readouterr().out == "", "its traceback is Flower's to show"


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_flowers_colours_stay_on_a_terminal_that_wants_them(monkeypatch, colours, terminal, no_color, coloured):
    colours.colored = True
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = Screen() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with in_terminal(print, print, StatusLine(stream)):
        assert colours.colored is coloured


def test_a_status_line_never_wraps_and_clears_what_it_wrote(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    line = StatusLine(screen)
    line.show("x" * 50)
    line.show("ab")
    line.clear()
    line.clear()
    assert screen.getvalue() == "x" * 19 + "\r" + " " * 19 + "\r" + "ab\r" + "  \r"


@pytest.mark.parametrize(("stream", "terminal"), [(io.StringIO(), "xterm"), (Screen(), "dumb")])
def test_no_status_line_where_it_could_not_be_written_over(monkeypatch, stream, terminal):
    monkeypatch.setenv("TERM", terminal)
    StatusLine(stream).show("1 of 4")
    assert stream.getvalue() == ""
