"""What a network returns: plain values, or another structure in training than in evaluation."""

from __future__ import annotations

from dataclasses import dataclass

BOTH = """
class Both(nn.Module):
    def forward(self, *values):
        return {"maps": list(values)} if self.training else values
"""
SIEVE = """
class Sieve(nn.Module):
    def forward(self, *values):
        if self.training:
            return {"maps": [value * 2 for value in values]}
        return [*values, values[0][values[0] > 0].sum()]
"""
OPEN = """
class Open(nn.Module):
    def forward(self, *values):
        chosen = values[0][values[0] > 0]
        return (*values, chosen.sum() if chosen.numel() > 3 else chosen.new_zeros(()))
"""
PAIR = "Pair = collections.namedtuple('Pair', ['first', 'rest'])"


@dataclass(frozen=True)
class Returned:
    """The expression returned, ``{values}`` in its place, and what it needs in ``__init__`` and above the class."""

    expression: str
    init: str = ""
    above: str = ""


STYLES: dict[str, Returned] = {
    "single": Returned("{values}"),
    "tuple": Returned("{values},"),
    "modal": Returned("{{'maps': [{values}]}} if self.training else ({values},)"),
    "modal_count": Returned("({values}, {first} * 2) if self.training else [{values}]"),
    "modal_part": Returned("self.both({values})", "self.both = Both()", BOTH),
    "modal_opaque": Returned("self.sieve({values})", "self.sieve = Sieve()", SIEVE),
    "opaque": Returned("self.open({values})", "self.open = Open()", OPEN),
    "nested": Returned("{{'all': [{values}], 'first': ({first}, {{'again': {first}}})}}"),
    "named": Returned("Pair({first}, [{values}])", above=PAIR),
    "with_none": Returned("({first}, None, [{values}])"),
    "with_the_batch": Returned("({values}, {first}.shape[0])"),
}
