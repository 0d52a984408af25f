"""Discrete Fourier transforms: the dims transformed keep their numbering, all others pass."""

from __future__ import annotations

from fxprune.rules.call import Call
from fxprune.rules.registry import rule

_MIXED = "a Fourier transform mixes its elements by number"
_ONE_DIM = "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft"
_TWO_DIMS = "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2"
_ALL_DIMS = "fft_fftn fft_ifftn fft_rfftn fft_irfftn"


def _transformed(call: Call, dims: tuple[int, ...]) -> None:
    axes = list(call.tensor("input"))
    for dim in dims:
        call.pin(axes[dim], _MIXED)
        axes[dim] = call.fixed(call.output_shape[dim], _MIXED)
    call.result = tuple(axes)


@rule(_ONE_DIM, "input, n=None, dim=-1")
def transform(call: Call) -> None:
    _transformed(call, (call.dim(),))


@rule(_TWO_DIMS, "input, s=None, dim=None")
def transform_of_two(call: Call) -> None:
    rank = len(call.tensor("input"))
    _transformed(call, (rank - 2, rank - 1) if call.number("dim") is None else call.dims())


@rule(_ALL_DIMS, "input, s=None, dim=None")
def transform_of_all(call: Call) -> None:
    sizes, rank = call.number("s"), len(call.tensor("input"))
    last = range(rank - len(sizes), rank) if sizes is not None and call.number("dim") is None else call.dims()
    _transformed(call, tuple(last))


@rule("fft_fftshift fft_ifftshift", "input, dim=None")
def shift(call: Call) -> None:
    _transformed(call, call.dims())
