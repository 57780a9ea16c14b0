"""The command line."""

from fewshot_ray.cli.main import main

__all__ = ["main"]
