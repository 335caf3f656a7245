"""YAML that is nested without end is one clear error, whichever file it is in; a log line steers no terminal."""

import logging
import re

import pytest
import yaml

from fedskew.cli.terminal import Terminal
from fedskew.config import ConfigError, load_config
from fedskew.console import Lines
from fedskew.data.manifest import load_manifest
from fedskew.data.samples import DataError
from fedskew.site.policy import PolicyError
from fedskew.site.policy_file import load_policy
from fedskew.sweeps.results import ResultsError, read_settings
from fedskew.sweeps.study import StudyError, read_study
from fedskew.text import printable, read_yaml

DEEP = "[" * 700 + "]" * 700  # Python gives up at about 500
READERS = {
    "policy": (load_policy, PolicyError),
    "manifest": (load_manifest, DataError),
    "configuration": (lambda path: load_config(file=path), ConfigError),
    "preset": (lambda path: load_config(str(path)), ConfigError),
    "study": (lambda path: read_study(path, path.parent), StudyError),
    "run folder": (lambda path: read_settings(path.parent), ResultsError),
}


@pytest.mark.parametrize("reader", READERS)
def test_deep_yaml_is_one_error_that_names_the_file(tmp_path, reader):
    path = tmp_path / "config.yaml"
    path.write_text(DEEP)
    read, error = READERS[reader]
    with pytest.raises(error, match=r"config\.yaml.*nested hundreds of levels deep"):
        read(path)


def test_deep_yaml_in_an_override_is_one_error():
    with pytest.raises(ConfigError, match=r"train\.lr cannot be read: it is nested"):
        load_config(overrides=f"train.lr={DEEP}")


def test_a_date_that_is_none_is_an_error_of_yaml():
    with pytest.raises(yaml.YAMLError, match="month must be in"):
        read_yaml("a: 2026-13-45")


def test_what_is_no_text_for_people_is_shown_as_what_it_is():
    assert printable("\x1b[31m\u202eevil\tß 漢") == "\\x1b[31m\\u202eevil\\tß 漢"


def test_what_a_command_writes_steers_no_terminal(capsys):
    """Flower's own lines are shown too where `--verbose` asks for them."""
    Terminal().message("flwr: \x1b]0;a\x07\n\tsecond\u202e")
    assert capsys.readouterr().err == "flwr: \\x1b]0;a\\x07\n        second\\u202e\n"


def test_a_line_of_a_log_steers_no_terminal():
    written = []
    record = logging.LogRecord("x", logging.WARNING, "", 0, "site %s\nsecond\tline", ("\x1b]0;a\x07\u202e",), None)
    Lines(written.append).emit(record)
    assert written == ["warning: site \\x1b]0;a\\x07\\u202e\nsecond  line"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' is there twice, in lines 1 and 3"),
        ("labels:\n  Melanom: mel\n  Melanom: nv\n", "'Melanom' is there twice, in lines 2 and 3"),
        ("a: [{b: 1,\n  b: 1}]\n", "'b' is there twice, in lines 1 and 2"),
        ("labels: {x: mel, x: nv}\n", "'x' is there twice, in lines 1 and 1"),
        ("a: 1\n'a': 1\n", "'a' is there twice"),
        ("1: a\n1: b\n", "1 is there twice"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_its_lines(text, told):
    """YAML takes the last: a second `Melanom: nv` turned 82 melanomas into nevi without a word."""
    with pytest.raises(yaml.YAMLError, match=re.escape(told)):
        read_yaml(text)


def test_keys_may_be_shared_by_anchors_and_occur_in_several_maps():
    text = "a: &x {k: 1}\nb: &y {<<: *x, k: 2}\nc: {<<: *y, k: 3}\n"
    assert read_yaml(text) == {"a": {"k": 1}, "b": {"k": 2}, "c": {"k": 3}}


@pytest.mark.parametrize("kind", list(READERS))
def test_a_double_key_is_refused_wherever_a_person_writes_yaml(tmp_path, kind):
    read, error = READERS[kind]
    path = tmp_path / "config.yaml"
    path.write_text("model: {classes: [mel, nv]}\nfile: t.csv\nmodel: {name: swin_tiny}\n")
    with pytest.raises(error, match="'model' is there twice, in lines 1 and 3"):
        read(path)


def test_a_key_in_both_spellings_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("train: {batch_size: 8, batch-size: 16}\n")
    with pytest.raises(ConfigError, match=r"train\.batch-size is there twice, as 'batch_size' too"):
        load_config(file=tmp_path / "x.yaml")


NINE = ", ".join(["*{0}"] * 9)


@pytest.mark.parametrize(
    "text",
    [
        "[&a [x], " + ", ".join(f"&{y} [{NINE.format(x)}]" for x, y in zip("abcdefgh", "bcdefghi", strict=True)) + "]",
        "&a [*a]",
        "&a {x: {y: *a}}",
        str(list(range(100_000))),
    ],
    ids=["nine to the ninth", "itself", "in itself", "as long as that"],
)
def test_yaml_that_stands_for_more_than_anybody_writes_is_refused(text):
    """Nine lines are a billion values: an error that showed one of them never ended."""
    with pytest.raises(yaml.YAMLError, match="holds more than 100,000 values"):
        read_yaml(text)
