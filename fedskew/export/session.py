"""What onnxruntime says of images: the logits of an exported model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

from fedskew.tools.onnx_file import IMAGES, LOGITS, METADATA

ERRORS_ONLY = 3  # of onnxruntime's levels of logging


def open_session(content: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session on the CPU that computes with this many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def feeds(images: np.ndarray, metadata: np.ndarray) -> Mapping[str, np.ndarray]:
    """The inputs of a session: images [B, 3, S, S] and metadata [B, V], if there is any."""
    return {IMAGES: images} | ({METADATA: metadata} if metadata.shape[1] else {})


def logits_of(session: onnxruntime.InferenceSession, images: np.ndarray, metadata: np.ndarray) -> np.ndarray:
    """Logits float32 [B, classes]."""
    found: np.ndarray = session.run([LOGITS], feeds(images, metadata))[0]
    return found
