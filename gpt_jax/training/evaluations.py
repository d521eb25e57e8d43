"""What reads the state between two steps: validation, tasks, samples, probes; and when each is due.

s: a session.Session. What a signal interrupts is abandoned, and done when the run resumes at this step.
"""

import time

from gpt_jax.cluster.batches import to_devices
from gpt_jax.runs.loggers import decimals
from gpt_jax.runs.metric_names import headlines, score_name
from gpt_jax.training import probes


class Preempted(Exception):
  """A stop was requested during an evaluation, which is abandoned."""


def is_due(s, every):
  """Whether an action of this period (0 = only at the end) is due before the next step."""
  return due(every, s.step, s.cfg.train.steps)


def due(every, step, steps):
  """Whether an action of this period (0 = only at the end) is due after `step` of `steps` updates."""
  return step == steps or (every > 0 and step > 0 and step % every == 0)


def due_evals(s):
  """Return the functions that read the state before the next step.

  train.probe_every=0 means never, and train.tasks_every=0 that tasks run in `session.finish` alone.
  """
  train = s.cfg.train
  periods = [(train.eval_every, evaluate), (train.sample_every, sample)]
  periods += [(train.tasks_every, run_tasks)] if train.tasks_every and train.tasks else []
  periods += [(train.probe_every, measure_layers)] if train.probe_every else []
  return [run for every, run in periods if is_due(s, every)]


def needs_state(s):
  """Whether anything that reads the state is due before the next step."""
  return bool(due_evals(s)) or is_due(s, s.cfg.checkpoint.every)


def run_due_evals(s, should_stop):
  """Evaluate, sample and probe if due; return False if a stop was requested meanwhile."""

  def raise_if_preempted():
    if should_stop(s.step):
      raise Preempted

  s.job.raise_if_preempted = raise_if_preempted  # called between evaluation batches
  try:
    for run in due_evals(s):  # not counted as step time
      s.meter.block_until_ready(s.state)
      run(s)
  except Preempted:  # the run evaluates again when it resumes
    return False
  return True


def evaluate(s):
  """Score train.eval_tokens of the validation data; at the end, all of it for the result."""
  start, limit = time.perf_counter(), s.cfg.train.eval_tokens
  s.valid, s.evaluations = s.job.validate(s.state, limit)
  if not s.valid:  # no validation data
    return
  s.run.log(s.step, s.valid)
  s.run.event('evaluate', step=s.step, seconds=time.perf_counter() - start, **s.valid)
  if limit and s.step == s.cfg.train.steps:
    s.valid, s.evaluations = s.job.validate(s.state, 0)


def run_tasks(s):
  """Log the scores of train.tasks on train.tasks_limit validation examples of each source."""
  start = time.perf_counter()
  rows = s.job.run_tasks(s.state, s.cfg.train.tasks_limit)
  if not rows:
    return
  scores = {score_name(row): row['value'] for row in rows if not {'of', 'control'} & set(row)}
  chances = {score_name(row): row['chance'] for row in headlines(rows)}
  s.run.log(s.step, scores)
  s.run.event('evaluate', step=s.step, seconds=time.perf_counter() - start, **scores, chances=chances)
  texts = ', '.join(f'{name} {decimals(scores[name])}' for name in chances)
  s.run.print(f'tasks after {s.step} steps: {texts}')


def sample(s):
  """Write samples of the model as it is now."""
  for content, name, suffix in s.job.samples(s.state):
    s.run.write_sample(s.step, content, name=name, suffix=suffix)


def measure_layers(s):
  """Write the sizes of activations, gradients, updates and parameters per layer, on batch 0."""
  if s.probe is None:
    p = s.job.program
    compiled = probes.compile_probe(p.optimizer, p.objective, s.cfg.train.accumulate, p.dtype, s.mesh)
    s.probe = compiled, to_devices(s.job.loader.first(), s.mesh)
  compiled, batch = s.probe
  s.run.write_probes(s.step, probes.by_layer(compiled(s.state, batch)))
