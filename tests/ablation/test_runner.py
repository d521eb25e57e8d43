"""The runner: processes that die or hang, runs that fail, stops, schedules and shares.

Training processes are tests/fake_worker.py, which acts at once.
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from unittest import mock

import pytest

from gpt_jax.ablation import store
from gpt_jax.ablation.design import Budget, Study
from gpt_jax.ablation.execute import array, executor, pool, runner, scheduler
from gpt_jax.runs import records
from gpt_jax.runs.startup_timer import utc_time
from tests.tiny_runs import assert_two_lines

ALONE = scheduler.ALONE
TWO = {'how': 'process', 'workers': 2, 'replicas': 1}
TOGETHER = {'how': 'replicas', 'workers': 1, 'replicas': 8}
never = lambda: False


@pytest.fixture(autouse=True)
def fake(monkeypatch):
  """Training processes that train nothing."""
  script = pathlib.Path(__file__).parents[1] / 'fake_worker.py'
  monkeypatch.setattr(pool, 'COMMAND', (sys.executable, str(script)))
  monkeypatch.setattr(scheduler, 'accelerators', lambda: 0)


def task(workdir, arm, seed=0, fake='done', program='p', **config):
  """A run of which the process does what `fake` says."""
  base = {'fake': fake, 'mesh': {'preset': '', 'data': -1}, 'train': {'steps': 100}}
  folder = store.run_path(workdir, arm, seed)
  return executor.Task(arm, seed, folder, base | config, program)


def work(workdir, tasks, schedule=ALONE, should_stop=never):
  """Train them -> (whether all came to an end, attempts, what was said)."""
  said = []
  whole = executor.Executor(workdir, tasks, schedule, said.append).run(should_stop)
  return whole, records.read_lines(workdir / 'attempts.jsonl'), '\n'.join(said)


def began(a_task):
  """What each attempt at a run left: {pid, cores}."""
  path = a_task.folder / 'began'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---------------------------------------------------------------------------------- what may happen


def test_processes_share_the_cores_and_the_runs(tmp_path):
  tasks = [task(tmp_path, f'a{k}') for k in range(6)]
  tasks[1] = dataclasses.replace(tasks[1], about={'study': 's', 'diff': {'optim.lr': (1, 2)}})
  whole, attempts, said = work(tmp_path, tasks, TWO)
  about = {'study': 's', 'diff': {'optim.lr': [1, 2]}, 'arm': 'a1', 'seed': 0}
  assert records.read_json(tasks[1].folder / 'arm.json') == about
  assert whole and [a['outcome'] for a in attempts] == ['done'] * 6
  assert {a['arm'] for a in attempts} == {t.arm for t in tasks}
  assert {a['how'] for a in attempts} == {'process'}
  assert '6 of 6: ' in said and 'valid_loss 1.5000' in said and 'to go' in said
  places = {(b['pid'], tuple(b['cores'])) for t in tasks for b in began(t)}
  assert len(places) == 2  # each process stays for the next run
  if len(pool.cores()) > 1:
    (_, one), (_, other) = places
    assert not set(one) & set(other)
    assert len(one) == len(other) == len(pool.cores()) // 2
  assert sorted(os.sched_getaffinity(0)) == pool.cores()
  assert 'other words' in (tmp_path / 'logs/worker0.log').read_text()


def test_a_failed_run_is_not_retried_and_the_others_finish(tmp_path):
  kinds = ('done', 'fail', 'diverge', 'done')
  tasks = [task(tmp_path, f'a{k}', fake=kind) for k, kind in enumerate(kinds)]
  whole, attempts, said = work(tmp_path, tasks)
  assert whole
  assert [a['outcome'] for a in attempts] == ['done', 'failed', 'diverged', 'done']
  assert attempts[1]['message'] == 'no luck' and 'failed: no luck' in said
  assert all(len(began(t)) == 1 for t in tasks)
  assert len({b['pid'] for t in tasks for b in began(t)}) == 1


def test_a_killed_process_is_replaced_and_its_run_retried(tmp_path):
  tasks = [task(tmp_path, 'a', fake='die once'), task(tmp_path, 'b', fake='die'), task(tmp_path, 'c')]
  whole, attempts, said = work(tmp_path, tasks)
  assert whole
  outcomes = lambda arm: [a['outcome'] for a in attempts if a['arm'] == arm]
  assert outcomes('a') == ['killed', 'done']
  assert outcomes('b') == ['killed'] * executor.MAX_TRIES
  assert outcomes('c') == ['done']
  message = next(a for a in attempts if a['arm'] == 'b')['message']
  assert 'signal 9 (SIGKILL)' in message and 'worker0.log' in message
  assert attempts[0]['code'] == -9 and 'it is retried' in said


def test_a_process_that_hangs_is_killed_and_its_run_retried(tmp_path):
  """Without a heartbeat for train.hang_seconds; the other runs go on, and slow work is not a hang."""
  kinds = {'a': 'hang once', 'b': 'hang', 'c': 'work slowly', 'd': 'done'}
  limits = {'train': {'steps': 100, 'hang_seconds': 1.0}}
  tasks = [task(tmp_path, arm, fake=kind, **limits) for arm, kind in kinds.items()]
  whole, attempts, said = work(tmp_path, tasks, TWO)
  assert whole
  outcomes = lambda arm: [a['outcome'] for a in attempts if a['arm'] == arm]
  assert outcomes('a') == ['hung', 'done']
  assert outcomes('b') == ['hung'] * executor.MAX_TRIES
  assert outcomes('c') == outcomes('d') == ['done']
  message = next(a for a in attempts if a['arm'] == 'b')['message']
  assert 'nothing was done for 1 seconds (train.hang_seconds)' in message and 'logs/worker' in message
  assert store.run_status(tasks[1].folder, attempt={'outcome': 'hung', 'message': message})[0] == 'hung'
  assert 'b seed 0 hung: ' in said
  pids = {b['pid'] for b in began(tasks[1])}
  assert not any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids)


def test_a_process_that_cannot_start_fails_its_runs_with_the_cause(tmp_path):
  tasks = [task(tmp_path, f'a{k}', fake='leave') for k in range(2)]
  whole, attempts, said = work(tmp_path, tasks, TWO)
  assert whole and [(a['outcome'], a['code']) for a in attempts] == [('failed', 1)] * 2
  assert 'exit code 1: no such module' in attempts[0]['message']


def test_a_process_ended_by_a_full_disk_says_so(tmp_path, monkeypatch):
  monkeypatch.setattr(pool, 'FULL_DISK_BYTES', 1 << 60)
  _, attempts, _ = work(tmp_path, [task(tmp_path, 'a', fake='leave')])
  assert 'no space left on the disk' in attempts[0]['message']


def test_a_run_that_kills_its_group_is_isolated(tmp_path):
  tasks = [task(tmp_path, 'a', seed, 'die' if seed == 1 else 'done') for seed in range(5)]
  tasks.append(task(tmp_path, 'other', program='q'))
  whole, attempts, _ = work(tmp_path, tasks, TOGETHER)
  assert whole
  last = {(a['arm'], a['seed']): (a['outcome'], a['how']) for a in attempts}
  assert last == {
    ('a', 0): ('done', 'alone'),
    ('a', 1): ('killed', 'alone'),
    ('a', 2): ('done', 'replicas'),
    ('a', 3): ('done', 'replicas'),
    ('a', 4): ('done', 'alone'),
    ('other', 0): ('done', 'alone'),
  }
  tried = [a['how'] for a in attempts if a['arm'] == 'a' and a['seed'] == 1]
  assert tried == ['replicas'] * 2 + ['alone'] * executor.MAX_TRIES  # of 5, of 2, and alone


def test_a_run_that_fails_in_a_group_is_retried_alone(tmp_path):
  tasks = [task(tmp_path, 'a', 0, 'fail'), task(tmp_path, 'a', 1, 'diverge'), task(tmp_path, 'a', 2)]
  _, attempts, _ = work(tmp_path, tasks, TOGETHER)
  actual = [(a['seed'], a['outcome'], a['how']) for a in attempts]
  assert actual == [
    (0, 'failed', 'replicas'),
    (1, 'diverged', 'replicas'),
    (2, 'done', 'replicas'),
    (0, 'failed', 'alone'),
  ]


def test_attempts_record_runs_that_trained_alone_for_want_of_memory(tmp_path):
  tasks = [task(tmp_path, 'a', seed, f'done{" alone" * (seed == 1)}') for seed in range(3)]
  _, attempts, _ = work(tmp_path, tasks, TOGETHER)
  assert [a['how'] for a in attempts] == ['replicas', 'alone', 'replicas']


def test_groups_share_a_program():
  tasks = [task(pathlib.Path(), arm, seed, program=arm[0]) for seed in range(3) for arm in ('x1', 'x2', 'y')]
  made = executor.group_by_program(tasks, 4)
  assert [len(group) for group in made] == [4, 2, 3]
  assert all(len({t.program for t in group}) == 1 for group in made)
  assert executor.group_by_program(tasks, 1) == [[t] for t in tasks]


def test_a_stop_saves_running_tasks_and_keeps_the_queue(tmp_path):
  tasks = [task(tmp_path, f'a{k}', fake='wait') for k in range(4)]
  ready = lambda: all(began(t) for t in tasks[:2])
  whole, attempts, _ = work(tmp_path, tasks, TWO, ready)
  assert not whole
  assert [a['outcome'] for a in attempts] == ['stopped'] * 2
  assert len({a['time'] for a in attempts}) == 1  # one stop
  assert not began(tasks[2]) and not began(tasks[3])
  pids = {b['pid'] for t in tasks for b in began(t)}
  assert not any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids)


def test_an_unknown_metric_stops_the_study_after_the_first_run(tmp_path):
  tasks = [task(tmp_path, f'a{k}', fake='wait' if k == 1 else 'done') for k in range(5)]
  planned = {'metric': 'valid_los', 'seeds': [0], 'arms': [{'name': t.arm, 'slug': t.arm} for t in tasks]}
  records.write_json(tmp_path / 'study.json', planned)
  check = functools.partial(runner.check_metric, tmp_path)
  check()  # nothing is known yet
  made = executor.Executor(tmp_path, tasks, TWO, print, check)
  with pytest.raises(ValueError) as error:
    made.run(never)
  assert_two_lines(error.value, "metric='valid_los'")
  attempts = records.read_lines(tmp_path / 'attempts.jsonl')
  assert {(a['arm'], a['outcome']) for a in attempts} >= {('a0', 'done'), ('a1', 'stopped')}
  assert not began(tasks[4])
  with pytest.raises(ValueError):  # before anything is trained
    check()
  records.write_json(tmp_path / 'study.json', planned | {'metric': 'valid_loss'})
  runner.check_metric(tmp_path)
  made = executor.Executor(
    tmp_path, tasks[4:], ALONE, print, functools.partial(runner.check_metric, tmp_path)
  )
  assert made.run(never)


def test_a_full_disk_does_not_lose_an_attempt(tmp_path, monkeypatch):
  calls, append = [], records.append_line

  def full_at_first(path, record):
    calls.append(record)
    if len(calls) <= 2:
      raise OSError(28, 'No space left on device')
    append(path, record)

  monkeypatch.setattr(records, 'append_line', full_at_first)
  whole, attempts, said = work(tmp_path, [task(tmp_path, f'a{k}') for k in range(3)])
  assert whole and [a['arm'] for a in attempts] == ['a0', 'a1', 'a2']
  assert said.count('No space left on device') == 1


# ------------------------------------------------------------------------------- what is left to do


def test_done_and_diverged_runs_are_not_retried(tmp_path):
  kinds = ('done', 'diverge', 'fail', 'done')
  tasks = [task(tmp_path, f'a{k}', fake=kind) for k, kind in enumerate(kinds)]
  work(tmp_path, tasks)
  (tasks[3].folder / 'result.json').write_text('{"valid_loss": 1.')
  said = []
  left = runner.remaining_tasks(tmp_path, [*tasks, task(tmp_path, 'new')], 'valid_loss', said.append)
  assert [t.arm for t in left] == ['a2', 'a3', 'new']
  assert any('a1 seed 0 diverged (not finite); delete' in line for line in said)
  assert any('result.json is not readable' in line and 'trained again' in line for line in said)
  assert (tasks[3].folder / 'result.json.corrupt').exists()
  whole, _, _ = work(tmp_path, left)
  assert whole and store.run_status(tasks[3].folder)[0] == 'done'


@pytest.mark.parametrize('content', ['', '{"mesh": ', '[]', '\x00'])
def test_a_run_with_an_unreadable_config_is_set_aside_and_retrained(tmp_path, content):
  tasks = [task(tmp_path, 'a'), task(tmp_path, 'b')]
  work(tmp_path, tasks)
  for k in ('', '1'):
    (tasks[0].folder / 'config.json').write_text(content)
    said = []
    left = runner.remaining_tasks(tmp_path, tasks, 'valid_loss', said.append)
    assert left == tasks[:1] and 'config.json' in said[0]
    aside = tasks[0].folder.with_name(f'seed0.corrupt{k}')
    assert (aside / 'began').exists() and str(aside) in said[0]
    work(tmp_path, left)
    assert store.run_status(tasks[0].folder)[0] == 'done'
  assert store.find_run_folders(tmp_path) == [t.folder for t in tasks]


def test_a_run_folder_with_another_config_is_an_error(tmp_path):
  work(tmp_path, [task(tmp_path, 'a', data={'cache': 'x'})])
  moved = task(tmp_path, 'a', data={'cache': 'y'})
  assert runner.remaining_tasks(tmp_path, [moved], 'valid_loss', print) == []
  with pytest.raises(ValueError) as error:
    runner.remaining_tasks(tmp_path, [task(tmp_path, 'a', optim={'lr': 1})], 'valid_loss', print)
  assert_two_lines(error.value, 'another config', 'optim.lr')


def test_runs_of_a_killed_study_are_recorded(tmp_path):
  events = {'begun': ['start', 'compile'], 'failed': ['start', 'error'], 'new': []}
  tasks = [task(tmp_path, arm) for arm in events]
  for a_task in tasks:
    a_task.folder.mkdir(parents=True)
    (a_task.folder / 'config.json').write_text('{}')
    for name in events[a_task.arm]:
      event = {'time': utc_time(), 'event': name}
      records.append_line(a_task.folder / 'events.jsonl', event)
  noted = lambda: [(a['arm'], a['outcome']) for a in records.read_lines(tmp_path / 'attempts.jsonl')]
  time.sleep(0.01)
  for _ in range(2):  # what did nothing since is not noted again
    runner.record_interrupted(tmp_path, tmp_path, tasks)
    assert noted() == [('begun', 'killed')]
  time.sleep(0.01)
  records.append_line(tasks[0].folder / 'events.jsonl', {'time': utc_time(), 'event': 'resume'})
  time.sleep(0.01)
  runner.record_interrupted(tmp_path, tmp_path, tasks)
  assert noted() == [('begun', 'killed')] * 2


def test_locked_run_folders_are_waited_for(tmp_path):
  one, said = task(tmp_path, 'a'), []
  one.folder.mkdir(parents=True)
  assert runner.wait_for_locks([one], never, said.append) and not said
  with records.locked(one.folder):
    asked = iter([False, False, True])
    assert not runner.wait_for_locks([one], lambda: next(asked), said.append)
  assert len(said) == 1 and f'process {os.getpid()}' in said[0] and str(one.folder) in said[0]


def test_a_study_folder_must_be_new_or_hold_a_study(tmp_path):
  assert runner.check_study_folder(tmp_path / 'new') == tmp_path / 'new'
  (tmp_path / 'cache').mkdir()
  assert runner.check_study_folder(tmp_path) == tmp_path
  (tmp_path / 'thesis.tex').write_text('')
  for place, cause in ((tmp_path, 'thesis.tex'), (tmp_path / 'thesis.tex', 'is a file')):
    with pytest.raises(ValueError) as error:
      runner.check_study_folder(place)
    assert_two_lines(error.value, str(place), cause)


def test_a_folder_of_another_study_is_an_error(tmp_path):

  def study(file, name, /, *arms, metric='valid_loss', **programs):
    inputs = {'evaluation settings': metric, 'hyperparameters': {'lr': 0.1}}
    arms = [
      {'name': arm, 'inputs': inputs | {'train step': programs.get(arm, arm)}} for arm in ('base', *arms)
    ]
    return {'name': name, 'base': file, 'metric': metric, 'arms': arms}

  old = study('x', 'n', 'a')
  more = (study('x', 'n', 'a', 'b'), study('x', 'other', 'b', 'a'), study('x', 'n', 'c'))
  for same in (old, *more, study('x', 'n', 'a', metric='answer/exact')):
    runner.check_same(tmp_path, {}, same)
    runner.check_same(tmp_path, old, same)
  for other in (study('y', 'n', 'a'), study('x', 'other', 'c'), study('x', 'other', base='new')):
    with pytest.raises(ValueError) as error:
      runner.check_same(tmp_path, old, other)
    assert_two_lines(error.value, 'another study: n of x')
  for name in ('base', 'a'):
    with pytest.raises(ValueError) as error:
      runner.check_same(tmp_path, old, study('x', 'n', 'a', **{name: 'fixed'}))
    assert_two_lines(error.value, f'arm {name} has changed since this study began: train step')
  with pytest.raises(ValueError):
    runner.check_same(tmp_path, old, study('x', 'n', 'a', metric='answer/exact', a='fixed'))
  changed = study('x', 'n', 'a')
  changed['arms'][0]['inputs'] |= {'evaluation code': 'new', 'hyperparameters': {'lr': 0.2}}
  with pytest.raises(ValueError) as error:
    runner.check_same(tmp_path, old, changed)
  assert_two_lines(error.value, 'arm base has changed', ': lr (0.1 -> 0.2), evaluation code')
  del old['arms'][1]['inputs']
  with pytest.raises(ValueError, match='begun by an earlier version'):
    runner.check_same(tmp_path, old, study('x', 'n', 'a'))


def test_each_look_at_verdicts_is_recorded(tmp_path):
  records.write_json(tmp_path / 'study.json', {'name': 'n'})
  rows = [{'arm': arm, 'seed': seed, 'status': 'done'} for seed in range(4) for arm in 'ab']
  looks = lambda count: runner.record_look(tmp_path, rows[:count]).get('looks')
  assert looks(0) is None and looks(2) is None  # one seed has no verdict
  assert looks(5) == [3] and looks(6) == [3] and looks(8) == [3, 4]
  rows[6]['status'] = rows[7]['status'] = 'failed'
  assert looks(8) == [3, 4, 3]
  study = records.read_json(tmp_path / 'study.json')
  assert study['looks'] == [3, 4, 3]


# ------------------------------------------------------------------------------ which way is faster


def test_candidate_schedules(tmp_path, monkeypatch):
  monkeypatch.setattr(scheduler, 'cores', lambda: [0, 1, 2, 3])
  ways = lambda tasks: {c['how']: (c['workers'], c['replicas']) for c in scheduler.candidates(tasks)}
  one, same = [task(tmp_path, 'a')], [task(tmp_path, 'a', seed) for seed in range(5)]
  different = [task(tmp_path, arm, program=arm) for arm in 'ab']
  wide = [task(tmp_path, 'a', seed, mesh={'preset': '', 'data': 2}) for seed in range(2)]
  assert ways(one) == {'alone': (1, 1)}
  assert ways(same) == {'alone': (1, 1), 'process': (4, 1), 'replicas': (1, 5)}
  assert ways(different) == {'alone': (1, 1), 'process': (2, 1)}
  assert 'process' not in ways(wide)
  monkeypatch.setattr(scheduler, 'accelerators', lambda: 2)
  assert ways(same) == {'process': (2, 1), 'replicas': (2, 5)}
  monkeypatch.setattr(scheduler, 'accelerators', lambda: 1)
  assert ways(same) == {'alone': (1, 1), 'replicas': (1, 5)}


def test_cores_and_devices_are_split_among_workers(monkeypatch):
  monkeypatch.setattr(pool, 'cores', lambda: [0, 1, 2, 3, 4])
  assert pool.split_machine(2) == [([0, 1], {}), ([2, 3], {})]
  assert pool.split_machine(1, 2) == [([0, 1, 2, 3, 4], {})]
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,7')
  actual = pool.split_machine(2, 2)
  assert [env['CUDA_VISIBLE_DEVICES'] for _, env in actual] == ['3', '7']


@pytest.mark.skipif(len(pool.cores()) < 2, reason='one core')
def test_the_fastest_schedule_is_measured_once_and_stored(tmp_path, monkeypatch):
  monkeypatch.setattr(scheduler, 'SECONDS', 0.3)
  monkeypatch.setattr(scheduler, 'cores', lambda: pool.cores()[:2])
  records.write_json(tmp_path / 'study.json', {'name': 'n'})
  # Alone on a core, the fake runs four times as fast: two processes win.
  tasks = [task(tmp_path, arm, program=arm, fake='log', pace=0.02) for arm in 'abc']
  monkeypatch.setattr(pool, 'split_machine', lambda n, devices=0: SHARES[n])
  monkeypatch.setattr(scheduler, 'split_machine', lambda n, devices=0: SHARES[n])
  said = []
  chosen = scheduler.choose_schedule(tmp_path, tasks, 0, never, said.append)
  assert (chosen['how'], chosen['workers']) == ('process', 2)
  rates = chosen['runs_per_hour']
  assert rates['process'] > 3 * rates['alone'] > 0
  assert 3600 / 0.02 / 100 * 0.3 < rates['alone'] <= 3600 / 0.02 / 100
  assert records.read_json(tmp_path / 'study.json')['schedule'] == chosen
  assert not (tmp_path / '.calibration').exists() and not tasks[0].folder.exists()
  start = time.monotonic()
  assert scheduler.choose_schedule(tmp_path, tasks, 0, never, said.append) == chosen
  assert time.monotonic() - start < 0.2 and sum('measuring' in line for line in said) == 2


def test_all_schedules_are_measured_on_the_same_program(tmp_path, monkeypatch):
  given = []
  monkeypatch.setattr(
    scheduler,
    'wait_until_timed',
    lambda pool, *rest: given.extend(config['name'] for worker in pool.workers for config, _ in worker.tasks),
  )
  monkeypatch.setattr(scheduler, 'split_for', lambda choice, jobs: [(pool.cores(), {})] * jobs)
  tasks = [task(tmp_path, 'large', program='large', name='large')]
  tasks += [task(tmp_path, arm, seed, program=arm, name=f'{arm}{seed}') for seed in range(2) for arm in 'ab']
  three = {'how': 'process', 'workers': 3, 'replicas': 1}
  for choice, names in ((ALONE, 'a0'), (three, 'a0 a1 a0'), (TOGETHER | {'replicas': 2}, 'a0 a1')):
    given.clear()
    assert scheduler.measure(tmp_path, tasks, choice, never) == 0.0
    assert given == names.split()


def test_a_budget_of_seconds_trains_one_run_at_a_time(tmp_path, monkeypatch):
  """One run at a time with the whole machine, whatever would be faster or is asked for."""
  tasks = [task(tmp_path, arm) for arm in 'ab']
  arms = [{'name': t.arm, 'slug': t.arm, 'flags': []} for t in tasks]
  planned = {'metric': 'valid_loss', 'seeds': [0], 'arms': arms}
  monkeypatch.setattr(runner, 'prove_study', lambda *_: (arms, {}, planned))
  monkeypatch.setattr(runner, 'make_tasks', lambda *_: tasks)
  monkeypatch.setattr(runner, 'judge', lambda *_: 'judged')
  study, said = Study('x', {'lr': [1]}, budget=Budget(seconds=5)), []
  assert runner.run(study, tmp_path, workers=2, say=said.append) == 'judged'
  assert any('one run at a time' in line for line in said)
  assert [a['how'] for a in records.read_lines(tmp_path / 'attempts.jsonl')] == ['alone'] * 2
  assert began(tasks[0])[0]['cores'] == began(tasks[1])[0]['cores'] == pool.cores()


def test_a_failed_measurement_is_not_stored(tmp_path, monkeypatch):
  monkeypatch.setattr(scheduler, 'measure', lambda *_: 0.0)
  records.write_json(tmp_path / 'study.json', {'name': 'n'})
  tasks, said = [task(tmp_path, 'a', seed) for seed in range(3)], []
  assert scheduler.choose_schedule(tmp_path, tasks, 0, never, said.append) == ALONE
  assert 'no way could be measured' in said[-1]
  assert records.read_json(tmp_path / 'study.json') == {'name': 'n'}


SHARES = {1: [(pool.cores(), {})], 2: [(pool.cores()[:1], {}), (pool.cores()[1:2], {})]}


def test_the_users_number_of_processes_is_used(tmp_path):
  tasks = [task(tmp_path, 'a', seed) for seed in range(4)]
  assert scheduler.choose_schedule(tmp_path, tasks, 3, never, print) == {
    'how': 'process',
    'workers': 3,
    'replicas': 1,
  }
  assert len(scheduler.split_for({'workers': 3}, 2)) == 2
  records.write_json(tmp_path / 'study.json', {})
  assert scheduler.choose_schedule(tmp_path, tasks, 0, lambda: True, print) is None  # stopped


def test_a_short_study_is_not_measured(tmp_path, monkeypatch):
  """Measuring would take longer than it could win."""
  monkeypatch.setattr(scheduler, 'cores', lambda: [0, 1])
  tasks = [task(tmp_path, 'base', seed) for seed in range(4)]
  arms = [{'name': 'base', 'seconds_estimate': 20.0}]
  records.write_json(tmp_path / 'study.json', {'arms': arms})
  monkeypatch.setattr(scheduler, 'measure', lambda *_: pytest.fail('measured'))
  assert scheduler.choose_schedule(tmp_path, tasks, 0, never, print) == TWO
  assert 'schedule' not in records.read_json(tmp_path / 'study.json')


# ------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize('arms', [1, 2, 5])
@pytest.mark.parametrize('seeds', [1, 3, 4])
@pytest.mark.parametrize('count', [1, 2, 3, 7])
def test_shares_are_whole_seeds_and_together_all_runs(count, seeds, arms):
  runs = [(seed, arm) for seed in range(seeds) for arm in range(arms)]
  parts = [runner.select_share(runs, (i, count), lambda run: run[0]) for i in range(count)]
  assert sorted(run for part in parts for run in part) == runs
  if count <= seeds:
    assert all(
      len([run for run in part if run[0] == seed]) in (0, arms) for part in parts for seed in range(seeds)
    )
  else:
    assert all(len({seed for seed, _ in part}) <= 1 for part in parts)


def test_shares_train_each_run_once(tmp_path, monkeypatch):
  """Three tasks one after another, on planned runs that fake processes train."""
  planned = [task(tmp_path, arm, seed) for seed in (0, 1) for arm in ('base', 'a')]
  description = {
    'metric': 'valid_loss',
    'seeds': [0, 1],
    'arms': [{'name': name, 'slug': name} for name in ('base', 'a')],
  }
  judged = []
  monkeypatch.setattr(runner, 'prove_study', lambda *_: ((), {}, description))
  monkeypatch.setattr(runner, 'make_tasks', lambda *_: planned)
  monkeypatch.setattr(runner, 'check_same', lambda *_: None)
  monkeypatch.setattr(runner, 'judge', lambda *_: judged.append(len(store.read_attempts(tmp_path))))
  study = Study('x.py', {'lr': [1, 2]})
  for number in (2, 0, 1, 1):
    assert array.run(study, tmp_path, (number, 3), say=lambda line: None)
    assert not runner.unfinished_runs(tmp_path, (number, 3))
  attempts = [(a['arm'], a['seed']) for a in store.read_attempts(tmp_path)]
  assert sorted(attempts) == sorted((t.arm, t.seed) for t in planned)
  assert judged == [4, 4]  # when the last has ended, and when it is asked again
  places = sorted(path.parent.name for path in tmp_path.glob('shares/*/attempts.jsonl'))
  assert places == ['0 of 3', '1 of 3', '2 of 3']


def test_a_share_that_waits_for_the_proofs_of_the_first_can_be_stopped(tmp_path, monkeypatch):
  monkeypatch.setattr(runner, 'prove_study', lambda *_: pytest.fail('proved'))
  asked = iter([False, False, True, True])
  with records.locked(tmp_path):
    assert not array.run(Study('x.py', {'lr': [1, 2]}), tmp_path, (1, 2), lambda: next(asked))
  assert not (tmp_path / 'study.json').exists()


def test_a_share_writes_the_study_only_while_it_holds_the_folder(tmp_path, monkeypatch):
  """The first one and one that comes later, which proves its arms beside the others."""
  held = {'proved': [], 'written': []}
  note = lambda name: held[name].append(bool(runner.lock_holder(tmp_path)))
  monkeypatch.setattr(runner, 'prove_study', lambda *_: note('proved') or ((), {}, {}))
  monkeypatch.setattr(runner, 'make_tasks', lambda *_: [])
  monkeypatch.setattr(array, 'finish', lambda *_: None)

  def record(workdir, *_):
    note('written')
    (workdir / 'study.json').write_text('{}')
    return []

  monkeypatch.setattr(runner, 'write_study', record)
  monkeypatch.setattr(runner, 'check_metric', lambda *_: None)
  for number in (0, 1):
    assert array.run(Study('x.py', {'lr': [1, 2]}), tmp_path, (number, 2), say=lambda line: None)
  assert held == {'proved': [True, False], 'written': [True, True]}


def test_a_share_locks_out_itself_and_the_whole_study(tmp_path):
  place = tmp_path / 'shares' / '0 of 2'
  place.mkdir(parents=True)
  (tmp_path / 'study.json').write_text('{}')
  study = Study('x.py', {'lr': [1, 2]})
  with records.locked(place):
    with pytest.raises(ValueError, match='0 of 2 is being written by'):
      array.run(study, tmp_path, (0, 2))
    made = ((), {}, {})
    with mock.patch.object(runner, 'prove_study', lambda *_: made):
      with pytest.raises(ValueError) as error:
        runner.run(study, tmp_path)
    assert_two_lines(error.value, 'share 0 of 2 is being trained by process')


@pytest.mark.parametrize('text', ['', '1', '2/2', '-1/2', '0/0', 'a/b', '1/2/3'])
def test_invalid_shares_are_errors(text):
  with pytest.raises(ValueError) as error:
    array.parse_share(text)
  assert_two_lines(error.value, f'--share={text}')
