"""Checkpoints: Orbax writes them, and only what was verified is trusted.

A step's folder holds everything that a run needs to go on or to be used elsewhere: the state
(parameters, optimizer, key, step, hyper-parameters) as nested dicts by path, and a JSON `extra`
with config, vocabulary, tokeniser files and the state of the data pipeline. After a step is
committed, sha256 digests of its files are written beside it; a step without matching digests is
never restored: Orbax reads flipped bits and half-copied folders without a word.
"""

import base64
import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from gpt_jax import records


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep."""

  every: int = 500  # steps between saves; the last step is always saved; 0 = only the last
  keep: int = 2  # newest checkpoints that are kept
  keep_every: int = 0  # steps; checkpoints at multiples of this are kept for good; 0 = none
  background: bool = True  # write while training goes on

  def __post_init__(self):
    if self.keep < 2:  # the newest is trusted only once its digests are written
      raise ValueError(
        f'checkpoint.keep={self.keep} leaves none to fall back to\nfix: use 2 or more'
      )
    if min(self.every, self.keep_every) < 0:
      raise ValueError('checkpoint.every and checkpoint.keep_every count steps\nfix: use 0 or more')


class Corrupt(ValueError):
  """A checkpoint whose files are not what was written."""


def to_tree(state):
  """Any pytree -> nested dicts by path, PRNG keys as their data: what is stored."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  data = lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf
  return nest({'/'.join(_names(path)): data(leaf) for path, leaf in leaves})


def from_tree(tree, like):
  """Inverse of `to_tree`, into the structure of `like`."""

  def fetch(path, leaf):
    node = tree
    for name in _names(path):
      node = node[name]
    return jax.random.wrap_key_data(node) if _is_key(leaf) else node

  return jax.tree_util.tree_map_with_path(fetch, like)


def _names(path):
  names = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
  return names[:-1] if names[-1] == 'value' else names  # a flax Param holds its array as `value`


def _is_key(leaf):
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def flat(tree, prefix=''):
  """Nested dicts -> {'a/b': leaf}."""
  result = {}
  for name, node in tree.items():
    path = f'{prefix}{name}'
    result.update(flat(node, path + '/') if isinstance(node, dict) else {path: node})
  return result


def nest(paths):
  """Inverse of `flat`."""
  tree = {}
  for path, leaf in paths.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def mismatches(stored, wanted):
  """Lines that say how two flat trees of arrays differ, by path, shape and dtype."""
  lines = [f'{path} is missing in the checkpoint' for path in wanted if path not in stored]
  lines += [f'{path} is only in the checkpoint' for path in stored if path not in wanted]
  for path in wanted:
    if path in stored:
      old, new = stored[path], wanted[path]
      if tuple(old.shape) != tuple(new.shape) or old.dtype != new.dtype:
        lines.append(f'{path}: checkpoint {_show(old)}, model {_show(new)}')
  return lines


def shortened(lines, most=20):
  """One text of many lines, the first of them in full."""
  more = f'; and {len(lines) - most} more' if len(lines) > most else ''
  return '; '.join(lines[:most]) + more


def _show(array):
  return f'{array.dtype}{list(array.shape)}'


class Checkpoints:
  """The checkpoints/ folder of one run."""

  def __init__(self, folder, config=None, report=print):
    """`config` None: reading only. `report` gets a line about each step that is not trusted."""
    logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax reports each step at INFO
    self.folder, self.config, self.report = pathlib.Path(folder).absolute(), config, report
    self.digests = self.folder / 'digests'
    self.primary = jax.process_index() == 0
    self._manager = None
    if config is not None:
      self._manager = ocp.CheckpointManager(self.folder, options=self._options())

  def _options(self):
    cfg = self.config
    return ocp.CheckpointManagerOptions(
      max_to_keep=cfg.keep,
      keep_period=cfg.keep_every or None,
      enable_async_checkpointing=cfg.background,
      save_interval_steps=1,
    )

  def save(self, step, state, extra):
    """Start writing this step; waits for the one before it, and raises what went wrong with it."""
    self.finish()
    items = {'state': ocp.args.StandardSave(to_tree(state)), 'extra': ocp.args.JsonSave(extra)}
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    if not self.config.background:
      self.finish()

  def poll(self):
    """Write the digests of a save that was committed since the last call. Cheap."""
    if not self._manager.is_saving_in_progress():
      self.finish()

  def finish(self):
    """Wait until everything is on disk with its digests."""
    self._manager.wait_until_finished()
    if not self.primary:
      return
    self.digests.mkdir(parents=True, exist_ok=True)
    steps = set(self._manager.all_steps())
    for old in self.digests.glob('*.json'):
      if int(old.stem) not in steps:
        old.unlink()
    for step in steps:
      path = self.digests / f'{step}.json'
      if not path.exists():
        records.write_json(path, _digest(self.folder / str(step)))

  def close(self):
    """Finish and release Orbax's threads."""
    if self._manager is not None:
      self.finish()
      self._manager.close()

  def steps(self):
    """Steps on disk, newest first, trusted or not."""
    return sorted(
      (int(p.name) for p in self.folder.glob('[0-9]*') if p.name.isdigit()), reverse=True
    )

  def verify(self, step):
    """Raise Corrupt unless the step's files are exactly those that were written."""
    path = self.digests / f'{step}.json'
    if not path.exists():
      raise Corrupt(f'checkpoint {step} was never finished')
    try:
      written = json.loads(path.read_text())
    except ValueError as error:
      raise Corrupt(f'checkpoint {step}: file digests/{path.name} is changed') from error
    try:
      found = _digest(self.folder / str(step))
    except OSError as error:  # another process's retention removed it meanwhile
      raise Corrupt(f'checkpoint {step}: {error}') from error
    for name in sorted(found.keys() | written.keys()):
      if found.get(name) != written.get(name):
        state = 'missing' if name not in found else 'changed' if name in written else 'foreign'
        raise Corrupt(f'checkpoint {step}: file {name} is {state}')

  def newest_good(self):
    """The newest step that verifies, or None when the folder is empty; others are reported.

    Raises Corrupt when there are checkpoints but none is good.
    """
    reasons = []
    for step in self.steps():
      try:
        self.verify(step)
        return step
      except Corrupt as reason:
        reasons.append(str(reason))
        self.report(f'not trusted: {reason}; trying the one before')
    # A kill leaves one step without digests; more means that the digests were lost.
    if len(reasons) > 1 or any('never finished' not in reason for reason in reasons):
      raise Corrupt(
        f'{self.folder}: no good checkpoint: {"; ".join(reasons)}\n'
        'fix: copy a good one back, or start anew in another --workdir'
      )
    return None

  def drop_after(self, step):
    """Remove checkpoints newer than the one that a run resumes from: unfinished or corrupt."""
    newer = [n for n in self.steps() if n > step]
    if self.primary:
      halves = list(self.folder.glob('*.orbax-checkpoint-tmp*'))  # of saves that were killed
      for path in [*(self.folder / str(n) for n in newer), *halves]:
        shutil.rmtree(path)
      for n in newer:
        (self.digests / f'{n}.json').unlink(missing_ok=True)
    self._manager.reload()  # Orbax remembers what it saw, and would refuse to save these steps

  def extra(self, step):
    """The JSON that was saved with the state."""
    return json.loads((self.folder / str(step) / 'extra' / 'metadata').read_text())

  def stored(self, step):
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
    if lines := mismatches(self.stored(step), flat(wanted)):
      raise ValueError(
        f'checkpoint {self.folder}/{step} does not fit this run: {shortened(lines)}\n'
        'fix: use the config that wrote it, or another --workdir'
      )
    return from_tree(self._read(step, wanted), like)

  def read_model(self, step, like, fallback=None):
    """The weights of a step; what is not there, or does not fit, comes from `fallback`."""
    branch, stored = self.weights(step)
    spare = {} if fallback is None else flat(to_tree(fallback))
    wanted = flat(to_abstract_tree(like))
    same = lambda path: not mismatches({path: stored[path]}, {path: wanted[path]})
    fits = {f'{branch}/{path}': wanted[path] for path in wanted if path in stored and same(path)}
    read = flat(self._read(step, nest(fits)))
    chosen = {path: read.get(f'{branch}/{path}', spare.get(path)) for path in wanted}
    return from_tree(nest(chosen), like)

  def weights(self, step):
    """The weights to use (their average, if kept) -> (branch, {path: shape and dtype})."""
    stored = self.stored(step)
    for branch in ('opt_state/ema', 'model'):
      found = {p[len(branch) + 1 :]: a for p, a in stored.items() if p.startswith(branch + '/')}
      if found:
        return branch, found
    raise Corrupt(f'checkpoint {step} holds no weights\nfix: restore its files')

  def _read(self, step, wanted):
    restore_args = jax.tree.map(
      lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype, global_shape=x.shape),
      wanted,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(
        self.folder / str(step) / 'state',
        args=ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True),
      )


def to_abstract_tree(like):
  """`to_tree` for ShapeDtypeStructs: a PRNG key becomes its data's shape."""

  def abstract(leaf):
    if not _is_key(leaf):
      return leaf
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)

  return to_tree(jax.tree.map(abstract, like))


def _digest(folder):
  """{relative path: sha256} of all files of a folder."""
  files = sorted(p for p in folder.rglob('*') if p.is_file())
  return {str(p.relative_to(folder)): _sha256(p) for p in files}


def _sha256(path):
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def load_model(workdir, like, fallback=None):
  """The parameters of a run's newest good checkpoint -> (model, notes).

  like: abstract model with shardings. fallback None: any mismatch is a ValueError that lists every
  one by path, shape and dtype. Else what fits is taken and the rest comes from `fallback`; notes
  has a line for each parameter that did not fit.
  """
  checkpoints = Checkpoints(pathlib.Path(workdir).expanduser() / 'checkpoints')
  step = checkpoints.newest_good()
  if step is None:
    raise ValueError(
      f'{workdir} has no checkpoint\nfix: train there first, or name another run folder'
    )
  _, stored = checkpoints.weights(step)
  wanted = flat(to_abstract_tree(like))
  lines = mismatches(stored, wanted)
  fits = [path for path in wanted if not mismatches(
    {path: stored[path]} if path in stored else {}, {path: wanted[path]})]  # fmt: skip
  if lines and (fallback is None or not fits):
    raise ValueError(
      f'{workdir} does not fit the model: {shortened(lines)}\n'
      'fix: use the model section of its config.json, or take what fits by '
      'train.init_partial=True'
    )
  return checkpoints.read_model(step, like, fallback), lines


def pack_folder(folder):
  """{file name: base64 of its bytes}: a small folder inside a checkpoint's JSON."""
  files = sorted(p for p in pathlib.Path(folder).iterdir() if p.is_file())
  return {p.name: base64.b64encode(p.read_bytes()).decode() for p in files}
