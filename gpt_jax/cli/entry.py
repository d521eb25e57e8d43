"""Entry point of launch.py and of the console script: what has to happen before the slow imports."""

import os
import signal
import sys

from gpt_jax.cluster import signals

PREEMPTIBLE = ('train', 'ablate')  # verbs that save when a signal asks them to stop

# glibc returns large blocks to the kernel and page-faults them in again, step after step: keeping
# them makes CPU steps faster. It reads these at start only, so that the process starts again with them.
ALLOCATOR = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': '100000000000'}


def run():
  """Run a verb of the command line and exit with its code, at any signal in the way that it promises."""
  can_save = sys.argv[1:2] and sys.argv[1] in PREEMPTIBLE and '--dry_run' not in sys.argv
  signals.exit_at_first(signals.BEFORE_RUN if can_save else signals.INTERRUPTED)
  if sys.platform == 'linux' and not ALLOCATOR.keys() & os.environ.keys():
    # Blocked signals wait for the new process, where nothing handles them at first.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
  from gpt_jax.cluster import watchdog

  watchdog.process_watchdog() if can_save else watchdog.Watchdog(signals.INTERRUPTED)
  from gpt_jax.cli import main

  main.run()
