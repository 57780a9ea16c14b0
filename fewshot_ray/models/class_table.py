"""The class table of a class-conditional `DiTTransformer2DModel`: a new one for the target's classes, and the one `DiTPipeline` wants.

diffusers has no one table but a `LabelEmbedding` in every block, each with a last row for the null class, which stands for no label.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn


def with_class_table(transformer: DiTTransformer2DModel, classes: int) -> DiTTransformer2DModel:
    """A copy for labels 0 .. classes - 1 and the null class, label `classes`; each begins as the source's null class.

    So the copy is the unconditional source, whatever the label. `new_tables` finds its tables, until it is saved.
    Raises ValueError for fewer than 1 class.
    """
    if classes < 1:
        raise ValueError(f"classes={classes}: at least 1 is right")
    return _with_rows(transformer, [-1] * (classes + 1), new=True)


def for_pipeline(transformer: DiTTransformer2DModel, classes: int = 1000) -> DiTTransformer2DModel:
    """A copy with `classes` classes, those past its own the null class: `DiTPipeline` takes the null class to be label 1000.

    Raises ValueError where `classes` is below 1 or below the transformer's own.
    """
    own = int(transformer.config.num_embeds_ada_norm)
    if classes < max(own, 1):
        raise ValueError(f"classes={classes}: the transformer has {own} classes, so at least {own} is right")
    return _with_rows(transformer, [*range(own), *[-1] * (classes + 1 - own)], new=False)


def without_label_dropping(transformer: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Let no block drop labels in training, since each would draw for itself; changes `transformer` and returns it.

    A probability of 0 from the start would leave out the null row.
    """
    for embedder in _embedders(transformer):
        embedder.dropout_prob = 0.0
    return transformer


def new_tables(network: nn.Module) -> list[nn.Parameter]:
    """The tables that `with_class_table` put into `network`, `[classes + 1, D]` a block, peft's wrapping or not; else none."""
    return [embedder.embedding_table.weight for embedder in _embedders(network) if getattr(embedder, "is_new", False)]


def _with_rows(transformer: DiTTransformer2DModel, rows: list[int], *, new: bool) -> DiTTransformer2DModel:
    """A copy whose tables are made of the source's rows of these indices, the last of them the null class."""
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
