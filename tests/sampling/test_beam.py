"""Beam search against everything that could be written."""

import functools
import itertools

import jax
import numpy as np
import pytest

from gpt_jax import sample
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import beam, completions, decoding_layout
from gpt_jax.tokenizers import grammar
from tests import models
from tests.test_sample import writer

PROMPTS = [[3, 1], [2], [0, 3, 3]]
ALL_V = np.ones(4, bool)
STEPS = 3


@functools.cache
def model(vocab=4):
  trained = models.fill(models.tiny(vocab=vocab, vocab_multiple=4, positions='learned'))
  return trained, jax.jit(decoding_layout.for_sampling, static_argnames='dtype')(trained, 'float32')


def log_probs(rows, vocab=4, allowed_V=ALL_V):
  """{row: log-probabilities of the next id}, from one uncached call for rows of ids."""
  ids_BT = np.zeros((64, 8), np.int32)
  for b, row in enumerate(rows):
    ids_BT[b, : len(row)] = row
  logits_BTV = np.asarray(models.logits(model(vocab)[0], ids_BT), np.float64)
  result = {}
  for b, row in enumerate(rows):
    logits_V = np.where(allowed_V, logits_BTV[b, len(row) - 1], -np.inf)
    result[tuple(row)] = logits_V - np.log(np.exp(logits_V).sum())
  return result


def penalized(score, length, alpha):
  return score / ((5 + length) / 6) ** alpha


def exhaustive(prompt, alpha, stops=(), allowed_V=ALL_V):
  """Every text of 3 ids, or that ends in a stop before, best first."""
  found = {}
  prefixes = {(): 0.0}
  for length in range(1, STEPS + 1):
    following = log_probs([(*prompt, *ids) for ids in prefixes], allowed_V=allowed_V)
    longer = {}
    for (ids, score), token in itertools.product(prefixes.items(), np.flatnonzero(allowed_V)):
      text, total = (*ids, int(token)), score + following[(*prompt, *ids)][token]
      if token in stops or length == STEPS:
        found[text] = penalized(total, length, alpha)
      else:
        longer[text] = total
    prefixes = longer
  return sorted(found.items(), key=lambda item: -item[1])


def assert_results(found, expected):
  assert [tuple(ids) for ids, _ in found] == [tuple(ids) for ids, _ in expected]
  np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-4)


@pytest.mark.parametrize('alpha', [0.0, 1.0])
@pytest.mark.parametrize('stops', [(), (2,), (0, 2)], ids=str)
def test_enough_beams_find_the_best_of_all_texts(stops, alpha):
  """Prompts of different lengths; five results each, best first."""
  cfg = SampleConfig(beams=16, num_samples=5, max_new_tokens=STEPS, length_penalty=alpha)
  found = beam.beam_search(model()[1], PROMPTS, cfg, grammar.plain(ALL_V, stops))
  for prompt, results in zip(PROMPTS, found, strict=True):
    assert_results(results, exhaustive(prompt, alpha, stops)[:5])


def test_a_prompt_alone_gives_what_it_gives_in_a_batch():
  cfg = SampleConfig(beams=16, num_samples=5, max_new_tokens=STEPS, length_penalty=1.0)
  together = beam.beam_search(model()[1], PROMPTS, cfg, grammar.plain(ALL_V, (2,)))
  [alone] = beam.beam_search(model()[1], PROMPTS[1:2], cfg, grammar.plain(ALL_V, (2,)))
  assert_results(alone, together[1])


def test_one_beam_is_greedy():
  cfg = SampleConfig(beams=1, max_new_tokens=5)
  greedy = SampleConfig(temperature=0.0, max_new_tokens=5)
  found = beam.beam_search(model()[1], PROMPTS, cfg, grammar.plain(ALL_V))
  state = sample.generate(model()[1], PROMPTS, greedy, grammar.plain(ALL_V))
  for [(ids, score)], (expected, log_probs) in zip(
    found, completions.new_tokens(state, PROMPTS, 1), strict=True
  ):
    assert ids == expected
    assert score == pytest.approx(penalized(sum(log_probs), 5, 0.6), abs=1e-4)


def test_only_possible_texts_are_results():
  """Two ids allowed, one step: two texts, though eight were asked for."""
  allowed_V = np.array([0, 1, 0, 1], bool)
  cfg = SampleConfig(beams=8, num_samples=8, max_new_tokens=1)
  [found] = beam.beam_search(model()[1], PROMPTS[:1], cfg, grammar.plain(allowed_V))
  expected = [
    ((token,), p)
    for token, p in enumerate(log_probs(PROMPTS[:1], allowed_V=allowed_V)[tuple(PROMPTS[0])])
    if allowed_V[token]
  ]
  assert_results(found, sorted(expected, key=lambda item: -item[1]))


def narrow(prompt, vocab, width, alpha, stops, steps):
  """Beam search, one hypothesis at a time."""
  live, done = {(): 0.0}, {}
  for length in range(1, steps + 1):
    following = log_probs([(*prompt, *ids) for ids in live], vocab, np.ones(vocab, bool))
    grown = {
      (*ids, token): score + following[(*prompt, *ids)][token]
      for ids, score in live.items()
      for token in range(vocab)
    }
    best = sorted(grown, key=lambda ids: -grown[ids])[: (1 + len(stops)) * width]
    ended = [ids for ids in best if ids[-1] in stops or length == steps]
    done |= {ids: penalized(grown[ids], length, alpha) for ids in ended}
    live = {ids: grown[ids] for ids in [ids for ids in best if ids not in ended][:width]}
  return sorted(done.items(), key=lambda item: -item[1])[:width]


@pytest.mark.parametrize('alpha', [0.6, 10.0])
def test_many_stop_ids_leave_as_many_beams_alive(alpha):
  """Two beams, and the six likeliest of eight ids stop: the two that go on are still followed."""
  prompt = [1, 7]
  following = log_probs([prompt], 8, np.ones(8, bool))[tuple(prompt)]
  stops = tuple(np.argsort(-following)[:6].tolist())
  cfg = SampleConfig(beams=2, num_samples=2, max_new_tokens=4, length_penalty=alpha)
  [found] = beam.beam_search(model(8)[1], [prompt], cfg, grammar.plain(np.ones(8, bool), stops))
  expected = narrow(prompt, 8, 2, alpha, stops, 4)
  assert_results(found, expected)
  assert any(len(ids) > 1 for ids, _ in expected) == (alpha == 10.0)


def test_text_by_beams_comes_with_its_score():
  trained, toks = writer()
  cfg = SampleConfig(beams=3, num_samples=2, max_new_tokens=4)
  prompt = toks.encode_text('ab')
  [group] = completions.complete(trained, toks, [prompt], cfg)
  rules = completions.build_grammar(toks, trained.cfg.V)
  [found] = beam.beam_search(decoding_layout.prepare_model(trained), [prompt], cfg, rules)
  assert group == [(toks.decode_text(ids), score) for ids, score in found]
  assert found[0][1] > found[1][1]
