"""All sides of the generation benchmark generate the same text, so they do the same work."""

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
  print('SIDE', json.dumps([name, run()]), flush=True)
"""


@pytest.mark.slow
def test_all_sides_generate_the_same_greedy_text(tmp_path):
  for name in ('torch', 'transformers', 'ctranslate2'):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f'{name} is not installed')
  environment = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', CODE, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  lines = [line for line in done.stdout.splitlines() if line.startswith('SIDE ')]
  ids_by_side = dict(json.loads(line.removeprefix('SIDE ')) for line in lines)
  assert len(ids_by_side) == 7
  assert all([len(ids) for ids in rows] == [12, 12] for rows in ids_by_side.values())
  exact = {name: rows for name, rows in ids_by_side.items() if 'bfloat16' not in name and 'int8' not in name}
  assert len(exact) == 5 and all(rows == exact['gpt_jax'] for rows in exact.values()), exact
