"""The card of a run or of an export: Markdown with the front matter that the Hugging Face hub reads.

Only what the run folder records is stated. What no run records stands in its notes.md: see card_sections.

Source: https://huggingface.co/docs/hub/model-cards.
"""

import json
import re

from gpt_jax.evaluation import trained
from gpt_jax.interop import card_sections as sections
from gpt_jax.interop.card_sections import NOT_STATED, table
from gpt_jax.model import costs
from gpt_jax.runs import ancestry, history, records
from gpt_jax.training import checkpoint

PLAIN_KINDS = ('text', 'special')  # of ids that transformers' tokenizer knows
FILE = 'CARD.md'
LICENSE_ID = re.compile(r'[a-z0-9][a-z0-9.-]*')  # as the hub writes them


def write_run_card(workdir):
  """Write CARD.md into a run folder and return its path."""
  run = trained.load(workdir)
  records.write_atomically(run.workdir / FILE, write_card(run))
  return run.workdir / FILE


def write_card(run, family='', architecture='', folder=None):
  """Return the card of a TrainedRun; family, architecture, folder: of an export, if it is one."""
  run_records, notes = history.read_history(run.workdir), sections.notes(run.workdir)
  parents = ancestry.read_parents(run.workdir)
  extra = checkpoint.Checkpoints(run.workdir / 'checkpoints').read_extra(run.step)
  rows = sections.scores(run_records, run.step)
  remembered = [row for row in rows if sections.is_memorization(row)]
  unsuitable = [row for row in rows if row['task'] == 'unsuitable']
  others = [row for row in rows if row not in remembered and row not in unsuitable]
  export = f', exported as `{family}`' if family else ''
  parts = [
    front_matter(run, family, parents, notes, others),
    f'# {run.workdir.resolve().name}',
    f'Step {run.step:,} of a gpt_jax run{export}.',
  ]
  notes = dict.fromkeys(sections.WRITTEN, '') | notes
  parts += ['## Intended use', notes.pop('Intended use') or f'{NOT_STATED.capitalize()}.']
  parts += ['## Model', table(_model_rows(run, architecture, notes), ('', ''))]
  parts += ['## Training', table(_training_rows(run, run_records, parents), ('', ''))]
  if changes := [_describe_change(run, parent) for parent in parents]:
    parts += ['## Changes to the base', '\n'.join(f'- {line}' for line in changes)]
  parts += ['## Data', sections.data(run, run_records, extra)]
  parts += ['## Privacy', sections.privacy(run_records, rows)]
  parts += ['## Memorization', sections.measured(remembered, 'extraction,membership')]
  parts += ['## Unsuitable output', sections.measured(unsuitable, 'unsuitable --classifier=RUN:LABEL|LABEL')]
  parts += ['## Evaluation', sections.measured(others, 'all')]
  known = [*sections.events(run_records), *sections.weak_scores(rows)]
  found = '\n'.join(f'- {line}' for line in known) or 'The records of the run show none.'
  parts += ['## Known failures', *filter(None, [notes.pop('Known failures')]), found]
  for heading, text in notes.items():
    parts += [f'## {heading}', text]
  parts += ['## Provenance', sections.sources_of_run(run, run_records)]
  if parents:
    parts += ['\n'.join(_chain(parents))]
  parts += ['## Use', _usage(run, folder, architecture)]
  return '\n\n'.join(parts) + '\n'


def front_matter(run, family, parents, notes, rows):
  """Return the metadata of the hub: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
  base = next(filter(None, map(hub_id, parents)), None)
  lines = [f'library_name: {"transformers" if family else "gpt_jax"}', 'pipeline_tag: text-generation']
  if LICENSE_ID.fullmatch(notes.get('License', '')):
    lines.append(f'license: {notes["License"]}')
  lines += [f'base_model: {json.dumps(base)}'] if base else []
  hubs = [source.path for source in run.cfg.data.mixture.values() if source.kind == 'hf' and source.weight]
  hubs = [path for path in hubs if re.fullmatch(r'[\w.-]+/[\w.-]+', path)]
  lines += ['datasets:', *(f'- {json.dumps(path)}' for path in hubs)] if hubs else []
  lines += ['tags:', *(f'- {json.dumps(tag)}' for tag in filter(None, ('gpt_jax', family)))]
  results = [
    {
      'task': {'type': row['task']},
      'dataset': {'type': row['source'], 'name': f'{row["source"]} {row.get("split", "")}'.strip()},
      'metrics': [{'type': row['metric'], 'value': row['value']}],
    }
    for row in rows
    if 'source' in row and not {key for key in sections.IDENTITY[1:] if row.get(key) not in (None, '')}
  ]
  if results:  # JSON is YAML
    index = [{'name': run.workdir.resolve().name, 'results': results}]
    lines.append(f'model-index: {json.dumps(index)}')
  return '---\n' + '\n'.join(lines) + '\n---'


def hub_id(parent):
  """Return the hub id of the import that a PARENT of ancestry.py begins with, or None."""
  if parent['how'] == 'import':
    return parent['path'] if 'revision' in parent else None
  return next(filter(None, map(hub_id, parent.get('parents', []))), None)


def _chain(parents, indent=''):
  """Yield a Markdown list of all ancestors with the digests of their checkpoints."""
  for parent in parents:
    digest = f', checkpoint {parent["digest"]}' if 'digest' in parent else ''
    yield f'{indent}- begins with {_link(parent)}{digest}'
    yield from _chain(parent.get('parents', []), indent + '  ')


def _model_rows(run, architecture, notes):
  cfg = run.model.cfg
  return [
    *([('architecture', architecture)] if architecture else []),
    ('parameters', f'{costs.count_params(cfg):,}'),
    ('layers, width, heads', f'{cfg.layers}, {cfg.width}, {cfg.heads} ({cfg.G} of keys and values)'),
    ('context', f'{cfg.context:,} tokens'),
    ('vocabulary', f'{cfg.vocab:,} ids'),
    ('type of the weights', cfg.param_dtype),
    ('license', notes.get('License', NOT_STATED)),
  ]


def _training_rows(run, run_records, parents):
  """Return rows on how the weights came about; an imported model has none of its own."""
  links = [_link(parent) for parent in parents] or ['new weights']
  rows = [('begins with', ', '.join(links))]
  if not run.step:
    return [*rows, ('steps', 'none here')]
  cfg = run.cfg
  steps, tokens = run_records.column('tokens')
  seen = dict(zip(steps.astype(int).tolist(), tokens.tolist(), strict=True)).get(run.step)
  if seen is None and run_records.result.get('steps') == run.step:
    seen = run_records.result.get('tokens')
  rows += [
    (
      'steps',
      f'{run.step:,} of {cfg.train.batch_size} rows of {cfg.train.length or run.model.cfg.context} tokens',
    ),
    ('tokens', f'{seen:,.0f}' if seen is not None else NOT_STATED),
    (
      'optimizer',
      f'{cfg.optim.name}, learning rate {cfg.optim.lr:g}, schedule {cfg.optim.schedule}, '
      f'weight decay {cfg.optim.weight_decay:g}',
    ),
    ('hardware', run_records.hardware() or NOT_STATED),
  ]
  return rows


def _link(parent):
  """Return a parent in a few words, without its folder on this machine."""
  name = parent['path'] if 'revision' in parent else parent['path'].rstrip('/').rpartition('/')[2]
  if parent['how'] == 'import':
    return f'import of {name}' + (f' at {parent["revision"][:12]}' if 'revision' in parent else '')
  return f'{name} at step {parent.get("step", 0):,} ({parent["how"]})'


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


def _usage(run, folder, architecture):
  media = [kind for kind in run.tokenizers.vocabulary.kinds if kind not in PLAIN_KINDS]
  if folder is None:
    name = run.workdir.resolve().name
    return f'```\npython launch.py sample --workdir={name}\n```'
  if run.tokenizers.places:
    return (
      f'```python\nfrom transformers import AutoProcessor, {architecture}\n\n'
      f"processor = AutoProcessor.from_pretrained('{folder.name}')\n"
      f"model = {architecture}.from_pretrained('{folder.name}')\n```\n\n"
      f'```\npython launch.py import --source={folder.name} --workdir=runs/{folder.name}\n```'
    )
  note = 'Image and sound codes are ids here; their tokenizers are in the run folder.\n\n' if media else ''
  return (
    f'{note}```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n'
    f"tokenizer = AutoTokenizer.from_pretrained('{folder.name}')\n"
    f"model = AutoModelForCausalLM.from_pretrained('{folder.name}')\n```\n\n"
    f'```\npython launch.py import --source={folder.name} --workdir=runs/{folder.name}\n```'
  )
