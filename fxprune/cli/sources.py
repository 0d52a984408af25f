"""Loads the networks, weights and calibration data that the command line names."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from fxprune.capture.samples import Sample, random_values
from fxprune.errors import FxpruneError, MissingDependencyError, ModelError, SampleError, described

_DEFAULT_SIZE = (1, 3, 224, 224)


@dataclass(frozen=True)
class ModelAndSample:
    """A network in eval mode, and a sample: the arguments of one call, with random values."""

    model: nn.Module
    sample: Any


def find_model(
    text: str, sizes: list[str], seed: int, *, allow: Iterable[str] = (), asked: bool = True
) -> ModelAndSample:
    """The network that ``text`` names, in eval mode, with a sample.

    ``sizes`` are shapes of positional inputs such as ``1,3,224,224`` or ``1,128:int64``; without them the network's own
    input size is used. ``seed`` determines random weights and samples. ``allow`` names the classes that a saved folder
    may import. ``asked``: the user gave ``text``; a file that a saved folder names is not run. Raises ModelError: there
    is no such network; SampleError: a size cannot be read; MissingDependencyError: its library is not installed.
    """
    torch.manual_seed(seed)
    kind, _, name = text.partition(":")
    if os.path.isdir(text):  # unlike Path.is_dir, it accepts names that no file can have
        found, sample = _from_folder(text, allow)
    elif kind == "torchvision" and name:
        found, sample = _from_torchvision(name)
    elif kind == "timm" and name:
        found, sample = _from_timm(name)
    elif text.rpartition(":")[0].endswith(".py"):
        path, _, factory = text.rpartition(":")
        if not asked:
            raise ModelError(
                f"the folder says that it was made from {text!r:.200}, whose code would be run: if you trust it, "
                "name it with --original"
            )
        found, sample = _from_file(Path(path), factory)
    else:
        raise ModelError(
            f"unknown network {text!r}: write torchvision:NAME, timm:NAME, path/to/file.py:factory, or the "
            "folder of a saved network"
            + (f" (did you mean torchvision:{text} or timm:{text}?)" if text.isidentifier() else "")
        )
    if sizes:
        sample = tuple(map(sample_of_size, sizes))
    return ModelAndSample(found.eval(), sample)


def sample_of_size(text: str) -> torch.Tensor:
    """A tensor for ``SIZE,SIZE,...[:DTYPE]``, of normal values or 0 and 1. Raises SampleError: another form."""
    shape, dtype = _parse_size(text)
    try:
        return random_values(shape, dtype)
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:
        raise SampleError(f"no tensor can be made of the input size {text[:80]!r}: {error}") from error


def _parse_size(text: str) -> tuple[tuple[int, ...], torch.dtype]:
    shape_text, _, dtype_text = text.partition(":")
    dtype = getattr(torch, dtype_text or "float32", None)
    try:
        shape = tuple(int(size) for size in shape_text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or not isinstance(dtype, torch.dtype):
        raise SampleError(f"cannot read the input size {text[:80]!r}: write it like 1,3,224,224 or 1,128:int64")
    return shape, dtype


def _from_folder(path: str, allow: Iterable[str]) -> tuple[nn.Module, Any]:
    from fxprune.rewriting import carried
    from fxprune.saving import load

    model = load(path, allow=allow)
    sample: Sample | None = carried(model).get("sample")
    if sample is None:
        return model, torch.randn(_DEFAULT_SIZE)
    return model, sample.map(lambda tensor: random_values(tensor.shape, tensor.dtype))


def torchvision_part(name: str) -> Any:
    """A module of torchvision. Raises MissingDependencyError: it is not installed, or was built for another torch."""
    try:
        return importlib.import_module(f"torchvision.{name}")
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependencyError(
            f"torchvision cannot be imported ({error!s:.120}): install the one that belongs to torch "
            f"{torch.__version__}, from the same package index"
        ) from error


def _from_torchvision(name: str) -> tuple[nn.Module, Any]:
    models = torchvision_part("models")
    if name not in models.list_models():
        raise ModelError(f"torchvision has no model {name!r}{_did_you_mean(name, models.list_models())}")
    builder = models.get_model_builder(name)
    names = ("weights", "weights_backbone")
    # None instead of the defaults, so that nothing is downloaded.
    untrained = {key: None for key in names if key in inspect.signature(builder).parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = builder(**untrained)
    return model, torch.randn(_size_for(model, _torchvision_size(name)))


def _torchvision_size(name: str) -> tuple[int, ...]:
    """The input size with which the model's published weights were evaluated."""
    models = torchvision_part("models")
    size: tuple[int, ...] = _DEFAULT_SIZE
    with contextlib.suppress(ValueError, TypeError, AttributeError, IndexError):
        transform = next(iter(models.get_model_weights(name))).transforms()
        crop = [int(edge) for edge in transform.crop_size]
        size = (1, 3, *(crop * 2 if len(crop) == 1 else crop))
    return (*size[:2], 16, *size[2:]) if name in models.list_models(module=models.video) else size


def _size_for(model: nn.Module, published: tuple[int, ...]) -> tuple[int, ...]:
    """The published size, or the model's own ``image_size``, because some weights were published with another size."""
    own = getattr(model, "image_size", None)
    return (*published[:-2], own, own) if isinstance(own, int) else published


def _from_timm(name: str) -> tuple[nn.Module, Any]:
    try:
        import timm
    except ImportError:
        raise MissingDependencyError(
            f"timm:{name} needs timm, which is not installed: pip install 'fxprune[timm]'"
        ) from None
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}{_did_you_mean(name, timm.list_models())}")
    model: nn.Module = timm.create_model(name, pretrained=False)
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    return model, torch.randn(1, *config.get("input_size", _DEFAULT_SIZE[1:]))


def _did_you_mean(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _from_file(path: Path, factory: str) -> tuple[nn.Module, Any]:
    """The network that a factory returns, and its sample if it returns a pair of both."""
    made = _call_factory(_factory(path, factory), f"{path}:{factory}")
    model, sample = made if isinstance(made, tuple) and len(made) == 2 else (made, torch.randn(_DEFAULT_SIZE))
    if not isinstance(model, nn.Module):
        raise ModelError(f"{path}:{factory} returned a {type(model).__name__}, not a torch.nn.Module")
    return model, sample


def _factory(path: Path, name: str) -> Callable[[], Any]:
    if not os.path.isfile(path):
        raise ModelError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look their module up here. Its folder comes first in the path, as when the file is run.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise ModelError(
            f"{path} ends the process while it is imported ({described(error)}): "
            "put what a script does under `if __name__ == '__main__':`"
        ) from error
    except Exception as error:
        raise ModelError(f"{path} cannot be imported: {described(error)}") from error
    if not callable(getattr(module, name, None)):
        raise ModelError(f"{path} has no function or class {name!r}")
    factory: Callable[[], Any] = getattr(module, name)
    return factory


def _call_factory(factory: Callable[[], Any], name: str) -> Any:
    try:
        return factory()
    except FxpruneError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{name} raised {described(error)}") from error


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a ``.safetensors`` file, or one of ``torch.save`` without pickle. Raises ModelError: it does not fit."""
    if not os.path.isfile(file):
        raise ModelError(f"there is no weights file {file}")
    try:
        state = _read(file)
        state = state.get("state_dict", state)
        if not isinstance(state, Mapping):
            raise TypeError("not a mapping")
    except Exception as error:
        # Both readers raise many types, and torch's advice to switch weights_only off must not reach the user.
        raise ModelError(f"{file} is not a state dict that can be read safely ({type(error).__name__})") from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"the weights in {file} do not fit the network: {error}") from error


def _read(file: Path) -> Any:
    """The content of a file of tensors; no pickle is run."""
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


_ENDINGS = (".safetensors", ".pt", ".pth")
_BATCH, _MOST_IMAGES = 32, 1024
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batches_of(folder: Path, sample: Any) -> Iterable[Any]:
    """The batches of a folder: images at the sample's size, or files with batches. Raises SampleError: neither."""
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGES)
        if files:
            return ImageBatches(files, Sample.from_input(sample).tensors)
    return BatchFolder(folder)


class ImageBatches:
    """Batches of 32 images, with the number of their folder as target; they can be iterated again.

    Each image is resized by its shorter edge to 8/7 of the sample's size, cropped to its centre, and normalised as for
    ImageNet. Of more than 1,024 files, an even selection is read. Raises SampleError: the sample is not a batch of
    images of one or three colours, or a file is not an image.
    """

    def __init__(self, files: list[Path], tensors: list[torch.Tensor]) -> None:
        shape = tuple(tensors[0].shape) if len(tensors) == 1 else ()
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise SampleError("calibration is a folder of images, but the network takes something else: give batches")
        self._colours, self._size = shape[1], shape[2:]
        self._files = files[:: -(-len(files) // _MOST_IMAGES)]
        self._classes = sorted({file.parent for file in files})

    def __len__(self) -> int:
        return (len(self._files) + _BATCH - 1) // _BATCH

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self._files), _BATCH):
            files = self._files[start : start + _BATCH]
            targets = torch.tensor([self._classes.index(file.parent) for file in files])
            yield torch.stack([self._read(file) for file in files]), targets

    def _read(self, file: Path) -> torch.Tensor:
        from PIL import Image

        functional = torchvision_part("transforms.functional")
        try:
            with Image.open(file) as opened:
                image = functional.to_tensor(opened.convert("RGB" if self._colours == 3 else "L"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise SampleError(f"{file} is not an image that can be read ({type(error).__name__})") from error
        height, width = self._size
        scale = max(height / image.shape[1], width / image.shape[2]) * 8 / 7
        near = [max(round(scale * n), least) for n, least in zip(image.shape[1:], self._size, strict=True)]
        image = functional.center_crop(functional.resize(image, near, antialias=True), [height, width])
        normal: torch.Tensor = functional.normalize(image, _MEAN[: self._colours], _STD[: self._colours])
        return normal


class BatchFolder:
    """Every file of a folder as a batch; they can be iterated again.

    A ``.safetensors`` file holds the tensor ``input`` and maybe ``target``, or the model's keyword arguments by name.
    A ``.pt`` file holds one item of a data loader; it is read with ``weights_only``, so no pickle is run. Raises
    SampleError: the folder has no such file, or a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SampleError(f"there is no folder {folder} of images or batches")
        self._files = sorted(file for file in folder.iterdir() if file.suffix in _ENDINGS)
        if not self._files:
            raise SampleError(f"{folder} holds neither images nor batches, one file each, {', '.join(_ENDINGS)}")

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Any]:
        for file in self._files:
            yield _batch(file)


def _batch(file: Path) -> Any:
    try:
        tensors = _read(file)
    except Exception as error:  # both readers raise many types
        raise SampleError(f"{file} is not a batch that can be read safely ({type(error).__name__})") from error
    if file.suffix != ".safetensors":
        return tensors
    if set(tensors) == {"input", "target"}:
        return tensors["input"], tensors["target"]
    return tensors["input"] if set(tensors) == {"input"} else tensors
