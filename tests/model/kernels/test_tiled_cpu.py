"""The tiled CPU attention kernel equals plain attention, and is chosen where it is supported."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model.kernels import choice, tiled_cpu
from gpt_jax.model.mask import Mask
from tests import models
from tests.model.test_attention import inputs, order, output_and_gradients

ROWS, LENGTH = 6, 50
CASES = {
  'causal': dict(),
  'window': dict(window=9),
  'traced window, grouped': dict(window=9, traced=True, kv_heads=2),
  'documents, soft-cap': dict(segments=True, attention_softcap=2.0),
  'prefix and alibi': dict(prefix=True, positions='alibi', kv_heads=1),
  'all at once': dict(
    window=5, segments=True, prefix=True, kv_heads=2, attention_softcap=2.0, positions='alibi'
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_tiled_attention_equals_xla_forward_and_backward(tiny, monkeypatch, case):
  """Three pieces of two rows, each in five blocks of queries."""
  monkeypatch.setattr(tiled_cpu, 'QUERIES', 10)
  monkeypatch.setattr(tiled_cpu, 'SCORES', 2 * 4 * LENGTH * 10)
  chosen = dict(CASES[case])
  rng, parts = np.random.default_rng(3), {}
  if chosen.pop('segments', False):
    parts['segments'] = (np.sort(rng.integers(0, 4, (ROWS, LENGTH))).astype(np.int32),) * 2
  if chosen.pop('prefix', False):
    parts['prefix'] = (rng.random((ROWS, LENGTH)) < 0.3,) * 2
  traced = chosen.pop('traced', False)
  cfg = tiny(width=32, context=LENGTH, **chosen)
  window = jnp.int32(cfg.window) if traced else cfg.window
  mask = Mask(order(LENGTH), order(LENGTH), window, **parts)
  assert tiled_cpu.rows_at_once(ROWS, 4 * LENGTH * 10) == 2
  assert len(tiled_cpu.query_blocks(LENGTH, mask)) == 5
  qkv = inputs(cfg, ROWS, LENGTH)
  weight = rng.standard_normal(qkv[0].shape).astype(np.float32)
  actual, expected = (output_and_gradients(cfg, mask, name, qkv, weight) for name in ('chunks', 'xla'))
  for got, want in zip(actual, expected, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_query_blocks_cover_visible_pairs_and_skip_most_others():
  for window in (0, 100):
    mask = Mask(order(787), order(787), window)
    seen = np.zeros((787, 787), int)
    for start, end, first, last in tiled_cpu.query_blocks(787, mask):
      seen[start:end, first:last] += 1
    visible = np.asarray(mask.visible_BTS()[0])
    assert (seen[visible] == 1).all() and seen.max() == 1
    assert seen.sum() < (0.59 if not window else 0.3) * 787**2
  assert len(tiled_cpu.query_blocks(100, mask)) == 1


def test_a_cpu_takes_tiles_where_they_are_supported(tiny):
  rows = Mask(order(16), order(16))
  choose = lambda cfg, mask=rows: choice.choose_kernel(cfg, mask, 16, 'cpu')
  assert choose(tiny()) == 'chunks'
  assert choose(tiny(dtype='bfloat16')) == 'xla'
  assert choose(tiny(attention_dropout=0.1)) == 'xla'
  assert choose(tiny(), rows._replace(is_plain_self_attention=False)) == 'xla'
  with jax.set_mesh(models.mesh(data=2)):
    assert choose(tiny()) == 'xla'
    with pytest.raises(ValueError, match='model.kernel=chunks cannot honor a mesh of 2 devices'):
      choose(tiny(kernel='chunks'))


def products(jaxpr):
  """How many dot_generals with batch dimensions are in a jaxpr and in what it calls."""
  count = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      count += bool(eqn.params['dimension_numbers'][1][0])
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      count += products(inner)
  return count


def test_backward_pass_recomputes_scores_but_not_the_output(tiny):
  """Two products forward; backward one for the scores and four for gradients, delta beside them."""
  model, ids_BT = models.fill(tiny(remat='dots_no_batch')), models.tokens()
  loss = lambda model: model(ids_BT).logits_BTV.sum()
  jaxpr = jax.jit(jax.grad(loss)).trace(model).jaxpr.jaxpr
  assert products(jaxpr) == 2 + 5 + 1
