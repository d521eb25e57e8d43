"""Prompts of images and sounds, prefixes and guidance, against the uncached model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import sample
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import completions, decoding_layout, samplers
from gpt_jax.sampling.prompt_batch import Prompt
from tests import models
from tests.tokenizers.test_grammar import CONTEXT, PIECES, decoded, rules, special, toys

A, M, T = 3, 2, 56  # numbers of a patch and of a frame, length of uncached rows
RNG = np.random.default_rng(0)
BOI, BOA, SEP = (special(name) for name in ('boi', 'boa', 'sep'))
GREEDY = SampleConfig(max_new_tokens=14, temperature=0.0)
FREE = SampleConfig(max_new_tokens=14, seed=2)


@functools.cache
def model():
  """As trained, and as the decode loop wants it."""
  cfg = models.tiny(
    vocab=toys()[0].size,
    vocab_multiple=64,
    positions='mrope',
    head_dim=8,
    context=CONTEXT,
    patch_values=A,
    frame_values=M,
    tied_head=False,
  )
  trained = models.fill(cfg)
  return trained, jax.jit(decoding_layout.for_sampling, static_argnames='dtype')(trained, 'float32')


def prompt(*kinds, start=(), mask='causal'):
  """A prompt of these pieces, sep and a start marker, with random features."""
  ids = [i for kind in kinds for i in PIECES[kind](RNG)] + [SEP, *start]
  features = {}
  for kind, place, width in (('patches', 'patch', A), ('frames', 'frame', M)):
    if kind in kinds:
      there_P1 = np.array(ids)[:, None] == special(place)
      features[kind] = RNG.standard_normal((len(ids), width)).astype(np.float32) * there_P1
  return Prompt(ids, mask=mask, **features)


PROMPTS = [
  prompt('text', 'patches', start=[BOI], mask='condition'),
  prompt('text', start=[BOI]),
  prompt('frames', 'text', start=[BOI], mask='condition'),
  prompt('image', 'audio', start=[BOI]),
]


@functools.cache
def made(cfg, to='image'):
  state = sample.generate(model()[1], PROMPTS, cfg, rules(to))
  return completions.new_tokens(state, PROMPTS, cfg.num_samples)


@jax.jit
def forward(model, ids_BT, inputs):
  return jax.nn.log_softmax(model(ids_BT, **inputs).logits_BTV)


def uncached(prompts, rows, null=False):
  """Log-probabilities [row, place, vocabulary] of whole rows under the uncached model."""
  layout = toys()[1]
  ids_BT, segments_BT = np.zeros((2, len(rows), T), np.int32)
  prefix_BT = np.zeros((len(rows), T), bool)
  features = {
    'patches_BTA': np.zeros((len(rows), T, A), np.float32),
    'frames_BTM': np.zeros((len(rows), T, M), np.float32),
  }
  for b, (one, row) in enumerate(zip(prompts, rows, strict=True)):
    ids_BT[b, : len(row)], segments_BT[b, : len(row)] = row, 1
    for name, value in (('patches_BTA', one.patches), ('frames_BTM', one.frames)):
      if value is not None and not null:
        features[name][b, : len(value)] = value
  condition_BT = layout.condition_mask(ids_BT, segments_BT)
  prefix_BT = condition_BT & np.array([p.mask == 'condition' for p in prompts])[:, None]
  positions_BT3 = layout.positions3(ids_BT, segments_BT)
  inputs = {'positions_BT': positions_BT3, 'prefix_BT': prefix_BT, **features}
  fed_BT = layout.drop_condition(ids_BT, condition_BT) if null else ids_BT
  return np.asarray(forward(model()[0], fed_BT, inputs), np.float64)


def whole(found):
  return [[*p.ids, *ids] for p, (ids, _) in zip(PROMPTS, found, strict=True)]


@pytest.mark.parametrize('to', ['image', 'text', 'audio'])
def test_cached_log_probs_are_those_of_the_uncached_model(to):
  """With time, rows and columns as positions, bidirectional conditions, patches and frames."""
  found = made(dataclasses.replace(FREE, max_new_tokens=30), to)
  rows = [row[:T] for row in whole(found)]
  log_probs_BTV = uncached(PROMPTS, rows)
  for b, (one, (ids, log_probs)) in enumerate(zip(PROMPTS, found, strict=True)):
    places = np.arange(len(one.ids), len(rows[b])) - 1
    picked = log_probs_BTV[b, places, ids[: len(places)]]
    np.testing.assert_allclose(log_probs[: len(places)], picked, atol=1e-4)
    assert len(places) > 5
    decoded(one.ids + ids)


@pytest.mark.parametrize('cfg', [FREE, dataclasses.replace(FREE, guidance=3.0)], ids=['', 'guided'])
def test_a_prompt_alone_gives_what_it_gives_in_a_batch(cfg):
  keys_B = sample.row_keys(cfg.seed, len(PROMPTS))
  for b in (0, 1):
    state = sample.generate(model()[1], PROMPTS[b : b + 1], cfg, rules('image'), keys_B[b : b + 1])
    [(ids, log_probs)] = completions.new_tokens(state, PROMPTS[b : b + 1], 1)
    assert ids == made(cfg)[b][0]
    np.testing.assert_allclose(log_probs, made(cfg)[b][1], atol=1e-4)


def test_features_and_mask_change_the_logits():
  """The features and the mask: without them other tokens are likely."""
  for b, change in ((0, 'patches'), (2, 'frames'), (0, 'mask'), (2, 'mask')):
    value = getattr(PROMPTS[b], change)
    other = PROMPTS[b]._replace(**{change: 'causal' if change == 'mask' else -value})
    state = sample.start(model()[1], [PROMPTS[b], other], FREE, rules('image'))
    logits_BV = np.asarray(state.next_logits_BV)
    assert np.abs(logits_BV[0] - logits_BV[1]).max() > 1e-2, change


# ---------------------------------------------------------------------------------------- guidance


def test_guidance_off_doubles_nothing():
  state = sample.start(model()[1], PROMPTS, FREE, rules('image'))
  assert state.null_logits_BV is None and state.guidance_B is None
  assert state.cache[0]['k_BGSK'].shape[0] == len(PROMPTS)
  doubled = dataclasses.replace(FREE, guidance=2.0, num_samples=3)
  state = sample.start(model()[1], PROMPTS, doubled, rules('image'))
  assert state.cache[0]['k_BGSK'].shape[0] == 2 * 3 * len(PROMPTS)


def test_guidance_of_one_is_the_conditional_model():
  almost = made(dataclasses.replace(FREE, guidance=1 + 1e-9))
  for (ids, log_probs), (wanted, expected) in zip(almost, made(FREE), strict=True):
    assert ids == wanted
    np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_guidance_of_zero_is_the_model_without_condition():
  """What is sampled does not depend on the condition; log-probabilities are still given it."""
  found = made(dataclasses.replace(FREE, guidance=0.0))
  words = PROMPTS[1]  # a condition without an image: dropped, it keeps its places
  empty = Prompt([special('null')] * words.ids.index(SEP) + [SEP, BOI])
  keys_B = sample.row_keys(FREE.seed, len(PROMPTS))[1:2]
  state = sample.generate(model()[1], [empty], FREE, rules('image'), keys_B)
  assert found[1][0] == completions.new_tokens(state, [empty], 1)[0][0]
  assert found[1][0] != made(FREE)[1][0]
  log_probs_BTV = uncached(PROMPTS, whole(found))
  for b, (one, (ids, log_probs)) in enumerate(zip(PROMPTS, found, strict=True)):
    places = np.arange(len(ids)) + len(one.ids) - 1
    np.testing.assert_allclose(log_probs, log_probs_BTV[b, places, ids], atol=1e-4)


def test_greedy_guidance_is_the_formula_on_two_uncached_models():
  """l_u + g (l_c - l_u), then the grammar, then the argmax; places stay those of the condition."""
  g = 4.0
  found = made(dataclasses.replace(GREEDY, guidance=g))
  rows = whole(found)
  given_BTV, null_BTV = uncached(PROMPTS, rows), uncached(PROMPTS, rows, null=True)
  guided_BTV = null_BTV + g * (given_BTV - null_BTV)
  mask = {kind: toys()[0].allowed((kind,)) for kind in ('image0', 'image1')}
  differs = 0
  for b, (one, (ids, _)) in enumerate(zip(PROMPTS, found, strict=True)):
    for n, token in enumerate(ids[:-1]):
      place, allowed_V = len(one.ids) + n - 1, mask[f'image{n % 2}']
      assert token == np.where(allowed_V, guided_BTV[b, place], -np.inf).argmax()
      differs += token != np.where(allowed_V, given_BTV[b, place], -np.inf).argmax()
    assert ids[-1] == special('eoi')
  assert differs


def test_guidance_leaves_the_length_of_a_sound_to_the_condition():
  """The end keeps its probability, what goes on is shared out as the formula says."""
  rng = np.random.default_rng(1)
  logits_BV, null_BV = (rng.standard_normal((4, 6)).astype(np.float32) * 3 for _ in range(2))
  allowed_BV = np.array([[1, 1, 1, 0, 0, 1]] * 3 + [[1, 1, 1, 0, 0, 0]], bool)  # 5 is the end
  paced_V = np.arange(6) == 5
  scale_B = jnp.asarray([0.0, 1.0, 5.0, 5.0], jnp.float32)
  guided_BV = np.asarray(samplers.apply_guidance(logits_BV, null_BV, scale_B, allowed_BV, paced_V))
  softmax = lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum()
  for b, g in enumerate([0.0, 1.0, 5.0, 5.0]):
    formula_V = null_BV[b] + g * (logits_BV[b] - null_BV[b])
    if b == 3:  # the end may not follow here
      np.testing.assert_allclose(guided_BV[b], formula_V, rtol=1e-5)
      continue
    ids = np.flatnonzero(allowed_BV[b])
    probs = softmax(guided_BV[b][ids])
    end = softmax(logits_BV[b][ids])[-1]
    assert probs[-1] == pytest.approx(end, rel=1e-4)
    rest = softmax(formula_V[ids[:-1]]) * (1 - end)
    np.testing.assert_allclose(probs[:-1], rest, rtol=1e-4)


def test_guided_sounds_can_be_decoded():
  prompts = [prompt('text', start=[BOA]), prompt('text')]
  cfg = SampleConfig(max_new_tokens=14, guidance=8.0)
  state = sample.generate(model()[1], prompts, cfg, rules('audio'))
  for one, (ids, _) in zip(prompts, completions.new_tokens(state, prompts, 1), strict=True):
    assert decoded(one.ids + ids)[-1][0] == 'audio'


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
  ('wrong', 'cfg', 'cause'),
  [
    (Prompt([1, 2]), dict(guidance=2.0), 'sample.guidance=2.0 needs a condition'),
    (Prompt([special('patch'), SEP]), dict(), 'a prompt of 2 tokens, 1 of them patch, has patches'),
    (Prompt([1, SEP], patches=np.zeros((1, A), np.float32)), dict(), 'of shape'),
    (Prompt([1, SEP], frames=np.zeros((2, 9), np.float32)), dict(), 'has frames of shape'),
  ],
)
def test_prompts_that_the_model_cannot_read_are_refused(wrong, cfg, cause):
  cfg = dataclasses.replace(FREE, **cfg)
  with pytest.raises(ValueError, match=f'{cause}.*\nfix: '):
    sample.start(model()[1], [wrong], cfg, rules('any'))
