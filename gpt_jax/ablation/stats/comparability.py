"""Comparability: whether the scores of two arms are on one scale, from what study.json records of each.

A loss per token is no scale across tokenizers, no score is one across validation data, and arms that train on
unequal numbers of tokens differ in that as well. The only place that decides: the verdict of a pair with
reasons is 'not comparable' in every output.
"""

from gpt_jax.runs.metric_names import METRICS, Metric

NOTABLE = 0.02  # relative difference in training tokens or parameters that counts
SCALE_KEYS = ('tokenizer', 'row length', 'loss mask')  # of scored_on, on which a loss depends
UNITS = {'per pair': 'valid_reward_accuracy'}  # of losses beside per token: a score that compares
LENGTHS = ('tokens', 'flops', 'seconds')  # budgets that decide how long each arm trains


def metric_kind(metric):
  """What a metric measures: 'cost', 'speed', or a score 'per token', 'per byte' or of a 'task'."""
  parts = metric.removeprefix('tail/').split('/')
  kind_of = lambda name: METRICS.get(name, Metric()).kind
  kinds = [kind_of(name) for name in (parts[0], *(parts[2:] or parts[1:]))]
  scales = [kind for kind in ('per token', 'per byte') if kind in kinds]
  return kinds[0] if kinds[0] in ('cost', 'speed') else (*scales, 'task')[0]


def reasons(study, arm, base):
  """Why the values of two arms of study.json do not compare in the study's metric: a tuple of texts."""
  metric = study['metric']
  kind = metric_kind(metric)
  if kind == 'cost':
    return ()
  texts, ours, theirs = [], arm.get('scored_on') or {}, base.get('scored_on') or {}
  if kind == 'speed':
    if 'tokens' in metric and ours.get('tokenizer') != theirs.get('tokenizer'):
      texts.append(f'{metric} counts the tokens of another tokenizer (use seconds)')
    return (*texts, *_token_reasons(study, arm, base))
  chosen = scored_sources(metric, {**ours.get('sources', {}), **theirs.get('sources', {})})
  sides = [{name: side.get('sources', {}).get(name) for name in chosen} for side in (ours, theirs)]
  if sides[0] != sides[1]:
    what = {key for pair in _pairs(*sides) for key in _differing(*pair)}
    texts.append(f'it is scored on other validation data ({", ".join(sorted(what))})')
  elif kind == 'per token':
    settings = sorted(key for key in {**ours, **theirs} if '.' in key)
    keys = ('unit', *SCALE_KEYS, *settings)
    if keys := [key for key in keys if ours.get(key) != theirs.get(key)]:
      unit = ours.get('unit', 'per token')
      per_byte = ours.get('bytes') and theirs.get('bytes')
      other = UNITS.get(unit, 'valid_bits_per_byte' if per_byte else "a task's score")
      texts.append(f'{metric} is {unit}, and it has another {" and ".join(keys)} (use {other})')
  if is_of_training(metric) and (keys := training_settings(arm, base)):
    texts.append(f'{metric} is of training, and it has another {" and ".join(keys)} (use valid_loss)')
  if metric.startswith('tail/valid') and ours.get('part') != theirs.get('part'):
    texts.append(f'{metric} is over another part of the validation data')
  return (*texts, *_token_reasons(study, arm, base))


def is_of_training(metric):
  """Whether a metric is a loss on the training data, as training computes it."""
  return metric.removeprefix('tail/').split('/')[0] in ('loss', 'objective')


def training_settings(arm, base):
  """Config keys in which two arms differ and a training loss depends on: data, weights, dropout."""
  ours, theirs = ({key: new for key, (_, new) in (side.get('diff') or {}).items()} for side in (arm, base))
  is_one = lambda key: key.startswith(('data.mixture', 'loss.')) or key.endswith('dropout')
  return sorted(key for key in {**ours, **theirs} if is_one(key) and ours.get(key) != theirs.get(key))


def speed_reasons(pairs):
  """Why speeds of pairs of runs do not compare, from a scores.training_way of each: a tuple of texts."""
  names = ('way of training', 'number of runs at once', 'hardware')
  differing = [name for i, name in enumerate(names) if any(ours[i] != theirs[i] for ours, theirs in pairs)]
  return (f'it was timed with another {" and ".join(differing)} in some seeds',) if differing else ()


def _token_reasons(study, arm, base):
  if ratio := token_ratio(study, arm, base):
    yield f'it trains on {ratio:.3g} times the tokens (use Budget(tokens=...), or unequal_tokens=True)'


def loss_unit(study):
  """Return the unit of a study's losses: 'per token', or another that its jobs have."""
  units = {(arm.get('scored_on') or {}).get('unit', 'per token') for arm in study.get('arms', ())}
  return ' or '.join(sorted(units)) or 'per token'


def label(study):
  """Return the metric of a study with its unit where that is not the one of a language model."""
  unit = loss_unit(study)
  is_loss = metric_kind(study['metric']) == 'per token' and unit != 'per token'
  return f'{study["metric"]} ({unit})' if is_loss else study['metric']


def scored_sources(metric, sources):
  """The names of the validation sources that a metric is computed on: the one that it names, else all."""
  parts = metric.removeprefix('tail/').split('/')
  return [name for name in sources if name in parts[1:2]] or list(sources)


def token_ratio(study, arm, base):
  """Training tokens of an arm over the baseline's, if they differ without being meant to; else None.

  They are meant to differ under a budget of tokens, FLOPs or seconds, and with unequal_tokens of the Study.
  """
  meant = study.get('unequal_tokens') or any((study.get('budget') or {}).get(key) for key in LENGTHS)
  tokens = arm.get('tokens'), base.get('tokens')
  if meant or not all(tokens) or abs(tokens[0] / tokens[1] - 1) <= NOTABLE:
    return None
  return tokens[0] / tokens[1]


def default_metric(scored_on):
  """The metric of a study that names none, from `scored_on` of its arms: per byte if tokenizers differ."""
  first, *others = scored_on
  tokens_differ = any(other.get('tokenizer') != first.get('tokenizer') for other in others)
  per_byte = tokens_differ and all(each.get('bytes') for each in scored_on)
  return 'valid_bits_per_byte' if per_byte else 'valid_loss'


def _pairs(ours, theirs):
  return [(ours[name] or {}, theirs[name] or {}) for name in ours if ours[name] != theirs[name]]


def _differing(ours, theirs):
  """Keys in which two descriptions of a source differ."""
  return [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
