"""Who may import whom, and other rules of the house, read from the source."""

import ast
import functools
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob('gpt_jax/**/*.py'), *ROOT.glob('experiments/**/*.py')])
SOURCES += [ROOT / 'launch.py']

# Modules of gpt_jax -> what of gpt_jax they may import. A folder's modules may import each other.
# Lower lines build on higher ones only: `test_the_table_has_no_cycle`.
MAY_IMPORT = {
  'sharding': '',
  'losses': '',
  'optim': '',
  'metrics': '',
  'sound_metrics': 'metrics',
  'text_metrics': 'metrics',
  'hardware': '',
  'records': '',
  'checkout': '',
  'clock': '',
  'digests': 'records',
  'trees': '',
  'compiled': '',
  'checkpoint': 'digests trees',
  'loggers': '',
  'figures': '',
  'page': 'loggers',
  'model': 'sharding',
  'tokenizers': 'records model',
  'data': 'records tokenizers',
  'runs': 'checkout clock records loggers',
  'story': 'records runs',
  'goodput': 'story',
  'report': 'figures goodput loggers page records runs story',
  'judges': 'records metrics sound_metrics',
  'samplers': '',
  'grammar': '',
  'feed': 'grammar model',
  'sample': 'feed grammar losses model samplers sharding',
  'beam': 'grammar sample samplers sharding',
  'prompts': 'data feed grammar sample',
  'outfiles': 'data records',
  'skips': '',
  'step': 'losses model optim sharding skips',
  'replay': 'sharding trees',
  'probes': 'model optim sharding step',
  'tasks': 'data grammar judges losses metrics sample sharding sound_metrics text_metrics '
  'tokenizers',
  'evaluate': 'data losses model prompts sample sharding tasks text_metrics tokenizers',
  'samples': 'data prompts sample',
  'language': 'checkpoint data evaluate hardware losses model records runs sample samples sharding '
  'step tokenizers',
  'codec': 'data hardware metrics model sharding step tokenizers',
  'ledger': 'clock',
  'idle': 'runs',
  'train': 'checkpoint codec hardware idle language ledger probes replay report runs sharding '
  'skips',
  'config': 'checkpoint data losses model optim runs sample sharding tokenizers train',
  'cluster': 'data feed grammar hardware language losses model runs sample sharding step '
  'tokenizers',
  'doctor': 'config hardware model runs sharding step',
  'ablation': 'clock compiled config data figures hardware language loggers model page records '
  'runs sharding step train',
  'trained': 'checkpoint config evaluate model sharding tokenizers trees',
  'compare': 'config data probes records runs sharding tasks trained',
  'interop': 'checkpoint config model records runs sample step tokenizers train trained',
  'words': 'config',
  'experiments': 'ablation config model',
  'launch': 'ablation clock cluster compare compiled config data doctor evaluate goodput grammar '
  'interop outfiles prompts records report runs sample story train trained words',
}
LAZY = {('sample', 'beam')}  # the one cycle: imported in a function

# Whose subject a library is. jax and numpy are everywhere, torch and TensorFlow nowhere.
LIBRARIES = {
  'flax': ['model', 'probes'],
  'optax': ['optim'],
  'orbax': ['checkpoint'],
  'grain': ['data'],
  'tensorflow_datasets': ['data'],
  'ml_collections': ['config', 'launch'],
  'absl': ['launch', 'data'],  # data: Grain's worker processes read absl flags
  'matplotlib': ['figures'],
  'rich': ['loggers'],
  'tensorboardX': ['loggers'],
  'wandb': ['loggers'],
  'optuna': ['ablation'],
  'tokenizers': ['tokenizers', 'interop'],
  'sentencepiece': ['tokenizers'],
  'PIL': ['data'],
  'soundfile': ['data'],
  'scipy': ['ablation', 'data', 'judges', 'metrics', 'sound_metrics', 'tokenizers'],
  'sklearn': ['data', 'judges'],
  'safetensors': ['interop', 'tokenizers'],
  'sacrebleu': ['text_metrics'],
  'rouge_score': ['text_metrics'],
  'huggingface_hub': ['interop'],
  'fsspec': ['data'],
}
AT_HOME = ('flax', 'optax', 'orbax', 'ml_collections', 'matplotlib', 'safetensors')  # at the top
# Not among the dependencies.
OPTIONAL = ('wandb', 'optuna', 'huggingface_hub', 'fsspec', 'sacrebleu', 'rouge_score')
EVERYWHERE = ('jax', 'numpy')


def group_of(path):
  """gpt_jax/model/gpt.py -> model; gpt_jax/optim.py -> optim; launch.py -> launch."""
  parts = path.relative_to(ROOT).with_suffix('').parts
  return parts[1] if parts[0] == 'gpt_jax' and len(parts) > 1 else parts[0]


@functools.cache
def imports():
  """List of (path, group, imported module, whether at the top of the file)."""
  found = []
  for path in SOURCES:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f'{path}: relative import'
        package = node.module == 'gpt_jax'
        names = [f'gpt_jax.{a.name}' for a in node.names] if package else [node.module]
      else:
        continue
      found += [(path, group_of(path), name, node in tree.body) for name in names]
  return found


def libraries():
  """Imports of neither this project nor the standard library."""
  own = ('gpt_jax', 'experiments')
  for path, group, name, at_top in imports():
    library = name.partition('.')[0]
    if library not in own and library not in sys.stdlib_module_names:
      yield path.relative_to(ROOT), group, library, at_top


def test_every_module_has_its_line():
  modules = {group_of(path) for path in SOURCES} - {'__init__'}
  assert modules == set(MAY_IMPORT), 'add the module to MAY_IMPORT, in its place'


def test_imports_go_down():
  wrong = []
  for path, group, name, at_top in imports():
    if not name.startswith('gpt_jax.'):
      continue
    used = name.split('.')[1]
    lazily = (group, used) in LAZY and not at_top
    if used != group and used not in MAY_IMPORT[group].split() and not lazily:
      wrong.append(f'{path.relative_to(ROOT)} imports {name}')
  assert not wrong


def test_the_table_has_no_cycle():
  below = set()
  for group, allowed in MAY_IMPORT.items():
    assert set(allowed.split()) <= below, f'{group} is above what it imports'
    below.add(group)


def test_the_table_allows_no_more_than_is_used_by_the_core():
  """Losses, optimisers, meshes, model and data stay as independent as they are."""
  for group in ('sharding', 'losses', 'optim', 'model', 'data', 'sample', 'step', 'checkpoint'):
    used = {name.split('.')[1] for _, g, name, _ in imports() if g == group and 'gpt_jax.' in name}
    allowed = set(MAY_IMPORT[group].split())
    assert used - {group, 'beam'} >= allowed - {'sharding', 'tokenizers'}, group


def test_libraries_stay_where_they_belong():
  wrong = [
    f'{path} imports {library}'
    for path, group, library, _ in libraries()
    if library not in EVERYWHERE and group not in LIBRARIES.get(library, ())
  ]
  assert not wrong


def test_heavy_libraries_are_imported_where_they_are_used():
  """At the top of a file only what the file cannot do without."""
  wrong = [
    f'{path} imports {library} at its top'
    for path, group, library, at_top in libraries()
    if at_top and library not in (*EVERYWHERE, *AT_HOME) and group != 'launch'
  ]
  assert not wrong


def test_every_library_is_a_declared_dependency():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  declared = {re.split(r'[<>=\[ ]', line)[0] for line in project['dependencies']}
  names = {
    'absl': 'absl-py',
    'orbax': 'orbax-checkpoint',
    'tensorflow_datasets': 'tensorflow-datasets',
    'PIL': 'pillow',
    'sklearn': 'scikit-learn',
  }
  needed = {names.get(library, library) for _, _, library, _ in libraries()} - set(OPTIONAL)
  assert needed <= declared


# ---------------------------------------------------------------------- what an import brings along

BLOCKED = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in {blocked}:
      raise ImportError(name + ' is blocked')
sys.meta_path.insert(0, Blocker())
import {modules}
"""

NEVER = [
  'torch', 'tensorflow', 'transformers', 'wandb', 'clu', 'huggingface_hub', 'sacrebleu',
  'rouge_score', 'optuna',
]  # fmt: skip
LATER = [*NEVER, 'grain', 'tensorflow_datasets', 'matplotlib', 'tensorboardX', 'sentencepiece']


@pytest.mark.parametrize(
  ('modules', 'blocked'),
  [
    # flax and optax themselves import absl: that ours does not is in the table above.
    (
      'gpt_jax.model.gpt, gpt_jax.optim, gpt_jax.losses, gpt_jax.sharding, gpt_jax.sample, '
      'gpt_jax.beam, gpt_jax.step, gpt_jax.hardware, benchmarks.gpu, benchmarks.gpu_rows',
      [*LATER, 'ml_collections', 'orbax', 'tokenizers', 'safetensors'],
    ),
    (
      'gpt_jax.data, gpt_jax.tokenizers, gpt_jax.runs, gpt_jax.records',
      [*LATER, 'jax', 'flax', 'optax', 'orbax', 'ml_collections', 'absl', 'rich', 'tokenizers'],
    ),
    ('gpt_jax.config, gpt_jax.train, gpt_jax.trained, gpt_jax.interop.huggingface, launch', LATER),
  ],
  ids=['the core', 'data, tokenizers and runs', 'everything'],
)
def test_imports_pull_nothing_heavy(modules, blocked):
  code = BLOCKED.format(blocked=blocked, modules=modules)
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------ rules of the house

NNX = {'Module', 'Param', 'List', 'Variable'}  # modules as plain pytrees, and no more of flax


def attributes(tree, name):
  """What is taken from a module of this name."""
  return {
    node.attr
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id == name
  }


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_keep_the_rules(path):
  source = path.read_text()
  tree = ast.parse(source)
  assert ast.get_docstring(tree), 'a module says what it is for'
  assert len(source.splitlines()) <= 480, 'two ideas in one file'
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      assert node.end_lineno - node.lineno < 65, f'{node.name} is long'
  assert not re.search(r'noqa|type: ignore|pylint|TODO|FIXME|XXX', source)
  if group_of(path) == 'model':
    assert attributes(tree, 'nnx') <= NNX
  assert not attributes(tree, 'jax') & {'pmap'}
