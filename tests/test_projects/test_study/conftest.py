"""What the tests of the tools use."""

from tests.test_tools.conftest import random_model, shapes, tool  # noqa: F401
