"""What signals do before a verb runs: one line and the exit code of the table, never a traceback."""

import signal
import subprocess
import sys

import pytest

from gpt_jax.cluster import signals
from tests import command_line

PROGRAM = """
import os, signal, sys, types
import gpt_jax.cli
from gpt_jax.cli import entry

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored

def run():  # in place of a verb's imports and of a compiler, which hold the main thread
  print('ready', flush=True)
  import ctypes
  for _ in range(3):  # a signal ends it early
    ctypes.CDLL(None).sleep(60)

gpt_jax.cli.main = types.SimpleNamespace(run=run)
"""
BEFORE_RESTART = """
def execve(*args, execve=os.execve):
  for _ in range(2):
    os.kill(os.getpid(), signal.SIGINT)
  execve(*args)
os.execve = execve
"""
STOPPED = (75, 'stopped: nothing to save yet; run the same command again\n')
VERBS = {
  ('train',): STOPPED,
  ('ablate',): STOPPED,
  ('ablate', '--dry_run'): (1, 'interrupted\n'),
  ('sample',): (1, 'interrupted\n'),
}


def start(program, args):
  """Start a program that runs the command line with these arguments."""
  command = [sys.executable, '-c', f'{PROGRAM}{program}\nentry.run()', *args]
  environ = {'PATH': '', 'PYTHONPATH': str(command_line.ROOT)}
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  return subprocess.Popen(command, env=environ, **pipes)


@pytest.mark.parametrize('args', VERBS)
def test_two_interrupts_before_a_verb_runs_end_in_one_line(args):
  with start('', args) as process:
    assert process.stdout.readline() == 'ready\n'
    for _ in range(2):
      process.send_signal(signal.SIGINT)
    assert (process.wait(20), process.stderr.read()) == VERBS[args]


def test_an_interrupt_while_the_process_restarts_is_not_lost():
  with start(BEFORE_RESTART, ('train',)) as process:
    assert (process.wait(20), process.stderr.read(), process.stdout.read()) == (*STOPPED, '')


def test_a_process_in_the_background_keeps_its_interrupts_ignored():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    assert signals.INTERRUPTED.numbers() == []
    assert signal.SIGINT in signals.BEFORE_RUN.numbers()
  finally:
    signal.signal(signal.SIGINT, before)
