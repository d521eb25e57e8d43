"""Checkpoints: Orbax writes them, and only what was verified is trusted.

A step's folder holds everything that a run needs to go on or to be used elsewhere: the state
(parameters, optimizer, key, step, hyper-parameters) as nested dicts by path, and a JSON `extra`
with config, vocabulary, tokenizer files and the state of the data pipeline. After a step is
committed, sizes and sha256 digests of its files are written beside it (digests.py); a step without
matching digests is never restored: Orbax reads flipped bits and half-copied folders without a word,
and its `latest_step` counts a step whose writing failed.
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import math
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from gpt_jax.training import digests
from gpt_jax.training.digests import Corrupt
from gpt_jax.training.trees import flat, from_tree, mismatches, nest, shortened, to_abstract_tree, to_tree

# Free space before a save, over the size of the last one: compressed sizes grow a little.
ROOM = 1.2
EMPTY, CORRUPT = -1, -2  # what process 0 found, where that is no step


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep."""

  every: int = 500  # steps between saves; the last step is always saved; 0 = only the last
  keep: int = 2  # newest checkpoints that are kept
  keep_every: int = 0  # steps; checkpoints at multiples of this are kept for good; 0 = none
  background: bool = True  # write while training goes on
  verify: str = 'full'  # what is compared before a checkpoint is trusted, a row of VERIFY

  def __post_init__(self):
    if self.keep < 2:  # the newest is trusted only once its digests are written
      raise ValueError(f'checkpoint.keep={self.keep} leaves none to fall back to\nfix: use 2 or more')
    if min(self.every, self.keep_every) < 0:
      raise ValueError('checkpoint.every and checkpoint.keep_every count steps\nfix: use 0 or more')
    if self.verify not in VERIFY:
      raise ValueError(f'checkpoint.verify={self.verify!r} is not known\nfix: use one of {", ".join(VERIFY)}')


class SaveFailed(RuntimeError):
  """A checkpoint that could not be written: the run must not go on as if it had one."""


class Checkpoints:
  """The checkpoints/ folder of one run, in every process of the run.

  `save`, `wait_until_finished`, `latest_good`, `delete_after` and `restore` are to be called by all processes
  together. Process 0 writes the digests and decides what is good: they share a file system.
  """

  def __init__(self, folder, config=None, report=print, verify='full'):
    """`config` None: reading only, with `verify` as in CheckpointConfig.

    report: gets a line about each step that is not trusted.
    """
    # Orbax reports each step at INFO, and at ERROR, with its trace, what it raises as well.
    logging.getLogger('absl').setLevel(logging.CRITICAL)
    self.folder, self.config, self.report = pathlib.Path(folder).absolute(), config, report
    self.digests = self.folder / 'digests'
    self.full = VERIFY[config.verify if config else verify]
    self.primary = jax.process_index() == 0
    self._manager = None
    self._writing = None  # the step that Orbax writes
    self._digesting = None  # (step, future) of the digests of a committed step
    self._failed = False
    if config is not None:
      self._manager = ocp.CheckpointManager(self.folder, options=self._options())
      self._pool = concurrent.futures.ThreadPoolExecutor(1, 'digests')

  def _options(self):
    cfg = self.config
    return ocp.CheckpointManagerOptions(
      max_to_keep=cfg.keep,
      keep_period=cfg.keep_every or None,
      enable_async_checkpointing=cfg.background,
      save_interval_steps=1,
    )

  # ------------------------------------------------------------------------------------- writing

  def save(self, step, state, extra):
    """Start writing this step, once the one before it is finished.

    Raises SaveFailed: there is no room for it, or the one before it could not be written.
    """
    self.wait_until_finished()
    tree = to_tree(state)
    self._check_room(step, tree)
    items = {'state': ocp.args.StandardSave(tree), 'extra': ocp.args.JsonSave(extra)}
    with self._naming(step):
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    self._writing = step
    if not self.config.background:
      self.wait_until_finished()

  def poll(self):
    """Look after what is being written, without waiting for it; SaveFailed if that failed."""
    if self._writing is not None and not self._manager.is_saving_in_progress():
      self._committed()
    if self._digesting is not None and self._digesting[1].done():
      self._digested()

  def wait_until_finished(self):
    """Wait until everything is on disk with its digests; SaveFailed if it is not."""
    if self._writing is not None:
      self._committed()
    if self._digesting is not None:
      self._digested()

  def close(self):
    """Finish and release the threads."""
    if self._manager is None:
      return
    try:
      if not self._failed:  # that was raised before
        self.wait_until_finished()
    finally:
      self._pool.shutdown()
      with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
        self._manager.close()

  def _committed(self):
    """Wait for Orbax; then digests are computed while training goes on."""
    step, self._writing = self._writing, None
    with self._naming(step):
      self._manager.wait_until_finished()
      if self.primary and not (self.folder / str(step)).is_dir():
        raise OSError('it was written, but is not there')
    if self.primary:
      self._digesting = step, self._pool.submit(self._digest, step)

  def _digest(self, step):
    self.digests.mkdir(parents=True, exist_ok=True)
    digests.write_manifest(self.digests / f'{step}.json', self.folder / str(step))
    steps = set(self.steps())
    for path in self.digests.glob('*.json'):
      if int(path.stem) not in steps:  # Orbax keeps the newest ones
        path.unlink()

  def _digested(self):
    (step, future), self._digesting = self._digesting, None
    with self._naming(step):
      future.result()

  @contextlib.contextmanager
  def _naming(self, step):
    """Errors in here are SaveFailed, with the path and the cause; what is half-written goes."""
    try:
      yield
    except Exception as error:
      self._failed = True
      logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # of all other arrays, the same
      if self.primary:
        self._clean()
      words = ' '.join(str(error).split())
      cause = words.rpartition('": ')[2] if 'os_error_code' in words else words
      raise SaveFailed(
        f'checkpoint {self.folder / str(step)} could not be written: {cause}\n{self._way_on()}'
      ) from error

  def _way_on(self):
    last = next((n for n in self.steps() if (self.digests / f'{n}.json').exists()), None)
    after = 'starts anew' if last is None else f'goes on from step {last}'
    return f'fix: make room there, or mend the disk; then the same command {after}'

  def _check_room(self, step, tree):
    """Raise SaveFailed, in all processes, unless this state should fit on the disk."""
    enough = True
    if self.primary:
      sizes = (digests.total_bytes(self.digests / f'{n}.json') for n in self.steps())
      size = next(filter(None, sizes), sum(x.nbytes for x in jax.tree.leaves(tree)))
      need, free = int(ROOM * size), shutil.disk_usage(self.folder).free
      enough = free >= need
    if not agreed(enough):
      self._failed = True
      told = f'{need:,} bytes are needed and {free:,} free' if self.primary else 'the disk is full'
      raise SaveFailed(f'checkpoint {self.folder / str(step)} was not begun: {told}\n{self._way_on()}')

  def _clean(self):
    """Remove what saves that were killed or failed have left."""
    for path in self.folder.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(path, ignore_errors=True)
    for path in self.digests.glob('.*.tmp'):
      path.unlink(missing_ok=True)

  # -------------------------------------------------------------------------------- what is good

  def steps(self):
    """Steps on disk, newest first, trusted or not."""
    return sorted((int(p.name) for p in self.folder.glob('[0-9]*') if p.name.isdigit()), reverse=True)

  def verify(self, step):
    """Raise Corrupt unless the step's files are exactly those that were written."""
    path = self.digests / f'{step}.json'
    if not path.exists():
      raise Corrupt(f'checkpoint {step} was never finished')
    try:
      digests.verify_folder(path, self.folder / str(step), self.full)
    except (Corrupt, OSError) as error:  # OSError: another process's retention removed it meanwhile
      raise Corrupt(f'checkpoint {step}: {error}') from error

  def latest_good(self, last=math.inf):
    """The newest step up to `last` that verifies, or None if there is none; others are reported.

    Process 0 looks, and all get its verdict. Raises Corrupt when there are checkpoints but none is
    good.
    """
    step, reasons = self._search(last) if self.primary else (None, [])
    # A kill leaves one step without digests; more means that the digests were lost.
    lost = len(reasons) > 1 or any('never finished' not in reason for reason in reasons)
    verdict = agreed(step if step is not None else CORRUPT if lost else EMPTY)
    if verdict == CORRUPT:
      raise Corrupt(
        f'{self.folder}: no good checkpoint: {"; ".join(reasons) or "as process 0 says"}\n'
        'fix: copy a good one back, or start anew in another --workdir'
      )
    return None if verdict == EMPTY else verdict

  def _search(self, last):
    """-> (the newest good step or None, why newer ones are not)."""
    reasons = []
    for step in self.steps():
      if step > last:
        continue
      try:
        self.verify(step)
        return step, reasons
      except Corrupt as reason:
        reasons.append(str(reason))
        self.report(f'not trusted: {reason}; trying the one before')
    return None, reasons

  def delete_after(self, step):
    """Remove checkpoints newer than the one that a run resumes from: unfinished or corrupt."""
    if self.primary:
      for n in self.steps():
        if n > step:
          (self.digests / f'{n}.json').unlink(missing_ok=True)  # first: half a step is never good
          shutil.rmtree(self.folder / str(n))
      self._clean()
    agreed(step)  # others look when all is gone: a folder that goes while Orbax lists it raises
    self._manager.reload()  # Orbax remembers what it saw, and would refuse to save these steps

  # ------------------------------------------------------------------------------------- reading

  def read_extra(self, step):
    """The JSON that was saved with the state."""
    return json.loads((self.folder / str(step) / 'extra' / 'metadata').read_text())

  def array_metadata(self, step):
    """{path: shape and dtype} of the state on disk."""
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
      metadata = reader.metadata(self.folder / str(step) / 'state')
    tree = getattr(metadata, 'item_metadata', metadata)
    return flat(tree.tree if hasattr(tree, 'tree') else tree)

  def restore(self, step, like):
    """The state of a step, laid out as `like`, a tree of ShapeDtypeStructs with shardings.

    Raises ValueError listing every array whose path, shape or dtype differs.
    """
    wanted = to_abstract_tree(like)
    if lines := mismatches(self.array_metadata(step), flat(wanted)):
      raise ValueError(
        f'checkpoint {self.folder}/{step} does not fit this run: {shortened(lines)}\n'
        'fix: use the config that wrote it, or another --workdir'
      )
    return from_tree(self._read(step, wanted), like)

  def restore_model(self, step, like):
    """Return the weights of a step (their average, if kept), laid out as `like`."""
    branch, stored = self.weights_metadata(step)
    wanted = nest({f'{branch}/{path}': x for path, x in flat(to_abstract_tree(like)).items()})
    tree = self._read(step, wanted)
    for name in branch.split('/'):
      tree = tree[name]
    return from_tree(tree, like)

  def weights_metadata(self, step):
    """The weights to use (their average, if kept) -> (branch, {path: shape and dtype})."""
    stored = self.array_metadata(step)
    for branch in ('opt_state/ema', 'model'):
      found = {p[len(branch) + 1 :]: a for p, a in stored.items() if p.startswith(branch + '/')}
      if found:
        return branch, found
    raise Corrupt(f'checkpoint {step} holds no weights\nfix: restore its files')

  def _read(self, step, wanted):
    restore_args = jax.tree.map(
      lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype, global_shape=x.shape), wanted
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(
        self.folder / str(step) / 'state',
        args=ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True),
      )


def load_model(workdir, like, verify='full'):
  """Return the parameters of a run's latest good checkpoint, laid out as `like`.

  like: abstract model with shardings. verify: as CheckpointConfig.verify.
  Raises ValueError listing every parameter whose path, shape or dtype differs.
  """
  checkpoints = Checkpoints(pathlib.Path(workdir).expanduser() / 'checkpoints', verify=verify)
  step = checkpoints.latest_good()
  if step is None:
    raise ValueError(f'{workdir} has no checkpoint\nfix: train there first, or name another run folder')
  _, stored = checkpoints.weights_metadata(step)
  if lines := mismatches(stored, flat(to_abstract_tree(like))):
    raise ValueError(
      f'{workdir} does not fit the model: {shortened(lines)}\nfix: use the model section of its config.json'
    )
  return checkpoints.restore_model(step, like)


def pack_folder(folder):
  """{file name: base64 of its bytes}: a small folder inside a checkpoint's JSON."""
  files = sorted(p for p in pathlib.Path(folder).iterdir() if p.is_file())
  return {p.name: base64.b64encode(p.read_bytes()).decode() for p in files}


def agreed(value):
  """Process 0's number in all processes."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


VERIFY = {'full': True, 'size': False}  # content of all files; or only which there are, and sizes
