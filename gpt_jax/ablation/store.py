"""Read the runs of a study, whatever state their folders are in, and query a table of runs in SQL.

`read_runs` gives each run of a study its status. `select` answers a condition on the configs and results of
all runs below a folder: `optim.lr > 1e-3 and model.positions = 'rope'`. Nothing here writes.
"""

import contextlib
import difflib
import json
import math
import os
import re
import sqlite3
from pathlib import Path

import numpy as np

from gpt_jax.ablation.stats.scores import find_score
from gpt_jax.runs import history, records, run_folder, text_table
from gpt_jax.runs.metric_names import SCORE_KEYS, score_name

RUNS = 'runs'  # folder of a study with its runs
NO_DIGEST = 'its result.json has no digest: it was edited, or not written by a training'
# What a verdict reads of study.json, which anyone may have changed.
OUTCOME = {'metric': str, 'better': str, 'tolerance': int | float}
JUDGED = OUTCOME | {'arms': [{'name': str, 'slug': str}], 'seeds': [int], 'outcomes?': [OUTCOME]}
FAILURES = ('failed', 'diverged', 'killed', 'hung')  # outcomes of an attempt that end a run


# -------------------------------------------------------------------------------- runs of a study


def run_path(workdir, slug, seed):
  """The run folder of an arm with a seed."""
  return Path(workdir) / RUNS / slug / f'seed{seed}'


def read_study(workdir, expected=dict):
  """study.json of a study folder, of the expected types; FileNotFoundError if there is none."""
  path = Path(workdir).expanduser() / 'study.json'
  if not path.is_file():
    raise FileNotFoundError(
      f'workdir={path.parent} is not a study: it has no study.json\n'
      'fix: give the --workdir of a study, or make one: launch.py ablate'
    )
  return records.read_json(path, expected)


def read_runs(workdir):
  """One dict for each run of the study, in the order of its arms and seeds.

  Keys: arm, seed, folder, status (done, failed, diverged, killed, hung, unfinished, missing, corrupt),
  message (why it is not done), result (of result.json, or {}), curve ([[tokens, the study's metric], ...]),
  examples (the metric of each example, [] where predictions.jsonl does not have it), further_examples
  ({metric: examples} of the study's further metrics), how (alone, replicas or process: how it was trained; ''
  if unknown).
  """
  workdir = Path(workdir).expanduser()
  study = read_study(workdir)
  attempts, rows = last_attempts(workdir), []
  planned = study.get('seeds_of') or {}  # fewer than the study's seeds: see rounds.py
  pairs = [(arm, seed) for arm in study['arms'] for seed in planned.get(arm['name'], study['seeds'])]
  for arm, seed in pairs:
    folder = run_path(workdir, arm['slug'], seed)
    attempt = attempts.get((arm['name'], seed), {})
    status, message, result = run_status(folder, study['metric'], attempt)
    try:
      curve = read_curve(folder, study['metric'])
    except ValueError as error:  # the result is valid without its curve
      curve, message = [], message or str(error).partition('\n')[0]
    row = {'arm': arm['name'], 'seed': seed, 'folder': str(folder), 'status': status, 'message': message}
    row |= {'result': result, 'curve': curve, 'how': attempt.get('how', '')}
    further = [outcome['metric'] for outcome in study.get('outcomes') or ()]
    row['further_examples'] = {metric: read_examples(folder, result, metric) for metric in further}
    rows.append(row | {'examples': read_examples(folder, result, study['metric'])})
  return rows


def read_attempts(workdir):
  """The records of attempts.jsonl, including those of shares, by time; lines torn by a crash are skipped."""
  folders = [Path(workdir), *sorted(Path(workdir).glob('shares/*'))]
  paths = [path for folder in folders if (path := folder / 'attempts.jsonl').exists()]
  attempts = []
  for path in paths:
    latest = ''  # a file is in order, whatever its clock said
    for attempt in records.read_lines(path, skip_unreadable=True):
      latest = max(latest, str(attempt.get('time', '')))
      attempts.append((latest, attempt))
  return [attempt for _, attempt in sorted(attempts, key=lambda pair: pair[0])]


def last_attempts(workdir):
  """{(arm, seed): the last record of attempts.jsonl about it}."""
  return {(attempt.get('arm'), attempt.get('seed')): attempt for attempt in read_attempts(workdir)}


def run_status(folder, metric='valid_loss', attempt=None):
  """-> (status, message, result) of one run folder; see `read_runs`.

  attempt: the last record of attempts.jsonl about it.
  """
  folder, attempt = Path(folder), attempt or {}
  try:
    config = run_folder.read_config(folder) if (folder / 'config.json').exists() else {}
    result = run_folder.read_result(folder) if config else {}
  except (ValueError, OSError) as error:
    return 'corrupt', str(error).partition('\n')[0], {}
  if result:
    name = metric if metric in result else 'valid_loss'
    value = result.get(name)
    if isinstance(value, float) and not math.isfinite(value):
      return 'diverged', f'{name} is {value}', result
    return 'done', '' if records.has_digest(folder / 'result.json') else NO_DIGEST, result
  outcome, message = attempt.get('outcome'), attempt.get('message', '')
  if outcome in FAILURES:
    return outcome, message, {}
  if not (folder / 'config.json').exists():
    return 'missing', message or 'it has not begun', {}
  last = (_read_events(folder) or [{}])[-1]
  if last.get('event') == 'error':
    status = 'diverged' if last.get('type') == 'FloatingPointError' else 'failed'
    return status, last.get('message', ''), {}
  return 'unfinished', message or 'it has begun and is not done', {}


def _read_events(folder):
  """The events of a run, [] if they cannot be read."""
  try:
    return run_folder.read_events(folder)
  except (ValueError, OSError):
    return []


def was_interrupted(folder, since):
  """Whether a run began or resumed after `since` (ISO 8601, UTC), its last attempt, and has not ended.

  Then the process that records attempts was killed.
  """
  events = _read_events(folder)
  starts = [str(event.get('time', '')) for event in events if event.get('event') in ('start', 'resume')]
  return bool(starts) and starts[-1] > since and events[-1].get('event') not in ('done', 'error')


def read_curve(folder, metric='valid_loss'):
  """[[training tokens, metric], ...] of the evaluations of a run, in order; [] for a metric without any."""
  try:
    lines = run_folder.read_metrics(folder) if (Path(folder) / 'config.json').exists() else []
  except OSError as error:
    raise ValueError(f'{folder}/metrics.jsonl: {error}') from error
  for line in lines:
    for name in {'tokens', metric} & line.keys():
      if not history.is_number(line[name]):
        raise ValueError(f'{folder}/metrics.jsonl: {name} of step {line["step"]} is not a number')
  tokens = [(line['step'], line['tokens']) for line in lines if 'tokens' in line]
  tokens = tokens or [(line['step'], line['step']) for line in lines]  # a tokenizer's training has no tokens
  values = [(line['step'], line[metric]) for line in lines if metric in line]
  if not tokens or not values:
    return []
  # An evaluation may fall between two logged steps.
  at = np.interp([step for step, _ in values], *zip((0, 0), *tokens, strict=True))
  return [[float(t), float(value)] for t, (_, value) in zip(at, values, strict=True)]


def read_examples(folder, result, metric):
  """The numbers of a task's examples whose mean is the metric of a result, [] if they were not kept."""
  score = None if metric in result else find_score(result, metric)
  if not score:
    return []
  names = {key for key in SCORE_KEYS if key != 'metric'} | {'split'}
  lines = [
    line
    for line in records.read_lines(Path(folder) / 'predictions.jsonl', skip_unreadable=True)
    if isinstance(line, dict)
    and all(line.get(name) == score.get(name) for name in names)
    and not any('.' in name for name in line)
  ]
  lines.sort(key=lambda line: line.get('index', 0))
  for column in (score['metric'], 'right'):
    values = [line.get(column) for line in lines]
    is_whole = len(values) == score.get('n') and all(isinstance(value, int | float) for value in values)
    if is_whole and abs(np.mean(values) - score['value']) < 1e-6:
      return [float(value) for value in values]
  return []


# ---------------------------------------------------------------------------------- a table of runs


def walk(folder):
  """Yield (path, file names) of a folder and of those below it, sorted; none inside a run or NAME.corrupt."""
  for path, names, files in os.walk(Path(folder).expanduser()):
    if 'config.json' in files:
      names.clear()
    skip = lambda name: name in ('cache', 'compiled') or name[0] == '.' or '.corrupt' in name
    names[:] = sorted(name for name in names if not skip(name))
    yield Path(path), files


def find_run_folders(folder):
  """Run folders in or below `folder`, sorted; without folders inside a run or set aside (NAME.corrupt)."""
  return [path for path, files in walk(folder) if 'config.json' in files]


def table_row(folder, root):
  """One run as {column: number or text}: folder, status, flat config, flat result, task scores."""
  status, message, result = run_status(folder)
  scores = task_scores(folder, result)
  result = {name: value for name, value in result.items() if name != 'evaluations'}
  row = {'folder': os.path.relpath(folder, root), 'status': status, 'message': message}
  try:
    config = records.flatten(run_folder.read_config(folder))
  except ValueError:
    config = {}
  names = {name.casefold() for name in row}  # SQL column names are case-insensitive
  for name, value in [*config.items(), *records.flatten(result).items(), *scores.items()]:
    if name.casefold() not in names:
      names.add(name.casefold())
      row[name] = _to_sql(value)
  return row


def task_scores(folder, result):
  """{TASK/SOURCE/METRIC...: value}, with /SPLIT if that is not valid; the last of equal names counts.

  result.json has the scores of the training, evaluations.jsonl those of `launch.py evaluate`; those on data
  that --config.data chose, and of the checkpoints of --step, are left out.
  """
  try:
    later = records.read_lines(Path(folder) / 'evaluations.jsonl')
  except (ValueError, OSError):
    later = []
  scores = {}
  for row in [*(result.get('evaluations') or ()), *later]:
    on_other_data = isinstance(row, dict) and any(key == 'step' or key.startswith('data.') for key in row)
    if isinstance(row, dict) and isinstance(row.get('value'), int | float) and not on_other_data:
      split = row.get('split') or 'valid'
      scores[score_name(row) + f'/{split}' * (split != 'valid')] = row['value']
  return scores


def _to_sql(value):
  if value is None or isinstance(value, float | str):
    return value
  if isinstance(value, int):
    return value if abs(value) < 2**63 else float(value)
  return json.dumps(records.to_json(value), ensure_ascii=False)


def select(folder, where='', columns=()):
  """The runs below a folder that satisfy a condition -> (column names, rows of values).

  where: an SQL condition. Column names may be dotted; the last part of a name suffices if only one column
  has it, as does a metric that only one task has. columns: names; () for the config keys in which the runs
  differ and the main results. Raises ValueError naming similar columns, FileNotFoundError without runs.
  """
  rows = [table_row(path, folder) for path in find_run_folders(folder)]
  if not rows:
    raise FileNotFoundError(
      f'workdir={folder} holds no runs\nfix: give the folder of a study or of runs as --workdir'
    )
  return select_rows(rows, where, columns)


def select_rows(rows, where='', columns=()):
  """`select` among rows of `table_row`, at least one."""
  known = list({name.casefold(): name for row in rows for name in row}.values())
  chosen = [find_column(name, known, '--columns') for name in columns] or default_columns(rows, known)
  with contextlib.closing(sqlite3.connect(':memory:')) as database:
    database.execute(f'create table runs ({", ".join(map(_quote, known))})')
    for row in rows:
      names, marks = ', '.join(map(_quote, row)), ', '.join('?' * len(row))
      database.execute(f'insert into runs ({names}) values ({marks})', list(row.values()))
    database.execute('pragma query_only = on')
    condition = f'where ({quote_condition(where, known)})' if where.strip() else ''
    query = f'select {", ".join(map(_quote, chosen))} from runs {condition} order by folder'
    try:
      return chosen, database.execute(query).fetchall()
    except (sqlite3.Error, sqlite3.Warning) as error:
      if unknown := re.fullmatch('no such column: (.*)', str(error)):
        find_column(unknown[1], known, '--where')
      raise ValueError(
        f'--where={where!r}: {error}\n'
        'fix: write a condition in SQL, such as "optim.lr > 1e-3 and model.positions = \'rope\'"'
      ) from error


def default_columns(rows, known):
  """Config keys in which the runs differ, and the main results."""
  keys = known[3 : known.index('steps') if 'steps' in known else None]
  keys = [name for name in keys if '.' in name or '/' not in name]  # a task score has no '.'
  varied = [name for name in keys if len({row.get(name) for row in rows} - {None}) > 1]
  results = ('valid_loss', 'loss', 'tokens', 'seconds', 'tokens_per_second', 'parameters')
  return ['folder', 'status', *varied, *(name for name in results if name in known)]


def quote_condition(where, known):
  """The condition with its column names in full and quoted for SQL."""

  def replace(match):
    if match['quoted']:
      return _quote(find_column(match['quoted'][1:-1].replace('""', '"'), known, '--where'))
    if match['word'] and matching_columns(match['word'], known):
      return _quote(find_column(match['word'], known, '--where'))
    return match[0]  # a literal, or a word of SQL

  # A '/' belongs to a name such as valid_loss/text only if there is such a column.
  slashed = sorted((n for n in known if not re.fullmatch(r'[\w.]+', n)), key=len, reverse=True)
  words = '|'.join([*map(re.escape, slashed), r'[A-Za-z_][\w.]*(?!\s*\(|[\w.])'])  # not a function
  literal = r"'(?:[^']|'')*'|\d[\w.]*(?:(?<=[eE])[+-]\d+)?"
  pattern = rf'{literal}|(?P<quoted>"(?:[^"]|"")*")|(?P<word>{words})'
  return re.sub(pattern, replace, where, flags=re.ASCII)


def matching_columns(name, known):
  """The column of this name in any case; else those with this last part."""
  same = [column for column in known if column.casefold() == name.casefold()]
  return same or [column for column in known if _last_part(column) == name]


def find_column(name, known, flag):
  """The column of this name or with this last part; ValueError naming similar ones if not exactly one."""
  matches = matching_columns(name, known)
  if len(matches) == 1:
    return matches[0]
  ratio = lambda a, b: difflib.SequenceMatcher(None, a, b).ratio()
  last = re.split('[./]', name)[-1]
  similarity = {column: max(ratio(name, column), ratio(last, _last_part(column))) for column in known}
  near = matches or [k for k in sorted(known, key=similarity.get, reverse=True)[:5] if similarity[k] > 0.6]
  fix = f'use one of {", ".join((near or known)[:12])}'
  if flag == '--where' and (matches or not near) and re.fullmatch(r'\w+', name):
    fix += f"; a text is written '{name}'"
  cause = f'{name} is the last part of several columns' if matches else f'no run has a column {name}'
  raise ValueError(f'{flag}: {cause}\nfix: {fix}')


def _last_part(name):
  """lr of optim.lr, exact_match of answer/read/exact_match; else the name."""
  return name.split('/')[2] if name.count('/') == 2 else name.rpartition('.')[2]


def _quote(name):
  return '"' + name.replace('"', '""') + '"'


def format_table(names, rows):
  """The lines of a table of runs."""
  return text_table.format_table([[_format_cell(value) for value in row] for row in rows], names)


def _format_cell(value):
  if value is None:
    return '-'
  if isinstance(value, float):
    return f'{value:.6g}' if abs(value) < 1e6 else f'{value:.3e}'
  return str(value) if len(str(value)) <= 40 else f'{str(value)[:37]}...'
