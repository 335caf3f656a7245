"""How weights travel: all tensors of one dtype end to end in a single vector, in the order of their names.

Flower moves every array of a message as objects of its own, with HTTP requests for each, whatever its size: a Swin-T of
176 tensors would cost hundreds of requests a message and site. Both sides know the architecture, so names and shapes
need not travel with the values; a hash of them in the vector's name shows whether both sides mean the same.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from fedskew.flower import SType
from fedskew.model.architecture import Architecture
from fedskew.model.layout import Layout, TensorSpec, layout, layout_of

REMEDY = "use the same versions of fedskew and timm on the server and all nodes"


def vector_layout(wanted: Layout) -> Layout:
    """The vectors in which tensors travel: one a dtype, named by it and a hash over the tensors' names and shapes."""
    groups: dict[str, list[tuple[str, TensorSpec]]] = {}
    for name, spec in sorted(wanted.items()):
        groups.setdefault(spec.dtype, []).append((name, spec))
    vectors = {}
    for dtype, tensors in groups.items():
        text = "\n".join(f"{name} {spec.shape}" for name, spec in tensors)
        name = f"{dtype}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        vectors[name] = TensorSpec((sum(spec.size for _, spec in tensors),), dtype)
    return vectors


def to_record(state: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Tensors as Flower arrays."""
    parts: dict[str, list[np.ndarray]] = {}
    for key in sorted(state):
        values = state[key].detach().cpu().contiguous().numpy()
        parts.setdefault(str(values.dtype), []).append(values)
    vectors = vector_layout(layout_of(state))
    return ArrayRecord({name: _joined(parts[vector.dtype], vector) for name, vector in vectors.items()})


def _joined(parts: list[np.ndarray], vector: TensorSpec) -> Array:
    """What Flower makes of the concatenated parts, without the copies that concatenating and serialising would be."""
    header, values = io.BytesIO(), np.dtype(vector.dtype)
    np.lib.format.write_array_header_1_0(header, {"descr": values.str, "fortran_order": False, "shape": vector.shape})
    return Array(vector.dtype, vector.shape, SType.NUMPY, b"".join([header.getvalue(), *(part.data for part in parts)]))


def to_arrays(vectors: Mapping[str, np.ndarray], wanted: Layout) -> dict[str, np.ndarray]:
    """Vectors as the tensors they consist of, in the order of names; views.

    Raises:
        ValueError: they are not the vectors of `wanted`.
    """
    check_vectors({name: TensorSpec(vector.shape, str(vector.dtype)) for name, vector in vectors.items()}, wanted)
    by_dtype = {str(vector.dtype): vector for vector in vectors.values()}
    arrays, start = {}, dict.fromkeys(by_dtype, 0)
    for name, spec in sorted(wanted.items()):
        end = start[spec.dtype] + spec.size
        arrays[name] = by_dtype[spec.dtype][start[spec.dtype] : end].reshape(spec.shape)
        start[spec.dtype] = end
    return arrays


def from_record(record: ArrayRecord, wanted: Layout) -> dict[str, np.ndarray]:
    """The tensors in a record that is trusted (`checks` decodes those of replies); raises as `to_arrays`."""
    return to_arrays({name: array.numpy() for name, array in record.items()}, wanted)


def to_tensors(record: ArrayRecord, wanted: Layout) -> dict[str, torch.Tensor]:
    """As `from_record`, as tensors of their own."""
    return {name: torch.from_numpy(array.copy()) for name, array in from_record(record, wanted).items()}


def to_state(record: ArrayRecord, arch: Architecture) -> dict[str, torch.Tensor]:
    """The state of an architecture's model in a record; raises as `to_arrays`."""
    return to_tensors(record, layout(arch))


def check_vectors(found: Layout, wanted: Layout) -> None:
    """Compare what a record says of its vectors with what the tensors that are wanted travel in.

    Raises:
        ValueError: says what the difference is.
    """
    expected = vector_layout(wanted)
    if dict(found) == expected:
        return
    if sorted(map(_size, found.values())) != sorted(map(_size, expected.values())):
        raise ValueError(f"the weights are {_words(found)}, expected {_words(expected)}: {REMEDY}")
    raise ValueError(
        "the weights are as many as expected, of tensors with other names or shapes (expected the vectors "
        f"{', '.join(expected)}): {REMEDY}"
    )


def _size(spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    return spec.dtype, spec.shape


def _words(specs: Layout) -> str:
    text = ", ".join(f"{spec.dtype} {tuple(spec.shape)}" for spec in specs.values())
    return text[:100] or "missing"


def arrays_sha256(arrays: ArrayRecord | Mapping[str, Array]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the arrays as they are sent, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}\0{array.dtype}\0{tuple(array.shape)}\0{len(array.data)}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()
