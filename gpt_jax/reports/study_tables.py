"""Tables of a study: results, effects, costs, changes of the arms, and all numbers as CSV."""

import collections
import csv
import io
import math

import numpy as np

from gpt_jax.reports import page
from gpt_jax.reports import study_results as results
from gpt_jax.reports.sections import make_table
from gpt_jax.runs import loggers, records
from gpt_jax.runs.metric_names import score_name

WHERE = 3  # differences of each kind that are listed
COMPARISON = {  # what is used of a line of against.jsonl: the file may come from anywhere
  'against': str,
  'losses': [{'kind': str, 'difference': int | float, 'error': int | float, 'share': int | float}],
  'activations': [{'path': str, 'relative': int | float}],
  'gradients': [{'path': str, 'ratio': int | float}],
}
MAX_PATHS = 6  # of parameters in a cell
NUMBERS = (
  *('n', 'failed', 'ties', 'mean', 'sd', 'difference', 'p', 'p_holm', 'p_sign_flip', 'se_paired'),
  *('se_unpaired', 'se_examples', 'pairing_gain', 'seeds_needed', 'speedup', 'seconds'),
  *('tokens_per_second', 'parameters', 'flops_per_token', 'steps', 'tokens'),
)


def badge(verdict):
  """Return a verdict in its color, any other text plain."""
  kind = f'badge {verdict.replace(" ", "-")}'
  return (
    page.element('span', verdict.capitalize(), kind=kind)
    if verdict in results.VERDICTS
    else page.escape(verdict)
  )


def results_table(study):
  """Return the main table: mean, difference, intervals, p and verdict of each arm in each metric."""
  outcomes = study.outcomes()
  rows = [row for outcome in outcomes for row in outcome_rows(outcome, len(outcomes) > 1)]
  mean = f'>{study.metric} \u00b1 sd' if len(outcomes) == 1 else '>mean \u00b1 sd'
  header = ('metric', 'arm', mean, '>seeds', '>difference', '>95 % interval', '>p (Holm)', 'verdict')
  return make_table(header, rows, difference=page.strong, verdict=badge)


def outcome_rows(study, names_metric):
  """Yield the rows of results_table in one metric."""
  planned, sequential = len(study.spec.get('seeds', ())), study.spec.get('sequential')
  for arm in study.arms:
    mean, spread = study.value(arm, 'mean'), study.value(arm, 'sd')
    seeds = int(results.number(arm, 'n', 0))
    row = [study.metric * names_metric, results.label(arm), f'{mean} \u00b1 {spread}' if spread else mean]
    row += [f'{seeds}' if seeds == planned or sequential else f'{seeds} of {planned}']
    if arm.get('is_baseline'):
      yield [*row, '', '', '', 'baseline']
    else:
      yield [
        *row,
        study.difference(arm),
        study.interval(arm),
        p_value(arm),
        arm.get('verdict') or 'undecided',
      ]


def paper_table(study):
  """Return the main table in the width of a page: the interval beside the difference, no count of seeds."""
  rows, outcomes = [], study.outcomes()
  for outcome in outcomes:
    for arm in outcome.arms:
      mean, spread = outcome.value(arm, 'mean'), outcome.value(arm, 'sd')
      verdict = 'baseline' if arm.get('is_baseline') else arm.get('verdict') or 'undecided'
      verdict += ', in doubt' if arm.get('doubt') else ''
      difference = '' if arm.get('is_baseline') else outcome.effect(arm)
      row = [results.label(arm), outcome.metric * (len(outcomes) > 1)]
      rows.append([*row, f'{mean} \u00b1 {spread}' if spread else mean, difference, p_value(arm), verdict])
  mean = f'>{study.metric} \u00b1 sd' if len(outcomes) == 1 else '>mean \u00b1 sd'
  return make_table(('arm', 'metric', mean, '>difference (95 %)', '>p', 'verdict'), rows)


def rescored_table(study):
  """Return the metric of each arm before and after `report --rescore`; () rows where nothing was rescored."""
  metric, rows = study.spec.get('metric', ''), []
  dates = [run['result']['rescored'][-1]['time'][:10] for run in study.done if run['result'].get('rescored')]
  for arm in study.arms:
    changes = [run['result'].get('rescored') for run in study.runs_of(arm['name']) if run.get('result')]
    before = [change[0]['before'].get(metric) for change in filter(None, changes)]
    before = [value for value in before if math.isfinite(results.as_number(value))]
    if before:
      mean, deviation = study.value(arm, 'mean'), study.value(arm, 'sd')
      now = f'{mean} \u00b1 {deviation}' if deviation else mean
      rows.append((results.label(arm), spread(before), now, f'{len(before)}'))
  return make_table(('arm', '>when trained', f'>{max(dates, default="")}', '>runs'), rows)


def tuning_table(study):
  """Return the best and the own setting of each arm, and its verdicts with either."""
  rows, arms = [], {arm['name']: arm for arm in study.arms}
  texts = lambda cell: ', '.join(f'{value:g}' if isinstance(value, float) else str(value) for value in cell)
  search = study.spec.get('search') or {}
  for name, tuned in (search.get('arms') or {}).items():
    untuned, arm = tuned['untuned'] or {}, arms[name]
    edge = f'no: {", ".join(tuned["at_edge"])}' if tuned['at_edge'] else 'yes'
    edge = edge if len(search['keys']) > 1 else edge.partition(':')[0]
    row = [results.label(arm), texts(tuned['best'].values()), edge, texts(tuned['own'].values())]
    row += [part for each in (arm, untuned) for part in (two_lines(study, each), each.get('verdict', ''))]
    rows.append(row)
  header = (f'best {", ".join(search.get("keys", ()))}', 'inside the range', 'untuned')
  return make_table(
    ('arm', *header, '>tuned difference', 'tuned verdict', '>untuned difference', 'untuned verdict'), rows
  )


def two_lines(study, row):
  """Format the difference of an arm, and below it its interval."""
  return f'{study.difference(row)}\n{study.interval(row)}'.strip()


def effects_table(study, what, effects):
  """Return a table of [(name, result of judging.judge)]."""
  rows = [
    (name, study.difference(effect), study.interval(effect), p_value(effect), effect['verdict'])
    for name, effect in effects
  ]
  return make_table((what, '>difference', '>95 % interval', '>p (Holm)', 'verdict'), rows, verdict=badge)


def p_value(row):
  """Format a corrected p value: '0.012', '<0.001' or ''."""
  return results.show(results.number(row, 'p_holm'), lambda p: '<0.001' if p < 0.001 else f'{p:.3f}')


def times(value):
  """Format a ratio: '1.24\u00d7', '' for NaN."""
  return results.show(value, '{:.3g}\u00d7'.format)


def budget_table(study):
  """Return the difference of each arm, with its interval, at parts of the budget."""
  fractions = {
    arm['name']: {f'>at {row[0]:.0%} of the budget': row[1:] for row in arm.get('at_fractions') or ()}
    for arm in study.others
  }
  columns = list(dict.fromkeys(column for values in fractions.values() for column in values))

  def lines(difference=None, *interval):
    return two_lines(study, {'difference': difference, 'interval': interval})

  rows = [
    [name, *(lines(*values.get(c, ())) for c in columns)] for name, values in fractions.items() if values
  ]
  return make_table(('arm', *columns), rows, 'spaced')


def measures_table(study):
  """Return mean and deviation of what else was measured: per source and task.

  Arms in rows, or in columns if there are more measures than arms.
  """
  values = {results.label(arm): other_measures(study, arm['name']) for arm in study.arms}
  names = dict.fromkeys(name for measures in values.values() for name in measures)
  tested = {outcome.spec.get('metric') for outcome in study.outcomes()}
  names = [name for name in names if name not in tested]
  cell = lambda arm, name: spread(values[arm].get(name, ()))
  if len(names) > len(values):
    rows = [[name.replace('_', ' '), *(cell(arm, name) for arm in values)] for name in names]
    return make_table(('measure', *(f'>{arm}' for arm in values)), rows)
  rows = [[arm, *(cell(arm, name) for name in names)] for arm in values]
  return make_table(('arm', *(f'>{name.replace("_", " ")}' for name in names)), rows if names else ())


def other_measures(study, name):
  """Return {measure: [value of each seed]} of one arm: losses per source, and the tasks."""
  measures = collections.defaultdict(list)
  for row in study.runs_of(name):
    result = row.get('result') or {}
    values = {k: v for k, v in result.items() if k.startswith('valid_') or k == 'bits_per_byte'}
    for score in result.get('evaluations') or ():
      values[score_name(score)] = score.get('value')
    for key, value in values.items():
      if math.isfinite(results.as_number(value)):
        measures[key].append(float(value))
  return dict(measures)


def spread(values):
  """Format mean and standard deviation of some numbers: '0.912 ± 0.004'."""
  mean = loggers.decimals(float(np.mean(values))) if len(values) else ''
  return f'{mean} \u00b1 {np.std(values, ddof=1):.2g}' if len(values) > 1 else mean


def where_table(study):
  """Return the largest differences of each arm's model from the baseline's, of `report --why`."""
  rows = []
  for arm in study.others:
    record = next(filter(None, (comparison(study, run) for run in study.runs_of(arm['name']))), None)
    if record:
      activations = sorted(record['activations'], key=lambda row: -results.number(row, 'relative', 0.0))
      rows.append(
        (
          arm['name'],
          '\n'.join(
            f'{row["kind"]} {results.signed(row["difference"], 4)} \u00b1 {row["error"]:.4f} '
            f'({row["share"]:.0%})'
            for row in record['losses'][:WHERE]
          ),
          '\n'.join(f'{row["path"]} {row["relative"]:.3g}' for row in activations[:WHERE]),
          '\n'.join(f'{row["path"]} {times(row["ratio"])}' for row in record['gradients'][:WHERE]),
        )
      )
  return make_table(('arm', 'losses', 'activations', 'gradients'), rows)


def comparison(study, run):
  """Return the last record of a run's against.jsonl, if it is against the baseline; None without one."""
  folder = study.folder / run['folder']
  lines = records.read_lines(folder / 'against.jsonl', skip_unreadable=True, expected=COMPARISON)
  slug = f'/{study.baseline.get("slug")}/{folder.name}'
  return next((line for line in reversed(lines) if line['against'].endswith(slug)), None)


def changes_table(study):
  """Return what each arm changes: config, parameters, program, and suspicious changes."""
  programs = {None: '', True: 'the same', False: 'another'}
  rows = [
    (
      arm['name'],
      '\n'.join(page.changes(arm.get('diff'), ': ')) or 'nothing',
      '\n'.join(arm.get('flags') or ()),
      '\n'.join(parameter_changes(arm.get('parameter_diff') or {})),
      programs[arm.get('shares_program_with_base')],
    )
    for arm in study.others
  ]
  colors = {
    'flags': lambda text: page.render_lines(text, 'flag'),
    'parameters': lambda text: page.render_lines(text, 'about'),
  }
  return make_table(('arm', 'config', 'flags', 'parameters', 'compiled step'), rows, **colors)


def parameter_changes(diff):
  """Return the lines of a parameter-tree diff: added, removed and reshaped paths."""
  lines = []
  for sign, paths in (
    ('+', diff.get('added')),
    ('\u2212', diff.get('removed')),
    ('', page.changes(diff.get('reshaped'))),
  ):
    paths = list(paths or ())
    lines += [f'{sign}\u00a0{path}'.strip() for path in paths[:MAX_PATHS]]
    lines += [f'{sign} {len(paths) - MAX_PATHS} more'.strip()] if len(paths) > MAX_PATHS else []
  return lines


def to_csv(study):
  """Return one line an arm and metric with every number in full, and its value of each seed."""
  rows = [row for outcome in study.outcomes() for row in csv_rows(outcome)]
  text = io.StringIO()
  writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def csv_rows(study):
  """Yield the lines of to_csv in one metric."""
  seeds = study.spec.get('seeds', ())
  for arm in study.arms:
    is_base = bool(arm.get('is_baseline'))
    row = {
      'study': study.name,
      'metric': study.spec.get('metric', ''),
      'better': study.spec.get('better', ''),
    }
    row |= {'budget': results.budget(study), 'arm': arm['name'], 'baseline': int(is_base)}
    row |= {'verdict': 'baseline' if is_base else arm.get('verdict', '')}
    row |= {'exploratory': int(bool(study.analysis.get('exploratory')))}
    row |= {'protocol': study.analysis.get('protocol', '')}
    row |= {key: in_full(arm.get(key)) for key in NUMBERS}
    for key, prefix in (('interval', ''), ('family_interval', 'family_')):
      bounds = zip(('low', 'high'), arm.get(key) or ('', ''), strict=True)
      row |= {f'{prefix}{end}': in_full(bound) for end, bound in bounds}
    row |= {'why not comparable': '; '.join(arm.get('reasons') or ())}
    values = arm.get('values') or {}
    yield row | {f'seed {seed}': in_full(values.get(str(seed), values.get(seed))) for seed in seeds}


def in_full(value):
  """Format a number with ten digits, '' for anything else."""
  return results.show(results.as_number(value), '{:.10g}'.format)
