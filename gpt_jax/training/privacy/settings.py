"""The privacy section of a config, and the settings beside which its guarantee would not hold.

The guarantee: the distribution of all weights of a run changes by at most (epsilon, delta) when the data of
one unit are added or removed (Dwork et al. 2006). DP-SGD gives it (Abadi et al. 2016, arXiv:1607.00133).
"""

import dataclasses
import math

from gpt_jax.runs import records
from gpt_jax.training.privacy.gradients import GRADIENTS

SPLIT_FIX = (
  'set data.valid_fraction=0.0, and valid_path, valid_keep or valid_split of each source for validation'
)


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
  """Differentially private training of a GPT."""

  epsilon: float = 0.0  # the guarantee after the last step; 0 = no privacy
  delta: float = 0.0  # the same: well below 1 / units
  clip: float = 1.0  # largest norm of one unit's gradient
  unit: str = 'document'  # what is protected: document, conversation, or a field of records, such as a user
  gradients: str = 'vmap'  # how units are clipped: vmap, or ghost for wide models and short rows
  secret: str = ''  # file of 32 random bytes, for sampling and noise; '' = train.seed, which is not secret

  def __post_init__(self):
    for key in ('epsilon', 'clip'):
      if not 0 <= getattr(self, key) < math.inf:
        raise ValueError(
          f'privacy.{key}={getattr(self, key)} is not a finite number of at least 0\n'
          f'fix: use a number > 0{", or 0 for no privacy" if key == "epsilon" else ""}'
        )
    if self.gradients not in GRADIENTS:
      raise ValueError(
        f'privacy.gradients={self.gradients!r} is not known\nfix: use one of {", ".join(GRADIENTS)}'
      )
    if not self.epsilon:
      return
    if not 0 < self.delta < 1:
      raise ValueError(
        f'privacy.epsilon={self.epsilon} with privacy.delta={self.delta}, which is not between 0 and 1\n'
        'fix: set privacy.delta well below 1 / units, such as 1e-6 for 100,000 documents'
      )
    if not self.clip:
      raise ValueError('privacy.clip=0.0 leaves nothing of a gradient\nfix: use a number > 0, such as 1.0')
    if not self.unit:
      raise ValueError("privacy.unit='' names no unit\nfix: use document, or a field of the records")


def check(cfg):
  """Raise ValueError for settings of a config.Config that would break the guarantee, with the reason."""
  if not cfg.privacy.epsilon:
    return
  for key, wanted, reason in RULES:
    section, _, name = key.partition('.')
    value = getattr(getattr(cfg, section), name)
    if value != wanted:
      fix = SPLIT_FIX if key == 'data.valid_fraction' else f'set {key}={wanted!r}, or privacy.epsilon=0.0'
      raise ValueError(f'{key}={value!r} with privacy.epsilon={cfg.privacy.epsilon}: {reason}\nfix: {fix}')
  for name, source in cfg.data.mixture.items():
    if source.weight not in (0, 1):
      raise ValueError(
        f'data.mixture.{name}.weight={source.weight} with privacy.epsilon={cfg.privacy.epsilon}: each unit '
        'is sampled with the same probability\nfix: use 1.0, or 0.0 to leave the source out'
      )
    among = [rule for rule in source.clean.split(',') if rule.partition('=')[0].strip() in AMONG_RECORDS]
    among += [f'unique={source.unique}'] * bool(source.unique)
    among += [f'train_split={source.train_split}'] * ('[' in source.train_split)
    if among:
      raise ValueError(
        f'data.mixture.{name} has {among[0]} with privacy.epsilon={cfg.privacy.epsilon}: which records it '
        'takes depends on other records\nfix: leave it out, or make a file of the records that stay'
      )
    if source.copies:
      raise ValueError(
        f'data.mixture.{name}.copies={source.copies} with privacy.epsilon={cfg.privacy.epsilon}: copies of a '
        'record would count as units of their own\nfix: set copies=0 and leave out augment'
      )


def notes(cfg):
  """Return warnings about what a private run leaves unprotected by its settings."""
  if not cfg.privacy.epsilon:
    return []
  lines = []
  if not cfg.privacy.secret:
    lines.append(
      "privacy.secret='': sampling and noise follow from train.seed, and whoever knows it can remove the "
      'noise; name a file of random bytes to publish the weights'
    )
  is_new = not (cfg.train.init_from or cfg.train.branch_from)
  if is_new and cfg.tokenizer.kind in ('chars', 'bpe') and not cfg.tokenizer.path:
    lines.append(
      f'tokenizer.kind={cfg.tokenizer.kind} is made from the private documents and published with the '
      'weights, which epsilon does not cover; use tokenizer.kind=bytes, or a public one by tokenizer.path'
    )
  return lines


def decisive(cfg):
  """Return the settings of a config.Config that decide its updates, besides its data, JSON-able."""
  tree = records.to_json(dataclasses.asdict(cfg))
  tree['model'].pop('unroll')  # which may change when a run resumes
  chosen = {name: tree[name] for name in DECISIVE} | {name: tree['train'][name] for name in DECISIVE_TRAIN}
  return chosen | {'privacy': tree['privacy'] | {'secret': ''}}


DECISIVE = ('model', 'adapter', 'image', 'audio', 'loss', 'optim')
DECISIVE_TRAIN = ('seed', 'steps', 'batch_size', 'accumulate', 'length', 'init_from')
AMONG_RECORDS = ('exact', 'near', 'passages')  # rules of Source.clean that compare records
# Settings that must have one value: key, value, why.
RULES = (
  ('train.job', 'gpt', 'only train.job=gpt trains privately'),
  ('data.packing', 'document', 'a row with documents of two units cannot be clipped for each of them'),
  ('data.stages', '', 'each unit is sampled with the same probability in every step'),
  ('data.valid_fraction', 0.0, 'which documents are cut off for validation depends on all the others'),
  ('data.reset', False, 'data that begin again are not accounted'),
  ('train.branch_from', '', 'the steps of the other run are not accounted'),
  ('train.spike_sigma', 0.0, 'which steps are skipped would depend on the data without noise'),
  ('train.probe_every', 0, 'probes publish sizes of gradients without noise'),
)
