"""Worker: a process that trains one job after another, so that imports and compilation are paid once.

Each line of stdin is a job in JSON, {"configs": [...], "folders": [...]}: configs like config.json, one run
folder each; several are trained together, as replicas. The answer is a line of stdout,
{"outcomes": [{"outcome", "code", "message"}, ...]} (replicas.Outcome); between steps a line
{"heartbeat": true} follows every half second. The output of the runs goes to stderr, without secrets.
SIGTERM, Ctrl-C or the death of the parent (whose process id is GPT_JAX_PARENT) end it after saving, with exit
code 75; a second signal ends it at once. SIGABRT prints the stack of each thread.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import time

from gpt_jax.runs import startup_timer
from gpt_jax.runs.secrets import RedactedStream

STOPPED = 75
HEARTBEAT_SECONDS = 0.5


class Stop:
  """A request to end, by a signal or because the parent died; asking for it is a sign of life."""

  def __init__(self, answers):
    """answers: file for heartbeats."""
    self.answers, self.requested, self.busy, self.last_heartbeat = answers, False, False, 0.0
    self.parent = int(os.environ.get('GPT_JAX_PARENT', os.getppid()))
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self)

  def __call__(self, number, frame):
    """Handle a signal."""
    if self.requested:
      os._exit(130)
    self.requested = True
    if not self.busy:
      sys.exit(STOPPED)

  def is_requested(self):
    """Whether to stop; the training loop calls it between steps."""
    self.requested = self.requested or os.getppid() != self.parent
    if time.monotonic() - self.last_heartbeat > HEARTBEAT_SECONDS:
      self.last_heartbeat = time.monotonic()
      with contextlib.suppress(OSError):  # nobody reads any more: save and leave
        print('{"heartbeat": true}', file=self.answers, flush=True)
    return self.requested


def train_job(job, should_stop):
  """Train the runs of a job -> the answer."""
  from gpt_jax import config
  from gpt_jax.ablation.execute import replicas
  from gpt_jax.runs import records

  try:
    configs = [config.build(config.Config, records.from_json(cfg)) for cfg in job['configs']]
    outcomes = replicas.train_together(configs, job['folders'], should_stop)
  except Exception as error:  # an invalid config, or runs that do not belong together
    outcomes = [replicas.outcome_of_error(error)] * len(job['configs'])
  keys = ('outcome', 'code', 'message')
  return {'outcomes': [{key: getattr(outcome, key) for key in keys} for outcome in outcomes]}


def main():
  """Train the jobs of stdin -> exit code."""
  answers = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)  # all other output, also below Python, goes to stderr
  faulthandler.enable()
  sys.stdout = sys.stderr = RedactedStream(sys.stderr)  # the log stays in the study folder
  stop = Stop(answers)
  for n, line in enumerate(iter(sys.stdin.readline, '')):
    stop.busy, stop.last_heartbeat = True, 0.0
    if n:  # time spent idle is not startup time
      startup_timer.reset()
    answer = train_job(json.loads(line), stop.is_requested)
    print(json.dumps(answer), file=answers, flush=True)
    stop.busy = False
    if stop.is_requested():
      return STOPPED
  return 0


if __name__ == '__main__':
  sys.exit(main())
