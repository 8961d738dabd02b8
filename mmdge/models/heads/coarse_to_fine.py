"""CF-ViT's losses, on the logits of both passes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmdge.registry import MODELS
from mmdge.utils import UserError, is_number


@MODELS.register_module()
class CoarseToFineHead(BaseModule):
    """For the logits of :class:`mmdge.CFViT`, which has the classifier.

    The final logits are for mmpretrain's ``ClsHead``: its loss, with labels
    or mixed scores, its accuracy, its predictions. ``loss_coarse`` teaches
    the coarse pass by the final logits: ``KL(final || coarse)``, averaged over
    images, of which the final ones get no gradient. Source: CF-ViT (Chen et
    al., AAAI 2023), section 3.5.

    Args:
        coarse_weight (float): Of ``loss_coarse``. Defaults to 1.
        init_cfg (dict, optional): Defaults to None.
        **kwargs: Of ``mmpretrain.ClsHead``: ``loss``, ``topk``, ``cal_acc``.
    """

    def __init__(
        self,
        coarse_weight: float = 1.0,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not is_number(coarse_weight) or coarse_weight < 0:
            raise UserError(
                'coarse_weight must be a number of at least 0, but got '
                f'{coarse_weight!r}.'
            )
        self.coarse_weight = coarse_weight
        self.head = MODELS.build(dict(type='mmpretrain.ClsHead', **kwargs))

    def forward(self, feats: tuple[Tensor, Tensor]) -> Tensor:
        """The final logits ``(B, K)`` of the pair."""
        return self.head(_pair(feats))

    def loss(
        self,
        feats: tuple[Tensor, Tensor],
        data_samples: list[Any],
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The host's losses, and ``loss_coarse``.

        Args:
            feats (tuple[Tensor, Tensor]): Coarse and final logits, ``(B, K)``
                each.
            data_samples (list): The host's.
            **kwargs: For the host's loss.
        """
        coarse, final = (x.float() for x in _pair(feats))
        losses = self.head.loss(feats, data_samples, **kwargs)
        losses['loss_coarse'] = self.coarse_weight * F.kl_div(
            coarse.log_softmax(-1),
            final.detach().softmax(-1),
            reduction='batchmean',
        )
        return losses

    def predict(
        self,
        feats: tuple[Tensor, Tensor],
        data_samples: list[Any] | None = None,
    ) -> list[Any]:
        """The host's predictions, of the final logits."""
        return self.head.predict(_pair(feats), data_samples)


def _pair(feats: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    if len(feats) != 2 or any(part.dim() != 2 for part in feats):
        raise UserError(
            'CoarseToFineHead is for the coarse and the final logits of '
            'mmdge.CFViT: set its num_classes.'
        )
    return feats
