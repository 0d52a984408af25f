"""How an export is checked: against the network at several sizes, and at sizes where its graph takes another branch.

A graph checks every decision that its forward made on sizes. Runtimes drop all or some of these checks, so a size may
change only if the file is still right for, or refuses, the sizes that the graph refuses.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.decisions import REFUSAL, is_check, refuses_sizes
from fxprune.capture.samples import Sample, is_image, resized
from fxprune.errors import ExportError, described
from fxprune.proof.comparing import Leaves, compare, leaves_of
from fxprune.proof.probes import Probe, candidates
from fxprune.rewriting import PrunedGraphModule
from fxprune.util.paths import copied_graph


@dataclass(frozen=True)
class Exported:
    """A file that was run and compared with the network that was exported.

    Attributes:
        path: the file, or the folder of the "source" format.
        format: "pt2", "onnx" or "source".
        dynamic: the sizes that may change between calls: some or none of "batch", "resolution" and "length".
        batch_sizes: the batch sizes that were run.
        resolutions: height x width of the image-like inputs that were run.
        relative_error: the largest difference from the pruned network, relative to the output's largest absolute value.
        tolerance: the largest relative error that is accepted.
        notes: further information, such as why a size cannot change.
    """

    path: str
    format: str
    dynamic: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    resolutions: tuple[str, ...]
    relative_error: float
    tolerance: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        sizes = f"batch {', '.join(map(str, self.batch_sizes))}" if self.batch_sizes else "the sample"
        if self.resolutions:
            sizes += f", resolution {', '.join(self.resolutions)}"
        free = " and ".join(self.dynamic) + " may change" if self.dynamic else "every size is fixed"
        checked = f"equals the pruned network to {self.relative_error:.1e} (tolerance {self.tolerance:.0e}; {sizes})"
        return "; ".join([f"{self.path}: {checked}", free, *self.notes])


# Other runtimes compute in another order, so results differ by rounding.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF = 2e-2
# Rounding errors of a layer's sums are at most this many units in the last place.
_UNITS = 30
_SHORTEST = 4


@dataclass(frozen=True, eq=False)
class Check:
    """Inputs and the network's outputs for them."""

    probe: Probe  # the inputs
    expected: Leaves  # the tensors of the output, in order
    tolerance: float  # the largest relative difference that is accepted

    @property
    def is_informative(self) -> bool:
        """Whether any output is nonzero, so that the comparison is meaningful."""
        return any(bool((leaf != 0).any()) for leaf in self.expected.values())


def find_checks(network: nn.Module, sample: Sample, smallest: int = 2) -> list[Check]:
    """Inputs that the network accepts: the sample, other values at another batch size, and these at other sizes.

    Other sizes are another resolution or length; and for each size in an input that is not an image, half or twice the
    size in all dims that have it. torch.export treats a batch of one as fixed: ``smallest`` avoids it.
    Raises ExportError: the network refuses the sample.
    """
    plain, resized = (candidates(sample, 0, resize=resize, smallest=smallest) for resize in (False, True))
    found: list[Check] = []
    for slot in [*plain, [probe for probe in resized[1][:1] if probe.resized]]:
        check, reason = _first_taken(network, slot)
        if check is not None:
            found.append(check if _is_steady(network, check) else _of_one_sign(network, check))
        elif not found:
            raise ExportError(f"the network cannot be run on its sample ({reason:.300}): give a sample_input that fits")
    for size in _lengths(found[0].probe.sample):
        check, _ = _first_taken(network, [_with_length(found[0].probe, size, new) for new in (size // 2, 2 * size)])
        found += [check] if check is not None and not _has_shapes_of(check, found) else []
    return found


def _first_taken(network: nn.Module, probes: Sequence[Probe]) -> tuple[Check | None, str]:
    """The check of the first probe that the network accepts, or why it refuses the last one."""
    reason = ""
    for probe in probes:
        try:
            return _check(network, probe), ""
        except Exception as error:  # the network's own code may raise anything
            reason = described(error)
    return None, reason


def _is_steady(network: nn.Module, check: Check) -> bool:
    """Whether rounding stays far below the tolerance; if random values nearly cancel, it does not."""
    generator, change = torch.Generator().manual_seed(0), torch.finfo(torch.float32).eps ** 0.5

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(tensor.shape, generator=generator).to(tensor.device)
        return tensor * (1 + change * (2 * noise - 1)).to(tensor.dtype) if tensor.is_floating_point() else tensor

    other, _ = _first_taken(network, [replace(check.probe, sample=check.probe.sample.map(moved))])
    if other is None or check.tolerance >= _HALF:
        return True
    unit = torch.finfo(torch.float32 if check.tolerance >= _TOLERANCE[torch.float32] else torch.float64).eps
    return bool(compare(check.expected, other.expected).error / change * unit * _UNITS < check.tolerance)


def _of_one_sign(network: nn.Module, check: Check) -> Check:
    """The same check with the inputs' absolute values if that is steady, else the check itself."""
    sample = check.probe.sample.map(lambda t: t.abs() if t.is_floating_point() and not is_image(t) else t)
    other, _ = _first_taken(network, [replace(check.probe, sample=sample)])
    return other if other is not None and _is_steady(network, other) else check


def with_rows(network: nn.Module, check: Check, rows: int) -> Check | None:
    """The same check at another batch size; None if the network refuses it."""
    probe = replace(check.probe, sample=check.probe.sample.with_batch(rows))
    return _first_taken(network, [probe])[0]


def _lengths(sample: Sample) -> list[int]:
    """Sizes, without the batch, of inputs that are not images; half of a smaller one would be 1, which is fixed."""
    return sorted({size for t in sample.tensors if not is_image(t) for size in t.shape[1:] if size >= _SHORTEST})


def _with_length(probe: Probe, size: int, new: int) -> Probe:
    def resized(tensor: torch.Tensor) -> torch.Tensor:
        for dim in range(1, 0 if is_image(tensor) else tensor.ndim):
            if tensor.shape[dim] == size:
                tensor = tensor.index_select(dim, torch.arange(new, device=tensor.device) % size)
        return tensor

    return Probe(f"{probe.label}, {new} in place of {size}", probe.sample.map(resized), resized=True)


def _has_shapes_of(check: Check, others: Sequence[Check]) -> bool:
    shapes = [tensor.shape for tensor in check.probe.sample.tensors]
    return any([tensor.shape for tensor in other.probe.sample.tensors] == shapes for other in others)


@contextlib.contextmanager
def _with_equal_draws() -> Iterator[None]:
    """No gradients, and the same random numbers each time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _check(network: nn.Module, probe: Probe) -> Check:
    sample = probe.sample.map(torch.Tensor.clone)
    with _with_equal_draws():
        expected = tensors_of(sample.call(lambda *args, **kwargs: nn.Module.__call__(network, *args, **kwargs)))
    floats = [leaf.dtype for leaf in expected.values() if leaf.is_floating_point()]
    return Check(probe, expected, max([_TOLERANCE.get(dtype, _HALF) for dtype in floats], default=0.0))


def tensors_of(output: Any) -> Leaves:
    """The tensors of an output by position, because some formats keep nothing else of its structure."""
    tensors = [leaf for leaf in leaves_of(output).values() if isinstance(leaf, torch.Tensor)]
    return {f"output {number}": tensor for number, tensor in enumerate(tensors)}


def worst_error(run: Callable[[Sample], Leaves], checks: Sequence[Check]) -> float:
    """The largest relative difference over all checks. Raises ExportError: it exceeds a tolerance, or ``run`` fails."""
    worst = 0.0
    for check in checks:
        try:
            with _with_equal_draws(), contextlib.redirect_stdout(None):
                result = run(check.probe.sample.map(torch.Tensor.clone))
        except Exception as error:
            raise ExportError(f"it refuses {check.probe.label} ({described(error)})") from error
        difference = compare(check.expected, result)
        if not difference.error <= check.tolerance:
            raise ExportError(f"{difference.describe(check.tolerance)} on {check.probe.label}")
        worst = max(worst, difference.error)
    return worst


# Sizes to try in addition to those derived from the numbers in checks. No usual test of divisibility holds for all.
_FEW, _STRIDES = range(1, 10), (1, 2, 4, 8, 16, 32)
_MOST_ELEMENTS = 1 << 22


@dataclass(frozen=True, eq=False)
class OtherSizes:
    """Inputs of unchecked sizes, for which a file with one graph must agree with the network or refuse."""

    sample: Sample  # the inputs
    expected: Leaves | None  # the network's outputs; None if it refuses these sizes
    reason: str  # why the graph in the file refuses them; empty if it does not

    @property
    def shapes(self) -> str:
        """The shapes of the tensors."""
        return " and ".join(str(tuple(tensor.shape)) for tensor in self.sample.tensors)


def conditions(network: nn.Module) -> list[str]:
    """The conditions of a network's one graph on the sizes of its inputs, in words."""
    graph = network.graphs["eval"] if isinstance(network, PrunedGraphModule) else fx.Graph()
    said = (str(node.args[1]) for node in graph.nodes if is_check(node))
    return list(dict.fromkeys(_condition(text) for text in said if text.startswith(REFUSAL)))


def _condition(refusal: str) -> str:
    """The condition without the common prefix."""
    return refusal.removeprefix(REFUSAL).removeprefix("inputs of other sizes: ")


Refusals = dict[tuple[torch.Size, ...], str]
"""Why a graph refuses inputs of some shapes; empty if it does not."""


def find_other_sizes(
    whole: nn.Module, network: nn.Module, checks: Sequence[Check], refusals: Refusals
) -> list[OtherSizes]:
    """Inputs that the graph of ``network`` refuses, of other sizes in the dims that the checks vary; and a batch of 1.

    ``whole``: the network with the graphs for all sizes, which computes the expected outputs. ``refusals``: what is
    known of this network already; it grows.
    """
    first, free = checks[0].probe.sample, _free_dims(checks)
    found = dict[tuple[str, str], Sample]()
    if isinstance(network, PrunedGraphModule) and conditions(network) and free:
        bare, numbers, shapes = _checks_alone(network), _numbers(network.graphs["eval"]), first.to_meta()
        for dims in _sets_of_dims(first, free):
            for size in _sizes(first, dims, numbers):
                sample = _with_size(shapes, dims, size)
                key = tuple(tensor.shape for tensor in sample.tensors)
                if key not in refusals:
                    refusals[key] = _refusal(bare, sample)
                if reason := refusals[key]:
                    found.setdefault((reason, "next"), sample)
                    known = found.setdefault((reason, "least"), sample)
                    found[reason, "least"] = min(known, sample, key=_elements)
    rows = {(number, dim) for number, dim in free if dim == 0}
    singles = [("", _with_size(first, rows, 1))] if rows else []
    if not isinstance(network, PrunedGraphModule):  # its own code may branch at any size
        singles += [("", _with_size(first, dims, _given(first, dims) + 1)) for dims in _sets_of_dims(first, free)]
    pairs = [*singles, *((reason, first.resized_like(sample)) for (reason, _), sample in found.items())]
    others = (_with_expected(whole, sample, reason) for reason, sample in pairs)
    return [other for other in others if other is not None]


def check_other_sizes(run: Any, others: Sequence[OtherSizes], tolerance: float) -> list[str]:
    """The conditions by which the file refuses inputs. Raises ExportError: its outputs are wrong for others."""
    needs = list[str]()
    for other in others:
        try:
            with _with_equal_draws():
                answer = run(other.sample.map(torch.Tensor.clone))
        except Exception:  # runtimes raise many types
            needs += [other.reason] if other.reason else []
            continue
        if other.expected is None or not compare(other.expected, answer).error <= tolerance:
            why = other.reason or "the network takes another branch there"
            raise ExportError(f"for {other.shapes} the file would be wrong: {why}")
    return list(dict.fromkeys(needs))


def _free_dims(checks: Sequence[Check]) -> set[tuple[int, int]]:
    """The (tensor number, dim) pairs in which the checks differ."""
    first, *others = [[tensor.shape for tensor in check.probe.sample.tensors] for check in checks]
    return {
        (number, dim)
        for number, shape in enumerate(first)
        for dim, size in enumerate(shape)
        if any(other[number][dim] != size for other in others)
    }


def _sets_of_dims(sample: Sample, free: set[tuple[int, int]]) -> Iterator[set[tuple[int, int]]]:
    """Sets of dims to resize together: all dims of equal size, and each dim alone."""
    sizes = {(number, dim): sample.tensors[number].shape[dim] for number, dim in free}
    groups = [
        {key for key in free if sizes[key] == size and (key[1] == 0) == batch}
        for size in sorted(set(sizes.values()))
        for batch in (True, False)
    ]
    groups += [{key} for key in sorted(free)]
    for number, group in enumerate(groups):
        if group and group not in groups[:number]:
            yield group


def _numbers(graph: fx.Graph) -> list[int]:
    """The integers that checks compare sizes with, or divide them by."""
    pending, found, seen = [node for node in graph.nodes if is_check(node)], set[int](), set[fx.Node]()
    while pending:
        node = pending.pop()
        if node not in seen:
            found |= {abs(value) for value in node.args if type(value) is int}
            pending += [given for given in node.all_input_nodes if _is_arithmetic(given)]
        seen.add(node)
    return sorted(found)


def _is_arithmetic(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__module__", "") in (
        operator.__name__,
        "_operator",
        "math",
    )


def _sizes(sample: Sample, dims: set[tuple[int, int]], numbers: Sequence[int]) -> list[int]:
    """Sizes to try instead of the sample's: small ones, multiples of it, and those near the numbers times a stride."""
    given = _given(sample, dims)
    around = {value * stride + step for value in numbers for stride in _STRIDES for step in (-1, 0, 1, stride)}
    tried = {*_FEW, given + 1, given * 2, given * 2 + 1, *around} - {given}
    most = max(_MOST_ELEMENTS, 4 * _elements(sample)) * given // _elements(sample)
    return sorted((size for size in tried if 0 < size <= most), key=lambda size: abs(size - given))


def _given(sample: Sample, dims: set[tuple[int, int]]) -> int:
    number, dim = next(iter(dims))
    return sample.tensors[number].shape[dim]


def _elements(sample: Sample) -> int:
    return sum(tensor.numel() for tensor in sample.tensors)


def _with_size(sample: Sample, dims: set[tuple[int, int]], size: int) -> Sample:
    numbers = iter(range(len(sample.tensors)))

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        number = next(numbers)
        return resized(tensor, [size if (number, dim) in dims else old for dim, old in enumerate(tensor.shape)])

    return sample.map(changed)


def _checks_alone(network: PrunedGraphModule) -> nn.Module:
    """The checks of the graph and the nodes they depend on, on the meta device."""
    graph = copied_graph(network.graphs["eval"])
    graph.output_node().args = (None,)
    tensors = (*network.parameters(), *network.buffers())
    memo: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    bare = fx.GraphModule(copy.deepcopy(network, memo), graph)
    bare.graph.eliminate_dead_code()
    bare.recompile()
    return bare


def _refusal(network: nn.Module, sample: Sample) -> str:
    """Why the graph of a network refuses such sizes; empty if it does not, or fails for another reason."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            sample.call(network)
    except Exception as error:  # the network's own code may raise anything
        return _condition(str(error)) if refuses_sizes(error) else ""
    return ""


def _with_expected(whole: nn.Module, sample: Sample, reason: str) -> OtherSizes | None:
    try:
        with _with_equal_draws():
            return OtherSizes(sample, tensors_of(sample.map(torch.Tensor.clone).call(whole)), reason)
    except Exception as error:  # the network's own code may raise anything
        return OtherSizes(sample, None, reason or _condition(str(error))) if refuses_sizes(error) else None
