"""The files of a study for a paper: figures, tables, a methods paragraph, all runs and references.

`launch.py report --workdir=STUDY --paper` writes them to STUDY/paper. Figures are those of the report, as PDF
and SVG; NAME-narrow fits a column. Every text is made from the study's records.
"""

import csv
import io
import math

from gpt_jax.reports import figures, study_costs, study_figures, study_tables
from gpt_jax.reports import study_results as results
from gpt_jax.reports.citations import format_bibtex
from gpt_jax.reports.sections import escape_latex, make_table, to_latex
from gpt_jax.runs import loggers, records, run_folder
from gpt_jax.runs.metric_names import human, score_name
from gpt_jax.runs.text_table import join_some


def write_paper(workdir):
  """Write the files to the folder paper of a study -> their paths. Errors as of results.read_study."""
  study = results.read_study(workdir)
  folder = study.folder / 'paper'
  folder.mkdir(exist_ok=True)
  with figures.saving(folder):
    study_figures.arm_effects(study)
    study_figures.overview(study)
    study_costs.cost_figures(study)
    study_figures.law_figures(study, (study.analysis.get('scaling') or {}).get('laws') or {})
  texts = {
    'table.tex': narrow_table(study),
    'table_full.tex': full_table(study),
    'methods.tex': f'{escape_latex(methods(study))}\n',
    'runs.csv': runs_csv(study),
    'references.bib': format_bibtex(configs_of(study)),
  }
  for name, text in texts.items():
    records.write_atomically(folder / name, text)
  return sorted(path for path in folder.iterdir() if path.suffix in ('.pdf', '.svg') or path.name in texts)


# ------------------------------------------------------------------------------------------ tables


def bold_arms(study):
  """Return the names of the arms that are better than the baseline."""
  return {arm['name'] for arm in results.arms_by_verdict(study)['better']}


def narrow_table(study):
  """Return the main table in the width of a column."""
  caption = f'{results.headline(study)} {results.protocol(study)}'
  return to_latex(study_tables.paper_table(study), caption, study.name, bold_arms(study))


def full_table(study):
  """Return the table over both columns: seeds, intervals and costs; its caption has the flags of the arms."""
  rows = []
  for arm in study.arms:
    mean, spread = study.value(arm, 'mean'), study.value(arm, 'sd')
    judged = not arm.get('is_baseline')
    seconds = results.number(arm, 'seconds')
    rows.append(
      (
        results.label(arm),
        f'{mean} \u00b1 {spread}' if spread else mean,
        f'{results.number(arm, "n", 0):.0f}',
        study.difference(arm) if judged else '',
        study.interval(arm) if judged else '',
        study_tables.p_value(arm) if judged else '',
        arm.get('verdict') or 'undecided' if judged else 'baseline',
        *(results.show(results.number(arm, key), human) for key in ('parameters', 'tokens')),
        '' if math.isnan(seconds) else loggers.duration(seconds),
      )
    )
  header = ('arm', f'>{study.metric} \u00b1 sd', '>seeds', '>difference', '>95 % interval', '>p (Holm)')
  header += ('verdict', '>parameters', '>tokens a run', '>time a run')
  flags = [f'{arm["name"]}: {flag}.' for arm in study.others for flag in arm.get('flags') or ()]
  caption = ' '.join([results.headline(study), results.protocol(study), *flags])
  text = to_latex(make_table(header, rows), caption, f'{study.name}-full', bold_arms(study))
  return text.replace('{table}', '{table*}')


def runs_csv(study):
  """Return one line a run: arm, seed, status, levels of the factors, and every number of its result."""
  rows = []
  levels = {arm['name']: arm.get('levels') or {} for arm in study.arms}
  for run in study.rows:
    result = run.get('result') or {}
    numbers = {key: value for key, value in result.items() if not math.isnan(results.as_number(value))}
    numbers |= {score_name(row): row.get('value') for row in result.get('evaluations') or ()}
    own = {'study': study.name, 'arm': run['arm'], 'seed': run['seed'], 'status': run['status']}
    rows.append(own | levels.get(run['arm'], {}) | numbers)
  text = io.StringIO()
  writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


# ----------------------------------------------------------------------------------------- methods


def methods(study):
  """Return the paragraph on methods, as plain text."""
  spec, base = study.spec, study.baseline
  others, seeds = len(study.others), spec.get('seeds', ())
  parameters = {arm['parameters'] for arm in study.arms if arm.get('parameters')}
  changed = list(dict.fromkeys(key for arm in study.others for key in arm.get('diff') or ()))
  sentences = [
    f'We compared {others} variant{"s" * (others != 1)} with a baseline {results.base_name(base)}'.rstrip(),
    f'by {study.metric} ({study.better} is better)',
    f'on the experiment {spec.get("base", "")}',
  ]
  text = [f'{", ".join(sentences)}.']
  if changed:
    text.append(f'The variants change {join_some(changed, 8)}.')
  text.append(f'Training budget: {results.budget(study)}.')
  if parameters:
    sizes = [human(size) for size in (min(parameters), max(parameters))]
    text.append(f'Models have {" to ".join(dict.fromkeys(sizes))} parameters.')
  text.append(
    f'Each variant was trained with {len(seeds)} seed{"s" * (len(seeds) != 1)}. A seed fixes the order of '
    'the data and the initial value of every parameter that variants share, so that differences are paired.'
  )
  text.append(
    'We report paired t intervals of 95 % and p values corrected by the method of Holm (1979)'
    + (f'; differences below {study.tolerance:g} count as none.' if study.tolerance else '.')
  )
  text.append(
    'Before training, the configuration, parameters and lowered training step of each variant were compared '
    'with those of the baseline.'
  )
  if spec.get('tune'):
    text.append('Each variant was compared at its own best settings, searched on other seeds.')
  if protocol := spec.get('protocol'):
    amendments = spec.get('amendments') or ()
    text.append(f'The protocol was fixed before the first result (SHA-256 {protocol}).')
    changes = [change for amendment in amendments for change in amendment.get('changes', ())]
    text.append(f'It was amended: {"; ".join(changes)}.' if changes else 'It was not amended.')
  done, planned = len(study.done), len(study.rows)
  lost = [f'{row["arm"]} seed {row["seed"]} ({results.status_name(row)})' for row in study.lost]
  text.append(
    f'{done} of {planned} runs have a result' + (f'; without: {join_some(lost, 6)}.' if lost else '.')
  )
  hardware = sorted({str((row.get('result') or {}).get('hardware', '')) for row in study.done} - {''})
  if hardware:
    text.append(f'Hardware: {", ".join(hardware)}.')
  versions = spec.get('versions') or {}
  software = [f'{name} {versions[name]}' for name in ('python', 'jax', 'flax') if versions.get(name)]
  software += [f'gpt_jax at commit {results.commit_of(versions)}'] if results.commit_of(versions) else []
  return ' '.join([*text, f'Software: {", ".join(software)}.'] if software else text)


def configs_of(study):
  """Return the configs of the arms: of the first run of each that can be read."""
  configs = []
  for arm in study.arms:
    for row in study.runs_of(arm['name']):
      try:
        configs.append(run_folder.read_config(study.folder / row['folder']))
      except (OSError, ValueError):
        continue
      break
  return configs
