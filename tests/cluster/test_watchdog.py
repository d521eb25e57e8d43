"""What ends a process: signals, a hang."""

import signal
import subprocess
import sys

import pytest

from gpt_jax.cluster import signals, watchdog
from tests import command_line

START = """
import signal, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
from gpt_jax.cluster.watchdog import Watchdog
watchdog = Watchdog()
watchdog.wait_for_save()
"""


def run(program, *numbers, folder='.'):
  """Run a program and send it a signal each time it prints 'ready' -> (exit code, output lines)."""
  command = [sys.executable, '-c', START + program, str(folder)]
  options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=command_line.ROOT)
  with subprocess.Popen(command, **options) as process:
    lines = []
    for line in process.stdout:
      lines.append(line.rstrip())
      if numbers and line == 'ready\n':
        process.send_signal(numbers[0])
        numbers = numbers[1:]
    return process.wait(30), lines


@pytest.mark.parametrize('number', signals.SIGNALS)
def test_the_first_signal_requests_a_stop_and_the_second_exits(number):
  program = """
import jax
print('ready', flush=True)
while not watchdog.should_stop(3):
  time.sleep(0.01)
print('saved', flush=True)
print('ready', flush=True)
time.sleep(60)
"""
  code, lines = run(program, number, number if number in watchdog.IMPATIENT else signal.SIGTERM)
  assert code == signals.EXIT_AT_ONCE
  assert [line for line in lines if line != 'ready'] == [
    'stopping: will save after this step; signal again to exit at once',
    'saved',
  ]


def test_a_hang_up_that_comes_twice_still_saves():
  """A shell passes SIGHUP on when its terminal closes, and the kernel sends another."""
  program = """
import jax, os
while not watchdog.should_stop(3):
  os.kill(os.getpid(), signal.SIGHUP)
  time.sleep(0.05)
for _ in range(3):
  os.kill(os.getpid(), signal.SIGHUP)
  time.sleep(0.05)
print('saved', flush=True)
"""
  code, lines = run(program)
  assert (code, lines) == (0, ['stopping: will save after this step; signal again to exit at once', 'saved'])


def test_the_second_signal_exits_while_the_main_thread_is_outside_python():
  """As in a compiler: handlers in Python would wait for its end."""
  program = """
import ctypes, threading
def print_ready():
  while not watchdog.stop_requested:  # two signals at once may be one
    time.sleep(0.01)
  print('ready', flush=True)
threading.Thread(target=print_ready).start()
print('ready', flush=True)
for _ in range(3):  # a signal ends it early
  ctypes.CDLL(None).sleep(60)
"""
  code, lines = run(program, signal.SIGTERM, signal.SIGTERM)
  assert code == signals.EXIT_AT_ONCE, lines


def test_a_hang_ends_the_process_and_writes_its_stacks(tmp_path):
  program = """
import sys
def where_it_hangs():
  time.sleep(60)
watchdog.start_hang_timer(0.5, sys.argv[1])
time.sleep(1)  # time before the first step does not count
watchdog.should_stop(7)
where_it_hangs()
"""
  code, lines = run(program, folder=tmp_path)
  assert code == 1
  [stacks] = tmp_path.glob('stacks_*.txt')
  assert 'where_it_hangs' in stacks.read_text()
  cause, fix = lines[-2:]
  assert cause.startswith('error: no progress for 0.5 seconds (train.hang_seconds) after step')
  assert f'step 7; stack of each thread: {stacks}' in cause
  assert fix.startswith('fix: run the same command again')


def test_stacks_are_printed_where_no_file_can_be_written(tmp_path):
  program = """
import sys
watchdog.start_hang_timer(0.5, sys.argv[1])
watchdog.should_stop(7)
def where_it_hangs():
  time.sleep(60)
where_it_hangs()
"""
  code, lines = run(program, folder=tmp_path / 'gone')
  assert code == 1
  assert any('where_it_hangs' in line for line in lines)
  assert 'stack of each thread: printed above' in lines[-2]


def test_slow_steps_are_not_a_hang(tmp_path):
  program = """
import jax, sys
watchdog.start_hang_timer(1, sys.argv[1])
for step in range(20):
  watchdog.should_stop(step)
  time.sleep(0.1)
print('done')
"""
  assert run(program, folder=tmp_path) == (0, ['done'])
  assert not list(tmp_path.iterdir())
