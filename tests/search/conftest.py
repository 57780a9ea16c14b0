"""What several of these tests need: the S3 server of the tests beside these, and sweeps without what takes time and isn't asked for."""

from __future__ import annotations

import os

import pytest

from tests.cluster.conftest import s3, short_folder
from tests.search import synthetic
from tests.search.synthetic import NoBoards

__all__ = ["light", "s3", "short_folder"]


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic sweeps without TensorBoard's events, whose files aren't synced."""
    monkeypatch.setattr(synthetic, "Boards", NoBoards)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
