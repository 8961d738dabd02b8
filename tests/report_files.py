"""Work dirs as MMEngine leaves them, without the minutes of a training."""

import json

import cv2
import numpy as np

STAMP = '20260102_030405'
LOG = '2026/01/02 03:04:05 - mmengine - INFO - '


def metrics(value, ratio, metric='coco/bbox_mAP'):
    """What an evaluation finds, the dense twin at 2 GFLOPs."""
    return {
        metric: value,
        'backbone/GFLOPs': 2 * ratio,
        'backbone/GFLOPs_p95': 3 * ratio,
        'backbone/FLOPs_ratio': ratio,
        'backbone/FLOPs_ratio_std': 0.1,
        'backbone/region_spread': 0.3,
    }


def line(mode, where, entry):
    """The log line of an evaluation."""
    said = '  '.join(f'{key}: {value:.4f}' for key, value in entry.items())
    return f'{LOG}Epoch({mode}) {where}    {said}'


def write_training(work_dir, values=(0.25, 0.5), stamp=STAMP):
    """A training that evaluated after each epoch; returns its folder."""
    run = work_dir / stamp
    (run / 'vis_data' / 'vis_image').mkdir(parents=True)
    (work_dir / 'mine.py').write_text('x = 1\n')
    (run / 'vis_data' / 'config.py').write_text(
        "val_dataloader = dict(dataset=dict(data_root='data/shapes/'))\n"
    )
    scalars, log = [], ['Config:', 'x = 1']
    for epoch, value in enumerate(values, 1):
        for i in (20 * epoch - 10, 20 * epoch):
            scalars.append(
                dict(lr=0.1, loss=1 / i, flops_ratio=0.5, epoch=epoch, iter=i)
            )
        entry = metrics(value, 0.5)
        scalars.append({**entry, 'step': epoch})
        log.append(
            f'{LOG}Epoch(val) [{epoch}][ 5/10]    eta: 0:00:01  time: 1'
        )
        log.append(line('val', f'[{epoch}][10/10]', entry))
        picture = np.full((90, 1200, 3), 20 * epoch, np.uint8)
        name = f'vis_image/granularity_{20 * epoch}.png'
        cv2.imwrite(str(run / 'vis_data' / name), picture)
    (run / 'vis_data' / 'scalars.json').write_text(
        ''.join(json.dumps(entry) + '\n' for entry in scalars)
    )
    (run / f'{stamp}.log').write_text('\n'.join(log) + '\n')
    return run


def write_test(work_dir, config=''):
    """A test that evaluated twice; returns its lines."""
    run = work_dir / STAMP
    (run / 'vis_data').mkdir(parents=True)
    (run / 'vis_data' / 'config.py').write_text(config)
    lines = [line('test', '[5/5]', metrics(v, 0.5)) for v in (0.1, 0.2)]
    (run / f'{STAMP}.log').write_text('\n'.join(lines))
    (run / f'{STAMP}.json').write_text(json.dumps(metrics(0.2, 0.5)))
    return lines


def write_points(folder, config='configs/mine.py'):
    """Two routers at two prices each, timed."""
    folder.mkdir(parents=True)
    points = [
        dict(
            scale=1,
            method=method,
            routing=routing,
            price=price,
            ratio_asked=0.5,
            ratio_calibrated=None,
            metrics=metrics(0.5 - price, 0.5 - price / 2),
            seconds=dict(lower=0.01, median=0.02, upper=0.04),
        )
        for method, routing in (
            ('error', 'error'),
            ('own', dict(type='QuantileRouter', share=[1])),
        )
        for price in (0, 0.25)
    ]
    content = dict(
        config=config,
        checkpoint='mine.pth',
        metric='coco/bbox_mAP',
        points=points,
    )
    (folder / 'points.json').write_text(json.dumps(content, indent=2))


def study_row(value, ratio=0.5, seed=0, **entries):
    """A line of a study's file."""
    return dict(
        dict(
            setting='box',
            arm='error',
            phase='finetuned',
            budget=0.5,
            seed=seed,
            metric='coco/bbox_mAP',
            value=value,
            metrics=metrics(value, ratio),
            log=None,
        ),
        **entries,
    )


def write_rows(path, rows):
    """A study's file."""
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
