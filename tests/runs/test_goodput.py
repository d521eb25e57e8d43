"""Goodput by hand; test_render.py has a real run that was stopped, killed and resumed."""

import datetime
import math
import os
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from gpt_jax.runs import history, records, startup_timer

START = 1_764_000_000.0


def utc(second):
  """ISO 8601 of START + second."""
  return datetime.datetime.fromtimestamp(START + second, datetime.UTC).isoformat(timespec='milliseconds')


def write_run(folder, events, metrics):
  """A run with events [(second, name, {...})] and metrics [(second, step, seconds a step)]."""
  folder.mkdir()
  records.write_json(folder / 'config.json', {})
  for second, name, more in events:
    event = {'time': utc(second), 'event': name, **more}
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


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
  jumps=st.lists(st.sampled_from([0, -3600, 86400, -1e9, 1e9, math.nan]), min_size=17, max_size=17),
  left_out=st.sets(st.integers(0, 16)),
)
def test_no_clock_breaks_the_goodput(jumps, left_out):
  """Clocks set back and forth before every event, equal times, lost events, unreadable times."""
  events, offset = [], 0.0
  for k, ((second, name, more), jump) in enumerate(zip(THREE_RESTARTS, jumps, strict=True)):
    offset += 0.0 if math.isnan(jump) else jump
    time = 'noon' if math.isnan(jump) else utc(max(-START, second + offset))
    if k not in left_out:
      events.append({'time': time, 'event': name, **more})
  rows = [{'step': step, 'time': START + s + jumps[0], 'step_seconds': each} for s, step, each in REMAINING]
  run = history.History(Path('run'), {}, rows, events, {}, [])
  phases = history.seconds_by_phase(run)
  assert all(0 <= seconds < math.inf for seconds in phases.values())
  assert run.wall_seconds() >= 0 and (not events or math.isfinite(sum(phases.values())))
  assert all(s.begin <= s.start <= s.end for s in run.sessions())
  history.describe_goodput(run)


def test_a_clock_set_back_is_said_and_counts_as_zero(tmp_path):
  events = [
    (0, 'start', at(0)),
    (20, 'checkpoint', at(10)),
    (-3580, 'checkpoint', at(20)),
    (-3570, 'preempted', at(20)),
    (-9000, 'resume', at(20, startup={'import': 2.0})),
    (-8990, 'done', at(30)),
  ]
  run = write_run(tmp_path / 'run', events, [])
  assert run.clock_faults() == (
    '2 records are up to 5,430 s older than the record before: the clock was set back, or machines differ. '
    'Such intervals count as zero.'
  )
  assert run.wall_seconds() == pytest.approx(20 + 10 + 10)
  assert sum(history.seconds_by_phase(run).values()) == pytest.approx(20 + 10 + 2 + 10)
  assert write_run(tmp_path / 'other', THREE_RESTARTS, REMAINING).clock_faults() == ''


def test_times_of_a_process_do_not_follow_its_clock(monkeypatch):
  before = startup_timer.unix_time()
  assert abs(before - time.time()) < 60
  monkeypatch.setattr(time, 'time', lambda: 0.0)
  assert 0 <= startup_timer.unix_time() - before < 60
  assert history.unix_seconds(startup_timer.utc_time()) == pytest.approx(before, abs=60)


def test_a_finished_run_that_is_started_again_has_no_further_session(tmp_path):
  run = write_run(tmp_path / 'run', [*THREE_RESTARTS, (9000, 'resume', at(60))], REMAINING)
  done = history.History(run.folder, {}, run.metrics, run.events, {'steps': 60}, [])
  assert (len(run.sessions()), len(done.sessions())) == (5, 4)
  assert sum(history.seconds_by_phase(done).values()) == pytest.approx(154)


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
