"""Helpers that know nothing of models or data."""

from .errors import UserError
from .numbers import is_number

__all__ = ['UserError', 'is_number']
