"""Where a run's lines go: results and messages apart, marked in Flower's stream, plain where there is no terminal."""

from __future__ import annotations

import io
import logging

import pytest
from flwr.common.logger import console_handler

from fedskew import console
from fedskew.console import (
    OURS,
    PROGRESS,
    PROGRESS_FILE,
    RESULTS,
    StatusLine,
    counted,
    in_command,
    in_flower,
    in_terminal,
)
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


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test lets pass."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def taking(clock, seconds, count):
    for number in range(count):
        clock[0] += seconds
        yield number


def test_long_loops_tell_how_long_the_rest_takes_after_two_seconds(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    with in_command(print, StatusLine(screen)):
        assert list(counted(taking(clock, 0.6, 6), 6, "images")) == list(range(6))
    shown = [text for text in screen.getvalue().split("\r") if text.strip()]
    assert shown == ["0 of 6 images", "4 of 6 images, about 0m01s left", "5 of 6 images, about 0m01s left",
                     "6 of 6 images, about 0m00s left"]  # fmt: skip
    assert screen.getvalue().endswith(f"{' ' * len(shown[-1])}\r"), "taken away"


def test_of_loops_in_each_other_the_outer_one_tells_and_one_item_tells_nothing(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    with in_command(print, StatusLine(screen)):
        for _ in counted([1], 1, "run"):
            for _ in counted("ab", 2, "rounds"):
                list(counted(taking(clock, 3, 4), 4, "images"))
    assert "0 of 2 rounds" in screen.getvalue()
    assert "1 of 2 rounds, about 0m12s left" in screen.getvalue()
    assert "image" not in screen.getvalue()
    assert "run" not in screen.getvalue().replace("rounds", "")


def test_a_loop_that_is_left_early_leaves_nothing_shown_and_the_next_one_tells(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    with in_command(print, StatusLine(screen)):
        for _ in counted(taking(clock, 3, 4), 4, "images"):
            break
        list(counted(taking(clock, 3, 4), 4, "others"))
    assert "2 of 4 others, about 0m06s left" in screen.getvalue()


def test_a_message_takes_the_status_line_away_first(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    with in_command(lambda text: screen.write(f"{text}\n"), StatusLine(screen)):
        StatusLine(screen).show("reading")
        log(f"{OURS}.data", logging.WARNING, "one is missing")
    assert screen.getvalue() == "reading\r       \rwarning: one is missing\n"
