"""What `launch.py ablate` and `launch.py report` do with a study or a folder of runs."""

import dataclasses

from gpt_jax.ablation import design, store
from gpt_jax.ablation.execute import array, proposals, runner


def ablate(spec, workdir='', *, seeds=0, share='', dry_run=False, workers=0, should_stop):
  """Run or, with dry_run, show the study of a file -> the runs that failed, None if stopped.

  Arguments as the flags of launch.py ablate; should_stop: asked now and then.
  """
  study = design.load_study(spec)
  study = dataclasses.replace(study, seeds=seeds) if seeds else study
  way = proposals if study.sweep == 'optuna' else runner
  if dry_run:
    print('\n'.join(way.dry_run(study, workdir)))
    return []
  workdir, part = workdir or f'runs/ablate-{study.name}', array.parse_share(share or '0/1')
  print(f'study folder: {workdir}')
  if share:
    done = array.run(study, workdir, part, should_stop, workers)
  else:
    done = way.run(study, workdir, should_stop, workers) is not None
  return runner.unfinished_runs(workdir, part) if done else None


def table(workdir, where='', columns=()):
  """The runs below a folder that satisfy a condition, as lines; arguments of store.select."""
  names, rows = store.select(workdir, where, columns)
  return [*store.format_table(names, rows), f'{len(rows)} run{"s" * (len(rows) != 1)}']
