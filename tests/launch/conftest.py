"""The short folder of the tests beside these, for a cluster of a test's own."""

from __future__ import annotations

from tests.cluster.conftest import short_folder

__all__ = ["short_folder"]
