"""Where trained weights and images are, when nobody says."""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLE = "FXPRUNE_SHARED"
_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared"


def shared_folder() -> Path:
    """The folder of ``data/`` and ``weights/``: what FXPRUNE_SHARED says, or ``shared`` beside the repository."""
    return Path(os.environ.get(_VARIABLE) or _BESIDE_THE_REPOSITORY)


def shared_file(kind: str, name: str) -> Path:
    """The path of a file of a ``kind`` ("data" or "weights"); it need not exist."""
    return shared_folder() / kind / name
