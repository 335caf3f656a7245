"""In which numbers a model computes, and whether the machine has instructions for them."""

from __future__ import annotations

import torch

FLOAT32, BFLOAT16 = "float32", "bfloat16"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 itself: AMX or AVX-512 BF16, or a GPU since Ampere.

    Elsewhere torch computes the same numbers without such instructions, many times slower than in float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_precision(setting: str, device: torch.device) -> str:
    """`float32` or `bfloat16`, as `train.precision` means it on this device."""
    if setting == "fast":
        return BFLOAT16 if has_bfloat16(device) else FLOAT32
    if setting == "auto":
        return BFLOAT16 if device.type == "cuda" else FLOAT32
    return setting


def precision_in_words(setting: str, device: torch.device) -> str:
    """`float32 on cpu`; of `fast` also why."""
    why = f", as train.precision=fast finds {'' if has_bfloat16(device) else 'no '}instructions for bfloat16"
    return f"{choose_precision(setting, device)} on {device.type}" + (why if setting == "fast" else "")


def slow_precision(setting: str, device: torch.device) -> str:
    """What a person must know whose setting makes training slow on this device; empty if it does not."""
    if choose_precision(setting, device) == FLOAT32 or has_bfloat16(device):
        return ""
    what = "this GPU has" if device.type == "cuda" else "this CPU has neither AMX nor AVX-512 BF16, that is"
    return (
        f"train.precision={setting} computes in bfloat16, and {what} no instructions for it: training may take ten "
        "times as long as in float32. train.precision=fast takes bfloat16 only where there are"
    )
