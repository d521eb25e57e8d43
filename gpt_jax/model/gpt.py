"""The GPT: embedding, blocks, head; a pure function of its parameters, abstract until initialized.

Training calls `trunk` and `logits`; evaluation and sampling call the model, sampling with a KV cache.

Letters: B batch, T length, S cache slots, D width, L layers, V vocabulary (padded rows).

Sources: GPT-2 (Radford et al. 2019), post norm (Vaswani et al. 2017), sandwich norms (CogView, Ding et al.
2021, section 2.4).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt_jax.model import layers, param_trees, projectors
from gpt_jax.model.attention import Attention
from gpt_jax.model.continuous import KINDS
from gpt_jax.model.kernels import fused
from gpt_jax.model.kernels.remat import REMAT
from gpt_jax.model.mask import Mask
from gpt_jax.model.moe import MoE
from gpt_jax.model.positions import POSITIONS, rope_frequencies
from gpt_jax.sharding import constrain, param_sharding


class Output(NamedTuple):
  """The results of a forward pass."""

  logits_BTV: jax.Array  # float32; padding columns hold -1e30
  cache: list | None  # one dict of k_BGSK, v_BGSK per layer
  aux: dict  # scalars of the mixture of experts, means over layers; {} for a dense model


class Block(nnx.Module):
  """Attention and MLP, each a branch of the residual stream."""

  def __init__(self, cfg):
    self.cfg = cfg
    self.attention = Attention(cfg)
    self.mlp: Any = MoE(cfg) if cfg.experts else layers.MLP(cfg)
    has_in, has_out = cfg.norm_position != 'output', cfg.norm_position in ('sandwich', 'output')
    self.attention_norm, self.mlp_norm = (layers.Norm(cfg) if has_in else None for _ in range(2))
    self.attention_out_norm, self.mlp_out_norm = (layers.Norm(cfg) if has_out else None for _ in range(2))

  def __call__(self, x_BTD, mask, positions_BT, cache=None, rate=None, key=None, frequencies_k=None):
    """One layer -> (x_BTD, cache, aux)."""
    keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
    weights_key = keys[2] if self.cfg.attention_dropout else None

    def attend(h_BTD):
      return self.attention(h_BTD, mask, positions_BT, cache, weights_key, frequencies_k)

    def feed_forward(h_BTD):
      if not self.cfg.experts:
        return self.mlp(h_BTD), {}
      real_BT = None if mask.segments is None else mask.segments[0] > 0
      return self.mlp(h_BTD, real_BT, dropless=cache is not None)

    in_BTD, norms = x_BTD, (self.attention_norm, self.attention_out_norm)
    x_BTD, cache = self._branch(x_BTD, in_BTD, attend, *norms, rate, keys[0])
    in_BTD = in_BTD if self.cfg.norm_position == 'parallel' else x_BTD
    norms = self.mlp_norm, self.mlp_out_norm
    x_BTD, aux = self._branch(x_BTD, in_BTD, feed_forward, *norms, rate, keys[1])
    return constrain(x_BTD, 'BTD'), cache, aux

  def _branch(self, x_BTD, in_BTD, fn, norm, out_norm, rate, key):
    """x + fn(in) with the norms where cfg.norm_position says -> (x_BTD, fn's second result)."""
    post = self.cfg.norm_position == 'post'
    y_BTD, extra = fn(in_BTD if post or norm is None else norm(in_BTD))
    if out_norm is not None:
      y_BTD = out_norm(y_BTD)
    x_BTD = x_BTD + layers.dropout(y_BTD, rate, key) * self.cfg.residual_scale
    return norm(x_BTD) if post else x_BTD, extra


class GPT(nnx.Module):
  """A decoder-only Transformer. `GPT(cfg)` is abstract; layers.initialize fills it."""

  def __init__(self, cfg):
    if cfg.vocab < 1:
      raise ValueError('model.vocab=0 is not a vocabulary size\nfix: set model.vocab')
    self.cfg = cfg
    self.embed_VD = layers.param(cfg, 'VD', cfg.init_std)
    projectors.declare(self, cfg)
    self.position_TD = layers.param(cfg, 'TD', cfg.init_std) if POSITIONS[cfg.positions].has_table else None
    self.blocks = param_trees.stack(Block(cfg), cfg.layers)
    self.final_norm = None if cfg.norm_position == 'post' else layers.Norm(cfg)
    self.head_VD = None if cfg.tied_head else layers.param(cfg, 'VD', cfg.init_std)

  def __call__(self, token_ids_BT, **inputs):
    """Logits for the token after each token -> Output. Arguments as in `trunk`."""
    x_BTD, cache, aux = self.trunk(token_ids_BT, **inputs)
    return Output(self.logits(x_BTD), cache, aux)

  def trunk(
    self,
    token_ids_BT,
    *,
    positions_BT=None,
    segment_ids_BT=None,
    prefix_BT=None,
    cache=None,
    start_B=None,
    rate=None,
    key=None,
    **continuous,
  ):
    """All but the head -> (x_BTD, cache, aux).

    positions_BT: position within the document; default: within the row. positions_BT3 for positions=mrope.
    segment_ids_BT: document of each token, 0 = padding; tokens see only their own document.
    prefix_BT: tokens of a group but 0 see each other both ways (and the past), within their document.
    cache, start_B: see `init_cache`; row b's tokens continue at slot start_B[b]. Segments are not supported
    then, and a prefix only in the call that begins at slot 0.
    rate, key: traced dropout probability and its key; no key, no dropout.
    continuous: patches_BTA, frames_BTM, vectors_BTU, zeros where a token has none; see continuous.KINDS.
    """
    mask = self._mask(token_ids_BT.shape[1], segment_ids_BT, prefix_BT, cache, start_B)
    if positions_BT is None:
      axes = POSITIONS[self.cfg.positions].axes
      positions_BT = mask.t_BT if axes == 1 else jnp.stack([mask.t_BT] * axes, -1)
    x_BTD = self._embed(token_ids_BT, positions_BT)
    x_BTD = projectors.add(self, x_BTD, continuous)
    if key is not None:
      key, embed_key = jax.random.split(key)
      x_BTD = layers.dropout(x_BTD, rate, embed_key)
    x_BTD, cache, aux = self._apply_blocks(constrain(x_BTD, 'BTD'), mask, positions_BT, cache, rate, key)
    return (x_BTD if self.final_norm is None else self.final_norm(x_BTD)), cache, aux

  def _mask(self, T, segment_ids_BT, prefix_BT, cache, start_B):
    """The attention mask of all layers but for their windows; one row of orders serves the batch."""
    t_BT = s_BS = jnp.arange(T, dtype=jnp.int32)[None]
    slots = T if cache is None else cache[0]['k_BGSK'].shape[2]
    if cache is not None:
      t_BT, s_BS = start_B[:, None] + t_BT, jnp.arange(slots, dtype=jnp.int32)[None]
    mask = Mask(t_BT, s_BS, is_plain_self_attention=cache is None)
    if segment_ids_BT is not None:
      mask = mask._replace(segments=(segment_ids_BT, segment_ids_BT))
    if prefix_BT is not None:
      mask = mask._replace(prefix=(prefix_BT, jnp.pad(prefix_BT, ((0, 0), (0, slots - T)))))
    return mask

  def _embed(self, token_ids_BT, positions_BT):
    """Token embeddings plus the position scheme's vectors, in the compute dtype."""
    cfg = self.cfg
    x_BTD = fused.lookup(self.embed_VD[...], token_ids_BT) * (cfg.embed_scale or cfg.width**0.5)
    embed = POSITIONS[cfg.positions].embed
    if embed is not None:
      table_TD = None if self.position_TD is None else self.position_TD[...]
      added_BTD = embed(cfg, positions_BT, table_TD).astype(x_BTD.dtype)
      x_BTD = x_BTD + jnp.broadcast_to(added_BTD, x_BTD.shape)
    return x_BTD

  def _apply_blocks(self, x_BTD, mask, positions_BT, cache, rate, key):
    """The layers, as a scan over stacked parameters or a Python loop over their slices.

    With a cache always the loop: a scan would copy the whole cache for every token.
    """
    cfg, windows = self.cfg, self.cfg.windows()
    frequencies_Lk = np.stack([rope_frequencies(cfg, letter) for letter in cfg.layer_letters()])

    def run(block, x_BTD, layer_cache, l, window, frequencies_k):
      layer_key = None if key is None else jax.random.fold_in(key, l)
      layer_mask = mask._replace(window=window)
      return block(x_BTD, layer_mask, positions_BT, layer_cache, rate, layer_key, frequencies_k)

    is_list = param_trees.is_unstacked(self)  # of sampling/decoding_layout.py
    if cache is not None or cfg.unroll == 'on' or is_list:
      blocks = self.blocks if is_list else param_trees.unstack(self.blocks)
      new_cache, auxes = [], []
      for l, block in enumerate(blocks):
        run_l = functools.partial(run, l=l, window=windows[l], frequencies_k=frequencies_Lk[l])
        layer_cache = None if cache is None else cache[l]
        x_BTD, layer_cache, aux = REMAT[cfg.remat](run_l, prevent_cse=True)(block, x_BTD, layer_cache)
        new_cache.append(layer_cache)
        auxes.append(aux)
      auxes = jax.tree.map(lambda *a: jnp.stack(a), *auxes)
      return x_BTD, None if cache is None else new_cache, jax.tree.map(jnp.mean, auxes)

    # One window for all layers stays a Python int, which every kernel supports; a pattern is scanned.
    scanned = {'window': None if len(set(windows)) == 1 else jnp.asarray(windows, jnp.int32)}
    is_same = (frequencies_Lk == frequencies_Lk[:1]).all()
    scanned['frequencies_k'] = None if is_same else jnp.asarray(frequencies_Lk, jnp.float32)
    fixed = {'window': windows[0], 'frequencies_k': frequencies_Lk[0]}

    def body(x_BTD, layer):
      block, l, scanned = layer
      options = {name: fixed[name] if value is None else value for name, value in scanned.items()}
      run_l = REMAT[cfg.remat](functools.partial(run, **options), prevent_cse=False)
      x_BTD, _, aux = run_l(block, x_BTD, None, l)
      return x_BTD, aux

    x_BTD, auxes = jax.lax.scan(body, x_BTD, (self.blocks, jnp.arange(cfg.layers), scanned))
    return x_BTD, None, jax.tree.map(jnp.mean, auxes)

  def logits(self, x_BTD, exact=True):
    """Head: float32 logits BTV, soft-capped, padding columns at -1e30.

    exact: the product's sums come out in float32; near -100, bfloat16 logits are half a nat apart. Not for
    training, where it would make both backward matmuls float32, 10 to 18 % of a GPU step.
    """
    cfg = self.cfg
    table_VD = self.embed_VD if self.head_VD is None else self.head_VD
    if cfg.logit_scale != cfg.growth:
      x_BTD = x_BTD * (cfg.logit_scale / cfg.growth)  # 1 / growth: muP's output multiplier
    product = fused.head_product(x_BTD, table_VD) or layers.linear
    options = dict(preferred_element_type=jnp.float32) if exact else {}
    logits_BTV = product('BTD,VD->BTV', x_BTD, table_VD, **options).astype(jnp.float32)
    if cfg.logit_softcap:
      logits_BTV = cfg.logit_softcap * jnp.tanh(logits_BTV / cfg.logit_softcap)
    if cfg.V != cfg.vocab:
      logits_BTV = jnp.where((jnp.arange(cfg.V) < cfg.vocab)[None, None], logits_BTV, -1e30)
    return constrain(logits_BTV, 'BTV')


def inputs(cfg, batch):
  """A batch's arguments for `trunk` besides the token ids: {argument name: array}."""
  positions = 'positions_BT3' if POSITIONS[cfg.positions].axes == 3 else 'positions_BT'
  names = ('segment_ids_BT', 'prefix_BT', *(kind.argument for kind in KINDS.values()))
  return {'positions_BT': batch.get(positions)} | {name: batch[name] for name in names if name in batch}


def shardings(model, mesh):
  """The model's tree with a NamedSharding for each parameter; ValueError where the mesh does not fit."""
  place = lambda path, p: param_sharding(mesh, p.axes, p.get_value().shape, path)
  return param_trees.map_params(place, model)


def init_cache(cfg, batch, slots, dtype):
  """An empty KV cache: one dict of k_BGSK and v_BGSK per layer."""
  zeros_BGSK = lambda: jnp.zeros((batch, cfg.G, slots, cfg.K), jnp.dtype(dtype))
  return [dict(k_BGSK=zeros_BGSK(), v_BGSK=zeros_BGSK()) for _ in range(cfg.layers)]
