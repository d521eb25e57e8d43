"""A sweep whose arms Optuna proposes, one batch after another, from what the arms before scored.

  Study(base, {'lr': log_uniform(1e-4, 1e-1), 'mlp': ['swiglu', 'gelu']},
        sweep='optuna', count=12, batch=4)  # sampler='TPESampler', sweep_seed=0

Each round is a sweep like any other: the batch joins the arms so far, is proved, trained on all
seeds and judged. Optuna is told each arm's mean over the seeds; an arm of which a run has no
result, or a proposal that cannot be an arm, is told as failed. What was asked and told is in
optuna/journal.log of the study folder (Optuna's JournalStorage), so that the same command goes on
after a kill; the k-th proposal depends on the journal and sweep_seed alone. The default sampler
draws the first ten at random.
"""

import dataclasses

from gpt_jax.ablation import design, proof, store, sweeps
from gpt_jax.ablation.execute import runner
from gpt_jax.ablation.stats import analyze
from gpt_jax.runs import records

JOURNAL = 'optuna/journal.log'


def run(study, workdir, should_stop=lambda: False, workers=0, say=print):
  """Ask, train and tell until `count` proposals are told -> analysis, None if stopped.

  Arguments as of runner.run. Raises ValueError, too, where optuna is missing or the folder holds
  the proposals of other factors.
  """
  library(), checked(study)
  workdir = runner.check_study_folder(workdir)
  path = workdir / JOURNAL
  path.parent.mkdir(parents=True, exist_ok=True)
  failed = set()
  with records.locked(path.parent):
    proposer = Proposer(study, workdir, say)
    while True:
      if not proposer.waiting():
        proposer.ask()
      if proposer.cells:
        planned = dataclasses.replace(study, sweep=sweeps.Proposed(proposer.cells), count=0)
        analysis = runner.run(planned, workdir, should_stop, workers, say, failed)
        if analysis is None:
          return None
        failed |= {row['arm'] for row in runner.unfinished_runs(workdir)}
      proposer.tell()
      if not proposer.left():
        break
  if not proposer.cells:
    raise ValueError(
      f'none of {study.count} proposals could be an arm\nfix: give factors other levels or ranges'
    )
  return analysis


def dry_run(study, workdir=''):
  """What can be known before it runs, as lines."""
  design.make_arms(dataclasses.replace(checked(study), sweep=[], count=0), at_least=1)
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


def checked(study):
  """The study, if it says how much to propose."""
  if study.count < 1 or study.batch < 1:
    raise ValueError(
      f'an optuna sweep with count={study.count}, batch={study.batch} proposes nothing\n'
      'fix: set count, and batch, of the Study to 1 or more'
    )
  return study


def library():
  """Optuna, quiet; ValueError where it is not installed."""
  try:
    import optuna
  except ImportError as error:
    raise ValueError(
      f"sweep='optuna' needs the package optuna: {error}\nfix: pip install '.[optuna]', or use sweep='random'"
    ) from error
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return optuna


class Proposer:
  """What was asked and told, and the arms that it makes."""

  def __init__(self, study, workdir, say):
    self.study, self.workdir, self.say = study, workdir, say
    self.optuna, self.cache = library(), workdir / 'cache'
    self.asked = open_journal(study, workdir / JOURNAL)
    [base] = self.arms([])
    self.seen = {self.fingerprint(base): base.name}  # {fingerprint: arm}
    self.cells, self.names = [], {}  # of the arms; {number of a proposal: its arm, '' if none}
    self.admit()

  def arms(self, cells):
    """The baseline and the arms of cells."""
    return design.make_arms(dataclasses.replace(self.study, sweep=cells, count=0), self.cache, at_least=1)

  def fingerprint(self, arm):
    """Hash of all that an arm's result depends on."""
    return proof.compute_proof(arm.config, self.study, self.cache).fingerprint

  def waiting(self):
    """Proposals that nothing was told about."""
    running = self.optuna.trial.TrialState.RUNNING
    return self.asked.get_trials(deepcopy=False, states=(running,))

  def left(self):
    """How many are still to be asked for."""
    return self.study.count - len(self.asked.get_trials(deepcopy=False))

  def ask(self):
    """The next batch of proposals."""
    for _ in range(min(self.study.batch, max(self.left(), 0))):
      # A sampler of its own for each: what is drawn does not depend on when a study was killed.
      number = len(self.asked.get_trials(deepcopy=False))
      self.asked.sampler = make_sampler(self.study, 100_003 * self.study.sweep_seed + number)
      self.asked.ask(distributions(self.study))
    self.admit()

  def admit(self):
    """Make arms of the proposals that are new here."""
    for trial in self.asked.get_trials(deepcopy=False):
      if trial.number not in self.names:
        self.names[trial.number] = self.arm_of(trial)
        if not self.names[trial.number] and not trial.state.is_finished():
          self.asked.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)

  def arm_of(self, trial):
    """The name of the arm that a proposal is, '' if it is none; a new one joins the cells."""
    if trial.params.keys() != self.study.factors.keys():  # killed while it was asked for
      return ''
    cell = cell_of(self.study, trial.params)
    try:
      arm = self.arms([cell])[-1]
      name = self.seen.setdefault(self.fingerprint(arm), arm.name)
    except ValueError as error:
      if not trial.state.is_finished():
        self.say(f'proposal {trial.number} is no arm: {str(error).partition(chr(10))[0]}')
      return ''
    if name == arm.name and not arm.is_baseline and cell not in self.cells:
      self.cells.append(cell)
    return name

  def tell(self):
    """Tell what the arms of all waiting proposals scored."""
    waiting, values = self.waiting(), {}
    if waiting and self.cells:
      values = analyze.metric_values(store.read_runs(self.workdir), self.study.metric)
    for trial in waiting:
      scores = values.get(self.names[trial.number], {})
      if len(scores) == len(self.study.seed_list):
        self.asked.tell(trial.number, sum(scores.values()) / len(scores))
      else:
        self.asked.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)


def open_journal(study, path):
  """The optuna.Study of a journal, new or not; ValueError if it is of another question."""
  optuna = library()
  content = path.read_bytes() if path.exists() else b''
  if content and not content.endswith(b'\n'):  # torn by a kill: what follows would be unreadable
    records.write_atomically(path, content[: content.rfind(b'\n') + 1])
  backend = optuna.storages.journal.JournalFileBackend(str(path))
  asked = optuna.create_study(
    storage=optuna.storages.JournalStorage(backend),
    study_name=study.name or 'study',
    direction={'lower': 'minimize', 'higher': 'maximize'}[study.better],
    load_if_exists=True,
  )
  about = {'base': study.base, 'metric': study.metric, 'better': study.better}
  about |= {name: repr(row) for name, row in distributions(study).items()}
  then = asked.user_attrs.get('about', about)
  if changed := [name for name in then | about if then.get(name) != about.get(name)]:
    name = changed[0]
    raise ValueError(
      f'{path} has proposals for {name}={then.get(name)}, not {about.get(name)}\n'
      'fix: change it back, or give a new --workdir'
    )
  asked.set_user_attr('about', about)
  return asked


def distributions(study):
  """{factor: what optuna draws from}: numbers of a range, names of levels otherwise."""
  of = library().distributions
  return {
    name: of.FloatDistribution(row.low, row.high, log=row.log)
    if isinstance(row, sweeps.Range)
    else of.CategoricalDistribution([design.level_name(level) for level in row])
    for name, row in study.factors.items()
  }


def cell_of(study, params):
  """The cell of a proposal; numbers to four digits, so that the arm's name says all of them."""
  return {
    name: sweeps.round_to_4_digits(params[name]) if isinstance(row, sweeps.Range) else params[name]
    for name, row in study.factors.items()
  }


def make_sampler(study, seed):
  """A sampler of the study's kind."""
  samplers = library().samplers
  if study.sampler not in samplers.__all__ or study.sampler == 'BaseSampler':
    known = ', '.join(name for name in samplers.__all__ if name.endswith('Sampler'))
    raise ValueError(f'sampler={study.sampler!r} is not known to optuna\nfix: use one of {known}')
  try:
    return getattr(samplers, study.sampler)(seed=seed)
  except (TypeError, ImportError) as error:
    raise ValueError(
      f'sampler={study.sampler!r}: {" ".join(str(error).split())}\nfix: use TPESampler'
    ) from error
