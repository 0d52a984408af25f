"""What a pruned network has to compute, worked out without the pass.

- ``narrow_twin``: the specification written down again with the kept sizes, holding the kept slices of the weights.
  Always right; softmax scales and other numbers stay those of the original.
- ``masked``: the original with every removed entry set to zero. Right where ``Specification.masking_is_exact`` says so.
- ``brute_force_groups`` and ``maximum_ratio``: what could be removed at all.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from tests.nets.kept import Keep, KeptIndices, kept_indices, kept_tensor
from tests.nets.removal import Entry, Removal
from tests.nets.specification import Specification


@dataclass(frozen=True)
class EntryGroup:
    """One group of channels: for each unit the entries of parameters and buffers that go when it goes."""

    units: tuple[frozenset[Entry], ...]

    @property
    def free(self) -> bool:
        """Whether a unit can go while another stays."""
        return len(self.units) > 1


def brute_force_groups(specification: Specification) -> list[EntryGroup]:
    """Return the groups of a network as sets of ``(parameter, dim, index)``; see ``removal`` for the exact meaning.

    Groups without any entry of a parameter (copies of an expanded dim that nothing weighs) are left out.
    """
    removal = Removal(specification.coupling)
    groups = [EntryGroup(tuple(removal.entries_of(unit) for unit in group.units)) for group in removal.groups()]
    return [group for group in groups if group.units[0]]


def narrow_twin(specification: Specification, original: nn.Module, keep: Keep) -> nn.Module:
    """Return the narrow network with the kept slices of ``original``'s tensors, in its dtype, in evaluation mode.

    Raises InconsistentKeepError where ``keep`` fits no narrower version of the network.
    """
    kept = kept_indices(specification.coupling, keep)
    twin = specification.narrowed(kept).module().eval()
    chosen = kept.keep()
    state = {name: kept_tensor(tensor, chosen.get(name, ())) for name, tensor in original.state_dict().items()}
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    twin.to(dtype).load_state_dict(state)
    return twin


def masked(original: nn.Module, keep: Keep) -> nn.Module:
    """Return a copy with every removed entry of every float tensor zero; running variances are left alone."""
    copy = deepcopy(original)
    with torch.no_grad():
        for name, tensor in copy.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("running_var") and name in keep:
                for dim, chosen in enumerate(keep[name]):
                    if chosen is not None:
                        removed = sorted(set(range(tensor.shape[dim])) - {int(index) for index in chosen})
                        tensor.index_fill_(dim, torch.tensor(removed, dtype=torch.long), 0.0)
    return copy


@lru_cache(maxsize=64)
def narrowest(specification: Specification) -> KeptIndices:
    """Return what is kept when every free group is cut to one unit, the one with the fewest entries."""
    removal = Removal(specification.coupling)
    dead: frozenset[int] = frozenset()
    for group in removal.groups():
        for unit in sorted(group.units, key=len)[1:]:
            if removal.leaves_something(dead | unit):
                dead |= unit
    return KeptIndices(specification.coupling, dead)


def maximum_ratio(specification: Specification) -> float:
    """Return the largest fraction of multiply-accumulates that goes when every free group is cut to one unit."""
    return 1 - specification.narrowed(narrowest(specification)).macs() / max(1, specification.macs())


def achieved_ratio(specification: Specification, keep: Keep) -> float:
    """Return the fraction of multiply-accumulates that a plan removes, counted on the narrowed specification."""
    narrow = specification.narrowed(kept_indices(specification.coupling, keep))
    return 1 - narrow.macs() / max(1, specification.macs())


def ratios_with_one_unit_back(specification: Specification, keep: Keep) -> list[float]:
    """Return, for each unit that went, the fraction removed when it had stayed; units of a group may differ in size.

    Units that save nothing by themselves are left out.
    """
    removal = Removal(specification.coupling)
    dead = kept_indices(specification.coupling, keep).dead
    gone = [unit for group in removal.groups() for unit in group.units if unit <= dead]
    ratios = []
    for back in gone:
        fewer = KeptIndices(
            specification.coupling, frozenset[int]().union(*(unit for unit in gone if unit is not back))
        )
        ratios.append(1 - specification.narrowed(fewer).macs() / specification.macs())
    full = achieved_ratio(specification, keep)
    return [ratio for ratio in ratios if ratio < full]


def groups_that_lost(specification: Specification, keep: Keep) -> tuple[int, int]:
    """Return how many free groups lost a unit, and how many free groups there are."""
    dead = kept_indices(specification.coupling, keep).dead
    free = [group for group in Removal(specification.coupling).groups() if group.free]
    return sum(any(unit <= dead for unit in group.units) for group in free), len(free)
