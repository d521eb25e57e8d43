"""The report of a study: one self-contained HTML page, and Markdown, CSV and LaTeX beside it.

The verdict comes first. The rest follows in the order of a reader's questions: how large and how sure the
effects are, what the models write, what exactly was changed, at what cost, what failed, how to repeat it.
"""

import collections
import math

import numpy as np

from gpt_jax.reports import page, study_figures, study_tables
from gpt_jax.reports import study_results as results
from gpt_jax.reports.sections import Section, make_table, to_latex, to_markdown
from gpt_jax.runs import loggers, records
from gpt_jax.runs.text_table import join_some

MAX_MEASURES = 8
MAX_CHARACTERS, MAX_SAMPLES = 700, 12


def write_report(workdir):
  """Write report.html, .md, .csv and .tex into a study's folder and return the path of the page.

  Raises:
    FileNotFoundError: the folder holds no study.
    ValueError: a file of the study cannot be read.
  """
  study = results.read_study(workdir)
  for suffix, render in FORMATS.items():
    records.write_atomically(study.folder / f'report.{suffix}', render(study))
  return study.folder / 'report.html'


def render_html(study):
  """Return the page of a StudyResults, as text."""
  return page.document(f'{study.name} \u00b7 gpt_jax', header(study), [part(study) for part in SECTIONS])


def render_markdown(study):
  """Return the report in Markdown, without figures and samples."""
  sentences = [results.arm_sentence(study, arm) for arm in study.others]
  top = [study.spec.get('question', ''), f'**{results.headline(study)}**', sentences, list(alarms(study))]
  return to_markdown(study.name, top, [part(study) for part in SECTIONS])


def render_latex(study):
  """Return the table of results for a paper."""
  caption = f'{results.headline(study)} {results.protocol(study)}'
  better = {arm['name'] for arm in results.arms_by_verdict(study)['better']}
  return to_latex(study_tables.results_table(study), caption, study.name, better)


# --------------------------------------------------------------------------------------- header


def header(study):
  """Return the question, the answer, the verdict on each arm, alarms, key numbers."""
  dates = sorted(str(a['time'])[:10] for a in study.attempts if isinstance(a.get('time'), str))
  unbroken = results.headline(study).replace(' to ', '\u00a0to\u00a0')
  return page.header(
    ['gpt_jax ablation', *dates[-1:]],
    study.name,
    page.element_unless_empty('p', study.spec.get('question', ''), kind='question'),
    page.element('p', page.strong(unbroken), kind='verdict'),
    verdicts(study),
    alarms=alarms(study),
    tiles=key_numbers(study),
  )


def verdicts(study):
  """Return a line for each verdict, with its arms and their effects."""
  lines = []
  for verdict, arms in results.arms_by_verdict(study).items():
    names = [
      page.element(
        'span',
        page.element('b', arm['name']),
        f' {study.difference(arm) or "not measured"}',
        page.element('i', more_seeds(arm)) if verdict == 'undecided' else '',
      )
      for arm in arms
    ]
    title = page.element('dt', study_tables.badge(verdict))
    lines += [page.element('div', title, page.element('dd', *names))] if arms else []
  return page.element_unless_empty('dl', *lines, kind='verdicts')


def more_seeds(arm):
  """Return ' needs 4 more seeds', or ''."""
  more = results.number(arm, 'seeds_needed', 0)
  return f' needs {more:.0f} more seed{"s" * (more != 1)}' if 0 < more < math.inf else ''


def alarms(study):
  """Yield what a reader must not overlook."""
  count = len(study.rows)
  if lost := study.lost:
    names = join_some((f'{r["arm"]} seed {r["seed"]} ({results.status_name(r)})' for r in lost), 6)
    yield f'{len(lost)} of {count} runs have no result: {names}. The verdicts rest on the others.'
  if study.pending:
    yield f'{len(study.pending)} of {count} runs are not done yet: the same command goes on.'
  yield from (f'{arm["name"]}: {flag}' for arm in study.others for flag in arm.get('flags') or ())
  yield from (study.analysis.get('scaling') or {}).get('warnings') or ()


def key_numbers(study):
  """Return [(label, text)] of the tiles; unknown numbers have no tile."""
  gains = [results.number(arm, 'pairing_gain') for arm in study.others]
  gains = [gain for gain in gains if math.isfinite(gain)]
  median = float(np.median(gains)) if gains else math.nan
  numbers = {
    'runs with a result': f'{len(study.done)} of {len(study.rows)}',
    'arms': str(len(study.spec.get('arms', ()))),
    'seeds an arm': str(len(study.spec.get('seeds', ()))),
    'parameters, baseline': results.show(results.number(study.baseline, 'parameters'), loggers.human),
    'tokens a run': results.show(results.number(study.baseline, 'tokens'), loggers.human),
    'time of all runs': loggers.duration(study.seconds) if study.seconds else '',
    'smaller error by pairing': study_tables.times(
      results.number(study.analysis.get('pairing') or {}, 'gain', median)
    ),
  }
  return [(label, text) for label, text in numbers.items() if text]


# -------------------------------------------------------------------------------------- effects


def arm_effects(study):
  """The forest plot of all arms."""
  note = (
    f'Difference in {study.metric} from the baseline {results.base_name(study.baseline)}, paired by seed: '
    'mean, 95 % interval, and below it each seed. '
  )
  if study.tolerance:
    note += f'Gray band: within {study.tolerance:g} of no difference. Hollow: undecided. '
  return Section('Effects', study_figures.arm_effects(study), note + 'An arrow points beyond the axis.')


def main_effects(study):
  """Main effects of a plan that crosses factors."""
  effects = study.analysis.get('effects') or ()
  names = [(f'{e["factor"]}={e["level"]} against {e["against"]}', e) for e in effects]
  forest = study_figures.forest(study, [(f'{e["factor"]}={e["level"]}', e, ()) for e in effects], 'main')
  note = (
    f'What a level changes in {study.metric} on average over the arms that have it, against '
    'arms that differ in nothing else; 95 % intervals, one family of tests.'
  )
  return Section('Main effects', [*forest, study_tables.effects_table(study, 'level', names)], note)


def scaling(study):
  """Loss over size with its fitted law, and the other factors' effects at each size."""
  scaling = study.analysis.get('scaling') or {}
  effects = [(f'{effect["levels"]} at {effect["size"]}', effect) for effect in scaling.get('effects') or ()]
  parts = [
    *study_figures.law_figures(study, scaling.get('laws') or {}),
    results.scaling_laws(study),
    page.element('h3', 'Effects by size', kind='spaced') if effects else '',
    *study_figures.forest(study, [(*effect, ()) for effect in effects], 'rungs'),
    study_tables.effects_table(study, 'effect', effects),
  ]
  legend = 'Points: runs. Line: fitted law, with its 95 % bootstrap band, beyond the largest size too.'
  return Section('Scaling', parts, legend=legend)


def main_results(study):
  """The main table, and the notes of the analysis."""
  parts = [study_tables.results_table(study), list(study.analysis.get('notes', ()))]
  return Section('Results', parts, results.protocol(study))


def learning(study):
  """Curves of all arms, the paired difference of each, and a table of it along the budget."""
  fractions = {
    arm['name']: {f'{row[0]:.0%}': row[1:] for row in arm.get('at_fractions') or ()} for arm in study.others
  }
  columns = list(dict.fromkeys(key for by_key in fractions.values() for key in by_key))
  rows = [
    (name, *(difference_at(study, *by_key.get(key, (None,))) for key in columns))
    for name, by_key in fractions.items()
    if by_key
  ]
  table = make_table(('arm', *(f'>at {key} of the budget' for key in columns)), rows, 'spaced')
  charts = page.multiples(study_figures.differences(study))
  note = 'Difference from the baseline of the same seed at a part of the budget.'
  legend = (
    f'Curves: {study.metric}, mean over seeds; bands from the lowest seed to the highest. '
    'Small charts: the difference over the whole budget, each on its own scale.'
  )
  return Section('Learning curves', [*study_figures.overview(study), charts, table], note, legend)


def difference_at(study, difference, *interval):
  """Format a difference at a part of the budget, with its interval."""
  return study.effect({'difference': difference, 'interval': interval})


def measures(study):
  """Means of what else was measured: per source and task, without a verdict."""
  values = {results.label(arm): study_figures.other_measures(study, arm['name']) for arm in study.arms}
  names = dict.fromkeys(name for by_name in values.values() for name in by_name)
  names = [name for name in names if name != study.spec.get('metric')][:MAX_MEASURES]
  rows = [[arm, *(spread(by_name.get(name, ())) for name in names)] for arm, by_name in values.items()]
  header = ('arm', *(f'>{name.replace("_", " ")}' for name in names))
  note = 'Mean \u00b1 standard deviation over seeds. None of these was tested.'
  return Section('Other measures', [make_table(header, rows)] if names else [], note)


def spread(values):
  """Format mean and standard deviation of some numbers: '0.912 ± 0.004'."""
  mean = loggers.decimals(float(np.mean(values))) if len(values) else ''
  return f'{mean} \u00b1 {np.std(values, ddof=1):.2g}' if len(values) > 1 else mean


# ----------------------------------------------------------------------- samples, changes, cost


def samples(study):
  """The last samples of each arm, of the first seed that has them, side by side."""
  articles = {'texts': [], 'media': []}
  metric = study.spec.get('metric', 'valid_loss')
  for arm in study.arms[:MAX_SAMPLES]:
    runs = (
      (row, last_samples(study.folder / row['folder'] / 'samples')) for row in study.runs_of(arm['name'])
    )
    row, paths = next(((row, paths) for row, paths in runs if paths), ({}, ()))
    value = study.value(row.get('result') or {}, metric)
    for path in paths:
      words = [
        f'seed {row["seed"]}',
        *page.sample_name(path),
        *([f'{study.metric} {value}'] if value else []),
      ]
      name, words = page.element('b', results.label(arm)), page.element('small', ' \u00b7 '.join(words))
      kind = 'texts' if path.suffix == '.txt' else 'media'
      articles[kind].append(page.sample(path, page.Html(f'{name} {words}'), MAX_CHARACTERS))
  rows = [page.element_unless_empty('div', *articles[kind], kind=kind) for kind in articles]
  return Section('Samples', rows, legend='The last of each arm, from the same first seed.')


def last_samples(folder, limit=4):
  """Return the sample files of the last step that has any, texts first."""
  steps = page.samples_by_step(folder)
  return sorted(steps[max(steps)], key=lambda path: path.suffix != '.txt')[:limit] if steps else []


def arm_changes(study):
  """What each arm changes."""
  note = f'Against the baseline {results.base_name(study.baseline)}, proved before the first run.'
  return Section('What the arms change', [study_tables.changes_table(study)], note)


def costs(study):
  """Parameters, FLOPs, time and the effective speedup of each arm."""
  note = (
    f'Budget: {results.budget(study)}. Effective speedup: the loss gained and the tokens per second, as '
    'one ratio of wall-clock time to the same loss; of means, without an interval, and only where '
    'both were trained in the same way.'
  )
  return Section('Cost', [study_tables.costs_table(study)], note)


def failures(study):
  """Runs that failed, and those that were tried again."""
  stops = results.count_interruptions(study)
  count = {1: 'once', 2: 'twice'}.get(stops, f'{stops} times')
  table = make_table(('arm', '>seed', 'outcome', 'why'), results.failures(study))
  lines = [f'The study was stopped {count} on its way and went on.'] if stops else []
  return Section('What went wrong', [lines, table])


def unhelpful_arms(study):
  """Arms that did not help."""
  arms = results.unhelpful_arms(study)
  return Section('What did not help', [[results.arm_sentence(study, arm) for arm in arms]])


def plan(study):
  """Plan, budget, seeds, factors, data."""
  spec = study.spec
  return Section(
    'Plan',
    [
      page.facts(
        {
          'base': spec.get('base', ''),
          'sweep': str(spec.get('sweep', '')).replace('_', ' '),
          **{
            f'factor {name}': ', '.join(map(str, levels))
            for name, levels in (spec.get('factors') or {}).items()
          },
          'judged by': f'{study.metric}, {study.better} is better',
          'no difference': f'less than {study.tolerance:g}' if study.tolerance else 'not tested',
          'budget': results.budget(study),
          'seeds': ', '.join(map(str, spec.get('seeds', ()))),
          'data': fingerprints(study, 'data'),
          'tokenizer': fingerprints(study, 'tokenizer'),
          'trained': schedule(spec.get('schedule') or {}),
          'at once': runs_together(study),
          'hardware': ', '.join(distinct_values(study, 'hardware')),
        }
      )
    ],
  )


def schedule(record):
  """Describe how the runs were scheduled, with the measured rates of the alternatives."""
  modes = {'process': 'in parallel processes', 'alone': 'one after another'}
  modes |= {'replicas': 'as replicas in one compiled step'}
  rates = ', '.join(f'{name} {rate:.4g}' for name, rate in (record.get('runs_per_hour') or {}).items())
  mode = modes.get(record.get('how'), '')
  return f'{mode} (runs an hour: {rates})' if mode and rates else mode


def runs_together(study):
  """Return how many runs shared a compiled step: '25 runs 5 together, 5 runs alone'."""
  counts = collections.Counter((row['result'] or {}).get('replicas', 1) for row in study.done)
  return ', '.join(
    f'{n} run{"s" * (n != 1)} {f"{size} together" if size > 1 else "alone"}'
    for size, n in sorted(counts.items(), reverse=True)
  )


def distinct_values(study, key):
  """Return the distinct values of a key in the results, sorted."""
  values = ((row.get('result') or {}).get(key) for row in study.rows)
  return sorted({str(value) for value in values if value})


def fingerprints(study, key):
  """Return the one fingerprint of all runs, or how many there are."""
  values = distinct_values(study, key)
  if len(values) > 1:
    return f'{len(values)} different fingerprints: ' + ', '.join(text[:12] for text in values[:6])
  return f'{values[0][:16]}, the same in all runs' if values else ''


def reproduce(study):
  """The command line and all versions."""
  versions = study.spec.get('versions') or {}
  note = 'The same command resumes an unfinished study, or writes this report again.'
  legend = 'report.md, report.csv and report.tex lie beside this page.'
  return page.reproduce(study.spec.get('command') or versions.get('command', ''), versions, note, legend)


SECTIONS = (
  *(arm_effects, main_effects, scaling, main_results, learning, measures, samples, arm_changes, costs),
  *(failures, unhelpful_arms, plan, reproduce),
)
FORMATS = {'html': render_html, 'md': render_markdown, 'csv': study_tables.to_csv, 'tex': render_latex}
