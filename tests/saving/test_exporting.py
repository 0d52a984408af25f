"""Exported files stand alone, equal the network they were made from, and are not announced where they do not."""

from __future__ import annotations

import copy
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import ExportError, MissingDependencyError, OptionError, SampleError
from fxprune.saving import formats
from fxprune.saving.formats import FORMATS
from tests.killing import can_fork, in_child

FILES = {"pt2": "net.pt2", "onnx": "net.onnx", "source": "net", "openvino": "net.xml", "aoti": "net.aoti.pt2"}
# The compiler takes as long as all the others together.
QUICK = [pytest.param(name, marks=pytest.mark.deep) if name == "aoti" else name for name in FORMATS]


class Image(nn.Module):
    """Takes any batch and any resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.tail = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.tail(self.body(x))
        return {"logits": self.head(x.mean((2, 3))), "peak": x.amax((2, 3))}


class Flat(nn.Module):
    """Takes any batch and one resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Tokens(nn.Module):
    """Takes integers and a keyword, one batch of a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.mix = nn.Linear(8, 12)
        self.out = nn.Linear(12, 3)
        self.position = nn.Parameter(torch.randn(2, 5, 8))

    def forward(self, tokens: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.mix(self.embed(tokens) + self.position))) * scale


def pruned(build: Callable[[], nn.Module], sample: Any) -> Any:
    torch.manual_seed(0)
    return fxprune.compile(build().eval(), sample, 0.3, verify=False)


def image() -> Any:
    return pruned(Image, torch.randn(1, 3, 32, 32))


def need(format_: str) -> None:
    if format_ == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)
    if format_ == "openvino":
        pytest.importorskip("openvino")
    if format_ == "aoti" and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize("format_", QUICK)
def test_the_file_equals_the_network_at_other_sizes(format_: str, tmp_path: Path) -> None:
    need(format_)
    network = image()
    before = copy.deepcopy(network.state_dict())
    result = fxprune.export(network, tmp_path / FILES[format_], format_)
    assert result.dynamic == ("batch", "resolution")
    assert result.batch_sizes == (2, 3)
    assert result.resolutions == ("32x32", "64x64")
    assert result.relative_error <= result.tolerance == 1e-4
    assert FILES[format_] in str(result)
    beside = {"net.bin"} if format_ == "openvino" else set()
    assert {file.name for file in tmp_path.iterdir()} == {FILES[format_], *beside}
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    run = FORMATS[format_].open(tmp_path / FILES[format_])
    for shape in ((1, 3, 32, 32), (5, 3, 40, 24)):
        x = torch.randn(shape)
        answer = run(fxprune.saving.comparing.Sample.from_input(x))
        expected = network(x)
        torch.testing.assert_close(answer["output 0"], expected["logits"])
        torch.testing.assert_close(answer["output 1"], expected["peak"])


def test_pt2_keeps_the_structure_of_the_output(tmp_path: Path) -> None:
    network = image()
    fxprune.export(network, tmp_path / "net.pt2")
    x = torch.randn(2, 3, 32, 32)
    assert set(torch.export.load(tmp_path / "net.pt2").module()(x)) == {"logits", "peak"}


@pytest.mark.parametrize("format_", QUICK)
def test_a_resolution_that_cannot_change(format_: str, tmp_path: Path) -> None:
    need(format_)
    result = fxprune.export(pruned(Flat, torch.randn(2, 3, 8, 8)), tmp_path / FILES[format_], format_)
    assert result.dynamic == ("batch",)
    assert len(result.batch_sizes) == 2
    assert result.resolutions == ("8x8",)


@pytest.mark.parametrize("format_", QUICK)
def test_integers_keywords_and_a_fixed_batch(format_: str, tmp_path: Path) -> None:
    need(format_)
    sample = {"tokens": torch.randint(0, 9, (2, 5)), "scale": torch.tensor(2.0)}
    result = fxprune.export(pruned(Tokens, sample), tmp_path / FILES[format_], format_)
    assert result.dynamic == ()
    assert result.batch_sizes == (2,)
    assert "every size is fixed" in str(result)


class Series(nn.Module):
    """Takes any batch and two lengths, each any."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3))
        self.right = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor, *, tokens: torch.Tensor) -> torch.Tensor:
        return self.right(tokens) @ self.left(x)


@pytest.mark.parametrize("format_", QUICK)
def test_lengths_that_the_network_leaves_free_are_free(format_: str, tmp_path: Path) -> None:
    need(format_)
    network = pruned(Series, {"x": torch.randn(1, 3, 20), "tokens": torch.randn(1, 7, 6)})
    result = fxprune.export(network, tmp_path / FILES[format_], format_)
    assert result.dynamic == ("batch", "length")
    run = FORMATS[format_].open(tmp_path / FILES[format_])
    for batch, length, tokens in ((1, 50, 3), (4, 9, 31)):
        inputs = {"x": torch.randn(batch, 3, length), "tokens": torch.randn(batch, tokens, 6)}
        answer = run(fxprune.saving.comparing.Sample.from_input(inputs))
        torch.testing.assert_close(answer["output 0"], network(**inputs))


class Writes(nn.Module):
    """Writes into the list that it is given; the branch on values keeps it as one call."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(6, 3, 1) for _ in range(2))

    def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
        for i, conv in enumerate(self.convs):
            x[i] = conv(x[i])
        strides = torch.tensor([4.0, 8.0])
        return torch.cat([t.flatten(2) * torch.full((1,), strides[i]) for i, t in enumerate(x)], 2)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 6, 3, padding=1)
        self.third, self.head = nn.Conv2d(6, 6, 3, 2, 1), Writes()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.head([x, self.third(x)])


@pytest.mark.parametrize("format_", ["pt2", "onnx"])
def test_a_part_that_writes_into_its_list(format_: str, tmp_path: Path) -> None:
    need(format_)
    network = pruned(Listed, torch.randn(2, 3, 16, 16))
    code = network.code
    assert "batch" in fxprune.export(network, tmp_path / FILES[format_], format_).dynamic
    assert network.code == code


def test_the_suffix_and_the_format_agree(tmp_path: Path) -> None:
    need("onnx")
    network = pruned(Flat, torch.randn(2, 3, 8, 8))
    assert fxprune.export(network, tmp_path / "net.ONNX").format == "onnx"
    assert fxprune.export(network, tmp_path / "net").format == "pt2"
    told = fxprune.export(network, tmp_path / "net.bin", "pt2")
    assert "'.bin' is not its usual suffix, '.pt2'" in str(told)
    with pytest.raises(OptionError, match="net.onnx has the suffix of onnx, but the format is pt2"):
        fxprune.export(network, tmp_path / "net.onnx", "pt2")
    with pytest.raises(OptionError, match="openvino is read from files called .xml"):
        fxprune.export(network, tmp_path / "net", "openvino")
    with pytest.raises(OptionError, match="no format has the suffix '.tflite': end the name in .pt2 or .onnx"):
        fxprune.export(network, tmp_path / "net.tflite")


@can_fork
@pytest.mark.parametrize("format_", QUICK)
@pytest.mark.parametrize("most", [0, 3000])
def test_a_full_disk_is_an_export_error(format_: str, most: int, tmp_path: Path) -> None:
    need(format_)
    resource = pytest.importorskip("resource")
    network = pruned(Flat, torch.randn(2, 3, 8, 8))

    def export_in_little_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with pytest.raises(ExportError):
            fxprune.export(network, tmp_path / FILES[format_], format_)

    assert in_child(export_in_little_space) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="cannot be written"):
        fxprune.export(pruned(Flat, torch.randn(2, 3, 8, 8)), tmp_path / "file" / "net.pt2")


def test_source_needs_torch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = image()
    fxprune.export(network, tmp_path / "net", "source")
    fxprune.export(network, tmp_path / "net", "source")
    assert {file.name for file in (tmp_path / "net").iterdir()} == {
        "model.py",
        "weights.safetensors",
        "manifest.json",
    }
    assert "import fxprune" not in (tmp_path / "net" / "model.py").read_text()


def test_the_eval_graph_is_exported(tmp_path: Path) -> None:
    network = image().train()
    fxprune.export(network, tmp_path / "net.pt2")
    assert network.training
    module = torch.export.load(tmp_path / "net.pt2").module()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(module(x)["logits"], module(x)["logits"])


def test_a_loaded_network_carries_its_sample(tmp_path: Path) -> None:
    fxprune.save(image(), tmp_path / "net")
    result = fxprune.export(fxprune.load(tmp_path / "net"), tmp_path / "net.pt2")
    assert result.resolutions[0] == "32x32"


def test_any_module_with_a_sample(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="pass sample_input"):
        fxprune.export(nn.Linear(3, 4), tmp_path / "net.pt2")
    result = fxprune.export(nn.Linear(3, 4), tmp_path / "net.pt2", sample_input=torch.randn(2, 3))
    assert result.dynamic == ("batch",)


@pytest.mark.parametrize("format_", ["pt2", "source"])
def test_a_file_that_differs_is_not_announced(format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(format_)
    kept_before = tmp_path / "net.pt2"
    kept_before.write_text("old")
    kept, opened = FORMATS[format_], FORMATS[format_].open

    def wrong(file: Path) -> Any:
        run = opened(file)
        return lambda sample: {name: value + 1 for name, value in run(sample).items()}

    monkeypatch.setattr(kept, "open", wrong)
    network = pruned(Flat, torch.randn(2, 3, 8, 8))
    with pytest.raises(ExportError, match="differs"):
        fxprune.export(network, tmp_path / FILES[format_], format_)
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    assert kept_before.read_text() == "old"


class Chooses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if bool(x.mean() > 0) else -x


def test_a_failed_export_gives_the_reason(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 3), Chooses())
    with pytest.raises(ExportError, match="cannot be exported to pt2"):
        fxprune.export(network, tmp_path / "net.pt2", sample_input=torch.randn(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="unknown format 'tflite': choose one of pt2, onnx, source"):
        fxprune.export(image(), tmp_path / "net", "tflite")
    with pytest.raises(ExportError, match="cannot be run on its sample"):
        fxprune.export(image(), tmp_path / "net", sample_input=torch.randn(2, 5))
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"fxprune\[onnx\]"):
        fxprune.export(image(), tmp_path / "net", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_torch_compile_takes_the_result() -> None:
    network = image()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for batch in (2, 3):
        x = torch.randn(batch, 3, 32, 32)
        torch.testing.assert_close(compiled(x)["logits"], network(x)["logits"])
    network.train()
    compiled(torch.randn(2, 3, 32, 32))["logits"].sum().backward()
    assert network.get_parameter("body.0.weight").grad is not None


@pytest.mark.deep
def test_torch_compile_by_its_default_backend() -> None:
    network = image()
    compiled = torch.compile(network)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(compiled(x)["logits"], network(x)["logits"])


@pytest.mark.parametrize(
    ("dynamic", "free", "refused"),
    [
        ((), (), (5, 3, 32, 32)),
        (["batch"], ("batch",), (5, 3, 40, 40)),
        (["resolution"], ("resolution",), (5, 3, 32, 32)),
    ],
)
def test_free_sizes_can_be_chosen(dynamic: Any, free: Any, refused: Any, tmp_path: Path) -> None:
    network = image()
    result = fxprune.export(network, tmp_path / "net.pt2", dynamic=dynamic)
    run = torch.export.load(tmp_path / "net.pt2").module()
    assert result.dynamic == free
    with pytest.raises(AssertionError, match="Guard failed"):
        run(torch.randn(refused))
    shape = (5 if "batch" in free else 1, 3, *((40, 48) if "resolution" in free else (32, 32)))
    x = torch.randn(shape)
    torch.testing.assert_close(run(x), network(x))


def test_a_size_that_cannot_change_is_no_choice(tmp_path: Path) -> None:
    flat = pruned(Flat, torch.randn(1, 3, 8, 8))
    with pytest.raises(ExportError, match="another resolution"):
        fxprune.export(flat, tmp_path / "net.pt2", dynamic=["resolution"])
    with pytest.raises(OptionError, match="'width'"):
        fxprune.export(flat, tmp_path / "net.pt2", dynamic=["width"])


def test_arguments_in_another_order_are_told() -> None:
    network, x = nn.Linear(2, 2), torch.randn(1, 2)
    with pytest.raises(OptionError, match="path must be the name of a file or folder, not a Tensor"):
        fxprune.export(network, x, "net.onnx")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="format must be one of pt2, .*, and a Tensor was given"):
        fxprune.export(network, "net.onnx", x)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="path must be"):
        fxprune.load(3)  # type: ignore[arg-type]


class Ways(nn.Module):
    """Goes another way for some sizes."""

    def __init__(self, asked: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self.asked = asked
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return -y if self.asked(y) else y


@pytest.mark.parametrize(
    ("format_", "asked", "stranger", "free"),
    [
        ("pt2", lambda y: y.shape[0] == 1, (1, 3, 8, 8), {"resolution"}),
        ("pt2", lambda y: y.shape[-1] > 40, (2, 3, 8, 90), {"batch"}),
        ("onnx", lambda y: y.shape[-1] % 4, (2, 3, 8, 12), {"batch"}),
    ],
)
def test_no_file_is_wrong_at_sizes_of_another_branch(
    format_: str, asked: Any, stranger: Any, free: set[str], tmp_path: Path
) -> None:
    need(format_)
    original, x = Ways(asked).eval(), torch.randn(stranger)
    network = fxprune.compile(original, torch.randn(2, 3, 8, 8), 0, verify=False)
    result = fxprune.export(network, tmp_path / FILES[format_], format_)
    assert free <= set(result.dynamic)
    assert "for the sample needs" in str(result)
    run = FORMATS[format_].open(tmp_path / FILES[format_])
    try:
        answer = run(fxprune.saving.comparing.Sample.from_input(x))["output 0"]
    except Exception:  # each runtime has its own
        return
    torch.testing.assert_close(answer, original(x))


def test_no_file_of_a_plain_module_is_wrong_at_the_next_size(tmp_path: Path) -> None:
    need("onnx")
    module = Ways(lambda y: bool(y.shape[-1] % 4)).eval()
    result = fxprune.export(module, tmp_path / "net.onnx", sample_input=torch.randn(2, 3, 8, 8))
    assert result.dynamic == ("batch",)
    assert "the network takes another branch there" in str(result)


class Masked(nn.Module):
    """A mean over the tokens of a mask, gated by one pixel of a second image."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.tokens = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, image: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return self.image(image) * gate


class Mean(Masked):
    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.tokens((tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("build", "sample", "free"),
    [
        (Masked, (torch.randn(2, 3, 8, 8), torch.randn(2, 1, 1, 1)), ("batch", "resolution")),
        (Mean, (torch.randn(2, 7, 6), torch.ones(2, 7)), ("batch", "length")),
    ],
)
def test_gates_of_one_pixel_and_masks_leave_sizes_free(build: Any, sample: Any, free: Any, tmp_path: Path) -> None:
    need("onnx")
    assert fxprune.export(pruned(build, sample), tmp_path / "net.onnx").dynamic == free


class Keywords(Masked):
    def forward(self, x: torch.Tensor, scale: float = 2.0, **more: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.image(x) - scale * self.image(more["y"])


@pytest.mark.parametrize("format_", ["pt2", "onnx"])
def test_keywords_in_any_order_are_handed_over_by_name(format_: str, tmp_path: Path) -> None:
    need(format_)
    original, inputs = Keywords().eval(), {"y": torch.randn(2, 3, 8, 8), "x": torch.randn(2, 3, 8, 8)}
    network = fxprune.compile(original, inputs, 0, verify=False)
    if torch.__version__ < "2.14":  # whose torch.export mistakes sizes that change of further keywords
        with pytest.raises(ExportError, match="cannot be exported"):
            fxprune.export(network, tmp_path / FILES[format_], format_)
        return
    fxprune.export(network, tmp_path / FILES[format_], format_)
    answer = FORMATS[format_].open(tmp_path / FILES[format_])(fxprune.saving.comparing.Sample.from_input(inputs))
    torch.testing.assert_close(answer["output 0"], original(**inputs))


def test_a_size_among_the_outputs_is_refused_in_our_words(tmp_path: Path) -> None:
    need("onnx")

    class Sized(Flat):
        def forward(self, x: torch.Tensor) -> Any:
            return self.body(x), x.shape[0]

    with pytest.raises(ExportError, match="more than tensors"):
        fxprune.export(pruned(Sized, torch.randn(2, 3, 8, 8)), tmp_path / "net.onnx")


class Padded(nn.Module):
    """Attention under a mask that is as long as the longest of the sequences says."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.attention = nn.Linear(8, 16), nn.MultiheadAttention(8, 2, batch_first=True)
        self.outer = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        longest = int(lengths.max().item())
        mask = torch.arange(longest, device=lengths.device).expand(len(lengths), longest) >= lengths[:, None]
        h = self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]
        return self.outer(self.inner(h).relu())


def test_a_mask_as_long_as_data_say_is_exported(tmp_path: Path) -> None:
    model, x = Padded().eval(), torch.randn(2, 5, 8)
    pruned = fxprune.compile(model, (x, torch.tensor([5, 3])), 0.3)
    fxprune.export(pruned, tmp_path / "net.pt2", sample_input=(x, torch.tensor([5, 3])))
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    other = torch.randn(2, 5, 8), torch.tensor([2, 5])
    torch.testing.assert_close(loaded(*other), pruned(*other))


class Keyed(nn.Module):
    """A part whose layer is called as a method of every mapping is."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.values(self.keys(x).relu())


def test_layers_called_keys_and_values_are_exported(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    pruned = fxprune.compile(nn.Sequential(Keyed(), nn.ReLU(), Keyed()).eval(), x, 0.4)
    fxprune.export(pruned, tmp_path / "net.pt2", sample_input=x)
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), pruned(x))


class Middle(nn.Module):
    """Two layers with something in between."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(5, 8), between, nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self.first(x)))


def clamped(h: torch.Tensor) -> torch.Tensor:
    return h.clamp(-9, 9) if h.isnan().any() else h


@pytest.mark.parametrize("between", [lambda h: h + torch.randn_like(h), clamped], ids=["draws", "finite values"])
def test_draws_and_checks_of_values_are_exported(between: Any, tmp_path: Path) -> None:
    pruned = fxprune.compile(Middle(between).eval(), torch.randn(2, 5), 0.3)
    fxprune.export(pruned, tmp_path / "net.pt2")
    program, x = torch.export.load(tmp_path / "net.pt2").module(), torch.randn(4, 5)
    answers = [network(x) for network in (pruned, program) if torch.manual_seed(3)]
    torch.testing.assert_close(*answers)
    if between is clamped:
        with pytest.raises(RuntimeError, match="assertion failed"):
            program(x * torch.nan)


class Bounded(nn.Module):
    """Its scales are bounded in each call, through the data of the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.linspace(0.5, 3.0, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scale.data = self.scale.clamp(max=2.0)
        return self.last(self.first(x).relu() * self.scale)


def test_a_parameter_whose_data_are_set_is_exported(tmp_path: Path) -> None:
    model = Bounded().eval()
    pruned = fxprune.compile(model, torch.randn(2, 5), 0.3)
    fxprune.export(pruned, tmp_path / "net.pt2")
    program, x = torch.export.load(tmp_path / "net.pt2").module(), torch.randn(4, 5)
    torch.testing.assert_close(program(x), pruned(x))
    program.scale.data.fill_(7.0)
    program(x)
    assert float(program.scale.detach().max()) == 2.0


class Counting(nn.Module):
    """Adds the number of earlier calls, in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.second(self.first(x).relu()) + self.seen
        self.seen += 1
        return h


def test_a_network_that_counts_its_calls_is_refused_with_what_changes(tmp_path: Path) -> None:
    pruned = fxprune.compile(Counting().eval(), torch.randn(2, 3, 8, 8), 0.5)
    seen = pruned.get_buffer("seen").clone()
    with pytest.raises(ExportError, match=r"each call changes 'seen' in eval mode.*fxprune\.save"):
        fxprune.export(pruned, tmp_path / "net.pt2")
    assert torch.equal(pruned.get_buffer("seen"), seen)
    assert not list(tmp_path.iterdir())
    fxprune.save(pruned, tmp_path / "folder")
    x = torch.randn(2, 3, 8, 8)
    again = fxprune.load(tmp_path / "folder")
    for _ in range(3):
        torch.testing.assert_close(again(x), pruned(x))
