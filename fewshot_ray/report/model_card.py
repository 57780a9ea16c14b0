"""The model card (README.md) of an exported pipeline: what it is, all values that made it, and how to load it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML

from fewshot_ray.report.tables import format_value

LISTED_SHOTS = 100
"""Largest number of images whose hashes are listed; for more there is one hash over all."""


@dataclass(frozen=True)
class ModelCard:
    """The contents of a model card."""

    name: str
    """The model's name: the heading."""
    source_model: str
    """A hub id, a folder or a URL."""
    trial_id: str
    methods: Sequence[str]
    """The methods' names; empty for plain fine-tuning."""
    spec_yaml: str
    """The trial's spec with all values."""
    seed: int
    steps: int
    """The step whose EMA weights are exported."""
    shot_hashes: Sequence[str]
    """sha256 of each training image's pixels."""
    metrics: Mapping[str, float]
    directions: Mapping[str, str] = field(default_factory=dict)
    """Metric -> `min` or `max`."""
    source_metrics: Mapping[str, float] = field(default_factory=dict)
    """The same metrics of the source model as it is; empty where they weren't measured."""
    against_source: Sequence[str] = ()
    """What is to be said of the model beside the source, a line each."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """The settings that the metrics depend on: extractor, weight hash, N_real, N_gen, sampler, steps, seed."""
    metrics_from: str = "the evaluation that the step was chosen by"
    """Which model and images the metrics are of, in words: a refit's are those of the folds."""
    source_is_on_hub: bool = False
    """Whether `source_model` is a hub id: it is then linked and named as the base model."""
    source_revision: str | None = None
    own_code: str | None = None
    """Name of the code file in the pipeline that loads a network diffusers doesn't have."""
    call_arguments: str = "batch_size=16"
    """Arguments of the pipeline's call in the example."""
    call_remark: str = ""
    """Remark on the sampler of that call and on that of the metrics."""
    class_names: Sequence[str] = ()
    """Class names of a class-conditional model, by number."""
    confirmation: Sequence[str] = ()
    """What the reruns on fresh seeds say, a line each."""
    version: str | None = None
    """fewshot-ray's version."""
    picture: str | None = None
    """Name of an image beside the card, e.g. `samples.png`."""


def model_card(card: ModelCard) -> str:
    """The README.md: YAML front matter for the hub, then Markdown. It names no licence, since that isn't known here."""
    sections = [_front_matter(card), _summary(card), _loading(card), _metrics(card), _making(card), _data(card)]
    return "\n\n".join(sections) + "\n"


def _front_matter(card: ModelCard) -> str:
    front: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusers", "few-shot", "fine-tuning", "fewshot-ray", *card.methods],
    }
    if card.source_is_on_hub:
        front["base_model"] = card.source_model
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(front, text)
    return f"---\n{text.getvalue()}---"


def _summary(card: ModelCard) -> str:
    source = f"[{card.source_model}](https://huggingface.co/{card.source_model})" if card.source_is_on_hub else f"`{card.source_model}`"
    revision = f" (revision `{card.source_revision}`)" if card.source_revision else ""
    how = " + ".join(card.methods) if card.methods else "plain fine-tuning"
    shots = len(card.shot_hashes)
    text = f"# {card.name}\n\n{source}{revision}, fine-tuned on {shots} image{'s' if shots != 1 else ''} with {how}"
    tool = "fewshot-ray" + (f" {card.version}" if card.version else "")
    text += (
        f" for {card.steps} steps (seed {card.seed}) by {tool}, trial `{card.trial_id}`. The weights are the exponential moving average."
    )
    if card.own_code:
        text += f" The code of its network is shipped beside the weights as {card.own_code}."
    return text + (f"\n\n![samples]({card.picture})" if card.picture else "")


def _loading(card: ModelCard) -> str:
    remark = f"\n\n{card.call_remark}" if card.call_remark else ""
    trust = ", trust_remote_code=True" if card.own_code else ""
    return f"""## Use

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder"{trust})
images = pipeline({card.call_arguments}).images
```{remark}{_classes(card)}"""


def _classes(card: ModelCard) -> str:
    names = ", ".join(f"{number} {name}" for number, name in enumerate(card.class_names))
    return f"\n\nClasses: {names}." if names else ""


def _metrics(card: ModelCard) -> str:
    arrows = {"min": "lower", "max": "higher"}
    rows = []
    for name, value in card.metrics.items():
        source = f" {format_value(card.source_metrics.get(name))} |" if card.source_metrics else ""
        rows.append(f"| {name} | {format_value(float(value))} |{source} {arrows.get(card.directions.get(name, ''), '')} |")
    head = (
        ["| metric | value | source model | better |", "|---|---|---|---|"]
        if card.source_metrics
        else ["| metric | value | better |", "|---|---|---|"]
    )
    parts = ["## Metrics", f"Of {card.metrics_from}.", "\n".join([*head, *rows])]
    parts += [f"{line}." for line in card.against_source]
    if card.protocol:
        parts.append("Measured with " + ", ".join(f"{name}: {format_value(value)}" for name, value in card.protocol.items()) + ".")
    if card.confirmation:
        lines = "\n".join(f"- {line}" for line in card.confirmation)
        parts.append(f"Confirmed on fresh seeds, against plain fine-tuning:\n\n{lines}")
    return "\n\n".join(parts)


def _making(card: ModelCard) -> str:
    spec = card.spec_yaml.strip("\n")
    return f"## How it was made\n\nEvery value, as `fewshot-ray run` reads it:\n\n```yaml\n{spec}\n```"


def _data(card: ModelCard) -> str:
    count = len(card.shot_hashes)
    if count > LISTED_SHOTS:
        whole = hashlib.sha256("\n".join(sorted(card.shot_hashes)).encode()).hexdigest()
        return (
            f"## Training data\n\n{count} images; sha256 over the sorted sha256 (a line each, without a last newline) "
            f"of their decoded pixels:\n\n- `{whole}`"
        )
    hashes = "\n".join(f"- `{digest}`" for digest in card.shot_hashes)
    return f"## Training data\n\n{count} image{'s' if count != 1 else ''}; sha256 of their decoded pixels:\n\n{hashes}"
