"""The Ray that a sweep without a cluster runs on."""

from __future__ import annotations

from ipaddress import ip_address

import psutil
import pytest

pytestmark = pytest.mark.ray


def test_nothing_listens_to_the_network(local_ray: None) -> None:
    """Oracle: the system's own list of what this process and those that it started listen on."""
    import ray

    @ray.remote
    def work() -> int:
        return 1

    assert ray.get(work.remote()) == 1
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    assert {"raylet", "gcs_server"} <= {process.name() for process in family}
    heard = [
        (process.name(), str(connection.laddr.ip))
        for process in family
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(heard) > 5
    addresses = [(name, ip_address(ip.removeprefix("::ffff:"))) for name, ip in heard]
    assert [name for name, address in addresses if not address.is_loopback] == []
