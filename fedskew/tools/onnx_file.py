"""What an exported ONNX file says of itself: names of its inputs and metadata, a seal. Knows neither torch nor onnx.

Inputs: `images` float32 [batch, 3, S, S], prepared as `fedskew-about` says, and, if the model has vocabularies,
`metadata` int64 [batch, V], indices into them, 0 for unknown. Output: `logits` float32 [batch, classes].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

IMAGES, METADATA, LOGITS = "images", "metadata", "logits"
ARCHITECTURE = "fedskew-architecture"  # as in a model file: classes and vocabularies among it
ABOUT = "fedskew-about"  # as in a model file: preprocessing, split, lineage
EXPORT = "fedskew-export"  # JSON: precision, opset, versions, parity with the model it was made of
SEAL = "fedskew-sha256"  # of all the others


def seal(metadata: Mapping[str, str]) -> str:
    """SHA-256 (hex) over fedskew's entries of a file's metadata, the seal itself left out."""
    ours = {key: metadata[key] for key in (ARCHITECTURE, ABOUT, EXPORT) if key in metadata}
    return hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest()
