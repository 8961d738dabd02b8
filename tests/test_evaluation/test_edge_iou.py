"""IoU near edges and of thin classes."""

import numpy as np
import pytest
import torch

from mmdge import EdgeIoU
from mmdge.evaluation.edge_iou import near_edges
from mmdge.utils import UserError

CLASSES = ('road', 'pole', 'sky')


def sample(labels, found):
    """What the evaluator makes of mmseg's data sample."""
    return dict(
        gt_sem_seg=dict(data=labels[None]),
        pred_sem_seg=dict(data=found[None]),
    )


@pytest.fixture
def samples():
    """Blocks of 8 x 8 px, predicted with noise; some have no label."""
    noise = torch.rand(3, 32, 40)
    blocks = torch.randint(3, (3, 4, 5)).repeat_interleave(8, 1)
    labels = blocks.repeat_interleave(8, 2)
    found = torch.where(noise < 0.3, torch.randint(3, labels.shape), labels)
    labels[noise > 0.9] = 255
    return [sample(*pair) for pair in zip(labels, found, strict=True)]


def evaluate(metric, samples):
    metric.dataset_meta = dict(classes=CLASSES)
    for one in samples:
        metric.process({}, [one])
    return metric.evaluate(size=len(samples))


def test_without_end_it_is_that_of_mmseg(samples):
    metrics = pytest.importorskip('mmseg.evaluation')
    theirs = metrics.IoUMetric()
    expected = evaluate(theirs, samples)
    found = evaluate(EdgeIoU(float('inf'), thin=CLASSES), samples)
    assert found['mIoU_edges'] == pytest.approx(expected['mIoU'])
    assert found['mIoU_thin'] == found['mIoU_edges']
    # A class without a pixel is no part of the mean.
    alone = [sample(torch.zeros(4, 4).long(), torch.zeros(4, 4).long())]
    assert evaluate(EdgeIoU(float('inf'), thin=CLASSES), alone) == {
        'mIoU_edges': 100,
        'IoU_road': 100,
        'IoU_pole': pytest.approx(np.nan, nan_ok=True),
        'IoU_sky': pytest.approx(np.nan, nan_ok=True),
        'mIoU_thin': 100,
    }


def test_near_an_edge_on_either_side():
    labels = torch.zeros(9, 12).long()
    labels[:, 5:] = 1
    labels[:, 10:] = 255  # whose border is no edge
    for width in (1, 2, 3):
        near = near_edges(labels, width, 255)
        assert near.all(0).nonzero().flatten().tolist() == [
            *range(5 - width, 5 + width)
        ]
        assert torch.equal(near.all(0), near.any(0))
    # In a circle around the corner, and 3 px are more than 2.9.
    labels = torch.zeros(9, 9).long()
    labels[0, 0] = 1
    assert near_edges(labels, 3, 255)[:4, :4].int().tolist() == [
        [1, 1, 1, 1],
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
    ]
    assert not near_edges(torch.zeros(4, 4).long(), 3, 255).any()


def test_only_what_is_near_counts():
    labels = torch.zeros(9, 20).long()
    labels[:, 10:] = 1
    far = labels.clone()
    far[:, 0] = 2  # wrong
    found = evaluate(EdgeIoU(thin=['road']), [sample(labels, far)])
    assert found == dict(mIoU_edges=100, IoU_road=90, mIoU_thin=90)


def test_areas_of_each_image(samples, tmp_path):
    path = tmp_path / 'areas.npz'
    evaluate(EdgeIoU(out_file=path), samples)
    areas = np.load(path)
    for name in ('all', 'edges'):
        assert areas[name].shape == (3, 3, 3)
    labels = torch.stack([s['gt_sem_seg']['data'] for s in samples])
    assert areas['all'][:, 2].sum() == (labels != 255).sum()
    assert (areas['edges'] <= areas['all']).all()


def test_mistakes(samples, tmp_path):
    for width in (0, float('nan'), 'wide'):
        with pytest.raises(UserError, match='at least 1'):
            EdgeIoU(width)
    with pytest.raises(UserError, match='no such folder'):
        EdgeIoU(out_file=tmp_path / 'none/areas.npz')
    with pytest.raises(UserError, match=r"\['rod'\], but there are"):
        evaluate(EdgeIoU(thin=['rod']), samples)
