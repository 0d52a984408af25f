"""A kept class is the model's own, with other numbers, and answers as the proven graph does."""

from __future__ import annotations

import collections
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import fxprune
from fxprune.errors import PlanError
from tests.nets.oracles import masked


class Attention(nn.Module):
    """Heads by attributes of its own, the hidden size by a configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.heads
        self.head_dim = config.hidden // config.heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden)
        self.out = nn.Linear(config.hidden, config.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, steps, _ = x.shape
        q, k, v = self.qkv(x).view(rows, steps, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(rows, steps, self.num_heads * self.head_dim))


class Blocks(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.into = nn.Linear(6, config.hidden)
        self.attention = nn.ModuleList(Attention(config) for _ in range(2))
        self.norm = nn.LayerNorm(config.hidden)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden, config.inner), nn.GELU(), nn.Linear(config.inner, config.hidden)
        )
        self.head = nn.Linear(config.hidden, 5)

    @property
    def width(self) -> int:
        return self.head.in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.into(x)
        for layer in self.attention:
            x = x + layer(x)
        return self.head(x + self.mlp(self.norm(x)))


class Flat(nn.Module):
    """The width of ``b`` stands in the code; that of ``a`` nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 1), nn.Linear(12 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu()).relu().view(-1, 12 * 16))


class Scaled(nn.Module):
    """The forward computes a scale from the width of ``a``, which is therefore none that may change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        return self.c(functional.gelu(self.b(x * x.size(-1) ** -0.5)))


def graph_form(model: nn.Module, sample: Any, kept: nn.Module) -> nn.Module:
    plan = fxprune.report(kept).plan
    assert plan is not None
    return fxprune.apply(model, sample, plan, verify=False)


def test_a_resnet_keeps_its_class_and_its_hooks() -> None:
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.feature_extraction import create_feature_extractor

    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    pruned: Any = fxprune.compile(model, x, 0.5, keep_class=True, verify=False)
    graph = graph_form(model, x, pruned)
    assert type(pruned) is type(model)
    assert pruned.layer1[0].conv1.out_channels == pruned.layer1[0].conv1.weight.shape[0] < 64
    torch.testing.assert_close(pruned(x), graph(x), rtol=0, atol=0)
    seen: list[torch.Size] = []
    pruned.layer4[-1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    pruned(x)
    assert seen == [torch.Size((2, pruned.fc.in_features, 1, 1))]
    assert IntermediateLayerGetter(pruned, {"layer4": "out"})(x)["out"].shape == seen[0]
    assert create_feature_extractor(pruned, ["layer4"])(x)["layer4"].shape == seen[0]


class Staged(nn.Module):
    """Numbers that the forward does not read, and a table of the stages, one of whose columns is no width."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 64
        self.feature_info = [{"num_chs": n, "reduction": r} for n, r in ((16, 1), (32, 16), (64, 32))]
        self.stages = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 64, 1))
        self.fc = nn.Linear(self.num_features, 5)

    def reset_classifier(self, classes: int) -> None:
        self.fc = nn.Linear(self.num_features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stages(x).mean((2, 3)))


def test_numbers_that_no_forward_reads_follow_if_only_one_width_fits() -> None:
    x = torch.randn(2, 3, 4, 4)
    shares = {"stages.0": 0.25, "stages.1": 0.5, "stages.2": 0.25}
    pruned: Any = fxprune.compile(Staged().eval(), x, shares, keep_class=True)
    assert pruned.num_features == 48
    assert [tuple(row.values()) for row in pruned.feature_info] == [(12, 1), (16, 16), (48, 32)]
    pruned.reset_classifier(3)
    assert pruned(x).shape == (2, 3)


class Located(Staged):
    """A table that names parts, where heights and other layers have the sizes of the parts that are narrowed."""

    def __init__(self) -> None:
        super().__init__()
        rows = ((16, 16, "stages.0"), (32, 16, "stages.1"), (64, 8, "stages.2"))
        self.feature_info = [{"num_chs": n, "reduction": r, "module": path} for n, r, path in rows]
        self.before = nn.Conv2d(3, 16, 1)
        self.back = nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.back(self.before(x)))


def test_a_row_that_names_a_part_follows_this_part() -> None:
    shares = {"stages.0": 0.25, "stages.1": 0.5, "stages.2": 0.25, "before": 0.75}
    pruned: Any = fxprune.compile(Located().eval(), torch.randn(2, 3, 16, 64), shares, keep_class=True)
    assert pruned.before.out_channels == 4
    assert [tuple(row.values())[:2] for row in pruned.feature_info] == [(12, 16), (16, 16), (48, 8)]


def test_of_several_widths_the_last_layer_has_that_of_the_number_of_features() -> None:
    model: Any = Staged().eval()
    model.stages[1], model.stages[2] = nn.Conv2d(16, 64, 1), nn.Conv2d(64, 64, 1)
    shares = {"stages.1": 0.5, "stages.2": 0.25}
    pruned: Any = fxprune.compile(model, torch.randn(2, 3, 4, 4), shares, keep_class=True)
    assert (pruned.stages[1].out_channels, pruned.num_features) == (32, 48)
    pruned.reset_classifier(3)
    assert pruned(torch.randn(2, 3, 4, 4)).shape == (2, 3)


def test_numbers_follow_though_another_that_seems_to_fit_is_read() -> None:
    class Padded(Staged):
        def __init__(self) -> None:
            super().__init__()
            self.least = 64  # compared with a height, and no width

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if x.shape[2] >= self.least else x * 2)

    shares = {"stages.1": 0.5, "stages.2": 0.25}
    pruned: Any = fxprune.compile(Padded().eval(), torch.randn(2, 3, 50, 4), shares, keep_class=True)
    assert (pruned.least, pruned.num_features) == (64, 48)


class Headed(nn.Module):
    """A head with a layer before its classifier, and rows of widths of stages that pass on others as well."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features, self.widths, self.kernels = 32, (16, 32), (1, 1)
        self.stages = nn.ModuleList(Widened(*pair) for pair in ((3, 16), (16, 32)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in self.widths)
        self.head = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = norm(stage(x))
        return self.head(x.mean((2, 3)))


class Widened(nn.Module):
    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.wide, self.back = nn.Conv2d(given, 32, 1), nn.Conv2d(32, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(self.wide(x).relu())


def test_numbers_follow_what_a_head_reads_and_rows_the_parts_at_their_places() -> None:
    shares = {"stages.0.back": 0.25, "stages.1.back": 0.75, "stages.0.wide": 0.5, "stages.1.wide": 0.5}
    pruned: Any = fxprune.compile(Headed().eval(), torch.randn(2, 3, 4, 4), shares, keep_class=True)
    assert [norm.num_features for norm in pruned.norms] == [12, 8]
    assert (pruned.num_features, pruned.widths, pruned.kernels) == (8, (12, 8), (1, 1))


class Implicit(nn.Module):
    """Attention whose scale is a default that follows the width."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 2, 8
        self.qkv, self.out = nn.Linear(6, 48), nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(mixed.reshape(*x.shape[:2], self.heads * self.width))


def test_a_default_that_follows_a_width_holds_it() -> None:
    model, x = Implicit().eval(), torch.randn(2, 5, 6)
    pruned: Any = fxprune.compile(model, x, 0.2, keep_class=True, round_to=1)
    assert pruned.heads == 1
    assert pruned.width == 8


class Chain(nn.Module):
    """The new width of one layer is the old width of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Named(a, b) for a, b in ((6, 32), (32, 16), (16, 8), (8, 4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Named(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.into, self.out = into, out
        self.weight = nn.Parameter(torch.randn(out, into))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight.reshape(self.out, -1))


def test_a_new_width_that_is_anothers_old_one_is_not_changed_again() -> None:
    shares = {"layers.0*": 0.5, "layers.1*": 0.5, "layers.2*": 0.5}
    pruned: Any = fxprune.compile(Chain().eval(), torch.randn(2, 6), shares, keep_class=True)
    assert [layer.out for layer in pruned.layers] == [16, 8, 4, 4]


def test_attributes_and_the_configuration_say_the_new_sizes() -> None:
    torch.manual_seed(0)
    model, x = Blocks(SimpleNamespace(hidden=24, heads=4, inner=32)).eval(), torch.randn(2, 5, 6)
    pruned: Any = fxprune.compile(model, x, 0.4, keep_class=True, alike="equal", residual="inner", round_to=1)
    assert type(pruned) is Blocks
    assert pruned.mlp[0].out_features < 32
    for layer in pruned.attention:
        assert layer.num_heads * layer.head_dim * 3 == layer.qkv.out_features
    torch.testing.assert_close(pruned(x), graph_form(model, x, pruned)(x), rtol=0, atol=0)
    assert model.config.inner == 32, "the caller's configuration is only read"


def test_a_configuration_that_fits_builds_the_pruned_network() -> None:
    torch.manual_seed(0)
    model, x = Blocks(SimpleNamespace(hidden=24, heads=4, inner=32)).eval(), torch.randn(2, 5, 6)
    pruned: Any = fxprune.compile(model, x, {"mlp.0": 0.5}, keep_class=True)
    assert pruned.config.inner == 16
    assert "inner 32 -> 16" in "".join(fxprune.report(pruned).notes)
    built = Blocks(pruned.config).eval()
    built.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(built(x), pruned(x), rtol=0, atol=0)


class Factored(nn.Module):
    """Two stages, each with an inner width that is the same multiple of its own; one that is twice it in the code."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        widths = [(w, int(config.factor * w)) for w in config.widths]
        self.stages = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, a)) for a, b in widths))
        self.between, last = nn.Linear(*config.widths), config.widths[1]
        self.head = nn.Sequential(nn.Linear(last, 2 * last), nn.ReLU(), nn.Linear(2 * last, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages[1](self.between(self.stages[0](x))))


def test_a_factor_determines_the_same_share_of_several_widths() -> None:
    model, x = Factored(SimpleNamespace(factor=4.0, widths=[8, 16])).eval(), torch.randn(2, 8)
    pruned: Any = fxprune.compile(model, x, {"stages.*.0": 0.5}, keep_class=True)
    assert "factor 4.0 -> 2.0" in fxprune.report(pruned).notes[-1]
    built = Factored(pruned.config).eval()
    built.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(built(x), pruned(x), rtol=0, atol=0)


def test_a_width_that_no_field_determines_is_named() -> None:
    model, x = Factored(SimpleNamespace(factor=4.0, widths=[8, 16])).eval(), torch.randn(2, 8)
    pruned: Any = fxprune.compile(model, x, {"head.0": 0.5}, keep_class=True)
    words = "none makes dim 0 of head.0.weight 16 wide, which the class makes of widths.1 (2 more"
    assert words in fxprune.report(pruned).notes[-1]


@pytest.mark.parametrize(("model", "shape", "layer"), [(Flat(), (2, 3, 4, 4), "b"), (Scaled(), (2, 6), "a")])
def test_a_width_that_the_code_fixes_stays(model: Any, shape: tuple[int, ...], layer: str) -> None:
    model, x = model.eval(), torch.randn(shape)
    pruned: Any = fxprune.compile(model, x, 0.3, keep_class=True, round_to=1, scope="uniform")
    assert len(pruned.get_submodule(layer).weight) == len(model.get_submodule(layer).weight)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    pins = [pin for pin in fxprune.report(pruned).pinned if "keep_class" in pin.reason]
    assert [pin.name.split(".")[0] for pin in pins] == [layer]
    assert "test_keep_class.py" in pins[0].where


class Sinusoid(nn.Module):
    """Frequencies are made of the width, so that another width has other ones: ``b`` alone may change."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.sizes = 16, collections.namedtuple("Sizes", "inner outer")(24, 3)
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.size(1))[:, None] * torch.exp(torch.arange(0, self.width, 2) / -self.width)
        table = torch.zeros(x.size(1), self.width)
        table[:, 0::2], table[:, 1::2] = angles.sin(), angles.double().cos()
        x = self.b((self.a(x) + table).relu())
        return self.c(x.relu().reshape(-1, x.size(1), self.sizes.inner))


def test_values_computed_from_a_width_hold_it_and_a_named_tuple_may_set_one() -> None:
    model, x = Sinusoid().eval(), torch.randn(2, 5, 6)
    pruned: Any = fxprune.compile(model, x, 0.3, keep_class=True, round_to=1, scope="uniform")
    assert pruned.width == 16
    assert pruned.sizes.inner == len(pruned.b.weight) < 24
    assert type(pruned.sizes) is type(model.sizes)


def test_a_given_plan_that_the_class_cannot_follow_is_refused() -> None:
    model, x = Flat().eval(), torch.randn(2, 3, 4, 4)
    plan = fxprune.plan(model, x, {"b": 0.5})
    fxprune.apply(model, x, plan)
    with pytest.raises(PlanError, match="Flat"):
        fxprune.apply(model, x, plan, keep_class=True)


def test_values_changed_by_recovery_are_in_the_class() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    data = [torch.randn(16, 6) for _ in range(4)]
    both = [fxprune.compile(model, data[0], 0.4, calibration=data, keep_class=keep) for keep in (False, True)]
    assert type(both[1]) is nn.Sequential
    torch.testing.assert_close(both[1](data[0]), both[0](data[0]), rtol=0, atol=0)


def test_a_language_model_is_saved_loaded_and_generates(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3}
    config = transformers.LlamaConfig(vocab_size=97, **sizes, **heads)
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.randint(0, 97, (2, 8))
    sample = {"input_ids": ids, "use_cache": False}
    pruned: Any = fxprune.compile(model, sample, 0.2, keep_class=True, alike="equal", residual="inner", verify=False)
    assert "intermediate_size 96 ->" in "".join(fxprune.report(pruned).notes)
    pruned.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**sample).logits, pruned(**sample).logits, rtol=0, atol=0)
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(loaded.generate(ids, use_cache=True, **how), pruned.generate(ids, use_cache=False, **how))


class AskedElsewhere(nn.Module):
    """A map gets its shape back from that of another one, which no attribute says."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.free = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 64, 1)
        self.last = nn.Conv2d(64, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        n, channels, height, width = h.shape
        rows = self.inner(h).flatten(2).tanh()
        out: torch.Tensor = self.last(self.free(rows.view(n, channels, height, width)).relu())
        return out


def test_only_widths_that_a_call_fixes_are_held() -> None:
    torch.manual_seed(0)
    ratios = {"first": 0.25, "inner": 0.5, "free": 0.5}
    pruned: Any = fxprune.compile(AskedElsewhere().eval(), torch.randn(1, 3, 8, 8), ratios, keep_class=True)
    assert [layer.out_channels for layer in (pruned.first, pruned.inner, pruned.free)] == [32, 32, 32]


class LastSumUnread(nn.Module):
    """Residual layers whose outputs also meet in a sum; the last residual is computed for nothing."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(6, 3)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.side = nn.ModuleList(nn.Linear(width, 6) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, total = self.first(x), 0
        for inner, side in zip(self.inner, self.side, strict=True):
            total = total + side(x)
            x = x + inner(x).relu()
        return self.last(total)


def test_unused_results_are_as_wide_as_the_rest() -> None:
    torch.manual_seed(0)
    model, x = LastSumUnread().eval(), torch.randn(2, 5)
    kept = fxprune.remove(model, x, {"first": [1, 4, 6]}, keep_class=True)
    narrow = LastSumUnread(5).eval()
    narrow.load_state_dict(kept.state_dict())
    assert type(kept) is LastSumUnread
    torch.testing.assert_close(kept(x), narrow(x))
    torch.testing.assert_close(fxprune.remove(model, x, {"first": [1, 4, 6]})(x), narrow(x))


def test_attributes_that_call_plain_weights_quantised_are_named() -> None:
    model = Blocks(SimpleNamespace(hidden=16, heads=4, inner=24)).eval()
    model.file_quantizer = SimpleNamespace(bits=4)
    model.config.quantization_config = {"bits": 4}
    pruned = fxprune.compile(model, torch.randn(2, 5, 6), 0.2, keep_class=True)
    (note,) = (note for note in fxprune.report(pruned).notes if "quantised" in note)
    assert note.endswith("write model.file_quantizer = model.config.quantization_config = None first")


class Gated(nn.Module):
    """A split whose three sizes stand in one tuple, none of which can change alone."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.inner, self.out = nn.Linear(6, 40), nn.Linear(8, 8), nn.Linear(20, 6)
        self.sizes = (20, 12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, left, right = torch.split(self.into(x), self.sizes, dim=-1)
        return self.out(gate.sigmoid() * torch.cat([left, self.inner(right)], -1))


def test_the_sizes_of_a_split_change_together() -> None:
    model, x = Gated().eval(), torch.randn(3, 6)
    pruned: Any = fxprune.compile(model, x, 0.5, keep_class=True)
    assert sum(pruned.sizes) == pruned.into.out_features < 40
    torch.testing.assert_close(pruned(x), graph_form(model, x, pruned)(x), rtol=0, atol=0)


def test_a_graph_that_fails_while_it_learns_from_one_row_is_not_compared_with_what_it_wrote_before() -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)]
    model, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)).eval(), torch.randn(1, 3, 6, 6)
    pruned: Any = fxprune.compile(model, x, 0.5, keep_class=True)
    assert pruned[0].out_channels < 8
    assert pruned.train()(torch.randn(2, 3, 6, 6)).shape == (2, 4)


class Cached(nn.Module):
    """A buffer that a forward makes anew when the number of tokens changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("places", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.places.shape[0] != x.shape[1]:
            self.places = torch.arange(x.shape[1]) / x.shape[1]
        return self.last(self.first(x) * self.places[:, None])


def test_a_cache_that_the_class_fills_is_no_difference() -> None:
    model, x = Cached().eval(), torch.randn(2, 5, 8)
    pruned: Any = fxprune.compile(model, x, 0.5, keep_class=True)
    assert type(pruned) is Cached
    assert pruned.first.out_features < 16
    assert pruned(torch.randn(3, 7, 8)).shape == (3, 7, 4)


class Literal(nn.Module):
    """Blocks whose widths are in the code, and one of free width."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(9))
        self.free = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        with torch.no_grad():
            for number, block in enumerate(self.blocks):
                block[0].weight.mul_(1e-4 * 2**number)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block[1](block[0](x).view(-1, 8))
        return self.free(x)


def test_as_many_plans_as_widths_that_the_class_fixes() -> None:
    pruned: Any = fxprune.compile(
        Literal().eval(), torch.randn(2, 8), 0.02, criterion="magnitude", keep_class=True, residual="inner", round_to=1
    )
    assert all(block[0].out_features == 8 for block in pruned.blocks)
    assert pruned.free[0].out_features < 8


class Matching(nn.Module):
    """Multiplies by the number of rows where its layer is as wide as it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = h * h.shape[0] if h.shape[1] == 16 else h * 5
        return self.last(self.inner(h))


def test_a_branch_with_a_number_of_its_own_holds_the_width_that_decides() -> None:
    torch.manual_seed(0)
    model = Matching().eval()
    kept = fxprune.compile(model, torch.randn(3, 6), 0.2, keep_class=True, recover=None)
    assert kept.first.out_features == 16
    assert kept.inner.out_features < 24
    plan = fxprune.report(kept).plan
    assert plan is not None
    x = torch.randn(5, 6)
    torch.testing.assert_close(kept(x), masked(model, plan.keep)(x))


class Deciding(nn.Module):
    """Takes a branch whose code has the old width, at sums that no other values of the sample reach."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self.first, self.last, self.above = nn.Linear(8, 16), nn.Linear(16, 4), above

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        if x.sum() > self.above:
            h = h.reshape(-1, 16)
        return self.last(h)


def test_a_class_whose_values_lead_to_code_that_no_graph_shows_is_refused() -> None:
    x = torch.full((2, 8), 0.01)
    with pytest.raises(PlanError, match=r"test_keep_class.py:\d+ to code that no graph shows"):
        fxprune.compile(Deciding(1e6).eval(), x, 0.5, keep_class=True, round_to=1)


def test_code_for_other_sizes_is_noted() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x).relu()
            return self.last(h.mean(1) if x.shape[1] > 100 else h.sum(1))

    kept = fxprune.compile(Long().eval(), torch.randn(2, 5, 8), 0.5, keep_class=True, round_to=1)
    assert any("only calls with other sizes or arguments" in note for note in fxprune.report(kept).notes)
