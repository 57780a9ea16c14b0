"""CPUs and GPUs of AWS's instance types, to check a cluster file without asking AWS."""

from __future__ import annotations

from typing import NamedTuple


class Instance(NamedTuple):
    """One instance type."""

    cpus: int
    gpus: int = 0
    gpu: str = ""


INSTANCES = {
    "m5.large": Instance(2),
    "m5.xlarge": Instance(4),
    "m5.2xlarge": Instance(8),
    "m5.4xlarge": Instance(16),
    "m6i.large": Instance(2),
    "m6i.xlarge": Instance(4),
    "m6i.2xlarge": Instance(8),
    "m6i.4xlarge": Instance(16),
    "c5.large": Instance(2),
    "c5.xlarge": Instance(4),
    "c5.2xlarge": Instance(8),
    "r5.large": Instance(2),
    "r5.xlarge": Instance(4),
    "g4dn.xlarge": Instance(4, 1, "T4"),
    "g4dn.2xlarge": Instance(8, 1, "T4"),
    "g4dn.4xlarge": Instance(16, 1, "T4"),
    "g4dn.8xlarge": Instance(32, 1, "T4"),
    "g4dn.12xlarge": Instance(48, 4, "T4"),
    "g4dn.16xlarge": Instance(64, 1, "T4"),
    "g5.xlarge": Instance(4, 1, "A10G"),
    "g5.2xlarge": Instance(8, 1, "A10G"),
    "g5.4xlarge": Instance(16, 1, "A10G"),
    "g5.8xlarge": Instance(32, 1, "A10G"),
    "g5.12xlarge": Instance(48, 4, "A10G"),
    "g5.16xlarge": Instance(64, 1, "A10G"),
    "g5.24xlarge": Instance(96, 4, "A10G"),
    "g5.48xlarge": Instance(192, 8, "A10G"),
    "g6.xlarge": Instance(4, 1, "L4"),
    "g6.2xlarge": Instance(8, 1, "L4"),
    "g6.4xlarge": Instance(16, 1, "L4"),
    "g6.12xlarge": Instance(48, 4, "L4"),
    "g6.48xlarge": Instance(192, 8, "L4"),
    "g6e.xlarge": Instance(4, 1, "L40S"),
    "g6e.2xlarge": Instance(8, 1, "L40S"),
    "g6e.4xlarge": Instance(16, 1, "L40S"),
    "g6e.12xlarge": Instance(48, 4, "L40S"),
    "g6e.48xlarge": Instance(192, 8, "L40S"),
    "p3.2xlarge": Instance(8, 1, "V100"),
    "p3.8xlarge": Instance(32, 4, "V100"),
    "p3.16xlarge": Instance(64, 8, "V100"),
    "p4d.24xlarge": Instance(96, 8, "A100"),
    "p4de.24xlarge": Instance(96, 8, "A100"),
    "p5.48xlarge": Instance(192, 8, "H100"),
}
