"""Trackers: the config, curves, samples and verdicts that the real libraries keep, without a network."""

import os
import socket
import sys
import time
import types

import numpy as np
import pytest

from gpt_jax.data import media_io
from gpt_jax.runs import loggers, records, run_folder, trackers
from tests import tiny_runs

CONFIG = {'model': {'layers': 2}, 'optim': {'lr': 0.1}}
VERDICTS = (['arm', 'verdict'], [['base', 'baseline'], ['lr=0.1', 'better']])
SAMPLES = {
  ('text', '.txt'): 'A caf\u00e9 | <b>',
  ('draw', '.png'): media_io.to_png(np.full((4, 6, 3), 90, np.uint8)),
  ('speak', '.wav'): media_io.to_wav(np.sin(np.arange(800) / 9), 8000),
}
# The libraries warn of what they will change.
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
  """No network, and data below the test's folder."""
  for name, value in {
    'WANDB_MODE': 'offline',
    'WANDB_SILENT': 'true',
    'WANDB_ERROR_REPORTING': 'false',
    'WANDB_CACHE_DIR': str(tmp_path / 'cache'),
    'WANDB_CONFIG_DIR': str(tmp_path / 'config'),
    'WANDB_DATA_DIR': str(tmp_path / 'data'),
    'MLFLOW_TRACKING_URI': f'file://{tmp_path}/mlruns',
    'MLFLOW_ALLOW_FILE_STORE': 'true',
    'MLFLOW_DISABLE_TELEMETRY': 'true',
    'TRACKIO_DIR': str(tmp_path / 'trackio'),
    'HF_HUB_OFFLINE': '1',
  }.items():
    monkeypatch.setenv(name, value)
  monkeypatch.chdir(tmp_path)


def run(folder, step=0, **log):
  """Open a run folder with these trackers."""
  log = loggers.LogConfig(console='plain', **log)
  return run_folder.acquire_run_dir(folder, CONFIG, log=log, total_steps=10, resume_step=step)


@pytest.fixture
def two_sessions(tmp_path, capsys):
  """Function that logs a curve and samples, stops, goes on; then verdicts of a study -> events of the run."""

  def write(**log):
    events = write_sessions(tmp_path / 'run', **log)
    assert 'left out' not in capsys.readouterr().out
    return events

  return write


def write_sessions(folder, **log):
  with run(folder, **log) as first:
    first.log(1, {'loss': 2.5, 'loss/image': float('nan')})
    for (name, suffix), content in SAMPLES.items():
      first.write_sample(1, content, name='' if name == 'text' else name, suffix=suffix)
  with run(folder, step=1, **log) as second:
    second.log(2, {'loss': 1.5})
  study = folder.parent / 'study'
  study.mkdir()
  for _ in range(2):  # the second report goes on with the run of the first
    with trackers.of_study(log, study, {'name': 'rates', 'factors': {'lr': [1, 2]}}, print) as opened:
      opened.call('table', 'verdicts', *VERDICTS)
      assert opened.trackers.keys() == log.keys()
  return run_folder.read_events(folder)


def ids(events):
  """The run ids of the sessions."""
  return [event['trackers'] for event in events if 'trackers' in event]


def test_tensorboard(tmp_path, two_sessions):
  tensorboard = pytest.importorskip('tensorboardX')
  two_sessions(tensorboard=True)
  files = sorted((tmp_path / 'run/tensorboard').iterdir(), key=lambda path: path.suffix)
  assert [path.suffix for path in files] == ['.0', '.1']
  values = list(read_events(files[0].read_bytes(), tensorboard.proto.event_pb2.Event))
  tags = {value.tag.removesuffix('/text_summary'): value for value in values}
  assert {'config', 'loss', 'loss/image', 'text', 'draw', 'speak'} <= tags.keys()
  assert tags['loss'].simple_value == 2.5 and tags['draw'].image.width == 6
  assert tags['speak'].audio.sample_rate == 8000
  assert b'caf\xc3\xa9' in tags['text'].tensor.string_val[0]
  [verdicts] = (tmp_path / 'study/tensorboard').glob('*.0')
  assert b'| lr=0.1 | better |' in verdicts.read_bytes()


def read_events(content, kind):
  """The summary values of an event file: records of a length of 8 bytes, 4 more, the event, 4 more."""
  while content:
    size = int.from_bytes(content[:8], 'little')
    yield from kind.FromString(content[12 : 12 + size]).summary.value
    content = content[16 + size :]


@pytest.mark.slow
def test_wandb(tmp_path, two_sessions):
  library = pytest.importorskip('wandb', reason='wandb is not installed: pip install .[wandb]')
  del library
  events = two_sessions(wandb='lab')
  first, second = ids(events)
  assert first == second and first['wandb']
  sessions = sorted((tmp_path / 'run/wandb').glob(f'offline-run-*-{first["wandb"]}'))
  content = b''.join(path.read_bytes() for path in (tmp_path / 'run/wandb').glob('offline-run-*/*.wandb'))
  assert sessions and b'loss' in content and b'"layers"' in content.replace(b"'", b'"')
  media = [path.suffix for path in (tmp_path / 'run/wandb').rglob('media/*/*/*') if path.is_file()]
  assert {'.png', '.wav', '.json'} <= set(media)
  [table, *_] = (tmp_path / 'study/wandb').rglob('verdicts*.table.json')
  assert records.read_json(table)['data'] == VERDICTS[1]


@pytest.mark.slow
def test_mlflow(tmp_path, two_sessions):
  library = pytest.importorskip('mlflow', reason='mlflow is not installed: pip install .[mlflow]')
  first, second = ids(two_sessions(mlflow='lab'))
  assert first == second
  client = library.MlflowClient()
  found = client.get_run(first['mlflow'])
  assert found.info.status == 'FINISHED' and found.data.params['model.layers'] == '2'
  history = client.get_metric_history(first['mlflow'], 'loss')
  assert [(row.step, row.value) for row in history] == [(1, 2.5), (2, 1.5)]
  names = sorted(file.path for file in client.list_artifacts(first['mlflow'], 'samples'))
  assert [name.partition('.')[2] for name in names] == ['txt', 'png', 'wav']
  study = records.read_json(tmp_path / 'study/trackers.json')['mlflow']
  assert 'verdicts.json' in [file.path for file in client.list_artifacts(study)]


@pytest.mark.slow
def test_trackio(tmp_path, two_sessions):
  library = pytest.importorskip('trackio', reason='trackio is not installed: pip install .[trackio]')
  first, second = ids(two_sessions(trackio='lab'))
  assert first == second
  runs = {each.name: each for each in library.Api().runs('lab')}
  assert runs[first['trackio']].config['model'] == CONFIG['model']
  from trackio.sqlite_storage import SQLiteStorage

  rows = SQLiteStorage.get_logs('lab', first['trackio'])
  assert [(row['step'], row['loss']) for row in rows if 'loss' in row] == [(1, 2.5), (2, 1.5)]
  samples = {key: value for row in rows for key, value in row.items() if key.startswith('samples/')}
  kinds = {key.removeprefix('samples/'): value['_type'] for key, value in samples.items()}
  assert kinds == {'text': 'trackio.markdown', 'draw': 'trackio.image', 'speak': 'trackio.audio'}
  study = records.read_json(tmp_path / 'study/trackers.json')['trackio']
  [*_, last] = SQLiteStorage.get_logs('lab', study)
  assert [[*row.values()] for row in last['verdicts']['_value']] == VERDICTS[1]


def test_missing_packages_are_two_line_errors(tmp_path, monkeypatch):
  for name, row in trackers.TRACKERS.items():
    monkeypatch.setitem(sys.modules, row.package, None)
    with pytest.raises(
      ValueError, match=f'log.{name}=lab needs the package {row.package}.*\nfix: pip install'
    ):
      trackers.Trackers(print).open({name: 'lab'}, tmp_path, {})
  assert not os.listdir(tmp_path)


@pytest.fixture
def broken(monkeypatch):
  """Function that makes methods of the tracker mlflow fail -> the calls of all of them."""

  def replace(*methods):
    calls = []

    def method(name):
      def call(self, *args):
        calls.append(name)
        if name in methods:
          raise ConnectionError('no route\nto the host')

      return call

    names = ('__init__', 'log', 'sample', 'table', 'close')
    fields = {'package': 'json', 'run_id': 'x', 'load': staticmethod(lambda: None)}
    row = type('Broken', (trackers.Tracker,), fields | {name: method(name) for name in names})
    monkeypatch.setattr(trackers, 'TRACKERS', {'mlflow': row})
    return calls

  return replace


@pytest.mark.parametrize('method, calls', [('log', 1), ('close', 2)])
def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, capsys, broken, method, calls):
  made = broken(method)
  with run(tmp_path / 'run', mlflow='lab') as opened:
    for step in (1, 2):
      opened.log(step, {'loss': 1.0})
  assert made == ['__init__', *['log'] * calls, 'close']
  assert (
    'log.mlflow is left out from now on: ConnectionError: no route to the host' in capsys.readouterr().out
  )
  assert len(run_folder.read_metrics(tmp_path / 'run')) == 2


def test_a_tracker_that_cannot_be_opened_is_two_lines_and_leaves_the_folder_free(tmp_path, broken):
  broken('__init__')
  with pytest.raises(ValueError) as error:
    run(tmp_path / 'run', mlflow='lab')
  tiny_runs.assert_two_lines(error.value, 'log.mlflow=lab cannot be opened: ConnectionError: no route')
  run(tmp_path / 'run').close()


def test_mlflow_waits_briefly_for_a_server_unless_told_otherwise(monkeypatch):
  monkeypatch.setitem(sys.modules, 'mlflow', types.SimpleNamespace())
  for name in trackers.MLFLOW_PATIENCE:
    monkeypatch.setenv(name, '')
    monkeypatch.delenv(name)
  monkeypatch.setenv('MLFLOW_HTTP_REQUEST_TIMEOUT', '60')
  trackers.MLflow.load()
  assert os.environ['MLFLOW_HTTP_REQUEST_MAX_RETRIES'] == '2'
  assert os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'] == '60'


@pytest.mark.slow
def test_a_training_outlives_its_mlflow_server(tmp_path, monkeypatch, capsys):
  """The server is a port that accepts connections and says nothing."""
  pytest.importorskip('mlflow', reason='mlflow is not installed: pip install .[mlflow]')
  for name in trackers.MLFLOW_PATIENCE:
    monkeypatch.setenv(name, '1')
  with socket.create_server(('127.0.0.1', 0)) as silent, run(tmp_path / 'run', mlflow='lab') as opened:
    [tracker] = opened._trackers.trackers.values()
    tracker.client = tracker.library.MlflowClient(f'http://127.0.0.1:{silent.getsockname()[1]}')
    start = time.monotonic()
    for step in (1, 2, 3):
      opened.log(step, {'loss': 1.0})
    assert time.monotonic() - start < 8  # a second for each of two requests, and pauses
  assert 'log.mlflow is left out from now on' in capsys.readouterr().out
  assert len(run_folder.read_metrics(tmp_path / 'run')) == 3


def test_runs_of_a_study_are_named_by_arm_and_seed(tmp_path):
  assert trackers.title(tmp_path) == (tmp_path.name, '')
  records.write_json(tmp_path / 'arm.json', {'study': 'rates', 'arm': 'lr=0.1', 'seed': 3})
  assert trackers.title(tmp_path) == ('lr=0.1 seed 3', 'rates')


def test_ids_of_runs_before_trackers_were_a_table_and_of_altered_files():
  events = [{'event': 'start', 'wandb_id': 'abcd'}, {'event': 'resume'}]
  assert trackers.ids_of(events) == {'wandb': 'abcd'}
  assert trackers.ids_of([*events, {'trackers': ['x']}, {'trackers': {'mlflow': 3}}]) == {'wandb': 'abcd'}
