"""Writing checkpoints: Orbax saves a step, then the digests of its files are written beside it."""

import concurrent.futures
import contextlib
import logging
import shutil

import jax
import orbax.checkpoint as ocp

from gpt_jax.runs import digests
from gpt_jax.training.checkpoint import Checkpoints, from_process_0
from gpt_jax.training.trees import to_tree

DATA_FILE_BYTES = 1 << 25  # Orbax compresses all arrays at once and holds what no file of this size has taken
SIZE_MARGIN = 1.2  # free space before a save / size of the last one: compressed sizes grow a little


class SaveFailed(RuntimeError):
  """A checkpoint that could not be written: the run must not continue as if it had one."""


class CheckpointWriter(Checkpoints):
  """The checkpoints/ folder of a run in progress, in every process of the run.

  All processes call `save`, `wait_until_finished`, `latest_good`, `delete_after` and `restore`
  together. Process 0 writes the digests.
  """

  def __init__(self, folder, config, report=print):
    """config: CheckpointConfig. report: gets a line about each step that is not trusted."""
    super().__init__(folder, config.verify, report)
    self.config = config
    self._saving = None  # the step that Orbax writes
    self._digesting = None  # (step, future) of the digests of a committed step
    self._failed = False
    self._pool = concurrent.futures.ThreadPoolExecutor(1, 'digests')
    options = ocp.CheckpointManagerOptions(
      max_to_keep=config.keep,
      keep_period=config.keep_every or None,
      enable_async_checkpointing=config.background,
      save_interval_steps=1,
    )
    self._manager = ocp.CheckpointManager(self.folder, options=options)

  def save(self, step, state, extra):
    """Start writing a step, once the one before it is finished.

    Raises SaveFailed if there is no room for it, or if the one before it could not be written.
    """
    self.wait_until_finished()
    tree = to_tree(state)
    self._check_room(step, tree)
    arrays = ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=DATA_FILE_BYTES)
    items = {'state': arrays, 'extra': ocp.args.JsonSave(extra)}
    with self._raise_save_failed(step):
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    self._saving = step
    if not self.config.background:
      self.wait_until_finished()

  def poll(self):
    """Advance what is being written, without waiting for it; SaveFailed if it failed."""
    self._advance(wait=False)

  def wait_until_finished(self):
    """Wait until everything is on disk with its digests; SaveFailed if it failed."""
    self._advance(wait=True)

  def close(self):
    """Finish and release the threads."""
    try:
      if not self._failed:  # that was raised before
        self.wait_until_finished()
    finally:
      self._pool.shutdown()
      with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
        self._manager.close()

  def delete_after(self, step):
    """Delete the checkpoints newer than the one that a run resumes from: unfinished or corrupt."""
    if self.primary:
      for newer in self.steps():
        if newer > step:
          self.manifest(newer).unlink(missing_ok=True)  # first: a partial step is never good
          shutil.rmtree(self.folder / str(newer))
      self._remove_partial_files()
    from_process_0(step)  # a barrier: Orbax raises if a folder vanishes while another process lists it
    self._manager.reload()  # Orbax remembers the steps that it saw and would refuse to save them again

  def _advance(self, wait):
    """Once Orbax is done, compute the digests in the background; finish them once they are written."""
    if self._saving is not None and (wait or not self._manager.is_saving_in_progress()):
      step, self._saving = self._saving, None
      with self._raise_save_failed(step):
        self._manager.wait_until_finished()
        if self.primary and not (self.folder / str(step)).is_dir():
          raise OSError('the folder is missing after the save')
      if self.primary:
        self._digesting = step, self._pool.submit(self._write_digests, step)
    if self._digesting is not None and (wait or self._digesting[1].done()):
      (step, future), self._digesting = self._digesting, None
      with self._raise_save_failed(step):
        future.result()

  def _write_digests(self, step):
    self.manifest(step).parent.mkdir(parents=True, exist_ok=True)
    digests.write_manifest(self.manifest(step), self.folder / str(step))
    steps = set(self.steps())
    for path in self.manifest(step).parent.glob('[0-9]*.json'):
      if int(path.stem) not in steps:  # Orbax keeps the newest ones
        path.unlink()

  @contextlib.contextmanager
  def _raise_save_failed(self, step):
    """Turn errors into SaveFailed, with the path and the cause; partial files are removed."""
    try:
      yield
    except Exception as error:
      self._failed = True
      logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # it repeats the error for every array
      if self.primary:
        self._remove_partial_files()
      message = ' '.join(str(error).split())
      cause = message.rpartition('": ')[2] if 'os_error_code' in message else message
      raise SaveFailed(
        f'checkpoint {self.folder / str(step)} could not be written: {cause}\n{self._fix()}'
      ) from error

  def _check_room(self, step, tree):
    """Raise SaveFailed, in all processes, unless this state should fit on the disk."""
    enough = True
    if self.primary:
      sizes = (digests.total_bytes(self.manifest(n)) for n in self.steps())
      size = next(filter(None, sizes), sum(x.nbytes for x in jax.tree.leaves(tree)))
      need, free = int(SIZE_MARGIN * size), shutil.disk_usage(self.folder).free
      enough = free >= need
    if not from_process_0(enough):
      self._failed = True
      cause = f'{need:,} bytes are needed and {free:,} free' if self.primary else 'the disk is full'
      raise SaveFailed(f'checkpoint {self.folder / str(step)} was not started: {cause}\n{self._fix()}')

  def _fix(self):
    last = next((step for step in self.steps() if self.manifest(step).exists()), None)
    outcome = 'starts from the beginning' if last is None else f'resumes from step {last}'
    return f'fix: free space there, or repair the disk; then the same command {outcome}'

  def _remove_partial_files(self):
    """Remove what saves that were killed or failed have left."""
    for path in self.folder.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(path, ignore_errors=True)
    for path in (self.folder / 'digests').glob('.*.tmp'):
      path.unlink(missing_ok=True)
