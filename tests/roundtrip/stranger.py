"""What someone on the network tries who has no token: which TCP ports are open, and what those of Ray answer.

A program of its own, because it runs on a host of the test. The answers are JSON on standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import json
import pkgutil
import sys
from collections import defaultdict
from http.client import HTTPConnection, HTTPException

AT_ONCE = 400
ANSWER_SEC = 5.0
HEALTH = ("grpc.health.v1.Health", "Check")
SCHEMA = ("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo")
# Ray's Python package has no description of this one.
OBJECT_MANAGER = [("ray.rpc.ObjectManagerService", method) for method in ("Push", "Pull", "FreeObjects")]


async def open_ports(address: str) -> list[int]:
    """Those of all 65535 that a connection is accepted on."""
    waiting = iter(range(1, 65536))
    found = []

    async def knock() -> None:
        for port in waiting:
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), ANSWER_SEC)
            except OSError:
                continue
            found.append(port)
            writer.close()

    await asyncio.gather(*(knock() for _ in range(AT_ONCE)))
    return sorted(found)


def rpc_methods() -> list[tuple[str, str]]:
    """Every method of every service that Ray describes, with health and reflection."""
    import ray.core.generated as generated

    found = {HEALTH, SCHEMA, *OBJECT_MANAGER}
    for module in pkgutil.walk_packages(generated.__path__, f"{generated.__name__}."):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                found |= {(service.full_name, method.name) for method in service.methods}
    return sorted(found)


def ask_rpc(address: str, port: int, token: str, methods: list[tuple[str, str]]) -> dict[str, list[str]] | None:
    """Status code -> the methods that answer an empty request with it, without those that aren't there; None if it speaks no gRPC."""
    import grpc

    answers = defaultdict(list)
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SEC)
        except grpc.FutureTimeoutError:
            return None
        for service, method in methods:
            code = "OK"
            try:
                channel.unary_unary(f"/{service}/{method}")(b"", timeout=ANSWER_SEC, metadata=_metadata(token))
            except grpc.RpcError as error:
                code = error.code().name
            if code != "UNIMPLEMENTED":
                answers[code].append(f"{service}/{method}")
    return dict(answers)


def routes(agent: bool) -> list[tuple[str, str]]:
    """What Ray's dashboard serves, or its agent: (HTTP method, path)."""
    from ray.dashboard import http_server_head, optional_utils, utils
    from ray.dashboard.subprocesses.module import SubprocessModule
    from ray.dashboard.subprocesses.routes import SubprocessRouteTable

    assert http_server_head  # adds its own
    with contextlib.redirect_stderr(io.StringIO()):
        for kind in (utils.DashboardHeadModule, utils.DashboardAgentModule, SubprocessModule):
            utils.get_all_modules(kind)
    tables = [optional_utils.DashboardAgentRouteTable] if agent else [optional_utils.DashboardHeadRouteTable, SubprocessRouteTable]
    return sorted({(route.method, route.path) for table in tables for route in table.routes() if hasattr(route, "path")})


def ask_http(address: str, port: int, token: str, asked: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Status -> what was answered with it; `metrics` stands for a page of Prometheus metrics, `none` for no answer in HTTP."""
    answers = defaultdict(list)
    for method, path in asked:
        connection = HTTPConnection(address, port, timeout=ANSWER_SEC)
        try:
            connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
            response = connection.getresponse()
            status = str(response.status)
            if response.read(6) == b"# HELP":
                status = "metrics"
        except (OSError, HTTPException):
            status = "none"
        finally:
            connection.close()
        answers[status].append(f"{method} {path}")
    return dict(answers)


def _metadata(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")] if token else []


def main(order: dict[str, object]) -> object:
    """`{"scan": address}`, or `{"address", "token", "rpc": [port...], "http": {port: "dashboard" | "agent" | [[method, path]...]}}`."""
    if "scan" in order:
        return asyncio.run(open_ports(str(order["scan"])))
    address, token = str(order["address"]), str(order.get("token", ""))
    methods = [tuple(method) for method in order["methods"]] if "methods" in order else rpc_methods()
    http = {}
    for port, asked in order.get("http", {}).items():
        paths = routes(asked == "agent") if isinstance(asked, str) else asked
        http[port] = ask_http(address, int(port), token, paths)
    return {"rpc": {port: ask_rpc(address, port, token, methods) for port in order.get("rpc", [])}, "http": http}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
