"""Optuna sweeps: arms are proposed one batch after another, from the scores of earlier arms.

  Study(base, {'lr': log_uniform(1e-4, 1e-1), 'mlp': ['swiglu', 'gelu']}, sweep='optuna', count=12, batch=4)

Each round is an ordinary study: the batch joins the arms so far. Optuna is told each arm's mean over the
seeds; an arm with an unfinished run, or a proposal that is not a valid arm, is told as failed. Proposals and
scores are stored in optuna/journal.log of the study folder (Optuna's JournalStorage), so that the same
command resumes after a kill; the k-th proposal depends on the journal and sweep_seed alone.
"""

import dataclasses
import math

from gpt_jax.ablation import design, proof, store, sweeps
from gpt_jax.ablation.execute import runner
from gpt_jax.ablation.stats.scores import collect_scores
from gpt_jax.runs import loggers, records

DIRECTIONS = {'lower': 'minimize', 'higher': 'maximize'}
JOURNAL = 'optuna/journal.log'


def run(study, workdir, should_stop=lambda: False, workers=0, say=loggers.say):
  """Propose, train and tell until `count` proposals are told -> analysis, None if stopped.

  Arguments like runner.run. Also raises ValueError if optuna is missing or the folder holds the proposals
  of other factors.
  """
  import_optuna()
  workdir = runner.check_study_folder(workdir)
  path = workdir / JOURNAL
  path.parent.mkdir(parents=True, exist_ok=True)
  failed_arms = set()
  with records.locked(path.parent):
    proposer = Proposer(study, workdir, say)
    while True:
      if not proposer.open_trials():
        proposer.ask()
      if proposer.cells:
        round_study = dataclasses.replace(study, sweep=sweeps.Proposed(proposer.cells), count=0)
        analysis = runner.run(round_study, workdir, should_stop, workers, say, failed_arms)
        if analysis is None:
          return None
        failed_arms |= {row['arm'] for row in runner.unfinished_runs(workdir)}
      proposer.tell()
      if proposer.remaining() <= 0:
        break
  if not proposer.cells:
    raise ValueError(
      f'none of {study.count} proposals could be an arm\nfix: give factors other levels or ranges'
    )
  return analysis


def dry_run(study, workdir=''):
  """Describe the study before its arms are known, as lines."""
  design.make_arms(dataclasses.replace(study, sweep=[], count=0), at_least=1)
  lines = [
    f'{study.name}: optuna proposes {study.count} arms of {study.base}, {study.batch} at a '
    f'time ({study.sampler}), {len(study.seed_list)} seeds each; from'
  ]
  for name, row in study.factors.items():
    if isinstance(row, sweeps.Range):
      lines.append(f'  {name}: {row.low:g} to {row.high:g}{", logarithmic" * row.log}')
    else:
      lines.append(f'  {name}: {", ".join(map(design.level_name, row))}')
  return lines


def import_optuna(what="sweep='optuna'", instead="sweep='random'"):
  """The module optuna, without its log lines; ValueError if it is not installed."""
  try:
    import optuna
  except ImportError as error:
    raise ValueError(
      f"{what} needs the package optuna: {error}\nfix: pip install '.[optuna]', or use {instead}"
    ) from error
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return optuna


class Proposer:
  """The trials of an Optuna study and the arms that they make."""

  def __init__(self, study, workdir, say):
    self.study, self.workdir, self.say = study, workdir, say
    self.state, self.cache = import_optuna().trial.TrialState, workdir / 'cache'
    self.optuna_study = open_journal(study, workdir / JOURNAL)
    [base] = self.make_arms([])
    self.arm_by_fingerprint = {self.fingerprint(base): base.name}
    self.cells, self.arm_of_trial = [], {}  # arm_of_trial: {trial number: arm name, '' if invalid}
    self.admit_trials()

  def make_arms(self, cells):
    """The baseline and the arms of cells."""
    return design.make_arms(dataclasses.replace(self.study, sweep=cells, count=0), self.cache, at_least=1)

  def fingerprint(self, arm):
    """Hash of all inputs of an arm's result."""
    return proof.compute_proof(arm.config, self.study, self.cache).fingerprint

  def trials(self, states=None):
    """All trials, or those in these states."""
    return self.optuna_study.get_trials(deepcopy=False, states=states)

  def open_trials(self):
    """Trials without a score."""
    return self.trials((self.state.RUNNING,))

  def fail(self, trial):
    """Tell Optuna that a trial has no score."""
    self.optuna_study.tell(trial.number, state=self.state.FAIL)

  def remaining(self):
    """Number of proposals still to ask for."""
    return self.study.count - len(self.trials())

  def ask(self):
    """Ask for the next batch of proposals."""
    for _ in range(min(self.study.batch, max(self.remaining(), 0))):
      # A sampler for each trial, so that draws do not depend on when a study was killed.
      seed = 100_003 * self.study.sweep_seed + len(self.trials())
      self.optuna_study.sampler = make_sampler(self.study, seed)
      self.optuna_study.ask(distributions(self.study.factors))
    self.admit_trials()

  def admit_trials(self):
    """Make arms of the new trials; tell invalid ones as failed."""
    for trial in self.trials():
      if trial.number not in self.arm_of_trial:
        name = self.arm_of_trial[trial.number] = self.admit(trial)
        if not name and not trial.state.is_finished():
          self.fail(trial)

  def admit(self, trial):
    """The name of a trial's arm, '' if it is invalid; a new arm joins the cells."""
    if trial.params.keys() != self.study.factors.keys():  # killed while it was asked for
      return ''
    # Numbers have four digits, so that the arm's name states them fully.
    cell = {name: trial.params[name] for name in self.study.factors}
    cell |= {name: sweeps.round_to_4_digits(cell[name]) for name in ranges(self.study.factors)}
    try:
      arm = self.make_arms([cell])[-1]
      name = self.arm_by_fingerprint.setdefault(self.fingerprint(arm), arm.name)
    except ValueError as error:
      if not trial.state.is_finished():
        self.say(f'proposal {trial.number} is not an arm: {str(error).splitlines()[0]}')
      return ''
    if name == arm.name and not arm.is_baseline and cell not in self.cells:
      self.cells.append(cell)
    return name

  def tell(self):
    """Tell Optuna the mean scores of the arms of all open trials."""
    trials, values = self.open_trials(), {}
    if trials and self.cells:
      values = collect_scores(store.read_runs(self.workdir), store.read_study(self.workdir)['metric']).values
    for trial in trials:
      scores = values.get(self.arm_of_trial[trial.number], {})
      if len(scores) == len(self.study.seed_list):
        self.optuna_study.tell(trial.number, sum(scores.values()) / len(scores))
      else:
        self.fail(trial)


def open_journal(study, path):
  """The optuna.Study of a journal, new or not; ValueError if it belongs to another study."""
  optuna = import_optuna()
  content = path.read_bytes() if path.exists() else b''
  if content and not content.endswith(b'\n'):  # a line torn by a kill makes later ones unreadable
    records.write_atomically(path, content[: content.rfind(b'\n') + 1])
  backend = optuna.storages.journal.JournalFileBackend(str(path))
  optuna_study = optuna.create_study(
    storage=optuna.storages.JournalStorage(backend),
    study_name=study.name or 'study',
    direction=DIRECTIONS[study.better],
    load_if_exists=True,
  )
  about = {'base': study.base, 'metric': study.metric or 'valid_loss', 'better': study.better}
  about |= {name: repr(row) for name, row in distributions(study.factors).items()}
  before = optuna_study.user_attrs.get('about', about)
  for name in before | about:
    if before.get(name) != about.get(name):
      raise ValueError(
        f'{path} has proposals for {name}={before.get(name)}, not {about.get(name)}\n'
        'fix: change it back, or give a new --workdir'
      )
  optuna_study.set_user_attr('about', about)
  return optuna_study


def propose(rows, tried, values, better, count):
  """List `count` new cells for the rows of a search, the same ones for the same scores.

  rows: {key: Range, or list of values}. tried: cells {key: value}. values: their scores, NaN for none.
  """
  optuna, spaces = import_optuna(), distributions(rows)
  names = {k: {design.level_name(v): v for v in row} for k, row in rows.items() if k not in ranges(rows)}
  named = lambda cell: {k: design.level_name(v) if k in names else v for k, v in cell.items()}
  is_within = lambda k, v: v in names[k] if k in names else rows[k].low <= v <= rows[k].high
  sampler = optuna.samplers.TPESampler(seed=len(tried), n_startup_trials=0)
  search = optuna.create_study(direction=DIRECTIONS[better], sampler=sampler)
  for cell, value in zip(map(named, tried), values, strict=True):
    if math.isfinite(value) and all(map(is_within, cell, cell.values())):  # an own value may lie outside
      search.add_trial(optuna.trial.create_trial(params=cell, distributions=spaces, value=value))
  cells = []
  for _ in range(100 * count):
    params = search.ask(spaces).params
    cell = {k: names[k][v] if k in names else sweeps.round_to_4_digits(v) for k, v in params.items()}
    cells += [cell] if cell not in [*tried, *cells] else []
    if len(cells) == count:
      break
  return cells


def ranges(rows):
  """The keys of rows that are a Range."""
  return {key for key, row in rows.items() if isinstance(row, sweeps.Range)}


def distributions(rows):
  """{key: optuna distribution} of factors or settings: floats of a range, else names of levels."""
  module, by_factor = import_optuna().distributions, {}
  for name, row in rows.items():
    if name in ranges(rows):
      by_factor[name] = module.FloatDistribution(row.low, row.high, log=row.log)
    else:
      by_factor[name] = module.CategoricalDistribution([design.level_name(level) for level in row])
  return by_factor


def make_sampler(study, seed):
  """The study's optuna sampler."""
  samplers = import_optuna().samplers
  if study.sampler not in samplers.__all__ or study.sampler == 'BaseSampler':
    known = ', '.join(name for name in samplers.__all__ if name.endswith('Sampler'))
    raise ValueError(f'sampler={study.sampler!r} is not known to optuna\nfix: use one of {known}')
  try:
    return getattr(samplers, study.sampler)(seed=seed)
  except (TypeError, ImportError) as error:
    cause = ' '.join(str(error).split())
    raise ValueError(f'sampler={study.sampler!r}: {cause}\nfix: use TPESampler') from error
