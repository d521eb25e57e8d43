"""What may happen to a process: signals, a hang, the death of another process of its job.

The first SIGTERM or Ctrl-C, to any process and in any phase, is a request that the whole job
honours at one step that all agree on; a second one leaves at once. Signals are read by a thread, so
that this holds while the main thread sits in a compiler or waits for a device. The agreement on a
step is JAX's (multihost_utils.reached_preemption_sync_point).
"""

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEFT = 130  # exit code of who was asked twice
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
DEAD = (
  'error: another process of this job ended, or was not heard from any more\n'
  'fix: its own log says why; run the same command again in all processes: what was saved is safe'
)


class Guard:
  """Watches over one process of a job. Make it after joining the job, on the main thread."""

  def __init__(self):
    """From now on the first signal is a request."""
    self.asked, self.kept, self.previous = False, [], None
    self.patience, self.heard, self.folder = 0.0, time.monotonic(), Path()
    ours, signals = socket.socketpair()
    signals.setblocking(False)
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    if together():
      self.previous = HANDLER(libc.signal(signal.SIGTERM, None))  # JAX's: starts the agreement
      ended = HANDLER(lambda number: end(DEAD))
      self.kept.append(ended)
      libc.signal(signal.SIGABRT, ctypes.cast(ended, ctypes.c_void_p))
    for number in SIGNALS:
      signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
    self.kept += [ours, signals]
    threading.Thread(target=self._listen, args=(ours,), daemon=True, name='signals').start()

  def _listen(self, ours):
    while numbers := ours.recv(1):
      if numbers[0] not in SIGNALS:
        continue
      if self.asked:
        os._exit(LEFT)  # asked twice: leave at once; what was saved before is good
      self.asked = True
      print('stopping: will save after this step; again to leave at once', file=sys.stderr)
      sys.stderr.flush()
      if self.previous:
        self.previous(signal.SIGTERM)

  def stop(self, step):
    """Whether to save and leave before the next step; ask once for each step, in all processes."""
    self.alive()
    return multihost_utils.reached_preemption_sync_point(step) if together() else self.asked

  def alive(self):
    """Something got done."""
    self.heard = time.monotonic()

  def watch(self, seconds, folder):
    """End the process when nothing got done for so long, and say where it stood; 0: never."""
    if not seconds:
      return
    self.patience, self.folder = seconds, Path(folder)
    self.alive()
    threading.Thread(target=self._watch, daemon=True, name='watchdog').start()

  def _watch(self):
    pause = min(1.0, self.patience / 4)
    while time.monotonic() - self.heard < self.patience:
      time.sleep(pause)
    path = self.folder / f'stacks_{jax.process_index()}.txt'
    with open(path, 'w') as file:
      # Should this thread not get the interpreter's lock either, the process ends all the same.
      faulthandler.dump_traceback_later(30, exit=True, file=file)
      faulthandler.dump_traceback(file)
    end(
      f'error: no step, evaluation or save was done in {self.patience:g} seconds '
      f'(train.hang_seconds); what each thread was in: {path}\n'
      'fix: run the same command again: it goes on from the last checkpoint'
    )


def together():
  """Whether this process is one of several."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def end(message):
  """Say why and leave now, whatever other threads do."""
  os.write(2, f'{message}\n'.encode())
  os._exit(1)
