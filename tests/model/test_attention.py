"""Attention against loops over keys, causality, and the choice of a kernel."""

import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model import attention, param_trees
from gpt_jax.model.kernels import choice, cudnn
from gpt_jax.model.mask import Mask
from gpt_jax.model.position_schemes import alibi_slopes
from tests import models

B, T = 2, 7
SEGMENTS_BT = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 2, 2, 2, 3, 3, 0]], np.int32)
PREFIX_BT = np.array([[1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0]], bool)

CASES = {
  'full': dict(),
  'window': dict(window=3),
  'window of one': dict(window=1),
  'grouped': dict(kv_heads=2),
  'multi_query': dict(kv_heads=1),
  'softcap': dict(attention_softcap=1.5),
  'alibi': dict(positions='alibi', kv_heads=2),
  'segments': dict(segments=True),
  'prefix': dict(prefix=True),
  'all at once': dict(
    window=2, kv_heads=2, attention_softcap=2.0, positions='alibi', segments=True, prefix=True
  ),
}


def fn_of(kernel):
  return attention.xla_attention if kernel == 'xla' else choice.FUSED_KERNELS[kernel].attend


def order(length):
  return jnp.arange(length, dtype=jnp.int32)[None]


def inputs(cfg, rows=B, length=T, seed=0):
  rng = np.random.default_rng(seed)
  shape = lambda heads: (rows, length, heads, cfg.K)
  return [rng.standard_normal(shape(n)).astype(np.float32) for n in (cfg.heads, cfg.G, cfg.G)]


def reference(cfg, q_BTHK, k_BSGK, v_BSGK, window=0, segments_BT=None, prefix_BT=None):
  """One query, one key at a time."""
  y_BTHK = np.zeros(q_BTHK.shape)
  for b, t, h in np.ndindex(q_BTHK.shape[:3]):
    g = h // (cfg.heads // cfg.G)
    scores = {}
    for s in range(k_BSGK.shape[1]):
      sees = s <= t and (not window or t - s < window)
      if prefix_BT is not None:
        sees = sees or (prefix_BT[b, t] and prefix_BT[b, s])
      if segments_BT is not None:
        sees = sees and segments_BT[b, t] == segments_BT[b, s]
      if sees:
        score = float(q_BTHK[b, t, h] @ k_BSGK[b, s, g]) / math.sqrt(cfg.K)
        if cfg.attention_softcap:
          score = cfg.attention_softcap * math.tanh(score / cfg.attention_softcap)
        if cfg.positions == 'alibi':
          score -= alibi_slopes(cfg.heads)[h] * abs(t - s)
        scores[s] = math.exp(score)
    for s, weight in scores.items():
      y_BTHK[b, t, h] += weight / sum(scores.values()) * v_BSGK[b, s, g]
  return y_BTHK


@pytest.mark.parametrize('kernel', ['xla', 'blocks'])
@pytest.mark.parametrize('case', CASES)
def test_attention_is_the_sum_over_visible_keys(tiny, case, kernel):
  chosen = dict(CASES[case])
  segments_BT = SEGMENTS_BT if chosen.pop('segments', False) else None
  prefix_BT = PREFIX_BT if chosen.pop('prefix', False) else None
  cfg = tiny(**chosen)
  pair = lambda x: None if x is None else (x, x)
  mask = Mask(order(T), order(T), cfg.window, pair(segments_BT), pair(prefix_BT))
  qkv = inputs(cfg)
  got_BTHK = jax.jit(lambda *qkv: fn_of(kernel)(cfg, *qkv, mask))(*qkv)
  expected = reference(cfg, *qkv, cfg.window, segments_BT, prefix_BT)
  np.testing.assert_allclose(got_BTHK, expected, atol=1e-5)


def test_a_traced_window_equals_a_static_one():
  traced = jax.jit(lambda window: Mask(order(T), order(T), window).visible_BTS())
  for window in (0, 1, 3):
    plain_BTS = Mask(order(T), order(T), window).visible_BTS()
    np.testing.assert_array_equal(traced(jnp.int32(window)), plain_BTS)
    assert plain_BTS.sum() == sum(min(t, window or t) for t in range(1, T + 1))


def test_queries_without_visible_keys_have_finite_outputs_and_gradients(tiny):
  cfg = tiny()
  nobody = jnp.full((1, T), -1, jnp.int32)  # all keys are after these queries
  mask = Mask(nobody, order(T))
  loss = lambda *qkv: attention.xla_attention(cfg, *qkv, mask).sum()
  value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*inputs(cfg))
  assert all(bool(jnp.isfinite(x).all()) for x in (value, *grads))


def test_attention_dropout_drops_weights_and_keeps_their_mean(tiny):
  cfg = tiny(attention_dropout=0.25)
  q, k, v = inputs(cfg, length=64)
  mask = Mask(order(64), order(64))
  run = jax.jit(lambda key: attention.xla_attention(cfg, q * 0, k, np.ones_like(v), mask, key))
  y_BTHK = np.asarray(run(jax.random.key(0)))
  np.testing.assert_array_equal(y_BTHK, run(jax.random.key(0)))
  assert np.abs(y_BTHK - run(jax.random.key(1))).max() > 0.01
  # Query t averages t + 1 ones, each kept with probability 3/4 and then worth 4/3.
  kept_keys = y_BTHK[..., 0] * 0.75 * np.arange(1, 65)[None, :, None]
  np.testing.assert_allclose(kept_keys, kept_keys.round(), atol=1e-3)
  assert abs(y_BTHK.mean() - 1) < 0.02
  assert set(np.unique(y_BTHK[:, 0].round(5))) == {0.0, np.float32(4 / 3).round(5)}


# -------------------------------------------------------------------------------------- the module


def rms(x):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


MODULES = [dict(), dict(qk_norm=True, attention_bias=True)]
MODULES += [dict(qk_norm=True, qk_norm_over=over) for over in ('all', 'each')]


@pytest.mark.parametrize('extra', MODULES, ids=str)
def test_module_projects_norms_rotates_attends_and_projects(tiny, extra):
  cfg = tiny(kv_heads=2, positions='rope', **extra)
  model = models.fill(cfg)
  module = param_trees.unstack(model.blocks)[1].attention
  w = {path.rpartition('/')[2]: np.asarray(p.get_value()) for path, p in param_trees.named_params(module)}
  norms = {path: np.asarray(p.get_value()) for path, p in param_trees.named_params(module) if 'norm' in path}
  x_BTD = np.random.default_rng(1).standard_normal((B, T, 16)).astype(np.float32)
  bias = lambda name: w.get(name, 0.0)
  q = np.einsum('btd,dhk->bthk', x_BTD, w['wq_DHK']) + bias('q_bias_HK')
  k = np.einsum('btd,dhk->bthk', x_BTD, w['wk_DGK']) + bias('k_bias_GK')
  v = np.einsum('btd,dhk->bthk', x_BTD, w['wv_DGK']) + bias('v_bias_GK')
  if cfg.qk_norm:  # before RoPE
    flat = (lambda x: x.reshape(B, T, -1)) if cfg.qk_norm_over == 'all' else (lambda x: x)
    if cfg.qk_norm_over == 'each':  # LayerNorm: rms of centered values, and a bias
      flat = lambda x: x - x.mean(-1, keepdims=True)
    q, k = (
      rms(flat(x)).reshape(x.shape) * norms[f'{name}/scale'] + norms.get(f'{name}/bias', 0.0)
      for x, name in ((q, 'q_norm'), (k, 'k_norm'))
    )
  angles = np.arange(T)[:, None, None] * 10000.0 ** (-np.arange(0, 4, 2) / 4)
  turn = lambda x: (x[..., :2] + 1j * x[..., 2:]) * np.exp(1j * angles)
  q, k = (np.concatenate([turn(x).real, turn(x).imag], -1) for x in (q, k))
  expected = np.einsum('bthk,hkd->btd', reference(cfg, q, k, v), w['wo_HKD']) + bias('o_bias_D')
  call = jax.jit(lambda m, x: m(x, Mask(order(T), order(T)), order(T))[0])
  np.testing.assert_allclose(call(module, x_BTD), expected, atol=2e-5)


class Gpu:
  """A device that says what it can do."""

  platform = 'gpu'

  def __init__(self, capability):
    self.compute_capability = capability


@pytest.mark.parametrize(
  ('capability', 'why'),
  [('7.5', 'compute capability 7.5'), ('gfx942', 'gfx942'), ('9.0', 'this installation (')],
)
def test_a_gpu_without_cudnn_attention_takes_xla(capability, why):
  """The last is new enough, but this process has no cuDNN: compiling the probe fails."""
  cfg = models.tiny(head_dim=8, dtype='bfloat16')
  cudnn.cudnn_obstacle.cache_clear()
  try:
    with mock.patch.object(jax, 'local_devices', lambda: [Gpu(capability)]):
      mask = Mask(order(128), order(128))
      assert choice.choose_kernel(cfg, mask, 128, 'gpu') == 'xla'
      assert why in choice.unsupported_reason('cudnn', cfg, mask, 128)
  finally:
    cudnn.cudnn_obstacle.cache_clear()


def test_cache_is_written_at_each_rows_own_slot():
  new = np.arange(1, 9, dtype=np.float32).reshape(2, 2, 1, 2)
  old = jnp.zeros((2, 1, 5, 2))
  starts_BT = jnp.array([[0, 1], [3, 4]], jnp.int32)
  cache = attention.write_cache(dict(k_BGSK=old, v_BGSK=old), new, -new, starts_BT)
  expected = np.zeros((2, 1, 5, 2))
  expected[0, 0, 0:2], expected[1, 0, 3:5] = new[:, :, 0]
  np.testing.assert_array_equal(cache['k_BGSK'], expected)
  np.testing.assert_array_equal(cache['v_BGSK'], -expected)


# -------------------------------------------------------------------------------------- the future

CAUSAL = [name for name in models.VARIANTS if name != 'experts']  # dropless experts: test_moe


@pytest.mark.parametrize('name', CAUSAL)
def test_logits_do_not_depend_on_later_tokens(name):
  """Row t has another token at place t: what comes before is equal bit for bit, and t answers."""
  model = models.fill(models.tiny(**models.VARIANTS[name]))
  base_BT = np.tile(models.tokens(rows=1), (models.ROWS, 1))
  changed_BT = base_BT.copy()
  for t in range(models.LENGTH):
    changed_BT[t, t] = (changed_BT[t, t] + 1) % 50
  a_BTV = np.asarray(models.logits(model, base_BT))
  b_BTV = np.asarray(models.logits(model, changed_BT))
  for t in range(models.LENGTH):
    np.testing.assert_array_equal(a_BTV[t, :t], b_BTV[t, :t])
    assert np.abs(a_BTV[t, t] - b_BTV[t, t]).max() > 1e-3
  np.testing.assert_array_equal(a_BTV[-1], b_BTV[-1])


def test_documents_and_padding_do_not_see_each_other():
  """Changing a document changes no other; padding gives numbers, not NaN."""
  model = models.fill(models.tiny(**models.VARIANTS['learned']))
  segments_BT = np.tile(np.array([1, 1, 1, 2, 2, 2, 0, 0], np.int32), (models.ROWS, 1))
  segments_BT[-1] = 0
  places_BT = np.tile(np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int32), (models.ROWS, 1))
  ids_BT = models.tokens()
  other_BT = ids_BT.copy()
  other_BT[:, :3] = (other_BT[:, :3] + 7) % 50
  a_BTV = np.asarray(models.logits(model, ids_BT, places_BT, segments_BT))
  b_BTV = np.asarray(models.logits(model, other_BT, places_BT, segments_BT))
  np.testing.assert_array_equal(a_BTV[:-1, 3:], b_BTV[:-1, 3:])
  assert np.abs(a_BTV[:, :3] - b_BTV[:, :3]).max() > 1e-3
  assert np.isfinite(a_BTV).all()


def test_a_prefix_is_bidirectional_within_itself_only():
  model = models.fill(models.tiny(**models.VARIANTS['multi_query']))
  prefix_BT = np.tile(np.arange(models.LENGTH) < 4, (models.ROWS, 1))
  base_BT = np.tile(models.tokens(rows=1), (models.ROWS, 1))
  changed_BT = base_BT.copy()
  changed_BT[0, 3] += 1  # the last of the prefix
  changed_BT[1, 5] += 1  # after it
  a_BTV = np.asarray(models.logits(model, base_BT, None, None, prefix_BT))
  b_BTV = np.asarray(models.logits(model, changed_BT, None, None, prefix_BT))
  assert (np.abs(a_BTV[0] - b_BTV[0]).max(-1) > 1e-4).all()
  np.testing.assert_array_equal(a_BTV[1, :5], b_BTV[1, :5])
  assert (np.abs(a_BTV[1, 5:] - b_BTV[1, 5:]).max(-1) > 1e-4).all()


# ------------------------------------------------------------------------------------- the kernels


def row_mask(window=0, length=128, **parts):
  return Mask(order(length), order(length), window, **parts)


IDS = (np.ones((1, 128), np.int32),) * 2
UNSUPPORTED = [  # (kernel, config, mask, row length, reason)
  ('cudnn', dict(), row_mask(jnp.int32(4)), 128, 'traced windows'),
  ('splash', dict(), row_mask(jnp.int32(4)), 128, 'set model.unroll=on'),
  ('cudnn', dict(positions='alibi'), row_mask(), 128, 'alibi'),
  ('splash', dict(positions='alibi'), row_mask(), 128, 'alibi'),
  ('cudnn', dict(attention_dropout=0.1), row_mask(), 128, 'attention_dropout'),
  ('splash', dict(attention_dropout=0.1), row_mask(), 128, 'attention_dropout'),
  ('cudnn', dict(), row_mask(prefix=IDS), 128, 'bidirectional prefix'),
  ('splash', dict(), row_mask(prefix=IDS), 128, 'bidirectional prefix'),
  ('cudnn', dict(), row_mask(segments=IDS), 128, 'document masks'),
  ('cudnn', dict(attention_softcap=2.0), row_mask(), 128, 'attention_softcap'),
  ('cudnn', dict(dtype='float32'), row_mask(), 128, 'dtype float32 (bfloat16 only)'),
  ('cudnn', dict(head_dim=12), row_mask(), 128, 'head width 12'),
  ('cudnn', dict(head_dim=136), row_mask(), 128, 'head width 136'),
  ('splash', dict(), row_mask(), 100, 'a row of 100 tokens (multiples of 128 only)'),
]


@pytest.mark.parametrize(('kernel', 'extra', 'mask', 'length', 'reason'), UNSUPPORTED)
def test_unsupported_calls_of_a_kernel_are_errors_with_the_reason(tiny, kernel, extra, mask, length, reason):
  sizes = dict(width=64, heads=4, dtype='bfloat16', context=256) | extra
  forced, free = tiny(kernel=kernel, **sizes), tiny(kernel='auto', **sizes)
  assert reason in choice.unsupported_reason(kernel, forced, mask, length)
  with pytest.raises(ValueError, match=f'model.kernel={kernel} cannot honor') as error:
    choice.choose_kernel(forced, mask, length)
  assert reason in str(error.value)
  assert str(error.value).endswith('\nfix: set model.kernel=auto or xla')
  backend = {'cudnn': 'gpu', 'splash': 'tpu'}[kernel]
  assert choice.choose_kernel(free, mask, length, backend) == 'xla'


def test_rows_spread_over_devices_take_a_kernel_without_full_scores(tiny):
  """Each backend's choice where the sequence axis has 4 devices, of 128 x 8 tokens a row."""
  cfg = tiny(width=64, dtype='bfloat16')
  traced, dropped = row_mask(jnp.int32(4)), tiny(width=64, attention_dropout=0.1)
  with jax.set_mesh(models.mesh(data=2, sequence=4)):
    chosen = lambda cfg, mask, T: [
      choice.choose_kernel(cfg, mask, T, backend) for backend in ('cpu', 'gpu', 'tpu')
    ]
    assert chosen(cfg, row_mask(), 1024) == ['blocks', 'blocks', 'splash']
    assert chosen(cfg, traced, 1024) == ['blocks'] * 3
    assert chosen(cfg, row_mask(), 1032) == ['blocks'] * 3
    assert chosen(dropped, row_mask(), 1024) == ['xla'] * 3
    assert chosen(cfg, row_mask(), 1023) == ['xla', 'cudnn', 'xla']  # does not split: stays whole
    reason = choice.unsupported_reason('splash', cfg, row_mask(), 512)
    assert reason == 'a row of 512 tokens (multiples of 1024 only)'
    reason = choice.unsupported_reason('cudnn', cfg, row_mask(), 1024)
    assert reason == 'rows spread over 4 devices (mesh.sequence)'
    forced = tiny(width=64, kernel='blocks', attention_dropout=0.1)
    with pytest.raises(ValueError, match='model.kernel=blocks cannot honor attention_dropout'):
      choice.choose_kernel(forced, row_mask(), 1024)


def test_all_unsupported_settings_are_listed(tiny):
  cfg = tiny(width=64, kernel='cudnn', attention_softcap=1.0, dtype='bfloat16')
  reason = choice.unsupported_reason('cudnn', cfg, row_mask(segments=IDS), 128)
  assert reason == 'document masks, attention_softcap'


def test_auto_takes_the_fastest_kernel_of_the_backend(tiny):
  cfg = tiny(width=64, dtype='bfloat16')
  chosen = [choice.choose_kernel(cfg, row_mask(5), 128, b) for b in ('cpu', 'gpu', 'tpu', 'cuda')]
  assert chosen == ['xla', 'cudnn', 'splash', 'cudnn']
  packed = choice.choose_kernel(cfg, row_mask(segments=IDS), 128, 'tpu')
  assert packed == 'splash'


def test_describe_choice_names_the_kernel_and_why_not_the_fastest(tiny):
  """Where a GPU's fused attention cannot, whole scores do for short rows, blocks for long ones."""
  pattern = dict(window=4, layer_pattern='SL', unroll='off')
  describe = lambda T, entries=(), backend='gpu', **extra: choice.describe_choice(
    tiny(width=64, dtype='bfloat16', **extra), entries, T, backend
  )
  documents = 'cudnn cannot honor document masks'
  assert describe(1024, ['segment_ids_BT']) == f'xla ({documents})'
  assert describe(2048, ['segment_ids_BT']) == f'blocks ({documents})'
  assert describe(2049, ['segment_ids_BT']) == f'xla ({documents})'  # not a multiple of the block size
  assert describe(4096) == 'cudnn'
  assert describe(4096, attention_dropout=0.1) == 'xla (cudnn cannot honor attention_dropout)'
  assert describe(4096, ['segment_ids_BT'], 'tpu') == 'splash'
  assert describe(128, ['prefix_BT'], 'tpu') == 'xla (splash cannot honor a bidirectional prefix)'
  assert 'cannot honor traced windows' in describe(128, **pattern)
  assert describe(128, **pattern | dict(unroll='on')) == 'cudnn'
  assert describe(128, kernel='xla') == 'xla'


@pytest.mark.parametrize('kernel', ['xla', *choice.FUSED_KERNELS])
def test_decoding_takes_xla_for_every_configured_kernel(tiny, kernel):
  cfg = tiny(width=64, dtype='bfloat16', kernel=kernel)
  mask = Mask(jnp.zeros((1, 1), jnp.int32), order(128), is_plain_self_attention=False)
  assert choice.choose_kernel(cfg, mask, 1) == 'xla'


def output_and_gradients(cfg, mask, name, qkv, weight):
  """Output and gradients of a kernel."""

  def loss(*qkv):
    y_BTHK = fn_of(name)(cfg, *qkv, mask)
    return (y_BTHK.astype(jnp.float32) * weight).sum(), y_BTHK

  (_, y), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*qkv)
  return y, *grads


@pytest.mark.parametrize(
  ('extra', 'documents'),
  [(dict(), False), (dict(window=40, kv_heads=2, attention_softcap=3.0), True)],
  ids=['causal', 'window, groups, soft-cap, documents'],
)
@pytest.mark.parametrize('sizes', [dict(), dict(data=2, tensor=2, sequence=2)], ids=str)
def test_splash_equals_xla_forward_and_backward(tiny, extra, documents, sizes):
  """Pallas' interpreter runs the TPU kernel on a CPU."""
  length = 128 if not sizes else 512
  cfg = tiny(width=32, context=length, **extra)
  ids_BT = np.sort(np.random.default_rng(3).integers(1, 4, (B, length))).astype(np.int32)
  mask = row_mask(cfg.window, length, segments=(ids_BT, ids_BT) if documents else None)
  qkv = inputs(cfg, length=length)
  weight = np.random.default_rng(2).standard_normal(qkv[0].shape).astype(np.float32)
  expected = output_and_gradients(cfg, mask, 'xla', qkv, weight)
  with jax.set_mesh(models.mesh(**sizes)):
    assert choice.unsupported_reason('splash', cfg, mask, length) == ''
    actual = output_and_gradients(cfg, mask, 'splash', qkv, weight)
  for got, want in zip(actual, expected, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_model_with_splash_equals_one_with_xla(tiny):
  ids_BT = models.tokens(2, 128)
  cfg = tiny(width=32, context=128, window=50)
  model = models.fill(cfg)
  model_splash = models.fill(tiny(width=32, context=128, window=50, kernel='splash'))
  expected = models.logits(model, ids_BT)
  np.testing.assert_allclose(models.logits(model_splash, ids_BT), expected, atol=2e-4)


@pytest.mark.gpu
@pytest.mark.parametrize('extra', [dict(), dict(window=40, kv_heads=2)], ids=str)
def test_cudnn_equals_xla_forward_and_backward(tiny, extra):
  cfg = tiny(width=64, context=128, dtype='bfloat16', **extra)
  qkv = [jnp.asarray(x, jnp.bfloat16) for x in inputs(cfg, length=128)]
  weight = np.random.default_rng(2).standard_normal(qkv[0].shape).astype(np.float32)
  expected = output_and_gradients(cfg, row_mask(cfg.window), 'xla', qkv, weight)
  for got, want in zip(
    output_and_gradients(cfg, row_mask(cfg.window), 'cudnn', qkv, weight), expected, strict=True
  ):
    scale = np.abs(np.asarray(want, np.float32)).max()
    np.testing.assert_allclose(got, want, atol=0.03 * scale)


def test_a_new_kernel_costs_one_file_and_one_row(tiny, monkeypatch):
  """Validation, choice, reasons and the layer all read the row."""
  doubled = lambda *args: 2 * attention.xla_attention(*args)
  row = choice.Kernel(doubled, lambda cfg, mask, T: {'odd rows': T % 2 > 0}, fastest_on=('abacus',))
  monkeypatch.setitem(choice.FUSED_KERNELS, 'doubled', row)
  cfg, auto = tiny(kernel='doubled'), tiny()
  assert (
    choice.choose_kernel(cfg, row_mask(), 16)
    == choice.choose_kernel(auto, row_mask(), 16, 'abacus')
    == 'doubled'
  )
  assert choice.choose_kernel(auto, row_mask(), 15, 'abacus') == 'xla'
  with pytest.raises(ValueError, match='model.kernel=doubled cannot honor odd rows'):
    choice.choose_kernel(cfg, row_mask(), 15)
  x_BTHK = jnp.ones((1, 16, cfg.heads, cfg.K))
  mask = row_mask()._replace(t_BT=jnp.arange(16)[None], s_BS=jnp.arange(16)[None])
  np.testing.assert_allclose(attention.attend(cfg, x_BTHK, x_BTHK, x_BTHK, mask), 2 * x_BTHK, rtol=1e-6)
  monkeypatch.undo()
  with pytest.raises(ValueError, match="model.kernel='doubled' is not known"):
    tiny(kernel='doubled')
