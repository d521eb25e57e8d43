"""The pages of studies: what is planned, done and still to run, and the report of what is known so far."""

import math

from gpt_jax.ablation import store
from gpt_jax.runs import history
from gpt_jax.workbench.lab import args, live, runs

STILL = ('missing', 'unfinished')  # statuses of runs that are still to be trained, in whole or in part


def list_studies(lab, query):
  """GET /api/studies: {studies: [{name, title, question, done, runs, headline}]}."""
  from gpt_jax.reports import study_results

  studies = []
  for name, folder in lab.index.studies().items():
    try:
      study = read(lab, folder)
      headline = study_results.headline(study)
      facts = {'title': study.name, 'question': str(study.spec.get('question', '')), 'headline': headline}
      studies.append({'name': name, 'done': len(study.done), 'runs': len(study.rows)} | facts)
    except (
      ValueError,
      OSError,
      KeyError,
      TypeError,
      AttributeError,
    ) as error:  # a broken study must not hide the others
      studies.append({'name': name, 'title': name, 'question': '', 'done': 0, 'runs': 0} | _broken(error))
  return {'studies': studies}


def _broken(error):
  return {'headline': f'cannot be read: {str(error).splitlines()[0]}'}


def study_page(lab, query):
  """GET /api/study?study=NAME: its report as known now, and where each of its runs stands.

  Returns {html, seeds, arms: [{name, is_baseline, runs: {seed: {status, state, step, steps, eta, run,
  message}}}], left: {runs, seconds}}. seconds: of work that is left, by the mean of the finished runs; None
  before one has finished.
  """
  from gpt_jax.reports import study_report

  folder = lab.index.study(args.text(query, 'study'))
  study, locks = read(lab, folder), live.locked_inodes()
  names = {path: name for name, path in lab.index.runs().items()}
  arms, left = {}, []
  for row in study.rows:
    path = next((p for p in names if str(p) == row['folder']), None)
    cell = {'status': row['status'], 'message': row['message'], 'run': names.get(path, '')}
    state = lab.index.state(path, locks) if path else {'step': None, 'steps': None, 'eta': None}
    # A run of a study that nobody trains now waits for the study's command.
    cell |= {key: state[key] for key in ('step', 'steps', 'eta')} | {'state': state.get('state', 'waiting')}
    arms.setdefault(row['arm'], {})[str(row['seed'])] = cell
    if row['status'] in STILL:
      share = (cell['step'] or 0) / cell['steps'] if cell['steps'] else 0.0
      left.append(1.0 - min(1.0, share))
  seconds = [history.number(row['result'].get('seconds')) for row in study.done]
  seconds = [value for value in seconds if math.isfinite(value)]
  mean = sum(seconds) / len(seconds) if seconds else None
  baseline = {arm['name'] for arm in study.spec.get('arms', ()) if arm.get('is_baseline')}
  rows = [{'name': name, 'is_baseline': name in baseline, 'runs': cells} for name, cells in arms.items()]
  facts = {'seeds': [str(seed) for seed in study.spec.get('seeds', ())], 'arms': rows}
  facts['left'] = {'runs': len(left), 'seconds': mean * sum(left) if mean is not None else None}
  return facts | {'html': runs.main_of(study_report.render_html(study))}


def read(lab, folder):
  """Return the study_results.StudyResults of a folder; read again only when a file of it has changed."""
  return lab.cached(('study', folder), _signature(lab, folder), lambda: _read(folder))


def _read(folder):
  """Read a study; its finished runs are judged here where they are more than its analysis.json knows."""
  from gpt_jax.ablation.stats import analyze
  from gpt_jax.reports import study_results

  spec = store.read_study(folder, store.JUDGED)  # of the types that all below relies on
  study = study_results.read_study(folder)
  known = sum(arm.get('statuses', {}).get('done', 0) for arm in study.analysis.get('arms', ()))
  if study.done and known != len(study.done):
    try:
      study = study_results.StudyResults(
        spec, study.rows, analyze.analyze(spec, study.rows), study.attempts, study.folder
      )
    except ValueError:  # too few runs have finished for a verdict
      return study
  return study


def _signature(lab, folder):
  """Return what changes when a file of a study does."""
  paths = [folder / name for name in ('study.json', 'analysis.json', 'attempts.jsonl')]
  for run in lab.index.runs().values():
    if run.is_relative_to(folder):
      paths += [run / name for name in ('result.json', 'events.jsonl', 'metrics.jsonl')]
  times = []
  for path in paths:
    try:
      times.append(path.stat().st_mtime_ns)
    except OSError:
      times.append(0)
  return times
