"""Job arrays: divide a study among tasks that each train the runs of some seeds in one shared folder.

The order of the runs is the study's, each run folder has its own lock, and each task records its attempts in
its own folder shares/I of N. The first task proves the arms and measures for all; the last one judges.
"""

import contextlib
import re
import time

from gpt_jax.ablation import store
from gpt_jax.ablation.execute import runner
from gpt_jax.runs import loggers, records


def parse_share(text):
  """'0/4' -> (0, 4); ValueError for other texts."""
  match = re.fullmatch(r'(\d{1,6})/(\d{1,6})', text)
  if not match or int(match[1]) >= int(match[2]):
    raise ValueError(f'--share={text} is not a share\nfix: write I/N with I from 0 to N-1, such as 0/4')
  return int(match[1]), int(match[2])


def run(study, workdir, share, should_stop=lambda: False, workers=0, say=loggers.say):
  """Train the runs of a share that are not done -> whether all ended; False if stopped."""
  workdir, (number, count) = runner.check_study_folder(workdir), share
  log_folder = workdir / 'shares' / f'{number} of {count}'
  log_folder.mkdir(parents=True, exist_ok=True)
  with records.locked(log_folder):
    tasks = prepare(study, workdir, share, should_stop, say)
    if tasks is None or not runner.train_all(workdir, log_folder, tasks, study, should_stop, workers, say):
      return False
    with study_lock(workdir, should_stop) as locked:
      if locked:
        finish(workdir, say)
  return locked


def prepare(study, workdir, share, should_stop, say):
  """Prove the arms, write study.json -> the tasks of this share that are left; None if stopped."""
  prove = lambda: runner.prove_study(study, workdir / 'cache', say)

  def write(arms, proofs, description):
    tasks = runner.make_tasks(study, arms, proofs, workdir)
    tasks = runner.select_share(tasks, share, lambda task: task.seed)
    return runner.write_study(workdir, tasks, description, say)

  with study_lock(workdir, should_stop) as locked:
    if locked and not (workdir / 'study.json').exists():
      return write(*prove())
  if not locked:
    return None
  proved = prove()  # without the lock: with the measurements of the first task
  with study_lock(workdir, should_stop) as locked:
    return write(*proved) if locked else None


def finish(workdir, say):
  """Judge and report, if this is the last share."""
  rows = store.read_runs(workdir)
  if count := sum(row['status'] in ('missing', 'unfinished') for row in rows):
    say(f'{count} runs of other shares are not done; the last share writes the report')
  else:
    runner.judge(workdir, say)


@contextlib.contextmanager
def study_lock(workdir, should_stop):
  """Wait for the lock of the study's folder and hold it; yields False if stopped."""
  with contextlib.ExitStack() as stack:
    locked = False
    while not (locked or should_stop()):
      try:
        stack.enter_context(records.locked(workdir))
        locked = True
      except ValueError:
        time.sleep(0.2)
    yield locked
