"""The fused attention kernel of TPUs, on a mesh of any size.

A kernel is a program of one device: it is called inside `shard_map` with the device's rows and heads. Of a
row that is spread over devices it computes the device's zigzag chunks of queries (context_parallel.py)
against the gathered keys; its mask knows these chunks, and skips the same blocks.

Letters: as in mask.py.
"""

import jax
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.cluster.meshes import platform
from gpt_jax.model.kernels import context_parallel
from gpt_jax.model.kernels.cudnn import fixed_mask_limits


def splash_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """TPU splash attention on each device's rows, heads and chunks of queries, BTHK.

  Supports causal masks, windows, documents and soft-cap; interpreted where there is no TPU.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

  spread = context_parallel.spread_of(k_BSGK.shape)
  kernel = splash_kernel(cfg, q_BTHK.shape[1], spread, mask.window)

  def attend(q_BTHK, k_BSGK, v_BSGK, row, kernel):
    segments = None
    if row.segment_BT is not None:
      segments = SegmentIds(context_parallel.zigzag_shard(spread, row).segment_BT, row.segment_BT)
    q_BTHK = context_parallel.to_zigzag(spread, q_BTHK * cfg.attention_scale)
    qkv = (q_BTHK, context_parallel.all_gather(spread, k_BSGK), context_parallel.all_gather(spread, v_BSGK))
    y_BHTK = jax.vmap(kernel)(*(x.transpose(0, 2, 1, 3) for x in qkv), segments)
    return context_parallel.from_zigzag(spread, y_BHTK.transpose(0, 2, 1, 3))

  if spread.n > 1:  # the backward pass gathers keys and values again instead of saving them
    policy = jax.checkpoint_policies.save_only_these_names('splash')
    attend = jax.checkpoint(attend, policy=policy)
  rows = PartitionSpec(None, 'sequence' if spread.n > 1 else None)
  specs = lambda: kernel.manual_sharding_spec(NamedSharding(jax.sharding.get_abstract_mesh(), rows))
  return context_parallel.map_devices(attend, q_BTHK, k_BSGK, v_BSGK, mask, kernel, specs)


def splash_kernel(cfg, T, spread, window):
  """The kernel for rows of T tokens, where each device has T/n queries."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

  if window:
    head_mask = splash_attention_mask.LocalMask((T, T), (window - 1, 0), 0)
  else:
    head_mask = splash_attention_mask.CausalMask((T, T))
  if spread.n > 1:
    head_mask.q_sequence = context_parallel.zigzag_order(spread.n, T)
  chunk = T // (2 * spread.n) if spread.n > 1 else T
  size = max(b for b in (128, 256, 384, 512) if chunk % b == 0)
  sizes = splash_attention_kernel.BlockSizes(**dict.fromkeys(BLOCKS, size), use_fused_bwd_kernel=True)
  return splash_attention_kernel.make_splash_mha(
    mask=splash_attention_mask.MultiHeadMask([head_mask] * (cfg.heads // spread.tensor)),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=spread.n,
    attn_logits_soft_cap=cfg.attention_softcap or None,
    residual_checkpoint_name='splash',
    interpret=platform() != 'tpu',
  )


BLOCKS = ('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute')


def limits(cfg, mask, T):
  """Return what this kernel does not support: {reason: whether this call has it}."""
  n = context_parallel.spread_of((1, T, cfg.G, cfg.K)).n
  multiple = 128 * (2 * n if n > 1 else 1)  # 128 in each of a device's two chunks
  return fixed_mask_limits(cfg, mask) | {
    f'a row of {T} tokens (multiples of {multiple} only)': T % multiple > 0
  }
