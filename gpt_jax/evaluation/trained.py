"""A trained model from its run folder alone: nothing is executed but this package."""

import base64
import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gpt_jax import config
from gpt_jax.evaluation import evaluate
from gpt_jax.model import gpt
from gpt_jax.sharding import make_mesh
from gpt_jax.tokenizers import Tokenizers
from gpt_jax.training import checkpoint, trees


class Trained(NamedTuple):
  """What a run folder holds, on this machine's devices."""

  workdir: Path
  cfg: Any  # config.Config
  model: Any  # gpt.GPT, parameters as trained (their average, if the run kept one)
  tokenizers: Tokenizers
  mesh: Any
  step: int

  def subject(self):
    """The model for tasks."""
    return evaluate.Subject(
      cfg=self.cfg,
      model=self.model,
      tokenizers=self.tokenizers,
      mesh=self.mesh,
      cache_dir=self.workdir / 'cache',
      batch_size=evaluate.eval_batch_size(self.cfg, self.mesh),
    )


def load(workdir):
  """The newest good checkpoint of a run -> Trained, on the run's own mesh if these devices make it.

  Else on a mesh with all of them on its data axis, where each holds the whole model.
  Raises ValueError when the folder is no run or has no good checkpoint.
  """
  workdir = Path(workdir).expanduser()
  cfg = config.of_run(workdir)
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', verify=cfg.checkpoint.verify)
  step = checkpoints.latest_good()
  if step is None:
    raise ValueError(f'{workdir} has no checkpoint yet\nfix: train there first')
  if cfg.train.job != 'gpt':
    raise ValueError(
      f'{workdir} holds an {cfg.train.job.replace("_", " ")}, not a GPT\n'
      f'fix: name it in {cfg.train.job.partition("_")[0]}.path of an experiment'
    )
  with usable(workdir, step):
    extra = checkpoints.read_extra(step)
    vocab, (patch_values, frame_values) = extra['vocab'], extra.get('widths', (0, 0))
    files = unpack(extra['tokenizer'])
  toks = load_tokenizers(files)
  model_cfg = dataclasses.replace(
    cfg.model, vocab=vocab, patch_values=patch_values, frame_values=frame_values
  ).resolved()
  try:
    mesh = make_mesh(dataclasses.replace(cfg.mesh, replica=1))
  except ValueError:  # of another number of devices
    mesh = make_mesh(config.MeshConfig())
  abstract = gpt.GPT(model_cfg)
  shardings = gpt.shardings(abstract, mesh)
  like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
  check_sizes(checkpoints, step, like)
  model = checkpoints.restore_model(step, like)
  return Trained(workdir, cfg, model, toks, mesh, step)


@contextlib.contextmanager
def usable(workdir, step):
  """What does not hold what we wrote, however it is wrong, is a ValueError that names the file."""
  try:
    yield
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    cause = ' '.join(f'{type(error).__name__} {error}'.split())
    raise ValueError(
      f'{workdir}/checkpoints/{step}/extra is not what a run keeps: {cause}\n'
      'fix: copy a good checkpoint back, or train again'
    ) from error


def check_sizes(checkpoints, step, like):
  """Raise ValueError unless the stored weights have the shapes of `like`: before any is read."""
  stored, wanted = checkpoints.weights_metadata(step)[1], trees.flat(trees.to_abstract_tree(like))
  known = {path: stored[path] for path in wanted if path in stored}
  if lines := trees.mismatches(known, wanted):
    raise ValueError(
      f'{checkpoints.folder}/{step} does not fit config.json: {trees.shortened(lines)}\n'
      'fix: give the folder as its run left it'
    )


def unpack(files):
  """Inverse of `checkpoint.pack_folder` -> {file name: bytes}; a name is never a path."""
  return {Path(name).name: base64.b64decode(text) for name, text in files.items()}


def load_tokenizers(files):
  """The Tokenizers of {file name: bytes}, a saved folder."""
  with tempfile.TemporaryDirectory() as folder:
    for name, content in files.items():
      (Path(folder) / name).write_bytes(content)
    return Tokenizers.load(folder)
