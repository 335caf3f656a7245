"""The app bundle that `flwr run` would send, and its hash: what a site pins in its policy."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedskew.errors import FedskewError
from fedskew.flower import build_fab_from_disk


class BundleError(FedskewError, ValueError):
    """A folder from which no app bundle can be built; says why."""


def bundle_hash(app: Path) -> str:
    """SHA-256 of the bundle of an app folder, built by Flower's own code; the same files always give the same hash.

    Raises:
        BundleError: the folder holds no Flower app.
    """
    try:
        return hashlib.sha256(build_fab_from_disk(app)).hexdigest()
    except (OSError, ValueError) as error:
        raise BundleError(f"no app bundle can be built from {app}: {error}") from error
