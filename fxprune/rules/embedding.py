"""Look-up tables."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.rules.call import Call
from fxprune.rules.registry import ModuleForm, module_form, repairs, rule
from fxprune.rules.repair import Repair


@rule("embedding", "input, weight")
def embedding(call: Call) -> None:
    # torch.embedding has the two the other way round.
    table, numbers = ("input", "weight") if call.node.target is torch.embedding else ("weight", "input")
    rows, channels = call.tensor(table)
    call.pin(rows, "its rows are looked up by number")
    call.role(table, "in", "out")
    call.notes["channels"] = channels
    call.result = (*call.tensor(numbers), channels)


@rule("embedding_bag", "input, weight")
def embedding_bag(call: Call) -> None:
    """Rows summed, averaged or maximised over bags."""
    rows, channels = call.tensor("weight")
    call.pin(rows, "its rows are looked up by number")
    for name in ("input", "offsets", "per_sample_weights"):
        if call.has(name):
            call.pin_all(call.tensor(name), "a bag adds up all rows that it numbers")
    call.role("weight", "in", "out")
    call.notes["channels"] = channels
    call.result = (call.fixed(call.output_shape[0], "it numbers the bags"), channels)


@repairs("embedding embedding_bag")
def repair_embedding(repair: Repair) -> None:
    repair.attributes["embedding_dim"] = repair.size(repair.call.notes["channels"])


@rule("one_hot", "input, num_classes=-1")
def one_hot(call: Call) -> None:
    call.result = (*call.tensor("input"), call.fixed(call.output_shape[-1], "its elements are classes by number"))


module_form(nn.Embedding, ModuleForm("embedding", lambda m: {"weight": ".weight"}))
module_form(nn.EmbeddingBag, ModuleForm("embedding_bag", lambda m: {"weight": ".weight"}))
