"""Runner: train all runs of a study, then judge and report.

Each (arm, seed) is an ordinary run folder, so the same command resumes the study after any interruption.
Runs are sent to training processes (pool.py), alone or in groups that share a compiled program. A run that
fails is recorded in attempts.jsonl and does not affect the others.
"""

import contextlib
import functools
import itertools
import tempfile
import time
from pathlib import Path

from gpt_jax import config
from gpt_jax.ablation import budget, design, proof, protocol, source_digest, store
from gpt_jax.ablation.execute import replicas, scheduler
from gpt_jax.ablation.execute.executor import Executor, Task
from gpt_jax.ablation.stats import analyze, scores
from gpt_jax.reports import study_report
from gpt_jax.runs import loggers, records, run_folder, secrets
from gpt_jax.training import start

# May exist before study.json.
STUDY_FOLDERS = (*('cache', 'compiled', 'logs', 'optuna', 'protocol.json', 'runs', 'shares', 'tuning'),)
FINAL = ('done', 'diverged')  # a later call does not retry these; the rest may be fixed


def run(study, workdir, should_stop=lambda: False, workers=0, say=loggers.say, without=(), prepared=None):
  """Train all runs of a study that are not done, judge and report -> analysis, None if stopped.

  workers: training processes at once; 0 = measure what is fastest. without: arms not to train.
  prepared: what prove_study would return.
  Raises ValueError for user errors; those of single runs are in attempts.jsonl.
  """
  workdir = check_study_folder(workdir)
  arms, proofs, description = prepared or prove_study(study, workdir / 'cache', say)
  with locked_study(workdir):
    tasks = write_study(workdir, make_tasks(study, arms, proofs, workdir), description, say)
    tasks = [task for task in tasks if task.arm not in without]
    finished = train_all(workdir, workdir, tasks, study, should_stop, workers, say)
    return judge(workdir, say) if finished else None


@contextlib.contextmanager
def locked_study(workdir):
  """Context that holds a study's folder, which no share may be training in."""
  workdir.mkdir(parents=True, exist_ok=True)
  with records.locked(workdir):
    for folder in workdir.glob('shares/*'):
      if holder := lock_holder(folder):
        raise ValueError(
          f'workdir={workdir}: share {folder.name} is being trained by {holder}\n'
          'fix: wait until all shares have ended'
        )
    yield


def register(study, workdir, say=loggers.say):
  """Write study.json and protocol.json of a study and print the protocol's hash; trains nothing."""
  workdir = check_study_folder(workdir)
  arms, proofs, description = prove_study(study, workdir / 'cache', say)
  with locked_study(workdir):
    write_study(workdir, make_tasks(study, arms, proofs, workdir), description, say)
  say(f'protocol: {protocol.describe(store.read_study(workdir))}')


def dry_run(study, workdir=''):
  """Describe the study and how its arms differ, as lines; trains nothing and leaves nothing behind."""
  return proof.format_study(plan_study(study, workdir))


def plan_study(study, workdir=''):
  """Return the content that study.json will have; trains nothing and leaves nothing behind."""
  cache = Path(workdir).expanduser() / 'cache'  # has the step times of a study that has begun
  with tempfile.TemporaryDirectory() as temporary:
    has_begun = workdir and check_study_folder(workdir) and cache.exists()
    return prove_study(study, cache if has_begun else Path(temporary))[2]


def prove_study(study, folder, say=None):
  """-> (arms, {name: proof}, content of study.json).

  folder: for token caches and measurements. say: prints the flags of the arms.
  """
  arms = design.make_arms(study, folder)
  proofs = proof.prove_arms(study, arms, folder)
  description = proof.describe_study(study, arms, proofs)
  if say and description['metric_reason']:
    say(description['metric_reason'])
  for arm in description['arms'] if say else ():
    for flag in arm['flags']:
      say(f'{arm["name"]}: {flag}')
  return arms, proofs, description


def write_study(workdir, tasks, description, say):
  """Write study.json, if the folder does not hold another study -> the tasks that are left to train."""
  for task in tasks:
    secrets.check_secrets(task.config)
  before = records.read_json(workdir / 'study.json')
  check_same(workdir, before, description)
  tasks_left = remaining_tasks(workdir, tasks, description['metric'], say)
  stored = {key: before[key] for key in ('schedule', 'looks') if key in before}
  if description.get('sequential') and 'seeds_of' in before:
    stored['seeds_of'] = before['seeds_of']
  stored |= protocol.record_protocol(workdir, before, description)
  records.write_json(workdir / 'study.json', description | stored)
  done = len(tasks) - len(tasks_left)
  limit = 'at most ' * bool(description.get('sequential'))
  say(f'{limit}{len(tasks)} runs: {done} need no more work, {len(tasks_left)} to train')
  return tasks_left


def train_all(workdir, log_folder, tasks, study, should_stop, workers, say, refill=list):
  """Train these tasks -> whether all ended. log_folder: for attempts, logs and compiled programs.

  Only a study that has its folder to itself measures which way is the fastest. refill: more tasks, asked for
  when all are done.
  """
  if not wait_for_locks(tasks, should_stop, say):
    return False
  record_interrupted(workdir, log_folder, tasks)
  check = functools.partial(check_metric, workdir)
  check()
  if not tasks:
    return True
  if study.budget.seconds:
    say('the budget is seconds: one run at a time on the whole machine, as steps were measured')
    schedule = scheduler.ALONE
  elif log_folder == workdir:
    schedule = scheduler.choose_schedule(workdir, tasks, workers, should_stop, say)
  else:
    schedule = scheduler.default_schedule(tasks, workers)
  metric = records.read_json(workdir / 'study.json').get('metric', 'valid_loss')
  if schedule:
    say(f'output of the runs: {log_folder}/logs')
  executor = schedule and Executor(log_folder, tasks, schedule, say, check, metric, refill)
  if not executor or not executor.run(should_stop):
    say('stopped and saved; run the same command again to resume')
    return False
  return True


# ------------------------------------------------------------------------------------------ tasks


def check_study_folder(workdir):
  """-> the folder as a Path; ValueError unless it is new or holds a study."""
  workdir = Path(workdir).expanduser()
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f'workdir={workdir} is a file\nfix: give another --workdir')
  if workdir.exists() and not (workdir / 'study.json').exists():
    names = sorted(path.name for path in workdir.iterdir() if path.name[0] != '.')
    if unexpected := [name for name in names if name not in STUDY_FOLDERS]:
      raise ValueError(
        f'workdir={workdir} is not a study and holds other files: {", ".join(unexpected[:5])}\n'
        'fix: give a new or empty folder as --workdir'
      )
  return workdir


def check_same(workdir, old, new):
  """ValueError if the folder holds another study, or the code has changed.

  More seeds, more arms or another metric do not make another study.
  """
  if not old:
    return
  before, now = ({arm['name']: arm.get('inputs') for arm in study['arms']} for study in (old, new))
  common = [name for name in now if name in before]
  related = old['name'] == new['name'] or set(common) - {design.BASE}
  if old['base'] != new['base'] or not common or not related:
    raise ValueError(
      f'workdir={workdir} holds another study: {old["name"]} of {old["base"]}\nfix: give a new --workdir'
    )
  same_metric = all((old.get(key) or []) == (new.get(key) or []) for key in ('metric', 'outcomes'))
  for name in common:
    if before[name] is None:
      raise ValueError(
        f'workdir={workdir} was begun by an earlier version of gpt_jax\nfix: give a new --workdir'
      )
    differing = changed_inputs(before[name], now[name], same_metric)
    if differing:
      rescore = f'run launch.py report --workdir={workdir} --rescore, ' * (differing == ['evaluation code'])
      raise ValueError(
        f'workdir={workdir}: arm {name} has changed since this study began: {", ".join(differing)}\n'
        f'fix: {rescore}change it back, or give a new --workdir'
      )


def changed_inputs(before, now, same_metric=True):
  """The names of the inputs of a result that have changed, with old and new values of hyperparameters.

  Evaluation settings depend on the metric; the run folders have their configs.
  """
  texts = []
  for key in [key for key, value in now.items() if before.get(key) != value]:
    if isinstance(now[key], dict):
      pairs = records.diff(before.get(key) or {}, now[key])
      texts += [f'{name} ({old} -> {new})' for name, (old, new) in pairs.items()]
    elif same_metric or key != 'evaluation settings':
      texts.append(key)
  return texts


def make_tasks(study, arms, proofs, workdir):
  """All runs: the first seed of every arm first, so that a study cut short still compares."""
  cache = str(workdir.absolute() / 'cache')
  tasks = []
  for arm, seed, cfg in design.iterate_runs(study, arms):
    section = config.to_dict(cfg)
    section['data']['cache'] = section['data']['cache'] or cache
    section['log']['console'] = 'plain'
    section = records.to_json(section)
    free = replicas.MAY_DIFFER
    shared = {key: value for key, value in records.flatten(section).items() if key not in free}
    program = budget.hash_json([proofs[arm.name].program, shared])
    about = {'study': study.name, 'diff': proofs[arm.name].diff}
    tasks.append(Task(arm.name, seed, store.run_path(workdir, arm.slug, seed), section, program, about))
  return tasks


def remaining_tasks(workdir, tasks, metric, say):
  """Tasks to train. Sets unreadable files aside; ValueError if a folder holds another run."""
  remaining, attempts = [], store.last_attempts(workdir)
  for task in tasks:
    status, message, _ = store.run_status(task.folder, metric, attempts.get((task.arm, task.seed)))
    if status == 'corrupt':
      say(f'{task.name}: {message}; it is trained again, the old one is {set_aside(task.folder)}')
    if (task.folder / 'config.json').exists():
      run_folder.check_workdir(task.folder, task.config, free=start.FREE_ON_RESUME)
    if status == 'diverged':
      say(f'{task.name} diverged ({message}); delete {task.folder} to retry it')
    if status not in FINAL:
      remaining.append(task)
  return remaining


def set_aside(folder):
  """Rename an unreadable result.json, or the whole run if its config.json is unreadable -> the new path."""
  path = folder / 'result.json'
  try:
    run_folder.read_config(folder)
  except (ValueError, OSError):
    path = folder
  names = (path.with_name(f'{path.name}.corrupt{k or ""}') for k in itertools.count())
  return path.replace(next(name for name in names if not name.exists()))


def record_interrupted(workdir, log_folder, tasks):
  """Record the runs that have no attempt on record because the whole study was killed."""
  attempts = store.last_attempts(workdir)
  for task in tasks:
    if store.was_interrupted(task.folder, attempts.get((task.arm, task.seed), {}).get('time', '')):
      attempt = task.attempt('killed', code=-9, message='the whole study was killed')
      records.append_line(log_folder / 'attempts.jsonl', attempt)


def wait_for_locks(tasks, should_stop, say):
  """Wait while processes of an earlier call still save their runs -> False if stopped."""
  for task in tasks:
    while task.folder.exists() and (holder := lock_holder(task.folder)):
      if should_stop():
        return False
      if say:
        say(f'waiting for {holder}, which still holds {task.folder}')
      say = None
      time.sleep(0.5)
  return True


def lock_holder(folder):
  """The process that holds the lock of a folder, '' if it is free."""
  try:
    with records.locked(folder):
      return ''
  except ValueError as error:
    return str(error).partition('\n')[0].rpartition(' by ')[2]


# ------------------------------------------------------------------------------------- the verdict


def unfinished_runs(workdir, share=(0, 1)):
  """Rows of runs that a fix and another call may still finish; one that diverged counts as finished.

  share: see select_share.
  """
  rows = select_share(store.read_runs(workdir), share, lambda row: row['seed'])
  return [row for row in rows if row['status'] not in FINAL]


def select_share(runs, share, seed_of):
  """The runs of share (i, n), the i-th of n: whole seeds, so that one machine trains all arms of a seed.

  Where shares are more than seeds, several of them divide the arms of one seed.
  """
  number, count = share
  by_seed = {}
  for run in runs:
    by_seed.setdefault(seed_of(run), []).append(run)
  groups = list(by_seed.values())
  if count <= len(groups):
    return [run for group in groups[number::count] for run in group]
  if not groups:
    return []
  which, part = number % len(groups), number // len(groups)
  return groups[which][part :: len(range(which, count, len(groups)))]


def check_metric(workdir):
  """ValueError if runs are done and none of their results has the study's metric."""
  scores.collect_scores(store.read_runs(workdir), store.read_study(workdir)['metric'])


def record_look(workdir, rows):
  """Add to study.json the number of judged seeds, and a change of the code that judges -> its content."""
  study = before = store.read_study(workdir)
  if 'protocol' in study:  # this version may analyze otherwise
    study = before | {'analysis code': source_digest.analysis_code()}
    study |= protocol.record_protocol(workdir, before, study)
  count = len({row['seed'] for row in rows if row['status'] == 'done'})
  looks = study.get('looks', [])
  if count > 1 and looks[-1:] != [count] and not study.get('sequential'):  # one seed has no verdict
    study = study | {'looks': [*looks, count]}
  if study != before:
    records.write_json(Path(workdir) / 'study.json', study)
  return study


def judge(workdir, say=loggers.say):
  """Analyze the finished runs, write analysis.json and the reports -> analysis."""
  rows = store.read_runs(workdir)
  for row in rows:
    if row['status'] != 'done':
      say(f'{row["arm"]} seed {row["seed"]} is {row["status"]}: {row["message"][:200]}')
  store.read_study(workdir, store.JUDGED)
  analysis = analyze.analyze(record_look(workdir, rows), rows)
  records.write_json(Path(workdir) / 'analysis.json', analysis)
  for each in (analysis, *analysis['outcomes']):
    for arm in each['arms']:
      say(arm['sentence'])
  study_report.write_report(workdir)
  study_report.track_verdicts(workdir, say)
  say(f'report: {Path(workdir) / "report.html"}')
  return analysis
