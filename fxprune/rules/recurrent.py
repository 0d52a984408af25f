"""Recurrent layers: their hidden units are channels, which the four (three, one) gates share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.axes.expressions import Axis, concat, product
from fxprune.rules.call import Axes, Call, TensorName, fixed_axes
from fxprune.rules.registry import module_form, rule

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_STEPS = "it is the number of time steps"


@rule("recurrent", "input, state=None")
def recurrent(call: Call) -> None:
    """All layers of a torch module share one ``hidden_size``, so their hidden units are tied."""
    axes = _input_axes(call)
    arguments = call.arguments
    gates, layers, directions = arguments["gates"], arguments["layers"], arguments["directions"]
    hidden = call.fresh(arguments["hidden_size"])
    projected = call.fresh(arguments["proj_size"]) if arguments["proj_size"] else hidden
    features: Axis = axes[-1]
    for layer in range(layers):
        for direction in range(directions):
            _layer(call, f"l{layer}" + "_reverse" * direction, gates, features, hidden, projected)
        features = concat([projected] * directions)
    call.stores(hidden_size=hidden, input_size=axes[-1])
    if arguments["proj_size"]:
        call.stores(proj_size=projected)
    _state(call, projected, hidden)
    call.result = _results(call, (*axes[:-1], features), projected, hidden)


def _input_axes(call: Call) -> Axes:
    """The axes of a padded tensor, or of the data of a packed sequence."""
    return call.tensor("input") if call.has("input") else tuple(call.axes_of(call.arguments["input"])[0])


def _batch(call: Call) -> Axes:
    """The batch dim that input, output and states share; empty for a single sequence and for packed sequences."""
    if not call.has("input"):
        return ()
    axes = call.tensor("input")
    return (axes[0 if call.arguments["batch_first"] else 1],) if len(axes) == 3 else ()


def _layer(call: Call, suffix: str, gates: int, features: Axis, hidden: Axis, projected: Axis) -> None:
    rows = product((call.fixed(gates, "it numbers the gates"), hidden))
    columns = {"weight_ih": (rows, features), "weight_hh": (rows, projected), "weight_hr": (projected, hidden)}
    for name, axes in (*columns.items(), ("bias_ih", (rows,)), ("bias_hh", (rows,))):
        key = f"{name}_{suffix}"
        if not isinstance(call.arguments.get(key), TensorName):
            continue
        call.unify_all(call.tensor(key), axes)
        call.role(key, *(("out", "in") if len(axes) == 2 else ("scale",)))
        if len(axes) == 2:
            call.macs((*_input_axes(call)[:-1], *call.tensor(key)))


def _state(call: Call, projected: Axis, hidden: Axis) -> None:
    if not call.arguments.get("state"):
        return
    given = [call.tensor("state")] if call.has("state") else call.tensors("state")
    for axes, width in zip(given, (projected, hidden), strict=False):
        call.unify(axes[-1], width)
        batch = _batch(call)
        call.pin_all(axes[: -1 - len(batch)], "it numbers the layers, or the batch")
        call.unify_all(axes[1 : 1 + len(batch)], batch)


def _results(call: Call, output: Axes, projected: Axis, hidden: Axis) -> Any:
    def state(value: Any, width: Axis) -> Axes:
        batch = _batch(call) or tuple(call.fixed(size, _STEPS) for size in value.shape[1:-1])
        return (call.fixed(value.shape[0], "it numbers the layers"), *batch, width)

    given, final = call.value
    outputs: Any = output if isinstance(given, torch.Tensor) else packed_axes(call, output)
    if isinstance(final, tuple):
        return [outputs, [state(final[0], projected), state(final[1], hidden)]]
    return [outputs, state(final, hidden)]


def _arguments(module: Any) -> dict[str, Any]:
    return {
        "gates": _GATES[module.mode],
        "layers": module.num_layers,
        "directions": 2 if module.bidirectional else 1,
    } | {name: f".{name}" for name in module._flat_weights_names}


_CELL_GATES = {"lstm_cell": 4, "gru_cell": 3, "rnn_tanh_cell": 1, "rnn_relu_cell": 1}


@rule(" ".join(_CELL_GATES), "input, hx=None, w_ih, w_hh, b_ih=None, b_hh=None")
def cell(call: Call) -> None:
    """One step: ``w_ih`` is (gates * hidden, features), ``w_hh`` (gates * hidden, hidden)."""
    axes, hidden = call.tensor("input"), call.tensor("w_hh")[1]
    rows = product((call.fixed(_CELL_GATES[call.name], "it numbers the gates"), hidden))
    call.unify_all(call.tensor("w_ih"), (rows, axes[-1]))
    call.unify(call.tensor("w_hh")[0], rows)
    for name in ("b_ih", "b_hh"):
        if call.has(name):
            call.unify(call.tensor(name)[0], rows)
            call.role(name, "scale")
    for name in ("w_ih", "w_hh"):
        call.role(name, "out", "in")
        call.macs((*axes[:-1], *call.tensor(name)))
    given = call.arguments.get("hx")
    for state in [] if given is None else [call.tensor("hx")] if call.has("hx") else call.tensors("hx"):
        call.unify_all(state, (*axes[:-1], hidden))
    result = (*axes[:-1], hidden)
    call.result = [result, result] if call.name == "lstm_cell" else result
    call.stores(hidden_size=hidden, input_size=axes[-1])


def _cell_arguments(module: Any) -> dict[str, Any]:
    biases = {"b_ih": ".bias_ih", "b_hh": ".bias_hh"} if module.bias else {}
    return {"w_ih": ".weight_ih", "w_hh": ".weight_hh"} | biases


module_form(nn.LSTMCell, "lstm_cell", more=_cell_arguments)
module_form(nn.GRUCell, "gru_cell", more=_cell_arguments)
module_form(nn.RNNCell, "rnn_tanh_cell", more=_cell_arguments)
for _cls in (nn.LSTM, nn.GRU, nn.RNN):
    module_form(_cls, "recurrent", "hidden_size proj_size batch_first", _arguments)


_PACKED_STEPS = "it numbers the steps of packed sequences"


def packed_axes(call: Call, data: Axes) -> list[Axes]:
    """The axes of all four parts of a packed sequence whose data have these axes."""
    value = call.value if hasattr(call.value, "batch_sizes") else call.value[0]
    return [data, *(fixed_axes(part, _PACKED_STEPS) for part in value[1:])]


@rule("_pack_padded_sequence", "input, lengths, batch_first=False")
def pack(call: Call) -> None:
    data, batch_sizes = call.value
    axes = call.tensor("input")
    call.result = [(call.fixed(data.shape[0], _PACKED_STEPS), *axes[2:]), fixed_axes(batch_sizes, _PACKED_STEPS)]


@rule("_pad_packed_sequence", "data, batch_sizes, batch_first, padding_value, total_length")
def pad(call: Call) -> None:
    padded, lengths = call.value
    sizes = fixed_axes(padded, _PACKED_STEPS)
    call.result = [(*sizes[:2], *call.tensor("data")[1:]), fixed_axes(lengths, _PACKED_STEPS)]


@rule("PackedSequence", "data, batch_sizes, sorted_indices=None, unsorted_indices=None")
def packed_sequence(call: Call) -> None:
    call.result = packed_axes(call, call.tensor("data"))
