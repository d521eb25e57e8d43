"""Tuned arms: search the settings of `tune` for each arm, then judge the arms at their own best ones.

  Study(base, {'mlp': ['swiglu', 'gelu']}, tune={'optim.lr': log_uniform(1e-4, 1e-1)})

Each rung of the search is a study of its own in tuning/rung0, 1, ...: every arm with every value, on seeds
that the judged runs do not have. An arm's own value is always among them, and kept on every rung: its
verdict is what the study would have said untuned. A round is a rung of new values as long as the others:
the first is the grid, later ones are proposed for each arm by a tree-structured Parzen estimator (Bergstra
et al. 2011). Proposals follow from the scores alone, so that a search that was stopped goes on as it would
have. Values that are traced numbers of one program, as learning rates are, are proved once an arm, and may
train together as replicas.

Only here are poor values cut short (successive halving, Jamieson and Talwalkar 2016): a judged run that was
stopped for its score has no final one, and leaving it out favors its arm.
"""

import dataclasses
import itertools
import math

import numpy as np

from gpt_jax import config, step
from gpt_jax.ablation import budget, design, proof, protocol, store
from gpt_jax.ablation.execute import proposals, replicas, rounds, runner
from gpt_jax.ablation.stats import judging, scores
from gpt_jax.ablation.sweeps import Range
from gpt_jax.runs import loggers, records

FIRST_SEED = 10_000  # of the search
SHORTER = 3  # times that a rung is shorter than the next, with as many times the values


def run(study, workdir, should_stop=lambda: False, workers=0, say=loggers.say):
  """Search, then train and judge the tuned arms -> analysis, None if stopped. Arguments like runner.run."""
  workdir = runner.check_study_folder(workdir)
  arms, proofs, description = freeze(study, workdir, say)
  search = Search(study, workdir, arms, proofs)
  for rung in range(search.count):
    if search.train(rung, should_stop, workers, say) is None:
      return None
  tuned = search.tuned_arms()
  proofs = search.derive_proofs(tuned)
  description = {
    **proof.describe_study(study, tuned, proofs),
    'untuned arms': {arm['name']: arm['diff'] for arm in description['arms']},
    'base config': description['base config'],
    'search': search.describe(description),
  }
  module = rounds if study.sequential else runner
  return module.run(study, workdir, should_stop, workers, say, prepared=(tuned, proofs, description))


def freeze(study, workdir, say):
  """Prove the untuned arms and freeze the protocol -> (arms, proofs, content of study.json)."""
  prepared = runner.prove_study(study, workdir / 'cache', say)
  with runner.locked_study(workdir):
    protocol.record_protocol(workdir, records.read_json(workdir / 'study.json'), prepared[2])
  return prepared


def register(study, workdir, say=loggers.say):
  """Write protocol.json and print its hash; trains nothing."""
  workdir = runner.check_study_folder(workdir)
  freeze(study, workdir, say)
  say(f'protocol: {protocol.describe({"protocol": protocol.file_hash(workdir / "protocol.json")})}')


def dry_run(study, workdir=''):
  """Describe the study and its search, as lines."""
  plan, arms = runner.plan_study(study, workdir), design.make_arms(study)
  points, _, rungs, times = study.tuning
  cells, count, share = make_cells(study, arms[0].config), 0, 0.0
  seconds = study.tuning.seeds * sum(arm['seconds_estimate'] for arm in plan['arms'])
  left = len({*map(repr, cells), repr(own_cell(arms[0], list(cells[0])))})
  for rung in range(rungs):
    count, share = count + left, share + left * SHORTER ** (1 + rung - rungs)
    left = -(-left // SHORTER)
  count, share = count + points * (times - 1), share + points * (times - 1)
  on_rungs = f' on {rungs} rungs' if rungs > 1 else ''
  on_rungs += f' and {points * (times - 1)} that Optuna proposes' if times > 1 else ''
  runs = count * study.tuning.seeds * len(arms)
  line = (
    f'before that each arm is tuned over {len(cells)} values of {", ".join(cells[0])} and its own{on_rungs}, '
    f'with {study.tuning.seeds} seeds: about {runs} runs and {loggers.duration(seconds * share)} of steps'
  )
  return [*proof.format_study(plan), line]


def make_cells(study, base):
  """[{config key: value}]: all combinations of the values to tune."""
  rows = {design.full_key(key, base): row for key, row in study.tune.items()}
  values = [row.grid(study.tuning.points) if isinstance(row, Range) else list(row) for row in rows.values()]
  return [dict(zip(rows, cell, strict=True)) for cell in itertools.product(*values)]


def own_cell(arm, keys):
  """{config key: value} of an arm as it is."""
  flat = records.flatten(config.to_dict(arm.config))
  return {key: flat[key] for key in keys}


def program_key(cfg):
  """Hash of all that a proof depends on but the values of traced numbers."""
  free = {*replicas.MAY_DIFFER, 'data.cache'}
  flat = records.flatten(records.to_json(config.to_dict(cfg)))
  fixed = {key: value for key, value in flat.items() if key not in free}
  return budget.hash_json([fixed, sorted(step.hyper_of(cfg))])


class Search:
  """The candidates of each arm, an arm with some values each, and their scores."""

  def __init__(self, study, workdir, arms, proofs):
    self.study, self.workdir, self.arms, self.proofs = study, workdir, arms, proofs
    cells = make_cells(study, arms[0].config)
    self.keys = list(cells[0])
    for arm in arms:
      if clash := set(arm.keys) & set(self.keys):
        raise ValueError(
          f'tune names {", ".join(clash)}, which arm {arm.name} sets\n'
          'fix: leave it out of tune or of the factors'
        )
    self.own = {arm.name: own_cell(arm, self.keys) for arm in arms}
    self.left = {arm.name: [*cells, *[c for c in [self.own[arm.name]] if c not in cells]] for arm in arms}
    self.scores = {arm.name: [] for arm in arms}  # [(cell, its values of the last rung)]
    self.count = study.tuning.rungs * study.tuning.rounds
    if study.tuning.rounds > 1:
      proposals.import_optuna('tuning in rounds', 'rounds=1')
    self.seeds = tuple(range(FIRST_SEED, FIRST_SEED + study.tuning.seeds))
    if set(self.seeds) & set(study.seed_list):
      raise ValueError(f'seeds={study.seeds} are those of the search\nfix: use seeds below {FIRST_SEED}')

  def candidate(self, arm, cell, part=1.0):
    """An arm with these values, trained for a part of its steps."""
    cfg = design.apply_changes(arm.config, [cell], f'arm {arm.name}')
    steps, warmup = (max(1, round(part * n)) for n in (cfg.train.steps, cfg.optim.warmup))
    cfg = dataclasses.replace(
      cfg,
      train=dataclasses.replace(cfg.train, steps=steps),
      optim=dataclasses.replace(cfg.optim, warmup=warmup if part < 1 else cfg.optim.warmup),
      data=dataclasses.replace(cfg.data, cache=cfg.data.cache or str(self.workdir.absolute() / 'cache')),
    )
    levels = {key: design.level_name(value) for key, value in cell.items()}
    name = ','.join([arm.name, *(f'{key}={level}' for key, level in levels.items())])
    return arm._replace(
      name=name,
      slug=design.make_slug(name),
      levels=arm.levels | levels,
      config=cfg,
      is_baseline=arm.is_baseline and cell == self.own[arm.name],
      keys=tuple(sorted({*arm.keys, *cell})),
    )

  def train(self, rung, should_stop, workers, say):
    """Train all candidates of a rung and keep the better ones -> analysis, None if stopped."""
    halves, left_rungs = self.study.tuning.rungs > 1, self.study.tuning.rungs - 1 - rung
    part = SHORTER**-left_rungs if halves else 1.0
    folder = self.workdir / 'tuning' / f'rung{rung}'
    pairs = [(arm, cell) for arm in self.arms for cell in self.left[arm.name]]
    candidates = [self.candidate(arm, cell, part) for arm, cell in pairs]
    candidates.sort(key=lambda candidate: not candidate.is_baseline)
    if not candidates[0].is_baseline:  # a round of proposals, to be compared with the first of the baseline's
      candidates[0] = candidates[0]._replace(is_baseline=True)
    factors = {**self.study.factors, **{key: [0] for key in self.keys}}
    study = dataclasses.replace(
      self.study,
      factors=factors,
      sweep=[],
      seeds=self.seeds,
      tune={},
      outcomes={},
      keeps_parameters=(),
      count=0,
    )
    proofs = self.derive_proofs(candidates)
    description = proof.describe_study(study, candidates, proofs)
    say(f'tuning, {"rung" if halves else "round"} {rung + 1} of {self.count}: {len(candidates)} candidates')
    prepared = candidates, proofs, description
    analysis = runner.run(study, folder, should_stop, workers, say, prepared=prepared)
    if analysis is None:
      return None
    scored = scores.collect_scores(store.read_runs(folder), description['metric'])
    if halves or not rung:  # own values are trained on each rung, but in the first round alone
      self.scored, self.scores = scored, {arm.name: [] for arm in self.arms}
    for arm in self.arms:
      name_of = lambda cell, arm=arm: self.candidate(arm, cell, part).name
      self.scores[arm.name] += [
        (cell, list(scored.values.get(name_of(cell), {}).values())) for cell in self.left[arm.name]
      ]
      if halves:
        ranked, own = [cell for cell, _ in self.ranked(arm)], self.own[arm.name]
        best = ranked[: -(-len(ranked) // SHORTER)]
        self.left[arm.name] = best if own in best else [*best, own]
      elif rung + 1 < self.count:
        self.left[arm.name] = self.propose(arm)
    return analysis

  def propose(self, arm):
    """List the values of an arm's next round."""
    tried = [cell for cell, _ in self.scores[arm.name]]
    means = [float(np.mean(values)) if values else math.nan for _, values in self.scores[arm.name]]
    rows = dict(zip(self.keys, self.study.tune.values(), strict=True))
    return proposals.propose(rows, tried, means, self.study.better, self.study.tuning.points)

  def ranked(self, arm):
    """[(cell, values)] of an arm, the best mean first; one with a lost run only where all have."""
    sign = 1 if self.study.better == 'lower' else -1
    mean = lambda values: sign * np.mean(values) if values else np.inf
    return sorted(self.scores[arm.name], key=lambda pair: (len(pair[1]) < len(self.seeds), mean(pair[1])))

  def tuned_arms(self):
    """The arms of the study at their best values."""
    best = {arm.name: self.ranked(arm)[0][0] for arm in self.arms}
    change = lambda arm: design.apply_changes(arm.config, [best[arm.name]], f'arm {arm.name}')
    return [arm._replace(config=change(arm)) for arm in self.arms]

  def derive_proofs(self, arms):
    """{name: Proof} of arms that differ from the untuned ones in what is tuned.

    An arm that differs in traced numbers alone has the same program: it is not traced again.
    """
    proofs, known = {}, {}
    traced = {program_key(arm.config): self.proofs[arm.name] for arm in self.arms}
    base = config.to_dict(arms[0].config)
    for arm in arms:
      key = program_key(arm.config)
      if key not in traced:
        traced[key] = proof.compute_proof(arm.config, self.study, self.workdir / 'cache')
      one = traced[key]
      values = step.hyper_of(arm.config)
      hyper = {name: float(values[name]) for name in one.inputs['hyperparameters']}
      inputs = one.inputs | {'hyperparameters': hyper}
      diff = records.diff(base, config.to_dict(arm.config))
      proofs[arm.name] = one._replace(inputs=inputs, fingerprint=budget.hash_json(inputs), diff=diff)
      twin = known.setdefault(proofs[arm.name].fingerprint, arm.name)
      if twin != arm.name:
        raise ValueError(
          f'arm {arm.name} computes what arm {twin} does\n'
          'fix: tune a key that has an effect, with other values'
        )
    return proofs

  def describe(self, description):
    """The results of the search for study.json: scores, best values and untuned verdict of each arm."""
    study = description | {'sequential': None}
    names = {arm.name: self.candidate(arm, self.own[arm.name]).name for arm in self.arms}
    of_own = {name: self.scored.values.get(names[name], {}) for name in names}
    base, others = self.arms[0].name, [arm.name for arm in self.arms[1:]]
    comparisons = [
      scores.Scores(of_own, {}, {}, self.scored.examples).comparison(study, name, base) for name in others
    ]
    verdicts = dict(zip(others, judging.judge_family(study, comparisons, self.scored.examples), strict=True))
    keys = ('verdict', 'difference', 'interval', 'p_holm', 'n')
    arms = {}
    for arm in self.arms:
      best = self.ranked(arm)[0][0]
      arms[arm.name] = {
        'scores': [[list(cell.values()), values] for cell, values in self.scores[arm.name]],
        'best': best,
        'own': self.own[arm.name],
        'at_edge': [key for key in self.keys if self.is_at_edge(arm, key, best[key])],
        'untuned': {key: verdicts[arm.name][key] for key in keys} if arm.name in verdicts else None,
      }
    return {'keys': self.keys, 'seeds': list(self.seeds), 'rungs': self.study.tuning.rungs, 'arms': arms}

  def is_at_edge(self, arm, key, value):
    """Whether a number is the least or the largest that was tried of its key."""
    tried = [cell[key] for cell, _ in self.scores[arm.name]]
    if not all(isinstance(number, int | float) for number in tried):
      return False
    return len(set(tried)) > 1 and value in (min(tried), max(tried))
