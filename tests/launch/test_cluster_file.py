"""A cluster file is taken or refused before anything is started, and the ones that come with the project are taken."""

from __future__ import annotations

import copy
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from fewshot_ray.errors import UserError
from fewshot_ray.launch.capacity import most_nodes
from fewshot_ray.launch.cluster_file import check_file_mounts, check_ssh_key, read_cluster_file
from fewshot_ray.launch.instances import INSTANCES

ROOT = Path(__file__).parents[2]
SHIPPED = {"cluster.yaml": {"<region>": "us-east-1", "<bucket>": "b"}}
SHIPPED["cluster/onprem.yaml"] = {"<address of the head>": "10.0.0.1", "<address of a worker>": "10.0.0.2", "<user>": "u"}

AWS = """
cluster_name: c
max_workers: 3
provider: {type: aws, region: us-east-1}
auth: {ssh_user: ubuntu}
head_node_type: head
available_node_types:
  head: {node_config: {InstanceType: m6i.large}}
  spot:
    max_workers: 8
    resources: {CPU: 2}
    node_config: {InstanceType: g5.xlarge, InstanceMarketOptions: {MarketType: spot}}
file_mounts: {~/.ray/auth_token: ~/.ray/auth_token}
"""
LOCAL = """
cluster_name: c
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}
auth: {ssh_user: me, ssh_private_key: ~/.ssh/id}
"""
KUBERAY = """
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: c}
spec:
  enableInTreeAutoscaling: true
  headGroupSpec:
    rayStartParams: {num-cpus: "0"}
    template: {spec: {containers: [{name: head, resources: {limits: {cpu: "4"}}}]}}
  workerGroupSpecs:
    - groupName: gpu
      minReplicas: 1
      maxReplicas: 3
      template: {spec: {containers: [{name: worker, resources: {limits: {cpu: 7500m, nvidia.com/gpu: "2"}}}]}}
    - groupName: slices
      maxReplicas: 2
      numOfHosts: 2
      rayStartParams: {num-cpus: "16", num-gpus: "8"}
      template: {spec: {containers: [{name: worker}]}}
"""


def filled_in(name: str, folder: Path) -> Path:
    text = (ROOT / name).read_text()
    for placeholder, value in SHIPPED[name].items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    path = folder / "filled.yaml"
    path.write_text(text)
    return path


def written(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read_cluster_file(path)
    return str(raised.value)


def test_aws_types(tmp_path: Path) -> None:
    """Oracle: written by hand. What the file says of a type stands over what AWS says; no type has more nodes than all together."""
    cluster = read_cluster_file(written(tmp_path, AWS))
    head, spot = cluster.node_types
    assert (cluster.name, cluster.provider, cluster.most_workers) == ("c", "aws", 3)
    assert (head.is_head, head.least, head.most, dict(head.resources), head.spot) == (True, 0, 0, {"CPU": 2}, False)
    assert (spot.is_head, spot.least, spot.most, dict(spot.resources), spot.spot) == (False, 0, 3, {"CPU": 2, "GPU": 1}, True)


def test_local_machines(tmp_path: Path) -> None:
    cluster = read_cluster_file(written(tmp_path, LOCAL))
    assert [(t.name, t.least, t.most, dict(t.resources), t.is_head) for t in cluster.node_types] == [
        ("head", 0, 0, {}, True),
        ("worker", 2, 2, {}, False),
    ]
    assert cluster.most_workers == 2


def test_workers_that_the_file_does_not_bound(tmp_path: Path) -> None:
    """Oracle: Ray's own default."""
    from fewshot_ray.cluster.ray_private import prepare_config

    text = AWS.replace("max_workers: 3\n", "", 1)
    assert read_cluster_file(written(tmp_path, text)).most_workers == prepare_config(yaml.safe_load(text))["max_workers"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_complete_once_filled_in(name: str, tmp_path: Path) -> None:
    """Each placeholder is asked for; with all filled in Ray's schema holds, and what is to be copied is in the repository."""
    placeholder = next(iter(SHIPPED[name]))
    assert f"{placeholder} is still to be filled in" in refusal(ROOT / name)
    cluster = read_cluster_file(filled_in(name, tmp_path))
    for local in cluster.tree["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists()
    for node_type in cluster.node_types:
        if node_type.instance:
            known = INSTANCES[node_type.instance]
            assert node_type.resources.get("GPU", 0) == known.gpus
            assert node_type.is_head or node_type.resources["CPU"] == known.cpus


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_shut_the_doors(name: str) -> None:
    """The token is asked for in every shell that starts Ray, the dashboard is the head's own, and Ray knows every option."""
    tree = yaml.safe_load((ROOT / name).read_text())
    setup = "\n".join(tree["setup_commands"])
    assert "RAY_AUTH_MODE=token" in setup
    assert "chmod 600 ~/.ray/auth_token" in setup
    assert tree["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [tree["head_start_ray_commands"][-1], tree["worker_start_ray_commands"][-1]]
    assert "--dashboard-host=127.0.0.1" in starts[0]
    ray = Path(sys.executable).with_name("ray")
    known = subprocess.run([ray, "start", "--help"], capture_output=True, text=True, check=True).stdout
    for option in re.findall(r"--[a-z-]+", " ".join(starts)):
        assert option in known
    ports = re.compile(r"--(?:node-manager|object-manager|min-worker|max-worker)-port=\d+")
    assert ports.findall(starts[0]) == ports.findall(starts[1]) != []


def test_aws_file_holds_no_key_and_opens_no_port() -> None:
    tree = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert "IpPermissions" not in tree["provider"]["security_group"]
    assert all("IamInstanceProfile" in data["node_config"] for data in tree["available_node_types"].values())
    assert not re.search(r"AKIA|aws_secret|aws_credentials", (ROOT / "cluster.yaml").read_text())


BAD = {
    "max_workers: many": ("max_workers: 3", "line 3: max_workers: is 'many'; a whole number would be right"),
    "max_worker: 3": ("max_workers: 3", "line 3: max_worker: is no field of Ray's; 'max_workers' would be right"),
    "max_workers: 3\nmax_workers: 4": ("max_workers: 3", "line 4: max_workers: is given twice (first in line 3); once is right"),
    "provider: {region: us-east-1}": ("provider: {type: aws, region: us-east-1}", "line 4: provider.type: is missing"),
    "provider: {type: asw}": ("provider: {type: aws, region: us-east-1}", "line 4: provider.type: is 'asw'; 'aws', or one of"),
    "provider: {type: aws}": ("provider: {type: aws, region: us-east-1}", "line 4: provider.region: is nothing; a region"),
    "head_node_type: haed": ("head_node_type: head", "line 6: head_node_type: is 'haed'; the name of a type"),
    "min_workers: 4": ("max_workers: 8", "line 3: max_workers: is 3, the node types' min_workers are 4 in all; at least 4"),
    "resources: {CPU: two}": ("resources: {CPU: 2}", "available_node_types.spot.resources.CPU: is 'two'; a whole number"),
    "auth: {ssh_user: u, ssh_private_key: k}": ("auth: {ssh_user: ubuntu}", "available_node_types.head.node_config.KeyName: is missing"),
    "auth: {}": ("auth: {ssh_user: ubuntu}", "auth.ssh_user: is missing"),
    "cluster_name: 2026-01-01": (
        "cluster_name: c",
        "line 2: cluster_name: is read as a date (2026-01-01); quotes around it would be right",
    ),
    "cluster_name: <name>": ("cluster_name: c", "line 2: cluster_name: <name> is still to be filled in"),
    "cluster_name: [": ("cluster_name: c", "not valid YAML"),
    "cluster_name: !!int ''": ("cluster_name: c", "line 2: the tag"),
    "apiVersion: ray.io/v1": ("cluster_name: c", "is a Kubernetes manifest with 0 objects of kind RayCluster"),
    "cluster_name: c\n---\na: 1\n---": ("cluster_name: c", "holds 3 documents; a cluster file is one"),
}


def test_no_file_to_read(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "none.yaml")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in refusal(tmp_path / "bytes.yaml")


def test_what_is_to_be_copied_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    aws = read_cluster_file(written(tmp_path, AWS))
    check_ssh_key(aws)  # it names none: Ray makes one
    with pytest.raises(UserError, match="get-auth-token --generate"):
        check_file_mounts(aws)
    local = read_cluster_file(written(tmp_path, LOCAL))
    with pytest.raises(UserError, match=r"auth\.ssh_private_key: '~/.ssh/id' is no file of this machine"):
        check_ssh_key(local)
    for name in (".ray/auth_token", ".ssh/id"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    check_file_mounts(aws)
    check_ssh_key(local)


def test_merged_keys(tmp_path: Path) -> None:
    """Oracle: YAML's merge, where what is written in place goes before what is merged."""
    types = "  spot: &g {max_workers: 2, node_config: {InstanceType: g5.xlarge}}\n  demand: {<<: *g, max_workers: 1}\n"
    cluster = read_cluster_file(written(tmp_path, AWS[: AWS.index("  spot:")] + types))
    assert [(found.name, found.most) for found in cluster.node_types] == [("head", 0), ("spot", 2), ("demand", 1)]


def test_a_manifests_groups(tmp_path: Path) -> None:
    """Oracle: by hand, KubeRay's rules: a group's start parameters go before its pod's limits, CPUs are rounded up, hosts are counted."""
    cluster = read_cluster_file(written(tmp_path, KUBERAY + "---\nkind: NetworkPolicy\napiVersion: v1\n"))
    assert (cluster.name, cluster.provider, cluster.most_workers, cluster.has_ssh) == ("c", "kuberay", 7, False)
    head, gpu, slices = [(found.is_head, found.least, found.most, dict(found.resources)) for found in cluster.node_types]
    assert head == (True, 0, 0, {"CPU": 0})
    assert gpu == (False, 1, 3, {"CPU": 8, "GPU": 2})
    assert slices == (False, 0, 4, {"CPU": 16, "GPU": 8})
    assert most_nodes(cluster) == {"head": {"CPU": 0}, "types": [({"CPU": 8, "GPU": 2}, 3), ({"CPU": 16, "GPU": 8}, 4)], "together": 7}
    check_ssh_key(cluster)
    check_file_mounts(cluster)


def test_a_manifest_without_the_autoscaler(tmp_path: Path) -> None:
    """Oracle: KubeRay's rule: `replicas` between the bounds, the lower one where there is none; a suspended group has none."""
    text = KUBERAY.replace("enableInTreeAutoscaling: true", "suspend: false")
    for replicas, pods in (("minReplicas: 1", 1), ("replicas: 2", 2), ("replicas: 9", 3), ("minReplicas: 2\n      replicas: 0", 2)):
        found = read_cluster_file(written(tmp_path, text.replace("minReplicas: 1", replicas))).node_types
        assert [(group.least, group.most) for group in found] == [(0, 0), (pods, pods), (0, 0)]
    for file in (text, KUBERAY):
        assert read_cluster_file(written(tmp_path, file.replace("minReplicas: 1", "suspend: true"))).node_types[1].most == 0


def test_the_shipped_manifest(tmp_path: Path) -> None:
    """Oracle: what its comments say: four pods of a GPU at most, none while nothing waits, no trial on the head, and the token."""
    path = ROOT / "cluster/kuberay.yaml"
    assert "<image> is still to be filled in" in refusal(path)
    cluster = read_cluster_file(written(tmp_path, path.read_text().replace("<image>", "registry/image:1")))
    head, gpu = cluster.node_types
    assert (head.resources["CPU"], gpu.least, gpu.most, gpu.resources["CPU"], gpu.resources["GPU"]) == (0, 0, 4, 8, 1)
    spec = cluster.tree["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "fewshot-ray-token"}
    assert spec["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"


BAD_MANIFESTS = {
    "minReplicas: 4": ("minReplicas: 1", "line 12: spec.workerGroupSpecs.0.minReplicas: is 4, maxReplicas is 3; at most 3"),
    "maxReplica: 3": ("maxReplicas: 3", "line 11: spec.workerGroupSpecs.0.maxReplicas: is missing; the most pods"),
    "maxReplicas: -1": ("maxReplicas: 3", "line 13: spec.workerGroupSpecs.0.maxReplicas: is -1; at least 0"),
    "num-cpus: 0": ('num-cpus: "0"', "line 8: spec.headGroupSpec.rayStartParams.num-cpus: is 0; text would be right"),
    "cpu: many": ("cpu: 7500m", "can't read it: "),
    "groupName: gpu": ("groupName: slices", "line 15: spec.workerGroupSpecs.1.groupName: is 'gpu', the name of another group"),
    "groupName: headgroup": ("groupName: gpu", "line 11: spec.workerGroupSpecs.0.groupName: is 'headgroup', the name of another group"),
    "{spec: {nodeSelector: {a: 2}, ": ("{spec: {", "template.spec.nodeSelector.a: is 2; text would be right"),
    "containers: []": ("containers: [{name: worker}]", "spec.workerGroupSpecs.1.template.spec.containers: "),
    "kind: RayService": ("kind: RayCluster", "manifest with 0 objects of kind RayCluster"),
    "metadata: {}": ("metadata: {name: c}", "metadata.name: is missing"),
}


@pytest.mark.parametrize(
    ("text", "bad", "good", "expected"),
    [(text, bad, *told) for text, cases in ((AWS, BAD), (KUBERAY, BAD_MANIFESTS)) for bad, told in cases.items()],
)
def test_refused_in_one_line(text: str, bad: str, good: str, expected: str, tmp_path: Path) -> None:
    """Oracle: written by hand; the file is right but for `bad` in the place of `good`."""
    assert good in text
    line = refusal(written(tmp_path, text.replace(good, bad, 1)))
    assert expected in line
    assert "\n" not in line


JUNK: list[Any] = [None, True, -1, 0, 1.5, 10**30, float("nan"), "", "x", "local", [], ["a"], [None], {}, {"a": 1}, {7: {}}, "~nobody/x"]


def places(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place] * bool(place) + [found for key, value in below for found in places(value, (*place, key))]


@pytest.mark.parametrize("text", [AWS, LOCAL, KUBERAY], ids=["aws", "local", "kuberay"])
def test_no_value_at_any_place_ends_in_a_traceback(text: str, tmp_path: Path) -> None:
    """Every place of a file with other values, or gone: it is taken, or refused with a UserError of one line."""
    draw = random.Random(0)
    original, lines = yaml.safe_load(text), []
    for place in places(original):
        for value in draw.sample(JUNK, 6):
            tree = copy.deepcopy(original)
            node = tree
            for key in place[:-1]:
                node = node[key]
            if value is None and isinstance(node, dict):
                del node[place[-1]]
            else:
                node[place[-1]] = value
            try:
                cluster = read_cluster_file(written(tmp_path, yaml.safe_dump(tree)))
                check_ssh_key(cluster)
                check_file_mounts(cluster)
            except UserError as error:
                lines.append(str(error))
    assert len(lines) > 50
    assert not [line for line in lines if "\n" in line]
