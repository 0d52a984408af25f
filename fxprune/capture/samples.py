"""The sample a model is compiled with: ``sample_input`` turned into positional and keyword arguments."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from fxprune.errors import SampleError

# Images, and clips of them, with batch and colours.
IMAGE_DIMS = (4, 5)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Sample:
    """The arguments of one call of the model; tensors may be nested in lists, tuples and dicts."""

    args: tuple[Any, ...]  # positional arguments
    kwargs: dict[str, Any]  # keyword arguments
    others: tuple[Sample, ...] = ()  # the arguments of further calls, with tensors of other sizes or with other flags

    @classmethod
    def from_input(cls, sample_input: Any) -> Sample:
        """Read what a user passes as ``sample_input``.

        A tensor or a list is one positional argument, a tuple is the positional arguments, a dict or UserDict whose
        keys are all strings is the keyword arguments, and anything else is wrapped as one positional argument. Raises
        SampleError: there is no tensor in it, or a tensor is not dense or holds NaN.
        """
        if isinstance(sample_input, Sample):
            return sample_input
        sample = cls(*as_arguments(sample_input))
        if not sample.tensors:
            shape = (1, 3, 224, 224)
            if isinstance(sample_input, (tuple, list)) and sample_input and all(type(n) is int for n in sample_input):
                shape = tuple(sample_input)
            raise SampleError(
                f"sample_input holds no tensor (got {type(sample_input).__name__}): pass what the model takes, "
                f"for example torch.randn{shape}, a tuple of arguments, or a dict of keyword arguments"
            )
        for name, tensor in sample.named_tensors():
            _check_tensor(name, tensor)
        if sample.batch_size == 0:
            raise SampleError("sample_input has a batch of 0: pass at least one row")
        return sample

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Every tensor leaf, in the order of the arguments."""
        if self._holds_tensors_alone:
            return list(self.args)
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]

    @property
    def _holds_tensors_alone(self) -> bool:
        """Whether the arguments are tensors, by place, so that there is nothing nested to walk through."""
        return not self.kwargs and all(type(value) is torch.Tensor for value in self.args)

    def named_tensors(self) -> list[tuple[str, torch.Tensor]]:
        """Every tensor leaf with the path to it, such as ``args[0]`` or ``kwargs['mask']``."""
        paths_of_args, _ = pytree.tree_flatten_with_path(self.args)
        paths_of_kwargs, _ = pytree.tree_flatten_with_path(self.kwargs)
        named = [("args" + pytree.keystr(path), leaf) for path, leaf in paths_of_args]
        named += [("kwargs" + pytree.keystr(path), leaf) for path, leaf in paths_of_kwargs]
        return [(name, leaf) for name, leaf in named if isinstance(leaf, torch.Tensor)]

    @property
    def batch_size(self) -> int | None:
        """Dim 0 if all tensors with at least one dim agree on it, else None; a list of images has no such dim."""
        if self.image_lists:
            return None
        sizes = {tensor.shape[0] for tensor in self.tensors if tensor.ndim > 0}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def image_lists(self) -> list[list[torch.Tensor]]:
        """The arguments that are lists of colour images, as detectors take them: any number, of any sizes."""
        arguments = (*self.args, *self.kwargs.values())
        return [value for value in arguments if isinstance(value, list) and value and all(map(_is_image, value))]

    def with_another_image(self) -> Sample:
        """The same sample with the first image once more, and the first entry of every list of the same length."""
        count = len(self.image_lists[0])

        def longer(value: Any) -> Any:
            return [*value, value[0]] if isinstance(value, list) and len(value) == count else value

        return Sample(tuple(map(longer, self.args)), {name: longer(value) for name, value in self.kwargs.items()})

    def with_batch(self, batch_size: int) -> Sample:
        """The same sample with ``batch_size`` rows along dim 0: rows repeat in order, or the first ones are kept.

        Raises:
            SampleError: the tensors have no common dim 0, there are no rows to repeat, or ``batch_size`` is below 1.
        """
        rows = self.batch_size
        if batch_size < 1:
            raise SampleError(f"batch size must be at least 1, not {batch_size}")
        if rows is None:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.named_tensors())
            raise SampleError(f"the sample has no batch dim: its tensors do not share dim 0 ({shapes})")
        if rows == 0:
            raise SampleError("the sample has a batch of 0, so there are no rows to repeat: pass at least one row")
        return self.map(lambda tensor: _with_rows(tensor, batch_size) if tensor.ndim else tensor)

    def rows(self, places: torch.Tensor) -> Sample:
        """These rows along dim 0; the whole sample if it does not come in rows."""
        if self.batch_size is None:
            return self
        return self.map(lambda tensor: tensor[places.to(tensor.device)] if tensor.ndim else tensor)

    def mirrored(self) -> Sample | None:
        """The same sample with its images (floating-point tensors of four or five dims) flipped along their last dim;
        None if there are none."""
        images = {id(tensor) for tensor in self.tensors if tensor.is_floating_point() and tensor.ndim in IMAGE_DIMS}
        return self.map(lambda tensor: tensor.flip(-1) if id(tensor) in images else tensor) if images else None

    def to_meta(self) -> Sample:
        """The same sample on the meta device: shapes, strides and dtypes without values."""
        return self.map(lambda tensor: tensor.detach().to("meta"))

    def with_values(self, seed: int = 0) -> Sample:
        """The same sample with random values in the place of tensors on the meta device."""
        generator = torch.Generator().manual_seed(seed)
        return self.map(lambda t: random_values(t.shape, t.dtype, generator) if t.is_meta else t)

    def map(self, transform: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
        """The sample with ``transform`` applied to every tensor leaf; what is no tensor stays as it is."""
        if self._holds_tensors_alone:
            args, kwargs = tuple(map(transform, self.args)), {}
        else:
            args, kwargs = pytree.tree_map_only(torch.Tensor, transform, (self.args, self.kwargs))
        return Sample(args, kwargs, tuple(other.map(transform) for other in self.others))

    def beside(self, other_samples: Sequence[Any]) -> Sample:
        """The sample with others, each read as :meth:`from_input` does. Raises SampleError: they are no sequence."""
        if isinstance(other_samples, (torch.Tensor, dict, str)) or not isinstance(other_samples, Sequence):
            raise SampleError("other_samples must be a list of samples, each like sample_input")
        others = tuple(Sample.from_input(other) for other in other_samples)
        return replace(self, others=others) if others else self

    @property
    def structure(self) -> Any:
        """Which arguments there are, how they are nested, and where tensors are, of floats or of which integers."""
        leaves, structure = pytree.tree_flatten((self.args, self.kwargs))
        dtypes = [leaf.dtype if isinstance(leaf, torch.Tensor) else None for leaf in leaves]
        return structure, ["floats" if dtype and dtype.is_floating_point else dtype for dtype in dtypes]

    def resized_like(self, other: Sample) -> Sample:
        """The same sample with every tensor brought to the shape of that in ``other``: entries repeat, or are cut."""
        shapes = (tensor.shape for tensor in other.tensors)
        return replace(self, others=()).map(lambda tensor: resized(tensor, next(shapes)))

    def with_images_of(self, height: int, width: int) -> Sample:
        """The same sample with images of another height and width, pixel by pixel. Raises SampleError: it has none."""
        if not any(map(is_image, self.tensors)):
            raise SampleError("the sample has no images (batch, colours, height, width) that could have another size")
        return replace(self, others=()).map(
            lambda tensor: resized(tensor, (*tensor.shape[:-2], height, width)) if is_image(tensor) else tensor
        )

    def call(self, function: Callable[..., T]) -> T:
        """``function(*args, **kwargs)``, with lists and dicts of its own, which it may change."""
        own = self.map(lambda tensor: tensor)
        return function(*own.args, **own.kwargs)


class OneTensor(Sample):
    """A sample that becomes one with a single tensor in all places whose shapes, strides and dtypes are equal."""

    def map(self, transform: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
        """The sample with ``transform`` applied to one tensor of each kind."""
        made: dict[Any, torch.Tensor] = {}
        return super().map(lambda tensor: made.setdefault(kind_of(tensor), transform(tensor)))


def kind_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What is equal for tensors that can stand in each other's place."""
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def is_image(tensor: torch.Tensor) -> bool:
    """Whether the last two dims are a resolution."""
    return tensor.ndim in IMAGE_DIMS and tensor.is_floating_point()


def resized(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A tensor of another shape, which may be longer or shorter along each dim, of every so many of its entries."""
    for dim, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        if old != new:
            tensor = tensor.index_select(dim, (torch.arange(new) * old // new).to(tensor.device))
    return tensor


def random_values(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator | None = None) -> torch.Tensor:
    """Normal values, or zeros and ones where the dtype is no float's, as these fit every table."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(tuple(shape), generator=generator).to(dtype)
    return torch.randint(0, 2, tuple(shape), generator=generator).to(dtype)


def as_arguments(sample_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, as :meth:`Sample.from_input` tells them."""
    # Tokenisers and processors give a UserDict.
    if isinstance(sample_input, (dict, UserDict)) and all(isinstance(key, str) for key in sample_input):
        return (), dict(sample_input)
    # A named tuple is one structured value, such as a model's own batch type, and no argument list.
    if isinstance(sample_input, tuple) and not hasattr(sample_input, "_fields"):
        return tuple(sample_input), {}
    return (sample_input,), {}


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else f"of layout {tensor.layout}"
        raise SampleError(f"sample_input {name} is {kind}: only dense tensors are supported")
    # Infinity is allowed: attention masks are written with it.
    if tensor.device.type != "meta" and (tensor.is_floating_point() or tensor.is_complex()) and tensor.isnan().any():
        raise SampleError(f"sample_input {name} holds NaN, so no output could be compared: pass finite values")


def _is_image(value: Any) -> bool:
    """Whether a value is colours x height x width, with three colours or four."""
    return (
        isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 3 and value.shape[0] in (3, 4)
    )


def _with_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    tensor = tensor.detach()
    whole, rest = divmod(rows, tensor.shape[0])
    if whole == 0:
        return tensor.narrow(0, 0, rest)
    # cat rather than repeat, because cat keeps the memory format.
    return torch.cat([tensor] * whole + [tensor.narrow(0, 0, rest)] * (rest > 0))
