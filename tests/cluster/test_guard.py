"""What ends a process, by a process: signals, a hang, an abort."""

import signal
import subprocess
import sys

import pytest

from gpt_jax.cluster import guard
from tests import command_line

START = """
import time
from gpt_jax.cluster.guard import Guard
watcher = Guard()
"""


def run(program, *numbers, folder='.'):
  """-> (exit code, lines of its output) of a program that is sent signals as it says 'ready'."""
  command = [sys.executable, '-c', START + program, str(folder)]
  options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=command_line.ROOT)
  with subprocess.Popen(command, **options) as process:
    said = []
    for line in process.stdout:
      said.append(line.rstrip())
      if numbers and line == 'ready\n':
        process.send_signal(numbers[0])
        numbers = numbers[1:]
    return process.wait(30), said


@pytest.mark.parametrize('number', guard.SIGNALS)
def test_a_first_signal_is_a_request_and_a_second_one_the_end(number):
  program = """
import jax
print('ready', flush=True)
while not watcher.stop(3):
  time.sleep(0.01)
print('saved', flush=True)
print('ready', flush=True)
time.sleep(60)
"""
  code, said = run(program, number, number)
  assert code == guard.LEFT
  assert [line for line in said if line != 'ready'] == [
    'stopping: will save after this step; again to leave at once',
    'saved',
  ]


def test_a_second_signal_leaves_while_the_main_thread_is_out_of_python():
  """As in a compiler: handlers in Python would wait for its end."""
  program = """
import ctypes, threading
def tell():
  while not watcher.asked:  # two signals at once may be one
    time.sleep(0.01)
  print('ready', flush=True)
threading.Thread(target=tell).start()
print('ready', flush=True)
for _ in range(3):  # a signal ends it early
  ctypes.CDLL(None).sleep(60)
"""
  code, said = run(program, signal.SIGTERM, signal.SIGTERM)
  assert code == guard.LEFT, said


def test_a_hang_is_told_with_what_each_thread_was_in(tmp_path):
  program = """
import sys
def where_it_hangs():
  time.sleep(60)
watcher.watch(0.5, sys.argv[1])
time.sleep(1)  # what comes before the first step may take its time
watcher.stop(7)
where_it_hangs()
"""
  code, said = run(program, folder=tmp_path)
  assert code == 1
  [stacks] = tmp_path.glob('stacks_*.txt')
  assert 'where_it_hangs' in stacks.read_text()
  cause, fix = said[-2:]
  assert cause.startswith('error: nothing was done for 0.5 seconds (train.hang_seconds) after step')
  assert f'step 7; what each thread was in: {stacks}' in cause
  assert fix.startswith('fix: run the same command again')


def test_a_hang_ends_the_process_where_nothing_can_be_written(tmp_path):
  program = """
import sys
watcher.watch(0.5, sys.argv[1])
watcher.stop(7)
def where_it_hangs():
  time.sleep(60)
where_it_hangs()
"""
  code, said = run(program, folder=tmp_path / 'gone')
  assert code == 1
  assert any('where_it_hangs' in line for line in said)
  assert 'what each thread was in: above' in said[-2]


def test_work_is_no_hang(tmp_path):
  program = """
import jax, sys
watcher.watch(1, sys.argv[1])
for step in range(20):
  watcher.stop(step)
  time.sleep(0.1)
print('done')
"""
  assert run(program, folder=tmp_path) == (0, ['done'])
  assert not list(tmp_path.iterdir())
