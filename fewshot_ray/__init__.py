"""Regularised few-shot fine-tuning of pre-trained generators, searched with Ray and Optuna."""

__version__ = "0.1.0"
