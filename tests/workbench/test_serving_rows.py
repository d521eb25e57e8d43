"""Continuous batching: rows that join and leave, each with the text that it has alone."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from gpt_jax import sample
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import completions, decoding_layout, prompt_batch, samplers
from gpt_jax.tokenizers import grammar
from gpt_jax.workbench.serving import rows
from gpt_jax.workbench.serving.decode_batch import DecodeBatch
from tests import models

RULES = grammar.plain(np.arange(64) < 45, [44])
GREEDY = SampleConfig(temperature=0.0, max_new_tokens=12)
FREE = SampleConfig(temperature=0.9, max_new_tokens=30)
FILTERED = SampleConfig(temperature=1.3, top_k=9, top_p=0.8, max_new_tokens=10)
OTHER = SampleConfig(temperature=0.7, min_p=0.02, repetition_penalty=1.3, max_new_tokens=17)


class Recorder:
  """A job that keeps its ids."""

  adapter = 0

  def __init__(self, prompt, cfg, seed, alternatives=0):
    self.prompt, self.cfg, self.alternatives = prompt_batch.Prompt(prompt), cfg, alternatives
    self.keys_B, self.cancelled = sample.row_keys(seed, 1), threading.Event()
    self.length, self.limit = len(prompt), len(prompt) + cfg.max_new_tokens
    self.ids, self.log_probs, self.tops, self.has_ended = [], [], [], False

  @property
  def count(self):
    return len(self.ids)

  def push(self, ids, log_probs, tops, has_ended):
    self.ids, self.log_probs = self.ids + ids, self.log_probs + log_probs
    self.tops += [
      (top_ids, values) for top_ids, values in zip(*(top[: len(ids)] for top in tops), strict=True)
    ]
    self.has_ended = bool(has_ended)
    return self.has_ended


@pytest.fixture(scope='module')
def model():
  return decoding_layout.prepare_model(models.fill(models.tiny(context=96, window=7, layer_pattern='LS')))


def alone(model, job):
  """The ids and log-probabilities that sample.generate gives the job."""
  state = sample.generate(model, [job.prompt], job.cfg, RULES, job.keys_B)
  [pair] = completions.new_tokens(state, [job.prompt], 1)
  return pair


def test_each_text_is_the_same_as_alone(model):
  """Seven jobs over three rows: they join while others decode, share prefixes, grow the cache, and leave."""
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 44, n).tolist() for n in (5, 3, 40)]
  prompts += [[*prompts[2][:36], 1, 2], prompts[0], prompts[1], prompts[2]]
  settings = [FREE, GREEDY, FILTERED, OTHER, FREE, FILTERED, GREEDY]
  jobs = [Recorder(p, cfg, seed) for seed, (p, cfg) in enumerate(zip(prompts, settings, strict=True))]
  batch, waiting, most = DecodeBatch(model, RULES, 3), list(jobs), 0
  batch.admit([waiting.pop(0)], is_alone=True)
  assert len(batch.jobs) == 1  # a job alone does not pay for empty rows
  while batch.active or waiting:
    batch.step()
    if waiting and batch.free_slots:  # one a step, so that they are at different places
      batch.admit([waiting.pop(0)], is_alone=False)
    most = max(most, len(batch.active))
    used, room = batch.cache_tokens()
    assert used == sum(job.length + job.count for job in batch.active) and used <= room
    assert room in (0, *(B * T for B in (1, 3) for T in (32, 64, 96)))
  assert most == 3 and batch.state is None
  for job in jobs:
    ids, log_probs = alone(model, job)
    assert job.ids == ids and job.has_ended
    np.testing.assert_allclose(job.log_probs, log_probs, atol=1e-4)


@pytest.mark.parametrize('is_first_causal', [True, False])
def test_keys_of_a_prefix_are_not_those_of_the_same_ids_in_a_text(model, is_first_causal):
  rules = RULES._replace(sep=np.int32(40))
  ids = [*range(36), 40]  # more than the 32 tokens that are computed at least
  pair = [prompt_batch.Prompt(ids, mask='condition'), prompt_batch.Prompt([*ids, 11])]
  batch = DecodeBatch(model, rules, 1)
  for prompt in pair[::-1] if is_first_causal else pair:
    job = Recorder(prompt.ids, GREEDY, 0)
    job.prompt = prompt
    batch.admit([job], is_alone=True)
    while batch.active:
      batch.step()
    state = sample.generate(model, [prompt], GREEDY, rules, job.keys_B)
    [(texts, log_probs)] = completions.new_tokens(state, [prompt], 1)
    assert job.ids == texts
    np.testing.assert_allclose(job.log_probs, log_probs, atol=1e-4)


def test_alternatives_are_the_likeliest_tokens_of_the_model(model):
  job = Recorder([7, 8, 9], FILTERED, 3, alternatives=5)
  batch = DecodeBatch(model, RULES, 2)
  batch.admit([job], is_alone=True)
  while batch.active:
    batch.step()
  ids = np.array([[7, 8, 9, *job.ids]])
  log_probs_TV = np.asarray(jax.nn.log_softmax(models.logits(models.fill(model.cfg), ids)))[0, 2:-1]
  for (top_ids, values), log_probs_V in zip(job.tops, log_probs_TV, strict=True):
    expected = np.sort(log_probs_V)[::-1][: len(values)]
    np.testing.assert_allclose(values, expected, atol=1e-4)
    np.testing.assert_allclose(log_probs_V[top_ids], expected, atol=1e-4)


def test_a_cancelled_job_frees_its_row(model):
  jobs = [Recorder([n + 1], FREE, n) for n in range(3)]
  batch = DecodeBatch(model, RULES, 3)
  for job in jobs:
    batch.admit([job], is_alone=False)
  batch.step()
  before = jobs[1].count
  jobs[1].cancelled.set()
  batch.step()
  assert jobs[1].count == before and batch.jobs[1] is None and batch.free_slots
  while batch.active:
    batch.step()
  for job in (jobs[0], jobs[2]):
    assert job.ids == alone(model, job)[0]


def test_filters_of_rows_equal_those_of_a_batch():
  logits_BV = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
  column = lambda *values: np.array(values, np.float32)[:, None]
  ks = [1, 5, 64, 17]
  of_rows = rows.top_k(logits_BV, np.array(ks)[:, None])
  for b, k in enumerate(ks):
    np.testing.assert_array_equal(of_rows[b], samplers.top_k(logits_BV[b : b + 1], k)[0])
  values = (0.1, 0.5, 0.9, 1.0)
  for keep in (samplers.top_p, samplers.min_p):
    of_rows = keep(logits_BV, column(*values))
    for b, value in enumerate(values):
      np.testing.assert_array_equal(of_rows[b], keep(logits_BV[b : b + 1], value)[0])


def test_texts_of_a_model_with_a_flow_head_are_served():
  head = models.tiny(context=96, flow_layers=1, patch_values=3, patch_id=44)
  model = decoding_layout.prepare_model(models.fill(head))
  job = Recorder([3, 1, 4], dataclasses.replace(FREE, max_new_tokens=6), 5)
  batch = DecodeBatch(model, RULES, 2)
  batch.admit([job], True)
  while batch.step():
    pass
  assert job.has_ended and job.ids == alone(model, job)[0]


def test_short_prompts_that_wait_together_are_prefilled_together(model):
  """Each text is the same as alone, and long ones keep what they share with the one before."""
  lengths, rng = (4, 40, 31, 1, 32), np.random.default_rng(2)
  settings = (FREE, GREEDY, FILTERED, OTHER, FREE)
  jobs = [Recorder(rng.integers(0, 44, n).tolist(), cfg, n) for n, cfg in zip(lengths, settings, strict=True)]
  batch = DecodeBatch(model, RULES, 5)
  groups = batch.group(jobs)
  assert [[job.length for job in group] for group in groups] == [[4, 31, 1], [40], [32]]
  assert batch.group(jobs[:2]) == [[jobs[0]], [jobs[1]]]  # two short ones may as well be alone
  assert len(batch._prefill(groups[0]).token_ids_BT) == 4  # few rows are computed for nobody
  for group in groups:
    batch.admit(group, is_alone=False)
  while batch.active:
    batch.step()
  for job in jobs:
    ids, log_probs = alone(model, job)
    assert job.ids == ids and job.has_ended
    np.testing.assert_allclose(job.log_probs, log_probs, atol=1e-4)
