"""Blockwise attention, on one device and with rows spread over several, equals plain attention."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.cluster import batches
from gpt_jax.model import gpt
from gpt_jax.model.kernels import context_parallel
from tests import models
from tests.model.test_attention import inputs, output_and_gradients, row_mask

B = 2


def test_zigzag_gives_every_device_equal_work():
  """Of a row in 2n chunks every device sees as many pairs, causally; and every token once."""
  for n in (1, 2, 3, 4, 8):
    seen_NC = (context_parallel.zigzag_order(n, 6 * n).reshape(n, 6) + 1).sum(1)
    assert len(set(seen_NC.tolist())) == 1
    np.testing.assert_array_equal(np.sort(context_parallel.zigzag_order(n, 6 * n)), np.arange(6 * n))


MIXED = dict(window=40, kv_heads=2, attention_softcap=3.0)
SPREAD = {
  'causal': (dict(), False, False),
  'window, groups, soft-cap, documents': (MIXED, True, False),
  'and alibi and prefix': (MIXED | dict(positions='alibi'), True, True),
}
MESHES = [
  dict(),
  dict(sequence=2),
  dict(sequence=8),
  dict(data=2, sequence=2, tensor=2),
  dict(expert=2, sequence=3),
  dict(data=4, sequence=2),
]


# No mesh, one axis and three axes are fast; the others compile much of the same.
FAST = (dict(), dict(sequence=2), dict(data=2, sequence=2, tensor=2))
SIZES = [
  pytest.param(sizes, marks=[pytest.mark.slow] * (sizes not in FAST), id=str(sizes)) for sizes in MESHES
]


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('case', SPREAD)
def test_blocks_equal_xla_on_any_mesh_forward_and_backward(tiny, case, sizes, monkeypatch):
  """Rows of 96 in blocks of at most 8; two rows, which four devices do not divide."""
  monkeypatch.setattr(context_parallel, 'BLOCK', 8)
  extra, documents, prefix = SPREAD[case]
  rng, cfg, length = np.random.default_rng(3), tiny(context=96, **extra), 96
  ids_BT = np.sort(rng.integers(1, 4, (B, length))).astype(np.int32)
  ids_BT[:, 90:] = 0
  is_prefix_BT = rng.random((B, length)) < 0.3
  pair = lambda x, on: (x, x) if on else None
  segments, is_prefix = pair(ids_BT, documents), pair(is_prefix_BT, prefix)
  mask = row_mask(cfg.window, length, segments=segments, prefix=is_prefix)
  qkv = inputs(cfg, length=length)
  weight = rng.standard_normal(qkv[0].shape).astype(np.float32)
  expected = output_and_gradients(cfg, mask, 'xla', qkv, weight)
  with jax.set_mesh(models.mesh(**sizes)):
    got = output_and_gradients(cfg, mask, 'blocks', qkv, weight)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_blocks_support_traced_windows(tiny):
  cfg, qkv = tiny(), inputs(tiny(), length=16)
  run = lambda window: context_parallel.blocks_attention(cfg, *qkv, row_mask(window, length=16))
  for window in (0, 3):
    np.testing.assert_allclose(jax.jit(run)(jnp.int32(window)), run(window), atol=1e-6)


def shapes_in(compiled):
  """Dimensions of all arrays of a compiled program, as a set of tuples."""
  shapes = re.findall(r'\w+\[([\d,]+)\]', compiled.as_text())
  return {tuple(int(n) for n in dims.split(',')) for dims in shapes}


@pytest.mark.slow
def test_memory_of_a_spread_row_shrinks_with_its_share_of_tokens(tiny):
  """Two layers, forward and backward, of rows of 2048: never all scores, never a whole row of x.

  Of a whole row there are keys and values of one layer (G K = 8 of D = 48), ids and orders.
  """
  T, n, D = 2048, 4, 48
  cfg = tiny(width=D, heads=6, head_dim=8, kv_heads=1, hidden=80, context=T, vocab_multiple=50)
  model = models.fill(cfg)

  def loss(model, ids_BT):
    return model.trunk(ids_BT, segment_ids_BT=jnp.ones_like(ids_BT))[0].astype(jnp.float32).sum()

  def compiled(**sizes):
    mesh = models.mesh(**sizes)
    with jax.set_mesh(mesh):
      placed = jax.device_put(model, gpt.shardings(gpt.GPT(cfg), mesh))
      ids_BT = batches.to_devices(dict(token_ids_BT=models.tokens(2, T)), mesh)['token_ids_BT']
      return jax.jit(jax.grad(loss)).lower(placed, ids_BT).compile()

  spread = compiled(data=2, sequence=n)
  whole = [dims for dims in shapes_in(spread) if T in dims and math.prod(dims) > T]
  assert whole and all(math.prod(dims) <= T * 8 for dims in whole)
  assert not [d for d in shapes_in(spread) if T // n in d and T in d]
  gathered = re.findall(r'= \w+\[([\d,]+)\][^=]* all-gather(?:-start)?\(', spread.as_text())
  assert gathered
  for dims in gathered:
    assert math.prod(int(n) for n in dims.split(',')) <= T * 8
  temporary = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
  assert temporary(spread) < 0.5 * temporary(compiled(data=2))
