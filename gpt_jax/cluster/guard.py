"""What may happen to a process: signals, a hang, the death of another process of its job.

The first SIGTERM or Ctrl-C, to any process and in any phase, is a request that the whole job
honors at one moment that all agree on; a second one leaves at once. Signals are read by a thread,
so that this holds while the main thread sits in a compiler or waits for a device. The agreement is
JAX's (multihost_utils.reached_preemption_sync_point), which calls such a moment a step.
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

SIGNALS = (signal.SIGTERM, signal.SIGINT)
DYING = 30  # seconds that a process may take to say that it hangs
LEFT = 130  # exit code of who was asked twice
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
DEAD = (
  'error: another process of this job ended, or was not heard from any more\n'
  'fix: its own log says why; run the same command again in all processes: what was saved is safe'
)


class Guard:
  """Watches over one process. Make it on the main thread; needs no jax until `joined`."""

  def __init__(self):
    """From now on the first signal is a request."""
    self.asked, self.agreed = False, False
    self.others, self.kept, self.tell = False, [], None
    self.moments, self.step = 0, 0  # how often `stop` was asked, and about which step last
    self.patience, self.heard, self.folder = 0.0, None, Path()
    ours, signals = socket.socketpair()
    signals.setblocking(False)
    self._take_signals()
    signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
    self.kept += [ours, signals]
    threading.Thread(target=self._listen, args=(ours,), daemon=True, name='signals').start()

  def _take_signals(self):
    for number in SIGNALS:
      signal.signal(number, lambda *_: None)

  def joined(self):
    """Share requests with the other processes of the job; call it once, after joining one."""
    import jax

    if jax.process_count() == 1:
      return
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    self.tell = HANDLER(libc.signal(signal.SIGTERM, None))  # JAX's handler starts the agreement
    self._take_signals()
    ended = HANDLER(lambda number: end(DEAD))  # JAX aborts the process
    self.kept.append(ended)
    libc.signal(signal.SIGABRT, ctypes.cast(ended, ctypes.c_void_p))
    self.others = True
    if self.asked:
      self.tell(signal.SIGTERM)

  def _listen(self, ours):
    while numbers := ours.recv(1):
      if numbers[0] not in SIGNALS:
        continue
      if self.asked:
        os._exit(LEFT)  # asked twice: leave at once; what was saved before is good
      self.asked = True
      print('stopping: will save after this step; again to leave at once', file=sys.stderr, flush=True)
      if self.tell:
        self.tell(signal.SIGTERM)

  def stop(self, step):
    """Whether to save and leave now, after so many steps; all processes must ask equally often."""
    from jax.experimental import multihost_utils

    self.heard, self.step, self.moments = time.monotonic(), step, self.moments + 1
    if not self.others:
      return self.asked
    if not self.agreed and multihost_utils.reached_preemption_sync_point(self.moments):
      self.agreed = True
      print(f'stopping: all processes agreed to, after step {step}', file=sys.stderr, flush=True)
    return self.agreed

  def watch(self, seconds, folder):
    """End the process when `stop` was once asked, and then for so long not again; 0: never."""
    if seconds:
      self.patience, self.folder = seconds, Path(folder).expanduser()
      threading.Thread(target=self._watch, daemon=True, name='watchdog').start()

  def _watch(self):
    pause = min(1.0, self.patience / 4)
    while self.heard is None or time.monotonic() - self.heard < self.patience:
      time.sleep(pause)
    # The process ends all the same if this thread does not get the interpreter's lock, or hangs
    # itself: the folder may be why.
    faulthandler.dump_traceback_later(DYING, exit=True)
    where = self.folder / f'stacks_{os.getpid()}.txt'
    try:
      with open(where, 'w') as file:
        faulthandler.dump_traceback(file)
    except OSError:
      faulthandler.dump_traceback()
      where = 'above'
    end(
      f'error: nothing was done for {self.patience:g} seconds (train.hang_seconds) after step '
      f'{self.step}; what each thread was in: {where}\n'
      'fix: run the same command again: it goes on from the last checkpoint'
    )


@functools.cache
def watcher():
  """The Guard of this process: the first call makes it."""
  return Guard()


def end(message):
  """Say why and leave now, whatever other threads do."""
  os.write(2, f'{message}\n'.encode())
  os._exit(1)
