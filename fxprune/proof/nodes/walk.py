"""The proof node by node: each node's claim from the claims before it, at sizes that are as small as the graph takes.

The claim of a node is that its narrow value is its full value, cut to what is kept. Inputs and outputs keep everything,
and parameters keep what the plan says. A node is judged on values drawn for it alone: what goes may hold anything, or
zero where the node before gave zero. After it is judged, its value is drawn anew, so that nothing downstream hangs on
what happened to be computed, and no rounding builds up. Since every node's claim holds for any values for which those
before it hold, the outputs' claims follow along the graph, and these say that the networks are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import ProofError
from fxprune.proof.comparing import compare, leaves_of
from fxprune.proof.locating import tables
from fxprune.proof.masking import Keep, select
from fxprune.proof.nodes.calls import call, in_dtype, may_write, on_tensors, on_values, tensors_among
from fxprune.proof.nodes.claims import Claim, Kept, difference, is_gone, is_silent, lost_entries
from fxprune.proof.nodes.layers import product_of
from fxprune.proof.nodes.pairs import Pair, UnjudgedError, fault, is_number
from fxprune.proof.nodes.patterns import Patterns, like
from fxprune.proof.nodes.structure import Step
from fxprune.proof.running import modes
from fxprune.util.paths import name_seed

__all__ = ["Setting", "Tally", "walk"]

_TOLERANCE = 1e-11
# Layers that judge every position alike, so that one size tells of all.
_AT_ANY_SIZE = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.Embedding)
_SAME_SHAPE = nn.modules.batchnorm._BatchNorm
# Functions that do the same.
_POINTWISE = frozenset(
    """add sub mul truediv relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu mish softplus
    dropout neg""".split()
)
# Memory that was not written to has a shape and no values.
_UNWRITTEN = frozenset("empty empty_like empty_strided new_empty new_empty_strided empty_permuted".split())
# What only cuts a tensor in pieces.
_CUTS = frozenset("split split_with_sizes chunk tensor_split unbind unsafe_chunk unsafe_split".split())


@dataclass(frozen=True, eq=False)
class Setting:
    """What a walk goes by besides the two graphs.

    Attributes:
        attribute: the full network's module or tensor by its full name.
        keep: for every parameter and buffer, the kept indices of every dim; the pruned network is known to hold
            exactly these entries.
        inputs: by name of the graph's inputs, their values.
        patterns: where values come from, in the type that they are in between nodes.
        known: by name of the nodes that were judged at another size, whether what goes is zero and has a cause. Layers
            whose claim holds at any size are not judged again.
    """

    attribute: Callable[[str], Any]
    keep: Keep
    inputs: Mapping[str, Any]
    patterns: Patterns
    known: Mapping[str, tuple[bool, bool]] | None = None


@dataclass
class Tally:
    """How nodes were judged."""

    exact: int = 0
    close: int = 0
    over_kept: int = 0
    structure: int = 0
    error: float = 0.0
    known: dict[str, tuple[bool, bool]] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Count those of another graph, too."""
        self.exact += other.exact
        self.close += other.close
        self.over_kept += other.over_kept
        self.structure += other.structure
        self.error = max(self.error, other.error)


def walk(pair: Pair, setting: Setting, steps: Sequence[Step]) -> Tally:
    """Judge every node; ``steps``: those that both graphs match by.

    Raises:
        ProofError: a node's narrow value is not its full value cut to what is kept.
        UnjudgedError: a node cannot be judged by itself.
    """
    return _Walk(pair, setting).run(steps)


@dataclass(frozen=True, eq=False)
class _Way:
    """How a node is tried: in which type, to which tolerance, and over kept entries alone or with all."""

    dtype: torch.dtype
    tolerance: float
    over_kept: bool = False


_WAYS = (_Way(torch.float32, 0.0), _Way(torch.float64, _TOLERANCE), _Way(torch.float64, _TOLERANCE, over_kept=True))


@dataclass(eq=False)
class _Result:
    """What a node gave in one way, and the values that it was called with, by node, as the call left them."""

    full: Any
    narrow: Any
    used: dict[fx.Node, tuple[Any, Any]]
    modules: tuple[nn.Module, nn.Module] | None
    random: bool


class _Walk:
    def __init__(self, pair: Pair, setting: Setting) -> None:
        self._pair = pair
        self._setting = setting
        self._claims: dict[fx.Node, Claim] = {}
        self._owner: dict[fx.Node, fx.Node] = {}
        self._tables = tables(pair.full)
        self._tally = Tally()
        self._last = _last_users(pair.full)
        # The nodes that share memory with a node in the original.
        self._shared: dict[fx.Node, set[fx.Node]] = {}

    def run(self, steps: Sequence[Step]) -> Tally:
        for step in steps:
            try:
                self._judge(step)
            except (ProofError, UnjudgedError):
                raise
            except Exception as error:  # operators and modules of all kinds: what they raise tells nothing
                raise UnjudgedError(f"{step.full.name}: {type(error).__name__}: {error}") from error
            if isinstance(step.image, fx.Node):
                self._owner[step.image] = step.full
            for node in self._last.get(step.full, ()):
                self._claims.pop(node, None)
        return self._tally

    # -- one node -----------------------------------------------------------------------------------------------------

    def _judge(self, step: Step) -> None:
        node = step.full
        if node.op == "placeholder":
            value = self._setting.inputs[node.name]
            self._put(step, Claim(value, value))
        elif node.op == "get_attr":
            self._attribute(step)
        elif node.op == "output":
            for given in node.all_input_nodes:
                claim = self._claims[given]
                found = compare(leaves_of(claim.full), leaves_of(claim.narrow))
                if not found.error <= _TOLERANCE:
                    raise fault(self._pair, given, f"as an output, {found.describe(_TOLERANCE)}")
        elif step.image is None:
            if is_number(node) and node.op != "placeholder":
                self._left_out(step)
        elif (judged := self._by_algebra(step)) is not None:
            self._tally.exact += 1
            self._put(step, judged)
        elif self._is_known(step):
            self._put(step, self._shaped(step))
        else:
            self._call(step)

    def _by_algebra(self, step: Step) -> Claim | None:
        """The claim of a layer that needs no values to be judged, or None where it is none, or does not fit."""
        node = step.full
        images = [self._pair.images.get(given) for given in node.all_input_nodes]
        if step.counterpart is None or step.written != (step.image,) or images != step.counterpart.all_input_nodes:
            return None
        modules = self._layers(step) if node.op == "call_module" else None
        product = product_of(node, modules)
        given = node.args[0] if node.args else None
        if product is None or not isinstance(given, fx.Node):
            return None
        operands = self._weights(node, modules)
        claim = self._claims[given]
        if operands is None or not (isinstance(claim.full, Tensor) and isinstance(claim.narrow, Tensor)):
            return None
        (full, narrow), weight, bias = operands
        kept = self._kept_of(node)
        shapes = product.shape(claim.full.shape, full), product.shape(claim.narrow.shape, narrow)
        ndim = claim.full.ndim
        if shapes[0] is None or shapes[1] is None or not product.fits(self._kept_of(given), weight, bias, kept, ndim):
            return None
        value = self._setting.patterns.signed(claim.full, shapes[0], name_seed(node.name))
        lost = lost_entries(value, kept)
        for dim, index in lost:
            value.index_fill_(dim, index, 0)
        cut = select(value, kept)
        if list(cut.shape) != shapes[1]:
            return None
        placed = torch.empty_like(cut, memory_format=torch.preserve_format).copy_(cut)
        return Claim(value, placed, lost)

    def _layers(self, step: Step) -> tuple[nn.Module, nn.Module]:
        assert step.counterpart is not None
        return self._setting.attribute(str(step.full.target)), self._pair.named(step.counterpart)[1]

    def _weights(
        self, node: fx.Node, modules: tuple[nn.Module, nn.Module] | None
    ) -> tuple[tuple[torch.Size, torch.Size], Kept, Kept | None] | None:
        """The shapes of the weight of both networks, and what it and the bias keep, where zeros are what goes."""
        if modules is not None:
            weights = tuple(module._parameters.get("weight") for module in modules)
            biases = tuple(module._parameters.get("bias") for module in modules)
            if weights[0] is None or weights[1] is None or (biases[0] is None) is not (biases[1] is None):
                return None
            keep, path = self._setting.keep, str(node.target)
            bias = None if biases[0] is None else keep.get(f"{path}.bias", ())
            return (weights[0].shape, weights[1].shape), keep.get(f"{path}.weight", ()), bias
        operands = [given for given in node.args[1:] if given is not None]
        claims = [self._claims[given] for given in operands if isinstance(given, fx.Node)]
        if len(claims) != len(operands) or not all(
            isinstance(c.full, Tensor) and isinstance(c.narrow, Tensor) and c.silent and c.caused for c in claims
        ):
            return None
        kept = [self._kept_of(given) for given in operands if isinstance(given, fx.Node)]
        return (claims[0].full.shape, claims[0].narrow.shape), kept[0], kept[1] if len(kept) > 1 else None

    def _is_known(self, step: Step) -> bool:
        known = self._setting.known or {}
        if _name(step.full) in _POINTWISE:
            return step.full.name in known and self._is_pointwise(step)
        if step.full.op != "call_module" or step.full.name not in known or step.counterpart is not step.image:
            return False
        return isinstance(self._setting.attribute(str(step.full.target)), _AT_ANY_SIZE)

    def _shaped(self, step: Step) -> Claim:
        """Values of the shape that a layer gives, which was judged at another size."""
        if step.full.op != "call_module":
            return self._placed(step, *(self._broadcast(step.full, side) for side in range(2)))
        node = step.full
        modules = (self._setting.attribute(str(node.target)), self._pair.named(step.image)[1])
        given = self._claims.get(node.args[0]) if isinstance(modules[0], _SAME_SHAPE) else None  # type: ignore[arg-type]
        if given is not None:
            full, narrow = given.full, given.narrow
        else:
            full, narrow = (self._on_meta(step, module, side) for side, module in enumerate(modules))
        return self._placed(step, full, narrow)

    def _is_pointwise(self, step: Step) -> bool:
        """Whether a function gives every entry from the entries at its place alone, and writes to none."""
        given = [self._claims[n] for n in step.full.all_input_nodes if n in self._claims]
        floats = all(isinstance(v, Tensor) and v.is_floating_point() for c in given for v in (c.full, c.narrow))
        images = [self._pair.images.get(n) for n in step.full.all_input_nodes]
        torchs_own = not isinstance(step.full.target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
        direct = step.written == (step.image,) and step.counterpart and images == step.counterpart.all_input_nodes
        return bool(given and floats and direct and torchs_own and not may_write(step.full, None))

    def _broadcast(self, node: fx.Node, side: int) -> Tensor:
        """A tensor of the shape that a function gives which treats all places alike."""
        claims = (self._claims[given] for given in node.all_input_nodes)
        values = [claim.narrow if side else claim.full for claim in claims]
        shape: torch.Size = torch.broadcast_shapes(*(value.shape for value in values))  # type: ignore[no-untyped-call]
        whole: Tensor = next((value for value in values if value.shape == shape), values[0].expand(shape))
        return whole

    def _placed(self, step: Step, full: Tensor, narrow: Tensor) -> Claim:
        """Values of these shapes for a node that was judged at another size."""
        node, kept = step.full, self._kept_of(step.full)
        self._check_fit(node, full, kept)
        silent, caused = self._setting.known[node.name]  # type: ignore[index]
        patterns = self._setting.patterns
        value = torch.empty_like(full, dtype=patterns.dtype, device=patterns.device).fill_(-1)
        value = patterns.activation(value, name_seed(node.name))
        lost = lost_entries(value, kept)
        for dim, index in lost if silent else ():
            value.index_fill_(dim, index, 0)
        cut = select(value, kept)
        if cut.shape != narrow.shape:
            raise fault(self._pair, node, f"{tuple(cut.shape)} became {tuple(narrow.shape)}")
        placed = torch.empty_like(narrow, dtype=patterns.dtype, device=patterns.device).copy_(cut)
        return Claim(value, placed, lost, silent, caused)

    def _on_meta(self, step: Step, module: nn.Module, side: int) -> Tensor:
        held = (*module._parameters.items(), *module._buffers.items())
        on_meta = {name: None if tensor is None else tensor.detach().to("meta") for name, tensor in held}
        twin = on_tensors(module, in_dtype(on_meta, self._setting.patterns.dtype), False)

        def value_of(given: fx.Node) -> Any:
            claim = self._claims[given]
            value = claim.narrow if side else claim.full
            return value.to("meta") if isinstance(value, Tensor) else value

        args, kwargs = on_values(step.full, value_of)
        try:
            result = twin.forward(*args, **kwargs)
        except Exception as error:
            raise UnjudgedError(f"{step.full.name}: {type(error).__name__}: {error}") from error
        assert isinstance(result, Tensor)
        return result

    def _left_out(self, step: Step) -> None:
        """A number that the rewritten graph lacks is still needed by checks of the captured one."""
        try:
            full, _ = self._called(step.full, None, lambda n: self._claims[n].full, _WAYS[0])
        except KeyError:
            return
        self._claims[step.full] = Claim(full, full)

    def _attribute(self, step: Step) -> None:
        node, name = step.full, str(step.full.target)
        value = self._setting.attribute(name)
        if step.image is None:  # a gate, which the rewritten network does not hold
            full, narrow = self._tensor(name, value, None)
        else:
            full, narrow = self._tensor(name, value, self._pair.named(step.image)[1])
        lost = lost_entries(full, self._setting.keep.get(name, ()))
        self._put(step, Claim(full, narrow, lost))
        self._shared[node] = {node}

    def _tensor(self, name: str, value: Tensor, narrow: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values for a parameter or buffer of both networks; what goes is zero, but for running variances."""
        kept = self._setting.keep.get(name, ())
        full = self._drawn(name, value)
        if not name.endswith("running_var") and (full.is_floating_point() or full.is_complex()):
            for number, (dim, index) in enumerate(lost_entries(value, kept)):
                full = full.index_fill(dim, index, 0) if number == 0 else full.index_fill_(dim, index, 0)
        cut = select(full, kept)
        if narrow is not None and cut.shape != narrow.shape:
            raise UnjudgedError(f"{name} is {tuple(narrow.shape)} and should be {tuple(cut.shape)}")
        return full, cut.clone() if cut is full else cut

    def _drawn(self, name: str, value: Tensor) -> Tensor:
        drawn = isinstance(value, nn.Parameter) or name.endswith(("running_mean", "running_var"))
        if not drawn or not value.is_floating_point():
            value = value.detach().clone()
            return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        positive = name.endswith("running_var") or (value.ndim < 2 and bool((value >= 0).all()))
        drawn_anew = self._setting.patterns.parameter(value, name_seed(name), positive=positive)
        return drawn_anew if isinstance(value, nn.Parameter) else drawn_anew.clone()

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(self, step: Step) -> None:
        kept: Kept = self._pair.kept.get(step.full.name, ())
        failures: list[str] = []
        for way in _WAYS[self._setting.patterns.dtype == torch.float64 :]:
            if way.over_kept and not self._may_lose(step):
                continue
            result = self._evaluated(step, way)
            if way is _WAYS[0] and _is_inexact_tuple(step.full, result.full):
                continue
            if isinstance(result.full, Tensor):
                self._check_fit(step.full, result.full, kept)
            text = self._differs(step, result, kept, way)
            if not text:
                self._accept(step, result, kept, way)
                return
            failures.append(text)
        raise fault(self._pair, step.full, failures[min(len(failures), 2) - 1])

    def _check_fit(self, node: fx.Node, value: Tensor, kept: Kept) -> None:
        """What goes is known for the sizes of the trace: a dim of another size, such as a flattened map, is another."""
        traced = node.meta["val"].shape
        if len(kept) > value.ndim or any(k is not None and value.shape[d] != traced[d] for d, k in enumerate(kept)):
            raise UnjudgedError(f"{node.name} is {tuple(value.shape)} here, and what goes is known of {tuple(traced)}")

    def _may_lose(self, step: Step) -> bool:
        """Whether anything that the node reads loses entries, all of them because of what goes before."""
        lossy = [
            claim
            for claim in map(self._claims.get, step.full.all_input_nodes)
            if claim and (claim.lost or claim.buried)
        ]
        if any(not claim.caused for claim in lossy):
            raise UnjudgedError(f"{step.full.name}: nothing shows why entries of what it reads go")
        return bool(lossy) or step.full.op == "call_module"

    def _evaluated(self, step: Step, way: _Way, training: bool | None = None) -> _Result:
        node, used = step.full, dict[fx.Node, tuple[Any, Any]]()
        modules = self._modules(step, way, training)
        writes = may_write(node, modules and modules[0])

        def full_value(given: fx.Node) -> Any:
            if given not in used:
                claim = self._claims[given]
                value = claim.over_kept() if way.over_kept else claim.full
                pair = (in_dtype(value, way.dtype), in_dtype(claim.narrow, way.dtype))
                used[given] = _cloned(pair) if writes else pair
            return used[given][0]

        local: dict[fx.Node, Any] = {}

        def narrow_value(given: fx.Node) -> Any:
            if given in local:
                return local[given]
            owner = self._owner.get(given)
            if owner is None or owner not in self._claims:
                raise UnjudgedError(f"{given.name} is read and not known")
            full_value(owner)
            return used[owner][1]

        full, random = self._called(node, modules and modules[0], full_value, way)
        for written in step.written:
            if written.op == "get_attr":
                local[written] = self._pair.named(written)[1]
            else:
                module = modules[1] if modules and written is step.counterpart else None
                plain = _Way(way.dtype, way.tolerance)
                local[written], _ = self._called(written, module, narrow_value, plain)
        if isinstance(step.image, fx.Node):
            narrow = local[step.image] if step.image in local else narrow_value(step.image)
        else:
            narrow = step.image
        return _Result(full, narrow, used, modules, random)

    def _called(
        self, node: fx.Node, module: nn.Module | None, value_of: Callable[[fx.Node], Any], way: _Way
    ) -> tuple[Any, bool]:
        args, kwargs = on_values(node, value_of)
        versions = [(tensor, tensor._version) for tensor in tensors_among((args, kwargs))]
        state = self._random_state()
        try:
            if way.dtype == torch.float32:
                result = call(node, args, kwargs, module)
            else:
                with modes(way.dtype, carry_nan=way.over_kept):
                    result = call(node, args, kwargs, module)
        except AssertionError as error:
            raise UnjudgedError(f"{node.name} refuses these sizes: {error}") from error
        except Exception as error:
            raise UnjudgedError(f"{node.name}: {type(error).__name__}: {error}") from error
        if not may_write(node, module) and any(tensor._version != version for tensor, version in versions):
            raise UnjudgedError(f"{node.name} writes in place and does not say so")
        return result, not torch.equal(state, self._random_state())

    def _random_state(self) -> Tensor:
        device = self._setting.patterns.device
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def _modules(self, step: Step, way: _Way, training: bool | None = None) -> tuple[nn.Module, nn.Module] | None:
        if step.full.op != "call_module":
            return None
        path = str(step.full.target)
        full = self._setting.attribute(path)
        assert step.counterpart is not None
        narrow = self._pair.named(step.counterpart)[1]
        training = self._pair.training if training is None else training
        tensors: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        for name, tensor in (*full._parameters.items(), *full._buffers.items()):
            other = narrow._parameters.get(name, narrow._buffers.get(name))
            if tensor is None or other is None:
                tensors[0][name], tensors[1][name] = None, None
                if tensor is not other:
                    raise fault(self._pair, step.full, f"{name} is there in one network alone")
                continue
            pair = in_dtype(self._tensor(f"{path}.{name}", tensor, other), way.dtype)
            if way.over_kept:
                lost = lost_entries(tensor, self._setting.keep.get(f"{path}.{name}", ()))
                pair = (Claim(pair[0], None, lost).over_kept(), pair[1])
            tensors[0][name], tensors[1][name] = pair
        return on_tensors(full, tensors[0], training), on_tensors(narrow, tensors[1], training)

    # -- verdicts -----------------------------------------------------------------------------------------------------

    def _differs(self, step: Step, result: _Result, kept: Kept, way: _Way) -> str:
        node, full, narrow = step.full, result.full, result.narrow
        if isinstance(full, Tensor):
            if result.random or _name(node) in _UNWRITTEN:
                same = isinstance(narrow, Tensor) and select(full, kept).shape == narrow.shape
                return "" if same else f"the shape is {getattr(narrow, 'shape', None)}"
            return self._unlike(full, kept, narrow, way)
        if isinstance(full, (bool, int, float)):
            return "" if type(full) is type(narrow) and full == narrow else f"{full!r} became {narrow!r}"
        whole = not isinstance(full, (tuple, list)) or isinstance(full, torch.Size)
        return "" if whole or len(full) == len(narrow) else f"{len(full)} values became {len(narrow)}"

    def _unlike(self, full: Tensor, kept: Kept, narrow: Any, way: _Way) -> str:
        """How the narrow value is not the kept part of the full one; an empty text where it is."""
        found = difference(full, kept, narrow)
        if not found.error <= way.tolerance:
            return found.describe(way.tolerance)
        self._tally.error = max(self._tally.error, found.error)
        return ""

    def _accept(self, step: Step, result: _Result, kept: Kept, way: _Way) -> None:
        self._count(result, way)
        node, full = step.full, result.full
        self._check_written(step, result, way)
        self._check_statistics(step, result)
        if isinstance(full, Tensor):
            self._put(step, self._claim(step, result, kept, way))
        elif isinstance(full, (tuple, list)) and tensors_among(full):
            lossy = [c for c in map(self._claims.get, node.all_input_nodes) if c and (c.lost or c.buried)]
            if lossy or step.full.op == "call_module":
                held = {given: self._claims[given] for given in node.all_input_nodes if given in self._claims}
                buried = self._burying(step, held)
                self._put(step, Claim(full, result.narrow, caused=all(c.caused for c in lossy), buried=buried))
            else:
                self._put(step, Claim(full, result.narrow))
        else:
            self._put(step, Claim(full, result.narrow))

    def _claim(self, step: Step, result: _Result, kept: Kept, way: _Way) -> Claim:
        node, full = step.full, result.full
        lost = lost_entries(full, kept)
        silent = way.over_kept or is_silent(full, lost)
        caused = not lost or way.over_kept or node in self._tables
        if not caused:
            caused = self._is_caused(step, full, kept, lost, silent)
        if way.over_kept and not is_gone(full, lost):
            raise UnjudgedError(f"{node.name}: entries that should go stay")
        if way.over_kept:
            full = torch.nan_to_num(full, nan=0.0)
        if not step.written:  # a gate: the node before it stands for it, with the values that are known of that
            full, narrow = in_dtype((full, result.narrow), self._setting.patterns.dtype)
            return Claim(full, narrow, lost, silent, caused)
        return Claim(*self._renewed(step, full, result.narrow, kept, lost, silent=silent), lost, silent, caused)

    def _is_caused(self, step: Step, full: Tensor, kept: Kept, lost: Any, silent: bool) -> bool:
        """Whether entries go because of what went before: they are zero where that is zero, or NaN where it is NaN."""
        lossy = any(c.lost or c.buried for c in map(self._claims.get, step.full.all_input_nodes) if c)
        if silent and (lossy or step.full.op == "call_module"):
            return True
        try:
            result = self._evaluated(step, _WAYS[-1])
        except UnjudgedError:
            return False
        return isinstance(result.full, Tensor) and is_gone(result.full, lost)

    def _renewed(
        self, step: Step, full: Tensor, narrow: Tensor, kept: Kept, lost: Any, *, silent: bool
    ) -> tuple[Tensor, Tensor]:
        """Values drawn anew where the node gives floats that hang on inputs or parameters."""
        floats = full.is_floating_point() or full.is_complex()
        if floats and full.numel() and step.full not in self._tables and bool(torch.isfinite(full).all()):
            fresh = in_dtype(full, self._setting.patterns.dtype)
            fresh = self._setting.patterns.activation(fresh, name_seed(step.full.name))
            if silent:
                for dim, index in lost:
                    fresh.index_fill_(dim, index, 0)
            full = fresh
        elif full.dtype in (torch.float64, torch.complex128):
            full = in_dtype(full, self._setting.patterns.dtype)
        return full, like(in_dtype(narrow, self._setting.patterns.dtype), select(full, kept))

    def _burying(self, step: Step, held: Mapping[fx.Node, Claim]) -> Callable[[], Any]:
        """What the node gives over what is kept alone, worked out when it is asked for."""

        def buried() -> Any:
            before = dict(self._claims)
            self._claims.update(held)
            try:
                return self._evaluated(step, _WAYS[-1]).full
            finally:
                self._claims = before

        return buried

    def _check_statistics(self, step: Step, result: _Result) -> None:
        """A batch norm takes one step of training: its output and its new statistics are judged, too."""
        if result.modules is None or not isinstance(result.modules[0], nn.modules.batchnorm._BatchNorm):
            return
        if not self._pair.training:
            if not self._pair.both_modes:
                return
            found = ""
            for way in _WAYS[1:]:  # positions may be gone as well as channels, and statistics are then of what is kept
                result = self._evaluated(step, way, training=True)
                text = self._differs(step, result, self._kept_of(step.full), way)
                if not text:
                    break
                found = found or text
            else:
                raise fault(self._pair, step.full, f"in training mode, {found}")
        assert result.modules is not None
        full, narrow = result.modules
        for name, buffer in full._buffers.items():
            kept = self._setting.keep.get(f"{step.full.target}.{name}", ())
            if buffer is not None and (text := self._unlike(buffer, kept, narrow._buffers[name], _WAYS[1])):
                raise fault(self._pair, step.full, f"its {name} after a step of training: {text}")

    # -- memory -------------------------------------------------------------------------------------------------------

    def _check_written(self, step: Step, result: _Result, way: _Way) -> None:
        """Notes whose memory the node's value shares, and judges again what it wrote to and others read later."""
        node = step.full
        storages = {t.untyped_storage()._cdata for t in tensors_among(result.full)}
        sharing = {
            given
            for given, (full, _) in result.used.items()
            if any(t.untyped_storage()._cdata in storages for t in tensors_among(full))
        }
        writes = may_write(node, result.modules and result.modules[0])
        if writes and not sharing:
            sharing = {_written(node)}
        members = set().union(*(self._shared.get(given, {given}) for given in sharing)) if sharing else set()
        if writes:
            self._check_others(step, members, result, way)
        family = members | {node}
        for member in family:
            self._shared[member] = family

    def _check_others(self, step: Step, members: set[fx.Node], result: _Result, way: _Way) -> None:
        written = _written(step.full)
        live = {member for member in members if member in self._claims and not self._dies_at(member, step.full)}
        for member in live - {written}:
            raise UnjudgedError(f"{step.full.name} writes to memory that {member.name} shares and others read later")
        if written in live:
            full, narrow = result.used[written]
            kept = self._kept_of(written)
            if isinstance(full, Tensor) and not result.random:
                if text := self._unlike(full, kept, narrow, way):
                    raise fault(self._pair, step.full, f"what it writes to {written.name}: {text}")
                old = self._claims[written]
                lost = old.lost
                silent = is_silent(full, lost)
                values = self._renewed(step, full, narrow, kept, lost, silent=silent)
                self._claims[written] = Claim(*values, lost, silent, old.caused)

    def _kept_of(self, node: fx.Node) -> Kept:
        if node.op == "get_attr":
            return self._setting.keep.get(str(node.target), ())
        return self._pair.kept.get(node.name, ())

    def _dies_at(self, member: fx.Node, node: fx.Node) -> bool:
        return member.op != "get_attr" and member in self._last.get(node, ())

    def _put(self, step: Step, claim: Claim) -> None:
        self._claims[step.full] = claim
        self._tally.known[step.full.name] = claim.silent, claim.caused

    def _count(self, result: _Result, way: _Way) -> None:
        if result.random:
            self._tally.structure += 1
        elif way.over_kept:
            self._tally.over_kept += 1
        elif way.tolerance:
            self._tally.close += 1
        else:
            self._tally.exact += 1


def _is_inexact_tuple(node: fx.Node, value: Any) -> bool:
    """Whether several tensors were computed, which are compared only where they are read."""
    return isinstance(value, (tuple, list)) and bool(tensors_among(value)) and _name(node) not in _CUTS


def _written(node: fx.Node) -> fx.Node:
    """The node whose memory one that writes in place writes to."""
    out = node.kwargs.get("out")
    return out if isinstance(out, fx.Node) else node.all_input_nodes[0]


def _cloned(pair: tuple[Any, Any]) -> Any:
    return fx.node.map_aggregate(pair, lambda v: v.clone() if isinstance(v, Tensor) else v)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _last_users(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """By node, the nodes that it is the last to read."""
    found: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        for given in (*node.all_input_nodes, *(() if node.users else (node,))):
            if given not in seen:
                seen.add(given)
                found.setdefault(node, []).append(given)
    return found
