"""Heads."""

from .coarse_to_fine import CoarseToFineHead

__all__ = ['CoarseToFineHead']
