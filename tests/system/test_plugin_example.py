"""The plugin of docs/code.md: ablated, killed, resumed, sampled, evaluated; its export is refused."""

import re
import signal
import time

import pytest

from gpt_jax.runs import plugins, records
from tests import command_line, tiny_runs

STEPS = 300
CHANGES = f"{{'train.steps': {STEPS}, 'layers': 1, 'checkpoint.every': 20, 'eval_every': 100}}"


def example():
  """The Python files of that section: (plugin, study)."""
  text = (command_line.ROOT / 'docs/code.md').read_text()
  section = text[text.index('### Without touching the package') :]
  return re.findall(r'```python\n(.*?)```', section, re.DOTALL)[:2]


def test_the_plugin_has_at_most_25_lines():
  plugin, study = example()
  assert len(plugin.splitlines()) <= 25
  assert "'plugins': ('mine.py',)" in study


@pytest.mark.slow
def test_the_example_from_ablation_to_export(tmp_path):
  plugin, study = example()
  (tmp_path / 'mine.py').write_text(plugin)
  base = command_line.experiment(tmp_path)
  study = study.replace('experiments/text.py:path=book.txt', str(base)).replace(
    'mine.py', f'{tmp_path}/mine.py'
  )
  study = study.replace('seeds=3', f'seeds=1, changes={CHANGES}')
  (tmp_path / 'mine_study.py').write_text(study)
  options = {'folder': tmp_path, 'env': {plugins.STORE: str(tmp_path / 'store')}}
  ablate = ('ablate', f'--config={tmp_path}/mine_study.py', f'--workdir={tmp_path}/study', '--workers=1')
  run = tmp_path / 'study' / 'runs' / 'scheme=log_distance' / 'seed0'

  process = command_line.start(*ablate, **options)
  while not list((run / 'checkpoints').glob('*0')) and process.poll() is None:
    time.sleep(0.1)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  code, output = command_line.launch(*ablate, **options)
  assert code == 0, output
  assert [event['event'] for event in records.read_lines(run / 'events.jsonl')].count('resume') >= 1
  assert records.read_json(run / 'result.json')['steps'] == STEPS

  (tmp_path / 'mine.py').unlink()  # the run has its own
  workdir = f'--workdir={run}'
  code, output = command_line.launch('sample', workdir, '--prompt=a', **options)
  assert code == 0, output
  code, output = command_line.launch('evaluate', workdir, **options)
  assert code == 0 and 'nats_per_token' in output, output
  code, output = command_line.launch('export', workdir, f'--out={tmp_path}/out', **options)
  assert code == 2 and not (tmp_path / 'out').exists()
  tiny_runs.assert_two_lines(output.strip(), "model.positions='log_distance'", 'cannot be exported')

  elsewhere = options | {'env': {plugins.STORE: str(tmp_path / 'of another machine')}}
  code, output = command_line.launch('sample', workdir, '--prompt=a', **elsewhere)
  assert code == 2
  tiny_runs.assert_two_lines(output.strip(), 'mine.py', 'has not run')
  code, output = command_line.launch('sample', workdir, '--prompt=a', '--trust_plugins', **elsewhere)
  assert code == 0, output
