"""Checkpoints that a training can be killed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.fileio import BaseStorageBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop

from mmdge.errors import UserError
from mmdge.registry import HOOKS

from .atomic_backend import take_folder
from .random_states import get_random_states, set_random_states


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's hook, so that nothing is lost when the process is killed.

    What it adds:

    - A file is whole or not there (:class:`~mmdge.safe_training.
      AtomicBackend`), and the oldest, or the best before, is removed after
      the next was written, not before; so there is always one to go on from.
      Nothing is removed outside of the folder that this training writes to,
      and one training at a time writes there.
    - The states of the random numbers of all processes travel in the
      checkpoint and are put back on resuming. An evaluation leaves them as
      they were, so that one more or less changes nothing.
    - The evaluation that follows a checkpoint is made again on resuming from
      it, since it may have been cut off, and its metrics with it.

    Args:
        max_keep_ckpts (int): The newest that are kept; -1 are all of them.
            Default: -1.
        backend_args (dict | None): Where and how files are written, see
            :mod:`mmengine.fileio`. Default: None, atomic unless ``out_dir``
            is a store's address.
        out_dir (str | None): Default: None, the work dir.
        **kwargs: Those of :class:`mmengine.hooks.CheckpointHook`.
    """

    def __init__(
        self,
        *,
        max_keep_ckpts: int = -1,
        backend_args: dict | None = None,
        out_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        remote = '://' in str(out_dir) or kwargs.get('file_client_args')
        if backend_args is None and not remote:
            backend_args = dict(backend='mmdge.atomic')
        super().__init__(
            # One more for the while in which the next is written.
            max_keep_ckpts=max_keep_ckpts + (max_keep_ckpts > 0),
            backend_args=backend_args,
            out_dir=out_dir,
            **kwargs,
        )
        self._kept = max_keep_ckpts
        self._loaded: dict = {}
        self._states: list | None = None
        self._before_val: dict | None = None
        self._outdated: list[str] = []

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Remember what the training is to go on with."""
        super().after_load_checkpoint(runner, checkpoint)
        self._loaded = {
            key: checkpoint.get(key) for key in ('random_states', 'evaluated')
        }

    def before_train(self, runner: Any) -> None:
        """On resuming, put things back to where the checkpoint was saved."""
        super().before_train(runner)
        self._files = self.file_backend
        if get_rank() == 0 and '://' not in self.out_dir:
            take_folder(self.out_dir)
        steps = all_gather_object((runner.epoch, runner.iter))
        if len(set(steps)) > 1:
            raise UserError(
                'the processes resume from different (epoch, iteration): '
                f'{steps}. All of them must see the same work_dir'
            )
        by_iter = not isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_iter:
            # Its loader is opened once, and again after resuming, for which
            # PyTorch draws a number: not from those of the training.
            generator = torch.Generator()
            generator.manual_seed(runner.seed + get_rank())
            runner.train_dataloader.generator = generator
        if runner.iter == 0:
            return  # weights were loaded at most
        self._go_on_here(runner)
        states = self._loaded.get('random_states') or []
        same = len(states) == get_world_size()
        if same:
            set_random_states(states[get_rank()])
        else:
            runner.logger.warning(
                f'The checkpoint has random states for {len(states)} '
                f'processes and there are {get_world_size()}: random numbers '
                'begin anew.'
            )
        evaluated = self._loaded.get('evaluated')
        if not evaluated and _evaluation_is_due(runner, self.by_epoch):
            runner.logger.info(
                'Evaluating the checkpoint, since the evaluation after it '
                'may have been cut off.'
            )
            runner.val_loop.run()
        if by_iter and same:
            _set_after_skipping(runner, states[get_rank()])

    def _go_on_here(self, runner: Any) -> None:
        """Look for what was saved before in the folder of this training.

        It may be a copy, and what it was copied from must stay as it is.
        """

        def here(path: str | None) -> str | None:
            name = path and path.replace('\\', '/').rpartition('/')[2]
            return name and self.file_backend.join_path(self.out_dir, name)

        known = runner.message_hub.runtime_info
        # Or it would not be saved again with what the evaluation finds.
        self.last_ckpt = here(known.get('last_ckpt'))
        self.best_ckpt_path = here(getattr(self, 'best_ckpt_path', None))
        best = getattr(self, 'best_ckpt_path_dict', {})
        self.best_ckpt_path_dict = {key: here(best[key]) for key in best}

    def before_val(self, runner: Any) -> None:
        """Remember the random states of the training."""
        self._before_val = get_random_states()

    def after_val(self, runner: Any) -> None:
        """Put them back."""
        set_random_states(self._before_val)
        self._before_val = None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the random states, unless it is the best model's weights."""
        super().before_save_checkpoint(runner, checkpoint)
        if self._states is not None:
            checkpoint['random_states'] = self._states
            # The last one is saved again once it is known to be the best.
            checkpoint['evaluated'] = self._before_val is not None

    def _save_checkpoint_with_step(
        self, runner: Any, step: int, meta: dict
    ) -> None:
        """Save, then remove the oldest; in all processes."""
        self._remove_outdated()
        own = self._before_val or get_random_states()
        self._states = all_gather_object(own)
        super()._save_checkpoint_with_step(runner, step, meta)
        self._states = None
        if 0 < self._kept < len(self.keep_ckpt_ids):
            name = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            path = self.file_backend.join_path(self.out_dir, name)
            self._outdated.append(path)
        self._remove_outdated()

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        """Save the best, then remove the one that was so before."""
        # MMEngine removes before it writes. What it writes last, that epoch's
        # checkpoint, knows of the best: the one before has to be gone by then.
        self.file_backend = _RemovesLater(self._files, self._outdated)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = self._files
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        """Remove what was replaced, unless by a file of the same name."""
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        single = getattr(self, 'best_ckpt_path', None)
        while self._outdated:
            path = self._outdated.pop()
            replaced = path not in (self.last_ckpt, single, *best)
            if get_rank() == 0 and replaced and self._files.isfile(path):
                self._files.remove(path)


class _RemovesLater:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: BaseStorageBackend, noted: list[str]) -> None:
        self._backend = backend
        self.remove = noted.append

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def _set_after_skipping(runner: Any, states: dict[str, Any]) -> None:
    """Set the random states again once a loop by iteration has skipped.

    MMEngine up to 0.10.7 loads what it skips, and so draws random numbers.
    """
    batches, number = runner.train_loop.dataloader_iterator, runner.iter

    def skipped() -> Iterator:
        for _ in range(number):
            yield next(batches)
        set_random_states(states)
        yield from batches

    if not hasattr(batches, 'skip_iter'):
        runner.train_loop.dataloader_iterator = skipped()


def _evaluation_is_due(runner: Any, by_epoch: bool) -> bool:
    """Whether the loop would evaluate where the checkpoint was saved."""
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        if not by_epoch:
            return False  # saved amid an epoch
        done, last = runner.epoch, loop.max_epochs
    else:
        done, last = runner.iter, loop.max_iters
    loop._decide_current_val_interval()
    return (
        runner.val_loop is not None
        and done >= loop.val_begin
        and (done % loop.val_interval == 0 or done == last)
    )
