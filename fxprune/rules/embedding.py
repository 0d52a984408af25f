"""Look-up tables."""

from __future__ import annotations

from torch import nn

from fxprune.rules.call import Call
from fxprune.rules.registry import ModuleForm, module_form, repairs, rule
from fxprune.rules.repair import Repair


@rule("embedding", "input, weight")
def embedding(call: Call) -> None:
    rows, channels = call.tensor("weight")
    call.pin(rows, "its rows are looked up by number")
    call.role("weight", "in", "out")
    call.result = (*call.tensor("input"), channels)


@repairs("embedding")
def repair_embedding(repair: Repair) -> None:
    repair.attributes["embedding_dim"] = repair.size(repair.call.tensor("weight")[1])


@rule("one_hot", "input, num_classes=-1")
def one_hot(call: Call) -> None:
    call.result = (*call.tensor("input"), call.fixed(call.output_shape[-1], "its elements are classes by number"))


module_form(nn.Embedding, ModuleForm("embedding", lambda m: {"weight": ".weight"}))
