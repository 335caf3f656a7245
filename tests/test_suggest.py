"""A setting that there is not: the nearest one is named, also for other projects' words."""

from __future__ import annotations

import pytest

from fedskew.cli.settings import matching, settings, settings_text
from fedskew.config import ConfigError, load_config
from fedskew.config.suggest import OPTION_NODES, SYNONYMS

NAMES = {one.name for one in settings()}


def test_every_synonym_names_a_setting_that_there_is():
    assert set(SYNONYMS.values()) - NAMES == {OPTION_NODES}
    keys = {name.partition(".")[2] for name in NAMES}
    assert {word for word in SYNONYMS if word in keys} <= {"clients"}, "a key is no synonym of another"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("learning_rate=1e-3", "train.lr"),
        ("train.learning_rate=1e-3", "train.lr"),
        ("train.Learning-Rate=1e-3", "train.lr"),
        ("lr=1e-3", "train.lr"),
        ("train.ler=1e-3", "train.lr"),
        ("trian.lr=1e-3", "train"),
        ("train.rounds=3", "federation.rounds"),
        ("federation.num_rounds=3", "federation.rounds"),
        ("epochs=3", "train.local-epochs"),
        ("optimizer.lr=1e-3", "train.lr"),
        ("num_clients=6", OPTION_NODES),
        ("prune.sparsity=0.5", "prune.share"),
        ("seed=1", "run.seed"),
    ],
)
def test_what_was_meant_is_said(override, meant):
    with pytest.raises(ConfigError, match=rf"did you mean {meant}\?$"):
        load_config("demo", overrides=override)


@pytest.mark.parametrize("override", ["nonsense", "foo.bar=1"])
def test_nothing_is_suggested_where_nothing_is_near(override):
    with pytest.raises(ConfigError) as refusal:
        load_config("demo", overrides=override)
    assert "did you mean" not in str(refusal.value)


def test_a_file_names_the_setting_too(tmp_path):
    (tmp_path / "own.yaml").write_text("training: {learning_rate: 1e-3}")
    with pytest.raises(ConfigError, match=r"own\.yaml: unknown section 'training'; did you mean train\?"):
        load_config(file=tmp_path / "own.yaml")


def test_a_preset_may_be_a_file_anywhere(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {lr: 0.5}")
    config = load_config(str(tmp_path / "mine.yaml"))
    assert (config.train.lr, config.preset) == (0.5, "mine")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_config(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "mine.yaml").write_text("train: {ler: 0.5}")
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key train\.ler; did you mean train\.lr\?"):
        load_config(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("guard", {"prune.rollback"}),
        ("learning_rate", {"train.lr"}),
        ("train.lr", {"train.lr", "train.lr-floor", "train.warm-start-lr"}),
        ("FedProx", {"train.proximal"}),
    ],
)
def test_settings_are_found_by_name_purpose_or_another_projects_word(pattern, names):
    assert {one.name for one in matching(pattern)} == names


def test_all_settings_match_nothing_and_nothing_matches_nonsense():
    assert len(matching("")) == len(NAMES)
    with pytest.raises(ConfigError, match=r"no setting matches 'train\.ler'; did you mean train\.lr\?"):
        matching("train.ler")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_settings_fit_the_terminal(width):
    text = settings_text(settings(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "train.lr = 0.0003   (0..1)\n    peak learning rate of AdamW" in text
