"""A study divided among the tasks of a job array: each trains every n-th run in one shared folder.

The tasks need no word from each other but their numbers: the order of the runs is the study's, each
run folder has its own lock, and what a task notes lies in its own shares/I of N, so that no file
has two writers. Whoever comes first proves the arms and measures for all, and whoever ends last
judges and reports.
"""

import contextlib
import re
import time

from gpt_jax.ablation import store
from gpt_jax.ablation.execute import runner
from gpt_jax.runs import records


def parse_share(text):
  """'0/4' -> (0, 4); ValueError for what is no share."""
  found = re.fullmatch(r'(\d{1,6})/(\d{1,6})', text)
  if not found or int(found[1]) >= int(found[2]):
    raise ValueError(f'--share={text} is no share\nfix: write I/N with I from 0 to N-1, such as 0/4')
  return int(found[1]), int(found[2])


def run(study, workdir, share, should_stop=lambda: False, workers=0, say=print):
  """Train the runs of a share that are not done -> whether that is all; False if stopped."""
  workdir, (number, count) = runner.check_study_folder(workdir), share
  place = workdir / 'shares' / f'{number} of {count}'
  place.mkdir(parents=True, exist_ok=True)
  with records.locked(place):
    left = prepare(study, workdir, share, should_stop, say)
    if left is None or not runner.train_all(workdir, place, left, study, should_stop, workers, say):
      return False
    with study_lock(workdir, should_stop) as ours:
      if ours:
        finish(workdir, say)
  return ours


def prepare(study, workdir, share, should_stop, say):
  """Prove the arms, write study.json -> the runs of this share that are left; None if stopped."""
  prove = lambda: runner.prove_study(study, workdir / 'cache', say)

  def write(made):
    arms, proofs, description = made
    mine = runner.make_tasks(study, arms, proofs, workdir)[share[0] :: share[1]]
    return runner.write_study(workdir, mine, description, say)

  with study_lock(workdir, should_stop) as ours:
    if ours and not (workdir / 'study.json').exists():
      return write(prove())
  made = prove() if ours else None  # beside others, with what the first has measured
  with study_lock(workdir, should_stop) as ours:
    return write(made) if ours else None


def finish(workdir, say):
  """Judge and report, if this is the last share."""
  rows = store.read_runs(workdir)
  if rest := sum(row['status'] in ('missing', 'unfinished') for row in rows):
    say(f'{rest} runs of other shares are not done; the last share writes the report')
  else:
    runner.judge(workdir, say)


@contextlib.contextmanager
def study_lock(workdir, should_stop):
  """Hold the study's folder for a moment, after whoever holds it now; False if asked to stop."""
  with contextlib.ExitStack() as stack:
    ours = False
    while not (ours or should_stop()):
      try:
        stack.enter_context(records.locked(workdir))
        ours = True
      except ValueError:
        time.sleep(0.2)
    yield ours
