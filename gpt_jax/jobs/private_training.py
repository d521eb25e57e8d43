"""The private parts of a job: its loader, its objective, and the statement of its guarantee."""

import functools

import numpy as np

from gpt_jax.data import poisson
from gpt_jax.data.units import DOCUMENT
from gpt_jax.training.privacy import accountant, gradients, settings

NOT_COVERED = (
  'the number of units and the sampling rate, which count as public',
  'loss, gradient norms and all that the run folder logs of training data, which have no noise',
  'validation data and its scores, and settings chosen by them or by several private runs',
  'the data of the model that training began with (train.init_from), and of learned tokenizers',
  'rounding of gradients and of the noise, and how long a step takes',
)
DOCUMENTS = 'a person with several documents, or one whose words are in the documents of others'
VALUES = 'a person of several {unit} values, or one whose words are in the records of others'
SEED = 'whoever knows train.seed: sampling and noise follow from it (privacy.secret is not set)'
SECRET = (
  'whoever has the file privacy.secret, of which each run needs one of its own, or can guess 64 bits: each '
  'step draws its noise by threefry2x32, no generator vetted for cryptography, from a key of 64 bits'
)
TOKENIZER = 'the tokenizer, made from the private documents'
JUDGE = (
  'the data that the judge of data.mixture.{name}.clean={rule} was trained on: if they are private, its own '
  'guarantee holds for them, or none'
)


class PrivateTraining:
  """What privacy.epsilon changes in the training of a GPT.

  train.batch_size is the expected number of units of a step, a row each; train.accumulate divides it into
  micro-batches, of which a step computes as many as its units fill.
  """

  def __init__(self, cfg, tokenizers, fields):
    """fields: the keyword arguments of data.Loader."""
    self.cfg, privacy = cfg, cfg.privacy
    expected, self.micro = cfg.train.batch_size, cfg.train.batch_size // cfg.train.accumulate
    slots = count_slots(cfg)
    self.loader = poisson.PoissonLoader(
      cfg.data,
      tokenizers,
      unit=privacy.unit,
      expected=expected,
      stride=slots // self.micro,
      bits=poisson.RandomBits.of(cfg.train.seed, privacy.secret).of_run(settings.decisive(cfg)),
      **fields | {'batch_size': slots},
    )
    if privacy.delta * self.loader.units >= 1:
      raise ValueError(
        f'privacy.delta={privacy.delta:g} with {self.loader.units:,} units: to publish one of them as it is '
        f'would keep such a guarantee\nfix: set privacy.delta well below {1 / self.loader.units:.2g}'
      )
    rate = self.loader.sampler.rate
    self.plan = accountant.plan(privacy.epsilon, privacy.delta, rate, cfg.train.steps)
    # A run that resumes must not have another guarantee.
    self.loader.fingerprint |= {'noise_multiplier': self.plan.noise_multiplier, 'clip': privacy.clip}

  def objective(self, objective):
    """Return the step.Objective with a private gradient."""
    return private_objective(self.cfg, objective, self.plan.noise_multiplier)

  def example_batch(self):
    """Return a batch of training's shapes and dtypes: padding alone."""
    return self.loader.gather([(0, 0, poisson.PADDING)] * self.loader.sampler.slots)

  def describe(self):
    """Return the guarantee in a few words."""
    privacy, plan = self.cfg.privacy, self.plan
    return (
      f'private: (epsilon {plan.epsilon:.3f}, delta {plan.delta:g}) for each {privacy.unit} of '
      f'{self.loader.units:,}, noise multiplier {plan.noise_multiplier:.4g}, sampling rate '
      f'{self.loader.sampler.rate:.4g}'
    )

  @functools.cached_property
  def statement(self):
    """The guarantee as JSON, for result.json, the report and the model card."""
    cfg, privacy, plan = self.cfg, self.cfg.privacy, self.plan
    is_document = privacy.unit in DOCUMENT
    lines = [*NOT_COVERED, DOCUMENTS if is_document else VALUES.format(unit=privacy.unit)]
    lines.append(SECRET if privacy.secret else SEED)
    made = not cfg.train.init_from and cfg.tokenizer.kind in ('chars', 'bpe') and not cfg.tokenizer.path
    return {
      'epsilon': plan.epsilon,
      'delta': plan.delta,
      'unit': privacy.unit,
      'units': self.loader.units,
      'neighbors': 'one unit added or removed',
      'mechanism': gradients.MECHANISM,
      'noise_multiplier': plan.noise_multiplier,
      'clip': privacy.clip,
      'sampling_rate': self.loader.sampler.rate,
      'steps': cfg.train.steps,
      'slots': self.loader.sampler.slots,
      'accountant': f'PLD, dp-accounting {accountant.version()}',
      'not_covered': lines + [TOKENIZER] * made + judges(cfg.data),
    }


def judges(cfg):
  """Return a line for each rule of `clean` that is a trained model; cfg: data.DataConfig."""
  rules = [(name, rule.strip()) for name, source in cfg.mixture.items() for rule in source.clean.split(',')]
  return [JUDGE.format(name=name, rule=rule) for name, rule in rules if rule.startswith('score=')]


def count_slots(cfg):
  """Return the number of slots of a private batch, a multiple of the units of a micro-batch."""
  privacy, expected = cfg.privacy, cfg.train.batch_size
  micro = expected // cfg.train.accumulate
  return accountant.slots(expected, cfg.train.steps, privacy.epsilon, privacy.delta, micro)


def private_objective(cfg, objective, noise_multiplier):
  """Return the step.Objective of a config with a private gradient."""
  expected = cfg.train.batch_size
  micro = expected // cfg.train.accumulate
  clip, way = cfg.privacy.clip, cfg.privacy.gradients
  return gradients.private_objective(objective, clip, noise_multiplier, expected, micro, way)


ENTRIES = {'unit_weight_B': np.float32, 'noise_key_B2': np.uint32}  # that a batch has besides
