"""Hosts of two processes at once, as `make test-cluster` has them: neither sees the other's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.roundtrip.hosts import Host, hosts, missing, until

PORT = 7000
ASK = f"import urllib.request as web; print(web.urlopen('http://%s:{PORT}/', timeout=5).read().decode())"

pytestmark = pytest.mark.roundtrip


@pytest.fixture
def pairs() -> Iterator[list[tuple[Host, Host]]]:
    """Two networks of two hosts each, made alike."""
    if reason := missing():
        pytest.skip(f"no hosts can be made here: {reason}")
    names = ("head", "worker1")
    with hosts(names) as one, hosts(names) as other:
        yield [(found["head"], found["worker1"]) for found in (one, other)]


def test_the_same_addresses_twice(pairs: list[tuple[Host, Host]]) -> None:
    """Oracle: what each head serves on one address and port, read by its own neighbour; the hosts' own lists of processes."""
    assert len({head.address for head, _ in pairs}) == 1
    for number, (head, _) in enumerate(pairs):
        head.path(f"/tmp/of network {number}").touch()
        head.start("python3", "-m", "http.server", str(PORT), "--directory", "/tmp")
    for number, (head, neighbour) in enumerate(pairs):
        until("the head serves", lambda host=head: host.run("ss", "-Hltn", f"sport = {PORT}"))
        page = neighbour.run("python3", "-c", ASK % head.address)
        assert [f"of network {other}" in page for other in range(len(pairs))] == [other == number for other in range(len(pairs))]
        assert len(head.processes(f"http.server {PORT}")) == 1
        assert not neighbour.processes(f"http.server {PORT}")
