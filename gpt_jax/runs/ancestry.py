"""Ancestors of a run: the runs and imported models that its weights come from or that taught it.

A run writes parents.json when it begins, with all that reports show, as a parent's folder may move:
  {"parents": [PARENT, ...]}
  PARENT of a run      how (the config key that names it), path, step, digest of the checkpoint's manifest,
                       tokens (seen up to that step), config, parents
  PARENT of an import  how = 'import', path (folder, file or hub id), revision
result.json has the same without configs, but with what each run changed: diff {key: [parent's, its own]}.
"""

import pathlib
import re

from gpt_jax.runs import digests, records, text_table
from gpt_jax.runs.text_table import join_some

FILE = 'parents.json'
PARENT = {
  'how': str,
  'path': str,
  'step?': int,
  'digest?': str,
  'tokens?': int | float,
  'revision?': str,
  'config?': dict,
}
PARENT['parents?'] = [PARENT]
LINKS = ('train.init_from', 'train.branch_from')  # config keys that name a parent
HEADER = ('run', 'begins with', '>tokens', 'data', 'changes', 'checkpoint')
MAX_DEPTH = 100  # of a chain
MAX_CHANGES, MAX_CHANGES_IN_LINE = 12, 3  # of a run that are shown, in the report and on a console


def parse_run(text):
  """'runs/x@500' -> (folder, 500); 'runs/x' -> (folder, None)."""
  whole = pathlib.Path(text).expanduser()
  match = re.fullmatch(r'(.+)@(\d{1,10})', str(text))
  if match and not (whole / 'config.json').exists():
    return pathlib.Path(match[1]).expanduser(), int(match[2])
  return whole, None


def describe_run(how, folder, step, extra):
  """Return the PARENT entry of a run whose checkpoint of this step is taken; extra: its JSON."""
  manifest = pathlib.Path(folder) / 'checkpoints' / 'digests' / f'{step}.json'
  return {
    'how': how,
    'path': str(folder),
    'step': step,
    'digest': digests.digest_of_manifest(manifest)[:12],
    'tokens': extra.get('tokens', 0),
    'config': extra.get('config', {}),
    'parents': read_parents(folder),
  }


def describe_import(source, path):
  """Return the PARENT entry of imported files, with the commit of a snapshot of the hub."""
  path = pathlib.Path(path)
  revision = {'revision': path.name} if path.parent.name == 'snapshots' else {}
  return {'how': 'import', 'path': str(source)} | revision


def read_parents(folder):
  """Return the PARENT entries of a run folder, [] if it has none."""
  return records.read_json(pathlib.Path(folder) / FILE, {'parents?': [PARENT]}).get('parents', [])


def write_parents(folder, parents):
  """Write the PARENT entries of a run that begins, atomically; no file for a run without parents."""
  path = pathlib.Path(folder) / FILE
  if parents:
    records.write_json(path, {'parents': parents})
  else:
    path.unlink(missing_ok=True)


def summarize(parents, config):
  """Return PARENT entries for result.json; config: of the run that they are the parents of."""
  return [
    {key: value for key, value in parent.items() if key not in ('config', 'parents')}
    | ({'diff': config_diff(parent['config'], config)} if parent.get('config') else {})
    | {'parents': summarize(parent.get('parents', []), parent.get('config', {}))}
    for parent in parents
  ]


def config_diff(old, new):
  """Return {key: (parent's value, own)} of two configs, without the keys that name parents."""
  return {key: pair for key, pair in records.diff(old, new).items() if key not in LINKS}


# --------------------------------------------------------------------------------------- tables


def ancestor_rows(folder, config, tokens, most=MAX_CHANGES):
  """Return rows of HEADER, oldest ancestor first and the run last; [] for a run without parents.

  config, tokens: of the run. most: of the changes of a run that are listed.
  """
  parents = read_parents(folder)
  own = {'path': str(folder), 'config': config, 'tokens': tokens, 'parents': parents}
  return list(_rows(own, MAX_DEPTH, most)) if parents else []


def _rows(run, depth, most):
  """Yield the rows of a run's ancestors, then its own; of an ancestor with the checkpoint that was taken."""
  parents = run.get('parents', []) if depth else []
  for parent in parents:
    yield from _rows(parent, depth - 1, most)
  if run.get('how') == 'import':
    return
  config = run.get('config', {})
  pairs = [pair for parent in parents for pair in config_diff(parent.get('config') or config, config).items()]
  changes = [f'{key} {_text(old)} -> {_text(new)}' for key, (old, new) in dict(pairs).items()]
  more = [f'and {len(changes) - most} more'] if len(changes) > most else []
  yield (
    pathlib.Path(run['path']).name,
    '\n'.join(map(_describe_link, parents)) or 'new weights',
    f'{run["tokens"]:,.0f}' if run.get('tokens', -1) >= 0 else '',
    describe_data(config),
    '\n'.join([*changes[:most], *more]),
    f'step {run["step"]}, {run["digest"]}' if 'digest' in run else '',
  )


def _text(value):
  return 'absent' if value is None else value if value != '' else "''"


def _describe_link(parent):
  if parent['how'] == 'import':
    revision = parent.get('revision', '')
    return f'import of {parent["path"]}' + (f' ({revision[:12]})' if revision else '')
  return f'{parent["how"]} {pathlib.Path(parent["path"]).name}@{parent.get("step", 0)}'


def describe_data(config):
  """Return the sources of a config in a few words: 'books: books/*.txt, weight 3'."""
  mixture = config.get('data', {}).get('mixture', {})
  sources = [(name, source) for name, source in mixture.items() if source.get('weight', 1)]
  weight = lambda source: f' x {source["weight"]:g}' if len(sources) > 1 and 'weight' in source else ''
  return join_some(
    [f'{name}: {source.get("path") or source.get("kind", "")}{weight(source)}' for name, source in sources], 6
  )


def format_table(folder, config, tokens):
  """Return the table of `ancestor_rows` as lines, [] for a run without parents."""
  rows = ancestor_rows(folder, config, tokens, MAX_CHANGES_IN_LINE)
  cells = [[str(cell).replace('\n', ', ') for cell in row] for row in rows]
  return text_table.format_table(cells, [name.lstrip('>') for name in HEADER]) if rows else []
