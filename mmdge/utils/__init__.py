"""Helpers that know nothing of models or data."""

from .errors import UserError

__all__ = ['UserError']
