"""What pruned models cost on a small CPU, in PyTorch and in ONNX Runtime. docs/edge.md shows it.

    python benchmarks/edge.py swin_t
    python benchmarks/edge.py small
    python benchmarks/edge.py ways
    python benchmarks/edge.py parts

`swin_t`: Swin-T at 224 pixels; `small`: the small Swin at 64. Each dense, at the paper's budget (36 % of the
parameters, 50 % of the MACs), at 12 % of the parameters, and as Torch-Pruning makes it of the dense one, uniformly by
magnitude, with the MACs of the paper's budget. Each in PyTorch in float32, and as ONNX in float32, float16 and int8.
How long a call takes depends on the shape alone, so the weights are random; what int8 does to a trained model is
measured by `fedskew export`. `ways`: the paper's budget of Swin-T in int8, made in other ways. `parts`: which operators
the time of a call goes to, for the paper's budget of Swin-T and the dense one, in float32 and int8. One thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from timing import finish, parser

from fedskew.config.schema import ModelConfig
from fedskew.export.bench import bench
from fedskew.export.bench_worker import random_inputs
from fedskew.export.graph import to_onnx
from fedskew.export.quantise import PRODUCTS, Reader, constant_products, dynamic_int8, half, prepared, static_int8
from fedskew.export.session import feeds
from fedskew.model.architecture import Architecture
from fedskew.model.catalogue import dense_architecture
from fedskew.model.fusion import MultimodalModel, build
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.model.modelfile import encode_model

MODELS = {"swin_t": "swin_tiny_patch4_window7_224", "small": "swin_wide64_patch4_window4_64"}
PAPER = {"parameters": 9.81 / 27.52, "macs": 2.17 / 4.35}  # Paxton et al., table 1
OURS = {"parameters": 0.12}
U8, S8 = QuantType.QUInt8, QuantType.QInt8
CALIBRATION = 8  # images: of random weights any range will do


def uniform(arch: Architecture, share: float, late: float | None = None) -> Architecture:
    """The same share of every sublayer, one unit at least; in the last stage another share, if one is given."""
    left: dict[SublayerKey, tuple[int, ...] | int] = {}
    for key, group in arch.groups.items():
        wanted = late if late is not None and key.stage == arch.stages - 1 else share
        count = max(1, round(wanted * group.units))
        left[key] = tuple(range(count)) if group.numbered else count
    return arch.with_left(left)


def at_budget(arch: Architecture, budget: Mapping[str, float]) -> Architecture:
    """The shape that comes closest to shares of the dense parameters, and of the MACs if they are told."""
    shares = [round(0.01 * step, 2) for step in range(2, 100)]
    if "macs" not in budget:
        return min((uniform(arch, share) for share in shares), key=lambda one: _miss(arch, one, budget))
    pairs = [(share, late) for share in shares[::2] for late in shares[::2]]
    return min((uniform(arch, *pair) for pair in pairs), key=lambda one: _miss(arch, one, budget))


def _miss(dense: Architecture, one: Architecture, budget: Mapping[str, float]) -> float:
    found = {"parameters": one.cost.parameters / dense.cost.parameters, "macs": one.cost.linear / dense.cost.linear}
    return max(abs(found[name] - wanted) for name, wanted in budget.items())


def torch_pruning(arch: Architecture, macs: float) -> Architecture:
    """The shape that Torch-Pruning makes of a dense Swin at about this share of its MACs.

    Widths of the tokens stay: it does not see through the reshaping of patch merging, and the model would not run. The
    bias tables are kept from it, and heads are counted by it: the attention would be left alone without a word.
    """
    ratios = [round(0.01 * step, 2) for step in range(1, 100)]
    ratio = min(ratios, key=lambda ratio: _miss(arch, uniform(arch, 1 - ratio), {"macs": macs}))
    units = _pruned_by_it(arch, ratio)
    return arch.with_left({key: tuple(range(units[key])) if group.numbered else units[key]
                           for key, group in arch.groups.items()})  # fmt: skip


def _pruned_by_it(arch: Architecture, ratio: float) -> dict[SublayerKey, int]:
    """How many units each sublayer has after Torch-Pruning."""
    import timm
    import torch_pruning

    first = arch.spec.stages[0]  # type: ignore[attr-defined]
    heads = tuple(stage.heads for stage in arch.spec.stages)  # type: ignore[attr-defined]
    depths = tuple(stage.depth for stage in arch.spec.stages)  # type: ignore[attr-defined]
    size = arch.image_size
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=size, patch_size=4, num_classes=7, embed_dim=first.width, depths=depths, num_heads=heads,
        window_size=first.window,
    ).eval()  # fmt: skip
    blocks = {(i, j): block for i, layer in enumerate(model.layers) for j, block in enumerate(layer.blocks)}
    kept = [model.head, model.patch_embed.proj, *(layer.downsample.reduction for layer in model.layers[1:])]
    for block in blocks.values():
        kept += [block.attn.proj, block.mlp.fc2, block.attn.relative_position_bias_table]
    pruner = torch_pruning.pruner.MetaPruner(
        model, torch.zeros(1, 3, size, size), importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio, head_pruning_ratio=ratio, prune_num_heads=True, prune_head_dims=False,
        num_heads={block.attn.qkv: block.attn.num_heads for block in blocks.values()}, ignored_layers=kept,
    )  # fmt: skip
    pruner.step()
    found = {}
    for (i, j), block in blocks.items():
        found[SublayerKey(i, j, ATTENTION)] = pruner.num_heads[block.attn.qkv]
        found[SublayerKey(i, j, MLP)] = block.mlp.fc1.out_features
    return found


def shapes(name: str) -> dict[str, Architecture]:
    """The architectures that are measured, by what they are called."""
    dense = dense_architecture(ModelConfig(name=name))
    return {
        "dense": dense,
        "paper's budget": at_budget(dense, PAPER),
        "12 %": at_budget(dense, OURS),
        "Torch-Pruning": torch_pruning(dense, PAPER["macs"]),
    }


def calibration(arch: Architecture) -> Iterator[Mapping[str, np.ndarray]]:
    """Random images, one a batch."""
    for _ in range(CALIBRATION):
        yield feeds(*random_inputs(1, arch.image_size, len(arch.vocabularies)))


def files(model: MultimodalModel, folder: Path) -> dict[str, Path]:
    """The model in every form, by its name."""
    folder.mkdir()
    graph = to_onnx(model)
    made = {"onnx fp32": graph, "onnx fp16": half(graph),
            "onnx int8": static_int8(graph, calibration(model.architecture))}  # fmt: skip
    found = {"torch fp32": folder / "model.safetensors"}
    found["torch fp32"].write_bytes(encode_model(model.architecture, model.state_dict()))
    for name, one in made.items():
        found[name] = folder / f"{name.split()[1]}.onnx"
        onnx.save(one, found[name])
    return found


def compared(model: str, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each shape and form; ratios to the dense model as ONNX in float32, which comes first."""
    torch.manual_seed(0)
    archs = shapes(model)
    made = {name: files(build(arch).eval(), folder / str(i)) for i, (name, arch) in enumerate(archs.items())}
    cases = {f"{name}, {form}": file for name, forms in made.items() for form, file in forms.items()}
    first = "dense, onnx fp32"
    ordered = {first: cases[first]} | cases
    dense = archs["dense"].cost
    rows = []
    for row in bench(ordered, rounds=rounds, threads=(1,), say=print):
        name, _, form = row.pop("model").rpartition(", ")
        cost = archs[name].cost
        shares = {"parameters": cost.parameters, "parameters_share": cost.parameters / dense.parameters,
                  "macs": cost.linear, "macs_share": cost.linear / dense.linear}  # fmt: skip
        rows.append({"shape": name, "form": form, **shares, **row,
                     "size": row["file_bytes"] / cases[first].stat().st_size})  # fmt: skip
    return rows


def int8_ways(graph: onnx.ModelProto, given: Callable[[], Iterator[Mapping[str, np.ndarray]]]) -> dict[str, Any]:
    """Ways to int8 by their names, each made when it is called: those that `fedskew export` tries, and others."""

    def static(activations: Any = U8, weights: Any = S8, *, out: bool = False) -> onnx.ModelProto:
        """As `static_int8`, but with weights of 8 bits, other types, or sums in int8 too."""
        options = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": [] if out else list(PRODUCTS)}
        with prepared(graph) as (source, target):
            quantize_static(
                source, target, Reader(given()), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(PRODUCTS),
                nodes_to_quantize=constant_products(onnx.load(source)), per_channel=True, activation_type=activations,
                weight_type=weights, calibrate_method=CalibrationMethod.MinMax, extra_options=options,
            )  # fmt: skip
            return onnx.load(target)

    return {
        "static, U8S8, weights of 7 bits (tried)": lambda: static_int8(graph, given()),
        "dynamic, U8S8, weights of 7 bits (tried)": lambda: dynamic_int8(graph),
        "static, U8S8": static,
        "static, S8S8": lambda: static(S8, S8),
        "static, U8U8": lambda: static(U8, U8),
        "static, U8S8, sums in int8 too": lambda: static(out=True),
    }


def ways(rounds: int, folder: Path) -> list[dict[str, Any]]:
    """The paper's budget of Swin-T in int8 in several ways; ratios to the same in float32."""
    torch.manual_seed(0)
    arch = at_budget(dense_architecture(ModelConfig(name=MODELS["swin_t"])), PAPER)
    graph = to_onnx(build(arch).eval())
    made = {"fp32": lambda: graph} | int8_ways(graph, lambda: calibration(arch))
    cases = {}
    for i, (name, make) in enumerate(made.items()):
        cases[name] = folder / f"{i}.onnx"
        onnx.save(make(), cases[name])
    return bench(cases, rounds=rounds, threads=(1,), say=print)


def operator_times(file: Path, calls: int) -> Counter[str]:
    """Microseconds of a call by kind of operator, as onnxruntime's profiler has them (which costs time itself)."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.enable_profiling = 1, True
    settings.profile_file_prefix = str(file.with_suffix(""))
    session = onnxruntime.InferenceSession(file, settings)
    size, columns = (value.shape[-1] for value in session.get_inputs())
    for _ in range(calls):
        session.run(None, dict(feeds(*random_inputs(1, size, columns))))
    found: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event["cat"] == "Node" and event["name"].endswith("kernel_time"):
            found[event["args"]["op_name"]] += event["dur"] / calls
    return found


def parts(calls: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each kind of operator: its share of the time of a call of each model."""
    torch.manual_seed(0)
    dense = dense_architecture(ModelConfig(name=MODELS["swin_t"]))
    times = {}
    for name, arch in (("dense", dense), ("paper's budget", at_budget(dense, PAPER))):
        graph = to_onnx(build(arch).eval())
        for form, one in (("fp32", graph), ("int8", static_int8(graph, calibration(arch)))):
            file = folder / f"{len(times)}.onnx"
            onnx.save(one, file)
            times[f"{name}, {form}"] = operator_times(file, calls)
    order = sum(times.values(), Counter()).most_common()
    return [{"operator": kind} | {name: found[kind] / found.total() for name, found in times.items()}
            for kind, _ in order]  # fmt: skip


def options() -> argparse.Namespace:
    """What was asked for."""
    found = parser(__doc__)
    found.add_argument("what", choices=[*MODELS, "ways", "parts"])
    found.add_argument("--model", metavar="NAME", help="another Swin than that of `swin_t` or `small`")
    found.add_argument("--rounds", type=int, default=10, metavar="N", help="default: 10")
    return found.parse_args()


if __name__ == "__main__":
    asked = options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        if asked.what in ("ways", "parts"):
            rows = {"ways": ways, "parts": parts}[asked.what](asked.rounds, Path(place))
        else:
            rows = compared(asked.model or MODELS[asked.what], asked.rounds, Path(place))
    finish(f"edge_{asked.what}", rows, asked.out)
