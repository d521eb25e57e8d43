"""Which signals ask a process to stop, and what happens while it has nothing to save.

It imports as little as possible (`typing` takes 7 ms): the command line handles signals before its slow
imports, and until then Python prints a traceback.
"""

import os
import signal

# SIGHUP: the terminal or connection is gone. SIGUSR1, SIGUSR2: SLURM's --signal, submitit, LSF, Grid Engine.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PREEMPTED = 75  # exit code of a process that was asked to stop: run the same command again
EXIT_AT_ONCE = 130  # exit code after a second signal


class Exit:
  """How a process ends that has nothing to save, and the signals that end it."""

  def __init__(self, signals, unless_ignored, line, code):
    """signals: a tuple; unless_ignored: the one that stays ignored where the process was started so."""
    self.signals, self.unless_ignored = signals, unless_ignored
    self.line, self.code = line, code

  def numbers(self):
    """Return the signals that this process handles."""
    is_ignored = signal.getsignal(self.unless_ignored) == signal.SIG_IGN
    return [number for number in self.signals if not (is_ignored and number == self.unless_ignored)]

  def __call__(self, *_):
    """Print the line and exit at once, without cleaning up: a library may be half imported."""
    os.write(2, self.line)
    os._exit(self.code)


# `nohup` starts a process with SIGHUP ignored, a shell one in the background with SIGINT, and they mean it;
# but a SIGINT that is sent to training in the background asks it to save.
BEFORE_RUN = Exit(
  SIGNALS, signal.SIGHUP, b'stopped: nothing to save yet; run the same command again\n', PREEMPTED
)
INTERRUPTED = Exit((signal.SIGINT,), signal.SIGINT, b'interrupted\n', 1)


def exit_at_first(outcome):
  """Let the first of its signals end this process as `outcome`, an Exit, says."""
  for number in outcome.numbers():
    signal.signal(number, outcome)
