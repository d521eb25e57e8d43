"""Sampling against the uncached model and numpy."""

import functools
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import sample, tokenizers
from gpt_jax.evaluation.subject import score
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import completions, decoding_layout, prompt_batch, samplers
from gpt_jax.tokenizers import grammar, text
from tests import models

PROMPTS = [[3, 1, 4], [9], [2, 7, 1, 8, 2]]
ALLOWED_V = np.arange(64) < 45  # five ids of the model, and its padding, must not be sampled
NEW = 8


@functools.cache
def model():
  """As trained, and as the decode loop wants it."""
  trained = models.fill(models.tiny(window=5, layer_pattern='LS', kv_heads=2))
  return trained, jax.jit(decoding_layout.for_sampling, static_argnames='dtype')(trained, 'float32')


GREEDY = SampleConfig(max_new_tokens=NEW, temperature=0.0)
FREE = SampleConfig(
  max_new_tokens=NEW, temperature=0.8, top_k=30, top_p=0.95, min_p=0.001, repetition_penalty=1.2
)


def generate(prompts, cfg, stop_ids=(), keys_B=None):
  """-> (list of (ids, log-probabilities), state)."""
  rules = grammar.plain(ALLOWED_V, stop_ids)
  state = sample.generate(model()[1], prompts, cfg, rules, keys_B)
  return completions.new_tokens(state, prompts, cfg.num_samples), state


@functools.cache
def greedy():
  return generate(PROMPTS, GREEDY)


@functools.cache
def free():
  return generate(PROMPTS, FREE)


def uncached_log_probs(rows):
  """Log-probabilities [row, place, vocabulary] of whole rows, padded to the context."""
  ids_BT = np.zeros((len(PROMPTS), 16), np.int32)
  for b, row in enumerate(rows):
    ids_BT[b, : len(row)] = row
  logits_BTV = np.asarray(models.logits(model()[0], ids_BT), np.float64)
  return logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))


# ------------------------------------------------------------------------------------ whole texts


def test_greedy_is_the_argmax_of_the_uncached_model():
  rows, log_probs = [list(p) for p in PROMPTS], [[] for _ in PROMPTS]
  for _ in range(NEW):
    everything = uncached_log_probs(rows)
    for b, row in enumerate(rows):
      here = everything[b, len(row) - 1]
      best = int(np.argmax(np.where(ALLOWED_V, here, -np.inf)))
      log_probs[b].append(here[best])
      row.append(best)
  actual, state = greedy()
  assert [ids for ids, _ in actual] == [row[len(p) :] for row, p in zip(rows, PROMPTS, strict=True)]
  np.testing.assert_allclose([p for _, p in actual], log_probs, atol=1e-4)
  assert state.lengths_B.tolist() == [len(p) + NEW for p in PROMPTS]
  assert state.done_B.all()
  assert len({tuple(ids) for ids, _ in actual}) == 3


def test_log_probs_are_the_models_own_whatever_was_filtered():
  actual, _ = free()
  rows = [p + ids for p, (ids, _) in zip(PROMPTS, actual, strict=True)]
  everything = uncached_log_probs(rows)
  for b, (prompt, (ids, log_probs)) in enumerate(zip(PROMPTS, actual, strict=True)):
    places = np.arange(NEW) + len(prompt) - 1
    np.testing.assert_allclose(log_probs, everything[b, places, ids], atol=1e-4)
    assert all(ALLOWED_V[ids])


@pytest.mark.parametrize('cfg', [GREEDY, FREE], ids=['greedy', 'sampled'])
def test_a_prompt_alone_gives_what_it_gives_in_a_batch(cfg):
  together, _ = greedy() if cfg is GREEDY else free()
  keys_B = sample.row_keys(cfg.seed, 3)
  for b, prompt in enumerate(PROMPTS):
    [(ids, log_probs)], _ = generate([prompt], cfg, keys_B=keys_B[b : b + 1])
    assert ids == together[b][0]
    np.testing.assert_allclose(log_probs, together[b][1], atol=1e-4)


def test_streamed_is_the_same_text():
  states = list(completions.stream(model()[1], PROMPTS, FREE, grammar.plain(ALLOWED_V), every=3))
  actual, state = free()
  assert [s.lengths_B[0] for s in states] == [6, 9, 11]
  np.testing.assert_array_equal(states[-1].token_ids_BT, state.token_ids_BT)
  for s in states:  # what was given stays as it was
    for b, length in enumerate(s.lengths_B):
      np.testing.assert_array_equal(s.token_ids_BT[b, :length], state.token_ids_BT[b, :length])
      assert (s.token_ids_BT[b, length:] == 0).all()


def test_seeds_reproduce_and_compile_nothing_again():
  actual, _ = free()
  compiled = sample.jit_decode._cache_size()
  again, _ = generate(PROMPTS, FREE)
  other, _ = generate(PROMPTS, sample.dataclasses.replace(FREE, seed=1))
  assert again == actual
  assert all(a != b for (a, _), (b, _) in zip(other, actual, strict=True))
  assert sample.jit_decode._cache_size() == compiled


def test_keys_may_be_used_again():
  keys_B = sample.row_keys(5, 3)
  one, _ = generate(PROMPTS, FREE, keys_B=keys_B)
  two, _ = generate(PROMPTS, FREE, keys_B=keys_B)
  assert one == two


def test_several_samples_of_a_prompt_come_from_one_prefill():
  cfg = sample.dataclasses.replace(FREE, num_samples=2, seed=3)
  with mock.patch.object(sample, 'jit_prefill', wraps=sample.jit_prefill) as prefill:
    actual, _ = generate(PROMPTS, cfg)
  [call] = prefill.call_args_list
  assert call.args[1].input_ids_BP.shape == (3, 16)
  keys_B = sample.row_keys(3, 6)
  assert len(actual) == 6
  assert actual[0][0] != actual[1][0]
  for row in range(6):  # row r is the same text alone with its key
    [(ids, _)], _ = generate([PROMPTS[row // 2]], FREE, keys_B=keys_B[row : row + 1])
    assert actual[row][0] == ids


def test_stop_ids_end_a_row_and_no_other():
  texts = [ids for ids, _ in greedy()[0]]
  stops = (texts[0][2], texts[1][4])
  actual, state = generate(PROMPTS, GREEDY, stops)
  for (ids, log_probs), whole in zip(actual, texts, strict=True):
    ends = [i + 1 for i, token in enumerate(whole) if token in stops]
    assert ids == whole[: ends[0] if ends else NEW]
    assert len(log_probs) == len(ids)
  assert len(actual[0][0]) <= 3
  assert len(actual[1][0]) <= 5
  rest_BT = np.arange(16)[None] >= np.asarray(state.lengths_B)[:, None]
  assert (np.asarray(state.token_ids_BT)[rest_BT] == 0).all()
  assert (np.asarray(state.log_probs_BT)[rest_BT] == 0).all()


def test_the_longest_text_fills_the_context():
  [(ids, _)], _ = generate([PROMPTS[0]], sample.dataclasses.replace(FREE, max_new_tokens=13))
  assert len(ids) == 13
  assert ids[:NEW] == free()[0][0][0]  # a row's randomness is in its key and place


def test_buckets():
  assert [prompt_batch.round_up_prompt(n, 1024) for n in (1, 32, 33, 64, 65, 1000)] == [
    32,
    32,
    64,
    64,
    128,
    1024,
  ]
  assert prompt_batch.round_up_prompt(33, 48) == 48
  assert prompt_batch.round_up_prompt(5, 16) == 16
  sizes = [prompt_batch.round_up_slots(n, 1024) for n in (1, 33, 64, 129, 160, 161, 257, 640, 1000)]
  assert sizes == [32, 64, 64, 160, 160, 192, 320, 640, 1024]
  assert prompt_batch.round_up_slots(33, 48) == 48


# ---------------------------------------------------------------------------------------- choosing

RNG = np.random.default_rng(0)
LOGITS_BV = np.round(RNG.standard_normal((40, 12)) * 2, 1).astype(np.float32)  # with ties
LOGITS_BV[0] = 0.0
LOGITS_BV[1, 3:] = samplers.NEG_INF


def softmax(logits_V):
  weights = np.exp(logits_V.astype(np.float64) - logits_V.max())
  return weights / weights.sum()


def kept_top_k(logits_V, k):
  return logits_V >= np.sort(logits_V)[::-1][min(k, len(logits_V)) - 1]


def kept_top_p(logits_V, p):
  """Take the likeliest until they reach p, of equals the lowest ids first, as a stable sort does."""
  total, kept_V = 0.0, np.zeros(len(logits_V), bool)
  for token in np.argsort(-logits_V, kind='stable'):
    if total >= p * (1 - 1e-6):
      break
    total, kept_V[token] = total + softmax(logits_V)[token], True
  return kept_V


def kept_min_p(logits_V, p):
  return softmax(logits_V) >= p * softmax(logits_V).max() * (1 - 1e-5)


KEPT = {  # row of FILTERS: (numpy, values to try)
  'top_k': (kept_top_k, (1, 3, 7, 12, 100)),
  'top_p': (kept_top_p, (1e-6, 0.31, 0.77, 0.999)),
  'min_p': (kept_min_p, (0.01, 0.213, 0.5, 1.0)),
}


@pytest.mark.parametrize('name', samplers.FILTERS)
def test_filters_keep_what_their_definition_keeps(name):
  reference, values = KEPT[name]
  _, keep = samplers.FILTERS[name]
  for value in values:
    got_BV = np.asarray(jax.jit(lambda x, v=value: keep(x, v))(LOGITS_BV))
    expected_BV = np.array([reference(row, value) for row in LOGITS_BV])
    np.testing.assert_array_equal(got_BV, expected_BV, err_msg=f'{name}={value}')
    assert got_BV[np.arange(40), LOGITS_BV.argmax(1)].all()


def at_rest(rows):
  zeros_B = jnp.zeros(rows, jnp.int32)
  return grammar.GrammarState(zeros_B, zeros_B, zeros_B, zeros_B + 9)


def state_of(logits_BV, ids_BT, lengths_B, seed=0):
  rows = len(logits_BV)
  fields = dict.fromkeys(sample.SampleState._fields)
  return sample.SampleState(**fields)._replace(
    token_ids_BT=jnp.asarray(ids_BT, jnp.int32),
    lengths_B=jnp.asarray(lengths_B, jnp.int32),
    next_logits_BV=jnp.asarray(logits_BV),
    span=at_rest(rows),
    keys_B=sample.row_keys(seed, rows),
  )


def test_repetition_penalty_makes_what_occurred_less_likely():
  logits_BV = np.array([[2.0, -2.0, 1.0, 0.5], [2.0, -2.0, 1.0, 0.5]], np.float32)
  state = state_of(logits_BV, [[0, 1, 0, 0], [3, 2, 1, 0]], [2, 1])  # row 1 holds only id 3
  got = jax.jit(lambda s: samplers.penalize_repetition(s.next_logits_BV, s.token_ids_BT, s.lengths_B, 2.0))(
    state
  )
  np.testing.assert_allclose(got, [[1.0, -4.0, 1.0, 0.5], [2.0, -2.0, 1.0, 0.25]])


@pytest.mark.parametrize(
  'options',
  [
    dict(),
    dict(temperature=0.5),
    dict(top_k=3),
    dict(top_p=0.6, temperature=2.0),
    dict(min_p=0.3),
    dict(repetition_penalty=3.0),
  ],
  ids=str,
)
def test_frequencies_are_the_probabilities(options):
  """Twenty thousand rows with the same logits and keys of their own."""
  rows, logits_V = 20000, np.array([1.0, 0.5, 0.0, -0.5, 2.0], np.float32)
  cfg, rules = SampleConfig(**options), grammar.plain(np.array([1, 1, 1, 1, 0], bool))
  state = state_of(np.tile(logits_V, (rows, 1)), np.zeros((rows, 2)), np.ones(rows))
  tokens_B = np.asarray(jax.jit(lambda s: sample.choose_token(s, cfg, rules))(state))
  wanted_V = logits_V.copy()
  wanted_V[0] /= cfg.repetition_penalty  # the only id in the row
  wanted_V = wanted_V[:4] / cfg.temperature
  for name, (off, _) in samplers.FILTERS.items():
    if getattr(cfg, name) != off:
      wanted_V = np.where(KEPT[name][0](wanted_V, getattr(cfg, name)), wanted_V, -np.inf)
  probs_V = softmax(wanted_V)
  found_V = np.bincount(tokens_B, minlength=5) / rows
  assert found_V[4] == 0
  assert (found_V[:4][probs_V == 0] == 0).all()
  np.testing.assert_allclose(found_V[:4], probs_V, atol=4 * np.sqrt(0.25 / rows))


def test_a_rows_noise_depends_on_its_key_and_place_alone():
  logits_BV = np.zeros((6, 50), np.float32)
  rules = grammar.plain(np.ones(50, bool))
  choose = jax.jit(lambda s: sample.choose_token(s, SampleConfig(), rules))
  here = choose(state_of(logits_BV, np.zeros((6, 9)), np.full(6, 4)))
  assert len(set(here.tolist())) > 1
  np.testing.assert_array_equal(here, choose(state_of(logits_BV, np.ones((6, 9)), np.full(6, 4))))
  assert (here != choose(state_of(logits_BV, np.zeros((6, 9)), np.full(6, 5)))).any()
  assert (here != choose(state_of(logits_BV, np.zeros((6, 9)), np.full(6, 4), seed=1))).any()


# -------------------------------------------------------------------------------------------- text


@functools.cache
def writer():
  """(model, tokenizers): random bytes, much of them no valid UTF-8."""
  build = text.build(tokenizers.TokenizerConfig(kind='bytes'), lambda: iter(['unused']))
  toks = tokenizers.Tokenizers.build(build)
  cfg = models.tiny(vocab=toks.vocabulary.size, vocab_multiple=128, context=32)
  return models.fill(cfg), toks


WRITING = SampleConfig(max_new_tokens=16, temperature=1.5)


@functools.cache
def written():
  trained, toks = writer()
  prompts = [toks.encode_text('ab'), toks.encode_text('h\u00e9')]
  return completions.complete(trained, toks, prompts[:1], WRITING)[0][0]


def test_completed_text_is_the_decoded_ids():
  trained, toks = writer()
  string, log_probs = written()
  rules = completions.build_grammar(toks, trained.cfg.V)
  ready = decoding_layout.prepare_model(trained)
  prompt = toks.encode_text('ab')
  state = sample.generate(ready, [prompt], WRITING, rules)
  [(ids, expected)] = completions.new_tokens(state, [prompt], 1)
  assert string == toks.decode_text(ids)
  assert log_probs == expected
  assert len(string) > 8


def test_streamed_text_adds_up_to_the_completed_text():
  trained, toks = writer()
  string, _ = written()
  pieces = lambda *stop: list(completions.stream_text(trained, toks, toks.encode_text('ab'), WRITING, stop))
  assert ''.join(pieces()) == string
  stop = string[5:7]
  assert ''.join(pieces(stop)) == string[: string.find(stop)]
  assert ''.join(pieces('never there', stop)) == string[: string.find(stop)]


def test_stop_strings_cut_before_the_first_of_them():
  trained, toks = writer()
  string, _ = written()
  stops = (string[6:8], string[3:5], 'not there')
  [[(short, _)]] = completions.complete(trained, toks, [toks.encode_text('ab')], WRITING, stops)
  assert short == string[: min(string.find(s) for s in stops[:2])]
  assert completions.truncate_at_stop('one two', ('o',)) == ''
  assert completions.truncate_at_stop('one two', ()) == 'one two'
  with pytest.raises(ValueError, match="--stop='' would end every text"):
    completions.complete(trained, toks, [toks.encode_text('ab')], WRITING, ('x', ''))


def test_scores_of_a_stopped_text_are_those_of_its_tokens():
  trained, toks = writer()
  string, whole = written()
  [[(short, scores)]] = completions.complete(trained, toks, [toks.encode_text('ab')], WRITING, (string[5:8],))
  assert scores == whole[: len(scores)] and len(scores) < len(whole)
  [[(nothing, none)]] = completions.complete(trained, toks, [toks.encode_text('ab')], WRITING, (string[:2],))
  assert (nothing, none) == ('', [])


def test_a_replacement_character_of_the_prompt_is_not_streamed():
  trained, toks = writer()
  prompt = toks.encode_text('a\ufffd')
  [[(expected, _)]] = completions.complete(trained, toks, [prompt], WRITING)
  assert ''.join(completions.stream_text(trained, toks, prompt, WRITING)) == expected


def test_text_rules_allow_text_and_its_end_and_nothing_else():
  _, toks = writer()
  rules = completions.build_grammar(toks, 384)
  eos = toks.vocabulary.special('eos')
  assert np.flatnonzero(rules.ends_V).tolist() == [eos]
  assert np.flatnonzero(rules.table_NV[0]).tolist() == [*range(256), eos]
  assert not rules.table_NV[1:].any()


def test_an_empty_prompt_is_the_end_of_a_document():
  _, toks = writer()
  assert completions.encode_prompt(toks, '') == [toks.vocabulary.special('eos')]
  assert completions.encode_prompt(toks, 'a') == [97]
  assert completions.encode_prompt(toks, 'a', 'bos') == [toks.vocabulary.special('bos'), 97]


def test_prompts_begin_as_the_texts_of_training(monkeypatch):
  """With bos where the tokenizer's own template begins with it."""
  _, toks = writer()
  data = lambda whole, start: SimpleNamespace(has_whole_documents=whole, has_start=start)
  rows = SimpleNamespace(sample=SampleConfig(), data=data(True, True))
  alone = SimpleNamespace(sample=SampleConfig(), data=data(True, False))
  assert completions.begin_special(alone, toks) == ''  # the only text was trained without a start
  stream = SimpleNamespace(sample=SampleConfig(), data=data(False, True))
  assert (completions.begin_special(rows, toks), completions.begin_special(stream, toks)) == ('eos', '')
  bos = toks.vocabulary.special('bos')
  monkeypatch.setattr(type(toks.text), 'begin', lambda text: [bos], raising=False)
  assert (completions.begin_special(rows, toks), completions.begin_special(stream, toks)) == ('bos', '')
  assert completions.encode_prompt(toks, '') == [bos]


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
  ('prompts', 'new', 'cause', 'fix'),
  [
    ([[1], []], 1, 'the prompt is empty', 'give at least one token'),
    ([[1, 50]], 1, 'token id 50 is out of range: the model has 50 ids', 'use the tokenizer'),
    ([[-1]], 1, 'token id -1 is out of range', 'use the tokenizer'),
    ([[1] * 16], 1, 'the prompt has 16 tokens and the context is 16', 'give at most 15 tokens'),
    (
      [[1], [1] * 10],
      7,
      'max_new_tokens=7 after 10 prompt tokens exceeds the context of 16',
      'use --max_new_tokens=6 or less',
    ),
  ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts, new, cause, fix):
  with pytest.raises(ValueError, match='\nfix: ') as error:
    generate(prompts, SampleConfig(max_new_tokens=new))
  first, second = str(error.value).split('\n')
  assert first.startswith(cause)
  assert second.startswith(f'fix: {fix}')


@pytest.mark.parametrize(
  'wrong',
  [
    dict(max_new_tokens=0),
    dict(num_samples=0),
    dict(temperature=-0.1),
    dict(top_k=-1),
    dict(top_p=0.0),
    dict(top_p=1.1),
    dict(min_p=-0.1),
    dict(min_p=1.5),
    dict(beams=-1),
    dict(repetition_penalty=0.0),
    dict(length_penalty=-1.0),
    dict(guidance=-0.5),
    dict(seed=-1),
    dict(seed=2**32),
    dict(temperature=float('nan')),
  ],
  ids=str,
)
def test_configs_out_of_range_are_refused(wrong):
  [(key, value)] = wrong.items()
  with pytest.raises(ValueError, match=f'sample.{key}={value} is out of range\nfix: use '):
    SampleConfig(**wrong)


@pytest.mark.parametrize(
  'unused', [dict(temperature=0.5), dict(top_k=3), dict(min_p=0.1), dict(guidance=2.0)], ids=str
)
def test_beams_refuse_what_they_do_not_use(unused):
  [key] = unused
  with pytest.raises(ValueError, match=f'does not sample: {key} has no use\nfix: leave it at its'):
    SampleConfig(beams=2, **unused).check_effective()


@pytest.mark.parametrize(
  'unused', [dict(top_k=3), dict(top_p=0.9), dict(min_p=0.1), dict(num_samples=4), dict(seed=5)], ids=str
)
def test_greedy_sampling_refuses_what_it_does_not_use(unused):
  [key] = unused
  with pytest.raises(ValueError, match=f'takes the likeliest token: {key} has no use\nfix: leave it at'):
    SampleConfig(temperature=0.0, **unused).check_effective()
  SampleConfig(temperature=0.0, repetition_penalty=1.3, guidance=2.0).check_effective()  # they count


def test_more_samples_than_beams_are_refused():
  with pytest.raises(ValueError, match='num_samples=3 with only 2 beams\nfix: use more beams'):
    SampleConfig(beams=2, num_samples=3)


def test_score_sums_the_nats_of_real_targets():
  trained, _ = model()
  batch = models.batch(rows=3, length=16)
  sums = score(trained, batch)
  log_probs = uncached_log_probs(batch['token_ids_BT'])
  picked = np.take_along_axis(log_probs, batch['target_ids_BT'][..., None], -1)[..., 0]
  assert float(sums['nats']) == pytest.approx(-(picked * batch['loss_mask_BT']).sum(), rel=1e-5)
  assert float(sums['targets']) == batch['loss_mask_BT'].sum()


def test_top_k_sorts_no_vocabulary():
  """XLA made a sort of all logits out of the slice of the last of the top k: 50 times the time."""
  logits_BV = jax.ShapeDtypeStruct((2, 50304), jnp.float32)
  compiled = jax.jit(lambda x: samplers.top_k(x, 200)).lower(logits_BV).compile().as_text()
  assert 'TopK' in compiled
  assert ' sort(' not in compiled
