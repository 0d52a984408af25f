"""Forwards that cannot be traced as a whole: opaque modules, and what is pruned inside them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune


def block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, width, 1))


class Gate(nn.Module):
    """Chooses by value, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = block(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y if bool(y.mean() > 100) else x + y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 6, 3))
        self.gate = Gate()
        self.head = nn.Sequential(nn.Conv2d(6, 9, 1), nn.ReLU(), nn.Conv2d(9, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gate(self.stem(x)))


class Pictures(nn.Module):
    """Takes a list of pictures of any number and size, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = block(3)
        self.backbone.out_channels = 3
        self.factor = nn.Parameter(torch.full((3, 1, 1), 0.5))

    def forward(self, pictures: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert self.backbone.out_channels == 3
        features = [self.backbone(p[None])[0] * self.factor for p in pictures]
        return [{"above": f[f > f.mean()]} for f in features]


def test_the_smallest_failing_module_becomes_opaque_and_its_parts_are_pruned() -> None:
    model = Net().eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 12, 12), 0.4)
    report = fxprune.report(pruned)
    assert [row.name for row in report.opaque] == ["gate"]
    assert "test_partial.py" in report.opaque[0].reason
    assert report.proof is not None
    shrunk = {row.name for row in report.groups if row.after < row.before}
    assert {"stem.0", "gate.inner.0", "head.0"} <= shrunk
    assert pruned.get_parameter("stem.2.weight").shape[0] == 6, "what enters an opaque module keeps its size"
    assert pruned.state_dict().keys() == model.state_dict().keys()


def test_an_opaque_forward_of_the_whole_model_keeps_its_interface() -> None:
    model = Pictures().eval()
    pruned = fxprune.compile(model, [torch.randn(3, 8, 8), torch.randn(3, 9, 7)], 0.5)
    report = fxprune.report(pruned)
    assert isinstance(pruned, Pictures)
    assert report.achieved >= 0.5
    assert "pruned inside it: backbone" in report.opaque[0].reason
    reasons = {row.reason for row in report.pinned}
    assert reasons == {f"it is a dim of the {s} of backbone, which an opaque module calls" for s in ("input", "output")}
    assert len(pruned([torch.randn(3, 5, 5)] * 3)) == 3
    assert [n for n, _ in pruned.named_parameters()] == [n for n, _ in model.named_parameters()]
    pruned.train()
    pruned([torch.randn(3, 5, 5)])[0]["above"].sum().backward()


class Searching(nn.Module):
    """A convolution of its own beside a traced part, in a forward that no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = block(6)
        self.own = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(x.mean() > 100):
            x = x / 2
        return self.own(self.inner(x))


def test_the_cost_of_an_opaque_module_is_shown_apart() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), Searching(), nn.Conv2d(6, 4, 1)).eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.3)
    report = fxprune.report(pruned)
    (row,) = report.opaque
    assert row.macs == 2 * 8 * 8 * 6 * 6 * 9
    assert row.parameters == 6 * 6 * 9 + 6
    traced = 2 * 8 * 8 * (3 * 6 + 3 * 3 * 6 * 12 + 12 * 6 + 6 * 4)
    assert report.macs_before == traced + row.macs
    assert "MACs" in str(report)


def test_the_original_is_not_changed() -> None:
    model = Pictures().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = fxprune.compile(model, [torch.randn(3, 8, 8)], 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    storages = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert storages.isdisjoint(t.untyped_storage().data_ptr() for t in pruned.state_dict().values())


class Fickle(Net):
    """Behaves otherwise in training, beside a module that no trace can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.nn.functional.dropout(self.stem(x), 0.5, self.training)
        if self.training:
            h = h + torch.rand(h.shape[0], 1, 1, 1, device=h.device)
        return self.head(self.gate(h))


def test_training_has_its_own_graph_beside_opaque_modules() -> None:
    model, x = Fickle(), torch.randn(2, 3, 12, 12)
    copy = fxprune.compile(model, x, 0.0)
    assert [row.name for row in fxprune.report(copy).opaque] == ["gate"]
    for mode in (True, False):
        torch.manual_seed(3)
        expected = model.train(mode)(x)
        torch.manual_seed(3)
        assert torch.equal(copy.train(mode)(x), expected)
    pruned = fxprune.compile(model, x, 0.4).train()
    assert not torch.equal(pruned(x), pruned(x)), "dropout is drawn anew at every call"


class Head(nn.Module):
    """Computes its own loss, as the heads of detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.tower(x))

    def loss(self, y: torch.Tensor) -> torch.Tensor:
        return y.square().mean()


class Trained(Pictures):
    def __init__(self) -> None:
        super().__init__()
        self.head = Head()

    def forward(self, pictures: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        found = [self.head(self.backbone(p[None])) for p in pictures]
        if self.training:
            return torch.stack([self.head.loss(y) for y in found]).sum()
        return [y[y > y.mean()] for y in found]


def test_parts_that_are_asked_for_more_than_a_call_keep_their_class() -> None:
    pruned = fxprune.compile(Trained().eval(), [torch.randn(3, 8, 8), torch.randn(3, 9, 7)], 0.4)
    assert isinstance(pruned.get_submodule("head"), Head)
    assert pruned.get_parameter("head.tower.0.weight").shape[0] < 8
    assert isinstance(pruned.get_submodule("backbone"), torch.fx.GraphModule)
    pruned.train()([torch.randn(3, 5, 5)]).backward()
    assert all(p.grad is not None for name, p in pruned.named_parameters() if name != "factor")


class TwoWays(nn.Module):
    """A layer that a traced part and the code around it, which cannot be traced, both call."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 10)
        inner = (nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))
        self.part = nn.Sequential(*inner, self.shared, nn.ReLU(), nn.Linear(10, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.part(x)
        return y if bool(y.mean() > 100) else y + self.shared(x).sum(1, keepdim=True)


def test_a_layer_that_is_called_outside_of_its_part_keeps_its_width() -> None:
    model, x = (
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), TwoWays(), nn.Linear(6, 3)).eval(),
        torch.randn(4, 5),
    )
    pruned = fxprune.compile(model, x, 0.3)
    assert {row.name for row in fxprune.report(pruned).groups} == {"0", "3.part.0"}
    assert pruned.get_parameter("3.shared.weight").shape == (10, 6)
    assert pruned.get_parameter("3.part.3.weight") is pruned.get_parameter("3.shared.weight")
    assert "uses it outside of the parts" in fxprune.analyze(model, x).explain("3.shared.weight:0")


class Graded(Gate):
    """Constants of its width inside a part, which the forward makes at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Grading()


class Grading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last((self.first(x) * torch.linspace(0.1, 1, 12) + torch.arange(12.0) * 0.1).relu())


def test_constants_of_parts_inside_opaque_modules_are_cut_and_proven() -> None:
    model = nn.Sequential(nn.Linear(5, 6), Graded(), nn.Linear(6, 3)).eval()
    pruned = fxprune.compile(model, torch.randn(4, 5), 0.3)
    assert fxprune.report(pruned).proof is not None
    assert {row.name for row in fxprune.report(pruned).groups} == {"1.inner.first"}


class OneEach(nn.Module):
    """Gives a list as long as the batch, of what its values decide."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        h = self.last(x).flatten(2)
        chosen = h[:, 0] > h[:, 0].mean()
        return [h[number][:, chosen[number]] for number in range(len(h))]


def test_an_opaque_list_of_another_length_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), OneEach()).eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.5)
    assert len(pruned(torch.randn(2, 3, 8, 8))) == 2
    with pytest.raises(AssertionError, match="with 2 entries"):
        pruned(torch.randn(6, 3, 8, 8))


class Rebuilt(nn.Module):
    """Its state is what it was made of, as layers of einops have it; so a copy is made by the constructor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor if self.training else x

    def __getstate__(self) -> dict[str, float]:
        return {"factor": self.factor}

    def __setstate__(self, state: dict[str, float]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Rebuilding(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Rebuilt(3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.scale(self.stem(x))
        return self.head(y[torch.argsort(y.mean((1, 2, 3)).numpy().sum() * torch.arange(len(y)))])


def test_copies_have_the_modes_of_their_originals() -> None:
    model = Rebuilding().eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 12, 12), 0.3)
    assert isinstance(pruned, Rebuilding)
    assert not pruned.scale.training
    assert pruned.train().scale.training


class Drawing(nn.Module):
    """Returns several tensors that hang on random numbers, as routers of experts do."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.rand_like(x[:, :1])
        return x * draw if x.mean() < 100 else x, (draw > 0.5).long()


class Routed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gate: nn.Module = Drawing()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, chosen = self.gate(self.stem(x))
        return self.head(y * chosen) + chosen.sum((1, 2, 3), keepdim=True)


def test_what_an_opaque_module_draws_is_compared_with_the_same_draw() -> None:
    model, x = Routed().eval(), torch.randn(2, 3, 12, 12)
    pruned = fxprune.compile(model, x, 0.3)
    assert [row.name for row in fxprune.report(pruned).opaque] == ["gate"]
    assert fxprune.report(pruned).proof is not None


class Padded(nn.Module):
    """Tokens, some of them padding, through torch's own encoder."""

    def __init__(self, *, nested: bool, stem: int = 24, hidden: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Linear(8, stem), nn.ReLU(), nn.Linear(stem, 16))
        layer = nn.TransformerEncoderLayer(16, 4, hidden, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.stem(x), src_key_padding_mask=padding))


def padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(lengths))
    x = torch.randn(len(lengths), max(lengths), 8, generator=generator)
    return x, torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("nested", [True, False])
def test_an_encoder_that_reads_what_its_layers_hold_stays_whole(nested: bool) -> None:
    """Its way depends on what the layers hold, such as ``self_attn.batch_first``, and not only on the data."""
    model = Padded(nested=nested).eval()
    asked = {"stem.0": 0.5} if nested else {"encoder.layers.0.linear1": 0.5, "encoder.layers.1.linear1": 0.5}
    pruned = fxprune.compile(model, padded([6, 4, 2]), asked)
    report = fxprune.report(pruned)
    assert report.proof is not None
    assert [row.name for row in report.opaque] == ["encoder"] * nested
    assert all("enable_nested_tensor=False" in row.reason for row in report.opaque)
    narrow = (Padded(nested=True, stem=12) if nested else Padded(nested=False, hidden=16)).eval()
    narrow.load_state_dict(pruned.state_dict())
    for inputs in (padded([6, 4, 2]), padded([3, 7, 5, 1])):
        torch.testing.assert_close(pruned(*inputs), narrow(*inputs))
        with torch.no_grad():
            torch.testing.assert_close(pruned(*inputs), narrow(*inputs))
