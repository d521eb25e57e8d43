"""Trains what a study plans, whatever happens on the way, then judges and reports.

Each (arm, seed) is an ordinary run folder, so that whatever ends this process, the same command
goes on: what is done is skipped, what has begun resumes. Runs are handed to training processes
(pool.py), alone or in groups that share a compiled program; a short measurement says which is
faster here. A run that fails is written to attempts.jsonl and does not disturb the others.
"""

import functools
import itertools
import tempfile
import time
from pathlib import Path

from gpt_jax import config
from gpt_jax.ablation import design, proof, store
from gpt_jax.ablation.execute import replicas, scheduler
from gpt_jax.ablation.execute.executor import Executor, Task, utc_now
from gpt_jax.ablation.stats import analyze
from gpt_jax.reports.study import study_report
from gpt_jax.runs import records, run_folder
from gpt_jax.training import session

OURS = ('cache', 'compiled', 'logs', 'optuna', 'runs', 'shares')  # what a study has before it has study.json
ENDED = ('done', 'diverged')  # not tried again by a later call; the rest may be mended


def run(study, workdir, should_stop=lambda: False, workers=0, say=print, without=()):
  """Train all runs of a study that are not done, judge and report -> analysis, None if stopped.

  workers: training processes at once; 0 = measure what is fastest. without: arms not to train.
  Raises ValueError for what a user can mend; what happens to single runs is in attempts.jsonl.
  """
  workdir = check_study_folder(workdir)
  made = prove_study(study, workdir / 'cache', say)
  workdir.mkdir(parents=True, exist_ok=True)
  with records.locked(workdir):
    for place in workdir.glob('shares/*'):
      if holder := lock_holder(place):
        raise ValueError(
          f'workdir={workdir}: share {place.name} is being trained by {holder}\n'
          'fix: wait until all shares have ended'
        )
    planned = make_tasks(study, *made[:2], workdir)
    left = write_study(workdir, planned, made[2], say)
    left = [task for task in left if task.arm not in without]
    done = train_all(workdir, workdir, left, study, should_stop, workers, say)
    return judge(workdir, say) if done else None


def write_study(workdir, mine, description, say):
  """Write study.json, if it may be, and what became of runs -> those of `mine` that are left."""
  before = records.read_json(workdir / 'study.json')
  check_same(workdir, before, description)
  kept = {key: before[key] for key in ('schedule', 'looks') if key in before}
  left = remaining_tasks(workdir, mine, description['metric'], say)
  records.write_json(workdir / 'study.json', description | kept)
  say(f'{len(mine)} runs: {len(mine) - len(left)} need no more work, {len(left)} to train')
  return left


def train_all(workdir, place, left, study, should_stop, workers, say):
  """Train these runs -> whether they came to an end. place: for attempts, logs, compiled programs.

  Only a study that is alone in its folder measures which way is the fastest.
  """
  if not wait_for_locks(left, should_stop, say):
    return False
  record_interrupted(workdir, place, left)
  check = functools.partial(check_metric, workdir)
  check()
  if not left:
    return True
  if study.budget.seconds:
    say('the budget is seconds: one run at a time on the whole machine, as steps were measured')
    schedule = scheduler.ALONE
  elif place == workdir:
    schedule = scheduler.choose_schedule(workdir, left, workers, should_stop, say)
  else:
    schedule = scheduler.default_schedule(left, workers)
  if schedule is None or not Executor(place, left, schedule, say, check).work(should_stop):
    say('stopped and saved; the same command goes on from here')
    return False
  return True


def dry_run(study, workdir=''):
  """The plan and what the arms differ in, as lines; trains nothing and leaves nothing behind."""
  kept = Path(workdir).expanduser() / 'cache'  # has the step times of a study that has begun
  if workdir and check_study_folder(workdir) and kept.exists():
    return proof.format_study(prove_study(study, kept)[2])
  with tempfile.TemporaryDirectory() as folder:
    return proof.format_study(prove_study(study, Path(folder))[2])


def prove_study(study, folder, say=None):
  """-> (arms, {name: proof}, content of study.json). folder: for token caches and measurements.

  say: gets the flags of the arms.
  """
  arms = design.make_arms(study, folder)
  proofs = proof.prove_arms(study, arms, folder)
  description = proof.describe_study(study, arms, proofs)
  for arm in description['arms'] if say else ():
    for flag in arm['flags']:
      say(f'{arm["name"]}: {flag}')
  return arms, proofs, description


# ------------------------------------------------------------------------------- what is to be done


def check_study_folder(workdir):
  """-> the folder as a Path; ValueError unless it is new, or holds a study."""
  workdir = Path(workdir).expanduser()
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f'workdir={workdir} is a file\nfix: give another --workdir')
  if workdir.exists() and not (workdir / 'study.json').exists():
    names = sorted(path.name for path in workdir.iterdir() if path.name[0] != '.')
    if strangers := [name for name in names if name not in OURS]:
      raise ValueError(
        f'workdir={workdir} is not a study and holds other files: {", ".join(strangers[:5])}\n'
        'fix: give a new or empty folder as --workdir'
      )
  return workdir


def check_same(workdir, old, new):
  """ValueError if the folder holds another study, or one of other code.

  More seeds, more arms and another metric are no other study.
  """
  if not old:
    return
  # A metric that is sampled is part of the fingerprint; the run folders have their config.
  key = 'fingerprint' if old['metric'] == new['metric'] else 'program'
  then, now = ({arm['name']: arm[key] for arm in study['arms']} for study in (old, new))
  common = [name for name in now if name in then]
  related = old['name'] == new['name'] or set(common) - {design.BASE}
  if old['base'] != new['base'] or not common or not related:
    raise ValueError(
      f'workdir={workdir} holds another study: {old["name"]} of {old["base"]}\nfix: give a new --workdir'
    )
  for name in common:
    if then[name] != now[name]:
      raise ValueError(
        f'workdir={workdir}: arm {name} computes something else than when this study began: the '
        'code, the config, the data or the version of JAX has changed\n'
        'fix: change it back, or give a new --workdir'
      )


def make_tasks(study, arms, proofs, workdir):
  """All runs: the first seed of every arm first, so that a study cut short still compares."""
  cache = str(workdir.absolute() / 'cache')
  found = []
  for arm, seed, cfg in design.iterate_runs(study, arms):
    section = config.to_dict(cfg)
    section['data']['cache'] = section['data']['cache'] or cache
    section['log']['console'] = 'plain'
    folder = store.run_path(workdir, arm.slug, seed)
    section = records.to_json(section)
    about = {'study': study.name, 'diff': proofs[arm.name].diff}
    program = program_of(section, proofs[arm.name])
    found.append(Task(arm.name, seed, folder, section, program, about))
  return found


def program_of(section, a_proof):
  """What runs must have in common to train in one step."""
  rest = records.flatten(section)
  rest = {key: value for key, value in rest.items() if key not in replicas.MAY_DIFFER}
  return proof.hash_json([a_proof.program, rest])


def remaining_tasks(workdir, planned, metric, say):
  """Tasks to train. Moves what is unreadable away; ValueError where a folder is another run."""
  left, attempts = [], store.last_attempts(workdir)
  for task in planned:
    attempt = attempts.get((task.arm, task.seed))
    status, message, _ = store.run_status(task.folder, metric, attempt)
    if status == 'corrupt':
      say(f'{task.name}: {message}; it is made again, the old one is {set_aside(task.folder)}')
    if (task.folder / 'config.json').exists():
      run_folder.check_workdir(task.folder, task.config, free=session.FREE_ON_RESUME)
    if status == 'diverged':
      say(f'{task.name} diverged ({message}); delete {task.folder} to try it again')
    if status not in ENDED:
      left.append(task)
  return left


def set_aside(folder):
  """Rename an unreadable result.json, or the whole run if its config.json is -> the new path."""
  path = folder / 'result.json'
  try:
    run_folder.read_config(folder)
  except (ValueError, OSError):
    path = folder
  names = (path.with_name(f'{path.name}.corrupt{k or ""}') for k in itertools.count())
  return path.replace(next(name for name in names if not name.exists()))


def record_interrupted(workdir, place, left):
  """Note the runs that an earlier call left without a word: it was killed itself."""
  attempts, now = store.last_attempts(workdir), utc_now()
  for task in left:
    if store.was_interrupted(task.folder, attempts.get((task.arm, task.seed), {}).get('time', '')):
      records.append_line(
        place / 'attempts.jsonl',
        {
          'time': now,
          'arm': task.arm,
          'seed': task.seed,
          'how': '',
          'outcome': 'killed',
          'code': -9,
          'message': 'the whole study was killed',
          'seconds': 0.0,
        },
      )


def wait_for_locks(left, should_stop, say):
  """Wait while processes of an earlier call still save their runs -> False if asked to stop."""
  said = False
  for task in left:
    while task.folder.exists() and (holder := lock_holder(task.folder)):
      if should_stop():
        return False
      if not said:
        say(f'waiting for {holder}, which still holds {task.folder}')
      said = True
      time.sleep(0.5)
  return True


def lock_holder(folder):
  """Who holds the lock of a run folder, '' if nobody does."""
  try:
    with records.locked(folder):
      return ''
  except ValueError as error:
    return str(error).partition('\n')[0].rpartition(' by ')[2]


# ------------------------------------------------------------------------------------- the verdict


def unfinished_runs(workdir, share=(0, 1)):
  """Runs that a mend and another call may still bring to an end; one that diverged is a finding.

  share: (i, n) looks at the i-th of n shares only.
  """
  rows = store.read_runs(workdir)
  seeds = {row['seed']: None for row in rows}
  rows.sort(key=lambda row: list(seeds).index(row['seed']))  # as `tasks` has them
  return [row for row in rows[share[0] :: share[1]] if row['status'] not in ENDED]


def check_metric(workdir):
  """ValueError if runs are done and none of their results has the study's metric."""
  analyze.metric_values(store.read_runs(workdir), store.read_study(workdir)['metric'])


def record_look(workdir, rows):
  """study.json, in which `looks` tells after how many seeds somebody saw verdicts."""
  study = store.read_study(workdir)
  count = len({row['seed'] for row in rows if row['status'] == 'done'})
  looks = study.get('looks', [])
  if count > 1 and looks[-1:] != [count]:  # one seed has no verdict
    study['looks'] = [*looks, count]
    records.write_json(Path(workdir) / 'study.json', study)
  return study


def judge(workdir, say=print):
  """Analyze what is there and write analysis.json and the reports -> analysis."""
  rows = store.read_runs(workdir)
  for row in rows:
    if row['status'] != 'done':
      say(f'{row["arm"]} seed {row["seed"]} is {row["status"]}: {row["message"][:200]}')
  study = record_look(workdir, rows)
  analysis = analyze.analyze(study, rows)
  records.write_json(Path(workdir) / 'analysis.json', analysis)
  for arm in analysis['arms']:
    if arm.get('sentence'):
      say(arm['sentence'])
  study_report.write(workdir)
  say(f'report: {Path(workdir) / "report.html"}')
  return analysis
