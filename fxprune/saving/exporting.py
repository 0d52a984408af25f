"""``export``: writes a network to a file of another format, and compares the file with it before returning."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.capture.exported import unwrapped
from fxprune.capture.samples import IMAGE_DIMS, Sample
from fxprune.errors import ExportError, FxpruneError, MissingDependencyError, OptionError, SampleError, described
from fxprune.options import FormatName, FreeSize
from fxprune.reporting import versions
from fxprune.rewriting import PrunedGraphModule, carried
from fxprune.saving.comparing import (
    Check,
    Exported,
    Refusals,
    check_other_sizes,
    conditions,
    find_checks,
    find_other_sizes,
    with_rows,
    worst_error,
)
from fxprune.saving.folders import replace_folder
from fxprune.saving.formats import FORMATS, Format
from fxprune.util.paths import device_of
from fxprune.util.progress import Steps
from fxprune.util.writing import checked_path, scratch_folder

_CHANGES = (
    "each call changes {} in eval mode, so a file differs from later calls of the network: take that change out of "
    "eval mode, or keep the network with fxprune.save"
)


def export(
    pruned: nn.Module,
    path: str | os.PathLike[str],
    format: FormatName | None = None,  # noqa: A002  the public name says what it is
    sample_input: Any = None,
    *,
    dynamic: Sequence[FreeSize] | None = None,
    progress: bool | None = None,
) -> Exported:
    """Write a network to a file of another format, after the file was read again, run and compared with the network.

    The network is exported in eval mode; it is not changed. The batch size, and resolution and lengths if the network
    accepts others, may change between calls of the file. If the network has several graphs for different sizes, all
    formats except "source" hold the graph of the sample; a size then may change only if the file equals the network at
    the other sizes or refuses them, and the notes state its conditions.

    Args:
        pruned: what :func:`fxprune.compile` or :func:`fxprune.load` returned, or any module with a ``sample_input``.
        path: the file, or for "source" the folder; an existing one is replaced after the new one has been checked.
        format: "pt2" (``torch.export``), "onnx" (needs the ``onnx`` extra; run by onnxruntime), "source" (a folder
            with ``model.py``, which needs only torch, and ``weights.safetensors``), "openvino" (an ``.xml`` with a
            ``.bin`` beside it; needs openvino) or "aoti" (``.aoti.pt2``: compiled ahead of time for this machine; needs
            a C++ compiler). By default the format of the suffix of ``path``, and "pt2" without a suffix.
        sample_input: one call's arguments as for :func:`fxprune.compile`; by default random values like the sample
            that the network was compiled with.
        dynamic: the sizes that may change: some of "batch", "resolution" and "length"; an empty list for a file that
            accepts only the sample's sizes. By default as many as the network and the format allow.
        progress: show progress; by default only on a terminal.

    Returns:
        The path and format, which sizes may change, and the largest difference found.

    Raises:
        ExportError: torch cannot export it, a size in ``dynamic`` cannot change, or the file is wrong or not writable.
        OptionError: the format or a size is unknown, or the suffix is that of another format.
        SampleError: there is no sample.
        MissingDependencyError: the format needs a library that is not installed.
    """
    pruned = unwrapped(pruned)
    if not isinstance(pruned, nn.Module):
        raise ExportError(f"only a network can be exported, not a {type(pruned).__name__}")
    target, wanted = checked_path(path), _sizes(dynamic)
    name = _format_of(target, format)
    chosen = FORMATS[name]
    if chosen.missing:
        raise MissingDependencyError(f"the {name} format needs {chosen.missing}")
    whole = network = copy.deepcopy(pruned).eval()
    sample = _sample(pruned, network, sample_input)
    if chosen.one_graph and isinstance(network, PrunedGraphModule):
        network = network.for_sizes_of(*sample.args, **sample.kwargs)
    with Steps(progress) as steps:
        with steps("run the network"):
            smallest = 2 if wanted is None or "batch" in wanted else 1
            before = {name: buffer.clone() for name, buffer in network.named_buffers()}
            checks = find_checks(network, sample, smallest=smallest)
            moved = [repr(name) for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])]
            freedoms = list(_lists_of_checks(network, checks)) if wanted is None else [_chosen(network, checks, wanted)]
        try:
            with _scratch(target) as file, steps(f"export to {name}"):
                result = _first_that_works(chosen, (whole, network), freedoms, file, (str(target), name))
                _put_in_place(file, target)
        except ExportError as error:
            if not moved:
                raise
            raise ExportError(f"{error}; {_CHANGES.format(', '.join(moved))}") from error
        except OSError as error:
            raise ExportError(f"{target} cannot be written: {error.strerror or error}") from error
    return result


def _format_of(target: Path, given: str | None) -> str:
    """The requested format, or that of the suffix; the two must agree."""
    if not isinstance(given, str | None):
        raise OptionError(f"format must be one of {', '.join(FORMATS)}, and a {type(given).__name__} was given")
    suffixes = {chosen.suffix: name for name, chosen in FORMATS.items() if chosen.suffix}
    longest = max((suffix for suffix in suffixes if target.name.lower().endswith(suffix)), key=len, default="")
    said = suffixes.get(longest)
    if given is None and said is None and target.suffix:
        raise OptionError(
            f"{target.name}: no format has the suffix {target.suffix!r}: end the name in {' or '.join(suffixes)}, or "
            f"say the format: {', '.join(FORMATS)}"
        )
    name = given or said or "pt2"
    if name not in FORMATS:
        raise OptionError(f"unknown format {name!r}: choose one of {', '.join(FORMATS)}")
    if said not in (None, name):
        raise OptionError(f"{target.name} has the suffix of {said}, but the format is {name}: change one of them")
    if FORMATS[name].suffixed and said != name:
        raise OptionError(f"{name} is read from files called {FORMATS[name].suffix}: end the name {target.name} so")
    return name


def _sample(pruned: nn.Module, network: nn.Module, sample_input: Any) -> Sample:
    given = sample_input if sample_input is not None else carried(pruned).get("sample")
    if given is None:
        raise SampleError("the network carries no sample: pass sample_input, one call's arguments")
    device = device_of(network)
    if device.type == "meta":
        raise ExportError("the network is on the meta device and has no values: load weights first")
    return Sample.from_input(given).map(torch.Tensor.detach).with_values().map(lambda tensor: tensor.to(device))


def _first_that_works(
    chosen: Format,
    networks: tuple[nn.Module, nn.Module],
    freedoms: Sequence[Sequence[Check]],
    file: Path,
    named: tuple[str, str],
) -> Exported:
    """The export with as many free sizes as torch, the format and the network allow; ``networks``: whole, one graph."""
    whole, network = networks
    notes = (
        []
        if any(check.is_informative for checks in freedoms for check in checks)
        else ["all its outputs are zero, so the comparison says little"]
    )
    if network is not whole:
        notes += [f"it holds one graph of several, that of the sample's sizes: {text}" for text in conditions(network)]
    suffix = Path(named[0]).suffix
    refusals: Refusals = {}
    usual = not suffix or named[0].lower().endswith(chosen.suffix or suffix)
    notes += [] if usual else [f"{suffix!r} is not its usual suffix, {chosen.suffix!r}"]
    for fitting in freedoms:
        free = _varying_sizes(fitting)
        try:
            chosen.write(network, [check.probe.sample for check in fitting], file)
            run = chosen.open(file)
            error = worst_error(run, fitting)
            others = find_other_sizes(whole, network, fitting, refusals) if chosen.one_graph else []
            needs = check_other_sizes(run, others, max(check.tolerance for check in fitting))
        except OSError:
            raise
        except Exception as failure:  # exporters raise many types
            _remove(file)
            notes = [*notes, f"no change of {' and '.join(free)}: {_reason(failure)}"] if free else notes
            last = failure
            continue
        notes += [f"it refuses sizes for which this does not hold: {text}" for text in needs]
        sizes = dict.fromkeys(size for c in fitting if (size := c.probe.batch_size) is not None)
        resolutions = dict.fromkeys(name for c in fitting for name in c.probe.resolutions)
        tolerance = max(check.tolerance for check in fitting)
        return Exported(*named, free, tuple(sizes), tuple(resolutions), error, tolerance, tuple(notes))
    raise ExportError(f"the network cannot be exported to {named[1]}: {_reason(last)}") from last


def _reason(failure: BaseException | None) -> str:
    """The first cause of an exporter's error; the errors around it are written for the exporter's developers."""
    while failure is not None and failure.__cause__ is not None and not isinstance(failure, FxpruneError):
        failure = failure.__cause__
    return "" if failure is None else str(failure) if isinstance(failure, FxpruneError) else described(failure)


def _lists_of_checks(network: nn.Module, checks: Sequence[Check]) -> Iterator[list[Check]]:
    """Lists of checks at sizes that the file should accept, the most sizes first."""
    plain = [check for check in checks if not check.probe.resized]
    tried = list[list[Check]]()
    for fitting in (list(checks), checks[: len(plain) + 1], plain):
        if fitting not in tried:
            tried.append(list(fitting))
            yield list(fitting)
    if _varying_sizes(checks)[1:] and "batch" in _varying_sizes(checks):
        yield _of_one_batch(network, checks)
    if len(plain) > 1:
        yield plain[:1]


def _of_one_batch(network: nn.Module, checks: Sequence[Check]) -> list[Check]:
    """The checks at the batch size of the first, without those that the network then refuses."""
    first, rows = checks[0], checks[0].probe.batch_size
    return list(checks) if rows is None else [first, *filter(None, (with_rows(network, c, rows) for c in checks[1:]))]


def _sizes(dynamic: Sequence[str] | None) -> set[str] | None:
    """The sizes that were requested to be free; None if not specified."""
    if dynamic is None:
        return None
    if not isinstance(dynamic, Iterable):
        raise OptionError(f"dynamic is a choice of {', '.join(_SIZES)}, and not {dynamic!r:.80}")
    wanted = {dynamic} if isinstance(dynamic, str) else set(dynamic)
    if unknown := wanted - set(_SIZES):
        raise OptionError(f"dynamic is a choice of {', '.join(_SIZES)}, and has no {min(map(repr, unknown))}")
    return wanted


def _chosen(network: nn.Module, checks: Sequence[Check], wanted: set[str]) -> list[Check]:
    """The checks that differ only in the wanted sizes. Raises ExportError: the network accepts no other such size."""
    checks = checks if "batch" in wanted else _of_one_batch(network, checks)
    fitting = [check for check in checks if set(_varying_sizes([checks[0], check])) <= wanted]
    if missing := wanted - set(_varying_sizes(fitting)):
        raise ExportError(f"the network was not seen to take another {min(missing)}: leave it out of dynamic")
    return fitting


_SIZES = ("batch", "resolution", "length")


def _varying_sizes(checks: Sequence[Check]) -> tuple[str, ...]:
    """Names of the sizes in which the checks differ."""
    shapes = [[tensor.shape for tensor in check.probe.sample.tensors] for check in checks]
    first, images = shapes[0], {len(check.probe.resolutions) > 0 for check in checks}
    differ = [pair for other in shapes[1:] for pair in zip(first, other, strict=False)]
    batch = any(one[:1] != two[:1] for one, two in differ)
    resolution = any(one[1:] != two[1:] and len(one) in IMAGE_DIMS for one, two in differ) and True in images
    length = any(one[1:] != two[1:] and not (resolution and len(one) in IMAGE_DIMS) for one, two in differ)
    return ("batch",) * batch + ("resolution",) * resolution + ("length",) * length


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A file name in a new folder beside the target."""
    target.resolve().parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target.resolve(), "exporting") as folder:
        yield folder / target.name


def _remove(file: Path) -> None:
    for made in file.parent.iterdir():
        shutil.rmtree(made) if made.is_dir() else made.unlink()


def _put_in_place(file: Path, target: Path) -> None:
    if file.is_dir():
        replace_folder(target, lambda folder: _move_all(file, folder), {"versions": versions()})
    else:
        # Weights in separate files are moved first, because the file refers to them.
        for made in sorted(file.parent.iterdir(), key=lambda made: made.name == file.name):
            made.replace(target.resolve().parent / made.name)


def _move_all(source: Path, target: Path) -> None:
    for made in source.iterdir():
        made.rename(target / made.name)
