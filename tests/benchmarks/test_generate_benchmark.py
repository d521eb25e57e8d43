"""The sides of the generation benchmark make the same text: what is timed is the same work."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

CODE = """
import json, sys
from benchmarks import generate
folder = sys.argv[1]
generate.export('tiny', folder)
for name, options in {'gpt_jax': dict(maker='ours'), **generate.PEERS}.items():
  maker = getattr(generate, options['maker'])
  more = {k: v for k, v in options.items() if k != 'maker'}
  run = maker(folder, 2, top_k=0, new=12, **more)
  print('FOUND', json.dumps([name, run()]), flush=True)
"""


@pytest.mark.slow
def test_all_sides_make_the_same_greedy_text(tmp_path):
  for name in ('torch', 'transformers', 'ctranslate2'):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f'{name} is not installed')
  environment = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', CODE, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  lines = [line for line in done.stdout.splitlines() if line.startswith('FOUND ')]
  found = dict(json.loads(line.removeprefix('FOUND ')) for line in lines)
  assert len(found) == 5
  assert [len(ids) for ids in found['gpt_jax']] == [12, 12]
  assert all(ids == found['gpt_jax'] for ids in found.values()), found
