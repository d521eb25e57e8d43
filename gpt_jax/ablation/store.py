"""What run folders hold, read with suspicion, and a table of runs to ask questions of.

`rows` gives each run of a study its status. `select` puts the configs and results of all runs below
a folder into one table in memory and answers a condition in SQL:
`optim.lr > 1e-3 and model.positions = 'rope'`. Nothing here writes.
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

from gpt_jax.ablation.stats import analyze
from gpt_jax.runs import records, run_folder
from gpt_jax.runs.text_table import format_table

FAILURES = ('failed', 'diverged', 'killed')  # outcomes of an attempt that end a run
# Words of SQL that are never short for the name of a column.
SQL = frozenset(
  (
    'abs',
    'and',
    'between',
    'case',
    'cast',
    'collate',
    'else',
    'end',
    'escape',
    'exists',
    'false',
    'glob',
    'iif',
    'in',
    'instr',
    'is',
    'isnull',
    'length',
    'like',
    'lower',
    'max',
    'min',
    'not',
    'notnull',
    'null',
    'or',
    'replace',
    'round',
    'substr',
    'then',
    'true',
    'upper',
    'when',
  )
)


# -------------------------------------------------------------------------------- runs of a study


def folder_of(workdir, slug, seed):
  """Where the run of an arm with a seed lies."""
  return Path(workdir) / 'runs' / slug / f'seed{seed}'


def read_study(workdir):
  """study.json of a study folder; FileNotFoundError says what to do where there is none."""
  path = Path(workdir).expanduser() / 'study.json'
  if not path.is_file():
    raise FileNotFoundError(
      f'workdir={path.parent} is not a study: it has no study.json\n'
      'fix: give the --workdir of a study, or make one: launch.py ablate'
    )
  return records.read_json(path)


def rows(workdir):
  """One dict for each run that the study plans, arms and seeds in its order.

  Keys: arm, seed, folder, status (done, failed, diverged, killed, unfinished, missing, corrupt),
  message (why it is not done), result (of result.json, or {}), curve ([[tokens, the study's
  metric], ...]), how (alone, replicas or process: the way in which it was trained; '' if unknown).
  """
  workdir = Path(workdir).expanduser()
  study = read_study(workdir)
  attempts = last_attempts(workdir)
  found = []
  for arm in study['arms']:
    for seed in study['seeds']:
      folder = folder_of(workdir, arm['slug'], seed)
      attempt = attempts.get((arm['name'], seed), {})
      status, message, result = state(folder, study['metric'], attempt)
      try:
        points = curve(folder, study['metric'])
      except ValueError as error:  # the numbers of the result stand without it
        points, message = [], message or str(error).partition('\n')[0]
      found.append(
        {
          'arm': arm['name'],
          'seed': seed,
          'folder': str(folder),
          'status': status,
          'message': message,
          'result': result,
          'curve': points,
          'how': attempt.get('how', ''),
        }
      )
  return found


def read_attempts(workdir):
  """The lines of attempts.jsonl, also those of shares, in the order of their times.

  A line torn by a crash counts for nothing, wherever it is.
  """
  places = [Path(workdir), *sorted(Path(workdir).glob('shares/*'))]
  found = []
  for path in (place / 'attempts.jsonl' for place in places):
    for line in path.read_bytes().splitlines() if path.exists() else ():
      with contextlib.suppress(ValueError):
        found.append(records.from_json(json.loads(line)))
  found = [attempt for attempt in found if isinstance(attempt, dict)]
  return sorted(found, key=lambda attempt: str(attempt.get('time', '')))


def last_attempts(workdir):
  """{(arm, seed): the last line of attempts.jsonl about it}."""
  return {(line.get('arm'), line.get('seed')): line for line in read_attempts(workdir)}


def state(folder, metric='valid_loss', attempt=None):
  """-> (status, message, result) of one run folder; see `rows`.

  attempt: the last line of attempts.jsonl about it.
  """
  folder, attempt = Path(folder), attempt or {}
  try:
    config = run_folder.read_config(folder) if (folder / 'config.json').exists() else {}
    result = run_folder.read_result(folder) if config else {}
  except (ValueError, OSError) as error:
    return 'corrupt', str(error).partition('\n')[0], {}
  if result:
    return judged(result, metric)
  outcome, message = attempt.get('outcome'), attempt.get('message', '')
  if outcome in FAILURES:
    return outcome, message, {}
  if not (folder / 'config.json').exists():
    return 'missing', message or 'it has not begun', {}
  last = (events_of(folder) or [{}])[-1]
  if last.get('event') == 'error':
    status = 'diverged' if last.get('type') == 'FloatingPointError' else 'failed'
    return status, last.get('message', ''), {}
  return 'unfinished', message or 'it has begun and is not done', {}


def events_of(folder):
  """The events of a run, [] where they cannot be read."""
  try:
    return run_folder.read_events(folder)
  except (ValueError, OSError):
    return []


def cut(folder, since):
  """Whether a run began or resumed after a time (ISO 8601, UTC), and has neither ended nor failed.

  since: when its last attempt was noted. Then who was to note the next one was killed.
  """
  events = events_of(folder)
  begun = [event['time'] for event in events if event.get('event') in ('start', 'resume')]
  return bool(begun) and begun[-1] > since and events[-1]['event'] not in ('done', 'error')


def judged(result, metric):
  """-> (status, message, result) of a result that can be read."""
  name = metric if metric in result else 'valid_loss'
  value = result.get(name)
  if isinstance(value, float) and not math.isfinite(value):
    return 'diverged', f'{name} is {value}', result
  return 'done', '', result


def curve(folder, metric='valid_loss'):
  """[[tokens trained on, metric], ...] of the evaluations of a run, in order."""
  try:
    logged = run_folder.read_metrics(folder) if (Path(folder) / 'config.json').exists() else []
  except OSError as error:
    raise ValueError(f'{folder}/metrics.jsonl: {error}') from error
  name = metric if any(metric in line for line in logged) else 'valid_loss'
  known = [(line['step'], line['tokens']) for line in logged if 'tokens' in line]
  known = known or [(line['step'], line['step']) for line in logged]  # a job that has no tokens
  scored = [(line['step'], line[name]) for line in logged if name in line]
  if not known or not scored:
    return []
  # An evaluation may fall between two logged steps.
  tokens = np.interp([step for step, _ in scored], *zip((0, 0), *known, strict=True))
  return [[float(t), float(value)] for t, (_, value) in zip(tokens, scored, strict=True)]


# ---------------------------------------------------------------------------------- a table of runs


def run_folders(folder):
  """Run folders in or below `folder`, sorted; what lies inside a run is not looked at.

  Nor is what a study has set aside (NAME.corrupt).
  """
  found = []
  for path, names, files in os.walk(Path(folder).expanduser()):
    if 'config.json' in files:
      found.append(Path(path))
      names.clear()
    odd = lambda name: name in ('cache', 'compiled') or name[0] == '.' or '.corrupt' in name
    names[:] = sorted(name for name in names if not odd(name))
  return found


def record(folder, root):
  """One run as {column: number or text}: folder, status, flat config, flat result, scores."""
  status, message, result = state(folder)
  tasks = scores(folder, result)
  result = {name: value for name, value in result.items() if name != 'evaluations'}
  found = {'folder': os.path.relpath(folder, root), 'status': status, 'message': message}
  try:
    config = run_folder.flatten(run_folder.read_config(folder))
  except ValueError:
    config = {}
  names = {name.casefold() for name in found}  # SQL does not tell A from a
  for name, value in [*config.items(), *run_folder.flatten(result).items(), *tasks.items()]:
    if name.casefold() not in names:
      names.add(name.casefold())
      found[name] = _cell(value)
  return found


def scores(folder, result):
  """{TASK/SOURCE/METRIC...: value}, .../SPLIT if that is not valid; of one score the last counts.

  In result.json are those of the training, in evaluations.jsonl those of `launch.py evaluate`.
  """
  try:
    later = records.read_lines(Path(folder) / 'evaluations.jsonl')
  except (ValueError, OSError):
    later = []
  found = {}
  for row in [*(result.get('evaluations') or ()), *later]:
    if isinstance(row, dict) and isinstance(row.get('value'), int | float):
      split = row.get('split') or 'valid'
      found[analyze.score_name(row) + f'/{split}' * (split != 'valid')] = row['value']
  return found


def _cell(value):
  if value is None or isinstance(value, float | str):
    return value
  if isinstance(value, int):
    return value if abs(value) < 2**63 else float(value)
  return json.dumps(records.to_json(value), ensure_ascii=False)


def index(folders, root='.'):
  """An SQLite connection, in memory, with one table `runs`: a row for each of these run folders."""
  found = [record(folder, root) for folder in folders]
  columns = {name.casefold(): name for row in found for name in row}
  database = sqlite3.connect(':memory:')
  database.execute(f'create table runs ({", ".join(map(_quoted, columns.values()))})')
  for row in found:
    names = ', '.join(map(_quoted, row))
    marks = ', '.join('?' * len(row))
    database.execute(f'insert into runs ({names}) values ({marks})', list(row.values()))
  database.execute('pragma query_only = on')
  return database


def select(folder, where='', columns=()):
  """The runs below a folder that satisfy a condition -> (column names, rows of values).

  where: an SQL condition; names of columns may be dotted, and a last part that only one of them has
  stands for it, as does a measure that only one task has. columns: names, () for those in which
  the runs differ and the main results.
  Raises ValueError naming near columns, FileNotFoundError where there are no runs.
  """
  folders = run_folders(folder)
  if not folders:
    raise FileNotFoundError(
      f'workdir={folder} holds no runs\nfix: give the folder of a study or of runs as --workdir'
    )
  with_rows = index(folders, folder)
  known = [row[1] for row in with_rows.execute('pragma table_info(runs)')]
  chosen = [column(name, known, '--columns') for name in columns] or telling(with_rows, known)
  query = f'select {", ".join(map(_quoted, chosen))} from runs'
  if where.strip():
    query += f' where ({condition(where, known)})'
  try:
    return chosen, with_rows.execute(f'{query} order by folder').fetchall()
  except (sqlite3.Error, sqlite3.Warning) as error:
    raise ValueError(
      f'--where={where!r}: {error}\n'
      'fix: write a condition in SQL, such as "optim.lr > 1e-3 and model.positions = \'rope\'"'
    ) from error


def telling(database, known):
  """Columns worth showing: what the runs differ in, and the main results."""
  config = known[3 : known.index('steps') if 'steps' in known else None]
  config = [name for name in config if '.' in name or '/' not in name]  # a score has no '.'
  counts = ', '.join(f'count(distinct {_quoted(name)})' for name in config)
  differ = database.execute(f'select {counts} from runs').fetchone() if config else ()
  varied = [name for name, n in zip(config, differ, strict=True) if n > 1]
  results = ('valid_loss', 'loss', 'tokens', 'seconds', 'tokens_per_second', 'parameters')
  return ['folder', 'status', *varied, *(name for name in results if name in known)]


def condition(where, known):
  """The condition with the names of columns quoted for SQL."""

  def name(match):
    text, word, given = match['text'], match['word'], match['given']
    if text:
      return text
    if word and word.lower() in SQL and word not in known:
      return word
    return _quoted(column(word or given[1:-1].replace('""', '"'), known, '--where'))

  # A '/' belongs to a name such as valid_loss/text only if there is such a column.
  slashed = sorted((n for n in known if not re.fullmatch(r'[\w.]+', n)), key=len, reverse=True)
  words = '|'.join([*map(re.escape, slashed), r'[A-Za-z_][\w.]*'])
  pattern = r"(?P<text>'(?:[^']|'')*'|\d[\w.]*(?:(?<=[eE])[+-]\d+)?)|(?P<given>\"(?:[^\"]|\"\")*\")"
  return re.sub(rf'{pattern}|(?P<word>{words})', name, where, flags=re.ASCII)


def column(name, known, flag):
  """The column that is meant by a name, or by the last part of one; ValueError names near ones."""
  if same := [k for k in known if k.casefold() == name.casefold()]:
    return same[0]
  ends = [k for k in known if last_part(k) == name]
  if len(ends) == 1:
    return ends[0]
  parts = set(name.split('/'))
  near = ends or [k for k in known if parts <= {*k.split('/')}]
  near = near or difflib.get_close_matches(name, known, 3)
  words = {k: [last_part(k), *k.split('/')[2:3]] for k in known}
  like = difflib.get_close_matches(re.split('[./]', name)[-1], {*sum(words.values(), [])}, 3)
  near = near or [k for word in like for k in known if word in words[k]]
  fix = f'use one of {", ".join((near or known)[:12])}'
  if not near and re.fullmatch(r'\w+', name):
    fix += f"; a text is written '{name}'"
  what = f'{name} is the last part of several columns' if ends else f'no run has a column {name}'
  raise ValueError(f'{flag}: {what}\nfix: {fix}')


def last_part(name):
  """lr of optim.lr, exact_match of answer/read/exact_match; else the name."""
  return name.split('/')[2] if name.count('/') == 2 else name.rpartition('.')[2]


def _quoted(name):
  return '"' + name.replace('"', '""') + '"'


def lines(names, rows):
  """A table as lines of aligned text."""
  return format_table([[_shown(value) for value in row] for row in rows], names)


def _shown(value):
  if value is None:
    return '-'
  if isinstance(value, float):
    return f'{value:.6g}' if abs(value) < 1e6 else f'{value:.3e}'
  return str(value) if len(str(value)) <= 40 else f'{str(value)[:37]}...'
