"""Small networks of transformers keep their class: saved, loaded by their library alone, equal, generating alike."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from benchmarks.keeping import networks, round_trip

QUICK = ("BERT", "GPT-2", "ViT", "ConvNeXt")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.deep) for name in networks()]
)
def test_a_pruned_class_is_saved_and_loaded(name: str) -> None:
    _, removed, words, alike, generates, _ = round_trip(name, 0.2)
    assert float(removed.rstrip("%")) >= 20
    assert words.startswith("config: ")
    assert alike == "yes"
    assert generates in ("yes", "")
