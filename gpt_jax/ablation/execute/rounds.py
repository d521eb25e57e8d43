"""Studies with seeds=Sequential(first, most): each round gives the next seed to the arms that are undecided.

All arms have the first seeds. Then an arm that is decided, or would hardly be decided by the most seeds, gets
no more; the baseline gets every seed that an arm gets. `seeds_of` of study.json has the seeds of each arm so
far. A study that is killed repeats its rounds from the results, without training, up to where it was.
"""

from gpt_jax.ablation import store
from gpt_jax.ablation.execute import runner
from gpt_jax.ablation.stats import judging, scores
from gpt_jax.runs import loggers, records

dry_run = runner.dry_run


def run(study, workdir, should_stop=lambda: False, workers=0, say=loggers.say, prepared=None):
  """Train rounds until no arm needs another seed, judge and report -> analysis, None if stopped.

  Arguments like runner.run.
  """
  workdir = runner.check_study_folder(workdir)
  arms, proofs, description = prepared or runner.prove_study(study, workdir / 'cache', say)
  with runner.locked_study(workdir):
    tasks = runner.make_tasks(study, arms, proofs, workdir)
    planner = Rounds(workdir, study.sequential, runner.write_study(workdir, tasks, description, say), say)
    finished = runner.train_all(
      workdir, workdir, planner.next_tasks(), study, should_stop, workers, say, planner.next_tasks
    )
    return runner.judge(workdir, say) if finished else None


class Rounds:
  """The seeds of each arm, from the results so far."""

  def __init__(self, workdir, design, tasks, say):
    """tasks: all runs of the study that are not done."""
    self.workdir, self.design, self.tasks, self.say = workdir, design, tasks, say
    arms = store.read_study(workdir)['arms']
    self.active = [arm['name'] for arm in arms if not arm['is_baseline']]
    self.baseline = next(arm['name'] for arm in arms if arm['is_baseline'])
    self.counts = {}

  def next_tasks(self):
    """The tasks of the next round that has any, [] if no arm needs another seed."""
    while True:
      before = dict(self.counts)
      self.count_seeds()
      if self.counts == before:
        return []
      seeds = range(self.design.most)
      seeds_of = {arm: list(seeds[:n]) for arm, n in self.counts.items()}
      study = store.read_study(self.workdir) | {'seeds_of': seeds_of}
      records.write_json(self.workdir / 'study.json', study)
      due = [task for task in self.tasks if task.seed < self.counts[task.arm]]
      self.tasks = [task for task in self.tasks if task not in due]
      if due:
        return due

  def count_seeds(self):
    """Give each arm that needs it another seed."""
    if not self.counts:
      self.counts = dict.fromkeys((self.baseline, *self.active), self.design.first)
      return
    verdicts = self.judge()
    for name in list(self.active):
      verdict, n = verdicts[name], self.counts[name]
      if verdict['verdict'] == 'undecided' and verdict['seeds_needed'] and n < self.design.most:
        self.counts[name] = n + 1
        continue
      self.active.remove(name)
      if n < self.design.most:
        self.say(f'{name} is {verdict["verdict"]} after {n} seeds and gets no more')
    self.counts[self.baseline] = max(self.counts.values())

  def judge(self):
    """{arm: its judging.judge dict} of the results so far."""
    study = store.read_study(self.workdir)
    rows = [row | {'seed': str(row['seed'])} for row in store.read_runs(self.workdir)]
    scored, names = scores.collect_scores(rows, study['metric']), list(self.counts)
    names.remove(self.baseline)
    comparisons = [scored.comparison(study, name, self.baseline) for name in names]
    verdicts = judging.judge_family(study, comparisons, scored.examples)
    return dict(zip(names, verdicts, strict=True))
