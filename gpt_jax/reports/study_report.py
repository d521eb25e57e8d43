"""The report of a study: one self-contained HTML page, and Markdown, CSV and LaTeX beside it.

The verdict comes first. The rest follows in the order of a reader's questions: how large and how sure the
effects are, what the models write, what exactly was changed, at what cost, what failed, how to repeat it.
"""

import collections
import math
import pathlib

import numpy as np

from gpt_jax.ablation import protocol
from gpt_jax.reports import page, study_costs, study_figures, study_tables
from gpt_jax.reports import study_results as results
from gpt_jax.reports.sections import Section, escape_markdown, make_table, to_latex, to_markdown
from gpt_jax.runs import loggers, records, trackers
from gpt_jax.runs.metric_names import human
from gpt_jax.runs.text_table import join_some

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


def track_verdicts(workdir, say=loggers.say):
  """Give the table of verdicts to the trackers of the study's runs, as a run of the study itself."""
  study = results.read_study(workdir)
  configs = (records.read_json(pathlib.Path(row['folder']) / 'config.json') for row in study.done)
  log = next((config.get('log') for config in configs), None)
  with trackers.of_study(log if isinstance(log, dict) else {}, study.folder, study.spec, say) as opened:
    table = study_tables.results_table(study)
    columns = [name.removeprefix('>') for name in table.header]
    opened.call('table', 'verdicts', columns, [[str(cell) for cell in row] for row in table.rows])


def sections(study):
  """Return all Sections, in the order of a reader's questions."""
  return effect_sections(study) + measurement_sections(study) + record_sections(study)


def render_html(study):
  """Return the page of a StudyResults, as text."""
  return page.document(f'{study.name} \u00b7 gpt_jax', header(study), sections(study))


def render_markdown(study):
  """Return the report in Markdown, without figures and samples."""
  sentences = [results.arm_sentence(study, arm) for arm in study.others]
  question, headline = map(escape_markdown, (study.spec.get('question', ''), results.headline(study)))
  top = [question, f'**{headline}**', sentences, list(alarms(study))]
  return to_markdown(study.name, top, sections(study))


def render_latex(study):
  """Return the table of results for a paper."""
  caption = f'{results.headline(study)} {results.protocol(study)}'
  better = {arm['name'] for arm in results.arms_by_verdict(study)['better']}
  return to_latex(study_tables.paper_table(study), caption, study.name, better)


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
        f' {study.difference(arm) or "; ".join(arm.get("reasons") or ()) or "not measured"}',
        page.element('i', more_seeds(arm)) if verdict == 'undecided' else '',
        page.element('i', f' in doubt: {arm["doubt"]}') if arm.get('doubt') else '',
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
  yield from (
    f'{row["arm"]} seed {row["seed"]}: {row["message"]}.' for row in study.done if row.get('message')
  )
  if study.pending:
    yield f'{len(study.pending)} of {count} runs are not done yet: the same command resumes them.'
  yield from (f'Exploratory: {text}.' for text in study.analysis.get('exploratory') or ())
  yield from results.differing_versions(study)
  yield from (f'{arm["name"]}: {flag}' for arm in study.others for flag in arm.get('flags') or ())
  yield from (study.analysis.get('scaling') or {}).get('warnings') or ()


def key_numbers(study):
  """Return [(label, text)] of the tiles; unknown numbers have no tile."""
  gains = [results.number(arm, 'pairing_gain') for arm in study.others]
  gains = [gain for gain in gains if math.isfinite(gain)]
  median = float(np.median(gains)) if gains else math.nan
  seconds = np.nansum([results.number(row.get('result') or {}, 'seconds') for row in study.rows])
  numbers = {
    'runs with a result': f'{len(study.done)} of {len(study.rows)}',
    'arms': str(len(study.spec.get('arms', ()))),
    'seeds an arm': results.seed_count(study).partition(' seed')[0],
    'parameters, baseline': results.show(results.number(study.baseline, 'parameters'), human),
    'tokens a run': results.show(results.number(study.baseline, 'tokens'), human),
    'time of all runs': loggers.duration(seconds) if seconds else '',
    'smaller error by pairing': study_tables.times(
      results.number(study.analysis.get('pairing') or {}, 'gain', median)
    ),
  }
  return [(label, text) for label, text in numbers.items() if text]


# ------------------------------------------------------------------------------------- sections


def effect_sections(study):
  """Return the differences that arms, crossed factors and sizes make, and the table of results."""
  gray = (
    f'Gray band: within {study.tolerance:g} of no difference. Hollow: undecided. ' if study.tolerance else ''
  )
  crossed = study.analysis.get('effects') or ()
  scaling = study.analysis.get('scaling') or {}
  by_size = [(f'{effect["levels"]} at {effect["size"]}', effect) for effect in scaling.get('effects') or ()]
  interactions = [(row['levels'], row) for row in study.analysis.get('interactions') or ()]
  further = [results.arm_sentence(each, arm) for each in study.outcomes()[1:] for arm in each.others]
  against = [(f'{e["factor"]}={e["level"]} against {e["against"]}', e) for e in crossed]
  return [
    Section(
      'Effects',
      study_figures.arm_effects(study),
      f'Difference in {study.metric} from the baseline {results.base_name(study.baseline)}, paired by seed: '
      f'mean, 95 % interval, and below it each seed. {gray}An arrow points beyond the axis.',
    ),
    Section(
      'Tuned arms',
      [*study_figures.sensitivity(study), study_tables.tuning_table(study)],
      f'Curves: {study.metric} on the seeds of the search: mean, and band from the lowest seed to the '
      'highest. A dot marks the best, with which the arm is judged on other seeds. Untuned: the verdict '
      'at the setting of the config, on the seeds of the search.',
    ),
    Section(
      'Main effects',
      [
        *study_figures.forest(study, [(f'{e["factor"]}={e["level"]}', e, ()) for e in crossed], 'main'),
        study_tables.effects_table(study, 'level', against),
        study_tables.effects_table(study, 'interaction', interactions),
      ],
      f'What a level changes in {study.metric} on average over the arms that have it, against '
      'arms that differ in nothing else. Interaction: what two levels change together beyond the sum '
      'of what each changes alone. 95 % intervals, one family of tests.',
    ),
    Section(
      'Scaling',
      [
        *study_figures.law_figures(study, scaling.get('laws') or {}),
        results.scaling_laws(study),
        page.element('h3', 'Effects by size', kind='spaced') if by_size else '',
        *study_figures.forest(study, [(*effect, ()) for effect in by_size], 'rungs'),
        study_tables.effects_table(study, 'effect', by_size),
      ],
      legend='Line: fitted law, with its 95 % bootstrap band, beyond the largest size too. Points: its runs.',
    ),
    Section(
      'Results',
      [study_tables.results_table(study), further, list(study.analysis.get('notes', ()))],
      results.protocol(study),
    ),
  ]


def measurement_sections(study):
  """Return the learning curves, other measures and samples of the arms."""
  charts = page.multiples(study_figures.differences(study))
  return [
    Section(
      'Scored again',
      [study_tables.rescored_table(study)],
      f'{study.metric} by the code that trained the runs, and by that of the later date, which all verdicts '
      'use. Learning curves show the former; it also chose what was tuned.',
    ),
    Section(
      'Learning curves',
      [*study_figures.overview(study), charts, study_tables.budget_table(study)],
      'Difference from the baseline of the same seed at a part of the budget.',
      f'Curves: {study.metric}, mean over seeds; bands from the lowest seed to the highest. '
      'Small charts: the difference over the whole budget, each on its own scale.',
    ),
    Section(
      'Other measures',
      [study_tables.measures_table(study)],
      'Mean \u00b1 standard deviation over seeds. None of these was tested.',
    ),
    Section(
      'Where the arms differ',
      [study_tables.where_table(study)],
      'One run of each arm against the baseline of its seed. Losses: nats of validation targets, arm less '
      'baseline, with standard errors over rows and the share of the whole difference. Activations: RMS of '
      'the difference over that of the arm. Gradients: baseline over arm.',
    ),
    Section('Samples', samples(study), legend='The last of each arm, from the same first seed.'),
  ]


def record_sections(study):
  """Return what was changed, at what cost, what failed, the plan, and how to repeat it."""
  spec, stops = study.spec, results.count_interruptions(study)
  count = {1: 'once', 2: 'twice'}.get(stops, f'{stops} times')
  versions = spec.get('versions') or {}
  unhelpful = [results.arm_sentence(study, arm) for arm in results.unhelpful_arms(study)]
  return [
    Section(
      'What the arms change',
      [study_tables.changes_table(study)],
      f'Against the baseline {results.base_name(study.baseline)}, proved before the first run.',
    ),
    Section(
      'Cost',
      [*study_costs.cost_figures(study), study_costs.costs_table(study)],
      f'Budget: {results.budget(study)}. Effective speedup: the {study.metric} gained and the tokens per '
      f'second, as one ratio of wall-clock time to the same {study.metric}; of means, without an interval, '
      f'and only where both were trained in the same way. On the frontier: every arm with as good a mean '
      f'costs more.{machines_note(study)}',
    ),
    Section(
      'What went wrong',
      [
        [f'The study was interrupted {count} and resumed.'] if stops else [],
        make_table(('arm', '>seed', 'outcome', 'why'), results.failures(study)),
      ],
    ),
    Section('What did not help', [unhelpful]),
    Section('Plan', [page.facts(plan(study))]),
    page.reproduce(
      spec.get('command') or versions.get('command', ''),
      versions,
      'The same command resumes an unfinished study, or writes this report again.',
      'report.md, report.csv and report.tex lie beside this page.',
    ),
  ]


def machines_note(study):
  """Return a sentence on times of several machines, or ''."""
  machines = distinct_values(study, 'hardware')
  return f' Times of runs on {" and ".join(machines)} do not compare.' if len(machines) > 1 else ''


def samples(study):
  """Return the last samples of each arm, of the first seed that has them, side by side."""
  articles = {'texts': [], 'media': []}
  metric = study.spec.get('metric', 'valid_loss')
  for arm in study.arms[:MAX_SAMPLES]:
    runs = (
      (row, last_samples(study.folder / row['folder'] / 'samples')) for row in study.runs_of(arm['name'])
    )
    row, paths = next(((row, paths) for row, paths in runs if paths), ({}, ()))
    value = study.value(row.get('result') or {}, metric)
    for path in paths:
      words = page.sample_title(path, f'seed {row["seed"]}', f'{study.metric} {value}' if value else '')
      name, words = page.element('b', results.label(arm)), page.element('small', words)
      kind = 'texts' if path.suffix == '.txt' else 'media'
      articles[kind].append(page.sample(path, page.Html(f'{name} {words}'), MAX_CHARACTERS))
  return [page.element_unless_empty('div', *articles[kind], kind=kind) for kind in articles]


def last_samples(folder, limit=4):
  """Return the sample files of the last step that has any, texts first."""
  steps = page.samples_by_step(folder)
  return sorted(steps[max(steps)], key=lambda path: path.suffix != '.txt')[:limit] if steps else []


def plan(study):
  """Return {name: text} of plan, budget, seeds, factors and data."""
  spec = study.spec
  return {
    'base': spec.get('base', ''),
    'sweep': str(spec.get('sweep', '')).replace('_', ' '),
    **{f'factor {name}': ', '.join(map(str, levels)) for name, levels in (spec.get('factors') or {}).items()},
    'judged by': '; '.join(f'{each.metric}, {each.better} is better' for each in study.outcomes()),
    'no difference': f'less than {study.tolerance:g}' if study.tolerance else 'not tested',
    'budget': results.budget(study),
    'seeds': ', '.join(map(str, spec.get('seeds', ()))),
    'data': fingerprints(study, 'data'),
    'tokenizer': fingerprints(study, 'tokenizer'),
    'trained': schedule(spec.get('schedule') or {}),
    'at once': runs_together(study),
    'hardware': ', '.join(distinct_values(study, 'hardware')),
    'protocol': protocol.describe(spec),
    'amendments before the first result': '; '.join(
      ', '.join(change['changes']) for change in spec.get('amendments') or () if not change['results']
    ),
    'code of the runs': ', '.join(results.count_versions(study, results.commit_of)),
  }


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


FORMATS = {'html': render_html, 'md': render_markdown, 'csv': study_tables.to_csv, 'tex': render_latex}
