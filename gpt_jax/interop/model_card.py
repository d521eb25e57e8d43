"""The model card of an export: README.md with the front matter that the Hugging Face hub reads.

Only what the run folder records is stated; licenses, which no run records, are "not stated".

Source: https://huggingface.co/docs/hub/model-cards.
"""

import json
import math

from gpt_jax.model import costs
from gpt_jax.runs import ancestry, history

PLAIN_KINDS = ('text', 'special')  # of ids that transformers' tokenizer knows


def write_card(run, family, architecture, folder):
  """Return the card of a TrainedRun that is exported to a folder, as an architecture of a family."""
  records = history.read_history(run.workdir)
  parents = ancestry.read_parents(run.workdir)
  base = next(filter(None, map(hub_id, parents)), None)
  tags = ['gpt_jax', family]
  front = ['library_name: transformers', 'pipeline_tag: text-generation']
  front += [f'base_model: {json.dumps(base)}'] if base else []
  front += ['tags:', *(f'- {json.dumps(tag)}' for tag in tags)]
  parts = [
    '---\n' + '\n'.join(front) + '\n---',
    f'# {run.workdir.resolve().name}',
    f'Step {run.step:,} of a gpt_jax run, exported as `{family}`.',
    '## Model',
    _table(_model_rows(run, architecture), ('', '')),
    '## Training',
    _table(_training_rows(run, records, parents), ('', '')),
  ]
  if changes := [_describe_change(run, parent) for parent in parents]:
    parts += ['## Changes to the base', '\n'.join(f'- {line}' for line in changes)]
  if rows := _evaluation_rows(run, records):
    header = ('task', 'data', 'metric', 'value', '95% interval', 'examples')
    parts += ['## Evaluation', _table(rows, header)]
  parts += ['## Use', _usage(run, folder)]
  return '\n\n'.join(parts) + '\n'


def hub_id(parent):
  """Return the hub id of the import that a PARENT of ancestry.py begins with, or None."""
  if parent['how'] == 'import':
    return parent['path'] if 'revision' in parent else None
  return next(filter(None, map(hub_id, parent.get('parents', []))), None)


def _model_rows(run, architecture):
  cfg = run.model.cfg
  return [
    ('architecture', architecture),
    ('parameters', f'{costs.count_params(cfg):,}'),
    ('layers, width, heads', f'{cfg.layers}, {cfg.width}, {cfg.heads} ({cfg.G} of keys and values)'),
    ('context', f'{cfg.context:,} tokens'),
    ('vocabulary', f'{cfg.vocab:,} ids'),
    ('type of the weights', cfg.param_dtype),
    ('license', 'not stated'),
  ]


def _training_rows(run, records, parents):
  """Return rows on how the weights came about; an imported model has none of its own."""
  links = [_link(parent) for parent in parents] or ['new weights']
  rows = [('begins with', ', '.join(links))]
  if not run.step:
    return [*rows, ('steps', 'none here')]
  cfg = run.cfg
  steps, tokens = records.column('tokens')
  seen = dict(zip(steps.astype(int).tolist(), tokens.tolist(), strict=True)).get(run.step)
  if seen is None and records.result.get('steps') == run.step:
    seen = records.result.get('tokens')
  rows += [
    ('data', _describe_data(cfg.data.mixture) or 'not stated'),
    ('license of the data', 'not stated'),
    ('steps', f'{run.step:,} of {cfg.train.batch_size} rows of {cfg.train.length} tokens'),
    ('tokens', f'{seen:,.0f}' if seen is not None else 'not stated'),
    (
      'optimizer',
      f'{cfg.optim.name}, learning rate {cfg.optim.lr:g}, schedule {cfg.optim.schedule}, '
      f'weight decay {cfg.optim.weight_decay:g}',
    ),
    ('hardware', records.hardware() or 'not stated'),
  ]
  return rows


def _link(parent):
  """Return a parent in a few words, without its folder on this machine."""
  name = parent['path'] if 'revision' in parent else parent['path'].rstrip('/').rpartition('/')[2]
  if parent['how'] == 'import':
    return f'import of {name}' + (f' at {parent["revision"][:12]}' if 'revision' in parent else '')
  return f'{name} at step {parent.get("step", 0):,} ({parent["how"]})'


def _describe_data(mixture):
  """Return the trained sources by name, kind, last part of the path and template."""
  sources = []
  for name, source in mixture.items():
    if source.weight:
      path = source.path.rstrip('/').rpartition('/')[2]
      sources.append(f'{name}: {source.kind}{" " + path if path else ""}, `{source.template}`')
  return '<br>'.join(sources)


def _describe_change(run, parent):
  """Return what differs from a parent: new ids, and keys of the model section."""
  before, vocabulary = parent.get('config', {}).get('model', {}), run.tokenizers.vocabulary
  changes = []
  if (old := before.get('vocab')) and run.model.cfg.vocab > old:
    names = [name for name, index in vocabulary.specials if index >= old]
    changes.append(f'vocabulary {old:,} -> {run.model.cfg.vocab:,} ids')
    changes += [f'special tokens {", ".join(f"`{name}`" for name in names)}'] if names else []
    added = [
      f'{vocabulary.count(kind):,} {kind} codes' for kind in vocabulary.kinds if kind not in PLAIN_KINDS
    ]
    changes += added
  if parent['how'] == 'import':
    changes.append('the weights are unchanged' if not run.step else 'trained further')
  return f'{_link(parent)}: {", ".join(changes) or "same architecture and vocabulary"}'


def _evaluation_rows(run, records):
  """Return the scores of the exported step."""
  rows = {}
  for row in records.evaluations:
    step = row.get('step', records.result.get('steps', 0))
    if step != run.step or not math.isfinite(history.number(row['value'])):
      continue
    interval = ' to '.join(f'{bound:.4g}' for bound in row.get('interval', ()) if history.is_number(bound))
    data = ' '.join(str(row[key]) for key in ('source', 'split') if key in row)
    cells = (row['task'], data, row['metric'], f'{row["value"]:.4g}', interval, str(row.get('n', '')))
    rows[cells[:3]] = cells  # the latest of equal evaluations
  return list(rows.values())


def _usage(run, folder):
  media = [kind for kind in run.tokenizers.vocabulary.kinds if kind not in PLAIN_KINDS]
  note = 'Image and sound codes are ids here; their tokenizers are in the run folder.\n\n' if media else ''
  return (
    f'{note}```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n'
    f"tokenizer = AutoTokenizer.from_pretrained('{folder.name}')\n"
    f"model = AutoModelForCausalLM.from_pretrained('{folder.name}')\n```\n\n"
    f'```\npython launch.py import --source={folder.name} --workdir=runs/{folder.name}\n```'
  )


def _table(rows, header):
  """Return a Markdown table."""
  clean = lambda cell: str(cell).replace('|', '\\|').replace('\n', ' ')
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(map(clean, line))} |' for line in lines)
