"""The class table of a class-conditional `DiTTransformer2DModel`: one for the target's classes, and one as `DiTPipeline` expects it.

diffusers has no single table but a `LabelEmbedding` in every block, each with a last row for the null class (no label).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

PIPELINE_CLASSES = 1000
"""Classes of `DiTPipeline`, whose null class is label 1000."""


def with_class_table(transformer: DiTTransformer2DModel, classes: int) -> DiTTransformer2DModel:
    """A copy for labels 0 .. classes - 1 and the null class, label `classes`; each begins as the source's null class.

    So at first the copy computes the unconditional source for every label. `new_tables` finds its tables until it is saved.
    Raises ValueError for fewer than 1 class.
    """
    if classes < 1:
        raise ValueError(f"classes={classes}: at least 1 is right")
    return _with_rows(transformer, [-1] * (classes + 1), new=True)


def for_pipeline(transformer: DiTTransformer2DModel, classes: int = PIPELINE_CLASSES) -> DiTTransformer2DModel:
    """A copy with `classes` classes, the added ones copies of the null class: `DiTPipeline` uses label 1000 as the null class.

    Raises ValueError where `classes` is below 1 or below the transformer's own.
    """
    own = int(transformer.config.num_embeds_ada_norm)
    if classes < max(own, 1):
        raise ValueError(f"classes={classes}: the transformer has {own} classes, so at least {own} is right")
    return _with_rows(transformer, [*range(own), *[-1] * (classes + 1 - own)], new=False)


def without_label_dropping(transformer: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Switch off label dropping in every block, since each would draw separately; changes `transformer` and returns it.

    With a probability of 0 at construction the tables would lack the null row.
    """
    for embedder in _embedders(transformer):
        embedder.dropout_prob = 0.0
    return transformer


def new_tables(network: nn.Module) -> list[nn.Parameter]:
    """The tables that `with_class_table` put into `network`, `[classes + 1, D]` per block, also inside peft's wrapping."""
    return [embedder.embedding_table.weight for embedder in _embedders(network) if getattr(embedder, "is_new", False)]


def _with_rows(transformer: DiTTransformer2DModel, rows: list[int], *, new: bool) -> DiTTransformer2DModel:
    """A copy whose tables are the source's rows at these indices, the last one the null class."""
    result = copy.deepcopy(transformer)
    for embedder in _embedders(result):
        source: Tensor = embedder.embedding_table.weight.detach()
        table = source[torch.tensor(rows, device=source.device)]
        # from_pretrained draws no random numbers
        embedder.embedding_table = nn.Embedding.from_pretrained(table, freeze=False)
        embedder.num_classes = len(rows) - 1
        embedder.is_new = new
    result.register_to_config(num_embeds_ada_norm=len(rows) - 1)
    return result


def _embedders(network: nn.Module) -> Iterator[LabelEmbedding]:
    return (module for module in network.modules() if isinstance(module, LabelEmbedding))
