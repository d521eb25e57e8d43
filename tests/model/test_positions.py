"""Each position encoding against its formula."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax import config
from gpt_jax.model import param_trees, position_schemes, positions
from gpt_jax.training import ineffective
from tests import models, tiny_runs

ROPE = dict(width=32, heads=2, context=64)  # K = 16: eight pairs
SCALED = dict(rope_factor=4.0, rope_original_context=64)


def test_sinusoidal_is_the_formula(tiny):
  cfg = tiny(positions='sinusoidal')
  places_BT = np.array([[0, 1, 7], [3, 100, 2000]], np.int32)
  got_BTD = jax.jit(lambda p: position_schemes.sinusoidal(cfg, p))(places_BT)
  for b, t in np.ndindex(2, 3):
    for i in range(cfg.width // 2):
      angle = places_BT[b, t] / 10000 ** (2 * i / cfg.width)
      assert abs(got_BTD[b, t, 2 * i] - math.sin(angle)) < 2e-4
      assert abs(got_BTD[b, t, 2 * i + 1] - math.cos(angle)) < 2e-4


def test_learned_takes_the_row_of_each_position(tiny):
  table_TD = np.arange(32.0, dtype=np.float32).reshape(16, 2)
  got_BTD = positions.learned(tiny(), jnp.array([[3, 0], [15, 3]]), jnp.asarray(table_TD))
  np.testing.assert_array_equal(got_BTD, table_TD[[[3, 0], [15, 3]]])


# --------------------------------------------------------------------------------------------- rope


def scaled(scaling):
  factor = {} if scaling == 'none' else dict(rope_factor=4.0)
  return models.tiny(rope_scaling=scaling, rope_original_context=64, **ROPE, **factor)


def reference_frequencies(cfg):
  """The papers' formulas, pair by pair."""
  K, factor, original = cfg.K, cfg.rope_factor, cfg.rope_original_context
  theta = cfg.rope_theta * (factor ** (K / (K - 2)) if cfg.rope_scaling == 'ntk' else 1)
  result = []
  for i in range(K // 2):
    f = theta ** (-2 * i / K)
    if cfg.rope_scaling == 'linear':
      f = f / factor
    if cfg.rope_scaling == 'yarn':
      # YaRN, section 3.2, with the bounds on pair numbers rounded outwards as its code does.
      pair = lambda turns: K * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
      low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), K - 1)
      stretched = min(max((i - low) / (high - low), 0), 1)
      f = (1 - stretched) * f + stretched * f / factor
    if cfg.rope_scaling == 'llama3':
      turns = original * f / (2 * math.pi)
      blend = min(max((turns - 1) / (4 - 1), 0), 1)
      f = blend * f + (1 - blend) * f / factor
    result.append(f)
  return np.array(result)


@pytest.mark.parametrize('scaling', position_schemes.ROPE_SCALINGS)
def test_scaled_frequencies_are_the_formulas(tiny, scaling):
  cfg = scaled(scaling)
  got, plain = positions.rope_frequencies(cfg), positions.rope_frequencies(tiny(**ROPE))
  np.testing.assert_allclose(got, reference_frequencies(cfg), rtol=1e-12)
  np.testing.assert_allclose(got[-1], plain[-1] / (1 if scaling == 'none' else 4), rtol=1e-12)
  if scaling != 'linear':
    assert got[0] == plain[0]


def test_yarn_and_llama3_blend_some_pairs(tiny):
  plain = positions.rope_frequencies(tiny(**ROPE))
  for scaling in ('yarn', 'llama3'):
    ratio = positions.rope_frequencies(tiny(rope_scaling=scaling, **ROPE, **SCALED)) / plain
    assert ((ratio > 0.25 + 1e-6) & (ratio < 1 - 1e-6)).any(), f'{scaling} blends no pair'


def test_yarn_bounds_follow_the_config(tiny):
  cfg = tiny(rope_scaling='yarn', rope_beta_fast=1e-9, rope_beta_slow=1e-9, **ROPE, **SCALED)
  plain = positions.rope_frequencies(tiny(**ROPE))
  np.testing.assert_allclose(positions.rope_frequencies(cfg), plain)


def test_attention_factor(tiny):
  yarn = tiny(rope_scaling='yarn', **ROPE, **SCALED)
  assert position_schemes.yarn_magnitude(yarn) == pytest.approx(0.1 * math.log(4) + 1)
  given_factor = tiny(rope_scaling='yarn', rope_attention_factor=1.5, **ROPE, **SCALED)
  assert position_schemes.yarn_magnitude(given_factor) == 1.5
  assert (
    position_schemes.ROPE_SCALINGS['linear'].magnitude(tiny(rope_factor=4.0, rope_scaling='linear')) == 1.0
  )


@pytest.mark.parametrize('scaling', ['none', 'yarn'])
def test_rope_rotates_pairs_as_complex_numbers(scaling):
  cfg = scaled(scaling)
  x_BTHK = np.random.default_rng(0).standard_normal((2, 3, 2, 16)).astype(np.float32)
  places_BT = np.array([[0, 1, 2], [9, 40, 5]], np.int32)
  got_BTHK = jax.jit(lambda x, p: positions.rope(cfg, x, p))(x_BTHK, places_BT)
  pairs = x_BTHK[..., :8] + 1j * x_BTHK[..., 8:]  # i goes with i + K/2
  angles = places_BT[..., None, None] * reference_frequencies(cfg)
  turned = pairs * np.exp(1j * angles) * (1.0 if scaling == 'none' else 0.1 * math.log(4) + 1)
  expected = np.concatenate([turned.real, turned.imag], -1)
  np.testing.assert_allclose(got_BTHK, expected, atol=1e-5)


def test_rope_fraction_rotates_the_first_dimensions_as_a_narrower_head():
  half, narrow = models.tiny(head_dim=16, rope_fraction=0.5), models.tiny(head_dim=8)
  x_BTHK = np.random.default_rng(0).standard_normal((2, 3, 2, 16)).astype(np.float32)
  places_BT = np.array([[0, 1, 2], [9, 40, 5]], np.int32)
  y_BTHK = positions.rope(half, x_BTHK, places_BT)
  np.testing.assert_array_equal(y_BTHK[..., 8:], x_BTHK[..., 8:])
  np.testing.assert_array_equal(y_BTHK[..., :8], positions.rope(narrow, x_BTHK[..., :8], places_BT))


@pytest.mark.parametrize('unroll', ['on', 'off'])
def test_each_layer_has_the_rope_of_its_letter(unroll):
  """Local layers have a base of their own, unscaled; layers of letter N see no positions."""
  scaled_rope = dict(rope_scaling='linear', rope_factor=4.0)
  x_BTHK = np.random.default_rng(0).standard_normal((1, 5, 2, 4)).astype(np.float32)
  places_BT = np.arange(5, dtype=np.int32)[None]
  cfg = models.tiny(window=3, layer_pattern='SLN', rope_local_theta=100.0, **scaled_rope)
  expected = {
    'S': positions.rope(models.tiny(rope_theta=100.0), x_BTHK, places_BT),
    'L': positions.rope(models.tiny(**scaled_rope), x_BTHK, places_BT),
    'N': x_BTHK,
  }
  for letter, y_BTHK in expected.items():
    frequencies_k = positions.rope_frequencies(cfg, letter)
    np.testing.assert_array_equal(positions.rope(cfg, x_BTHK, places_BT, frequencies_k), y_BTHK)
  ids_BT, layers = models.tokens(), dict(layers=2, unroll=unroll)
  logits = lambda **settings: models.logits(models.fill(models.tiny(**layers | settings)), ids_BT)
  np.testing.assert_allclose(logits(layer_pattern='N'), logits(positions='none'), atol=1e-5)
  local = dict(window=16, layer_pattern='S', rope_local_theta=100.0)
  np.testing.assert_allclose(logits(**local), logits(rope_theta=100.0), atol=1e-5)
  mixed = logits(window=16, layer_pattern='SL', rope_local_theta=100.0)
  assert np.abs(mixed - logits(rope_theta=100.0)).max() > 1e-3 < np.abs(mixed - logits()).max()


@jax.jit
def rope_scores(q_K, k_K, i, j):
  cfg = models.tiny(**ROPE)
  turn = lambda x, place: positions.rope(cfg, x[None, None, None], place[None, None])[0, 0, 0]
  return turn(q_K, i) @ turn(k_K, j)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 2**31))
def test_rope_scores_depend_only_on_distance(i, j, shift, seed):
  q_K, k_K = np.random.default_rng(seed).standard_normal((2, 16)).astype(np.float32)
  place = lambda n: np.int32(n)
  here = rope_scores(q_K, k_K, place(i), place(j))
  np.testing.assert_allclose(here, rope_scores(q_K, k_K, place(i + shift), place(j + shift)), atol=3e-3)


# -------------------------------------------------------------------------------------------- alibi


def test_alibi_slopes():
  np.testing.assert_allclose(position_schemes.alibi_slopes(8), 0.5 ** np.arange(1, 9))
  np.testing.assert_allclose(position_schemes.alibi_slopes(1), [2.0**-8])
  # Press et al.: for 12 heads, the 8 of 8 heads and every other of the first 8 of 16 heads.
  extra = 2.0 ** (-0.5 * np.array([1, 3, 5, 7]))
  np.testing.assert_allclose(position_schemes.alibi_slopes(12), [*0.5 ** np.arange(1, 9), *extra], rtol=1e-6)


def test_alibi_bias_grows_with_distance_in_both_directions(tiny):
  cfg = tiny(positions='alibi')
  t_BT, s_BS = np.array([[2, 5]], np.int32), np.array([[0, 2, 7]], np.int32)
  got_BHTS = jax.jit(lambda t, s: position_schemes.alibi(cfg, t, s))(t_BT, s_BS)
  slopes = [1 / 4, 1 / 16, 1 / 64, 1 / 256]  # 4 heads
  for h, t, s in np.ndindex(4, 2, 3):  # keys ahead are seen in a bidirectional prefix
    assert got_BHTS[0, h, t, s] == -slopes[h] * abs(int(t_BT[0, t]) - int(s_BS[0, s]))


# ----------------------------------------------------------------- what each row makes of the model

# How logits answer to positions: moved along by 3, and spread out by 2.
RESPONSES = {
  'sinusoidal': (True, True),
  'learned': (True, True),
  'rope': (False, True),  # relative
  'mrope': (False, True),
  'alibi': (False, False),  # by the place in the row, which is not changed here
  'none': (False, False),
}


@pytest.mark.parametrize('name', positions.POSITIONS)
def test_logits_respond_to_shifted_and_stretched_positions(name):
  model = models.fill(models.tiny(**models.VARIANTS[name]))
  ids_BT = models.tokens()
  places_BT = np.tile(np.arange(models.LENGTH, dtype=np.int32), (models.ROWS, 1))
  if positions.POSITIONS[model.cfg.positions].axes == 3:
    places_BT = np.stack([places_BT] * 3, -1)
  base = models.logits(model, ids_BT, places_BT)
  differs = lambda p: np.abs(models.logits(model, ids_BT, p) - base).max() > 1e-3
  assert (differs(places_BT + 3), differs(places_BT * 2)) == RESPONSES[name]


def test_without_positions_order_of_past_tokens_does_not_matter():
  cfg = models.tiny(**models.VARIANTS['none'] | dict(layers=1))
  ids_BT = models.tokens()
  shuffled_BT = np.concatenate([ids_BT[:, [2, 0, 1]], ids_BT[:, 3:]], 1)
  same, other = (models.fill(cfg), models.fill(models.tiny(**models.VARIANTS['rope'])))
  last = lambda model, ids: models.logits(model, ids)[:, -1, :50]
  np.testing.assert_allclose(last(same, ids_BT), last(same, shuffled_BT), atol=1e-5)
  assert np.abs(last(other, ids_BT) - last(other, shuffled_BT)).max() > 1e-3


def test_mrope_with_equal_places_is_rope():
  cfg, plain = models.tiny(positions='mrope', head_dim=16), models.tiny(head_dim=16)
  x_BTHK = np.random.default_rng(0).standard_normal((2, 5, 3, 16)).astype(np.float32)
  places_BT = np.arange(10, dtype=np.int32).reshape(2, 5)
  equal_BT3 = np.stack([places_BT] * 3, -1)
  expected = positions.rope(plain, jnp.asarray(x_BTHK), jnp.asarray(places_BT))
  rotated = positions.mrope(cfg, jnp.asarray(x_BTHK), jnp.asarray(equal_BT3))
  np.testing.assert_allclose(rotated, expected, rtol=1e-6)


@pytest.mark.parametrize(
  'sections, own',
  [((), ([0, 2, 4, 6], [1, 5], [3, 7])), ((2, 5, 1), ([0, 1], [2, 3, 4, 5, 6], [7]))],
  ids=['alternating', 'sections'],
)
def test_mrope_turns_pairs_of_time_row_and_column(sections, own):
  """Each axis moved alone turns its own pairs: a half, a quarter and a quarter of them, or sections."""
  cfg = models.tiny(positions='mrope', head_dim=16, rope_sections=sections)
  x_BTHK = jnp.ones((1, 1, 1, 16))
  for axis, pairs in enumerate(own):
    place = jnp.zeros((1, 1, 3), jnp.int32).at[0, 0, axis].set(2)
    turned = np.asarray(positions.mrope(cfg, x_BTHK, place) - x_BTHK)[0, 0, 0]
    assert np.flatnonzero(np.abs(turned[:8]) > 1e-9).tolist() == pairs


def test_sections_that_are_not_the_pairs_of_a_head():
  with pytest.raises(ValueError) as error:
    models.tiny(positions='mrope', head_dim=16, rope_sections=(2, 4, 4))
  tiny_runs.assert_two_lines(error.value, 'are not three numbers of pairs that make 8')


def test_a_new_scheme_costs_one_function_and_one_row(monkeypatch):
  """Validation, the model and the list of settings without effect all read the row."""
  shifted = lambda cfg, positions_BT, table_TD: jnp.broadcast_to(
    positions_BT[..., None].astype(jnp.float32) * 0.1, (*positions_BT.shape, cfg.width)
  )
  monkeypatch.setitem(positions.POSITIONS, 'shifted', positions.Position(embed=shifted))
  with_scheme, without = (models.tiny(positions=name) for name in ('shifted', 'none'))
  params = {path: p.get_value() for path, p in param_trees.named_params(models.fill(with_scheme))}
  assert params.keys() == {path for path, _ in param_trees.named_params(models.fill(without))}
  ids_BT = jnp.ones((1, 8), jnp.int32)
  outputs = [models.fill(cfg)(ids_BT).logits_BTV for cfg in (with_scheme, without)]
  assert np.abs(outputs[0] - outputs[1]).max() > 1e-4
  changed = dataclasses.replace(models.experiment(with_scheme).model, rope_theta=5.0)
  cfg = config.build(config.Config, {'model': dataclasses.asdict(changed) | {'vocab': 0}})
  assert any('model.rope_theta' in note for note in ineffective.notes(cfg))
  monkeypatch.undo()
  with pytest.raises(ValueError, match="model.positions='shifted' is not known"):
    models.tiny(positions='shifted')
