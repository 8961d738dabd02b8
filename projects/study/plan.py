"""What the study compares: settings, arms, and the config of each run.

A static model is trained from scratch, once per setting and seed. From its
checkpoint all arms start: evaluated as they are (*untrained*), or trained for
a fifth of the static model's epochs, all by the same schedule (*finetuned*).
Some are trained from scratch, as long as both together, and of these the
dense one is routed by error as it is, too (*scratch*). What takes long, or is
a control of a control, is not run in every setting.

In the frozen settings the backbone is a pretrained one, and seeds differ in
the head alone.
"""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mmdge.models import share_for_budget

STUDY = Path(__file__).parent
ROOT = STUDY.parents[1]
BENCHMARK = ROOT / 'tools/analysis_tools/benchmark.py'
SEEDS = (0, 1, 2)
BUDGET = 0.5
FINETUNE_LR = 3e-4
# Ratios at which one checkpoint is swept by price.
# The arm error-many is trained for these as well.
ALSO = (0.35, 0.7)
SWEEP = (0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Setting:
    """A task on a data set.

    Attributes:
        name (str): For the tables.
        config (str): Of the static model, in ``configs``.
        size (tuple[int, int]): Height and width of its images.
        without (tuple[str, ...]): Arms that are not run, as ``'phase-name'``.
        frozen (bool): Whether the backbone is not trained.
    """

    name: str
    config: str
    size: tuple[int, int]
    without: tuple[str, ...] = ()
    frozen: bool = False

    @property
    def arms(self) -> list[Arm]:
        """The arms that are run."""
        if self.frozen:
            return list(FROZEN_ARMS)
        return [arm for arm in ARMS if str(arm) not in self.without]

    def load(self) -> Config:
        """Read the config."""
        return Config.fromfile(STUDY / 'configs' / f'{self.config}.py')


@dataclass(frozen=True)
class Arm:
    """One of those that are compared.

    Attributes:
        name (str): For the tables.
        phase (str): ``'untrained'``, ``'finetuned'`` or ``'scratch'``.
        ratios (tuple[float | None, ...]): At which it is evaluated, by price;
            None is no price, and all there is to a static model.
        budget (float): For which it is trained.
    """

    name: str
    phase: str
    ratios: tuple[float | None, ...] = (None,)
    budget: float | None = BUDGET

    def __str__(self) -> str:
        return f'{self.phase}-{self.name}'

    @property
    def calibrated(self) -> bool:
        """Whether it starts from what make_dynamic.py writes."""
        return self.name in ('error', 'error-many', 'oracle', 'shuffled')

    @property
    def trained(self) -> bool:
        """Whether it is trained, more than the dense model it starts from."""
        scratch = self.phase == 'scratch' and not self.calibrated
        return scratch or self.phase == 'finetuned'


# Weaker than those with none at the coarsest.
_WEAKER = ('finetuned-variance', 'finetuned-random', 'finetuned-uniform')
_LONG = ('scratch-learned', 'scratch-random-mid', *_WEAKER)
# Where routing is far ahead of other controls, they tell enough.
_SMALLER = ('scratch-dense', 'scratch-error', 'scratch-smaller')
_MORE = (
    'untrained-oracle',
    'untrained-shuffled',
    'untrained-variance',
    'finetuned-uniform-mid',
)
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting('shapes-box', 'retinanet_pvt_fpn_shapes-192', (192, 192)),
        Setting(
            'shapes-mask',
            'mask-rcnn_pvt_fpn_shapes-192',
            (192, 192),
            _LONG + _SMALLER,
        ),
        Setting(
            'shapes-semantic',
            'fpn_pvt_shapes-192',
            (192, 192),
            _LONG + _SMALLER,
        ),
        Setting('camvid', 'fpn_pvt_camvid-256x192', (192, 256), _LONG),
        Setting(
            'bccd', 'retinanet_pvt_fpn_bccd-320x240', (240, 320), _LONG + _MORE
        ),
    )
}
FROZEN = {
    setting.name: setting
    for setting in (
        Setting(
            'dinov2-linear-camvid',
            'linear_dinov2-s_camvid-476x364',
            (364, 476),
            frozen=True,
        ),
        Setting(
            'dinov2-fpn-camvid',
            'fpn_dinov2-s_camvid-476x364',
            (364, 476),
            frozen=True,
        ),
        Setting(
            'dinov2-bccd',
            'retinanet_dinov2-s_bccd-448x336',
            (336, 448),
            frozen=True,
        ),
        Setting(
            'dinov2-coco-tiny',
            'retinanet_dinov2-s_coco-tiny-560x448',
            (448, 560),
            frozen=True,
        ),
    )
}
FROZEN_ARMS = (Arm('static', 'untrained', budget=None),)
ARMS = (
    Arm('static', 'untrained', budget=None),
    Arm('error', 'untrained', (0.35, BUDGET, 0.7)),
    Arm('oracle', 'untrained', (BUDGET,)),
    Arm('shuffled', 'untrained', (BUDGET,)),
    Arm('variance', 'untrained', (BUDGET,)),
    # The routers' own shares, a good part at the coarsest; and none of that.
    Arm('random', 'untrained', (BUDGET,)),
    Arm('random-mid', 'untrained', (BUDGET,)),
    Arm('uniform-mid', 'untrained', (BUDGET,)),
    Arm('dense', 'finetuned', budget=None),
    Arm('error', 'finetuned', SWEEP),
    Arm('error-many', 'finetuned', SWEEP),
    Arm('shuffled', 'finetuned', (BUDGET,)),
    Arm('random', 'finetuned', (BUDGET,)),
    Arm('uniform', 'finetuned', (BUDGET,)),
    Arm('random-mid', 'finetuned', (BUDGET,)),
    Arm('uniform-mid', 'finetuned', (BUDGET,)),
    Arm('learned', 'finetuned', (None, BUDGET)),
    Arm('variance', 'finetuned', (BUDGET,)),
    Arm('error', 'finetuned', (0.35,), 0.35),
    Arm('error', 'finetuned', (0.7,), 0.7),
    Arm('uniform-mid', 'finetuned', (0.35,), 0.35),
    Arm('dense', 'scratch', budget=None),
    Arm('error', 'scratch', (BUDGET,)),
    Arm('learned', 'scratch', (None, BUDGET)),
    Arm('random-mid', 'scratch', (BUDGET,)),
    Arm('smaller', 'scratch'),
)


def shares(setting: Setting, arm: Arm, backbone: dict) -> tuple[float, ...]:
    """Shares that cost the arm's budget."""
    return share_for_budget(
        dict(backbone, routing='random'),
        arm.budget,
        setting.size,
        start=(0, 1, 0) if arm.name.endswith('-mid') else None,
    )


def smaller_backbone(*args: object) -> dict:
    """A static model of as many FLOPs, the same as in the benchmark."""
    return runpy.run_path(str(BENCHMARK))['smaller_backbone'](*args)


def cost_hook(cfg: Config) -> dict:
    """The entry of the hook that knows the budget."""
    hooks = *cfg.default_hooks.values(), *cfg.get('custom_hooks', ())
    (found,) = (h for h in hooks if h and h['type'] == 'mmdge.CostHook')
    return found


def route(cfg: Config, setting: Setting, arm: Arm) -> None:
    """Give the backbone the arm's routing; the budget goes to the hook."""
    backbone, cost = cfg.model.backbone, cost_hook(cfg)
    cost.budget = arm.budget or 1.0
    cost.loss_weight = 0.0
    if arm.name == 'learned':
        # The paper's form.
        backbone.routing = 'learned'
        cost.loss_weight = 1.0
        if arm.phase == 'finetuned':
            # Or its routers would not get anywhere in so short a time.
            cfg.optim_wrapper.paramwise_cfg = dict(
                custom_keys={'router': dict(lr_mult=100)}
            )
    elif arm.name == 'smaller':
        cfg.model.backbone = smaller_backbone(
            backbone, arm.budget, setting.size
        )
        widths = cfg.model.backbone.arch['embed_dims']
        used = cfg.model.backbone.get('out_indices', range(4))
        cfg.model.neck.in_channels = [widths[i] for i in used]
    elif arm.calibrated:
        backbone.routing = arm.name.removesuffix('-many')
    elif arm.name not in ('static', 'dense'):
        kind = dict(
            variance='QuantileRouter',
            random='RandomRouter',
            uniform='UniformRouter',
        )[arm.name.removesuffix('-mid')]
        share = shares(setting, arm, backbone)
        backbone.routing = dict(type=kind, share=share)


def schedule(cfg: Config, arm: Arm, checkpoint: Path | None) -> None:
    """Set how long the arm is trained, how fast, and from where.

    From scratch there is no checkpoint.
    """
    static = cfg.train_cfg.max_epochs
    if arm.phase == 'finetuned':
        epochs = static // 5
        cfg.optim_wrapper.optimizer.lr = FINETUNE_LR
        cfg.load_from = str(checkpoint)
    else:
        epochs = static + static // 5
    cfg.train_cfg.max_epochs = epochs
    # It is evaluated afterwards, at the ratios asked for.
    cfg.train_cfg.val_begin = epochs + 1
