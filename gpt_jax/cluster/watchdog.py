"""Preemption signals, hangs, and the death of another process of a distributed job.

The first of signals.SIGNALS, to any process and in any phase, requests that the whole job saves and stops at
one step that all processes agree on; a second SIGTERM or SIGINT exits at once, and so does the first while
there is nothing to save. A thread reads the signals, so that this works while the main thread is in a
compiler or waits for a device. The agreement is JAX's (multihost_utils.reached_preemption_sync_point).
"""

import ctypes
import faulthandler
import functools
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from gpt_jax.cluster import signals

# A second one of these exits at once. SIGHUP comes twice when a terminal closes: from shell and kernel.
IMPATIENT = (signal.SIGTERM, signal.SIGINT)
DUMP_SECONDS = 30  # a hung process has this long to write its stacks
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
PEER_LOST = (
  'error: another process of this job ended, or stopped sending heartbeats\n'
  'fix: read its log, then run the same command again in all processes; everything saved is safe'
)


class Watchdog:
  """Stop requests and hangs of one process. Create it on the main thread; needs no jax at first.

  exit_at_first: the signals.Exit at a first signal, until `wait_for_save`.
  """

  def __init__(self, exit_at_first=signals.BEFORE_RUN):
    self.stop_requested, self.stop_agreed = False, False
    self.has_peers, self.is_primary, self.notify_peers, self.keep_alive = False, True, None, []
    self.calls, self.step = 0, 0  # calls of should_stop, and the step of the last one
    self.hang_seconds, self.last_call, self.folder = 0.0, None, Path()
    self.exit_at_first = exit_at_first
    self.signals = exit_at_first.numbers()
    self.terminals = [fd for fd in (0, 1, 2) if os.isatty(fd)]
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    self._ignore_signals()
    self.keep_alive += [receiver, sender]
    threading.Thread(target=self._listen, args=(receiver,), daemon=True, name='signals').start()

  def _ignore_signals(self):
    for number in self.signals:
      signal.signal(number, lambda *_: None)

  def wait_for_save(self):
    """Let a stop request wait for the run to save, from now on."""
    self.exit_at_first = None

  def share_requests(self, process, processes):
    """Share stop requests with the other processes; call it once, after joining a job as `process`."""
    if processes == 1:
      return
    self.is_primary = process == 0
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    self.notify_peers = HANDLER(libc.signal(signal.SIGTERM, None))  # JAX's handler starts the agreement
    self._ignore_signals()
    self.has_peers = True
    if self.stop_requested:
      self.notify_peers(signal.SIGTERM)

  def _listen(self, receiver):
    while numbers := receiver.recv(1):
      if numbers[0] not in self.signals:
        continue
      if numbers[0] == signal.SIGHUP:
        self._leave_terminals()
      if self.stop_requested and numbers[0] not in IMPATIENT:
        continue
      if self.stop_requested:
        os._exit(signals.EXIT_AT_ONCE)  # the last checkpoint is good
      self.stop_requested = True
      if outcome := self.exit_at_first:
        outcome()
      # One write: the main thread prints, too.
      os.write(2, b'stopping: will save after this step; signal again to exit at once\n')
      if self.notify_peers:
        self.notify_peers(signal.SIGTERM)

  def _leave_terminals(self):
    """Send what is printed nowhere: writing to a terminal that is gone is an error, and would end the run."""
    with open(os.devnull, 'r+b') as nowhere:
      for terminal in self.terminals:
        os.dup2(nowhere.fileno(), terminal)

  def should_stop(self, step):
    """Whether to save and stop now, after `step` steps; all processes must call it equally often."""
    from jax.experimental import multihost_utils

    self.last_call, self.step, self.calls = time.monotonic(), step, self.calls + 1
    if not self.has_peers:
      return self.stop_requested
    if not self.stop_agreed and multihost_utils.reached_preemption_sync_point(self.calls):
      self.stop_agreed = True
      if self.is_primary:
        print(f'stopping: all processes agreed to, after step {step}', file=sys.stderr, flush=True)
    return self.stop_agreed

  def start_hang_timer(self, seconds, folder):
    """From the first `should_stop` on, end the process if it is not called for this long; 0: never."""
    if seconds:
      self.hang_seconds, self.folder = seconds, Path(folder).expanduser()
      threading.Thread(target=self._wait_for_hang, daemon=True, name='watchdog').start()

  def _wait_for_hang(self):
    pause = min(1.0, self.hang_seconds / 4)
    while self.last_call is None or time.monotonic() - self.last_call < self.hang_seconds:
      time.sleep(pause)
    # Ends the process even if this thread does not get the interpreter's lock or hangs itself, on the
    # same file system for example.
    faulthandler.dump_traceback_later(DUMP_SECONDS, exit=True)
    stacks = self.folder / f'stacks_{os.getpid()}.txt'
    try:
      with open(stacks, 'w') as file:
        faulthandler.dump_traceback(file)
    except OSError:
      faulthandler.dump_traceback()
      stacks = 'printed above'
    exit_now(
      f'error: no progress for {self.hang_seconds:g} seconds (train.hang_seconds) after step {self.step}; '
      f'stack of each thread: {stacks}\n'
      'fix: run the same command again: it resumes from the last checkpoint'
    )


@functools.cache
def process_watchdog():
  """The Watchdog of this process; the first call creates it."""
  return Watchdog()


@HANDLER
def on_abort(number):
  """Exit with the cause: JAX aborts a process whose peers are gone."""
  exit_now(PEER_LOST)


def handle_abort():
  """Let an abort of JAX end this process of a job with a cause and a fix."""
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  libc.signal(signal.SIGABRT, ctypes.cast(on_abort, ctypes.c_void_p))


def exit_now(message):
  """Print why and exit at once, whatever other threads do."""
  os.write(2, f'{message}\n'.encode())
  os._exit(1)
