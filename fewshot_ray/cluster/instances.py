"""What AWS's machines hold and cost: enough to judge a cluster file without asking AWS."""

from __future__ import annotations

from typing import NamedTuple

PRICES_OF = "on demand, us-east-1, June 2025"
"""AWS changes prices; other regions cost more. `USD_per_hour` is None where a price isn't sure."""


class Instance(NamedTuple):
    """One machine."""

    cpus: int
    gpus: int = 0
    gpu: str = ""
    usd_per_hour: float | None = None


INSTANCES = {
    "m5.large": Instance(2, usd_per_hour=0.096),
    "m5.xlarge": Instance(4, usd_per_hour=0.192),
    "m5.2xlarge": Instance(8, usd_per_hour=0.384),
    "m5.4xlarge": Instance(16, usd_per_hour=0.768),
    "m6i.large": Instance(2, usd_per_hour=0.096),
    "m6i.xlarge": Instance(4, usd_per_hour=0.192),
    "m6i.2xlarge": Instance(8, usd_per_hour=0.384),
    "m6i.4xlarge": Instance(16, usd_per_hour=0.768),
    "c5.large": Instance(2, usd_per_hour=0.085),
    "c5.xlarge": Instance(4, usd_per_hour=0.17),
    "c5.2xlarge": Instance(8, usd_per_hour=0.34),
    "r5.large": Instance(2, usd_per_hour=0.126),
    "r5.xlarge": Instance(4, usd_per_hour=0.252),
    "g4dn.xlarge": Instance(4, 1, "T4", 0.526),
    "g4dn.2xlarge": Instance(8, 1, "T4", 0.752),
    "g4dn.4xlarge": Instance(16, 1, "T4", 1.204),
    "g4dn.8xlarge": Instance(32, 1, "T4", 2.176),
    "g4dn.12xlarge": Instance(48, 4, "T4", 3.912),
    "g4dn.16xlarge": Instance(64, 1, "T4", 4.352),
    "g5.xlarge": Instance(4, 1, "A10G", 1.006),
    "g5.2xlarge": Instance(8, 1, "A10G", 1.212),
    "g5.4xlarge": Instance(16, 1, "A10G", 1.624),
    "g5.8xlarge": Instance(32, 1, "A10G", 2.448),
    "g5.12xlarge": Instance(48, 4, "A10G", 5.672),
    "g5.16xlarge": Instance(64, 1, "A10G", 4.096),
    "g5.24xlarge": Instance(96, 4, "A10G", 8.144),
    "g5.48xlarge": Instance(192, 8, "A10G", 16.288),
    "g6.xlarge": Instance(4, 1, "L4", 0.8048),
    "g6.2xlarge": Instance(8, 1, "L4", 0.9776),
    "g6.4xlarge": Instance(16, 1, "L4", 1.3232),
    "g6.12xlarge": Instance(48, 4, "L4", 4.6016),
    "g6.48xlarge": Instance(192, 8, "L4", 13.3504),
    "g6e.xlarge": Instance(4, 1, "L40S", 1.861),
    "g6e.2xlarge": Instance(8, 1, "L40S", 2.24208),
    "g6e.4xlarge": Instance(16, 1, "L40S", 3.00424),
    "g6e.12xlarge": Instance(48, 4, "L40S", 10.49264),
    "g6e.48xlarge": Instance(192, 8, "L40S", 30.13118),
    "p3.2xlarge": Instance(8, 1, "V100", 3.06),
    "p3.8xlarge": Instance(32, 4, "V100", 12.24),
    "p3.16xlarge": Instance(64, 8, "V100", 24.48),
    "p4d.24xlarge": Instance(96, 8, "A100"),
    "p4de.24xlarge": Instance(96, 8, "A100"),
    "p5.48xlarge": Instance(192, 8, "H100"),
}
"""The P4 and P5 families' prices fell in June 2025: not given here."""
