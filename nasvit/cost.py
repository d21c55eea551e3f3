"""Parameters and multiply-adds of a module, by fvcore's trace with a handle for every operator that multiplies.

Conventions (docs/metrics.md): 1 multiply-add = 1; products of matrices and convolutions are exact integers; layer and
group norm 5 per element (4 without affine), RMS norm 3 (2 without affine), eval batch norm 2 (1 without affine), adaptive
average pooling 1 per input element; everything in FREE is named there and costs 0. An operator that is neither handled nor
free is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from nasvit.errors import ConfigError, MeasurementError, UnsupportedOpError, first_of
from nasvit.registry import Registry

Handle = Callable[[list[Any], list[Any]], int]

HANDLES: Registry[Handle] = Registry("operator handle")
"""Operator name to a function of its inputs and outputs (torch._C.Value) that returns its multiply-adds."""

_ELEMENTWISE = """abs add add_ addcmul_ avg_pool2d bitwise_and bitwise_not bitwise_or celu clamp clamp_ clamp_max clamp_min cos cumsum
    div div_ dropout dropout_ elu eq erf exp feature_dropout floor floor_divide ge gelu gelu_ gt hardsigmoid hardsigmoid_ hardswish
    hardswish_ hardtanh hardtanh_ le leaky_relu linalg_vector_norm log log_softmax logical_and logical_not logical_or lt
    masked_fill masked_fill_ max max_pool2d maximum mean min minimum mish mul mul_ ne neg norm pow reciprocal relu relu6 relu_
    remainder rsqrt rsub sigmoid sigmoid_ sign silu silu_ sin softmax softplus sqrt square sub sub_ sum tanh tanh_ true_divide
    addcmul amax amin where"""
_SELECTION = """argmax argmin argsort bincount embedding gather index index_add index_copy index_put index_put_ index_select
    masked_select nonzero scatter scatter_ scatter_add scatter_add_ searchsorted sort take_along_dim topk"""
_MOVEMENT = """_shape_as_tensor alias arange as_strided broadcast_to cat chunk clone col2im concat constant_pad_nd contiguous copy_
    detach empty empty_like expand expand_as fill_ flatten flip full full_like im2col lift_fresh meshgrid movedim narrow
    new_empty new_full new_ones new_zeros numel one_hot ones ones_like pad permute pixel_shuffle pixel_unshuffle reflection_pad2d
    repeat repeat_interleave replication_pad2d reshape reshape_as roll select size slice split split_with_sizes squeeze stack
    swapaxes t tensor_split tile to transpose type_as unbind unflatten unfold unsqueeze unsqueeze_ view view_as zero_ zeros
    zeros_like Int Bool Float ScalarImplicit __and__ __or__ item"""

FREE = frozenset(f"aten::{name}" for name in f"{_ELEMENTWISE} {_SELECTION} {_MOVEMENT}".split())
"""Operators that cost 0 by name: elementwise arithmetic, reductions, softmax, selection, and moving data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a module costs for one image.

    params: elements of all parameters, trainable or not, each tensor once. macs: multiply-adds.
    by_operator: operator ("linear", "conv", "product", ..) to its multiply-adds. by_module: path to multiply-adds, its
    children included; "" is the whole module.
    """

    params: int
    macs: int
    by_operator: dict[str, int]
    by_module: dict[str, int]


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes())


@HANDLES.register("aten::scaled_dot_product_attention")
def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    q, k, out = _shape(inputs[0]), _shape(inputs[1]), _shape(outputs[0])
    return math.prod(out[:-1]) * k[-2] * (q[-1] + out[-1])  # B h Nq Nk (d + dv)


@HANDLES.register("aten::bmm")
@HANDLES.register("aten::mm")
@HANDLES.register("aten::mv")
@HANDLES.register("aten::dot")
@HANDLES.register("aten::matmul")  # fvcore's own is wrong where the first operand is broadcast
def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


@HANDLES.register("aten::addmm")
@HANDLES.register("aten::baddbmm")
@HANDLES.register("aten::baddbmm_")
def _addmm(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[1])[-1]


@HANDLES.register("aten::rms_norm")
def _rms_norm(inputs: list[Any], outputs: list[Any]) -> int:
    weighted = inputs[2].type().kind() == "TensorType"  # without weights it is None
    return math.prod(_shape(outputs[0])) * (3 if weighted else 2)  # square, scale, weight


@HANDLES.register("aten::einsum")
def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    return einsum_macs(inputs[0].toIValue(), [_shape(v) for v in inputs[1].node().inputs()])


def einsum_macs(equation: str, shapes: list[list[int]]) -> int:
    """Exact multiply-adds of an einsum of one operand (0) or two; raises UnsupportedOpError for more.

    An index that stands in one operand only and not in the result is summed before the product, as torch does.
    """
    if len(shapes) == 1:
        return 0
    if len(shapes) > 2:
        raise UnsupportedOpError(f"einsum {equation!r} has {len(shapes)} operands, and its cost depends on their order; write it in pairs")
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        raise UnsupportedOpError(f"einsum {equation!r} has no '->'; write the result's indices")
    labelled = []
    for term, shape in zip(terms, shapes, strict=True):
        head, dots, tail = term.partition("...")
        hidden = len(shape) - len(head) - len(tail)
        labels = [*head, *(f".{i}" for i in range(hidden, 0, -1) if dots), *tail]  # counted from the right: broadcasting
        labelled.append(dict(zip(labels, shape, strict=True)))
    kept = set(result)
    sizes: dict[str, int] = {}
    for own, other in (labelled, labelled[::-1]):
        for label, size in own.items():
            if label in other or label in kept or label.startswith("."):
                sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Run in eval mode; give back every module's mode and hooks, and the random state."""
    modules = list(module.modules())
    before = [(m.training, set(m._forward_pre_hooks), set(m._forward_hooks)) for m in modules]
    random_state = torch.get_rng_state()
    module.eval()
    try:
        yield
    finally:
        torch.set_rng_state(random_state)
        for each, (training, pre_hooks, hooks) in zip(modules, before, strict=True):
            each.training = training
            for key in set(each._forward_pre_hooks) - pre_hooks:  # fvcore leaves its hooks behind when a trace fails
                del each._forward_pre_hooks[key]
            for key in set(each._forward_hooks) - hooks:
                del each._forward_hooks[key]


def example(module: nn.Module, *, shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros of this shape where the module's parameters live, in their floating type."""
    weights = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(shape, dtype=weights.dtype, device=weights.device)


def _analyse(module: nn.Module, image: torch.Tensor) -> FlopCountAnalysis:
    analysis = FlopCountAnalysis(module, (image,)).unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    for name in HANDLES:
        analysis.set_op_handle(name, HANDLES[name])
    for name in FREE:
        analysis.set_op_handle(name, None)
    try:
        analysis.total()
    except UnsupportedOpError:
        raise
    except (ConfigError, RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError) as error:
        raise MeasurementError(f"{type(module).__name__} cannot be counted with an input of shape {tuple(image.shape)}: {error}") from error
    return analysis


def _refuse_uncounted(module: nn.Module, analysis: FlopCountAnalysis) -> None:
    unknown = analysis.unsupported_ops("")
    if not unknown:
        return
    found = []
    for op in sorted(unknown):
        holders = [name for name, _ in module.named_modules() if op in analysis.unsupported_ops(name)]
        deepest = [n for n in holders if not any(o != n and (n == "" or o.startswith(n + ".")) for o in holders)]
        found.append(f"{op} in {first_of([n or type(module).__name__ for n in deepest], most=3)}")
    raise UnsupportedOpError(
        f"no cost is known for {'; '.join(found)}. Register a handle for it (nasvit.cost.HANDLES.register(name)), "
        "or name it in nasvit.cost.FREE")


def _products(module: nn.Module) -> dict[str, int]:
    """Path to multiply-adds that a module reports itself, because a trace cannot tell them from gating."""
    return {path: int(m.product_macs()) for path, m in module.named_modules()
            if callable(getattr(m, "product_macs", None))}


def count(module: nn.Module, *, input_shape: tuple[int, ...]) -> Cost:
    """Parameters and multiply-adds for one image.

    input_shape: (B, C, H, W); one image is traced whatever B is. The module is run once in eval mode without gradients
    and left as it was. Raises UnsupportedOpError for an operator without a known cost, MeasurementError where the module
    does not run on this shape.
    """
    with _untouched(module), torch.no_grad():
        analysis = _analyse(module, example(module, shape=(1, *input_shape[1:])))
    _refuse_uncounted(module, analysis)
    by_operator = {name: round(n) for name, n in analysis.by_operator().items() if n}
    by_module = {name: round(n) for name, n in analysis.by_module().items()}
    for path, macs in _products(module).items():
        if macs:
            by_operator["product"] = by_operator.get("product", 0) + macs
            parts = path.split(".") if path else []
            for depth in range(len(parts) + 1):
                name = ".".join(parts[:depth])
                by_module[name] = by_module.get(name, 0) + macs
    return Cost(params=sum(p.numel() for p in module.parameters()), macs=by_module[""], by_operator=by_operator, by_module=by_module)
