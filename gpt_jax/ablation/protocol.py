"""The frozen protocol of a study: what is asked, trained and computed, fixed before the first result.

protocol.json holds it; its SHA-256 is what `launch.py ablate --register` prints for a paper, and
`sha256sum protocol.json` checks it. A later change is allowed: study.json lists it as an amendment with the
number of results that were known, and after the first result every output of the study says "exploratory".
"""

import hashlib
import json
from pathlib import Path

from gpt_jax.ablation import store
from gpt_jax.runs import records
from gpt_jax.runs.startup_timer import utc_time
from gpt_jax.runs.text_table import join_some

FIXED = (
  *('question', 'base', 'base config', 'changes', 'metric', 'better', 'tolerance', 'outcomes'),
  *('unequal_tokens', 'seeds', 'sequential', 'tune', 'tuning', 'budget', 'sweep'),
  *('evaluation code', 'analysis code'),
)
TYPES = {'arms': dict, 'seeds?': [int], 'outcomes?': list}  # of the entries that are read back
HASHES = ('base config', 'evaluation code', 'analysis code')  # whose values say nothing to a reader
PROPOSED = 'optuna'  # sweep whose arms are not known before


def make_protocol(study):
  """Return the protocol of a study: {item: value}, from the content of study.json."""
  fixed = {key: study[key] for key in FIXED if key in study}
  named = study['arms'] if study.get('sweep') != PROPOSED else ()
  arms = study.get('untuned arms') or {arm['name']: arm.get('diff') for arm in named}
  return records.to_json(fixed | {'arms': arms})


def record_protocol(workdir, before, study):
  """Freeze the protocol of a study folder -> {protocol, amendments, planned_seeds} of study.json.

  before: study.json of an earlier call, or {}. Until the first result protocol.json follows the study; then
  it stays. A change is an amendment {time, results (known by then), changes: texts}. ValueError for a file
  that is not readable, or was altered after the first result.
  """
  path, results = Path(workdir) / 'protocol.json', count_results(workdir)
  if results and path.exists() and before.get('protocol', file_hash(path)) != file_hash(path):
    raise ValueError(
      f'{path} was altered after the first result\n'
      'fix: restore it; or delete it, and it is made again from study.json'
    )
  amendments = list(before.get('amendments', ()))
  old = make_protocol(before) if before else records.to_json(records.read_json(path, TYPES))
  if old and (changes := describe_changes(old, make_protocol(study))):
    amendments.append({'time': utc_time(), 'results': results, 'changes': changes})
  if not path.exists() or not results:
    frozen = before if before and results else study  # of a folder that an earlier version has made
    text = json.dumps(make_protocol(frozen), indent=2, sort_keys=True)
    records.write_atomically(path, f'{text}\n')
  planned = records.read_json(path, TYPES).get('seeds', [])
  return {'protocol': file_hash(path), 'amendments': amendments, 'planned_seeds': planned}


def file_hash(path):
  """Return the SHA-256 of a file."""
  return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def count_results(workdir):
  """Return how many runs of a study folder have a result, those that tuned its arms included."""
  folders = [Path(workdir), *Path(workdir).glob('tuning/*')]
  return sum(1 for folder in folders for _ in folder.glob(f'{store.RUNS}/*/*/result.json'))


def describe_changes(old, new):
  """Return the differences between two protocols, as texts like 'tolerance 0.01 -> 0.4'."""
  texts, old = [], {'outcomes': []} | old  # that of an earlier version has none
  for key in FIXED:
    if key in old and key in new and old[key] != new[key]:
      values = f' {show(old[key])} -> {show(new[key])}'
      texts.append(key if key in HASHES else key + values)
  names = old['arms'], new['arms']
  for verb, one, other in (('left out', *names), ('added', *names[::-1])):
    if some := [name for name in one if name not in other]:
      texts.append(f'{verb} {join_some(some, 4)}')
  return texts


def show(value):
  """Return a value of a protocol as text: a range of seeds by their number."""
  if value and isinstance(value, list) and value == list(range(len(value))):
    return str(len(value))
  return value if isinstance(value, str) and value else json.dumps(value)


def exploratory(study):
  """Return what makes a study exploratory: its amendments after the first result, as texts."""
  return [
    f'{", ".join(amendment["changes"])} after {count_text(amendment["results"])}'
    for amendment in study.get('amendments') or ()
    if amendment['results']
  ]


def count_text(results):
  """Return '1 result' or '5 results'."""
  return f'{results} result{"s" * (results != 1)}'


def describe(study):
  """Return a line on the protocol of a study.json: its hash, and what has changed since; '' without one."""
  if not study.get('protocol'):
    return ''
  later = exploratory(study)
  state = f'exploratory: {"; ".join(later)}' if later else 'unchanged since'
  return f'sha256 {study["protocol"]}, fixed before the first result, {state}'
