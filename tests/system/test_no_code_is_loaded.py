"""Nothing that is read can run: no pickle, no eval, in any line of ours; and no secret is kept."""

import ast
import json

import pytest

from gpt_jax.runs import provenance, run_folder
from tests import command_line, tiny_runs

SOURCES = [command_line.ROOT / 'launch.py', *sorted(command_line.ROOT.glob('gpt_jax/**/*.py'))]
SOURCES += sorted(command_line.ROOT.glob('experiments/**/*.py'))
MODULES = {'pickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib', 'torch'}
CALLS = {'eval', 'exec', 'compile', '__import__', 'execfile'}  # of Python itself
METHODS = {  # of modules: what loads code, or can
  ('yaml', 'load'),
  ('yaml', 'unsafe_load'),
  ('yaml', 'full_load'),
  ('torch', 'load'),
  ('pd', 'read_pickle'),
  ('pandas', 'read_pickle'),
  ('os', 'system'),
  ('os', 'popen'),
}


def findings(source):
  """What is banned in a source, as lines of text."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
      yield from (name for name in names if name.partition('.')[0] in MODULES)
    if not isinstance(node, ast.Call):
      continue
    if isinstance(node.func, ast.Name) and node.func.id in CALLS:
      yield node.func.id
    if isinstance(node.func, ast.Attribute):
      owner = node.func.value
      if isinstance(owner, ast.Name) and (owner.id, node.func.attr) in METHODS:
        yield f'{owner.id}.{node.func.attr}'
      if node.func.attr in ('extractall', 'extract'):  # paths in archives lead anywhere
        yield node.func.attr
    for word in node.keywords:
      allowed = isinstance(word.value, ast.Constant) and word.value.value is False
      if word.arg in ('allow_pickle', 'shell', 'trust_remote_code') and not allowed:
        yield word.arg


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(command_line.ROOT)))
def test_no_line_can_run_what_is_read(path):
  assert list(findings(path.read_text())) == []


@pytest.mark.parametrize(
  'line',
  [
    'import pickle',
    'from marshal import loads',
    'import joblib.numpy_pickle',
    'eval(x)',
    'exec(x)',
    'np.load(f, allow_pickle=True)',
    'np.load(f, allow_pickle=flag)',
    'yaml.load(f)',
    'archive.extractall()',
    'archive.extract(member)',
    'subprocess.run(x, shell=True)',
    '__import__(name)',
    'def f():\n  from torch import load',
  ],
)
def test_each_of_these_would_be_found(line):
  assert list(findings(line))


# ------------------------------------------------------------------------------------------ secrets

CANARY = 'hf_canary0123456789'


@pytest.mark.parametrize(
  'changes',
  [
    {'log': {'wandb': CANARY}},
    {'log': {'api_key': 'abc'}},
    {'hf_token': 'abc'},
    {'data': {'mixture': {'a': {'path': f'https://me:{CANARY}@example.org/x'}}}},
    {'data': {'mixture': {'a': {'password': 'abc'}}}},
    {'train': {'sample_prompts': ['a', 'sk-abcdefghijklmnop']}},
    {'log': {'client_secret': 'x'}},
  ],
  ids=str,
)
def test_a_config_with_a_secret_is_refused(tmp_path, changes):
  with pytest.raises(ValueError) as error:
    run_folder.check_workdir(tmp_path / 'run', changes)
  tiny_runs.assert_two_lines(error.value, 'config.', 'holds a secret')
  assert 'canary' not in str(error.value) and 'abc' not in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('keys', [{'hf_token': ''}, {'max_new_tokens': 64}, {'eos_token': 'x'}])
def test_a_config_without_one_is_not(tmp_path, keys):
  assert run_folder.check_workdir(tmp_path / 'run', keys) == 'new'


def test_every_default_is_without_one(tmp_path):
  assert run_folder.check_workdir(tmp_path / 'run', tiny_runs.section().to_dict()) == 'new'


def test_nothing_of_the_environment_is_written(tmp_path_factory, tmp_path, monkeypatch):
  """A canary in every likely variable, and in the words of the command, is in no file of a run."""
  for name in ('HF_TOKEN', 'WANDB_API_KEY', 'AWS_SECRET_ACCESS_KEY', 'SOMETHING_ELSE', 'JAX_NOTE'):
    monkeypatch.setenv(name, CANARY)
  monkeypatch.setattr(provenance.sys, 'orig_argv', ['python', 'launch.py', f'--hf_token={CANARY}'])
  with tiny_runs.compiled_programs(tmp_path_factory):
    tiny_runs.train.train(tiny_runs.experiment(train__steps=4), tmp_path / 'run')
  files = [path for path in (tmp_path / 'run').rglob('*') if path.is_file()]
  assert len(files) > 10
  for path in files:
    assert CANARY.encode() not in path.read_bytes(), path
  start = json.loads((tmp_path / 'run' / 'events.jsonl').read_text().splitlines()[0])
  assert '--hf_token=[redacted: Hugging Face token]' in start['versions']['command']
