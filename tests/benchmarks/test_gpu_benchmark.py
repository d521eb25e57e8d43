"""The GPU benchmark with small models on this machine."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks import gpu, gpu_rows

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_every_row_runs(tmp_path):
  out = tmp_path / 'gpu.json'
  command = [sys.executable, '-m', 'benchmarks.gpu', '--tiny', '--minutes=60', f'--out={out}']
  environment = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  rows = json.loads(out.read_text())['rows']
  peers = {'torch': 'torch', 'transformers': 'transformers'}
  missing = [name for name in peers if importlib.util.find_spec(name) is None]
  for name, row in rows.items():
    if not missing or name.split()[0] not in peers:
      assert 'error' not in row, (name, row['error'])
  assert rows['train 124M']['tokens_per_second'] > 0
  assert rows['start 124M again']['first_step_seconds'] > 0
  assert '| variant' not in done.stdout.split('| what')[0]  # the table comes last


def test_the_settings_without_the_config_library_build_a_program(monkeypatch):
  monkeypatch.setattr(jax.sharding, 'set_mesh', lambda mesh: None)
  program, _ = gpu_rows.build_program(gpu_rows.model_config('tiny'), 2)
  assert program.abstract.frozen is None


def test_the_table_shows_met_missed_and_missing_goals():
  row = lambda value, **more: {'tokens_per_second': value, 'of': ''} | more
  rows = {
    'train 124M': row(500e3, palm_mfu=0.43, causal_mfu=0.40),
    'batch 96': row(560e3) | {'of': 'train 124M'},
    'torch train 124M': row(550e3),
    'train 1558M': {'error': 'ended with code 1: out of memory', 'of': ''},
  }
  text = gpu.table(rows)
  assert '| 124M, T=1024 | 5.6e+05 tokens/s | 5.5e+05 | met | batch 96 |' in text
  assert '| 124M against torch.compile | 1.018 x | 1.05 | below | batch 96 / torch train' in text
  assert '| 1558M, T=1024 | ended with code 1: out of memory |' in text
  assert '| batch 96 | train 124M | 560,000 | +12.0% |' in text
  assert '| train 124M |  | 500,000 |  | 43.0% | 40.0% |' in text


def test_a_failed_or_hanging_process_costs_one_row(tmp_path):
  jobs = [
    gpu.Job('broken', 'no such worker', {}, 60),
    gpu.Job('slow', 'probe', dict(size='tiny', seconds=1e9), 20),
  ]
  rows = gpu.measure(jobs[:1], 1, tmp_path / 'gpu.json')
  assert 'KeyError' in rows['broken']['error']
  assert json.loads((tmp_path / 'gpu.json').read_text())['rows']['broken'] == rows['broken']
  skipped = gpu.measure(jobs[1:], 0.1, tmp_path / 'gpu.json')
  assert skipped['slow']['error'] == 'skipped: no time left'


def test_old_rows_stay_unless_the_device_changed(tmp_path, monkeypatch):
  out = tmp_path / 'gpu.json'
  probes = iter(['H100', 'H100', 'H200'])
  fake_run = lambda job, *_: {'device': next(probes)} if job.name == 'probe' else {'n': 1}
  monkeypatch.setattr(gpu, 'run', fake_run)
  probe, other = gpu.Job('probe', 'probe', {}, 1), gpu.Job('other', 'train', {}, 1)
  gpu.measure([probe, other], 1, out)
  assert gpu.measure([probe], 1, out)['other']['made']['command']
  assert list(gpu.measure([probe], 1, out)) == ['probe']


def test_tiny_rows_do_not_replace_results(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['gpu', '--tiny'])
  with pytest.raises(SystemExit):
    gpu.main()
  assert 'add --out=FILE' in capsys.readouterr().err
