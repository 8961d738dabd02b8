"""Whether a graph is being exported."""

import torch


def exporting() -> bool:
    """Whether :func:`torch.export.export` runs the model.

    While :func:`torch.compile` does, PyTorch's own function says so, too.
    """
    return (
        torch.compiler.is_exporting()
        and not torch.compiler.is_dynamo_compiling()
    )
