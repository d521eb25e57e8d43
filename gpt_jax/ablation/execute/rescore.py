"""Rescore: evaluate the finished runs of a study again, from their checkpoints, by the present code.

A study refuses to go on where the code that evaluates has changed, as its runs would not compare. Here all of
them get new scores. `rescored` of a result.json keeps the numbers that changed; study.json has the digest of
the code and the change as an amendment of the protocol. Learning curves stay as they were logged, and tuned
settings as the old scores chose them.
"""

import math
from pathlib import Path

import jax

from gpt_jax import config, train
from gpt_jax.ablation import budget, protocol, source_digest, store
from gpt_jax.ablation.execute import runner
from gpt_jax.ablation.stats import scores
from gpt_jax.runs import loggers, records
from gpt_jax.runs.startup_timer import utc_time
from gpt_jax.sharding import make_mesh
from gpt_jax.training import session

CODE = 'evaluation code'  # key of study.json, and of the inputs of its arms


def rescore(workdir, say=loggers.say):
  """Replace the scores of all finished runs; nothing is written until all have new ones.

  Raises ValueError where a run has no checkpoint of its last step, or the metric is of its training.
  """
  workdir = Path(workdir).expanduser()
  study = store.read_study(workdir)
  with runner.locked_study(workdir):
    rows = [row for row in store.read_runs(workdir) if row['status'] == 'done']
    change = {'time': utc_time(), CODE: [study.get(CODE, ''), source_digest.scoring_code()]}
    results = []
    for n, row in enumerate(rows, 1):
      evaluated = evaluate_run(Path(row['folder']))
      results.append(replace_scores(row['result'], evaluated, study['metric'], change))
      values = (scores.numeric_results(each, study['metric']) for each in (row['result'], results[-1]))
      old, new = (f'{numbers.get(study["metric"], math.nan):.4f}' for numbers in values)
      say(f'{n} of {len(rows)}: {row["arm"]} seed {row["seed"]}: {study["metric"]} {old} -> {new}')
    for row, result in zip(rows, results, strict=True):
      records.write_json(Path(row['folder']) / 'result.json', result)
    records.write_json(workdir / 'study.json', amend(workdir, study, change))


def evaluate_run(folder):
  """Evaluate the last checkpoint of a run as its training did at its end -> fields of result.json."""
  cfg = config.of_run(folder)
  mesh = make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    s = session.setup(cfg, folder, mesh, train.JOBS[cfg.train.job], trace=False)
    try:
      if s.step != cfg.train.steps:
        raise ValueError(
          f'{folder} has no good checkpoint of its last step, {cfg.train.steps}\n'
          'fix: copy it back, or train the study in a new --workdir'
        )
      valid, rows = s.job.validate(s.state, 0)
      rows = [*rows, *s.job.finish(s.state, lambda line: None)]
    finally:
      s.job.loader.close()
  return records.from_json(records.to_json(valid | {'evaluations': rows}))


def replace_scores(result, evaluated, metric, change):
  """Return a result with new scores, and the old numbers in `rescored`; ValueError for another metric."""
  if metric not in scores.numeric_results(evaluated, metric):
    raise ValueError(
      f'metric={metric!r} is measured while a run trains: no checkpoint gives it again\n'
      'fix: train the study in a new --workdir'
    )
  new = result | evaluated
  old_numbers, numbers = (scores.numeric_results(each, metric) for each in (result, new))
  before = {name: x for name, x in old_numbers.items() if name == metric or numbers.get(name) != x}
  return new | {'rescored': [*result.get('rescored', ()), change | {'before': before}]}


def amend(workdir, study, change):
  """Return study.json with the present evaluation code, as an amendment of its protocol."""
  new = study | {CODE: change[CODE][1], 'arms': [dict(arm) for arm in study['arms']]}
  for arm in new['arms']:
    if arm.get('inputs'):
      arm['inputs'] = arm['inputs'] | {CODE: change[CODE][1]}
      arm['fingerprint'] = budget.hash_json(arm['inputs'])
  return new | protocol.record_protocol(workdir, study, new)
