"""Batches in an order that depends on seed and epoch alone, and the checkpoints and log of a training."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from fxprune.distillation.options import seed_everything
from fxprune.errors import DistillationError
from fxprune.util.writing import checked_path, remove_abandoned, write_file, write_text


class SeededBatches:
    """Endless batches, epoch after epoch.

    Random numbers are seeded before each epoch and each batch, by their position. So a run that continues from a
    checkpoint has the same order of a shuffling loader and the same augmentations.

    Args:
        loader: a DataLoader, or any iterable of batches that can be read again.
        rank: the rank of this process.
        world: the number of processes that share the batches: each takes every world-th one, unless the loader has a
            DistributedSampler.
        seed: the seed of everything random.

    Raises:
        DistillationError: the loader is not an iterable of batches.
    """

    def __init__(self, loader: Iterable[Any], rank: int = 0, world: int = 1, seed: int = 0) -> None:
        if isinstance(loader, (torch.Tensor, Mapping, str, bytes)) or not isinstance(loader, Iterable):
            kind = type(loader).__name__
            raise DistillationError(f"loader must be an iterable of batches, not a {kind}; [batch] holds one batch")
        self._given = loader
        self._loader = _shared(loader, rank, world)
        self._rank = rank
        self._seed = seed
        self._batches: Iterator[Any] | None = None
        self._before: list[torch.Tensor] = []
        self.epoch = 0
        self.place = 0

    @property
    def length(self) -> int | None:
        """The number of this process's batches in an epoch, or None if the loader has no length."""
        try:
            return len(self._loader)  # type: ignore[arg-type]
        except TypeError:
            return None

    def take(self) -> Any:
        """The next batch. Raises DistillationError: the loader gives no batch."""
        for _ in range(2):
            if self._batches is None:
                self._begin()
            try:
                return self._next()
            except StopIteration:
                if self.place == 0:
                    break
            self.epoch, self.place, self._batches = self.epoch + 1, 0, None
        raise self._empty()

    def peek(self) -> Any:
        """The first batch, which is not taken: the next call of :meth:`take` gives it again."""
        batch = self.take()
        self.go_to({**self.state(), "epoch": 0, "place": 0})
        return batch

    def state(self) -> dict[str, Any]:
        """The position, for a checkpoint: numbers, and the states of the loader's own generators."""
        return {"epoch": self.epoch, "place": self.place, "generators": list(self._before)}

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Go to a position from :meth:`state`; the batches of that epoch so far are read again."""
        self._batches = None
        self.epoch, self.place = int(state["epoch"]), 0
        for generator, before in zip(_generators(self._given), state["generators"], strict=False):
            generator.set_state(before)
        if state["place"]:
            self._begin()
            for _ in range(state["place"]):
                self._next()

    def _begin(self) -> None:
        self._before = [generator.get_state() for generator in _generators(self._given)]
        sampler = getattr(self._given, "sampler", None)
        set_epoch = getattr(sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.epoch)
        seed_everything(self._seed, "epoch", self.epoch)
        self._batches = iter(self._loader)

    def _next(self) -> Any:
        assert self._batches is not None
        # All ranks must shuffle alike; samplers shuffle when the first batch is read.
        rank = self._rank if self.place else 0
        seed_everything(self._seed, "batch", self.epoch, self.place, rank)
        batch = next(self._batches)
        self.place += 1
        return batch

    def _empty(self) -> DistillationError:
        if self.epoch > 0 and isinstance(self._given, Iterator):
            return DistillationError(
                "loader is an iterator, which is empty after one pass: pass something that can be iterated again, such "
                "as a DataLoader or a list of batches"
            )
        return DistillationError("loader gives no batch, or fewer batches than there are processes")


class _Strided:
    """Every world-th item, starting at the rank; a last round with fewer items than ranks is dropped."""

    def __init__(self, items: Iterable[Any], rank: int, world: int) -> None:
        self._items, self._rank, self._world = items, rank, world

    def __iter__(self) -> Iterator[Any]:
        group: list[Any] = []
        for item in self._items:
            group.append(item)
            if len(group) == self._world:
                yield group[self._rank]
                group = []

    def __len__(self) -> int:
        return len(self._items) // self._world  # type: ignore[arg-type]


def _shared(loader: Iterable[Any], rank: int, world: int) -> Iterable[Any]:
    if world == 1 or isinstance(getattr(loader, "sampler", None), DistributedSampler):
        return loader
    plain = isinstance(loader, DataLoader) and loader.batch_sampler is not None
    if not plain or isinstance(loader.dataset, IterableDataset):  # type: ignore[attr-defined]
        return _Strided(loader, rank, world)
    assert isinstance(loader, DataLoader)
    # Only the batches of this rank are loaded.
    return DataLoader(
        loader.dataset,
        batch_sampler=_Strided(loader.batch_sampler, rank, world),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _generators(loader: Any) -> list[torch.Generator]:
    """The loader's own sources of random numbers, each once."""
    sampler = getattr(loader, "sampler", None)
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    held = (getattr(owner, "generator", None) for owner in (loader, sampler, inner))
    return list({id(g): g for g in held if isinstance(g, torch.Generator)}.values())


_VERSION = 1


class Folder:
    """The files of one training: ``checkpoint.pt``, tensors and plain values only, and ``metrics.jsonl``.

    ``settings``: values that must be equal to continue a run. Raises DistillationError: the folder cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = checked_path(path)
        self.checkpoint, self.metrics = self.path / "checkpoint.pt", self.path / "metrics.jsonl"
        self._settings = dict(settings)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DistillationError(f"folder {self.path} cannot be made: {error}") from error

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint; if the process is killed meanwhile, the old one stays."""
        content = {"version": _VERSION, "settings": self._settings, **state}
        write_file(self.checkpoint, lambda file: torch.save(content, file))

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU; None where there is none. No code is run by reading it.

        Raises:
            DistillationError: the file cannot be read, or comes from a training with other settings.
        """
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            version, settings = state["version"], state["settings"]
        except Exception as error:  # a damaged file makes torch raise many kinds
            raise DistillationError(
                f"{self.checkpoint} is not a checkpoint of fxprune ({type(error).__name__}): move it away to restart"
            ) from error
        if version != _VERSION:
            raise DistillationError(f"{self.checkpoint} was written by another version of fxprune: move it away")
        self._check(settings)
        found: dict[str, Any] = state
        return found

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to the log."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, step: int) -> list[dict[str, Any]]:
        """The log's rows up to a step."""
        if not self.metrics.exists():
            return []
        rows = [_parsed(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row is not None and row["step"] <= step]

    def rewind(self, step: int) -> None:
        """Remove rows of later steps and half-written lines from the log, and leftover files of a killed process."""
        remove_abandoned(self.checkpoint)
        if self.metrics.exists():
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in self.rows(step)))

    def _check(self, settings: Mapping[str, Any]) -> None:
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise DistillationError(
                    f"{self.checkpoint} was made with {name}={settings.get(name)!r}, and now it is {value!r}: go on "
                    "with what it was, or give another folder to start afresh"
                )


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of the log; None for one that a killed process left unfinished."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
