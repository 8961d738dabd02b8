"""Helpers of the tools: starting, checking, explaining mistakes, timing."""

from .errors import UserError
from .numbers import is_number

__all__ = ['UserError', 'is_number']
