"""The Ray that a sweep without a cluster runs on."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import listening

pytestmark = pytest.mark.ray


def test_nothing_listens_to_the_network(local_ray: None) -> None:
    """Oracle: the system's own list of what this process and those that it started listen on."""
    import ray

    @ray.remote
    def work() -> int:
        return 1

    assert ray.get(work.remote()) == 1
    heard = listening()
    assert {"raylet", "gcs_server"} <= {name for name, _ in heard}
    assert len(heard) > 5
    assert [name for name, address in heard if not address.is_loopback] == []
