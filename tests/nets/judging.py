"""Whether a pruned network does what its narrow twin does: in both modes, in gradients and precisions, at any batch.

The twin is the specification written down again with the kept sizes. Whatever the source does (state, hooks, caches,
draws, questions about sizes and dtypes) it does itself, in plain PyTorch. Where the result refuses to run (an assertion
or an error of fxprune's own), that is counted; any other difference raises ``WrongError``.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from fxprune.errors import ArtefactError, BudgetError, FxpruneError, ProofError
from tests.nets.gradients import moved_by_rounding
from tests.nets.oracles import masked, narrow_twin
from tests.nets.snapshots import changes, snapshot
from tests.nets.specification import Specification

BATCHES = (1, 2, 5, 17)
RATIOS = (0.0, 0.3, 0.5, 0.7)
# Of the largest value: what may differ in float64 (tables that a sample in float32 filled stay), float32 and bfloat16.
EXACT, SINGLE, ROUGH = 1e-6, 1e-3, 0.1
# What is smaller than this is zero but for rounding.
NOTHING = 1e-7
# Where steps of descent lead away, rounding soon decides.
DIVERGED = 1e3

Pair = tuple[nn.Module, nn.Module]
Sample = tuple[Tensor, ...]
Compiler = Callable[..., Any]


class WrongError(AssertionError):
    """A result that is not what the twin computes; ``kind`` says where."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


@dataclass
class Verdict:
    """What became of one network: whether it compiled, why not, what was compared, and what the result refused."""

    compiled: bool = False
    reason: str = ""
    refused: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)


def judge(specification: Specification, seed: int, compiler: Compiler = fxprune.compile) -> Verdict:
    """Compile the network in a way drawn from ``seed`` and compare it with its twin.

    Raises WrongError where it differs, and what fxprune raises that is no refusal.
    """
    chance, verdict = random.Random(seed), Verdict()
    verify, batch, ratio = chance.random() < 0.2, chance.choice((2, 2, 1, 3)), chance.choice(RATIOS)
    model, sample = specification.build(), specification.sample(batch)
    _dress(model, chance)
    reference = deepcopy(model)
    if chance.random() < 0.5:  # most models have been run before
        run(deepcopy(model).eval(), sample)
    before = snapshot(model)
    pruned = _compiled(compiler, model, sample, ratio, verify, verdict)
    if found := changes(before, snapshot(model)):
        raise WrongError("touched", f"the model changed: {found}")
    expected, got = (run(deepcopy(net).eval(), sample) for net in (_fresh(specification, reference), model))
    if not same(got, expected, 0.0):
        raise WrongError("touched", f"the model answers {said(got)} instead of {said(expected)}")
    if pruned is not None:
        _Comparison(specification, reference, pruned, verdict, chance).run_all()
    return verdict


def _fresh(specification: Specification, reference: nn.Module) -> nn.Module:
    """The network of a process in which nothing else ever ran."""
    fresh = specification.build()
    fresh.load_state_dict(reference.state_dict())
    _like(fresh, reference)
    return fresh


def _like(network: nn.Module, other: nn.Module) -> None:
    """Give modules and parameters the modes and flags of another network's."""
    modes = {name: module.training for name, module in other.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in other.named_parameters()}
    for name, module in network.named_modules():
        module.training = modes[name]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(flags[name])


def _dress(model: nn.Module, chance: random.Random) -> None:
    """Modes and flags of single modules and parameters, as users leave them."""
    if chance.random() < 0.2:
        model.train()
        for module in list(model.modules())[1:]:
            if chance.random() < 0.3:
                module.eval()
    if chance.random() < 0.2:
        for parameter in model.parameters():
            parameter.requires_grad_(chance.random() < 0.7)


def _compiled(
    compiler: Compiler, model: nn.Module, sample: Sample, ratio: float, verify: bool, verdict: Verdict
) -> nn.Module | None:
    """The result, at what can be reached where the ratio cannot; None where it is refused."""
    made: nn.Module
    try:
        try:
            made = compiler(model, sample, ratio, progress=False, verify=verify)
        except BudgetError as error:
            made = compiler(model, sample, 0.9 * (error.reachable or 0.0), progress=False, verify=verify)
    except FxpruneError as error:
        with torch.random.fork_rng(devices=[]):
            if isinstance(error, ProofError) and not isinstance(run(deepcopy(model).eval(), sample), Exception):
                raise
        verdict.reason = f"{type(error).__name__}: {error}"
        return None
    verdict.compiled = True
    return made


class _InOrder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draws random numbers in the order of the dims: torch follows the memory, of which one channel has another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not (args and isinstance(args[0], Tensor)) or args[0].is_contiguous():
            return func(*args, **kwargs)
        if func is torch.ops.aten.bernoulli_.float:
            return args[0].copy_(func(torch.empty(args[0].shape, dtype=args[0].dtype), *args[1:], **kwargs))
        if func in (torch.ops.aten.randn_like.default, torch.ops.aten.rand_like.default):
            drawn = func(torch.empty(args[0].shape, dtype=args[0].dtype), **kwargs)
            return torch.empty_like(args[0]).copy_(drawn)
        return func(*args, **kwargs)


def run(network: nn.Module, sample: Sample, seed: int = 0) -> Any:
    """What the network returns under a seed, or the exception that it raises."""
    torch.default_generator.manual_seed(seed)
    try:
        with _InOrder() if network.training else contextlib.nullcontext():
            return network(*sample)
    except Exception as error:
        return error


def same(ours: Any, theirs: Any, tolerance: float, doubt: Any = None) -> bool:
    """Equal in structure, dtypes, shapes and flags, and in values but for the tolerance and ten times the doubt."""
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        return isinstance(ours, type(theirs))
    if _structure(ours) != _structure(theirs):
        return False
    if doubt is None or _structure(doubt) != _structure(theirs):
        doubt = theirs
    leaves = (_pytree.tree_leaves(tree) for tree in (ours, theirs, doubt))
    return all(_equal(*three, tolerance) for three in zip(*leaves, strict=True))


def _structure(tree: Any) -> Any:
    """Types, keys and lengths; a class is its name, because the twin's module defines its own."""
    if isinstance(tree, dict):
        return {key: _structure(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree).__name__, getattr(tree, "_fields", ()), [_structure(value) for value in tree]
    return None


def _equal(ours: Any, theirs: Any, doubt: Any, tolerance: float) -> bool:
    if not isinstance(theirs, Tensor):
        return type(ours) is type(theirs) and bool(ours == theirs)
    if not isinstance(ours, Tensor) or _facts(ours) != _facts(theirs):
        return False
    ours, theirs, doubt = (value.detach().double() for value in (ours, theirs, doubt))
    if doubt.shape != theirs.shape or not theirs.numel():
        doubt = theirs
    unknown = 10 * (doubt - theirs).abs().nan_to_num() if tolerance else torch.zeros(())
    allowed = unknown + tolerance * max([NOTHING, *theirs[theirs.isfinite()].abs().tolist()])
    wrong = torch.where(theirs.isfinite(), (ours - theirs).abs() > allowed, ours.isfinite())
    return not bool((wrong | (ours.isfinite() != theirs.isfinite())).any())


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.requires_grad


def said(value: Any) -> str:
    """A value in a line."""
    if isinstance(value, Exception):
        return f"{type(value).__name__}: {value}"[:200]
    leaves = [
        f"{tuple(leaf.shape)} {leaf.dtype} {leaf.requires_grad} {leaf.detach().flatten()[:3].tolist()}"
        if isinstance(leaf, Tensor)
        else repr(leaf)
        for leaf in _pytree.tree_leaves(value)
    ]
    return f"{type(value).__name__} of {'; '.join(leaves)}"[:260]


def differing(ours: Iterable[tuple[str, Any]], theirs: Iterable[tuple[str, Any]]) -> list[str]:
    """Names that both have with other values."""
    mine, expected = dict(ours), dict(theirs)
    return [name for name in expected.keys() & mine.keys() if mine[name] != expected[name]]


class _Comparison:
    """One result beside its twin."""

    def __init__(
        self, specification: Specification, model: nn.Module, pruned: Any, verdict: Verdict, chance: random.Random
    ) -> None:
        plan = fxprune.report(pruned).plan
        assert plan is not None
        self._specification, self._pruned, self._verdict, self._chance = specification, pruned, verdict, chance
        self._source = specification.source()
        self._whole = all(t is None for dims in plan.keep.values() for t in dims)
        self._twin = _fresh(specification, model) if self._whole else narrow_twin(specification, model, plan.keep)
        _like(self._twin, model)
        # Where a forward reads a width as a number (``squeeze()`` of a row makes channels rows), the original decides.
        self._masked = None if self._whole else masked(_fresh(specification, model), plan.keep)

    def run_all(self) -> None:
        """Every comparison."""
        self._state("made", (self._pruned, self._twin), 0.0)
        if self._chance.random() < 0.1:
            self._saved()
        pair = self._pair(torch.float64)
        exactly = self._evaluation(pair)
        if self._verdict.compared["with the masked original alone"]:
            return  # the twin reads a width as a number, so it is no specification of training either
        if not exactly or self._chance.random() < 0.25:  # a change of dtype takes apart what lies over one storage
            self._training(self._pair(), torch.float32, SINGLE)
        else:
            self._training(pair, torch.float64, EXACT)
        self._precision(torch.bfloat16)
        if self._chance.random() < 0.3:
            self._surroundings()
        self._modes()

    def _pair(self, dtype: torch.dtype | None = None) -> Pair:
        ours, theirs = deepcopy(self._pruned), deepcopy(self._twin)
        return (ours, theirs) if dtype is None else (ours.to(dtype), theirs.to(dtype))

    def _sample(self, batch: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Sample:
        given = self._specification.sample(batch, seed=batch + seed)
        return tuple(value.to(dtype) if value.is_floating_point() else value for value in given)

    def _compare(self, kind: str, pair: Pair, sample: Sample, tolerance: float, doubt: Any = None) -> Any:
        """Run both under one seed; both outputs, or None where either refuses."""
        (ours, theirs), seed = pair, self._chance.randrange(1000)
        spare = deepcopy(theirs)
        expected = run(theirs, tuple(value.clone() for value in sample), seed)
        if isinstance(expected, Exception):
            return None
        got = run(ours, sample, seed)
        if isinstance(got, AssertionError | FxpruneError):
            self._verdict.refused[f"{kind}: {got}".splitlines()[0]] += 1
            return None
        if isinstance(got, Exception):
            raise WrongError(kind, f"the result raises {said(got)}") from got
        if not same(got, expected, tolerance, doubt):
            moved = run(moved_by_rounding(spare), sample, seed)
            if not same(got, expected, tolerance, moved) and not self._as_masked(kind, got, expected, sample, seed):
                raise WrongError(kind, f"{said(got)} instead of {said(expected)}")
        self._verdict.compared[kind] += 1
        return got, expected, spare, sample, seed

    def _as_masked(self, kind: str, got: Any, twins: Any, sample: Sample, seed: int) -> bool:
        """Whether an untrained result answers as the masked original does, where a width decides: in sizes at least.

        Zeros are no stand-in under a norm over channels, so values are not compared where sizes tell the twin off.
        """
        if self._masked is None or not kind.startswith("eval") or "training" in kind:
            return False
        double = "float32" not in kind
        copy = deepcopy(self._masked).eval()
        expected = run(copy.double() if double else copy, sample, seed)
        sizes, others, mine = (
            [tuple(leaf.shape) for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
            for tree in (expected, twins, got)
        )
        alike = same(got, expected, EXACT if double else SINGLE) or (others != sizes == mine)
        # Neither is a reference where channels became rows and ops over channels read what is left of them.
        alike |= kind.partition(",")[0] == "eval at batch 1" and "squeeze()" in self._source
        self._verdict.compared["with the masked original alone"] += alike
        return alike

    def _state(self, when: str, pair: Pair, tolerance: float) -> None:
        """Names, values and flags of parameters and buffers."""
        ours, theirs = pair
        expected, got = theirs.state_dict(), ours.state_dict()
        for name in expected.keys() & got.keys():
            if not same(got[name], expected[name], tolerance):
                raise WrongError(f"state {when}", f"{name}: {said(got[name])} instead of {said(expected[name])}")
        names = [[name for name, _ in net.named_parameters()] for net in pair]
        if set(names[0]) - set(names[1]):
            raise WrongError(f"state {when}", f"parameters {names[0]} instead of {names[1]}")
        flags = [[(name, parameter.requires_grad) for name, parameter in net.named_parameters()] for net in pair]
        if found := differing(*flags):
            raise WrongError(f"state {when}", f"requires_grad of {found}")

    def _modes(self) -> None:
        """Training flags of the modules of both, now and after both calls."""
        pair = self._pair()
        for change in (None, True, False):
            if change is not None:
                pair[0].train(change), pair[1].train(change)
            if found := differing(*([(n, m.training) for n, m in net.named_modules()] for net in pair)):
                raise WrongError("modes", f"{found} after train({change})")

    def _evaluation(self, pair: Pair) -> bool:
        """Outputs at every batch and at other sizes, with gradients and without; whether float64 is taken at all."""
        pair[0].eval(), pair[1].eval()
        taken = [
            self._compare(f"eval at batch {batch}", pair, self._sample(batch, torch.float64), EXACT)
            for batch in BATCHES
        ]
        if not any(taken):
            pair = self._pair()
            pair[0].eval(), pair[1].eval()
            for batch in BATCHES:
                self._compare(f"eval at batch {batch}, float32", pair, self._sample(batch), SINGLE)
            return False
        if self._whole:  # a twin that lost channels has sizes written into it
            self._compare("eval at other sizes", pair, tuple(map(_longer, self._sample(2, torch.float64))), EXACT)
        with torch.no_grad():
            self._compare("eval without gradients", pair, self._sample(3, torch.float64), EXACT)
        return True

    def _training(self, pair: Pair, dtype: torch.dtype, tolerance: float) -> None:
        """Three steps of descent under one seed: outputs, gradients, what is stored; then evaluation again."""
        parameters = [[p for p in network.train().parameters() if p.requires_grad] for network in pair]
        optimisers = [torch.optim.SGD(some, lr=0.02) for some in parameters if some]
        for step, batch in enumerate((5, 2, 5)):
            kind = f"training, step {step}"
            made = self._compare(kind, pair, self._sample(batch, dtype, step), tolerance)
            if made is None or _largest(made[1]) > DIVERGED:
                return
            if not self._gradients(kind, pair, 10 * tolerance, *made):
                return
            self._verdict.compared["gradients"] += 1
            self._state("after training", pair, 10 * tolerance)
            for optimiser in optimisers:
                optimiser.step()
        pair[0].eval(), pair[1].eval()
        self._compare("eval after training", pair, self._sample(2, dtype), 10 * tolerance)

    def _gradients(
        self, kind: str, pair: Pair, tolerance: float, got: Any, expected: Any, spare: nn.Module, *call: Any
    ) -> bool:
        """Gradients of the mean square of all outputs; whether a step along them leads not too far away."""
        ours, theirs = _gradients(pair[0], got), _gradients(pair[1], expected)
        if _largest(theirs) > DIVERGED:
            return False
        if different := _unlike(ours, theirs, {}, tolerance):
            moved = moved_by_rounding(spare)
            different = _unlike(ours, theirs, _gradients(moved, run(moved, *call)), tolerance)
        if different:
            name = different[0]
            raise WrongError(f"gradients, {kind}", f"{name}: {said(ours[name])} instead of {said(theirs[name])}")
        return True

    def _precision(self, dtype: torch.dtype) -> None:
        """Dtype and rough values of the outputs of a converted result; the twin's own rounding is the doubt."""
        pair, exact = self._pair(dtype), self._pair(dtype)[1].double().eval()
        pair[0].eval(), pair[1].eval()
        sample = self._sample(2, dtype)
        doubt = run(exact, tuple(value.double() if value.is_floating_point() else value for value in sample))
        self._compare(f"in {dtype}", pair, sample, ROUGH, doubt)

    def _surroundings(self) -> None:
        """Float32 as compiled, images channels last, under autocast, inputs that need gradients."""
        pair, sample = self._pair(), self._sample(2)
        pair[0].eval(), pair[1].eval()
        self._compare("in float32", pair, sample, SINGLE)
        last = (value.to(memory_format=torch.channels_last) if value.dim() == 4 else value for value in sample)
        self._compare("channels last", pair, tuple(last), SINGLE)
        exact = run(deepcopy(pair[1]).float(), sample)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self._compare("under autocast", pair, sample, 2 * ROUGH, exact)
            with torch.no_grad():
                self._compare("under autocast without gradients", pair, sample, 2 * ROUGH, exact)
        needing = (value.requires_grad_() if value.is_floating_point() else value for value in sample)
        self._compare("inputs with gradients", pair, tuple(needing), SINGLE)

    def _saved(self) -> None:
        """A folder gives the same network back."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                fxprune.save(self._pruned, Path(folder) / "net")
                loaded = fxprune.load(Path(folder) / "net")
            except ArtefactError as error:
                self._verdict.refused[f"saving: {error}".splitlines()[0]] += 1
                return
        for mode in (False, True):
            pair = deepcopy(loaded).train(mode), deepcopy(self._pruned).train(mode)
            with contextlib.suppress(AssertionError) if mode else contextlib.nullcontext():
                self._compare(f"loaded, training {mode}", pair, self._sample(2), NOTHING)


def _longer(value: Tensor) -> Tensor:
    """Tokens and images of another size: two positions more in each dim of positions."""
    if value.dim() == 4:
        return torch.cat([torch.cat([value, value[:, :, :2]], 2)] * 2, 3)[..., : value.shape[3] + 2]
    return torch.cat([value, value[:, :2]], 1) if value.dim() == 3 else value


def _largest(output: Any) -> float:
    leaves = [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.numel()]
    return max((leaf.detach().abs().max().item() for leaf in leaves), default=0.0)


def _gradients(network: nn.Module, output: Any) -> dict[str, Tensor | None]:
    network.zero_grad()
    leaves = [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if leaves:
        torch.autograd.backward([(leaf**2).mean() for leaf in leaves if leaf.numel()])
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def _unlike(
    ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None], moved: dict[str, Tensor | None], tolerance: float
) -> list[str]:
    """Names of gradients that differ by more than rounding, relative to the largest; none is as good as zero."""
    given = [gradient.abs().max().item() for gradient in theirs.values() if gradient is not None and gradient.numel()]
    allowed = tolerance * max([NOTHING, *given])

    def unlike(name: str) -> bool:
        left, right, other = (
            torch.zeros(()) if gradient is None else gradient
            for gradient in (ours.get(name), theirs[name], moved.get(name, theirs[name]))
        )
        if not right.numel():
            return False
        return bool(((left - right).abs() > allowed + 10 * (other - right).abs()).any())

    return [name for name in theirs if unlike(name)]
