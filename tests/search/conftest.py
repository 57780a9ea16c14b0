"""The S3 server of the tests beside these, for those of a sweep's folder at a URL."""

from __future__ import annotations

from tests.cluster.conftest import s3, short_folder

__all__ = ["s3", "short_folder"]
