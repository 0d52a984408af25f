"""In-place ops, constants made while tracing, composite functions, dropout, grad switches."""

from __future__ import annotations

import math
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fxprune
from tests.capture.compiled import assert_equal_copy, captured, image, pruned, vector


class Mlp(nn.Module):
    """Two layers; subclasses write the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)


class InPlace(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        hidden += 1
        hidden.mul_(0.5).relu_()
        view = hidden[:, 4:8]
        view.add_(2)
        hidden[:, 0] = 3
        hidden[0] += 1
        return self.b(F.relu(hidden, inplace=True))


def test_in_place_ops_and_writes_through_views() -> None:
    pruned(InPlace(), vector())
    assert_equal_copy(InPlace(), vector(), vector(5))


def test_in_place_on_the_input_reaches_the_caller_as_it_did() -> None:
    class Clobbering(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.mul_(2)
            return self.b(self.a(x).relu())

    model, sample = Clobbering().eval(), vector()
    bits = sample.clone()
    result = fxprune.compile(model, sample, 0.3)
    assert torch.equal(sample, bits)
    result(sample)
    assert torch.equal(sample, bits * 2)


class Constants(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        ramp = torch.linspace(0, 1, 16)
        table = torch.tensor([[1.0, 2.0]] * 8).reshape(-1)
        eye = torch.eye(16)
        buffer = torch.zeros(16)
        buffer[::2] = ramp[::2]
        return self.b(hidden * ramp + table + hidden @ eye + buffer)


def test_constants_made_while_tracing() -> None:
    result = pruned(Constants(), vector())
    assert not [name for name in result.state_dict() if "constant" in name]
    assert_equal_copy(Constants(), vector(), vector(5))


def test_a_constant_that_the_forward_writes_to_is_new_in_every_call() -> None:
    class Written(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = torch.zeros(16)
            total += self.a(x).mean(0)
            return self.b(total)[None].expand(len(x), -1)

    result = pruned(Written(), vector())
    x = vector(3)
    assert torch.equal(result(x), result(x))


class Positions(nn.Module):
    """A table in a plain attribute, one made anew in each call, one in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.table = torch.randn(32, 16)
        self.tables = [torch.randn(16), {"deep": torch.randn(16)}]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        position = torch.arange(length, dtype=x.dtype)[:, None]
        frequency = torch.exp(torch.arange(0, 16, 2, dtype=x.dtype) * (-math.log(10000.0) / 16))
        table = torch.zeros(length, 16, dtype=x.dtype)
        table[:, 0::2] = torch.sin(position * frequency)
        table[:, 1::2] = torch.cos(position * frequency)
        hidden = self.a(x) + self.table[:length] + self.tables[0] + self.tables[1]["deep"]
        return self.b((hidden + table).relu())


def test_position_tables() -> None:
    pruned(Positions(), torch.randn(2, 6, 8))
    assert_equal_copy(Positions(), torch.randn(2, 6, 8), torch.randn(3, 6, 8))


@torch.fx.wrap
def wrapped_for_fx(x: torch.Tensor) -> torch.Tensor:
    """A function that a symbolic trace would keep as one call."""
    return x.reshape(-1, 4, 4).transpose(1, 2).reshape(-1, 16)


def test_wrapped_functions_are_entered() -> None:
    class Shuffled(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(wrapped_for_fx(self.a(x)).relu())

    assert "wrapped_for_fx" not in str(captured(Shuffled(), vector()).graph)
    pruned(Shuffled(), vector())


def test_composite_functions_are_entered() -> None:
    class Composite(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.a(x)
            normed = F.normalize(hidden, dim=-1)
            gated = F.glu(torch.cat([hidden, normed], -1))
            soft = F.softmin(gated, dim=-1) + F.tanhshrink(gated) + F.softsign(gated) + F.logsigmoid(gated)
            weights = torch.einsum("bi,bj->bij", soft, soft).softmax(-1)
            return self.b(torch.einsum("bij,bj->bi", weights, gated))

    pruned(Composite(), vector(), ratio=0.0)


JOINED = {
    "block_diag": lambda h, w: h @ torch.block_diag(w, w, w, w),
    "cartesian_prod": lambda h, w: h + torch.cartesian_prod(w[0], w[1]).sum(),
    "broadcast_shapes": lambda h, w: h.expand(torch.broadcast_shapes(h.shape, (1, 16))) * w.sum(),
}


@pytest.mark.parametrize("name", JOINED)
def test_functions_of_any_number_of_arguments_are_called_by_their_own_names(name: str) -> None:
    class Joined(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(JOINED[name](self.a(x).relu(), self.w))

    assert_equal_copy(Joined(), vector(), vector(5))


def test_attention_modules_are_written_out() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.LayerNorm(16), nn.Linear(16, 4)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            return self.last(x + self.attention(y, y, y, need_weights=False)[0])

    result = pruned(Block(), torch.randn(2, 5, 16))
    assert set(result.state_dict()) == set(Block().state_dict())
    assert result.attention.in_proj_weight.shape[0] < 48


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers_of_torch(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 4))
    result = pruned(model, torch.randn(2, 5, 16))
    assert result(torch.randn(3, 7, 16)).shape == (3, 7, 4)


class Dropped(Mlp):
    """Functional dropout in two styles."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.dropout(self.a(x).relu(), 0.5, training=self.training)
        return self.b(F.dropout(hidden, p=0.3, training=self.training))


def test_functional_dropout_works_in_both_modes() -> None:
    result = pruned(Dropped(), vector())
    x = vector(64)
    assert torch.equal(result.eval()(x), result(x))
    result.train()
    assert not torch.equal(result(x), result(x))
    result.eval()
    assert torch.equal(result(x), result(x))


class AuxiliaryHead(Mlp):
    """Another output while training, as GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        hidden = self.a(x).relu()
        return (self.b(hidden), self.extra(hidden)) if self.training else self.b(hidden)


def test_an_auxiliary_head_survives() -> None:
    result = pruned(AuxiliaryHead(), vector())
    assert result(vector()).shape == (2, 4)
    first, second = result.train()(vector())
    assert (first.shape, second.shape) == ((2, 4), (2, 3))
    assert set(result.state_dict()) == set(AuxiliaryHead().state_dict())


class StochasticDepth(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        if self.training:
            noise = torch.empty(hidden.shape[0], 1).bernoulli_(0.5)
            return self.b(hidden + hidden.relu() * noise / 0.5)
        return self.b(hidden + hidden.relu())


def test_stochastic_depth_survives() -> None:
    result = pruned(StochasticDepth(), vector())
    x = vector(64)
    assert torch.equal(result(x), result(x))
    assert not torch.equal(result.train()(x), result(x))


class Detached(Mlp):
    """The first layer gets no gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            hidden = self.a(x).relu_()
            hidden = hidden + 1
        with torch.autocast("cpu", enabled=False), torch.enable_grad():
            return self.b(hidden * 2)


@torch.no_grad()
def frozen(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x)


class Decorated(Mlp):
    """The second layer gets no gradient, by a decorator; the first gets one on another way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        return frozen(self.b, hidden) + hidden.sum(1, keepdim=True)


@pytest.mark.parametrize("kind", [Detached, Decorated])
def test_where_the_forward_switches_gradients_off_there_are_none(kind: type[Mlp]) -> None:
    model = kind()
    result = pruned(model, vector())
    for network in (model, result):
        network(vector()).sum().backward()
    expected = {name: p.grad is not None for name, p in model.named_parameters()}
    assert {name: p.grad is not None for name, p in result.named_parameters()} == expected
    assert list(expected.values()).count(False) == 2


def test_the_caller_may_have_gradients_off() -> None:
    with torch.no_grad():
        result = fxprune.compile(Detached().eval(), vector(), 0.3)
    assert "detach" in result.code
    with torch.no_grad():
        result = fxprune.compile(Indirect().eval(), vector(), 0.3)
    assert "detach" not in result.code


class Autocast(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.a(x)
        return self.b(hidden.float())


def test_autocast_inside_the_forward_is_refused_with_its_place() -> None:
    with pytest.raises(fxprune.FxpruneError, match=r"test_ops.py:\d+: .*autocast"):
        fxprune.compile(Autocast().eval(), vector(), 0.3)


def test_autocast_around_the_compilation_changes_nothing() -> None:
    model, sample = Dropped().eval(), vector()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fxprune.compile(model, sample, 0.3)
        assert torch.is_autocast_enabled("cpu")
    outside = fxprune.compile(model, sample, 0.3)
    assert inside.code == outside.code
    assert fxprune.report(inside).plan == fxprune.report(outside).plan


def test_checkpointed_blocks() -> None:
    class Checkpointed(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(checkpoint(lambda y: self.a(y).relu(), x, use_reentrant=False))

    pruned(Checkpointed(), vector())


class Indirect(Mlp):
    """Closures, bound methods and lambdas."""

    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: x * torch.sigmoid(x)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.a(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = [self.body, self.b]
        for step in steps:
            x = step(x)
        return x


def test_closures_methods_and_lambdas() -> None:
    pruned(Indirect(), vector())


def test_a_forward_put_on_an_instance() -> None:
    def turned(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias).flip(1) * 2

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    model[2].forward = types.MethodType(turned, model[2])
    result = pruned(model, vector())
    assert "flip" in result.code


def test_calling_forward_directly() -> None:
    class Direct(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b.forward(self.a.forward(x).relu())

    pruned(Direct(), vector())


def test_operators_in_all_their_spellings() -> None:
    class Spelled(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            h = 1 - h + 2 * h / 3 - (1 / (2 + h.abs())) ** 2 + 2 ** (-h.abs()) + -h
            h = torch.where((h > 0) & (h <= 2) | ~(h != h), h, -h) + (h % 2) + h // 3
            h = h @ torch.eye(16) + torch.add(h, h, alpha=0.5) + torch.rsub(h.sub(1), 2) + torch.true_divide(h, 4)
            return self.b(torch.Tensor.relu(h))

    pruned(Spelled(), vector(), ratio=0.0)
    assert_equal_copy(Spelled(), vector(), vector(5))


def test_images_through_a_larger_net() -> None:
    class Unet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.middle = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, stride=2, padding=1)
            self.up, self.last = nn.ConvTranspose2d(16, 12, 2, stride=2), nn.Conv2d(24, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skip = self.down(x).relu()
            return self.last(torch.cat([skip, self.up(self.middle(skip).relu())], 1))

    result = pruned(Unet(), image())
    assert result(image(3, 16)).shape == (3, 5, 16, 16)


class Weighted(nn.Module):
    """Attention as it comes, whose averaged weights nobody reads; a dropout that nobody reads draws all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        F.dropout(h, 0.5, training=True)
        return self.last(h + self.attention(h, h, h)[0])


def test_unread_results_without_effects_are_left_out() -> None:
    nodes = list(captured(Weighted().eval(), torch.randn(5, 2, 8)).graph.nodes)
    assert [n.name for n in nodes if not n.users] == ["dropout", "output"]
    assert not [n for n in nodes if "mean" in n.name]


class Filling(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.two = torch.tensor(2.0)
        self.register_buffer("three", torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        h = h + h.new_full((1, 16), self.two) * torch.full_like(h, self.three)
        h = h + torch.full_like(input=h, fill_value=self.two) - h.new_full(size=(h.shape[0], 1), fill_value=self.three)
        h = (
            h * h.new_full((1, 16), self.two, dtype=h.dtype)
            + torch.full_like(h, self.three, dtype=torch.float64).float()
        )
        h = h + torch.full((x.shape[0], 1), self.two) - torch.full(size=(16,), fill_value=self.three[None][0])
        h = h * torch.full((1,), self.two.long(), device=x.device) + torch.full((1, 16), self.two > 1).double()
        return self.b((h + h.new_full((1, 16), 2, device=x.device)).to(x.dtype))


def test_tensors_of_one_value_that_is_a_tensor() -> None:
    assert not fxprune.report(pruned(Filling(), vector())).opaque
    assert_equal_copy(Filling(), vector(), vector(5))


class Windowed(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x)[:, :, None].expand(-1, -1, 4).unfold(dimension=-1, size=2, step=2).sum((2, 3)))


def test_unfold_by_keywords() -> None:
    assert fxprune.report(pruned(Windowed(), vector())).opaque == ()


class LastChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).permute(0, 2, 3, 1)
        return self.b(y.view(-1, y.size(-1)))


def test_a_view_that_channels_last_allows() -> None:
    sample = image().to(memory_format=torch.channels_last)
    pruned(LastChannels(), sample)
    assert_equal_copy(LastChannels(), sample, image(3).to(memory_format=torch.channels_last))
