"""The study: its plan builds, a trial runs, its page is that of the rows."""

import fcntl
import json
import re
import sys
from pathlib import Path
from threading import Thread

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmdge.models.methods import Method
from mmdge.utils import UserError
from tests.forked import forked, forks
from tests.tool_runs import ROOT, data_options

STUDY = ROOT / 'projects/study'
PAGES = 'README.md', 'operating_points.md'
# What looks like a result; code, comments and links may hold anything.
FIGURE = re.compile(r'(?<![\w./-])-?\d*\.\d+(?![\w/])')


@pytest.fixture
def study(monkeypatch):
    """The study's modules, by name."""
    monkeypatch.syspath_prepend(STUDY)
    names = ('plan', 'rows', 'run', 'points', 'render', 'measure')
    yield {name: __import__(name) for name in names}
    for name in names:
        del sys.modules[name]


def row(**entries):
    """A row with nothing unusual."""
    metrics = {
        'coco/bbox_mAP': 0.8,
        'backbone/GFLOPs': 0.1,
        'backbone/GFLOPs_p95': 0.2,
        'backbone/FLOPs_ratio': 0.5,
        'backbone/FLOPs_ratio_std': 0.1,
    }
    return {
        **dict(setting='shapes-box', seed=0, phase='finetuned', arm='error'),
        **dict(budget=0.5, asked=0.5, metric='coco/bbox_mAP', value=0.8),
        'metrics': metrics,
        **entries,
    }


class TestPlan:
    @pytest.mark.parametrize('name', ['shapes-box', 'camvid'])
    def test_every_arm_builds_at_its_budget(self, study, name):
        plan = study['plan']
        setting = plan.SETTINGS[name]
        images = torch.rand(8, 3, *setting.size)
        # Before any price. Uniform routing has as many steps as blocks.
        wide = dict.fromkeys(('variance', 'random', 'smaller'), 0.03)
        wide['uniform'] = 0.05
        dense = None
        for arm in plan.ARMS:
            cfg = setting.load()
            plan.route(cfg, setting, arm)
            backbone = MODELS.build(cfg.model.backbone).eval()
            assert isinstance(backbone, Method)
            assert plan.cost_hook(cfg).budget == (arm.budget or 1.0)
            static = arm.name in ('static', 'dense', 'smaller')
            assert (not backbone.routers) == static
            kind = arm.name.removesuffix('-mid')
            if dense is None or kind in wide:
                with torch.no_grad():
                    backbone(images)
                spent = backbone.cost.dynamic.mean().item()
                dense = dense or spent  # of the first arm, which is static
            if kind in wide:
                assert abs(spent / dense - arm.budget) < wide[kind], arm

    def test_all_arms_of_a_phase_train_alike(self, study, monkeypatch):
        plan = study['plan']
        # Which take their time.
        monkeypatch.setattr(plan, 'shares', lambda *args: (0.3, 0.3, 0.4))
        same = dict(arch=plan.SETTINGS['camvid'].load().model.backbone.arch)
        monkeypatch.setattr(plan, 'smaller_backbone', lambda *args: same)
        for setting in plan.SETTINGS.values():
            static = setting.load().train_cfg.max_epochs
            seen = {}
            for arm in plan.ARMS:
                cfg = setting.load()
                plan.route(cfg, setting, arm)
                plan.schedule(cfg, arm, 'static.pth')
                optimizer = cfg.optim_wrapper.to_dict()
                routers = optimizer.pop('paramwise_cfg', None)
                faster = (arm.name, arm.phase) == ('learned', 'finetuned')
                assert (routers is not None) == faster
                entry = (cfg.train_cfg.max_epochs, optimizer)
                assert seen.setdefault(arm.phase, entry) == entry
            assert seen['finetuned'][0] == static / 5
            assert seen['scratch'][0] == static + static / 5

    def test_every_setting_has_what_is_compared(self, study):
        arms, settings = study['plan'].ARMS, study['plan'].SETTINGS
        assert settings['shapes-box'].arms == list(arms)
        names = {str(arm) for arm in arms}
        for setting in settings.values():
            assert set(setting.without) <= names
            run = {str(arm) for arm in setting.arms}
            assert run >= {
                'untrained-static',
                'untrained-error',
                'finetuned-dense',
                'finetuned-error',
                'finetuned-shuffled',
                'finetuned-random-mid',
                'finetuned-learned',
            }

    def test_no_arm_is_there_twice(self, study):
        arms = [(a.phase, a.name, a.budget) for a in study['plan'].ARMS]
        assert len(set(arms)) == len(arms)


class TestRows:
    def test_what_is_noted_stays(self, study, tmp_path):
        plan, rows = study['plan'], study['rows']
        path = tmp_path / 'rows.jsonl'
        first = rows.Rows(path)
        arm = plan.Arm('error', 'finetuned', (0.35, 0.5))
        first.add([row()])
        assert not first.have('shapes-box', 0, arm)
        first.add([row(value=0.1), row(asked=0.35)])  # the first one stays
        again = rows.Rows(path)
        assert again.have('shapes-box', 0, arm)
        assert not again.have('shapes-box', 1, arm)
        (found,) = again.of('shapes-box', 'finetuned', 'error')
        assert found['value'] == 0.8
        assert len(path.read_text().splitlines()) == 2

    def test_a_file_of_a_killed_process_is_read(self, study, tmp_path):
        path = tmp_path / 'rows.jsonl'
        path.write_text(json.dumps(row()) + '\n' + json.dumps(row())[:50])
        rows = study['rows'].Rows(path)
        rows.add([row(seed=1)])
        assert (
            len(
                study['rows']
                .Rows(path)
                .of(*('shapes-box', 'finetuned', 'error'))
            )
            == 2
        )

    def test_rows_that_differ_are_refused(self, study, tmp_path):
        path = tmp_path / 'rows.jsonl'
        lines = [row(), row(), row(value=0.1)]  # of two machines
        path.write_text(''.join(json.dumps(r) + '\n' for r in lines))
        with pytest.raises(UserError, match='two rows of .*differ; keep one'):
            study['rows'].Rows(path)

    def test_another_process_writes_first(self, study, tmp_path):
        """Or what it wrote might be cut off."""
        rows = study['rows'].Rows(tmp_path / 'rows.jsonl')
        other = study['rows'].Rows(rows.path)
        with rows.path.open('a') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            waiting = Thread(target=other.add, args=([row(seed=1)],))
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive()
            file.write(json.dumps(row()) + '\n')
        waiting.join()
        both = study['rows'].Rows(rows.path)
        assert len(both.of('shapes-box', 'finetuned', 'error')) == 2


class TestPage:
    @pytest.fixture
    def fill(self, study):
        """A function that fills a page from rows."""
        return lambda text, *rows: study['render'].Study(rows).fill(text)

    def test_accuracy_in_points(self, fill):
        text = "{{ at('shapes-box', 'finetuned error') }}"
        assert fill(text, row()) == '80.0'
        assert fill(text, row(metric='mIoU', value=38.2)) == '38.2'

    def test_tables_are_means_and_ranges_over_the_seeds(self, fill):
        lines = [row(), row(seed=1, value=0.9)]
        assert '85.0 (80.0-90.0)' in fill('{{ budgets() }}', *lines)
        # Differences are those of the seeds that both have.
        dense = row(arm='dense', budget=None, asked=None, value=0.85, seed=1)
        table = fill(
            "{{ compare('finetuned', 'dense, error') }}", *lines, dense
        )
        assert '| 85.0 (80.0-90.0) | +5.0 |' in table

    def test_prose_and_tables_round_alike(self, fill):
        text = "{{ at('shapes-box', 'finetuned error') }}\n{{ budgets() }}"
        filled = fill(text, row(value=0.891), row(seed=1, value=0.898))
        assert filled.startswith('89.5\n')
        assert '| 89.5 (89.1-89.8) |' in filled

    def test_answers_are_against_the_best_control(self, fill):
        text = '{{ verdicts() }}'
        static = row(phase='untrained', arm='static', budget=None, asked=None)
        lines = [
            *(static, row(), row(arm='random', value=0.6)),
            row(arm='uniform-mid', value=0.75),
        ]
        filled = fill(text, *lines)
        assert '| error - best control, fine-tuned | +5.0, n=1 |' in filled
        assert '| error, fine-tuned - dense twin | - |' in filled
        # The best is looked for seed by seed.
        lines += [row(seed=1, arm='random', value=0.9)]
        assert fill(text, *lines) == filled
        lines += [row(seed=1, value=0.7)]
        assert '| -7.5 (-20.0 to +5.0), n=2 |' in fill(text, *lines)

    def test_figures_of_the_prose(self, fill):
        rows = [row(), row(budget=0.7, value=0.85)]
        error = "at('shapes-box', 'finetuned error')"
        other = error.replace("error'", "error 0.5 0.7'")
        ratio = error.replace("error'", "error', 'backbone/FLOPs_ratio'")
        for text, filled in (
            (error, '80.0'),
            (f'{error} - {other}', '-5.0'),
            (f'{error} - {error}', '0.0'),
            (f'({error} / {other}) | shown(2)', '0.94'),
            (f'{ratio} | shown(2)', '0.50'),
        ):
            assert fill('{{ ' + text + ' }}', *rows) == filled
        seeds = [row(), row(seed=1, value=0.4), row(seed=2, value=0.2)]
        assert fill(f'{{{{ {error}.drop(2) }}}}', *seeds) == '60.0'
        assert fill(f'{{{{ {error}[1] }}}}', *seeds) == '40.0'
        with pytest.raises(UserError, match='has no row'):
            fill(f'{{{{ {error.replace("box", "mask")} }}}}', row())

    @pytest.mark.parametrize('name', PAGES)
    def test_a_figure_needs_a_source(self, name):
        """What the template says itself is no result."""
        text = (STUDY / f'{name}.j2').read_text()
        for pattern in (r'{%.*?%}', r'{{.*?}}', r'```.*?```', r'`[^`]*`'):
            text = re.sub(pattern, '', text, flags=re.DOTALL)
        assert FIGURE.findall(re.sub(r'\[[^]]*\]\([^)]*\)', '', text)) == []

    @pytest.mark.parametrize('name', PAGES)
    def test_the_page_is_that_of_the_rows(self, study, name):
        page = (STUDY / name).read_text()
        rows = study['rows'].Rows(STUDY / 'rows.jsonl')
        template = (STUDY / f'{name}.j2').read_text()
        assert study['render'].Study(rows).fill(template) == page

    @pytest.mark.parametrize('name', PAGES)
    def test_its_lines_are_short_and_its_links_lead_somewhere(self, name):
        page = (STUDY / name).read_text()
        for line in page.split('\n'):
            assert len(line) <= 250 or line.startswith('|')
        for link in re.findall(r'\]\((?!https?:)([^)#]+)', page):
            assert (STUDY / link).exists(), link
        places = r'(?:tools|configs|projects)/[\w./-]+\.(?:py|sh)'
        for path in re.findall(rf'(?<![\w/]){places}', page):
            assert (ROOT / path).exists(), path

    def test_it_is_written_with_its_plots(self, tmp_path):
        forked(STUDY / 'render.py', '--out', tmp_path)
        for name in PAGES:
            page = (tmp_path / name).read_text()
            assert page == (STUDY / name).read_text()
        for picture in ('flops.png', 'time.png'):
            assert (tmp_path / picture).stat().st_size > 1000


def test_times_of_a_checkpoint(study, shapes, tmp_path):
    plan, rows = study['plan'], study['rows'].Rows(tmp_path / 'rows.jsonl')
    cfg = plan.SETTINGS['shapes-box'].load()
    cfg.merge_from_dict(
        dict(option.split('=') for option in data_options('mmdet', shapes))
    )
    cfg.model.backbone.routing = 'error'
    folder = tmp_path / 'shapes-box/seed0/finetuned-error-0.5'
    folder.mkdir(parents=True)
    cfg.dump(folder.with_name(f'{folder.name}.py'))
    init_default_scope('mmdet')
    weights = folder / 'epoch_1.pth'
    torch.save(MODELS.build(cfg.model).state_dict(), weights)
    (folder / 'last_checkpoint').write_text(str(weights))
    prices = {0.35: 1e6, 0.7: -1.0}  # all coarsest, all finest
    rows.add([row(asked=a, price=p) for a, p in prices.items()])
    noted = study['measure'].measure('shapes-box', rows, tmp_path, 2, 3)
    rows.add(noted)
    flops = {r['asked']: r['metrics']['backbone/GFLOPs'] for r in noted}
    assert flops[0.35] < 0.3 * flops[None] and flops[0.7] == flops[None]
    for entry in noted:
        metrics = entry['metrics']
        assert 0 < metrics['lower'] <= entry['value'] <= metrics['upper']
        assert metrics['MB'] > 0
    table = study['render'].Study(rows).seconds()
    assert table.count('shapes-box') == 3
    assert '| dense twin | 1.000 |' in table


@pytest.mark.parametrize(
    ('phase', 'dense'),
    [('finetuned', 'static'), ('scratch', 'scratch-dense-1')],
)
def test_half_a_training_is_no_start(
    study, tmp_path, monkeypatch, phase, dense
):
    plan = study['plan']
    setting = plan.SETTINGS['shapes-box']
    chain = study['run'].Chain(setting, 0, tmp_path, 1, [])
    cfg = setting.load()
    if phase == 'scratch':
        plan.schedule(cfg, plan.Arm('dense', 'scratch'), None)
    chain.write(cfg, dense)
    mark = chain.folder / dense / 'last_checkpoint'
    mark.parent.mkdir()
    mark.write_text(f'epoch_{cfg.train_cfg.max_epochs - 1}.pth')
    trained = []
    monkeypatch.setattr(chain, 'train', trained.append)
    name, _ = chain.start(phase)
    (config,) = trained
    assert (config.stem, name) == (dense, dense)
    mark.write_text(f'epoch_{cfg.train_cfg.max_epochs}.pth')
    assert chain.start(phase) == (dense, Path(mark.read_text()))
    assert len(trained) == 1


def test_a_head_is_trained_on_kept_features(study, tmp_path, monkeypatch):
    """As long as the backbone is dense."""
    setting = study['plan'].FROZEN['dinov2-linear-camvid']
    chain = study['run'].Chain(setting, 0, tmp_path, 1, [])
    (arm,) = setting.arms
    assert (str(arm), arm.trained) == ('untrained-static', False)
    ran = []
    monkeypatch.setattr(chain, 'tool', lambda name, *_: ran.append(name))
    for routing in ('finest', 'error'):
        cfg = setting.load()
        cfg.model.backbone.routing = routing
        with pytest.raises(FileNotFoundError):  # nothing was trained
            chain.train(chain.write(cfg, routing))
    assert ran == [STUDY / 'train_head.py', 'train.py']


@pytest.mark.slow
def test_a_trial_of_the_study(shapes, tool, tmp_path):
    rows, work_dir = tmp_path / 'rows.jsonl', tmp_path / 'work'
    command = [
        *(STUDY / 'run.py', '--settings', 'shapes-box', '--seeds', 1),
        *('--rows', rows, '--work-dir', work_dir),
        *('--arms', 'untrained-static', 'untrained-error'),
        'finetuned-random-mid',
        '--cfg-options',
        *data_options('mmdet', shapes),
        'train_dataloader.batch_size=2',
        'model.test_cfg.score_thr=0.0',
    ]
    with forks():
        said = tool(*command)
    lines = map(json.loads, rows.read_text().splitlines())
    static, *errors, random = lines
    assert (static['phase'], static['asked']) == ('untrained', None)
    assert static['metrics']['backbone/FLOPs_ratio'] == 1
    assert [error['asked'] for error in errors] == [0.35, 0.5, 0.7]
    for error in errors:
        spent = error['metrics']['backbone/FLOPs_ratio']
        # Calibrated on eight images, evaluated on five.
        assert abs(spent - error['asked']) < 0.2
        assert error['train_seconds'] == 0
    assert (random['arm'], random['budget']) == ('random-mid', 0.5)
    assert abs(random['metrics']['backbone/FLOPs_ratio'] - 0.5) < 0.1
    assert random['train_seconds'] > 0
    for noted in (static, *errors, random):
        assert noted['seed'] == 1
        (logged,) = re.findall(r'backbone/GFLOPs: (\S+)', noted['log'])
        gflops = noted['metrics']['backbone/GFLOPs']
        assert gflops == pytest.approx(float(logged), abs=1e-4)
    assert said.count('noted') == 3
    # Once more, there is nothing left to do.
    assert 'noted' not in tool(*command)
