"""The bridge from a backbone's Cost to the host's losses and samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmdge.evaluation import with_flops
from mmdge.models.architectures import Backbone
from mmdge.models.cost import Cost
from mmdge.registry import HOOKS
from mmdge.utils import UserError, is_number

# Iterations over which a training is watched.
_WATCHED = 200


def unwrap(model: nn.Module) -> nn.Module:
    """The host's model inside its wrappers for DDP or augmented tests."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def find_dynamic_backbones(model: nn.Module, who: str) -> list[Backbone]:
    """Return the dynamic backbones of a model: of most, the one.

    A teacher beside its student has one of its own.

    Args:
        model (nn.Module): A host's model, wrapped or not.
        who (str): Who asks, for the error message.

    Raises:
        UserError: If there is none.
    """
    model = unwrap(model)
    found = [m for m in model.modules() if isinstance(m, Backbone)]
    if not found:
        backbone = type(getattr(model, 'backbone', model)).__name__
        raise UserError(
            f'{who} needs a dynamic backbone in the model, but found none in '
            f'{type(model).__name__} with backbone {backbone}. Set e.g. '
            f"model.backbone.type='mmdge.DGEPVT', or do without {who}."
        )
    return found


def find_dynamic_backbone(model: nn.Module, who: str) -> Backbone:
    """Return the one dynamic backbone of a model; see the plural.

    Raises:
        UserError: If there is none, or more than one.
    """
    found = find_dynamic_backbones(model, who)
    if len(found) > 1:
        raise UserError(
            f'{who} is for one dynamic backbone, but found {len(found)} in '
            f'{type(unwrap(model)).__name__}; run it on the config and the '
            'weights of one of them.'
        )
    return found[0]


def is_last_of_its_kind(hook: Hook, runner: Any) -> bool:
    """Whether no later hook of a run is of the same class."""
    hooks = getattr(runner, 'hooks', ())
    alike = [h for h in hooks if type(h) is type(hook)]
    return not alike or hook is alike[-1]


@HOOKS.register_module()
class CostHook(Hook):
    """Add the budget loss to the losses, and its cost to each sample.

    It uses PyTorch's forward hooks, so no detector, segmentor or classifier
    is subclassed or patched. In ``loss`` mode the loss dict gets

    - ``loss_budget``: ``loss_weight * (sum dynamic / sum dense - budget)^2``
      over the global batch (DGE, NeurIPS 2021, section 3.3); a constant for
      routers whose shares are set by construction. Where decisions have
      targets of their own (DynamicViT, NeurIPS 2021, section 3.3) it is
      ``loss_weight`` times the mean over decisions and images of
      ``(mean share - target)^2``;
    - for the log ``flops_ratio``, the realised ratio, ``flops_ratio_std``
      over the images, and ``region_spread``, see
      :attr:`Cost.region_spread`: 0 for a collapsed router.

    In ``predict`` mode each sample gets ``backbone_cost``: a dict of floats
    ``dynamic``, ``dense`` (multiply-adds), ``region_spread``, and the lists
    ``stages_dynamic``, ``stages_dense``. If one prediction takes several
    forwards of the backbone (sliding windows, the views of an augmented
    test), they are added up. The evaluators that lack
    :class:`mmdge.BackboneFLOPs` get it.

    Of several dynamic backbones (a teacher and its student), those count that
    ran, and in ``loss`` mode those of them that are trained.

    Args:
        budget (float): Target ratio of dynamic to dense FLOPs, in (0, 1].
            In the first iteration a UserError is raised if no decision can
            spend so little.
        loss_weight (float): Defaults to 1, the paper's.
    """

    def __init__(self, budget: float, loss_weight: float = 1.0) -> None:
        if not is_number(budget) or not 0 < budget <= 1:
            raise UserError(
                'budget, the target ratio of dynamic to dense FLOPs, must be '
                f'in (0, 1], but got {budget!r}.'
            )
        if not is_number(loss_weight) or loss_weight < 0:
            raise UserError(
                'loss_weight must be a number of at least 0, but got '
                f'{loss_weight!r}.'
            )
        self.budget = budget
        self.loss_weight = loss_weight
        self._counts = True
        self._checked = not loss_weight
        self._handles = []
        self._warned: set[tuple[str, str]] = set()
        # Samples and costs of the views of the batch that is being tested.
        self._views: list[tuple[list[BaseDataElement], Cost]] | None = None

    def before_run(self, runner: Any) -> None:
        """Attach to the model; it is the same with and without DDP.

        Of several, a config's after that of its base, the last one counts.
        """
        self._counts = is_last_of_its_kind(self, runner)
        if not self._counts:
            return
        self.attach(runner.model)
        # Those of a training's validation; a test has its own.
        for name in ('_val_loop', '_test_loop'):
            loop = getattr(runner, name, None)
            if hasattr(loop, 'evaluator'):
                loop.evaluator = with_flops(loop.evaluator)

    def after_run(self, runner: Any) -> None:
        """Leave the model as it was."""
        self.detach()

    def attach(self, model: nn.Module) -> None:
        """Register on a host's model, wrapped or not."""
        self.detach()
        model = unwrap(model)
        backbones = find_dynamic_backbones(model, type(self).__name__)
        self._routers = [r for backbone in backbones for r in backbone.routers]
        costs: list[tuple[Backbone, Cost]] = []

        def start(module: nn.Module, args: tuple) -> None:
            costs.clear()

        def collect(module: Backbone, args: tuple, output: Any) -> None:
            costs.append((module, module.cost))
            if module.training and not self._checked:
                self._check_budget(module.least_ratio(args[0].shape[-2:]))

        def finish(module: nn.Module, args: tuple, output: Any) -> Any:
            if isinstance(output, dict):
                trained = [  # a teacher's parameters are not
                    cost
                    for backbone, cost in costs
                    if any(p.requires_grad for p in backbone.parameters())
                ] or [cost for _, cost in costs]
                if trained:
                    output = {**output, **self.losses(trained)}
            elif costs and is_samples(output):
                self._write(output, of_all_forwards([c for _, c in costs]))
            # With the loss taken, nothing may keep the graph alive.
            for backbone, cost in costs:
                backbone.cost = cost.detach()
            costs.clear()
            return output

        self._handles = [
            model.register_forward_pre_hook(start),
            *(b.register_forward_hook(collect) for b in backbones),
            model.register_forward_hook(finish),
        ]

    def _check_budget(self, least: float) -> None:
        self._checked = True
        if self.budget < least:
            raise UserError(
                f'budget={self.budget} is one that no gate can meet: with all '
                f'of them closed the backbone spends {least:.2f} of its dense '
                'FLOPs; set a budget above that.'
            )

    def detach(self) -> None:
        """Remove the registrations."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_test_iter(self, *args: Any, **kwargs: Any) -> None:
        """Begin with a batch, whose predictions may be several views."""
        self._views = []

    def after_test_iter(self, *args: Any, **kwargs: Any) -> None:
        """The batch is done, and its samples are let go."""
        self._views = None

    def _write(self, samples: list[BaseDataElement], cost: Cost) -> None:
        views = [] if self._views is None else self._views
        views.append((samples, cost.detach()))
        total = of_all_forwards([cost for _, cost in views])
        # Hosts merge views into the first one's sample, or into the last's.
        for view, _ in views:
            write_costs(view, total)

    def losses(self, costs: Cost | Sequence[Cost]) -> dict[str, Tensor]:
        """The entries for the loss dict.

        Args:
            costs (Cost | Sequence[Cost]): Of a batch; of several forwards of
                a step, maybe of different images, a list.
        """
        costs = [costs] if isinstance(costs, Cost) else costs
        local = sum(cost.dynamic.sum() for cost in costs)
        dynamic = local.detach().clone()
        dense = sum(cost.dense.sum() for cost in costs)
        all_reduce(dynamic)
        all_reduce(dense)
        # The value of the global batch with the gradient of this rank's
        # part, which DDP will divide by the number of ranks.
        part = get_world_size() * (local - local.detach())
        ratio = (dynamic + part) / dense
        misses = [
            (decided.mean - decided.target).square().mean()
            for cost in costs
            for decided in cost.maps
            if decided.target is not None
        ]
        loss = torch.stack(misses).mean() if misses else 0.0
        if any(all(m.target is None for m in c.maps) for c in costs):
            loss = loss + (ratio - self.budget) ** 2
        ratios = torch.cat([cost.ratio.detach() for cost in costs])
        spread = torch.cat([cost.region_spread.detach() for cost in costs])
        return dict(
            loss_budget=(self.loss_weight * loss).float(),
            flops_ratio=ratio.detach().float(),
            flops_ratio_std=ratios.std(correction=0).float(),
            region_spread=spread.mean().float(),
        )

    def after_train_iter(self, runner: Any, *args: Any, **_: Any) -> None:
        """Look for a collapsed router now and then, once it is warmed up."""
        if not (self._counts and self.every_n_train_iters(runner, _WATCHED)):
            return
        if all(router.train_progress >= 1 for router in self._routers):
            scalars = runner.message_hub.log_scalars
            ratios, _ = scalars['train/flops_ratio'].data
            self._warn_of_collapse(
                runner,
                f'over the last {_WATCHED} iterations',
                float(ratios[-_WATCHED:].mean()),
                # From batch to batch, where each is of one image.
                max(
                    float(ratios[-_WATCHED:].std()),
                    scalars['train/flops_ratio_std'].mean(_WATCHED),
                ),
                scalars['train/region_spread'].mean(_WATCHED),
            )

    def after_val_epoch(
        self, runner: Any, metrics: dict | None = None
    ) -> None:
        """Say so if routing collapsed, or spends far from the budget."""
        if not self._counts:
            return
        if metrics and 'backbone/FLOPs_ratio' in metrics:
            self._warn_of_collapse(
                runner,
                'over the images evaluated',
                metrics['backbone/FLOPs_ratio'],
                metrics['backbone/FLOPs_ratio_std'],
                metrics['backbone/region_spread'],
            )
        ratio = (metrics or {}).get('backbone/FLOPs_ratio', self.budget)
        if abs(ratio - self.budget) > 0.1:
            runner.logger.warning(
                f'CostHook: the backbone spends {ratio:.2f} of its dense '
                f'FLOPs, the budget is {self.budget}. '
                'tools/analysis_tools/calibrate_budget.py finds the price at '
                'which this checkpoint spends it; in training, loss_weight '
                'leads a router there that learns how much to spend, and '
                "mmdge.share_for_budget gives DGE's others their share."
            )

    def _warn_of_collapse(
        self, runner: Any, where: str, ratio: float, std: float, spread: float
    ) -> None:
        if self.budget == 1 or not any(r.adaptive for r in self._routers):
            return  # a static model, or spending is fixed by design
        said = describe_collapse(ratio, std, spread)
        if (said, where) not in self._warned and said:
            self._warned.add((said, where))
            runner.logger.warning(
                f'CostHook: routing has collapsed: {said} {where} (ratio '
                f'{ratio:.3f}, std {std:.4f}, region_spread {spread:.4f}). '
                'It is a static model in disguise: try another routing '
                "('variance', 'error'), a lower loss_weight, or a warm-up "
                '(mmdge.RoutingWarmupHook).'
            )


def describe_collapse(ratio: float, std: float, spread: float) -> str | None:
    """What all cells, or all images, have in common, if they have.

    From the mean ratio of FLOPs, its standard deviation over the images, and
    the mean :attr:`Cost.region_spread`.
    """
    if spread < 1e-3:
        how = 'dense' if ratio > 0.999 else 'computed alike'
        return f'all cells of a block are {how}'
    if std < 1e-3:
        return 'all images cost the same'
    return None


def is_samples(output: Any) -> bool:
    """Whether a model's output is a list of data samples."""
    return isinstance(output, (list, tuple)) and all(
        isinstance(sample, BaseDataElement) for sample in output
    )


def write_costs(samples: list[BaseDataElement], cost: Cost) -> None:
    """Write each image's cost into its sample, as plain numbers."""
    rows = torch.stack([cost.dynamic, cost.dense, cost.region_spread], 1)
    if len(rows) != len(samples):
        raise UserError(
            f'the backbone saw {len(rows)} images, but the model returned '
            f'{len(samples)} samples.'
        )
    stages = [
        torch.stack([getattr(s, name) for s in cost.stages], 1).tolist()
        for name in ('dynamic', 'dense')
    ]
    for sample, row, dynamic, dense in zip(
        samples, rows.tolist(), *stages, strict=True
    ):
        sample.set_field(
            dict(
                zip(('dynamic', 'dense', 'region_spread'), row, strict=True),
                stages_dynamic=dynamic,
                stages_dense=dense,
            ),
            'backbone_cost',
        )


def of_all_forwards(costs: list[Cost]) -> Cost:
    """Add up the costs of several forwards for the same images."""
    if len(costs) == 1:
        return costs[0]
    if len({len(cost.stages) for cost in costs}) > 1:  # several backbones
        return Cost.of_stages([part for cost in costs for part in cost.stages])
    stages = zip(*(cost.stages for cost in costs), strict=True)
    return Cost.of_stages([Cost.add_up(list(parts)) for parts in stages])
