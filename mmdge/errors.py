"""Errors that the person at the keyboard can fix."""


class UserError(ValueError):
    """A mistake in what was asked, said in one sentence.

    The message names what is wrong, where, and what to do. The tools print
    it as ``error: <sentence>`` and leave with exit code 2, without a
    traceback.
    """
