"""Keys and values of a conversation's earlier turns: the same ids as without, from fewer tokens."""

import functools
import itertools

import numpy as np
import pytest

from gpt_jax import sample
from gpt_jax.sampling import completions, decoding_layout, prompt_batch
from gpt_jax.sampling.history import History, shared_tokens
from gpt_jax.tokenizers import grammar
from tests import models

RULES = grammar.plain(np.arange(64) < 45, [44])
SHAPES = {
  'windows': dict(window=5, layer_pattern='LS', kv_heads=2),
  'learned positions': dict(positions='learned'),
  'alibi': dict(positions='alibi'),
  'experts': dict(experts=2, experts_per_token=1),
  'mrope': dict(positions='mrope', head_dim=16),  # positions are not slots: computed anew
}
GREEDY = sample.SampleConfig(max_new_tokens=7, temperature=0.0)
FREE = sample.SampleConfig(max_new_tokens=7, temperature=0.9, top_p=0.95, repetition_penalty=1.2)


@functools.cache
def model(shape):
  cfg = models.tiny(context=160, **SHAPES[shape])
  return decoding_layout.prepare_model(models.fill(cfg))


def turns():
  """Prompts of a conversation: each continues the one before, but for one that goes back, and a new one."""
  ids = np.random.default_rng(0).integers(0, 44, 120).tolist()
  return [ids[:n] for n in (9, 50, 51, 100, 120)] + [[*ids[:40], 7, 7, *ids[42:60]], ids[70:90], ids[:1]]


def replies(shape, cfg, history):
  """The ids after each prompt, with their log-probabilities."""
  results = []
  for prompt in turns():
    *_, state = completions.stream(model(shape), [prompt], cfg, RULES, every=3, history=history)
    results.append((state.token_ids_BT[0, : state.lengths_B[0]].tolist(), state.log_probs_BT[0]))
  return results


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('cfg', [GREEDY, FREE], ids=['greedy', 'sampled'])
def test_ids_are_equal_with_and_without_reuse(shape, cfg, monkeypatch):
  alone = replies(shape, cfg, None)
  prefilled, prefill = [], sample.jit_prefill

  def count(model, prompts, *rest):
    prefilled.append(prompts.input_ids_BP.shape[1])
    return prefill(model, prompts, *rest)

  monkeypatch.setattr(sample, 'jit_prefill', count)
  together = replies(shape, cfg, History())
  for (ids, log_probs), (expected, expected_log_probs) in zip(together, alone, strict=True):
    assert ids == expected
    size = min(map(len, (log_probs, expected_log_probs)))
    np.testing.assert_allclose(log_probs[:size], expected_log_probs[:size], atol=1e-4)
  whole, parts = [32, 64, 64, 128, 128, 64, 32, 32], [32, 64, 32, 64, 32, 32, 32, 32]
  assert prefilled == (whole if shape == 'mrope' else parts)


def test_a_reply_continues_into_the_next_turn():
  """The tokens that were generated have keys and values, too."""
  history, prompt = History(), turns()[1]
  *_, state = completions.stream(model('windows'), [prompt], GREEDY, RULES, history=history)
  ids = state.token_ids_BT[0, : state.lengths_B[0]].tolist()
  text = prompt_batch.Prompt([*ids, 1, 2, 3])
  assert shared_tokens(history.state, text, model('windows').cfg) == len(ids) > len(prompt)


def test_what_was_interrupted_is_not_continued(monkeypatch):
  """A state that the decode loop has taken over is not used again."""
  history, prompt = History(), turns()[1]
  stream = completions.stream(model('windows'), [prompt], GREEDY, RULES, every=3, history=history)
  next(stream)
  stream.close()
  assert history.state is not None  # stopped between two calls

  def interrupt(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(sample, 'jit_decode', interrupt)
    with pytest.raises(KeyboardInterrupt):
      next(completions.stream(model('windows'), [prompt], GREEDY, RULES, history=history))
  assert history.state is None
  expected = [
    list(completions.stream(model('windows'), [prompt], GREEDY, RULES, history=h)) for h in (None, history)
  ]
  for one, other in itertools.pairwise(expected):
    np.testing.assert_array_equal(one[-1].token_ids_BT, other[-1].token_ids_BT)
