"""Studies and tables of runs for `launch.py ablate` and `launch.py report`."""

import dataclasses

from gpt_jax.ablation import design, store
from gpt_jax.ablation.execute import array, proposals, rounds, runner, tuning
from gpt_jax.runs.loggers import say


def ablate(spec, workdir='', *, seeds=0, share='', dry_run=False, register=False, workers=0, should_stop):
  """Run the study of a file, or describe it with dry_run -> the unfinished runs, None if stopped.

  Arguments like the flags of launch.py ablate; should_stop is called between runs and steps.
  """
  study = design.load_study(spec)
  study = dataclasses.replace(study, seeds=seeds) if seeds else study
  module = proposals if study.sweep == 'optuna' else rounds if study.sequential else runner
  module = tuning if study.tune else module
  if dry_run:
    say('\n'.join(module.dry_run(study, workdir)))
    return []
  workdir, part = workdir or f'runs/ablate-{study.name}', array.parse_share(share or '0/1')
  say(f'study folder: {workdir}')
  if register:
    (tuning if study.tune else runner).register(study, workdir)
    return []
  if share and (study.sequential or study.tune):
    raise ValueError(
      f'--share={share} divides seeds, and this study decides what to train from earlier results\n'
      'fix: leave out --share, or use a number of seeds and no tune'
    )
  if share:
    finished = array.run(study, workdir, part, should_stop, workers)
  else:
    finished = module.run(study, workdir, should_stop, workers) is not None
  return runner.unfinished_runs(workdir, part) if finished else None


def format_runs(workdir, where='', columns=()):
  """The lines of a table of the runs below a folder that satisfy a condition; arguments of store.select."""
  names, rows = store.select(workdir, where, columns)
  return [*store.format_table(names, rows), f'{len(rows)} run{"s" * (len(rows) != 1)}']
