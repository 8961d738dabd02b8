"""Helpers of the tools: starting, checking, timing."""

from mmdge.errors import UserError

from .numbers import is_number

__all__ = ['UserError', 'is_number']
