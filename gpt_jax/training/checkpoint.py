"""Checkpoints, as they are read: Orbax stores them, and only what was verified is restored.

A step's folder holds everything that a run needs to resume or to be used elsewhere: the state
(parameters, optimizer, key, step, hyper-parameters) as nested dicts by path, and a JSON `extra` with
config, vocabulary, tokenizer files and the state of the data pipeline. Sizes and sha256 digests of its
files lie beside it (digests.py); a step without matching digests is never restored: Orbax reads flipped
bits and half-copied folders without an error, and its `latest_step` counts a step whose save failed.
checkpoint_writer.py writes them.

A checkpoint of adapters holds what is trained, and in `extra` a reference to its base: the run folder, the
step and the digest of its files. The base is looked for where train.init_from says, from the current folder
and from that of training, and must be what it was.
"""

import base64
import dataclasses
import json
import logging
import math
import os
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from gpt_jax.model import adapters, continuous, gpt
from gpt_jax.runs import digests, records
from gpt_jax.runs.digests import Corrupt
from gpt_jax.runs.reading import check_types, reading
from gpt_jax.runs.text_table import join_some
from gpt_jax.training import encoders
from gpt_jax.training.trees import flat, from_tree, mismatches, to_abstract_tree

OWN_NAMES = {'state', 'extra', '_CHECKPOINT_METADATA', 'commit_success.txt'}  # in the folder of a step
REFERENCE = {'path': str, 'absolute': str, 'step': int, 'digest': str}  # to the base of adapters
# Sections of a config on which shapes of parameters and of the optimizer's state depend.
MODEL_SECTIONS = ('model.', 'adapter.', 'tokenizer.', 'image.', 'audio.', 'encoder.')
OPTIMIZER_SECTIONS = ('optim.',)
ANY_SHAPE = {  # keys in these that no shape depends on
  *(f'model.{key}' for key in ('dropout', 'attention_dropout', 'kernel', 'unroll', 'remat', 'dtype')),
  *(f'optim.{key}' for key in ('lr', 'weight_decay', 'schedule', 'warmup')),
}
NO_CHECKPOINT, NONE_GOOD = -1, -2  # what process 0 broadcasts in the place of a step


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save, what to keep and how to verify."""

  every: int = 500  # steps between saves; the last step is always saved; 0 = only the last
  keep: int = 2  # newest checkpoints that are kept
  keep_every: int = 0  # steps; checkpoints at multiples of this are kept for good; 0 = none
  background: bool = True  # write during training
  verify: str = 'full'  # what is compared before a checkpoint is trusted, a row of VERIFY

  def __post_init__(self):
    if self.keep < 2:  # the newest is trusted only once its digests are written
      raise ValueError(f'checkpoint.keep={self.keep} leaves none to fall back to\nfix: use 2 or more')
    for key in ('every', 'keep_every'):
      if getattr(self, key) < 0:
        raise ValueError(f'checkpoint.{key}={getattr(self, key)} is negative\nfix: use 0 or more steps')
    if self.verify not in VERIFY:
      raise ValueError(f'checkpoint.verify={self.verify!r} is not known\nfix: use one of {", ".join(VERIFY)}')


class Checkpoints:
  """The checkpoints/ folder of one run, for reading.

  All processes call `latest_good` and `restore` together. Process 0 verifies: they share a file system.
  """

  def __init__(self, folder, verify='full', report=print):
    """verify: as CheckpointConfig.verify. report: gets a line about each step that is not trusted."""
    # Orbax logs each step at INFO, and what it raises again at ERROR with its traceback.
    logging.getLogger('absl').setLevel(logging.CRITICAL)
    self.folder, self.report, self.full = pathlib.Path(folder).absolute(), report, VERIFY[verify]
    self.primary = jax.process_index() == 0

  def manifest(self, step):
    """Return the path of a step's digests."""
    return self.folder / 'digests' / f'{step}.json'

  def steps(self):
    """Return the steps on disk, newest first, trusted or not."""
    return sorted((int(p.name) for p in self.folder.glob('[0-9]*') if p.name.isdigit()), reverse=True)

  def verify(self, step):
    """Raise Corrupt unless the step's files are exactly those that were written."""
    if not self.manifest(step).exists():
      raise Corrupt(f'checkpoint {step} was never finished')
    try:
      digests.verify_folder(self.manifest(step), self.folder / str(step), self.full)
    except (Corrupt, OSError) as error:  # OSError: another process's retention removed it meanwhile
      raise Corrupt(f'checkpoint {step}: {error}') from error

  def latest_good(self, last=math.inf, after=-1):
    """Return the newest step in after + 1 .. last that verifies, or None if there is no checkpoint.

    Process 0 verifies, and all return its verdict. Steps that fail are reported. Raises Corrupt when
    there are checkpoints but none is good.
    """
    verdict, reasons = NO_CHECKPOINT, []
    for step in self.steps() if self.primary else ():
      try:
        if after < step <= last:
          self.verify(step)
          verdict = step
          break
      except Corrupt as reason:
        reasons.append(str(reason))
        self.report(f'not trusted: {reason}; trying the one before')
    # A kill leaves one step without digests; more means that the digests were lost.
    lost = len(reasons) > 1 or any('never finished' not in reason for reason in reasons)
    verdict = from_process_0(NONE_GOOD if verdict == NO_CHECKPOINT and lost else verdict)
    if verdict == NONE_GOOD:
      raise Corrupt(
        f'{self.folder}: no good checkpoint: {"; ".join(reasons) or "as process 0 reports"}\n'
        'fix: copy a good one back, or start again in another --workdir'
      )
    return None if verdict == NO_CHECKPOINT else verdict

  def check_folders(self):
    """Raise ValueError for a step that is a link or holds anything that no run writes.

    Resuming deletes newer steps and retention deletes older ones.
    """
    for path in (self.folder / str(step) for step in self.steps()):
      children = [x for x in path.iterdir() if not digests.is_system_file(x)] if path.is_dir() else [path]
      names = sorted({child.name for child in children} - OWN_NAMES)
      if path.is_symlink() or names:
        cause = 'is a link' if path.is_symlink() else f'holds files that no run writes: {join_some(names, 5)}'
        raise ValueError(f'{path} {cause}\nfix: move it elsewhere; a run deletes its old steps there')

  def read_extra(self, step, expected=dict):
    """Return the JSON that was saved with the state, of types that `check_types` checks."""
    path = self.folder / str(step) / 'extra'
    with reading(path, 'what a run keeps', 'copy a good checkpoint back, or train again'):
      return check_types(json.loads((path / 'metadata').read_text()), expected)

  def check_origin(self, step, extra, config, free):
    """Raise ValueError if a checkpoint is of another step, or of a run with another config.

    free: keys, or prefixes of them ('mesh.'), that may differ. Data are compared by their fingerprint.
    """
    path, fix = self.folder / str(step), "fix: copy the run's own checkpoint back, or remove this one"
    if extra.get('step', step) != step:
      raise ValueError(f'checkpoint {path} was written at step {extra["step"]}\n{fix}')
    free = tuple(f'{key.rstrip(".")}.' for key in (*free, 'data'))
    pairs = records.diff(extra.get('config', config), config).items()
    if changes := [f'{k} {old} -> {new}' for k, (old, new) in pairs if not f'{k}.'.startswith(free)]:
      raise ValueError(f'checkpoint {path} is of a run with another config: {join_some(changes, 5)}\n{fix}')

  def array_metadata(self, step):
    """Return {path: shape and dtype} of the stored state."""
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
      metadata = reader.metadata(self.folder / str(step) / 'state')
    tree = getattr(metadata, 'item_metadata', metadata)
    return flat(tree.tree if hasattr(tree, 'tree') else tree)

  def restore(self, step, like):
    """Return the state of a step, laid out as `like`, a tree of ShapeDtypeStructs with shardings.

    Raises ValueError listing every array whose path, shape or dtype differs.
    """
    return self.restore_part(
      step, like, (), f'checkpoint {self.folder}/{step}', 'use the config that wrote it, or another --workdir'
    )

  def restore_part(self, step, like, leave, name, fix, config=None):
    """Return a part of a step's state, laid out as `like`; it may lack paths that begin with one of `leave`.

    name: of the checkpoint, and fix: for the ValueError of `describe_mismatches`, which config is for.
    """
    wanted = to_abstract_tree(like)
    paths, metadata = flat(wanted), self.array_metadata(step)
    stored = {path: x for path, x in metadata.items() if path in paths or not path.startswith(leave)}
    if texts := mismatches(stored, paths):
      cause = describe_mismatches(texts, self.read_extra(step), config)
      raise ValueError(f'{name} does not fit this run: {cause}\nfix: {fix}')
    return from_tree(self._read(step, wanted), like)

  def restore_model(self, step, like, config=None):
    """Return the weights of a step (their average, if it has one), laid out and typed as `like`.

    like: abstract GPT, into whose base adapters are merged, or tree of adapters. Raises ValueError for
    other paths or shapes, with the text of `describe_mismatches`, which config is for.
    """
    extra = self.read_extra(step)
    if isinstance(like, gpt.GPT) and (extra.get('base') or adapters.has_frozen_tower(like.cfg)):
      return self._restore_merged(step, like, extra)
    stored, wanted = self.array_metadata(step), to_abstract_tree(like)
    branch = 'opt_state/ema/' if any(path.startswith('opt_state/ema/') for path in stored) else 'model/'
    weights = {path.removeprefix(branch): x for path, x in stored.items() if path.startswith(branch)}
    types = {path: x.dtype for path, x in flat(wanted).items()}
    weights = {p: jax.ShapeDtypeStruct(x.shape, types.get(p, x.dtype)) for p, x in weights.items()}
    if texts := mismatches(weights, flat(wanted)):
      cause = describe_mismatches(texts, extra, config)
      raise ValueError(
        f'{self.folder}/{step} does not fit the model: {cause}\n'
        'fix: use the model section of the config.json beside it'
      )
    if branch == 'model/':
      return from_tree(self._read(step, {'model': wanted})['model'], like)
    return from_tree(self._read(step, {'opt_state': {'ema': wanted}})['opt_state']['ema'], like)

  def _restore_merged(self, step, like, extra):
    """Return the GPT of adapters and their base."""
    check_types(extra, {'base?': REFERENCE, 'config': {'adapter': dict}})
    section = {k: tuple(x) if isinstance(x, list) else x for k, x in extra['config']['adapter'].items()}
    trained, frozen = adapters.split(adapters.AdapterConfig(**section), like)
    mesh = jax.tree.leaves(like)[0].sharding.mesh
    frozen = load_frozen(extra.get('base'), like.cfg, mesh, with_shardings(frozen, mesh))
    return adapters.merge(frozen, self.restore_model(step, with_shardings(trained, mesh)))

  def _read(self, step, wanted):
    restore_args = jax.tree.map(
      lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype, global_shape=x.shape), wanted
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(
        self.folder / str(step) / 'state',
        args=ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True),
      )


def describe_mismatches(texts, extra, config=None, most=20):
  """Describe `mismatches` of a checkpoint with this `extra`, in one line.

  config: Config of the run that takes its arrays; the settings that differ are named in the place of arrays:
  those of the optimizer where its state alone does not fit, else those of the model and tokenizers.
  """
  sections = OPTIMIZER_SECTIONS if all(path.startswith('opt_state/') for path in texts) else MODEL_SECTIONS
  pairs = records.diff(extra.get('config', {}), dataclasses.asdict(config)).items() if config else ()
  changes = [
    f'{k} {old} -> {new}' for k, (old, new) in pairs if k.startswith(sections) and k not in ANY_SHAPE
  ]
  return join_some(changes or texts.values(), most)


def load_model(workdir, like, verify='full'):
  """Return the parameters of a run's latest good checkpoint, laid out as `like`.

  like: abstract model with shardings. verify: as CheckpointConfig.verify. Errors as `restore_model`.
  """
  checkpoints = Checkpoints(pathlib.Path(workdir).expanduser() / 'checkpoints', verify)
  step = checkpoints.latest_good()
  if step is None:
    raise ValueError(f'{workdir} has no checkpoint\nfix: train there first, or name another run folder')
  return checkpoints.restore_model(step, like)


def refer_to_base(checkpoints, step):
  """Return the reference to a verified checkpoint, for `extra` of adapters on it."""
  folder, digest = checkpoints.folder.parent, digests.digest_of_manifest(checkpoints.manifest(step))
  return {'path': os.path.relpath(folder), 'absolute': str(folder), 'step': step, 'digest': digest}


def open_base(reference, verify='full'):
  """Return the Checkpoints of a base; ValueError if it is elsewhere or its files are others."""
  path, step = reference['path'], reference['step']
  places = (pathlib.Path(path).expanduser(), pathlib.Path(reference['absolute']))
  folder = next((place for place in places if (place / 'checkpoints' / str(step)).is_dir()), None)
  if folder is None:
    raise ValueError(
      f'train.init_from={path}: the base of these adapters, its checkpoint {step}, is not there\n'
      f'fix: copy it back, or link it: ln -s NEW_PLACE {reference["absolute"]}'
    )
  checkpoints = Checkpoints(folder / 'checkpoints', verify)
  try:
    checkpoints.verify(step)
    if digests.digest_of_manifest(checkpoints.manifest(step)) != reference['digest']:
      raise Corrupt(f'checkpoint {step} is another than these adapters were trained on')
  except Corrupt as error:
    cause = str(error).splitlines()[0]
    raise ValueError(f'train.init_from={folder}: {cause}\nfix: copy the base back as it was') from error
  return checkpoints


def load_base(checkpoints, step, cfg, mesh):
  """Return the GPT of a verified checkpoint, with the vocabulary and inputs that it has.

  cfg: ModelConfig of the run that builds on it; its param_dtype is that of the weights.
  """
  return checkpoints.restore_model(step, abstract_base(checkpoints, step, cfg, mesh))


def load_frozen(reference, cfg, mesh, abstract, verify='full'):
  """Return the frozen base of a run: parameters of a checkpoint, and of the folders of encoders in the model.

  reference: of refer_to_base; None without such a checkpoint. cfg: ModelConfig. abstract: with shardings.
  """
  base = None if reference is None else load_base(open_base(reference, verify), reference['step'], cfg, mesh)
  return adapters.take_base(base, abstract, encoders.weights(cfg, base))


def abstract_base(checkpoints, step, cfg, mesh):
  """Return the abstract GPT that `load_base` loads."""
  sizes = continuous.of_extra(checkpoints.read_extra(step, continuous.EXTRA))
  return with_shardings(gpt.GPT(dataclasses.replace(cfg, **sizes)), mesh)


def with_shardings(tree, mesh):
  """Return an abstract tree of parameters with its shardings on a mesh: what `restore_model` takes."""
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, tree, gpt.shardings(tree, mesh))


def pack_folder(folder):
  """Return {file name: base64 of its bytes}: a small folder inside a checkpoint's JSON."""
  files = sorted(p for p in pathlib.Path(folder).iterdir() if p.is_file())
  return {p.name: base64.b64encode(p.read_bytes()).decode() for p in files}


def from_process_0(value):
  """Return process 0's integer in all processes."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


VERIFY = {'full': True, 'size': False}  # the content of all files; or only their names and sizes
