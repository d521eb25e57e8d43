"""Canaries: how much a model memorized of planted secrets, by how often they occurred.

Exposure is log2 of the number of candidates less log2 of the secret's rank among them by likelihood, in bits
(Carlini et al. 2019, section 4.2). Spaces of up to EXACT candidates are ranked whole; of larger ones SAMPLES
random candidates are scored, and a skew-normal distribution is fitted to them (section 4.3), beside the bound
that their ranks alone give. `repeats 0` are secrets that were drawn and not planted: what chance looks like.
A source that is passed several times shows each secret as many times more.

The lower bound on epsilon guesses from the likelihoods which secrets of one number of repeats were planted
(Steinke et al. 2023). It bounds the epsilon of one document where repeats = 1, and that of all copies of a
secret together, which are one `user`. Of documents as units, R copies are a group, for which only R epsilon
is proved (Dwork et al. 2006, with a larger delta): it is not set beside the bound.
"""

import numpy as np

from gpt_jax import data
from gpt_jax.data import templates
from gpt_jax.data.synthetic import canaries
from gpt_jax.data.units import DOCUMENT
from gpt_jax.evaluation import attacks, likelihood, metrics
from gpt_jax.evaluation.tasks import common

LIMIT = 16  # secrets of each number of repeats whose exposure is measured where no limit is given
EXACT = 10_000  # most candidates that are all scored
SAMPLES = 1000  # candidates that are scored where there are more


def fits(condition, target):
  """Text, with a condition or without."""
  return condition in ((), ('text',)) and target == ('text',)


def run(subject, source, split, limit):
  """Rows for one source of canaries: of each number of repeats, the largest first."""
  settings = subject.cfg.data.mixture[source]
  if subject.cfg.data.prefix and not templates.is_plain(settings.template):
    raise ValueError(
      f'data.prefix=True reads a condition in both directions: not in {settings.template!r}\n'
      "fix: write the template of the source without ' -> '"
    )
  secrets = canaries.draw(settings.documents, settings.seed, settings.repeats, settings.digits)
  space, rows, judged = 10**settings.digits, [], []
  for repeats in sorted({0, *settings.repeats}, reverse=True):
    of_repeats = [c for c in secrets if c.repeats == repeats or not (repeats or c.planted)]
    planted = [c for c in of_repeats if c.planted or not repeats][: limit or LIMIT]
    own = common.Rows('canaries', source, 'train', repeats=repeats)
    if planted:
      judged += add_exposures(own, subject, settings, planted, space)
    if repeats and len(of_repeats) > 1:
      add_epsilon(own, subject, settings, of_repeats)
    rows += own
  named = common.Rows('canaries', source, 'train')
  examples = [
    common.Example(f'{c.name}, {repeats} repeats', {}, [], document(settings, c.name, c.digits))
    for repeats, c, *_ in judged
  ]
  subject.record(
    named,
    examples,
    targets=[c.digits for _, c, *_ in judged],
    predictions=[likeliest for *_, likeliest in judged],
    right=[c.digits == likeliest for _, c, _, likeliest in judged],
    exposure=[bits for *_, bits, _ in judged],
  )
  return rows


def add_exposures(rows, subject, settings, secrets, space):
  """Add rows for the mean exposure of secrets -> [(repeats, canary, bits, likeliest candidate)]."""
  repeats, chance, judged = rows.last['repeats'], attacks.chance_exposure(space), []
  if space <= EXACT:
    candidates = range(space)
  else:
    draws = np.random.default_rng(settings.seed).integers(0, space, SAMPLES)
    candidates = draws.tolist()
  texts, by_rank = [f'{n:0{settings.digits}}' for n in candidates], []
  for canary in secrets:
    some = requests(subject, settings, canary.name, [*texts, canary.digits])
    *nats_S, own = likelihood.score_requests(subject, some).nats
    nats_S = np.array(nats_S)
    if space <= EXACT:
      bits = attacks.exposure(own, nats_S)
    else:
      bits, counted = attacks.sampled_exposure(own, nats_S, space)
      by_rank.append(counted)
    likeliest = texts[int(nats_S.argmin())] if nats_S.min() < own else canary.digits
    judged.append((repeats, canary, bits, likeliest))
  bits_N = np.array([bits for _, _, bits, _ in judged])
  how = dict(n=len(secrets), candidates=len(texts), estimate='rank' if space <= EXACT else 'skew-normal')
  interval = list(metrics.bootstrap_mean(bits_N))
  rows.add('exposure', bits_N.mean(), interval=interval, chance=chance, of_bits=float(np.log2(space)), **how)
  if by_rank:
    how = dict(n=len(secrets), interval=list(metrics.bootstrap_mean(by_rank)), of_bits=np.log2(SAMPLES + 1))
    rows.add('exposure_by_rank', np.mean(by_rank), chance=chance, **how)
  else:
    right, targets = [c.digits == found for _, c, _, found in judged], [True] * len(judged)
    rows.add_accuracy('extracted', right, targets, chance=1 / space, n=len(secrets))
  return judged


def add_epsilon(rows, subject, settings, secrets):
  """Add the lower bound on epsilon from guessing which of the secrets were planted."""
  own = [request for c in secrets for request in requests(subject, settings, c.name, [c.digits])]
  scores_N = -likelihood.score_requests(subject, own).nats
  delta = common.delta(subject)
  value, guesses, right = attacks.epsilon_of_one_run(scores_N, [c.planted for c in secrets], delta)
  proved = common.proved(subject, 'user', 'name', *(DOCUMENT if rows.last['repeats'] == 1 else ()))
  fields = dict(delta=delta, n=len(secrets), guesses=guesses, right=right)
  rows.add('epsilon_lower_bound', value, **fields, **proved)


def document(settings, name, digits):
  """Return the pieces of a secret's document."""
  return templates.fill(settings.template, canaries.fields(name, digits), f'canary {name}')


def requests(subject, settings, name, candidates):
  """Return a Request of each candidate for the secret of a name, from the first token that may differ."""
  other = ''.join(str((int(digit) + 1) % 10) for digit in candidates[0])  # differs from the first digit on
  documents = [document(settings, name, digits) for digits in (*candidates, other)]
  *ids, different = [e.ids.tolist() for e in data.encode_batch(subject.tokenizers, documents)]
  shared = min(common.shared_prefix(own, different) for own in ids if own != different)
  start = likelihood.start_ids(subject) if templates.is_plain(settings.template) else []
  return [likelihood.Request([*start, *own[:shared]], own[shared:]) for own in ids]
