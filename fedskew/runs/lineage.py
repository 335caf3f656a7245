"""What a model file says of itself beside its architecture: how its pictures were prepared, and where it comes from.

Nothing in it depends on when, where or under which name the run was made: the same run ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import fedskew
from fedskew.config.schema import Config
from fedskew.data.preprocessing import training_preprocessing
from fedskew.data.reference import Reference
from fedskew.model.architecture import Architecture
from fedskew.plugins import taking_part

FORMAT = 1
SPLIT_KEYS = ("clients", "test", "open", "split_by", "split_seed")  # of `data`: what decides who tests


def about_model(
    config: Config,
    arch: Architecture,
    round_number: int,
    split_hash: str,
    parent: str = "",
    reference: Reference | None = None,
) -> dict[str, Any]:
    """What `encode_model` writes into the file of a run's model.

    Args:
        split_hash: of `data.prepare.split_hash`: tells whether another split is that of the run.
        parent: SHA-256 of the model file that the run started from or took its shape from, if any.
        reference: what the server's open pictures are like; None if there are too few to say.

    Returns:
        `preprocessing` (see `data.preprocessing`), `reference` (see `data.reference`), `split` (the settings that
        decide which images test), and `lineage`: preset, pruning method, seed, round, split hash, fedskew's version
        and the hash of its code, and those of the plugins that took part and of the file that the run started
        `from`, if any.
    """
    return {
        "format": FORMAT,
        "preprocessing": training_preprocessing(arch.image_size, config.data.fit).to_mapping(),
        **({"reference": reference.to_mapping()} if reference else {}),
        "split": {key: getattr(config.data, key) for key in SPLIT_KEYS},
        "lineage": {
            "preset": config.preset,
            "method": config.prune.criterion,
            "seed": config.run.seed,
            "round": round_number,
            "split_hash": split_hash,
            "fedskew": fedskew.__version__,
            "code": code_hash(),
            **({"plugins": plugins} if (plugins := taking_part(config)) else {}),
            **({"from": parent} if parent else {}),
        },
    }


@lru_cache(maxsize=1)
def code_hash() -> str:
    """SHA-256 over names and contents of the package's modules: the same in a checkout, a wheel and Flower's bundle.

    A commit would be shorter, but neither a wheel nor a bundle knows its own, and it says nothing of local changes.
    """
    package = Path(fedskew.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
