"""From a host's model to a file for other runtimes, and back into the host.

What is exported are raw outputs; what makes boxes, masks and labels of them
stays in the host.
"""

from .export import export_onnx
from .images import backbone_inputs, batch_of, common_size, fit, resized, shown
from .onnx_file import Description, digest, require_packages
from .raw_outputs import FLOPS, SCOPES, RawOutputs, part_of
from .runtime import OnnxSession, replace_part, set_form

__all__ = [
    'FLOPS',
    'SCOPES',
    'Description',
    'OnnxSession',
    'RawOutputs',
    'backbone_inputs',
    'batch_of',
    'common_size',
    'digest',
    'export_onnx',
    'fit',
    'part_of',
    'replace_part',
    'require_packages',
    'resized',
    'set_form',
    'shown',
]
