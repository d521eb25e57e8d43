"""The weights of pretrained encoders that are parts of a model, from their folders; see model/towers.py."""

from gpt_jax.interop.encoders import encoder
from gpt_jax.model import param_trees, towers
from gpt_jax.runs import digests


def weights(cfg, base=None):
  """Return {path: array} of the encoders in a model of ModelConfig `cfg` that its base lacks.

  base: GPT, or None. Raises ValueError for a base with another encoder in its place, and ValueError or
  FileNotFoundError for a folder that is not what it was.
  """
  arrays = {}
  for tower in towers.towers(cfg):
    known = None if base is None else towers.find(base.cfg, tower.kind)
    if known is None:
      digests.check_weights(tower.path, tower.digest, 'encoder')
      named = param_trees.named_params(encoder.load(tower.path, tower.spec))
      arrays |= {f'{tower.name}/{path}': p.get_value() for path, p in named}
    elif (known.spec, known.digest) != (tower.spec, tower.digest):
      raise ValueError(
        f'train.init_from has trained the encoder of {known.path}, and this run names that of {tower.path}\n'
        'fix: name the same folder, or begin with a run without an encoder in the model'
      )
  return arrays
