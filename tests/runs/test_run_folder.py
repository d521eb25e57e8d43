"""The run folder: starting, resuming, errors, reading, and secrets that must not be stored."""

import functools
import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.runs import loggers, provenance, records, run_folder

CONFIG = {
  'seed': 1,
  'optim': {'lr': 1e-3, 'betas': (0.9, 0.95)},
  'mesh': {'data': 1},
  'data': {'workers': 0, 'mixture': {'text': {'weight': 1.0}}},
}
FREE = ('mesh.', 'log.', 'data.workers')


def open_run(workdir, config=CONFIG, **keywords):
  keywords = {'log': loggers.LogConfig(), 'total_steps': 100, 'free': FREE} | keywords
  return run_folder.acquire_run_dir(workdir, config, **keywords)


def replaced(**sections):
  return {**CONFIG, **{name: {**CONFIG[name], **values} for name, values in sections.items()}}


def assert_two_lines(error, *parts):
  first, second = str(error.value).split('\n')
  assert second.startswith('fix: ')
  for part in parts:
    assert part in first


def names(workdir):
  return [event['event'] for event in run_folder.read_events(workdir)]


# --- starting and resuming


def test_a_run_writes_the_whole_folder(tmp_path, capsys):
  workdir = tmp_path / 'deep' / 'run'
  assert run_folder.check_workdir(workdir, CONFIG) == 'new'
  assert not workdir.exists()
  with open_run(workdir, versions=provenance.versions('1 x CPU')) as run:
    run.log(0, {'loss': jnp.float32(4.5), 'tokens': np.int64(64), 'tokens_per_second': 1000.0})
    run.log(10, {'valid_loss': 4.25})
    run.log(10, {'loss': 4.0, 'tokens_per_second': 2000.0, 'memory_gib': 0.5})
    run.event('checkpoint', step=10)
    run.write_sample(10, 'To be')
    run.write_sample(10, b'\x89PNG', name='digit', suffix='.png')
    run.write_result({'step': 10, 'valid_loss': 4.25, 'by': (1, 2)})
    run.print('saved', 3)
    run.event('done', step=10)
  left_out = ('.lock', 'uncommitted.diff')  # the latter depends on this checkout
  assert sorted(path.name for path in workdir.iterdir() if path.name not in left_out) == [
    'config.json',
    'events.jsonl',
    'metrics.jsonl',
    'result.json',
    'samples',
  ]
  assert run_folder.read_config(workdir)['optim'] == {'lr': 1e-3, 'betas': [0.9, 0.95]}
  first, second = run_folder.read_metrics(workdir)
  assert first.pop('time') <= second.pop('time')
  assert first == {'step': 0, 'loss': 4.5, 'tokens': 64, 'tokens_per_second': 1000.0}
  assert second['loss'] == 4.0
  assert second['valid_loss'] == 4.25
  assert run_folder.read_result(workdir) == {'step': 10, 'valid_loss': 4.25, 'by': [1, 2]}
  assert (workdir / 'samples' / 'step_00000010.txt').read_text() == 'To be'
  assert (workdir / 'samples' / 'step_00000010_digit.png').read_bytes() == b'\x89PNG'
  assert names(workdir) == ['start', 'checkpoint', 'sample', 'sample', 'done']
  start = run_folder.read_events(workdir)[0]
  assert start['time'].endswith('Z')
  assert start['versions']['device'] == '1 x CPU'
  assert start['total_steps'] == 100
  out = [line for line in capsys.readouterr().out.splitlines() if 'uncommitted.diff' not in line]
  assert out[0] == 'step 0/100    loss 4.500   tokens/s 1k      eta -'
  assert 'step 10/100   valid_loss 4.250' in out
  assert out[-1] == 'saved 3'
  assert 'sample after 10 steps: To be' in out


def test_resume_drops_later_steps_and_repairs_a_torn_line(tmp_path):
  with open_run(tmp_path) as run:
    for step in range(0, 50, 10):
      run.log(step, {'loss': float(step)})
  with open(tmp_path / 'metrics.jsonl', 'ab') as file:
    file.write(b'{"step": 50, "lo')
  with open(tmp_path / 'events.jsonl', 'ab') as file:
    file.write(b'{"time": "2')
  assert run_folder.check_workdir(tmp_path, CONFIG) == 'resume'
  with open_run(tmp_path, resume_step=30) as run:
    assert [line['step'] for line in run_folder.read_metrics(tmp_path)] == [0, 10, 20, 30]
    for step in range(30, 60, 10):
      run.log(step, {'loss': -1.0})
  assert [line['step'] for line in run_folder.read_metrics(tmp_path)] == [0, 10, 20, 30, 40, 50]
  assert [line['loss'] for line in run_folder.read_metrics(tmp_path)][2:4] == [20.0, -1.0]
  event = run_folder.read_events(tmp_path)[-1]
  assert event['event'] == 'resume'
  assert event['step'] == 30
  assert event['dropped_lines'] == {'unreadable': 2, 'rewound': 1}
  assert 'changed' not in event


def test_not_a_number_is_valid_json_and_comes_back(tmp_path):
  with open_run(tmp_path) as run:
    run.log(0, {'loss': float('nan'), 'grad_norm': jnp.float32(jnp.inf), 'x': -np.inf})
    run.write_result({'loss': float('nan')})
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert '"loss": "NaN", "grad_norm": "Infinity", "x": "-Infinity"' in text
  json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
  (line,) = run_folder.read_metrics(tmp_path)
  assert math.isnan(line['loss'])
  assert (line['grad_norm'], line['x']) == (math.inf, -math.inf)
  assert math.isnan(run_folder.read_result(tmp_path)['loss'])


def test_an_infinite_setting_does_not_block_its_own_resume(tmp_path):
  config = {'clip': float('inf'), 'floor': float('nan')}
  open_run(tmp_path, config).close()
  assert run_folder.check_workdir(tmp_path, config) == 'resume'
  assert run_folder.read_config(tmp_path)['clip'] == math.inf


def test_other_processes_do_nothing(tmp_path, capsys):
  workdir = tmp_path / 'run'
  with open_run(workdir, primary=False) as run:
    run.log(0, {'loss': 1.0})
    run.event('checkpoint')
    run.write_sample(0, 'text')
    run.write_result({})
    run.print('hello')
  assert not workdir.exists()
  assert capsys.readouterr().out == ''


def test_a_metric_is_one_number(tmp_path):
  with open_run(tmp_path) as run, pytest.raises(TypeError, match="metrics\\['loss'\\]"):
    run.log(0, {'loss': 'low'})


# --- how it ends


def test_an_error_is_an_event_without_its_secrets(tmp_path):
  with pytest.raises(RuntimeError), open_run(tmp_path):
    raise RuntimeError('https://me:hunter2@host says no\nsecond line')
  event = run_folder.read_events(tmp_path)[-1]
  assert event['event'] == 'error'
  assert event['type'] == 'RuntimeError'
  assert event['message'] == 'https://[redacted: password in a URL]@host says no'


def test_an_exit_code_is_not_an_error(tmp_path):
  with pytest.raises(SystemExit), open_run(tmp_path) as run:
    run.event('preempted', step=5)
    sys.exit(75)
  assert names(tmp_path) == ['start', 'preempted']
  open_run(tmp_path).close()  # the lock is free again


def test_two_trainings_cannot_share_a_folder(tmp_path):
  with open_run(tmp_path), pytest.raises(ValueError, match='is being written') as error:
    open_run(tmp_path)
  assert_two_lines(error, f'workdir={tmp_path}', f'process {os.getpid()} on ')
  assert names(tmp_path) == ['start']


# --- errors


def test_a_file_is_not_a_workdir(tmp_path):
  (tmp_path / 'file').write_text('')
  for workdir in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(ValueError, match='is a file') as error:
      open_run(workdir)
    assert_two_lines(error, f'workdir={workdir}', str(tmp_path / 'file'))


def test_a_folder_without_permission_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  with pytest.raises(ValueError, match='no permission') as error:
    open_run(tmp_path / 'run')
  assert_two_lines(error, f'no permission to write in {tmp_path}')


def test_a_read_only_disk_is_an_error(tmp_path, monkeypatch):
  def read_only(*_, **__):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(pathlib.Path, 'mkdir', read_only)
  with pytest.raises(ValueError, match='Read-only') as error:
    open_run(tmp_path / 'run')
  assert_two_lines(error, 'cannot be written: Read-only file system')


@pytest.mark.parametrize('workdir', ['gs://bucket/run', 's3://bucket/run', ''])
def test_a_bucket_is_not_a_workdir(workdir):
  with pytest.raises(ValueError, match='not a folder of this machine') as error:
    run_folder.check_workdir(workdir, CONFIG)
  assert_two_lines(error, f"workdir='{workdir}'")


def test_a_folder_with_unexpected_files_is_an_error(tmp_path):
  for name in 'abcdefg':
    (tmp_path / f'{name}.txt').write_text('')
  with pytest.raises(ValueError, match='not a run') as error:
    open_run(tmp_path)
  assert_two_lines(error, 'a.txt, b.txt, c.txt, d.txt, e.txt and 2 more')
  assert len(list(tmp_path.iterdir())) == 7


def test_caches_logs_and_empty_folders_do_not_block_a_new_run(tmp_path):
  (tmp_path / 'cache').mkdir()
  (tmp_path / 'cache' / 'ids').write_text('')
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'slurm-123.out').write_text('')
  (tmp_path / 'arm.json').write_text('{}')
  (tmp_path / '.lock').write_text('')
  assert run_folder.check_workdir(tmp_path, CONFIG) == 'new'
  (tmp_path / 'metrics.jsonl').write_text('{}\n')  # a run that lost its config
  with pytest.raises(ValueError, match='no config.json.*metrics.jsonl'):
    run_folder.check_workdir(tmp_path, CONFIG)


def test_another_config_is_an_error_that_lists_every_difference(tmp_path):
  open_run(tmp_path).close()
  other = {**replaced(optim={'lr': 3e-4, 'betas': (0.9, 0.99)}), 'extra': 'é'}
  del other['seed']
  before = (tmp_path / 'events.jsonl').read_bytes()
  with pytest.raises(ValueError, match='another config') as error:
    open_run(tmp_path, other)
  assert_two_lines(
    error,
    'seed 1 -> absent',
    'optim.lr 0.001 -> 0.0003',
    'optim.betas [0.9, 0.95] -> [0.9, 0.99]',
    'extra absent -> "é"',
  )
  assert (tmp_path / 'events.jsonl').read_bytes() == before


def test_free_keys_may_differ_and_are_recorded(tmp_path):
  open_run(tmp_path).close()
  other = {**replaced(mesh={'data': 4}, data={'workers': 8}), 'log': {'every': 5}}
  open_run(tmp_path, other, resume_step=7).close()
  event = run_folder.read_events(tmp_path)[-1]
  expected = {'mesh.data': [1, 4], 'data.workers': [0, 8], 'log.every': [None, 5]}
  assert event['changed'] == expected
  assert not records.diff(run_folder.read_config(tmp_path), other)  # the config from now on
  with pytest.raises(ValueError, match='data.workers 8 -> 0'):
    run_folder.check_workdir(tmp_path, replaced(), free=('mesh', 'log', 'data.work'))


def test_a_resume_does_not_reset_the_data_again(tmp_path):
  open_run(tmp_path).close()
  open_run(tmp_path, replaced(data={'workers': 8, 'reset': True}), free=('data.',)).close()
  data = run_folder.read_config(tmp_path)['data']
  assert (data['workers'], data['reset']) == (8, False)


def test_a_model_of_transformers_is_not_a_run(tmp_path):
  records.write_json(tmp_path / 'config.json', {'model_type': 'gpt2', 'n_layer': 2})
  with pytest.raises(ValueError) as caught:
    run_folder.read_config(tmp_path, 'train.init_from')
  cause, fix = str(caught.value).split('\n')
  assert cause == f'train.init_from={tmp_path} is a model of transformers, not a run'
  assert fix.startswith(f'fix: launch.py import --source={tmp_path} --workdir=runs/{tmp_path.name},')


def test_a_broken_config_is_named(tmp_path):
  open_run(tmp_path).close()
  (tmp_path / 'config.json').write_text('{"optim": ')
  for attempt in (lambda: open_run(tmp_path), lambda: run_folder.read_config(tmp_path)):
    with pytest.raises(ValueError, match='is not readable') as error:
      attempt()
    assert_two_lines(error, str(tmp_path / 'config.json'))


@pytest.mark.parametrize(
  ('keywords', 'cause'), [({'every': 0}, 'log.every=0'), ({'console': 'loud'}, 'log.console=loud')]
)
def test_log_config_is_checked(keywords, cause):
  with pytest.raises(ValueError, match=cause) as error:
    loggers.LogConfig(**keywords)
  assert_two_lines(error, cause)


# --- loggers


def test_a_missing_logger_stops_the_run_before_it_exists(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ValueError, match='needs the package wandb') as error:
    open_run(tmp_path / 'run', log=loggers.LogConfig(wandb='lab'))
  assert_two_lines(error, 'log.wandb=lab')
  assert run_folder.check_workdir(tmp_path / 'run', CONFIG) == 'new'
  open_run(tmp_path / 'run').close()


def test_samples_cannot_drive_the_terminal_and_are_shortened(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(run_folder, 'MAX_SAMPLE_CHARACTERS', 12)
  with open_run(tmp_path) as run:
    run.write_sample(0, 'ab\x1b[31m\x07\ncdefghijklm')
  out = capsys.readouterr().out
  assert 'ab\\x1b[31m\\x07\ncd' in out
  assert 'efgh' not in out
  assert (tmp_path / 'samples' / 'step_00000000.txt').read_text().endswith('cdefghijklm')


def test_eta_counts_from_the_first_report(tmp_path, capsys, monkeypatch):
  clock = iter((100.0, 110.0, 120.0))
  monkeypatch.setattr(run_folder.time, 'monotonic', lambda: next(clock))
  with open_run(tmp_path, resume_step=20) as run:
    for step in (20, 40, 60):
      run.log(step, {'loss': 1.0})
  etas = [line.split('eta ')[1] for line in capsys.readouterr().out.splitlines()]
  assert etas == ['-', '0:30', '0:20']


def test_auto_console_is_plain_in_a_pipe_and_a_bar_on_a_terminal(tmp_path, monkeypatch):
  opened = []
  for name in loggers.CONSOLES:
    monkeypatch.setitem(
      loggers.CONSOLES, name, lambda *_, name=name: opened.append(name) or loggers.Off(1, 0)
    )
  open_run(tmp_path).close()
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
  monkeypatch.setenv('TERM', 'xterm')
  open_run(tmp_path).close()
  monkeypatch.setenv('TERM', 'dumb')
  open_run(tmp_path).close()
  assert opened == ['plain', 'bar', 'plain']


# --- reading


def test_reading_no_run_lists_the_runs_nearby(tmp_path):
  for name in ('b', 'a'):
    open_run(tmp_path / name).close()
  readers = (run_folder.read_config, run_folder.read_metrics, run_folder.read_events, run_folder.read_result)
  for reader in readers:
    for workdir, state in ((tmp_path / 'c', 'does not exist'), (tmp_path, 'is not a run')):
      with pytest.raises(FileNotFoundError, match=state) as error:
        reader(workdir)
      assert_two_lines(error, f'workdir={workdir}')
      assert str(error.value).endswith(f'fix: give one of {tmp_path / "a"}, {tmp_path / "b"}')


def test_reading_no_run_where_there_are_none(tmp_path):
  with pytest.raises(FileNotFoundError, match='does not exist') as error:
    run_folder.read_metrics(tmp_path / 'x' / 'y')
  assert_two_lines(error, 'does not exist')
  assert 'launch.py train' in str(error.value)


def test_reading_a_run_that_has_just_started(tmp_path):
  with open_run(tmp_path):
    assert run_folder.read_metrics(tmp_path) == []
    assert run_folder.read_result(tmp_path) == {}


# --- versions


def test_versions_name_packages_command_and_device(monkeypatch):
  monkeypatch.setattr(sys, 'orig_argv', ['/usr/bin/python3', 'launch.py', 'train', '--a=b c'])
  recorded = provenance.versions('8 x H100')
  assert recorded['jax'] == __import__('jax').__version__
  assert recorded['numpy'] == np.__version__
  assert recorded['device'] == '8 x H100'
  assert recorded['command'] == "python3 launch.py train '--a=b c'"
  assert all(isinstance(value, str) and value for value in recorded.values())


def test_versions_know_their_commit_and_uncommitted_changes(tmp_path, monkeypatch, capsys):
  def git(*arguments):
    identity = ('-c', 'user.name=a', '-c', 'user.email=a@b')
    command = ('git', '-C', str(tmp_path), *identity, *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

  monkeypatch.setattr(provenance, 'commit_and_diff', functools.cache(provenance.commit_and_diff.__wrapped__))

  def versions():
    provenance.commit_and_diff.cache_clear()  # as in a new process
    return provenance.versions()

  package = tmp_path / 'gpt_jax'
  package.mkdir()
  (package / 'checkout.py').write_text('old\n')
  monkeypatch.setattr(provenance, '__file__', str(package / 'checkout.py'))
  assert 'git' not in versions()  # no checkout
  git('init', '-q')
  assert 'git' not in versions()  # a checkout of something else
  git('add', '.')
  git('commit', '-q', '-m', 'x')
  (tmp_path / 'notes.txt').write_text('not a source')
  clean = versions()
  assert clean['git'] == git('rev-parse', 'HEAD') and 'uncommitted' not in clean
  changed = {
    'gpt_jax/checkout.py': 'new\n',
    'mine.py': "url = 'https://u:p@host/x'\nend",
    'empty.py': '',
    'sub/other.py': 'two\n\nlines \n',
  }
  for name, text in changed.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    git('add', name)
  (tmp_path / 'link.py').symlink_to('/etc/passwd')
  (tmp_path / 'private.py').write_text('private = 1')
  recorded = versions()
  assert recorded['git'] == git('rev-parse', 'HEAD') + ' with uncommitted changes'
  assert recorded['redacted'] == '1 line redacted (1 with password in a URL)'
  open_run(tmp_path / 'run', versions=recorded).close()
  assert 'uncommitted.diff: 1 line redacted (1 with password in a URL)' in capsys.readouterr().out
  content = (tmp_path / 'run/uncommitted.diff').read_bytes()
  assert hashlib.sha256(content).hexdigest().startswith(recorded['uncommitted'])
  assert b'passwd' not in content and b'notes' not in content and b'u:p' not in content
  digest = hashlib.sha256(b'private = 1').hexdigest()
  assert f'not tracked: private.py, 11 bytes, sha256 {digest}\n'.encode() in content
  (package / 'checkout.py').write_text('newer\n')
  assert provenance.versions() == recorded  # the process keeps the versions of its start
  git('reset', '-q', '--hard')
  git('apply', str(tmp_path / 'run/uncommitted.diff'))  # the diff restores the checkout
  changed['mine.py'] = '[redacted: password in a URL]\nend'
  assert {name: (tmp_path / name).read_text() for name in changed} == changed
  (package / 'checkout.py').write_text('a line\n' * (provenance.MAX_DIFF_BYTES // 7))
  git('add', 'sub/other.py')
  resumed = versions()
  open_run(tmp_path / 'run', versions=resumed).close()
  later = (tmp_path / f'run/uncommitted-{resumed["uncommitted"]}.diff').read_text()
  assert 'left out of this diff: gpt_jax/checkout.py, 1,1' in later  # the largest change, not the last one
  assert '+two' in later and 'a line' not in later
  assert (tmp_path / 'run/uncommitted.diff').read_bytes() == content
  monkeypatch.setenv('PATH', '')
  assert 'git' not in versions()


@pytest.mark.parametrize(
  ('args', 'redacted'),
  [
    (
      ['--config.log.wandb_api_key=abc def', 'x'],
      "'--config.log.wandb_api_key=[redacted: password or key]' x",
    ),
    (['--token', 'abc', '--x=1'], "--token '[redacted: password or key]' --x=1"),
    (['--hf-token=abc'], "'--hf-token=[redacted: password or key]'"),
    (['--db_password=abc'], "'--db_password=[redacted: password or key]'"),
    (['--source=hf_abcdefgh12345'], "'--source=[redacted: Hugging Face token]'"),
    (['--to=https://u:p@host/x'], "'--to=https://[redacted: password in a URL]@host/x'"),
    (['--max_new_tokens=5', '--eos_token=2', '--key_dim=3'], ''),
  ],
)
def test_secrets_stay_out_of_the_command(monkeypatch, args, redacted):
  monkeypatch.setattr(sys, 'orig_argv', ['python', *args])
  assert provenance.versions()['command'] == f'python {redacted or " ".join(args)}'


def test_environment_variables_are_not_stored(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_API_KEY', 'sesame-sesame')
  open_run(tmp_path, versions=provenance.versions()).close()
  assert all('sesame' not in path.read_text() for path in tmp_path.iterdir() if path.is_file())
