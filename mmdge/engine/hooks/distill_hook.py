"""The dense twin teaches: distillation on any module's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmdge.models.cost import Cost
from mmdge.registry import HOOKS
from mmdge.utils import UserError, checks, launch

from .cost_hook import find_dynamic_backbones, unwrap


@HOOKS.register_module()
class DistillHook(Hook):
    """Let the dense twin teach what named modules return.

    The teacher is the same model with every decision at the dense candidate,
    frozen, in evaluation mode, fed the same images. For each target a loss
    between the module's output in student and teacher is added to the loss
    dict, whatever the host and the backbone; no host class is patched.

    Source: DynamicViT (NeurIPS 2021), section 3.3, equations (13) to (15):
    tokens of the final norm, ``dict(module='backbone.norm', loss='mse',
    loss_weight=0.5, kept_only=True)``, and logits, ``dict(module=<last layer
    of the head>, loss='kl', loss_weight=0.5)``.

    Args:
        targets (Sequence[dict]): Each with ``module``, a name in the model
            whose output is a tensor or a tuple of tensors; ``loss``,
            ``'mse'`` (mean squared error, the default), ``'relative'`` (see
            :func:`relative_error`) or ``'kl'`` (divergence of the teacher's
            class probabilities, dimension 1, from the student's, averaged
            over the rest); ``loss_weight``, which defaults to 1; and
            ``kept_only``, whether what the last decision dropped is left
            out, which defaults to False. Defaults to the backbone's outputs
            by mean squared error.
        teacher (str, optional): Checkpoint of the teacher, in any layout
            that the backbone knows; of the backbone alone, if the targets
            are inside it. Defaults to None: the weights that the training
            starts from.
    """

    def __init__(
        self,
        targets: Sequence[Mapping] = (dict(module='backbone'),),
        teacher: str | None = None,
    ) -> None:
        self.targets = [check_target(**target) for target in targets]
        self.teacher_file = teacher
        self._handles = []

    def before_run(self, runner: Any) -> None:
        """Look at the teacher's file before anything is trained."""
        if self.teacher_file is not None:
            checks.check_checkpoint(self.teacher_file)

    def before_train(self, runner: Any) -> None:
        """Build the teacher, and attach to the model.

        Raises:
            UserError: If a resumed training cannot know its teacher, or the
                teacher's file lacks what it is to teach.
        """
        student = unwrap(runner.model)
        backbones = find_dynamic_backbones(student, type(self).__name__)
        if self.teacher_file is None and runner.iter > 0:
            raise UserError(
                'a resumed training no longer has the weights that it started '
                'from: give the DistillHook teacher=..., the checkpoint of '
                'its load_from'
            )
        teacher = MODELS.build(runner.cfg.model)
        if self.teacher_file is None:
            teacher.load_state_dict(student.state_dict())
        else:
            whole = launch.load_weights(teacher, self.teacher_file)
            names = [target['module'] for target in self.targets]
            if not whole and any(part_of(n) != 'backbone' for n in names):
                raise UserError(
                    f'DistillHook: {self.teacher_file} holds a backbone, or '
                    'another head, and cannot teach '
                    f'{", ".join(names)}; name a checkpoint of this model'
                )
        device = next(student.parameters()).device
        self.attach(student, teacher.to(device), backbones[0])

    def after_train(self, runner: Any) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def attach(
        self, student: nn.Module, teacher: nn.Module, backbone: nn.Module
    ) -> None:
        """Add the losses to what ``student`` returns in ``loss`` mode.

        Args:
            student (nn.Module): A host's model.
            teacher (nn.Module): Another of the same kind.
            backbone (nn.Module): The student's.
        """
        teacher.eval().requires_grad_(False)
        for twin in find_dynamic_backbones(teacher, type(self).__name__):
            twin.dense = True
        names = [target['module'] for target in self.targets]
        modules = dict(student.named_modules())
        missing = [name for name in names if name not in modules]
        if missing:
            raise UserError(
                f'DistillHook: {type(student).__name__} has no module '
                f'{missing[0]!r}; print(model) shows their names'
            )
        seen: dict[str, list] = {name: [] for name in names}

        def finish(
            module: nn.Module, args: tuple, kwargs: dict, output: Any
        ) -> Any:
            losses = {}
            if isinstance(output, dict) and module.training:
                inputs = kwargs['inputs'] if 'inputs' in kwargs else args[0]
                taught = run_teacher(teacher, inputs, names)
                for target in self.targets:
                    name = target['module']
                    key = f'loss_distill_{name.replace(".", "_")}'
                    losses[key] = losses.get(key, 0.0) + target_loss(
                        seen[name], taught[name], backbone.cost, **target
                    )
            for outputs in seen.values():  # nothing outlives the step
                outputs.clear()
            return {**output, **losses} if losses else output

        self._handles = [
            *(_listen(modules[name], seen[name], True) for name in seen),
            # Before CostHook's, which takes the graph off the cost.
            student.register_forward_hook(
                finish, with_kwargs=True, prepend=True
            ),
        ]


def check_target(module: str, loss: str = 'mse', **options: Any) -> dict:
    """Fill in a target of :class:`DistillHook`, or raise a UserError."""
    target = dict(module=module, loss=loss, loss_weight=1.0, kept_only=False)
    unknown = options.keys() - target.keys()
    if unknown or loss not in LOSSES:
        raise UserError(
            f'a target of DistillHook has {sorted(target)}, and its loss is '
            f'one of {sorted(LOSSES)}, but got loss={loss!r}, {options}.'
        )
    return {**target, **options}


def part_of(name: str) -> str:
    """The part of a model, ``'backbone'`` or another, that a module is in."""
    return name.partition('.')[0]


def _listen(module: nn.Module, outputs: list, with_graph: bool) -> Any:
    def note(module: nn.Module, args: tuple, output: Any) -> None:
        if torch.is_grad_enabled() == with_graph:
            outputs.append(output)

    return module.register_forward_hook(note)


@torch.no_grad()
def run_teacher(
    teacher: nn.Module, inputs: Tensor, names: Sequence[str]
) -> dict[str, list]:
    """What named modules of the teacher return for images.

    Only as much of it runs as the names need.
    """
    modules = dict(teacher.named_modules())
    seen: dict[str, list] = {name: [] for name in names}
    handles = [_listen(modules[name], seen[name], False) for name in seen]
    try:
        parts = {part_of(name) for name in names}
        if parts == {'backbone'}:
            teacher.backbone(inputs)
        elif parts <= {'backbone', 'neck'}:
            teacher.extract_feat(inputs)
        else:
            teacher(inputs, mode='tensor')
    finally:
        for handle in handles:
            handle.remove()
    return seen


def target_loss(
    student: Sequence,
    teacher: Sequence,
    cost: Cost,
    module: str,
    loss: str,
    loss_weight: float,
    kept_only: bool,
) -> Tensor:
    """Loss between outputs of a module, averaged over its tensors.

    Args:
        student (Sequence): Its outputs, one for each time that it ran.
        teacher (Sequence): Likewise.
        cost (Cost): Of the student's backbone.
        module (str): See :class:`DistillHook`, also for the others.
        loss (str): See there.
        loss_weight (float): See there.
        kept_only (bool): See there.
    """
    ours, theirs = list(tensors(student)), list(tensors(teacher))
    if not ours or [o.shape for o in ours] != [t.shape for t in theirs]:
        raise UserError(
            f'DistillHook: {module!r} returned tensors of the shapes '
            f'{[tuple(o.shape) for o in ours]}, and in the teacher '
            f'{[tuple(t.shape) for t in theirs]}; name a module that runs '
            'once for an image, in training as well as in mode="tensor"'
        )
    losses = []
    for our, their in zip(ours, theirs, strict=True):
        if kept_only and cost.maps:  # else all were
            our, their = (_kept(x, cost, module) for x in (our, their))
        # An image that has lost all its tokens has nothing to learn from.
        value = LOSSES[loss](our.float(), their.float())
        losses.append(value if len(our) else our.sum())
    return loss_weight * torch.stack(losses).mean()


def tensors(outputs: Any) -> Iterator[Tensor]:
    """All tensors of nested tuples and lists."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from tensors(output)


def _kept(x: Tensor, cost: Cost, module: str) -> Tensor:
    """Rows of what the last decision computed, ``(num, C)``.

    Of tokens ``(B, E + N, C)`` or a map ``(B, C, h, w)`` of these images.
    """
    if x.dim() == 4:
        x = x.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h * w, C)
    kept = cost.maps[-1].share.flatten(1) > 0  # (B, N)
    num_extra = x.shape[1] - kept.shape[1]
    # Of larger cells there are several rows each; of tokens a few are extra.
    if num_extra not in range(max(3, kept.shape[1])):
        raise UserError(
            f'DistillHook: kept_only is for decisions on tokens, but there '
            f'are {kept.shape[1]} cells and {module!r} has {x.shape[1]} rows'
        )
    return x[:, num_extra:][kept]


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over the teacher's variance.

    0 where they agree; 1 is what each channel's mean in place of the map, or
    the mean of all channels in place of a cls token, would get wrong. So maps
    of all stages weigh alike.

    Args:
        student (Tensor): ``(B, C, ...)``, as a map or a cls token.
        teacher (Tensor): Of the same shape.
    """
    # A cls token is one of few: its channels vary, not its places.
    others = [d for d in range(teacher.dim()) if d != 1]
    others = others if teacher.dim() > 2 else [1]
    spread = teacher - teacher.mean(others, keepdim=True)
    variance = spread.square().mean().clamp(min=1e-12)
    return F.mse_loss(student, teacher) / variance


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = student.log_softmax(1), teacher.log_softmax(1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction='none')
    return divergence.sum(1).mean()


LOSSES: dict[str, Callable] = dict(
    mse=F.mse_loss, relative=relative_error, kl=_kl
)
