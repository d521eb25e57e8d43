"""Import layers, allowed libraries, the reading path, and rules for every source file."""

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

# Groups that every group may import; they import no others.
FOUNDATION = (
  'cluster.meshes',
  'cluster.processes',
  'cluster.sharding_table',
  'runs.digests',
  'runs.hardware',
  'runs.loggers',
  'runs.metric_names',
  'runs.plugin_checks',
  'runs.plugins',
  'runs.progress',
  'runs.reading',
  'runs.records',
  'runs.secrets',
  'runs.startup_timer',
  'runs.text_table',
  'runs.user_code',
)

# Group of modules -> the groups that it may import. A group is a room, or a module whose layer differs from
# its room's: the longest prefix counts. A group may import only groups above it, so there are no cycles.
MAY_IMPORT = {
  'sharding': '',
  'cluster.batches': 'sharding',
  'model': 'sharding',
  'interop.tensors': '',
  'interop.weight_files': 'interop.tensors model',
  'interop.encoders': 'interop.tensors interop.weight_files model',
  'interop.codecs': 'interop.weight_files',
  'losses': 'model',
  'optimizers': '',
  'optim': 'optimizers',
  'tokenizers': 'interop.codecs interop.encoders losses model',
  'data': 'model tokenizers',
  'training.loss_guard': '',
  'step': 'losses model optim sharding training.loss_guard',
  'sampling.samplers': '',
  'sampling.validate': 'sampling.samplers',
  'sampling.prompt_batch': 'model tokenizers',
  'runs': '',
  'reports': 'runs',
  'cluster': '',
  'training': 'cluster cluster.batches interop.encoders model optim reports runs sharding step '
  'training.loss_guard',
  'sample': 'model sampling.prompt_batch sampling.samplers sampling.validate tokenizers',
  'sampling': 'data model sample sampling.prompt_batch sampling.samplers sampling.validate tokenizers',
  'evaluation': 'cluster.batches data losses model sample sampling sampling.prompt_batch '
  'sampling.validate sharding tokenizers',
  'jobs': 'cluster.batches data evaluation losses model runs sample sampling sampling.prompt_batch '
  'sampling.samplers step tokenizers training',
  'train': 'jobs sharding training training.loss_guard',
  'config': 'data jobs losses model optim runs sample sharding tokenizers train training',
  'cli.experiment_file': 'config data tokenizers',
  'evaluation.trained': 'config data evaluation jobs losses model runs sampling sampling.validate sharding '
  'tokenizers training',
  'evaluation.score_documents': 'evaluation evaluation.trained',
  'plan': 'cluster.batches data jobs model sample sampling sampling.prompt_batch sampling.validate sharding '
  'step tokenizers training',
  'ablation': 'cli.experiment_file cluster.batches config data evaluation jobs model runs sharding step '
  'train training',
  'reports.study_results': 'ablation runs',
  'reports.study_figures': 'reports reports.study_results',
  'reports.study_tables': 'reports reports.study_results',
  'reports.study_costs': 'reports reports.study_figures reports.study_results reports.study_tables',
  'reports.study_report': 'ablation reports reports.study_costs reports.study_figures reports.study_results '
  'reports.study_tables runs',
  'reports.paper': 'reports reports.study_costs reports.study_figures reports.study_results '
  'reports.study_tables runs',
  'ablation.execute': 'ablation cluster.batches config jobs reports.study_report runs sharding step '
  'train training',
  'interop': 'cluster config evaluation.trained interop.encoders interop.tensors interop.weight_files model '
  'runs sample sharding step tokenizers train training',
  'reports.compare': 'ablation cluster.batches config data evaluation evaluation.trained losses model '
  'reports training',
  'workbench': '',
  'workbench.lab': 'ablation config data evaluation evaluation.trained losses model reports reports.compare '
  'reports.study_report '
  'reports.study_results runs sampling sampling.prompt_batch sampling.validate tokenizers training',
  'workbench.serving': 'data model sample sampling sampling.prompt_batch sampling.samplers sampling.validate '
  'tokenizers',
  'cli': 'ablation ablation.execute cli.experiment_file cluster cluster.batches config data evaluation '
  'evaluation.trained interop model plan reports reports.compare reports.paper runs sample sampling '
  'sampling.validate sharding step tokenizers train workbench.lab '
  'workbench.serving',
  'experiments': 'ablation config data model',
  'launch': 'cli',
}

# Library -> the groups that may import it. jax and numpy may be imported everywhere.
LIBRARIES = {
  'flax': ['model', 'tokenizers.learned', 'training.probes', 'training.trees'],
  'optax': ['evaluation.judges', 'optim', 'optimizers'],
  'orbax': ['training.checkpoint', 'training.checkpoint_writer'],
  'grain': ['data'],
  'tensorflow_datasets': ['data'],
  'ml_collections': ['config', 'cli'],
  'absl': ['cli', 'data'],  # data: Grain's worker processes read absl flags
  'matplotlib': ['reports.figures'],
  'rich': ['runs.loggers', 'runs.text_table'],
  **{name: ['runs.trackers'] for name in ('tensorboardX', 'wandb', 'mlflow', 'trackio')},
  'optuna': ['ablation'],
  'psutil': ['ablation.execute.replicas'],
  'tokenizers': ['tokenizers', 'interop'],
  'sentencepiece': ['interop', 'tokenizers'],
  'PIL': ['data', 'runs.trackers'],
  'soundfile': ['data'],
  'scipy': ['ablation', 'data', 'evaluation', 'tokenizers', 'training.privacy'],
  'sklearn': ['data', 'evaluation'],
  'safetensors': ['interop', 'tokenizers'],
  'sacrebleu': ['evaluation.text_metrics'],
  'rouge_score': ['evaluation.text_metrics'],
  'lm_eval': ['evaluation.harness'],
  'dp_accounting': ['training.privacy'],
  'huggingface_hub': ['interop'],
  'gguf': ['interop'],
  'fsspec': ['data'],
  'pyarrow': ['data'],
  'datasets': ['data'],
  'jinja2': ['tokenizers'],
  'rensa': ['data.clean'],
  'py3langid': ['data.clean'],
  'presidio_analyzer': ['data.clean'],
  'starlette': ['workbench'],
  'uvicorn': ['workbench'],
}
TOP_LEVEL = (
  'flax',
  'optax',
  'orbax',
  'ml_collections',
  'matplotlib',
  'safetensors',
)  # may be imported at the top of a file
# Optional dependencies.
OPTIONAL = ('wandb', 'optuna', 'huggingface_hub', 'gguf', 'fsspec', 'sacrebleu', 'rouge_score')
OPTIONAL += ('dp_accounting', 'pyarrow', 'datasets', 'lm_eval', 'rensa', 'py3langid', 'presidio_analyzer')
OPTIONAL += ('starlette', 'uvicorn', 'mlflow', 'trackio')
EVERYWHERE = ('jax', 'numpy')


def group_of(name):
  """Group of a module: 'gpt_jax.model.gpt.GPT' -> model, 'gpt_jax.runs.records' -> runs.records."""
  name = name.removeprefix('gpt_jax.')
  parts = name.split('.')
  prefixes = ('.'.join(parts[:n]) for n in range(len(parts), 0, -1))
  return next((prefix for prefix in prefixes if prefix in (*FOUNDATION, *MAY_IMPORT)), parts[0])


def module_of(path):
  """Module name of a path: gpt_jax/model/gpt.py -> gpt_jax.model.gpt."""
  return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


@functools.cache
def imports():
  """List (path, group, imported module, whether at the top of the file) of all imports."""
  rows = []
  for path in SOURCES:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f'{path}: relative import'
        own = node.module.startswith('gpt_jax')
        names = [f'{node.module}.{a.name}' for a in node.names] if own else [node.module]
      else:
        continue
      rows += [(path, group_of(module_of(path)), name, node in tree.body) for name in names]
  return rows


def libraries():
  """Yield imports of neither this project nor the standard library."""
  own = ('gpt_jax', 'experiments')
  for path, group, name, at_top in imports():
    library = name.partition('.')[0]
    if library not in own and library not in sys.stdlib_module_names:
      yield path.relative_to(ROOT), group, library, at_top


def test_every_group_is_in_the_table():
  modules = {group_of(module_of(path)) for path in SOURCES} - {'gpt_jax'}
  assert modules == {*FOUNDATION, *MAY_IMPORT}, 'add the group to MAY_IMPORT, above its importers'


def test_imports_go_down():
  wrong = []
  for path, group, name, _ in imports():
    used = group_of(name) if name.startswith('gpt_jax.') else group
    if used not in (group, *FOUNDATION, *MAY_IMPORT.get(group, '').split()):
      wrong.append(f'{path.relative_to(ROOT)} ({group}) imports {name} ({used})')
  assert not wrong, '\n'.join(wrong)


def test_the_table_has_no_cycle():
  below = set()
  for group, allowed in MAY_IMPORT.items():
    assert set(allowed.split()) <= below, f'{group} is listed above a group that it imports'
    below.add(group)


def test_the_table_has_no_unused_entry():
  used = {group: set() for group in MAY_IMPORT}
  for _, group, name, _ in imports():
    if name.startswith('gpt_jax.') and group in used:  # FOUNDATION is not in `used`
      used[group].add(group_of(name))
  unused = {group: set(allowed.split()) - used[group] for group, allowed in MAY_IMPORT.items()}
  assert not {group: names for group, names in unused.items() if names}


def test_libraries_are_imported_only_by_their_groups():
  wrong = []
  for path, _, library, _ in libraries():
    module = module_of(ROOT / path).removeprefix('gpt_jax.') + '.'
    allowed = library in EVERYWHERE or any(module.startswith(f'{p}.') for p in LIBRARIES.get(library, ()))
    wrong += [] if allowed else [f'{path} imports {library}']
  assert not wrong


def test_heavy_libraries_are_imported_where_they_are_used():
  """Only TOP_LEVEL libraries may be imported at the top of a file."""
  wrong = [
    f'{path} imports {library} at its top'
    for path, group, library, at_top in libraries()
    if at_top and library not in (*EVERYWHERE, *TOP_LEVEL) and group != 'cli'
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


@pytest.mark.parametrize('path', sorted((ROOT / 'tests').rglob('test_*.py')), ids=lambda path: path.stem)
def test_a_test_that_uses_torch_is_skipped_without_it(path):
  """`import torch` in a test fails where the peers are not installed, unless the fixture `hf` skipped it."""
  functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
  takes = {function.name: {argument.arg for argument in function.args.args} for function in functions}
  skips = {'hf', *(name for name, arguments in takes.items() if 'hf' in arguments)}
  for function in functions:
    imports = [node for node in ast.walk(function) if isinstance(node, ast.Import)]
    imported = {name.name for node in imports for name in node.names}
    if function.name.startswith('test_') and imported & {'torch', 'transformers', 'peft'}:
      assert takes[function.name] & skips, function.name


# --------------------------------------------------------------------------- transitive imports

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
  'torch',
  'tensorflow',
  'transformers',
  'gguf',
  'dp_accounting',
  'wandb',
  'mlflow',
  'trackio',
  'clu',
  'huggingface_hub',
  'sacrebleu',
  'rouge_score',
  'optuna',
  'pyarrow',
  'datasets',
  'lm_eval',
  'rensa',
  'py3langid',
  'presidio_analyzer',
  'starlette',
  'uvicorn',
]
LATER = [*NEVER, 'grain', 'tensorflow_datasets', 'matplotlib', 'tensorboardX', 'sentencepiece']


@pytest.mark.parametrize(
  ('modules', 'blocked'),
  [
    # absl is missing here because flax and optax import it.
    (
      'gpt_jax.model.gpt, gpt_jax.optim, gpt_jax.losses, gpt_jax.sharding, gpt_jax.sample, '
      'gpt_jax.sampling.beam, gpt_jax.step, gpt_jax.runs.hardware, benchmarks.gpu, benchmarks.gpu_rows',
      [*LATER, 'ml_collections', 'orbax', 'tokenizers', 'safetensors'],
    ),
    (
      'gpt_jax.data, gpt_jax.tokenizers, gpt_jax.runs, gpt_jax.runs.records',
      [*LATER, 'jax', 'flax', 'optax', 'orbax', 'ml_collections', 'absl', 'rich', 'tokenizers'],
    ),
    ('gpt_jax.config, gpt_jax.train, gpt_jax.evaluation.trained, gpt_jax.interop.huggingface, launch', LATER),
  ],
  ids=['the core', 'data, tokenizers and runs', 'everything'],
)
def test_imports_do_not_load_heavy_libraries(modules, blocked):
  code = BLOCKED.format(blocked=blocked, modules=modules)
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------ rules for files

READING_PATH = [
  *(['config', 'sharding', 'losses', 'optim', 'step', 'train', 'sample']),
  *(f'model/{name}' for name in ('config', 'layers', 'attention', 'mask', 'positions', 'gpt')),
]


def test_the_top_of_the_package_is_the_reading_path():
  top = {path.stem for path in ROOT.glob('gpt_jax/*.py')} - {'__init__'}
  assert top == {name for name in READING_PATH if '/' not in name}


def test_the_reading_path_is_type_checked():
  files = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['mypy']['files']
  assert files == [f'gpt_jax/{name}.py' for name in READING_PATH]


def test_the_reading_path_has_at_most_2000_lines():
  lines = {name: len((ROOT / f'gpt_jax/{name}.py').read_text().splitlines()) for name in READING_PATH}
  assert sum(lines.values()) <= 2000, f'{sum(lines.values())} lines: {lines}'


NNX = {'Module', 'Param', 'List', 'Variable'}  # the only names of flax.nnx in use


def attributes(tree, name):
  """Attributes that a file uses of the module `name`."""
  return {
    node.attr
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
  }


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_follow_the_rules(path):
  source = path.read_text()
  tree = ast.parse(source)
  assert ast.get_docstring(tree), 'the module has no docstring'
  assert len(source.splitlines()) <= 400, 'a file of more than 400 lines is two ideas: split it'
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      assert node.end_lineno - node.lineno < 65, f'{node.name} has more than 65 lines'
  assert not re.search(r'noqa|type: ignore|pylint|TODO|FIXME|XXX', source)
  if group_of(module_of(path)) == 'model':
    assert attributes(tree, 'nnx') <= NNX
  assert not attributes(tree, 'jax') & {'pmap'}
