"""`source`: where training starts."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from fewshot_ray.spec.sections.section import Place, PositiveInt, Section, Text


class SourceSpec(Section):
    """Where training starts: a pre-trained model, or one built from scratch."""

    model: Place | None = None
    """Diffusers pipeline: hub id, folder, s3://... or embedded://digits-ddpm."""

    build: dict[str, Any] | None = None
    """Model built from scratch: UNet2DModel's configuration, with an optional `scheduler`."""

    adm: dict[str, Any] | None = None
    """Original ADM, guided-diffusion or P2 checkpoint: `weights` (a .pt file) and the flags it was trained with."""

    gan: dict[str, Any] | None = None
    """A GAN, from scratch or from its `weights`: {stylegan2: {resolution: 64}} or {fastgan: {resolution: 256}}."""

    images: Place | None = None
    """Images the source model was trained on: a folder, zip, Parquet file or URL, or 'generated'."""

    revision: Text | None = None
    """Branch, tag or commit of the model on its hub."""

    generated_images: PositiveInt = 256
    """Images the source model generates where `images` is 'generated'."""

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSpec:
        given = [name for name in ("model", "build", "adm", "gan") if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "neither model nor build, adm or gan is given"
            right = "model (a pre-trained pipeline), build (one from scratch), adm (an original checkpoint) or gan is right, one of them"
            raise ValueError(f"{said}; {right}")
        return self

    @property
    def pretrained(self) -> bool:
        """Whether training starts from given weights, not from random ones."""
        if self.gan is not None:
            return any(isinstance(settings, dict) and settings.get("weights") is not None for settings in self.gan.values())
        return self.build is None
