"""The pages of runs: the table with its conditions, the provenance tree, and the page of one run."""

import json
import math

from gpt_jax.ablation import store
from gpt_jax.workbench.lab import args

RESULTS = ('valid_loss', 'loss', 'tokens', 'seconds', 'parameters')  # columns where none are chosen
MAX_COLUMNS, MAX_TEXT = 40, 200  # of a table; characters of a cell


def list_runs(lab, query):
  """GET /api/runs?where=CONDITION&column=a&column=b: the runs that satisfy a condition, newest last.

  Returns {root, count, columns, known, rows: [{name, state, step, steps, eta, silence, note, cells}]}.
  """
  where, index = args.text(query, 'where'), lab.index
  rows = [index.row(folder) | {'folder': name} for name, folder in index.runs().items()]
  states = index.states()
  rows = [row | {'state': states[row['folder']]['state']} for row in rows]
  facts = {'root': index.root_text, 'count': len(rows)}
  if not rows:
    return facts | {'columns': [], 'known': [], 'rows': []}
  chosen = args.texts(query, 'column')[:MAX_COLUMNS]
  known = list(dict.fromkeys(name for row in rows for name in row))
  columns = [store.find_column(name, known, 'columns') for name in chosen] or default_columns(rows)
  names, cells = store.select_rows(rows, where, ['folder', *columns])
  table = [states[row[0]] | {'name': row[0], 'cells': [short(cell) for cell in row[1:]]} for row in cells]
  return facts | {'columns': names[1:], 'known': known, 'rows': table}


def default_columns(rows):
  """Return the columns of a table where none are chosen: what differs, at most five, and the main results."""
  keys = [name for name in dict.fromkeys(k for row in rows for k in row) if '.' in name and '/' not in name]
  spread = {}
  for name in keys:
    values = {row[name] for row in rows if row.get(name) is not None}
    if len(values) > 1:
      spread[name] = -sum(row.get(name) is not None for row in rows), len(values)
  rank = lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), *spread[name])
  varied = sorted(spread, key=rank)[:5]
  return [*varied, *(name for name in RESULTS if any(name in row for row in rows))]


# Config keys that tell most, before any other that differs.
FIRST = ('train.job', 'model.layers', 'model.width', 'optim.lr', 'train.seed', 'train.steps')


def short(value):
  """Return a cell for JSON: non-finite numbers as texts, long texts cut."""
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return f'{value[:MAX_TEXT]}\u2026' if isinstance(value, str) and len(value) > MAX_TEXT else value


# ----------------------------------------------------------------------------------- provenance


def tree(lab, query):
  """GET /api/tree: runs that come from others, the runs of a study as one.

  Returns {nodes: [{id, name, run, study, note}], links: [{from, to, how}]}. A parent that is not below the
  root, or an import, is a node without a run.
  """
  index, nodes, links = lab.index, {}, {}

  def add(name, parents):
    for parent in parents:
      source = _node_of(index, parent)
      nodes.setdefault(source['id'], source)
      step = f'@{parent["step"]}' if 'step' in parent else ''
      links[source['id'], name] = parent['how'].rpartition('.')[2] + step
      if not (source['run'] or source['study']):
        add(source['id'], parent.get('parents', []))

  for name, folder in index.runs().items():
    if parents := index.parents(folder):
      node = _run_node(index, name)
      nodes[node['id']] = node
      add(node['id'], parents)
  pairs = [{'from': a, 'to': b, 'how': how} for (a, b), how in links.items() if a != b]
  return {'nodes': list(nodes.values()), 'links': pairs}


def _node_of(index, parent):
  if parent['how'] != 'import' and (name := index.name_of(parent['path'])):
    return _run_node(index, name)
  label = parent['path'].rstrip('/').rpartition('/')[2]
  place = f'{parent["how"]}:{parent["path"]}'
  return {'id': place, 'name': label, 'run': '', 'study': '', 'note': _origin(parent)}


def _origin(parent):
  return 'imported model' if parent['how'] == 'import' else 'not below this folder'


def _run_node(index, name):
  folder = index.runs()[name]
  if study := next((study for study, path in index.studies().items() if folder.is_relative_to(path)), ''):
    count = sum(run.is_relative_to(index.studies()[study]) for run in index.runs().values())
    return {'id': f'study:{study}', 'name': study, 'run': '', 'study': study, 'note': f'study, {count} runs'}
  row = index.row(folder)
  loss = row.get('valid_loss')
  note = f'valid {loss:.3f}' if isinstance(loss, float) else ''
  job = row.get('train.job', '')
  note = ' \u00b7 '.join(filter(None, (job, note)))
  return {'id': name, 'name': name, 'run': name, 'study': '', 'note': note}


# ------------------------------------------------------------------------------------ one run


def run_page(lab, query):
  """GET /api/run?run=NAME: {html: its report, made now, state: of live.describe}."""
  from gpt_jax.reports import run_report
  from gpt_jax.runs import history

  folder = lab.index.run(args.text(query, 'run'))
  run = history.read_history(folder)
  return {'html': main_of(run_report.render_html(run)), 'state': lab.index.state(folder)}


def main_of(document):
  """Return what is inside <main> of a report's page: the lab has its style already."""
  return document.partition('<main>')[2].rpartition('</main>')[0]


def config_diff(lab, query):
  """GET /api/diff?run=a&run=b: {runs, rows: [[key, value of each run]]} of the settings that differ."""
  from gpt_jax.runs import records

  names = args.runs(query)
  configs = [records.flatten(lab.index.config(lab.index.run(name))) for name in names]
  keys = dict.fromkeys(key for config in configs for key in config)
  text = lambda value: None if value is None else value if isinstance(value, str) else json.dumps(value)
  rows = [[key, *(text(config.get(key)) for config in configs)] for key in keys]
  return {'runs': names, 'rows': [row for row in rows if len(set(row[1:])) > 1]}
