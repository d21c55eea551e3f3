"""Linear layers beside convolutions as 1x1 convolutions: an ONNX graph with fewer changes of layout.

Tokens are channels-last, (B, H, W, C), everywhere in nasvit, which is torch's fastest layout; ONNX Runtime convolves in blocks of
channels, and lays a map out anew, and flattens it, before and behind every linear layer. So what a map goes through between its
convolutions is rewritten for (B, C, H, W): the same function, up to rounding. Where a map needs its channels last (layer norms,
attention), it is turned once, as it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
ONE_BY_ONE = ("Relu", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish", "Erf", "Tanh")
TWO_BY_TWO = ("Add", "Sub", "Mul", "Div")


def channels_first(model: ir.Model) -> None:
    """Rewrite the graph in place; nodes that nothing uses any more are left for a pass that removes them."""
    _Rewriting(model.graph).run()


class _Rewriting:
    """first: for maps (B, H, W, C) what holds the same as (B, C, H, W)."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.first: dict[ir.Value, ir.Value] = {}
        self._made: dict[tuple[str, str], ir.Value] = {}

    def run(self) -> None:
        for node in list(self.graph):
            rewritten = self._handler(node)
            if rewritten is not None and not any(out.is_graph_output() for out in node.outputs):
                rewritten(node)

    def _handler(self, node: ir.Node) -> Callable[[ir.Node], None] | None:
        if node.domain:  # another library's operator of that name
            return None
        if node.op_type in ONE_BY_ONE:
            return self._one_by_one
        if node.op_type in TWO_BY_TWO:
            return self._two_by_two
        known = {"Transpose": self._transpose, "MatMul": self._linear, "Unsqueeze": self._unsqueeze, "ReduceMean": self._mean}
        return known.get(node.op_type)

    # ---- operators ----------------------------------------------------------------------------------------------------------

    def _transpose(self, node: ir.Node) -> None:
        before, turned = _input(node), list(node.attributes["perm"].as_ints())
        if turned == TO_LAST:
            self.first[node.outputs[0]] = before
        elif turned == TO_FIRST and before in self.first:
            _replace(node.outputs[0], self.first[before])

    def _linear(self, node: ir.Node) -> None:
        x, weight = _input(node), _input(node, 1)
        if weight.const_value is None or len(weight.const_value.shape) != 2:
            return
        if x not in self.first and _rank(x) == 4 and _mostly_convolved(x):
            self.first[x] = self._emit(node, "Transpose", [x], perm=TO_FIRST)
        if x in self.first and any(_goes_on(user) for user in _users(node.outputs[0])):
            kernel = self._constant(weight, "kernel", lambda w: w.T[:, :, None, None])
            self._settle(node, self._emit(node, "Conv", [self.first[x], kernel]))

    def _one_by_one(self, node: ir.Node) -> None:
        if _input(node) in self.first:
            self._settle(node, self._emit(node, node.op_type, [self.first[_input(node)]], **node.attributes))

    def _two_by_two(self, node: ir.Node) -> None:
        pair = [self._as_first(_input(node, place)) for place in (0, 1)]
        if all(value is not None for value in pair) and any(_input(node, place) in self.first for place in (0, 1)):
            self._settle(node, self._emit(node, node.op_type, [value for value in pair if value is not None]))

    def _as_first(self, value: ir.Value) -> ir.Value | None:
        """What takes the value's place beside maps (B, C, H, W); None where nothing does."""
        known = value.const_value
        if known is None:
            return self.first.get(value)
        if known.size == 1:
            return value
        if len(known.shape) == 1:
            return self._constant(value, "channels", lambda c: c[:, None, None])
        if len(known.shape) == 4:
            return self._constant(value, "map", lambda m: m.transpose(TO_FIRST))
        return None

    def _unsqueeze(self, node: ir.Node) -> None:
        if _rank(_input(node)) == 2 and _ints(_input(node, 1)) == [1, 2]:  # (B, C) to (B, 1, 1, C)
            self.first[node.outputs[0]] = self._emit(node, "Unsqueeze", [_input(node), self._grid_of(_input(node, 1))])

    def _mean(self, node: ir.Node) -> None:
        x = _input(node)
        if x in self.first and len(node.inputs) > 1 and _ints(_input(node, 1)) == [1, 2]:
            keep = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
            mean = self._emit(node, "ReduceMean", [self.first[x], self._grid_of(_input(node, 1))], keepdims=keep)
            if keep:
                self._settle(node, mean)
            else:
                _replace(node.outputs[0], mean)

    # ---- the graph ----------------------------------------------------------------------------------------------------------

    def _emit(self, before: ir.Node, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        made = ir.node(op_type, inputs, attributes=attributes or None)
        made.outputs[0].type = before.outputs[0].type
        self.graph.insert_before(before, made)
        return made.outputs[0]

    def _settle(self, node: ir.Node, first: ir.Value) -> None:
        """The node's output is now turned from `first`, for those who still want it so."""
        last = self._emit(node, "Transpose", [first], perm=TO_LAST)
        last.shape = node.outputs[0].shape
        _replace(node.outputs[0], last)
        self.first[last] = first

    def _grid_of(self, axes: ir.Value) -> ir.Value:
        """The axes of the grid, in place of `axes` 1 and 2."""
        return self._constant(axes, "grid", lambda _: np.array([2, 3], dtype=np.int64))

    def _constant(self, value: ir.Value, what: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> ir.Value:
        key = (str(value.name), what)
        if key not in self._made:
            assert value.const_value is not None
            name = f"{value.name}.{what}"
            array = np.ascontiguousarray(change(value.const_value.numpy()))
            tensor = ir.tensor(array, name=name)
            self._made[key] = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
            self.graph.register_initializer(self._made[key])
        return self._made[key]


def _input(node: ir.Node, place: int = 0) -> ir.Value:
    value = node.inputs[place]
    assert value is not None, "these operators leave no input out"
    return value


def _replace(old: ir.Value, new: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(old, new)


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _ints(value: ir.Value) -> list[int] | None:
    return None if value.const_value is None else [int(i) for i in value.const_value.numpy().reshape(-1)]


def _users(value: ir.Value) -> list[ir.Node]:
    """What uses a linear layer's result: behind its bias, where it has one."""
    users = [use.node for use in value.uses()]
    if len(users) == 1 and users[0].op_type == "Add" and any(i is not None and i.const_value is not None for i in users[0].inputs):
        return [use.node for use in users[0].outputs[0].uses()]
    return users


def _turns(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == TO_FIRST


def _goes_on(node: ir.Node) -> bool:
    """Whether what comes behind a linear layer takes its channels first: else nothing is won by a convolution."""
    return node.op_type in (*ONE_BY_ONE, *TWO_BY_TWO) or _turns(node)


def _mostly_convolved(x: ir.Value) -> bool:
    """Whether the linear layers that read a map stand before convolutions, at least half of them: turning it once is no dearer then."""
    layers = [use.node for use in x.uses() if use.node.op_type == "MatMul"]
    return 2 * sum(any(map(_turns, _users(layer.outputs[0]))) for layer in layers) >= len(layers)
