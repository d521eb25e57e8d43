"""Results of a study: records, verdicts and sentences, shared by all formats of its report.

Missing results never fail a report: they are listed, and an unknown number is NaN, an empty cell.
"""

import collections
import dataclasses
import datetime
import math
import pathlib

import numpy as np

from gpt_jax.runs import loggers, records

# verdict: what its line begins with, in the order of a summary
VERDICTS = {
  'better': 'Better',
  'worse': 'Worse',
  'diverged': 'Diverged',
  'no difference': 'No difference',
  'undecided': 'Undecided',
}
METRIC_NAMES = {'valid_loss': 'validation loss', 'loss': 'training loss'}
MINUS = '\u2212'


@dataclasses.dataclass(frozen=True)
class StudyResults:
  """A study's description, run rows, analysis and attempts."""

  spec: dict  # study.json
  rows: list
  analysis: dict = dataclasses.field(default_factory=dict)
  attempts: list = dataclasses.field(default_factory=list)
  folder: pathlib.Path = pathlib.Path()

  @property
  def name(self):
    """Name of the study."""
    return self.spec.get('name') or 'ablation'

  @property
  def metric(self):
    """Name of the metric in words."""
    key = self.spec.get('metric', 'valid_loss')
    return METRIC_NAMES.get(key, key.replace('_', ' '))

  @property
  def sign(self):
    """1 where lower is better, -1 where higher is: sign * difference < 0 is a gain."""
    return 1 if self.spec.get('better', 'lower') == 'lower' else -1

  @property
  def tolerance(self):
    """Largest difference that counts as none, in units of the metric."""
    return number(self.spec, 'tolerance', 0.0)

  @property
  def places(self):
    """Digits after the point that show a tenth of the tolerance."""
    tolerance = self.tolerance
    return min(6, max(0, 1 - math.floor(math.log10(tolerance)))) if tolerance > 0 else 3

  def arms(self):
    """The arms, the baseline first, then from the best to the worst: {**planned, **measured}."""
    measured = {arm['name']: arm for arm in self.analysis.get('arms', ())}
    whole = [arm | measured.get(arm['name'], {}) for arm in self.spec.get('arms', ())]

    def order(arm):
      difference = self.sign * number(arm, 'difference')
      return (not arm.get('is_baseline'), math.isnan(difference), difference)

    return sorted(whole, key=lambda arm: order(arm)[:2] + (np.nan_to_num(order(arm)[2]),))

  def others(self):
    """All arms but the baseline."""
    return [arm for arm in self.arms() if not arm.get('is_baseline')]

  def baseline(self):
    """The arm that all are compared with, or {}."""
    return next((arm for arm in self.arms() if arm.get('is_baseline')), {})

  def runs_of(self, name):
    """The rows of one arm, by seed."""
    return sorted((r for r in self.rows if r['arm'] == name), key=lambda r: r['seed'])

  def verdicts(self):
    """{verdict: arms}: those that have none are undecided; scaled arms are not judged."""
    found = {verdict: [] for verdict in VERDICTS}
    for arm in self.others():
      if arm.get('verdict') == 'not judged':
        continue
      verdict = arm.get('verdict')
      found[verdict if verdict in VERDICTS else 'undecided'].append(arm)
    return found

  # ------------------------------------------------------------------------------------ numbers

  def value(self, value):
    """Format a value of the metric."""
    return format_value(value, self.places)

  def difference(self, value):
    """Format a difference, with its sign."""
    return signed(value, self.places)

  def interval(self, pair):
    """'−0.041 to −0.023', or '' where there is none."""
    if not pair or not all(math.isfinite(x) for x in map(as_number, pair)):
      return ''
    return ' to '.join(signed(as_number(x), self.places) for x in pair)

  def effect(self, arm):
    """'+0.041 (+0.030 to +0.052)', with no more than is known."""
    shown, interval = self.difference(number(arm, 'difference')), self.interval(arm.get('interval'))
    return f'{shown} ({interval})' if shown and interval else shown

  # -------------------------------------------------------------------------------------- words

  def headline(self):
    """Return one or two sentences that answer the study's question."""
    found, base = self.verdicts(), self.baseline()
    named = f'the baseline {base_name(base)}'.strip()
    if not self.done():
      return 'Nothing has been measured yet.'
    so_far = f'After {len(self.done())} of {len(self.rows)} runs: ' if self.pending() else ''
    if scaled := self.scaled():
      return so_far + scaled
    parts = [
      count_arms(found['worse'], 'worse'),
      count_arms(found['diverged'], 'diverged'),
      count_arms(found['no difference'], f'no different within {format_value(self.tolerance, self.places)}'),
      count_arms(found['undecided'], 'undecided'),
    ]
    rest = ', '.join(part for part in parts if part)
    if found['better']:
      best, *more = found['better']
      also = f' {len(more)} more {"is" if len(more) == 1 else "are"} better.' if more else ''
      rest = f' {rest[:1].upper()}{rest[1:]}.' if rest else ''
      mean = self.value(number(best, 'mean'))
      effect = f'{self.metric} {mean}, {self.effect(best)}'
      return f'{so_far}{best["name"]} beats {named}: {effect}.{also}{rest}'
    if len(found['undecided']) == len(self.others()):
      return f'{so_far}Undecided: no arm could be study from {named}.'
    return f'{so_far}Nothing beats {named}: {rest}.'

  def laws(self):
    """Return the fitted scaling laws, one line each."""
    found = self.analysis.get('scaling') or {}
    kinds = (('laws', law_text), ('parametric', law_text), ('isoflop', isoflop_text))
    return [text(*one) for kind, text in kinds for one in (found.get(kind) or {}).items()]

  def scaled(self):
    """Return the headline of a size study: the baseline's law, and the verdict on each effect by size."""
    found = self.analysis.get('scaling') or {}
    own = (found.get('laws') or {}).get(others_of(self.baseline()))
    said = [f'{self.metric.capitalize()} over parameters: {law_text("", own)}.'] if own else []
    places = collections.defaultdict(lambda: collections.defaultdict(list))
    for one in found.get('effects') or ():
      places[one['levels']][one['verdict']].append(str(one['size']))
    for levels, sizes in places.items():
      words = [f'{verdict} at {", ".join(at)}' for verdict, at in sizes.items()]
      said.append(f'{levels}: {"; ".join(words)}.')
    return ' '.join(said)

  def sentence(self, arm):
    """Return the result of one arm as a sentence."""
    said = arm.get('sentence') or self.effect(arm) or 'not measured'
    return said if said.startswith(arm['name']) else f'{arm["name"]}: {said}'

  def budget(self):
    """Return the budget of every arm: '2.1M tokens a run', or the steps of the config."""
    shown = {
      'tokens': lambda x: f'equal tokens, {loggers.human(x)} a run',
      'flops': lambda x: f'equal training FLOPs, {x:.3g} a run',
      'seconds': lambda x: f'equal time, {loggers.duration(x)} a run',
      'parameters': lambda x: f'{loggers.human(x)} parameters each',
    }
    budget = self.spec.get('budget') or {}
    said = [show(budget[key]) for key, show in shown.items() if number(budget, key, 0) > 0]
    steps = {arm.get('steps') for arm in self.spec.get('arms', ())} - {None}
    if not said and len(steps) == 1:
      said = [f'equal steps, {steps.pop():,} a run']
    return ' and '.join(said) or 'the steps of each config'

  def protocol(self):
    """Return the protocol in one line, for every table."""
    seeds = len(self.spec.get('seeds', ()))
    base = f'the baseline {base_name(self.baseline())}'.strip()
    return (
      f'Budget: {self.budget()}. {seeds} seed{"s" * (seeds != 1)} an arm. Differences are paired '
      f'by seed, against {base}; {self.spec.get("better", "lower")} '
      f'{self.metric} is better. Intervals: 95 %, t; p corrected by Holm.'
    )

  def failures(self):
    """Return [(arm, seed, outcome, cause)] of runs without a result and of retried runs."""
    tries = collections.defaultdict(list)
    for attempt in self.attempts:
      if attempt.get('outcome') != 'done' and not is_interruption(attempt):
        tries[attempt.get('arm'), attempt.get('seed')].append(attempt)
    found = []
    for row in self.rows:
      failed = tries.pop((row['arm'], row['seed']), [])
      why = row.get('message') or (failed[-1].get('message') if failed else '') or ''
      if row['status'] == 'done' and failed:
        outcome = f'done at attempt {len(failed) + 1}'
        why = failed[-1].get('message') or failed[-1].get('outcome', '')
      elif row['status'] == 'done' or (row in self.pending() and not failed):
        continue
      else:
        tried = f', {len(failed)} attempts' if len(failed) > 1 else ''
        outcome = describe_status(row['status']) + tried
      found.append((row['arm'], row['seed'], outcome, first_line(why)))
    return found

  def done(self):
    """The rows with a result."""
    return [row for row in self.rows if row['status'] == 'done']

  def pending(self):
    """The rows of runs that have not ended yet."""
    return [row for row in self.rows if row['status'] in ('missing', 'unfinished')]

  def lost(self):
    """The rows of runs that ended without a result."""
    return [row for row in self.rows if row not in self.done() + self.pending()]

  def interruptions(self):
    """Return how often the whole study was stopped or killed and later resumed."""
    moments = sorted(end_time(attempt) for attempt in self.attempts if is_interruption(attempt))
    gaps = [later - sooner for sooner, later in zip(moments, moments[1:], strict=False)]
    return bool(moments) + sum(gap > STOP_SECONDS for gap in gaps)

  def unhelpful_arms(self):
    """Arms that did not help: worse, diverged, and no different."""
    found = self.verdicts()
    return found['worse'][::-1] + found['diverged'] + found['no difference']

  def seconds(self):
    """Return the total seconds of all runs with a result."""
    times = [number(row.get('result', {}), 'seconds') for row in self.rows]
    return float(np.nansum(times)) if times else 0.0


STOP_SECONDS = 60  # workers that one stop ends write their last lines within this time


def is_interruption(attempt):
  """Return whether an attempt ended with the whole study, not by itself."""
  outcome = attempt.get('outcome')
  return outcome == 'stopped' or (outcome == 'killed' and not attempt.get('how'))


def end_time(attempt):
  """Return when an attempt ended, in Unix seconds; 0 if unreadable."""
  try:
    return datetime.datetime.fromisoformat(attempt['time']).timestamp()
  except (KeyError, TypeError, ValueError):
    return 0.0


def describe_status(status):
  """Return a row's status in words."""
  odd = {'unfinished': 'not finished', 'missing': 'not started', 'corrupt': 'unreadable'}
  return odd.get(status, status)


def read_study(workdir):
  """Return the StudyResults of a study folder, finished or not.

  Raises:
    FileNotFoundError: the folder holds no study.
    ValueError: a file of the study cannot be read.
  """
  from gpt_jax.ablation import store

  folder = pathlib.Path(workdir).expanduser().resolve()
  return StudyResults(
    spec=store.read_study(folder),
    rows=store.read_runs(folder),
    analysis=records.read_json(folder / 'analysis.json'),
    attempts=store.read_attempts(folder),
    folder=folder,
  )


def as_number(value):
  """Return a float; NaN for anything but a number."""
  real = isinstance(value, (int, float)) and not isinstance(value, bool)
  return float(value) if real else math.nan


def number(row, key, default=math.nan):
  """Return a number of a dict, or the default."""
  value = as_number(row.get(key))
  return default if math.isnan(value) else value


def format_value(value, places):
  """'1.523', or '' for NaN."""
  return '' if math.isnan(value) else f'{value:.{places}f}'.replace('-', MINUS)


def signed(value, places):
  """'+0.031' or '−0.031', '0.000' for what rounds to it, or '' for NaN."""
  text = '' if math.isnan(value) else f'{value:+.{places}f}'.replace('-', MINUS)
  return text if text.strip(f'+{MINUS}0.') else text[1:]


def probability(value):
  """'0.012', '<0.001' or ''."""
  return '' if math.isnan(value) else '<0.001' if value < 0.001 else f'{value:.3f}'


def times(value):
  """'1.24\u00d7' or ''."""
  return '' if math.isnan(value) else f'{value:.3g}\u00d7'


def count_arms(arms, what):
  """'3 worse', or '' of none."""
  return f'{len(arms)} {what}' if arms else ''


def first_line(text):
  """The cause, without its fix or its traceback."""
  return (str(text).strip().splitlines() or [''])[0]


def others_of(arm):
  """Return an arm's levels except size and tokens: the key of its law in the analysis."""
  levels = (arm.get('levels') or {}).items()
  return ','.join(f'{name}={level}' for name, level in levels if name not in ('size', 'tokens'))


def law_text(others, law):
  """'L = 1.2 + 45 / N^0.31 (0.25 to 0.36)', of loss over parameters N and, if they vary, tokens D.

  A parametric law also says what is best at the largest budget.
  """
  terms, bounds = [f'{law["E"]:.3g}'], law.get('intervals') or {}
  for factor, size, power in (('A', 'N', 'alpha'), ('B', 'D', 'beta')):
    if power in law:
      sure = f' ({" to ".join(f"{b:.2g}" for b in bounds[power])})' if bounds.get(power) else ''
      terms.append(f'{loggers.human(law[factor])} / {size}^{law[power]:.2g}{sure}')
  text = f'L = {" + ".join(terms)}'
  if best := law.get('optimum'):
    parameters, tokens = (loggers.human(best[key]) for key in ('parameters', 'tokens'))
    text += f'; best at {best["flops"]:.3g} FLOPs: {parameters} parameters on {tokens} tokens'
    text += '' if best['inside'] else ', which is beyond the sizes tried'
  return f'{others}: {text}' if others else text


def isoflop_text(others, found):
  """The best size at equal FLOPs, and how it grows with them."""
  said = [
    f'{loggers.human(one["parameters"])} parameters at {one["flops"]:.3g} FLOPs'
    for one in found['budgets']
    if one['inside']
  ]
  text = f'at equal FLOPs, best: {"; ".join(said) or "none between the sizes tried"}'
  if found['exponent'] is not None:
    bounds = found['interval']
    sure = f' ({" to ".join(f"{b:.2g}" for b in bounds)})' if bounds else ''
    text += f'; best N grows as FLOPs^{found["exponent"]:.2g}{sure}'
  return '; '.join([f'{others}: {text}' if others else text, *found['notes']])


def label(arm):
  """An arm's name, of the baseline with its levels: 'base (rope)'."""
  return f'{arm["name"]} {base_name(arm)}' if arm.get('is_baseline') else arm['name']


def base_name(arm):
  """The baseline by its levels, where these are few: 'rope'."""
  levels = list(dict.fromkeys(str(level) for level in (arm.get('levels') or {}).values()))
  return f'({", ".join(levels)})' if 0 < len(levels) <= 3 and levels != ['base'] else ''
