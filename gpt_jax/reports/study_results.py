"""Results of a study: its files, verdicts and sentences, shared by all formats of its report.

Missing results never fail a report: an unknown number is NaN, and its text is empty.
"""

import collections
import math
import pathlib

import numpy as np

from gpt_jax.ablation.stats import comparability
from gpt_jax.runs import history, loggers, records
from gpt_jax.runs.metric_names import human

# In the order of a summary.
VERDICTS = ('better', 'worse', 'diverged', 'no difference', 'undecided', 'not comparable')
METRIC_NAMES = {'valid_loss': 'validation loss', 'loss': 'training loss'}
STATUS_NAMES = {'unfinished': 'not finished', 'missing': 'not started', 'corrupt': 'unreadable'}
PENDING = ('missing', 'unfinished')  # statuses of runs that have not ended
STOP_SECONDS = 5  # shares that one stop ends record it within this time; starting again takes longer
MINUS = '\u2212'


class StudyResults:
  """The files of a study folder, and what all formats of its report show of them.

  Args:
    spec: study.json.
    rows: one dict a run, of store.read_runs.
    analysis: analysis.json.
    attempts: attempts.jsonl.
    folder: path of the study.
  """

  def __init__(self, spec, rows, analysis=None, attempts=(), folder=pathlib.Path()):
    self.spec, self.rows, self.analysis = spec, rows, analysis or {}
    self.attempts, self.folder = list(attempts), folder
    key = spec.get('metric', 'valid_loss')
    self.name = spec.get('name') or 'ablation'
    unit = comparability.label({'metric': key, 'arms': spec.get('arms', ())}).removeprefix(key).strip(' ()')
    self.unit = unit  # of losses; '' for per token
    self.metric = ' '.join(filter(None, (METRIC_NAMES.get(key, key.replace('_', ' ')), unit)))
    self.better = spec.get('better', 'lower')  # direction of the metric: lower or higher
    self.tolerance = number(spec, 'tolerance', 0.0)  # largest difference that counts as none
    digits = 1 - math.floor(math.log10(self.tolerance)) if self.tolerance > 0 else 3
    self.places = min(6, max(0, digits))  # show a tenth of the tolerance
    self.arms = self._sorted_arms()
    self.others = [arm for arm in self.arms if not arm.get('is_baseline')]
    self.baseline = next((arm for arm in self.arms if arm.get('is_baseline')), {})
    self.comparable = {arm['name'] for arm in self.arms if not arm.get('reasons')}
    self.done = [row for row in rows if row.get('status') == 'done']
    self.pending = [row for row in rows if row.get('status') in PENDING]
    self.lost = [row for row in rows if row.get('status') not in ('done', *PENDING)]

  def _sorted_arms(self):
    """Return {**planned, **measured} of each arm: the baseline, then from the best to the worst."""
    measured = {arm['name']: arm for arm in self.analysis.get('arms', ())}
    arms = [arm | measured.get(arm['name'], {}) for arm in self.spec.get('arms', ())]
    sign = 1 if self.better == 'lower' else -1

    def rank(arm):
      difference = sign * number(arm, 'difference')
      return not arm.get('is_baseline'), math.isnan(difference), np.nan_to_num(difference)

    return sorted(arms, key=rank)

  def outcomes(self):
    """Return the study, and the same in each of its further metrics."""
    others = []
    for outcome in self.analysis.get('outcomes') or ():
      spec = self.spec | {key: outcome[key] for key in ('metric', 'better', 'tolerance')}
      analysis = self.analysis | {'arms': outcome['arms']}
      others.append(StudyResults(spec, self.rows, analysis, self.attempts, self.folder))
    return [self, *others]

  def runs_of(self, name):
    """Return the rows of one arm, by seed."""
    return sorted((row for row in self.rows if row['arm'] == name), key=lambda row: row['seed'])

  def value(self, row, key):
    """Format a value of the metric: '1.523'."""
    return show(number(row, key), f'{{:.{self.places}f}}'.format).replace('-', MINUS)

  def difference(self, row):
    """Format the difference of an arm or effect, with its sign."""
    return signed(number(row, 'difference'), self.places)

  def interval(self, row, key='interval'):
    """Format an interval of an arm or effect: '−0.041 to −0.023'."""
    bounds = [as_number(bound) for bound in row.get(key) or ()]
    return ' to '.join(signed(b, self.places) for b in bounds) if np.isfinite(bounds).all() else ''

  def effect(self, row):
    """Format a difference with its interval: '+0.041 (+0.030 to +0.052)'."""
    difference, interval = self.difference(row), self.interval(row)
    return f'{difference} ({interval})' if difference and interval else difference


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


# ------------------------------------------------------------------------------------- verdicts


def arms_by_verdict(study):
  """Return {verdict: arms}; arms without a verdict are undecided, arms that are not judged left out."""
  arms = {verdict: [] for verdict in VERDICTS}
  for arm in study.others:
    verdict = arm.get('verdict')
    if verdict != 'not judged':
      arms[verdict if verdict in VERDICTS else 'undecided'].append(arm)
  return arms


def unhelpful_arms(study):
  """Return the arms that did not help: worse, diverged, and no different."""
  arms = arms_by_verdict(study)
  return arms['worse'][::-1] + arms['diverged'] + arms['no difference']


def headline(study):
  """Return one or two sentences that answer the study's question."""
  if not study.done:
    return 'Nothing has been measured yet.'
  progress = 'Exploratory: ' if study.analysis.get('exploratory') else ''
  progress += f'After {len(study.done)} of {len(study.rows)} runs: ' if study.pending else ''
  if scaled := scaling_headline(study):
    return progress + scaled
  arms, base = arms_by_verdict(study), f'the baseline {base_name(study.baseline)}'.strip()
  same = f'no different within {study.value({"tolerance": study.tolerance}, "tolerance")}'
  words = {verdict: verdict for verdict in VERDICTS[1:]} | {'no difference': same}
  counts = ', '.join(f'{len(arms[verdict])} {text}' for verdict, text in words.items() if arms[verdict])
  if arms['better']:
    best, *more = arms['better']
    more = f' {len(more)} more {"is" if len(more) == 1 else "are"} better.' if more else ''
    counts = f' {counts[:1].upper()}{counts[1:]}.' if counts else ''
    mean, family = study.value(best, 'mean'), study.interval(best, 'family_interval')
    picked_of = sum(math.isfinite(number(arm, 'difference')) for arm in study.others)
    result = f'{study.metric} {mean}, {study.difference(best)} ({family or study.interval(best)})'
    if family and picked_of > 1:  # the mean of the arm that is picked for its mean is biased
      result = (
        f'{study.metric} {family} (95 % for all arms at once). Its mean, {mean} ({study.difference(best)}), '
        f'was picked as the best of {picked_of}: expect less'
      )
    return f'{progress}{best["name"]} beats {base}: {result}.{more}{counts}{runner_up(study)}'
  if len(arms['not comparable']) == len(study.others):
    return f'{progress}Not comparable: no arm can be judged against {base} by {study.metric}.'
  if len(arms['undecided']) == len(study.others):
    return f'{progress}Undecided: no arm could be distinguished from {base}.'
  return f'{progress}Nothing beats {base}: {counts}.'


def runner_up(study):
  """Return a sentence on whether the best arm beats the second best; '' without another good one."""
  judged = study.analysis.get('runner_up')
  if not judged:
    return ''
  second = f'the next best, {judged["arms"][1]}'
  if judged['verdict'] == 'not comparable':
    return f' It is not comparable to {second}.'
  words = {'better': 'It also beats', 'no difference': 'It is no different from'}
  return f' {words.get(judged["verdict"], "It is not shown to beat")} {second}: {study.effect(judged)}.'


def arm_sentence(study, arm):
  """Return the result of one arm as a sentence."""
  text = arm.get('sentence') or study.effect(arm) or 'not measured'
  return text if text.startswith(arm['name']) else f'{arm["name"]}: {text}'


def budget(study):
  """Return the budget of every arm: 'equal tokens, 2.1M a run', or the steps of the config."""
  formats = {
    'tokens': lambda x: f'equal tokens, {human(x)} a run',
    'flops': lambda x: f'equal training FLOPs, {x:.3g} a run',
    'seconds': lambda x: f'equal time, {loggers.duration(x)} a run',
    'parameters': lambda x: f'{human(x)} parameters each',
  }
  limits = study.spec.get('budget') or {}
  texts = [show(limits[key]) for key, show in formats.items() if number(limits, key, 0) > 0]
  steps = {arm.get('steps') for arm in study.spec.get('arms', ())} - {None}
  if not texts and len(steps) == 1:
    texts = [f'equal steps, {steps.pop():,} a run']
  return ' and '.join(texts) or 'the steps of each config'


def seed_count(study):
  """Return the number of seeds of an arm: '5 seeds', or '3 to 20 seeds' of a sequential study."""
  seeds, sequential = len(study.spec.get('seeds', ())), study.spec.get('sequential')
  first = f'{sequential["first"]} to ' if sequential else ''
  return f'{first}{seeds} seed{"s" * (seeds != 1)}'


def protocol(study):
  """Return the protocol in one line, for every table."""
  base = f'the baseline {base_name(study.baseline)}'.strip()
  later = '; '.join(study.analysis.get('exploratory') or ())
  changed = f' Exploratory: {later}.' if later else ''
  metrics = '; '.join(f'{each.better} {each.metric} is better' for each in study.outcomes())
  return (
    f'Budget: {budget(study)}. {seed_count(study)} an arm. Differences are paired '
    f'by seed, against {base}; {metrics}. '
    f'Intervals: 95 %, t; p corrected by Holm.{changed}'
  )


# ------------------------------------------------------------------------------------- failures


def failures(study):
  """Return [(arm, seed, outcome, cause)] of runs without a result and of retried runs."""
  attempts = collections.defaultdict(list)
  for attempt in study.attempts:
    if attempt.get('outcome') != 'done' and not is_interruption(attempt):
      attempts[attempt.get('arm'), attempt.get('seed')].append(attempt)
  rows = []
  for row in study.rows:
    failed = attempts[row['arm'], row['seed']]
    last = failed[-1] if failed else {}
    if row['status'] in ('done', *PENDING) and not failed:
      continue
    if row['status'] == 'done':
      outcome, cause = f'done at attempt {len(failed) + 1}', last.get('message') or last.get('outcome')
    else:
      outcome = status_name(row) + (f', {len(failed)} attempts' if len(failed) > 1 else '')
      cause = row.get('message') or last.get('message')
    first_line = (str(cause or '').strip().splitlines() or [''])[0]  # without fix and traceback
    rows.append((row['arm'], row['seed'], outcome, first_line))
  return rows


def status_name(row):
  """Return a row's status in words."""
  return STATUS_NAMES.get(row['status'], row['status'])


def is_interruption(attempt):
  """Return whether an attempt ended with the whole study, not by itself."""
  outcome = attempt.get('outcome')
  return outcome == 'stopped' or (outcome == 'killed' and not attempt.get('how'))


def count_interruptions(study):
  """Return how often the whole study was stopped or killed and later resumed."""
  moments = sorted(end_time(attempt) for attempt in study.attempts if is_interruption(attempt))
  return bool(moments) + int((np.diff(moments) > STOP_SECONDS).sum())


def end_time(attempt):
  """Return when an attempt ended, in Unix seconds; 0 if unreadable."""
  return np.nan_to_num(history.unix_seconds(attempt.get('time')))


# ------------------------------------------------------------------------------------- versions


def commit_of(versions):
  """Return the commit of some versions, with the hash of uncommitted changes; '' if unknown."""
  commit, _, changes = versions.get('git', '').partition(' ')
  return commit[:12] + (f' with uncommitted changes {versions.get("uncommitted", "")}' if changes else '')


def count_versions(study, read):
  """Return ['abc (3 runs)', ...] of read(versions) of the finished runs, the commonest first."""
  recorded = [(row.get('result') or {}).get('versions') for row in study.done]
  counts = collections.Counter(filter(None, (read(versions) for versions in recorded if versions)))
  return [f'{text} ({n} run{"s" * (n != 1)})' for text, n in counts.most_common()]


def differing_versions(study):
  """Yield a warning for the commit, and for each version of a package, that is not the same in all runs."""
  keys = {key for row in study.done for key in (row.get('result') or {}).get('versions') or ()}
  keys -= {'git', 'uncommitted', 'redacted', 'command', 'device'}
  readers = {'commit of the code': commit_of}
  readers |= {f'version of {key}': lambda versions, key=key: versions.get(key, '') for key in sorted(keys)}
  for what, read in readers.items():
    if len(texts := count_versions(study, read)) > 1:
      yield f'The runs differ in the {what}: {", ".join(texts)}.'


# ----------------------------------------------------------------------------------------- laws


def scaling_laws(study):
  """Return the fitted scaling laws, one line each."""
  scaling = study.analysis.get('scaling') or {}
  kinds = {'laws': law_text, 'parametric': law_text, 'isoflop': isoflop_text}
  return [text(*fit) for kind, text in kinds.items() for fit in (scaling.get(kind) or {}).items()]


def scaling_headline(study):
  """Return the headline of a size study: the baseline's law, and the verdict on each effect by size."""
  scaling = study.analysis.get('scaling') or {}
  law = (scaling.get('laws') or {}).get(levels_but_size(study.baseline))
  sentences = [f'{study.metric.capitalize()} over parameters: {law_text("", law)}.'] if law else []
  sizes = collections.defaultdict(lambda: collections.defaultdict(list))  # levels: verdict: sizes
  for effect in scaling.get('effects') or ():
    sizes[effect['levels']][effect['verdict']].append(str(effect['size']))
  for levels, by_verdict in sizes.items():
    verdicts = '; '.join(f'{verdict} at {", ".join(at)}' for verdict, at in by_verdict.items())
    sentences.append(f'{levels}: {verdicts}.')
  return ' '.join(sentences)


def levels_but_size(arm):
  """Return an arm's levels except size and tokens: the key of its law in the analysis."""
  levels = (arm.get('levels') or {}).items()
  return ','.join(f'{name}={level}' for name, level in levels if name not in ('size', 'tokens'))


def law_text(levels, law):
  """Format a law of loss over parameters N and tokens D: 'L = 1.2 + 45 / N^0.31 (0.25 to 0.36)'.

  A parametric law also names the best sizes at the largest budget, a power law how well it predicts.
  """
  terms = [f'{law["E"]:.3g}']
  for factor, size, power in (('A', 'N', 'alpha'), ('B', 'D', 'beta')):
    if power in law:
      bounds = bounds_text((law.get('intervals') or {}).get(power))
      terms.append(f'{human(law[factor])} / {size}^{law[power]:.2g}{bounds}')
  text = f'L = {" + ".join(terms)}'
  if best := law.get('optimum'):
    parameters, tokens = (human(best[key]) for key in ('parameters', 'tokens'))
    text += f'; best at {best["flops"]:.3g} FLOPs: {parameters} parameters on {tokens} tokens'
    text += '' if best['inside'] else ', which is beyond the sizes tried'
  if held := law.get('held_out'):
    predicted = f'{held["predicted"]:.3f}{bounds_text(held["interval"], ".3f")}'
    text += f'; without its largest size it predicts {predicted} there, measured {held["measured"]:.3f}'
  return f'{levels}: {text}' if levels else text


def isoflop_text(levels, fit):
  """Format the best size at equal FLOPs, and how it grows with them."""
  inside = [budget for budget in fit['budgets'] if budget['inside']]
  best = [f'{human(budget["parameters"])} parameters at {budget["flops"]:.3g} FLOPs' for budget in inside]
  text = f'at equal FLOPs, best: {"; ".join(best) or "none between the sizes tried"}'
  if fit['exponent'] is not None:
    text += f'; best N grows as FLOPs^{fit["exponent"]:.2g}{bounds_text(fit["interval"])}'
  return '; '.join([f'{levels}: {text}' if levels else text, *fit['notes']])


def bounds_text(bounds, form='.2g'):
  """Format an interval, here of an exponent: ' (0.25 to 0.36)', or ''."""
  return f' ({" to ".join(f"{bound:{form}}" for bound in bounds)})' if bounds else ''


# ------------------------------------------------------------------------------ numbers and names


def as_number(value):
  """Return a float; NaN for anything but a number."""
  is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
  return float(value) if is_real else math.nan


def number(row, key, default=math.nan):
  """Return a number of a dict, or the default."""
  value = as_number(row.get(key))
  return default if math.isnan(value) else value


def show(value, form):
  """Return form(value), or '' for NaN."""
  return '' if math.isnan(value) else form(value)


def signed(value, places):
  """Format a difference: '+0.031' or '−0.031', '0.000' for what rounds to it, '' for NaN."""
  text = show(value, f'{{:+.{places}f}}'.format).replace('-', MINUS)
  return text if text.strip(f'+{MINUS}0.') else text[1:]


def label(arm):
  """Return an arm's name, of the baseline with its levels: 'base (rope)'."""
  return f'{arm["name"]} {base_name(arm)}' if arm.get('is_baseline') else arm['name']


def base_name(arm):
  """Return the baseline's levels in parentheses if they are few: '(rope)'."""
  levels = list(dict.fromkeys(str(level) for level in (arm.get('levels') or {}).values()))
  return f'({", ".join(levels)})' if 0 < len(levels) <= 3 and levels != ['base'] else ''
