"""Reads and checks a cluster file (for `ray up`, or a KubeRay manifest) on this machine, without a network."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshot_ray.cluster.ray_private import AUTOSCALER_LOGGER, cluster_file_schema, providers
from fewshot_ray.errors import UserError
from fewshot_ray.launch.cluster_yaml import Source
from fewshot_ray.launch.instances import INSTANCES
from fewshot_ray.launch.kuberay import KUBERAY, raycluster_config
from fewshot_ray.spec.wording import nearest, show

__all__ = ["ClusterFile", "NodeType", "check_file_mounts", "check_ssh_key", "read_cluster_file"]


@dataclass(frozen=True)
class NodeType:
    """One node type; a local provider has `head` and `worker`, on Kubernetes it is a group of pods."""

    name: str
    resources: Mapping[str, float]
    """Resources of one node, e.g. {"CPU": 8, "GPU": 1}; empty where neither the file nor the instance type tells them."""
    least: int
    """Minimum number of nodes, not counting the head node itself."""
    most: int
    """Maximum number of nodes, not counting the head node itself; bounded by the cluster's `max_workers`."""
    instance: str | None
    """AWS instance type."""
    spot: bool
    is_head: bool


@dataclass(frozen=True)
class ClusterFile:
    """A valid cluster file, or KubeRay manifest."""

    path: Path
    tree: dict[str, Any]
    """The file's tree without Ray's defaults."""
    name: str
    """The cluster's name."""
    provider: str
    """`aws`, `local`, `kuberay` and so on."""
    node_types: tuple[NodeType, ...]
    most_workers: int
    """Maximum number of nodes besides the head, over all types."""

    @property
    def has_ssh(self) -> bool:
        """Whether the head is reached by SSH; not on Kubernetes."""
        return self.provider != KUBERAY


def read_cluster_file(path: Path) -> ClusterFile:
    """The file at `path`. Raises UserError for errors that `ray up` would run into, where they can be found without a network."""
    source = Source.read(path)
    if source.is_manifest:
        config = raycluster_config(source)
    else:
        _check_begin(source)
        _check_schema(source)
        _check_texts(source)
        _check_provider(source)
        _check_counts(source)
        config = _with_defaults(source)
    types, provider = tuple(_node_types(config)), str(config["provider"]["type"])
    most = sum(node_type.most for node_type in types) if provider == "local" else int(config["max_workers"])
    return ClusterFile(path, source.tree, str(config["cluster_name"]), provider, types, most)


def check_ssh_key(cluster: ClusterFile) -> None:
    """Raise UserError where the file's private key doesn't exist on this machine."""
    key = cluster.tree["auth"].get("ssh_private_key") if cluster.has_ssh else None
    if key is not None and not _is_there(key):
        raise UserError(
            f"{cluster.path}: auth.ssh_private_key: {show(key)} is no file of this machine; the private key's path would be right"
        )


def check_file_mounts(cluster: ClusterFile) -> None:
    """Raise UserError where a file that `ray up` copies to the nodes is missing; paths relative to its working folder aren't checked."""
    for remote, local in cluster.tree.get("file_mounts", {}).items():
        if local.startswith(("~", "/")) and not _is_there(local):
            remedy = (
                "`ray get-auth-token --generate` makes it" if local.endswith(".ray/auth_token") else "a path of this machine would be right"
            )
            raise UserError(f"{cluster.path}: file_mounts.{remote}: {show(local)} is not there; {remedy}")


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # an invalid path, an unknown user
        return False


def _check_begin(source: Source) -> None:
    """Check the cluster's name and provider, which the other checks depend on."""
    tree = source.tree
    if not isinstance(tree.get("cluster_name"), str) or not tree["cluster_name"]:
        raise source.error(("cluster_name",), f"is {show(tree.get('cluster_name'))}; a name would be right")
    provider = tree.get("provider")
    known = _providers()
    if not isinstance(provider, dict) or provider.get("type") is None:
        raise source.error(("provider", "type"), f"is missing; one of {', '.join(known)} would be right")
    if provider["type"] not in known:
        guess = nearest(str(provider["type"]), known)
        raise source.error(
            ("provider", "type"),
            f"is {show(provider['type'])}; {f'{guess!r}, or one of ' if guess else 'one of '}{', '.join(known)} would be right",
        )


def _providers() -> list[str]:
    """The providers that `ray up` supports; Ray's wheel has only the names of some others."""
    inner = ("readonly", "spark", "fake_multinode", "fake_multinode_docker")
    return [name for name, defaults in providers().items() if name not in inner and defaults.is_file()]


def _check_schema(source: Source) -> None:
    """Check the file itself by Ray's schema: Ray checks it with defaults filled in, where lines are lost."""
    schema = json.loads(cluster_file_schema().read_text())
    tree = {key: value for key, value in source.tree.items() if not (key == "min_workers" and source.tree["provider"]["type"] == "local")}
    # Ray finds out itself what an AWS machine has.
    for definition in schema["properties"]["available_node_types"]["patternProperties"].values():
        definition["required"] = ["node_config"]
    source.check_schema(schema, tree)


def _check_texts(source: Source) -> None:
    """Check values that Ray's schema allows but that end Ray with a traceback."""
    tree = source.tree
    if not tree.get("auth", {}).get("ssh_user"):
        raise source.error(("auth", "ssh_user"), "is missing; the name to log in with on the nodes, ubuntu say, would be right")
    for remote, local in tree.get("file_mounts", {}).items():
        if not isinstance(local, str) or not local:
            raise source.error(("file_mounts", remote), f"is {show(local)}; the path of a file or folder of this machine would be right")
    for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter"):
        for index, item in enumerate(tree.get(key, [])):
            if not isinstance(item, str):
                raise source.error((key, index), f"is {show(item)}; text would be right")


def _check_provider(source: Source) -> None:
    tree, provider = source.tree, source.tree["provider"]
    if provider["type"] == "local":
        _check_machines(source)
        return
    types = tree.get("available_node_types")
    if types is not None:
        head = tree.get("head_node_type")
        if head not in types:
            raise source.error(
                ("head_node_type",),
                f"is {show(head)}; the name of a type of available_node_types ({', '.join(types) or 'it has none'}) would be right",
            )
    if provider["type"] == "aws":
        if not provider.get("region"):
            raise source.error(
                ("provider", "region"), f"is {show(provider.get('region'))}; a region of AWS's such as us-east-1 would be right"
            )
        for name, data in (types or {}).items():
            node = data["node_config"]
            if "LaunchTemplate" not in node and not isinstance(node.get("InstanceType"), str):
                place = ("available_node_types", name, "node_config", "InstanceType")
                raise source.error(place, f"is {show(node.get('InstanceType'))}; an instance type such as g5.xlarge would be right")
            if "ssh_private_key" in tree["auth"] and not {"KeyName", "UserData", "LaunchTemplate"} & set(node):
                place = ("available_node_types", name, "node_config", "KeyName")
                raise source.error(place, "is missing; AWS's name of the key pair of auth.ssh_private_key would be right")


def _check_machines(source: Source) -> None:
    """Check the addresses of a local provider."""
    tree, provider = source.tree, source.tree["provider"]
    for key in ("available_node_types", "head_node_type"):
        if key in tree:
            raise source.error((key,), "is not for the provider 'local', whose machines are provider.head_ip and provider.worker_ips")
    if "coordinator_address" in provider:
        if "max_workers" not in tree:
            raise source.error(("max_workers",), "is missing; the number of nodes to take of the coordinator's would be right")
        return
    if not isinstance(provider.get("head_ip"), str) or not provider["head_ip"]:
        raise source.error(("provider", "head_ip"), f"is {show(provider.get('head_ip'))}; the head's address would be right")
    if "worker_ips" not in provider:
        raise source.error(("provider", "worker_ips"), "is missing; a list of the workers' addresses, [] for none, would be right")
    for index, ip in enumerate(provider["worker_ips"]):
        if not isinstance(ip, str) or not ip:
            raise source.error(("provider", "worker_ips", index), f"is {show(ip)}; an address would be right")


def _check_counts(source: Source) -> None:
    """Check minimum and maximum numbers of nodes, by type and in all."""
    tree = source.tree
    if tree["provider"]["type"] == "local":
        least, most = tree.get("min_workers", 0), tree.get("max_workers")
        ips = len(tree["provider"].get("worker_ips", []))
        if isinstance(least, bool) or not isinstance(least, int) or least < 0:
            raise source.error(("min_workers",), f"is {show(least)}; a whole number of at least 0 would be right")
        for key, count in (("min_workers", least), ("max_workers", most)):
            if "coordinator_address" not in tree["provider"] and count is not None and count > ips:
                raise source.error((key,), f"is {count}, provider.worker_ips names {ips}; at most {ips} would be right")
        return
    total = 0
    for name, data in tree.get("available_node_types", {}).items():
        place = ("available_node_types", name)
        least = data.get("min_workers", 0)
        for key in ("min_workers", "max_workers"):
            if data.get(key, 0) < 0:
                raise source.error((*place, key), f"is {data[key]}; at least 0 would be right")
        if least > data.get("max_workers", 0 if name == tree["head_node_type"] else least):
            most = data.get("max_workers", 0)
            raise source.error((*place, "min_workers"), f"is {least}, max_workers is {most}; at most {most} would be right")
        total += least
    most = tree.get("max_workers")
    if most is not None and total > most:
        raise source.error(("max_workers",), f"is {most}, the node types' min_workers are {total} in all; at least {total} would be right")


def _with_defaults(source: Source) -> dict[str, Any]:
    """The file's tree with Ray's defaults, checked by Ray."""
    import copy

    import click
    import jsonschema  # type: ignore[import-untyped]

    from fewshot_ray.cluster.ray_private import prepare_config, validate_config

    # Ray's log lines are meant for `ray up`.
    logging.getLogger(AUTOSCALER_LOGGER).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            config: dict[str, Any] = prepare_config(copy.deepcopy(source.tree))
            for data in config["available_node_types"].values():
                data.setdefault("resources", {})
            validate_config(config)
    except jsonschema.ValidationError as error:
        raise source.schema_error(error) from error
    except (click.ClickException, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{source.name}: Ray refuses it: {' '.join(str(error).split())}") from error
    return config


def _node_types(config: dict[str, Any]) -> Iterator[NodeType]:
    """The node types of a tree with Ray's defaults; a local provider has two."""
    most = int(config["max_workers"])
    if config["provider"]["type"] == "local":
        data = next(iter(config["available_node_types"].values()))
        yield NodeType("head", {}, 0, 0, None, False, True)
        yield NodeType("worker", {}, int(data["min_workers"]), int(data["max_workers"]), None, False, False)
        return
    for name, data in config["available_node_types"].items():
        node = data["node_config"]
        instance = node.get("InstanceType") if config["provider"]["type"] == "aws" else None
        market = node.get("InstanceMarketOptions")
        yield NodeType(
            name=name,
            resources=_resources(instance, data["resources"]),
            least=int(data["min_workers"]),
            most=min(int(data["max_workers"]), most),
            instance=instance,
            spot=isinstance(market, dict) and market.get("MarketType") == "spot",
            is_head=name == config["head_node_type"],
        )


def _resources(instance: str | None, written: Mapping[str, float]) -> dict[str, float]:
    """A node's resources as Ray counts them: those of the instance type, overridden by the file's."""
    known = INSTANCES.get(instance or "")
    if known is None:
        return {kind: float(amount) for kind, amount in written.items()}
    machine = {"CPU": known.cpus, **({"GPU": known.gpus} if known.gpus else {})}
    return {kind: float(amount) for kind, amount in {**machine, **written}.items()}
