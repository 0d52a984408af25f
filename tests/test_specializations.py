"""Specializations: a forward that takes other branches for images of other sizes gets a graph for each."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.errors import ArtefactError, ProofError, SampleError
from fxprune.rewriting import PrunedGraphModule, rewriter

SIZES = [(16, 16), (8, 8), (18, 18), (17, 21), (24, 32), (20, 16)]


class Windows(nn.Module):
    """Means over windows of 4 x 4, of a map that is padded where it must be and turned where it is large."""

    def __init__(self, norm: bool = False, rate: float = 0.0) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12) if norm else nn.Identity()
        self.inner, self.head = nn.Conv2d(12, 16, 1), nn.Linear(16, 5)
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        height, width = x.shape[-2:]
        if height % 4 or width % 4:
            x = F.pad(x, (0, -width % 4, 0, -height % 4))
        if max(height, width) > 16:
            x = x + x.roll((1, 1), (2, 3)) * torch.arange(x.shape[1], device=x.device)[:, None, None]
        x = F.dropout(x, self.rate, self.training)
        x = self.inner(F.avg_pool2d(x, 4)).relu()
        return self.head(x.mean((2, 3)))


class Steady(Windows):
    """It takes no other way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.stem(x)).mean((2, 3)))


class Own(Windows):
    """It refuses all sizes but its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-2:] == (16, 16)
        return super().forward(x)


def compiled(ratio: float = 0.5, make: Callable[[], nn.Module] = Windows, **options: Any) -> tuple[nn.Module, Any]:
    model = make().double().eval()
    return model, fxprune.compile(model, image((16, 16)), ratio, **options)


def image(size: tuple[int, int], batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *size, dtype=torch.float64)


def masked(model: nn.Module, pruned: fx.GraphModule) -> nn.Module:
    """The original with zeros where the plan removes weights."""
    twin = copy.deepcopy(model)
    for name, dims in fxprune.report(pruned).plan.keep.items():
        for dim, kept in enumerate(dims):
            if kept is not None and name in dict(twin.named_parameters()):
                gone = torch.ones(twin.get_parameter(name).shape[dim], dtype=torch.bool)
                gone[kept] = False
                twin.get_parameter(name).data.index_fill_(dim, gone.nonzero()[:, 0], 0.0)
    return twin


@pytest.mark.parametrize("options", [{}, {"ratio": 0.03, "couplings": "drop"}, {"verify": False}], ids=str)
def test_every_branch_equals_the_masked_original(options: dict[str, Any]) -> None:
    model, pruned = compiled(**options)
    assert {name for name in pruned.graphs if name.startswith("eval_")}
    expected = masked(model, pruned)
    for size in SIZES:
        x = image(size, 3)
        torch.testing.assert_close(pruned(x), expected(x))


class Anchored(nn.Module):
    """Positions are kept for the sizes of the last call, and made anew for others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.shape, self.anchors = torch.Size(), torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.last(self.first(x).relu())
        if self.shape != h.shape:
            self.shape, self.anchors = h.shape, torch.arange(h.shape[-1], dtype=h.dtype, device=h.device)
        return h + self.anchors


@pytest.mark.parametrize("size", [(2, 3, 8, 8), (1, 3, 8, 8), (6, 3, 8, 8), (2, 3, 8, 6), (2, 3, 6, 8), (5, 3, 9, 7)])
def test_caches_for_the_sizes_of_the_last_call_are_computed_anew(size: tuple[int, ...]) -> None:
    model, sample = Anchored().eval(), torch.randn(2, 3, 8, 8)
    model(sample)
    pruned = fxprune.compile(model, sample, 0.5)
    x = torch.randn(size)
    torch.testing.assert_close(pruned(x), masked(model, pruned)(x))


def test_the_proof_runs_every_graph() -> None:
    proof = fxprune.report(compiled(verify="full")[1]).proof
    assert proof is not None
    assert {"16x16", "32x32", "23x23", "9x9"} <= set(proof.resolutions)


def test_a_fault_in_one_graph_alone_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    run = rewriter.Rewriter.run

    def wrong(self: Any, captured: Any) -> fx.Graph:
        graph = run(self, captured)
        for node in graph.nodes if captured.specialization == 2 else ():
            if node.target == "roll" or "roll" in str(node.target):
                node.args = (node.args[0], (2, 1), node.args[2])
        return graph

    monkeypatch.setattr(rewriter.Rewriter, "run", wrong)
    with pytest.raises(ProofError, match="eval 2 graph, node roll"):
        compiled()
    with pytest.raises(ProofError, match="outputs"):
        compiled(verify="full")


@pytest.mark.parametrize("norm", [False, True])
def test_training_equals_the_original_on_every_branch(norm: bool) -> None:
    model, pruned = compiled(0.0, lambda: Windows(norm, 0.4))
    model.train()
    pruned.train()
    for size in SIZES:
        x = image(size)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert torch.equal(pruned(x), expected)
        assert torch.get_rng_state().equal(_state_after(model, x))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, pruned.get_buffer(name)) or name.startswith("norm")


def _state_after(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)
    copy.deepcopy(model)(x)
    return torch.get_rng_state()


def test_looking_for_the_graph_changes_nothing() -> None:
    _, pruned = compiled(0.3, lambda: Windows(True))
    pruned.train()
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    x, state = image((18, 18)), torch.get_rng_state()
    with FlopCounterMode(display=False) as counter:
        twin = pruned.for_sizes_of(x)
    assert not counter.get_total_flops()
    assert list(twin.graphs) == ["eval", "training"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())


def test_models_without_such_checks_or_of_one_size_have_one_graph() -> None:
    for make in (Steady, Own):
        _, pruned = compiled(0.3, make)
        assert not any(name.endswith("_1") for name in pruned.graphs)
        assert pruned.for_sizes_of(image((16, 16))) is pruned


class Moving(nn.Module):
    """It moves down by its height, in no way that is taken twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for _ in range(x.shape[-1]):
            x = x.roll(1, -1) + 1
        return self.last(x)


def test_sizes_that_no_graph_takes_are_refused() -> None:
    _, pruned = compiled(0.3, Moving)
    assert len(pruned.graphs) == 5
    with pytest.raises(AssertionError, match=r"test_specializations\.py:\d+ took"):
        pruned(image((16, 19)))


def test_copies_and_files_have_every_branch(tmp_path: Path) -> None:
    _, pruned = compiled(0.4, lambda: Windows(True, 0.3))
    inputs = [image(size) for size in SIZES]
    expected = [pruned(x) for x in inputs]
    fxprune.save(pruned, tmp_path / "net")
    twins = [copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), fxprune.load(tmp_path / "net")]
    namespace: dict[str, Any] = {"__name__": "saved"}
    exec((tmp_path / "net" / "model.py").read_text(), namespace)
    model = namespace["Model"]().double().eval()
    model.load_state_dict(load_file(tmp_path / "net" / "weights.safetensors"))
    for twin in (*twins, model):
        assert all(torch.equal(twin(x), y) for x, y in zip(inputs, expected, strict=True))
        twin.train()(inputs[-1]).sum().backward()
        # None of the graphs is for a small image with one of these remainders alone.
        with pytest.raises(AssertionError, match="inputs of other sizes"):
            twin.eval()(image((12, 10)))


def test_generated_source_knows_torch_alone_and_is_clean(tmp_path: Path) -> None:
    fxprune.save(compiled(0.4)[1], tmp_path / "net")
    lines = (tmp_path / "net" / "model.py").read_text().splitlines()
    imports = {line for line in lines if line.startswith(("import ", "from "))}
    assert imports == {
        "import copy",
        "import inspect",
        "import sys",
        "from collections.abc import Callable, Sequence",
        "from concurrent.futures import ThreadPoolExecutor",
        "from typing import Any",
        "import torch",
        "import torch.nn.functional as F",
        "from torch import nn",
    }
    assert not [line for line in lines if len(line) > 120 and "this network was made for" not in line]


@pytest.mark.parametrize("name", ["eval_1_graph", "eval_graph"])
def test_a_folder_without_one_of_the_graphs_is_refused(tmp_path: Path, name: str) -> None:
    fxprune.save(compiled(0.4)[1], tmp_path / "net")
    (file,) = (f for f in (tmp_path / "net").glob("*.json") if "eval_1_graph" in f.read_text())
    data = json.loads(file.read_text())
    del _holder(data, name)[name]
    file.write_text(json.dumps(data))
    with pytest.raises(ArtefactError):
        fxprune.load(tmp_path / "net")


def _holder(data: Any, name: str) -> Any:
    if name in data:
        return data
    return next(found for value in data.values() if isinstance(value, dict) and (found := _holder(value, name)))


def test_one_graph_is_exported_and_all_are_compiled(tmp_path: Path) -> None:
    _, pruned = compiled(0.4)
    for size in ((16, 16), (18, 18)):
        found = fxprune.export(pruned, tmp_path / "net.pt2", "pt2", image(size))
        assert f"{size[0]}x{size[1]}" in found.resolutions
    again = torch.compile(pruned, backend="eager")
    for size in SIZES:
        torch.testing.assert_close(again(image(size)).shape, torch.Size((2, 5)))
        x = image(size)
        torch.testing.assert_close(again(x), pruned(x))


def test_the_graph_of_the_mode_is_changed_in_place_as_ever() -> None:
    _, pruned = compiled(0.0)
    assert isinstance(pruned, PrunedGraphModule)
    for node in pruned.graph.nodes:
        if node.op == "output":
            with pruned.graph.inserting_before(node):
                node.args = (pruned.graph.call_function(torch.neg, (node.args[0],)),)
    x, y = image((16, 16)), image((18, 18))
    before = pruned(x), pruned(y)
    pruned.recompile()
    assert torch.equal(pruned(x), -before[0])
    assert torch.equal(pruned(y), before[1])


def test_one_plan_serves_samples_of_all_sizes() -> None:
    model, pruned = compiled()
    plan = fxprune.report(pruned).plan
    other = fxprune.apply(model, image((18, 18)), plan)
    for size in [(18, 18), (24, 32), (9, 9), (17, 21)]:
        x = image(size)
        torch.testing.assert_close(other(x), pruned(x))
    recovered = fxprune.recover(pruned, model, "bias", calibration=[image((16, 16)), image((16, 16))])
    assert list(recovered.graphs) == list(pruned.graphs)
    assert not torch.equal(recovered(image((18, 18))), pruned(image((18, 18))))


class ByName(Windows):
    """Its way hangs on a size in words."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        way = getattr(self, f"way{self.width(x)}", torch.sigmoid)
        return self.head(way(self.inner(self.stem(x))).mean((2, 3)))

    def width(self, x: torch.Tensor) -> int:
        return x.shape[-1]

    @staticmethod
    def way16(x: torch.Tensor) -> torch.Tensor:
        return x.relu()


class Unseen(ByName):
    """The same, where nobody can see it."""

    def width(self, x: torch.Tensor) -> int:
        with torch._C.DisableTorchFunction():
            return super().width(x)


def test_a_size_in_words_decides() -> None:
    model = ByName().double().eval()
    pruned = fxprune.compile(model, image((16, 16)), 0.4)
    expected = masked(model, pruned)
    for size in [(16, 16), (8, 8), (23, 23)]:
        x = image(size)
        torch.testing.assert_close(pruned(x), expected(x))
    with pytest.raises(AssertionError, match="inputs of other sizes"):
        pruned(image((16, 21)))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_network_that_diverges_at_another_resolution_refuses_it(batch: int) -> None:
    model = Unseen().double().eval()
    pruned = fxprune.compile(model, image((16, 16), batch), 0.4)
    proof = fxprune.report(pruned).proof
    assert proof is not None
    assert proof.resolutions == ("16x16",)
    assert not proof.diverges
    expected, x = masked(model, pruned), image((16, 16), 5)
    torch.testing.assert_close(pruned(x), expected(x))
    for size in [(32, 32), (16, 20)]:
        with pytest.raises(AssertionError, match="16 in the sample, and with others"):
            pruned(image(size))


class Scan(nn.Module):
    """A step for every column, forwards or backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(3, 16, 1), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, backwards: bool = False) -> torch.Tensor:
        x = self.first(x)
        state = x.new_zeros(x.shape[0], x.shape[1])
        for column in reversed(x.unbind(-1)) if backwards else x.unbind(-1):
            state = torch.tanh(column + state)
        return self.last(state)


def series(steps: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, steps, dtype=torch.float64)


@pytest.mark.parametrize("batch", [1, 2])
def test_other_samples_are_taken(tmp_path: Path, batch: int) -> None:
    model = Scan().double().eval()
    others = [(series(9, batch), False), (series(5, batch), True), (series(6, 4), False), (series(5, batch), True)]
    pruned = fxprune.compile(model, (series(6, batch), False), 0.4, other_samples=others)
    assert list(pruned.graphs) == ["eval", "eval_1", "eval_2"]
    expected = masked(model, pruned)
    fxprune.save(pruned, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net")
    for call in [(series(6, 3), False), *others]:
        torch.testing.assert_close(pruned(*call), expected(*call))
        torch.testing.assert_close(loaded(*call), expected(*call))
    with pytest.raises(AssertionError, match="backwards = False"):
        pruned(series(6), True)
    again = fxprune.recover(loaded, model, "bias", calibration=[(series(6), False)])
    assert list(again.graphs) == ["eval", "eval_1", "eval_2"]
    plan = fxprune.plan(model, (series(6), False), 0.4, other_samples=others)
    assert fxprune.apply(model, (series(9), False), plan)(series(9), False).shape == (2, 4)
    groups = fxprune.analyze(model, (series(6), False), other_samples=others).groups
    assert [group.size for group in groups] == [16]


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (series(9), "must be a list of samples"),
        ([{"colour": series(9)}], r"other_samples\[0\]|colour"),
        (
            [(series(9), False), (series(9)[:, :2], False)],
            r"other_samples\[1\]: cannot trace the model at .*test_specializations\.py",
        ),
        ([(series(9).float(), False)], "float32"),
        (["a"], "holds no tensor"),
    ],
)
def test_bad_other_samples_are_refused(others: Any, words: str) -> None:
    with pytest.raises(SampleError, match=words):
        fxprune.compile(Scan().double().eval(), (series(6), False), 0.4, other_samples=others)


class WithLoss(nn.Module):
    """A loss where there are labels, as networks of transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.b(self.a(x).relu())
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_an_optional_argument_stays_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = torch.randn(2, 4), torch.tensor([0, 1])
    model = WithLoss().eval()
    pruned = fxprune.compile(model, {"x": x}, 0.5, other_samples=[{"x": x, "labels": labels}])
    fxprune.save(pruned, tmp_path / "net")
    monkeypatch.syspath_prepend(str(tmp_path / "net"))
    source = importlib.import_module("model").Model().eval()
    sys.modules.pop("model")
    source.load_state_dict(load_file(tmp_path / "net" / "weights.safetensors"))
    full = fxprune.report(pruned).plan.expand(pruned.state_dict())  # type: ignore[union-attr]
    model.load_state_dict(full)
    for network in (pruned, fxprune.load(tmp_path / "net"), source):
        assert network(x).keys() == network(x=x).keys() == {"logits"}
        for given in ({"labels": labels}, {"labels": labels.repeat(3)}):
            batch = x.repeat(len(given["labels"]) // 2, 1)
            torch.testing.assert_close(network(x=batch, **given), model(x=batch, **given))


class Masked(nn.Module):
    """A mask is made where none is given; attention itself would take None, and look at everything."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        h = self.a(x)
        if mask is None:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return self.b(F.scaled_dot_product_attention(h, h, h, attn_mask=mask))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attend(x, mask)


class MaskedByPlace(Masked):
    def forward(self, x, mask):  # type: ignore[no-untyped-def, override]
        return self.attend(x, mask)


class MaskedInList(Masked):
    def forward(self, both: list[Tensor | None]) -> Tensor:  # type: ignore[override]
        return self.attend(cast(Tensor, both[0]), both[1])


class MaskedInDict(Masked):
    def forward(self, batch: dict[str, Any]) -> Tensor:  # type: ignore[override]
        return self.attend(batch["x"], batch.get("mask"))


def _with_mask(model: nn.Module, mask: Tensor | None, length: int = 5) -> tuple[Any, ...]:
    x = torch.randn(2, length, 4)
    if isinstance(model, MaskedInList):
        return ([x, mask],)
    return ({"x": x, "mask": mask},) if isinstance(model, MaskedInDict) else (x, mask)


@pytest.mark.parametrize("kind", [Masked, MaskedByPlace, MaskedInList, MaskedInDict])
def test_none_in_the_place_of_a_tensor_takes_its_own_graph_or_is_refused(kind: type[nn.Module]) -> None:
    model = kind().eval()
    given, none = (_with_mask(model, mask) for mask in (torch.ones(5, 5, dtype=torch.bool), None))
    alone = fxprune.compile(model, given, 0.5)
    with pytest.raises(AssertionError, match="as in the sample: compile it again for calls without"):
        alone(*none)
    both = fxprune.compile(model, given, 0.5, other_samples=[none])
    model.load_state_dict(fxprune.report(both).plan.expand(both.state_dict()))  # type: ignore[union-attr]
    for call in (given, none, _with_mask(model, None, 7)):
        torch.testing.assert_close(both(*call), model(*call))


class Kinds(nn.Module):
    """What is added to the scores depends on the dtype of the mask, which no op shows."""

    def __init__(self, ask: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.a, self.b, self.ask = nn.Linear(4, 16), nn.Linear(16, 3), ask

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.a(x)
        bias = mask if self.ask(mask) else (1 - mask.to(x.dtype)) * -9
        return self.b((h @ h.mT + bias).softmax(-1) @ h)


ASKS: dict[str, Callable[[Tensor], bool]] = {
    "is_floating_point": lambda mask: mask.is_floating_point(),
    "function": lambda mask: torch.is_floating_point(mask),
    "dtype": lambda mask: mask.dtype not in (torch.bool, torch.int64),
    "table": lambda mask: {torch.bool: False, torch.int64: False}.get(mask.dtype, True),
    "type": lambda mask: mask.type() not in ("torch.BoolTensor", "torch.LongTensor"),
    "isinstance": lambda mask: not isinstance(mask, (torch.BoolTensor, torch.LongTensor)),
    "derived": lambda mask: mask[None].flatten(1).dtype.is_floating_point,
}


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("first", ["floats", "truth"])
def test_masks_of_another_kind_take_their_own_graph_or_are_refused(ask: str, first: str) -> None:
    model, x = Kinds(ASKS[ask]).eval(), torch.randn(2, 5, 4)
    masks = {"floats": torch.randn(5, 5), "truth": torch.ones(5, 5, dtype=torch.bool).tril()}
    own, other = masks.pop(first), *masks.values()
    alone = fxprune.compile(model, (x, own), 0.5)
    for network in (alone, copy.deepcopy(alone).double()):
        with pytest.raises(AssertionError, match="this network was made for calls with .* asks for its dtype"):
            network(x.to(next(network.parameters()).dtype), other)
    both = fxprune.compile(model, (x, own), 0.5, other_samples=[(x, other)])
    model.load_state_dict(fxprune.report(both).plan.expand(both.state_dict()))  # type: ignore[union-attr]
    for mask in (own, other, own):
        torch.testing.assert_close(both(x, mask), model(x, mask))


class Ways(nn.Module):
    """Layers are called one by one, as the values of the input say."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
        self.warm, self.cold = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.first(x))
        if x.sum() > 100:
            h = h.flip(0)
        elif x.sum() > 0:
            h = self.warm(h).relu()
        else:
            h = self.cold(h).tanh()
        return self.last(h)


def _of_sum(total: float) -> torch.Tensor:
    x = torch.randn(3, 6)
    return x - x.mean() + total / x.numel()


@pytest.mark.parametrize("others", [(), (_of_sum(-1.0),)], ids=["found", "given"])
def test_branches_that_values_decide_have_a_graph_each(others: tuple[torch.Tensor, ...], tmp_path: Path) -> None:
    model, sample = Ways().eval(), _of_sum(2.0)
    pruned = fxprune.compile(model, sample, 0.5, other_samples=others)
    assert [name for name in pruned.graphs if name.startswith("eval")] == ["eval", "eval_1"]
    expected = masked(model, pruned)
    fxprune.save(pruned, tmp_path / "net")
    for network in (pruned, copy.deepcopy(pruned), fxprune.load(tmp_path / "net")):
        for total in (3.0, -2.0, 50.0):
            x = _of_sum(total)
            torch.testing.assert_close(network(x), expected(x))
        with pytest.raises(AssertionError, match="made for inputs of other values"):
            network(_of_sum(101.0))


def test_a_branch_that_is_not_taken_leaves_no_trace_in_training() -> None:
    model = Ways()
    pruned = fxprune.compile(model, _of_sum(2.0), 0.5).train()
    for total in (1.0, -1.0):
        pruned(_of_sum(total)).sum().backward()
    assert pruned.get_buffer("norm.num_batches_tracked") == 2
    assert all(pruned.get_parameter(f"{name}.weight").grad is not None for name in ("first", "warm", "cold", "last"))


def test_a_branch_is_exported_with_its_check(tmp_path: Path) -> None:
    pruned = fxprune.compile(Ways().eval(), _of_sum(2.0), 0.5)
    cold = _of_sum(-1.0)
    fxprune.export(pruned, tmp_path / "net.pt2", sample_input=cold)
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(loaded(cold), pruned(cold))
    with pytest.raises(RuntimeError, match="assertion"):
        loaded(-cold)


class OverEdges(nn.Module):
    """A step over a graph of any number of nodes and edges, which share no batch dim."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        if edges.shape[1] < 2:
            return self.last(self.first(x))
        h = self.first(x).relu()
        return self.last(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))


def test_sizes_are_asked_of_a_sample_without_a_batch() -> None:
    model, x, edges = OverEdges().eval(), torch.randn(8, 6), torch.randint(0, 8, (2, 20))
    pruned = fxprune.compile(model, (x, edges), 0.4)
    kept = fxprune.report(pruned).plan.keep["first.weight"][0]
    h = torch.zeros(5, 8)
    for start, end in (edges[:, :9] % 5).T.tolist():
        h[end] += model.first(x[start]).relu().detach()
    gone = [channel for channel in range(8) if channel not in kept]
    h[:, gone] = 0
    torch.testing.assert_close(pruned(x[:5], edges[:, :9] % 5), model.last(h))
