"""A process that trains one job after another, so that imports and compiled programs are paid once.

  JAX_COMPILATION_CACHE_DIR=FOLDER python -m gpt_jax.ablation.execute.worker

Each line of stdin is a job in JSON, {"configs": [...], "folders": [...]}: configs as in
config.json, one run folder each; several are trained together, as replicas. Each job is answered
by a line of stdout, {"outcomes": [{"outcome", "code", "message", "seconds"}, ...]}, one for each
run (replicas.Outcome); what the runs print goes to stderr. The end of stdin ends the process.
SIGTERM, Ctrl-C or the death of the parent (whose process id is GPT_JAX_PARENT) end it after saving,
with exit code 75; a second signal ends it at once.
"""

import json
import os
import signal
import sys
import time

from gpt_jax.runs import startup_timer

STOPPED = 75


class Stop:
  """A request to end, by a signal or because nobody is left to read the answer."""

  def __init__(self):
    self.asked, self.busy = False, False
    self.parent = int(os.environ.get('GPT_JAX_PARENT', os.getppid()))
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self)

  def __call__(self, number, frame):
    """Handle a signal."""
    if self.asked:
      os._exit(130)
    self.asked = True
    if not self.busy:
      sys.exit(STOPPED)

  def wanted(self):
    """What the training loop asks."""
    self.asked = self.asked or os.getppid() != self.parent
    return self.asked


def serve(job, should_stop):
  """One job -> the answer."""
  from gpt_jax import config
  from gpt_jax.ablation.execute import replicas
  from gpt_jax.runs import records

  start, count = time.perf_counter(), len(job['configs'])
  try:
    configs = [config.build(config.Config, records.from_json(cfg)) for cfg in job['configs']]
    outcomes = replicas.train_together(configs, job['folders'], should_stop)
  except Exception as error:  # a config that cannot be, or runs that do not belong together
    outcomes = [replicas.outcome_of_error(error)] * count
  seconds = (time.perf_counter() - start) / count
  told = [{**outcome._asdict(), 'seconds': seconds} for outcome in outcomes]
  return {'outcomes': [{k: v for k, v in row.items() if k != 'result'} for row in told]}


def main():
  """Serve the jobs of stdin -> exit code."""
  answers = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)  # whatever prints, also below Python
  stop = Stop()
  for n, line in enumerate(iter(sys.stdin.readline, '')):
    stop.busy = True
    if n:  # it waited for this one
      startup_timer.reset()
    answer = serve(json.loads(line), stop.wanted)
    print(json.dumps(answer), file=answers, flush=True)
    stop.busy = False
    if stop.wanted():
      return STOPPED
  return 0


if __name__ == '__main__':
  sys.exit(main())
