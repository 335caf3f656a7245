"""The preset `paper` with tiny settings: Algorithm 1 first, then calibration of the whole model."""

import torch
from builders import IMAGES, MICRO, run_here

from fedskew.config import load_config
from fedskew.model.groups import MLP
from fedskew.runs.folder import RunFolder

TINY = (
    f"data.source=generated data.generated-images={IMAGES} data.open=0.2 model.name={MICRO} model.pretrained= "
    "train.local-epochs=1 train.batch-size=16 train.lr=1e-3 train.threads=1 train.device=cpu run.threads=1 "
    "train.warm-start-epochs=1 prune.batch-size=16 federation.rounds=4"
)


def test_stages_are_cut_and_frozen_in_turn_then_all_train_and_are_calibrated(generated, tmp_path, monkeypatch):
    states = {}
    kept = RunFolder.finish_round

    def keep(folder, number, arch, state, *args, **kwargs):
        states[number] = {name: tensor.clone() for name, tensor in state.items()}
        return kept(folder, number, arch, state, *args, **kwargs)

    monkeypatch.setattr(RunFolder, "finish_round", keep)
    config = load_config("paper", overrides=f"{TINY} run.output-dir={tmp_path}")
    records = run_here(config, 2).records()
    scored = [sorted({row["stage"] for row in record["blocks"] if f"{MLP}_scores" in row}) for record in records]
    assert scored == [[0], [1], [], [0, 1], [0, 1]], "stages in turn, fine-tuning, calibration of all"
    assert all(bool(record["sign_agreement"]) == bool(stages) for record, stages in zip(records, scored, strict=True))

    def changed(part, before, after):
        names = [name for name in states[after] if name.startswith(part) and name in states[before]]
        assert names
        return any(states[before][name].shape != states[after][name].shape
                   or not torch.equal(states[before][name], states[after][name]) for name in names)  # fmt: skip

    stem, first, second = "encoder.patch_embed.", "encoder.layers.0.", "encoder.layers.1."
    assert [changed(first, number, number + 1) for number in range(4)] == [False, False, True, True]
    assert [changed(stem, number, number + 1) for number in range(4)] == [False, False, True, True]
    assert [changed(second, number, number + 1) for number in range(4)] == [True, False, True, True]
    assert changed("classifier.", 1, 2), "what is behind the frozen stages is fine-tuned"
