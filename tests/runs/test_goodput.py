"""Goodput by hand; test_render.py has a real run that was stopped, killed and resumed."""

import datetime
import os
import time

import pytest

from gpt_jax.runs import history, records, startup_timer

START = 1_764_000_000.0


def write_run(folder, events, metrics):
  """A run with events [(second, name, {...})] and metrics [(second, step, seconds a step)]."""
  folder.mkdir()
  records.write_json(folder / 'config.json', {})
  for second, name, more in events:
    moment = datetime.datetime.fromtimestamp(START + second, datetime.UTC)
    event = {'time': moment.isoformat(timespec='milliseconds'), 'event': name, **more}
    records.append_line(folder / 'events.jsonl', event)
  for second, step, each in metrics:
    row = {'step': step, 'time': START + second, 'loss': 1.0}
    records.append_line(folder / 'metrics.jsonl', row | ({'step_seconds': each} if each else {}))
  return history.read_history(folder)


def at(step, **more):
  return {'step': step, **more}


THREE_RESTARTS = [
  # Stopped after step 20, and saved.
  (10, 'start', at(0, startup={'import': 4.0, 'restore': 6.0})),
  (15, 'compile', at(0, seconds=5.0)),
  (36, 'evaluate', at(20, seconds=1.0)),
  (37, 'checkpoint', at(20, blocked_seconds=0.5)),
  (38, 'preempted', at(20)),
  # 22 s in a queue; killed 13 s after the checkpoint of step 40.
  (64, 'resume', at(20, startup={'import': 4.0})),
  (66, 'compile', at(20, seconds=2.0)),
  (87, 'checkpoint', at(40, blocked_seconds=0.5)),
  (95, 'evaluate', at(50, seconds=1.0)),
  (100, 'checkpoint', at(55, blocked_seconds=0.5)),  # was never finished
  # Killed before any checkpoint of its own.
  (110, 'resume', at(40, startup={'import': 5.0})),
  (112, 'compile', at(40, seconds=2.0)),
  (117, 'evaluate', at(45, seconds=1.0)),
  # To the end.
  (130, 'resume', at(40, startup={'import': 3.0})),
  (132, 'compile', at(40, seconds=2.0)),
  (152, 'checkpoint', at(60, blocked_seconds=1.0)),
  (154, 'done', at(60)),
]
REMAINING = [(24.9, 10, 0.9), (130, 20, 1.1), (76, 30, 1.0), (86, 40, 1.0), (141, 50, 0.9), (151, 60, 0.9)]


def test_phases_equal_those_by_hand(tmp_path):
  phases = history.seconds_by_phase(write_run(tmp_path / 'run', THREE_RESTARTS, REMAINING))
  assert list(phases) == list(history.PHASES)
  by_hand = {
    'steps': 10 * (0.9 + 1.1 + 1.0 + 1.0 + 0.9 + 0.9),
    'startup': 10 + 4 + 5 + 3,
    'compile': 5 + 2 + 2 + 2,
    'evaluate': 1,
    'checkpoint': 0.5 + 0.5 + 1,
    'lost': (100 - 87) + (117 - 110 - 2),
    'waiting': (60 - 38) + (105 - 100) + (127 - 117),
  }
  for name, seconds in by_hand.items():
    assert phases[name] == pytest.approx(seconds, abs=2e-3), name
  assert sum(phases.values()) == pytest.approx(154, rel=1e-6)
  assert phases['other'] == pytest.approx(154 - sum(by_hand.values()), abs=0.01)
  line = history.describe_goodput(history.read_history(tmp_path / 'run'))
  assert line.startswith('goodput 37.7% of 154.0 s: steps 37.7%, startup 14.3%, compile 7.1%')


def test_a_rewind_loses_the_time_since_its_checkpoint(tmp_path):
  events = [
    (0, 'start', at(0)),
    (11, 'checkpoint', at(10, blocked_seconds=1.0)),
    (21, 'evaluate', at(20, seconds=1.0)),
    (30, 'go_back', at(10)),
    (50, 'done', at(30)),
  ]
  phases = history.seconds_by_phase(write_run(tmp_path / 'run', events, [(10, 10, 1.0), (50, 30, 1.0)]))
  assert phases['lost'] == pytest.approx(19) and phases['evaluate'] == 0
  assert phases['steps'] == 30 and sum(phases.values()) == pytest.approx(50)


@pytest.mark.parametrize('events', [[], [(0, 'start', at(0))]])
def test_a_run_without_metrics_has_no_goodput(tmp_path, events):
  assert history.describe_goodput(write_run(tmp_path / 'run', events, [])) == ''


def test_phases_start_with_the_process():
  age = startup_timer.process_age()
  assert age > 0.1 or not os.path.exists('/proc/self/stat')
  startup_timer.take_phases()
  time.sleep(0.05)
  startup_timer.mark_phase('a')
  startup_timer.mark_phase('b')
  phases = startup_timer.take_phases()
  assert list(phases) == ['a', 'b'] and 0.05 <= phases['a'] < 5 and phases['b'] < 0.05
  assert startup_timer.take_phases() == {}
