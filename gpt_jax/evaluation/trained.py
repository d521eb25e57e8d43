"""Load a trained model from its run folder; no code of the folder is executed."""

import base64
import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gpt_jax import config
from gpt_jax.evaluation import evaluate
from gpt_jax.model import gpt
from gpt_jax.runs.reading import reading
from gpt_jax.sharding import make_mesh
from gpt_jax.tokenizers import Tokenizers
from gpt_jax.training import checkpoint


class TrainedRun(NamedTuple):
  """A trained model on this machine's devices, with its config and tokenizers."""

  workdir: Path
  cfg: Any  # config.Config
  model: Any  # gpt.GPT, parameters as trained (their average, if the run kept one)
  tokenizers: Tokenizers
  mesh: Any
  step: int

  def subject(self, **fields):
    """The Subject that tasks evaluate."""
    return evaluate.Subject.of_run(self.cfg, self.model, self.tokenizers, self.mesh, self.workdir, **fields)


def load(workdir):
  """Load the newest good checkpoint of a run -> TrainedRun.

  The mesh is the run's own where these devices form it, else all of them on the data axis, where each
  holds the whole model. Raises ValueError for a folder that is not a run or has no good checkpoint.
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
  extra = checkpoints.read_extra(step, {'vocab': int, 'widths': [int], 'tokenizer': {str: str}})
  with reading(f'{workdir}/checkpoints/{step}/extra', 'what a run keeps', 'copy a good one back'):
    vocab, (patch_values, frame_values) = extra['vocab'], extra['widths']
    files = unpack_files(extra['tokenizer'])
  model_cfg = dataclasses.replace(
    cfg.model, vocab=vocab, patch_values=patch_values, frame_values=frame_values
  ).resolved()
  try:
    mesh = make_mesh(dataclasses.replace(cfg.mesh, replica=1))
  except ValueError:  # the run had another number of devices
    mesh = make_mesh(config.MeshConfig())
  abstract = gpt.GPT(model_cfg)
  shardings = gpt.shardings(abstract, mesh)
  like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
  model = checkpoints.restore_model(step, like)
  return TrainedRun(workdir, cfg, model, load_tokenizers(files), mesh, step)


def unpack_files(files):
  """Inverse of `checkpoint.pack_folder` -> {file name: bytes}; a name is never a path."""
  return {Path(name).name: base64.b64decode(text) for name, text in files.items()}


def load_tokenizers(files):
  """Load the Tokenizers of {file name: bytes}, the files of a saved folder."""
  with tempfile.TemporaryDirectory() as folder:
    for name, content in files.items():
      (Path(folder) / name).write_bytes(content)
    return Tokenizers.load(folder)
