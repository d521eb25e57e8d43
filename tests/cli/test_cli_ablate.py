"""`launch.py ablate` and `launch.py report`, as a user types them."""

import hashlib
import pathlib
import shutil
import signal
import time

import pytest

from gpt_jax.ablation import store
from gpt_jax.reports import compare
from gpt_jax.runs import records, trackers
from tests import command_line, tiny_runs
from tests.command_line import assert_user_error
from tests.tiny_runs import snapshot

STUDY = """
from gpt_jax.ablation.design import Study

def get_study(arg=''):
  return Study('{base}', {factors}, seeds=2, question='What matters?', changes={changes})
"""


@pytest.fixture
def call(capsys, monkeypatch):
  """call('ablate', '--config=x') -> (exit code, stdout, stderr), as `python launch.py` would."""
  return command_line.in_process(capsys, monkeypatch)


@pytest.fixture
def study(tmp_path):
  """study(factors) -> --config of a study of the tiny experiment."""

  def write(factors=None, **changes):
    base, path = command_line.experiment(tmp_path), tmp_path / 'tiny_study.py'
    factors = factors or {'positions': ['rope', 'none'], 'lr': [1e-2, 3e-2]}
    # Rows for the eight devices of this process; training processes have one.
    changes = {'layers': 1, 'batch_size': 8, **changes}
    path.write_text(STUDY.format(base=base, factors=factors, changes=changes))
    return f'--config={path}'

  return write


@pytest.fixture
def results(tmp_path):
  """A study folder as if it had been trained: two arms, two seeds."""
  folder = tmp_path / 'trained'
  arms = [
    {
      'name': name,
      'slug': name,
      'levels': {'lr': level},
      'is_baseline': name == 'base',
      'diff': {},
      'parameters': 9,
      'flops_per_token': 1,
      'steps': 3,
      'tokens': 96,
      'flags': [],
      'parameter_diff': {'added': [], 'removed': [], 'reshaped': {}},
      'fingerprint': name,
      'shares_program_with_base': True,
    }
    for name, level in (('base', '0.01'), ('lr=0.1', '0.1'))
  ]
  study = {
    'question': 'Which rate?',
    'name': 'rates',
    'base': 'x.py',
    'command': 'launch.py ablate',
    'metric': 'valid_loss',
    'better': 'lower',
    'tolerance': 0.01,
    'budget': {},
    'seeds': [0, 1],
    'sweep': 'one_at_a_time',
    'factors': {'lr': ['0.01', '0.1']},
    'arms': arms,
    'versions': {},
  }
  folder.mkdir()
  records.write_json(folder / 'study.json', study)
  for k, arm in enumerate(arms):
    for seed in (0, 1):
      run = store.run_path(folder, arm['slug'], seed)
      run.mkdir(parents=True)
      config = {'optim': {'lr': [0.01, 0.1][k]}, 'train': {'seed': seed}}
      records.write_json(run / 'config.json', config)
      result = {'steps': 3, 'valid_loss': 2 - k + 0.001 * seed, 'seconds': 1.0, 'parameters': 9}
      records.write_json(run / 'result.json', result)
  return folder


# ------------------------------------------------------------------------------------------- ablate


def test_a_dry_run_prints_the_plan_and_leaves_nothing(call, study, tmp_path):
  code, out, err = call('ablate', study(), f'--workdir={tmp_path}/new', '--dry_run', '--seeds=3')
  assert code == 0, err
  assert 'What matters?' in out and '3 arms x 3 seeds' in out
  assert 'positions=none: model.positions "rope" -> "none"' in out and '9 runs' in out
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  'words, parts, fix',
  [
    ([], ['--config is missing'], 'add --config'),
    (['--config=experiments/ablations/nrms.py'], ['no file experiments/ablations/nrms.py'], ''),
    (['--config=experiments/demo.py'], ['no get_study'], 'get_study'),
    (['--config=STUDY', '--seeds=-1'], ['seeds'], ''),
    (['--config=STUDY', '--wrkers=2'], ['--wrkers'], '--workers'),
    (['--config=STUDY', '--share=4/4'], ['--share=4/4 is not a share'], '0/4'),
    (['--config=STUDY', '--workdir=FILE'], ['is a file'], '--workdir'),
    (['--config=STUDY', '--workdir=FOLDER'], ['not a study', 'thesis.tex'], '--workdir'),
  ],
)
def test_mistakes_of_ablate(call, study, tmp_path, words, parts, fix):
  spec = study()
  file = tmp_path / 'place' / 'thesis.tex'
  file.parent.mkdir()
  file.write_text('')
  before = snapshot(file.parent)
  names = {
    '--config=STUDY': spec,
    '--workdir=FILE': f'--workdir={file}',
    '--workdir=FOLDER': f'--workdir={file.parent}',
  }
  outcome = call('ablate', *(names.get(word, word) for word in words))
  assert fix in assert_user_error(outcome, *parts)
  assert snapshot(file.parent) == before


def test_a_protocol_is_registered_before_anything_is_trained(call, study, tmp_path):
  folder = tmp_path / 'study'
  code, out, _ = call('ablate', study({'lr': [1e-2, 3e-2]}), f'--workdir={folder}', '--register')
  digest = hashlib.sha256((folder / 'protocol.json').read_bytes()).hexdigest()
  assert code == 0 and f'protocol: sha256 {digest}, fixed before the first result' in out
  assert not (folder / 'runs').exists() and records.read_json(folder / 'study.json')['protocol'] == digest


def test_an_arm_that_changes_nothing_is_refused(call, study, tmp_path):
  spec = study({'window': {'base': {}, 'silent': {'log.every': 7}}})
  outcome = call('ablate', spec, f'--workdir={tmp_path}/new')
  assert_user_error(outcome, 'window=silent', 'changes nothing')
  assert not (tmp_path / 'new/study.json').exists() and not (tmp_path / 'new/runs').exists()


@pytest.mark.slow
def test_a_whole_study_by_training_processes(study, tmp_path):
  """Trained, judged, reported; the same command again has nothing left to do."""
  spec, folder = study({'lr': [1e-2, 1e-1]}), tmp_path / 'study'
  words = ('ablate', spec, f'--workdir={folder}', '--workers=1', '--seeds=1')
  code, out = command_line.launch(*words, folder=tmp_path)
  assert code == 0, out
  assert '2 of 2: lr=0.1 seed 0 is done' in out and 'report: ' in out
  rows = store.read_runs(folder)
  assert [row['status'] for row in rows] == ['done', 'done']
  assert rows[0]['result']['tokens'] and rows[0]['curve'][-1][1] == pytest.approx(
    rows[0]['result']['valid_loss'], rel=0.2
  )
  about = records.read_json(pathlib.Path(rows[1]['folder']) / 'arm.json')
  assert about['diff'] == {'optim.lr': [0.01, 0.1]} and about['arm'] == 'lr=0.1'
  caches = {path.parent for path in folder.rglob('*.ids.npy')}
  assert caches == {folder / 'cache'}
  assert {'report.html', 'report.md', 'report.csv', 'report.tex', 'analysis.json'} <= {
    path.name for path in folder.iterdir()
  }
  before = snapshot(folder / 'runs')
  code, out = command_line.launch(*words, folder=tmp_path)
  assert code == 0 and '2 need no more work, 0 to train' in out
  assert snapshot(folder / 'runs') == before


@pytest.mark.slow
def test_two_tasks_of_an_array_share_a_study(study, tmp_path):
  """Each run is trained once, the last task reports, and more tasks find nothing left to do."""
  spec, folder = study({'lr': [1e-2, 1e-1]}), tmp_path / 'study'
  words = lambda i: ('ablate', spec, f'--workdir={folder}', f'--share={i}/2', '--workers=1')
  tasks = [command_line.start(*words(i), folder=tmp_path) for i in range(2)]
  _, outputs = command_line.ended(tasks, seconds=480)
  assert [task.returncode for task in tasks] == [0, 0], outputs
  rows = store.read_runs(folder)
  assert [row['status'] for row in rows] == ['done'] * 4
  for row in rows:
    events = [event['event'] for event in records.read_lines(pathlib.Path(row['folder']) / 'events.jsonl')]
    assert events.count('start') == 1 and 'resume' not in events
  attempts = store.read_attempts(folder)
  assert sorted((a['arm'], a['seed']) for a in attempts) == sorted((r['arm'], r['seed']) for r in rows)
  assert all((folder / 'shares' / f'{i} of 2' / 'attempts.jsonl').exists() for i in range(2))
  assert sum('report: ' in output for output in outputs) >= 1
  assert (folder / 'report.html').exists()
  code, output = command_line.launch(*words(0), folder=tmp_path)
  assert code == 0 and '2 runs: 2 need no more work' in output


@pytest.mark.slow
def test_a_study_that_is_killed_and_stopped_goes_on(study, tmp_path):
  """Each run ends as if nothing had happened: its losses are those of a study left alone."""
  steps = {'train.steps': 160, 'train.eval_every': 40, 'checkpoint.every': 8}
  spec = study({'lr': [1e-2, 3e-2]}, **steps)
  folders = tmp_path / 'cut', tmp_path / 'whole'
  words = lambda folder: ('ablate', spec, f'--workdir={folder}', '--workers=2')
  for number in (signal.SIGKILL, signal.SIGTERM):
    process = command_line.start(*words(folders[0]), folder=tmp_path)
    wait_for_steps(folders[0], 40 if number == signal.SIGKILL else 80)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 75}[number], output
  for folder in folders:
    code, output = command_line.launch(*words(folder), folder=tmp_path)
    assert code == 0, output
  cut, whole = (store.read_runs(folder) for folder in folders)
  assert [row['result']['valid_loss'] for row in cut] == [row['result']['valid_loss'] for row in whole]
  assert [row['curve'] for row in cut] == [row['curve'] for row in whole]
  outcomes = {a['outcome'] for a in records.read_lines(folders[0] / 'attempts.jsonl')}
  assert outcomes >= {'killed', 'stopped', 'done'}


def wait_for_steps(folder, steps, seconds=200):
  """Wait until a run of the study has logged so many steps."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    logs = [records.read_lines(path) for path in folder.glob('runs/*/*/metrics.jsonl')]
    if any(lines and lines[-1]['step'] >= steps for lines in logs):
      return
    time.sleep(0.2)
  raise AssertionError(f'no run of {folder} got to step {steps}')


# ------------------------------------------------------------------------------------------- report


def test_the_report_of_a_study_is_written_again(call, results):
  code, out, err = call('report', f'--workdir={results}')
  assert code == 0, err
  assert 'lr=0.1' in out and 'report.html' in out
  page = (results / 'report.html').read_text()
  assert 'Which rate?' in page and 'lr=0.1' in page
  assert records.read_json(results / 'analysis.json')['baseline'] == 'base'
  shutil.rmtree(results / 'runs' / 'lr=0.1' / 'seed1')
  (results / 'runs/base/seed0/result.json').write_text('{"valid_')
  code, out, err = call('report', f'--workdir={results}')
  assert code == 0, err
  assert 'base seed 0 is corrupt' in out and 'lr=0.1 seed 1 is missing' in out


@pytest.mark.parametrize('fails', ['', '__init__', 'table', 'close'])
def test_verdicts_go_to_the_tracker_of_the_runs_which_may_fail(call, results, monkeypatch, fails):
  tables = []

  class Lab(trackers.Tracker):
    package, run_id, load = 'json', 'x', staticmethod(lambda: None)

    def __init__(self, library, folder, project, config, run_id, resume_step):
      self.fail('__init__')
      tables.append((project, config['name'], run_id))

    def table(self, name, columns, rows):
      self.fail('table')
      tables.append((name, columns[0], [row[0] for row in rows]))

    def close(self, failed):
      self.fail('close')
      tables.append(failed)

    def fail(self, name):
      if name == fails:
        raise ConnectionError('no route')

  monkeypatch.setattr(trackers, 'TRACKERS', {'trackio': Lab})
  for path in results.glob('runs/*/*/config.json'):
    records.write_json(path, records.read_json(path) | {'log': {'trackio': 'lab'}})
  code, out, err = call('report', f'--workdir={results}')
  assert code == 0 and 'report: ' in out.splitlines()[-1], err
  assert ('no route' in out) == bool(fails)
  if not fails:
    assert tables == [('lab', 'rates', ''), ('verdicts', 'arm', ['base (0.01)', 'lr=0.1']), False]
    assert records.read_json(results / 'trackers.json') == {'trackio': 'x'}
    call('report', f'--workdir={results}')
    assert tables[3] == ('lab', 'rates', 'x')


def test_a_table_of_runs(call, results, tmp_path):
  code, out, err = call('report', f'--workdir={tmp_path}', '--where=optim.lr > 0.05 and seed=1')
  assert code == 0, err
  head, line, count = out.splitlines()
  assert head.split() == ['folder', 'status', 'optim.lr', 'train.seed', 'valid_loss', 'seconds', 'parameters']
  assert line.split() == ['trained/runs/lr=0.1/seed1', 'done', '0.1', '1', '1.001', '1', '9']
  assert count == '1 run'
  code, out, _ = call('report', f'--workdir={results}', '--columns=lr,valid_loss')
  assert out.splitlines()[0].split() == ['optim.lr', 'valid_loss'] and '4 runs' in out


def test_the_report_of_a_run(call, tmp_path_factory, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(tiny_runs.finished(tmp_path_factory), run)
  (run / 'report.html').unlink()
  code, out, err = call('report', f'--workdir={run}')
  assert code == 0 and (run / 'report.html').exists(), err
  code, out, err = call('report', f'--workdir={run}', '--columns=optim.lr')
  assert code == 0 and out.split() == ['optim.lr', '0.02', '1', 'run']


@pytest.mark.slow
def test_where_two_runs_part(call, tmp_path_factory, tmp_path):
  """A run and one of other values: each activation, in order, printed and kept."""
  run, other = tmp_path / 'run', tmp_path / 'other'
  shutil.copytree(tiny_runs.finished(tmp_path_factory), run)
  shutil.copytree(run, other)
  config = records.read_json(other / 'config.json')
  config['model']['norm_eps' if 'norm_eps' in config['model'] else 'init_std'] = 0.5
  records.write_json(other / 'config.json', config)
  code, out, err = call('report', f'--workdir={run}', f'--against={other}')
  assert code == 0 and '-> 0.5' in out.splitlines()[0], err
  assert [line.split()[0] for line in out.splitlines()[3:5]] == ['blocks/0/attention', 'blocks/0/mlp']
  [kept] = records.read_lines(run / 'against.jsonl')
  assert kept['against'] == str(other) and kept['activations'][-1]['path'] == 'logits'
  check = compare.coordinate_check(run, (16, 32), steps=1)
  assert {*check['logits']} == {16, 32} and len(check['logits'][16]) == 2


@pytest.mark.parametrize(
  'words, parts, fix',
  [
    ([], ['holds no runs'], ''),
    (['--where=lr>1'], ['holds no runs'], ''),
    (['RESULTS', '--where=optim.lrr > 1'], ['optim.lrr'], 'optim.lr'),
    (['RESULTS', '--against=x'], ['not a run'], 'the folder of a run'),
    (['RESULTS', '--against=x', '--where=lr>1'], ['compares two runs'], '--where'),
    (['RESULTS', '--texts=x.txt'], ['--texts=x.txt', 'without --against'], '--against'),
    (['RESULTS', '--columns=valid_los'], ['valid_los'], 'valid_loss'),
    (['RESULTS', '--where=optim.lr >'], ['optim.lr >'], 'SQL'),
  ],
)
def test_mistakes_of_report(call, results, tmp_path_factory, words, parts, fix):
  before = snapshot(results)
  place = results if 'RESULTS' in words else tmp_path_factory.mktemp('empty')
  words = [word for word in words if word != 'RESULTS']
  outcome = call('report', f'--workdir={place}', *words)
  assert fix in assert_user_error(outcome, *parts)
  assert snapshot(results) == before


def test_report_needs_a_workdir(call):
  assert_user_error(call('report'), 'workdir')
  assert not pathlib.Path('None').exists()
