"""The GPT: embedding, blocks, head; abstract until initialized; a pure function of its parameters.

Letters: B batch, T length, D width, L layers, V vocabulary (padded rows), A numbers of an image
patch, M numbers of a group of audio frames. `model(token_ids_BT)` is the whole interface for
training; with a cache it also serves sampling.

Sources: GPT-2 (Radford et al. 2019); sandwich norms (CogView, Ding et al. 2021, section 2.4); post
norm (Vaswani et al. 2017).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt_jax.cluster.meshes import platform
from gpt_jax.model import layers as nn
from gpt_jax.model.attention import Attention
from gpt_jax.model.kernels.tiled_cpu import KEPT
from gpt_jax.model.mask import Mask
from gpt_jax.model.moe import MoE
from gpt_jax.model.positions import POSITIONS
from gpt_jax.sharding import constrain, param_sharding


class Output(NamedTuple):
  """What a forward pass gives."""

  logits_BTV: jax.Array  # float32; padding columns hold -1e30
  cache: list | None  # one dict of k_BGSK, v_BGSK a layer
  aux: dict  # scalars of the mixture of experts, means over layers; {} for a dense model


class Block(nnx.Module):
  """Attention and MLP, each a branch of the residual stream."""

  def __init__(self, cfg):
    self.cfg = cfg
    self.attention = Attention(cfg)
    self.mlp = MoE(cfg) if cfg.experts else nn.MLP(cfg)
    self.attention_norm, self.mlp_norm = nn.Norm(cfg), nn.Norm(cfg)
    sandwich = cfg.norm_position == 'sandwich'
    self.attention_out_norm = nn.Norm(cfg) if sandwich else None
    self.mlp_out_norm = nn.Norm(cfg) if sandwich else None

  def __call__(self, x_BTD, mask, positions_BT, cache=None, rate=None, key=None):
    """One layer -> (x_BTD, cache, aux)."""
    keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
    weights_key = keys[2] if self.cfg.attention_dropout else None

    def attend(h_BTD):
      return self.attention(h_BTD, mask, positions_BT, cache, weights_key)

    def mix(h_BTD):
      if not self.cfg.experts:
        return self.mlp(h_BTD), {}
      real_BT = None if mask.segments is None else mask.segments[0] > 0
      return self.mlp(h_BTD, real_BT, dropless=cache is not None)

    x_BTD, cache = self._branch(x_BTD, attend, self.attention_norm, self.attention_out_norm, rate, keys[0])
    x_BTD, aux = self._branch(x_BTD, mix, self.mlp_norm, self.mlp_out_norm, rate, keys[1])
    return constrain(x_BTD, 'BTD'), cache, aux

  def _branch(self, x_BTD, fn, norm, out_norm, rate, key):
    """x + fn(x) with the norms where cfg.norm_position says -> (x_BTD, fn's second result)."""
    post = self.cfg.norm_position == 'post'
    y_BTD, extra = fn(x_BTD if post else norm(x_BTD))
    if out_norm is not None:
      y_BTD = out_norm(y_BTD)
    x_BTD = x_BTD + nn.dropout(y_BTD, rate, key) * self.cfg.residual_scale
    return norm(x_BTD) if post else x_BTD, extra


class GPT(nnx.Module):
  """A decoder-only Transformer. `GPT(cfg)` is abstract; see `create`."""

  def __init__(self, cfg):
    if cfg.vocab < 1:
      raise ValueError('model.vocab=0: the model needs to know how many ids there are\nfix: set model.vocab')
    self.cfg = cfg
    self.embed_VD = nn.param(cfg, 'VD', cfg.init_std)
    self.patch_AD = nn.param(cfg, 'AD', cfg.init_std) if cfg.patch_values else None
    self.frame_MD = nn.param(cfg, 'MD', cfg.init_std) if cfg.frame_values else None
    self.position_TD = nn.param(cfg, 'TD', cfg.init_std) if cfg.positions == 'learned' else None
    self.blocks = nn.stack(Block(cfg), cfg.layers)
    self.final_norm = None if cfg.norm_position == 'post' else nn.Norm(cfg)
    self.head_VD = None if cfg.tied_head else nn.param(cfg, 'VD', cfg.init_std)

  def __call__(self, token_ids_BT, *, cache=None, start_B=None, rate=None, key=None, **inputs):
    """Logits for the token after each token -> Output. Arguments as in `hidden`."""
    x_BTD, cache, aux = self.hidden(token_ids_BT, cache=cache, start_B=start_B, rate=rate, key=key, **inputs)
    return Output(self.logits(x_BTD), cache, aux)

  def hidden(
    self,
    token_ids_BT,
    *,
    positions_BT=None,
    segment_ids_BT=None,
    prefix_BT=None,
    patches_BTA=None,
    frames_BTM=None,
    cache=None,
    start_B=None,
    rate=None,
    key=None,
  ):
    """All but the head -> (x_BTD, cache, aux).

    positions_BT: place within its document; default: the place in the row. With positions=mrope it
    is positions_BT3.
    segment_ids_BT: document of each token, 0 = padding; tokens see only their own document.
    prefix_BT: True for tokens that see each other both ways (and the past), within their document.
    patches_BTA, frames_BTM: continuous inputs, zeros where a token has none.
    cache, start_B: see `init_cache`; row b's tokens continue at slot start_B[b]. No segments then,
    and a prefix only in the call that begins at slot 0.
    rate, key: traced dropout probability and its key; no key, no dropout.
    """
    T = token_ids_BT.shape[1]
    t_BT = jnp.arange(T, dtype=jnp.int32)[None]  # one row of orders serves the whole batch
    mask = Mask(t_BT, t_BT)
    if cache is not None:
      t_BT = start_B[:, None] + t_BT
      s_BS = jnp.arange(cache[0]['k_BGSK'].shape[2], dtype=jnp.int32)[None]
      mask = Mask(t_BT, s_BS, rows_alone=False)
    if segment_ids_BT is not None:
      mask = mask._replace(segments=(segment_ids_BT, segment_ids_BT))
    if prefix_BT is not None:
      beyond = 0 if cache is None else cache[0]['k_BGSK'].shape[2] - T
      mask = mask._replace(prefix=(prefix_BT, jnp.pad(prefix_BT, ((0, 0), (0, beyond)))))
    if positions_BT is None:
      places = POSITIONS[self.cfg.positions].axes
      positions_BT = t_BT if places == 1 else jnp.stack([t_BT] * places, -1)
    x_BTD = self._embed(token_ids_BT, positions_BT)
    for x, w in ((patches_BTA, self.patch_AD), (frames_BTM, self.frame_MD)):
      if x is not None:
        x_BTD = x_BTD + jnp.einsum('BTF,FD->BTD', x.astype(x_BTD.dtype), w[...])
    if key is not None:
      key, embed_key = jax.random.split(key)
      x_BTD = nn.dropout(x_BTD, rate, embed_key)
    x_BTD, cache, aux = self._apply_blocks(constrain(x_BTD, 'BTD'), mask, positions_BT, cache, rate, key)
    return (x_BTD if self.final_norm is None else self.final_norm(x_BTD)), cache, aux

  def _embed(self, token_ids_BT, positions_BT):
    """Token embeddings plus whatever the position scheme adds, in the compute dtype."""
    cfg = self.cfg
    x_BTD = nn.lookup(self.embed_VD[...], token_ids_BT) * (cfg.embed_scale or cfg.width**0.5)
    embed = POSITIONS[cfg.positions].embed
    if embed is not None:
      table_TD = None if self.position_TD is None else self.position_TD[...]
      added_BTD = embed(cfg, positions_BT, table_TD).astype(x_BTD.dtype)
      x_BTD = x_BTD + jnp.broadcast_to(added_BTD, x_BTD.shape)
    return x_BTD

  def _apply_blocks(self, x_BTD, mask, positions_BT, cache, rate, key):
    """The layers, as a scan over stacked parameters or a Python loop over their slices.

    With a cache it is always the loop: a scan would copy the whole cache for every token.
    """
    cfg, windows = self.cfg, self.cfg.windows()

    def run(block, x_BTD, layer_cache, l, window):
      layer_key = None if key is None else jax.random.fold_in(key, l)
      layer_mask = mask._replace(window=window)
      return block(x_BTD, layer_mask, positions_BT, layer_cache, rate, layer_key)

    if cache is not None or cfg.unroll == 'on':
      blocks = self.blocks if isinstance(self.blocks, nnx.List) else nn.unstack(self.blocks)
      new_cache, auxes = [], []
      for l, block in enumerate(blocks):
        run_l = remat(cfg.remat, functools.partial(run, l=l, window=windows[l]), scanned=False)
        x_BTD, layer_cache, aux = run_l(block, x_BTD, None if cache is None else cache[l])
        new_cache.append(layer_cache)
        auxes.append(aux)
      auxes = jax.tree.map(lambda *a: jnp.stack(a), *auxes)
      return x_BTD, None if cache is None else new_cache, jax.tree.map(jnp.mean, auxes)

    # One window for all layers stays a Python int, which every kernel takes; a pattern is scanned.
    window_L = None if len(set(windows)) == 1 else jnp.asarray(windows, jnp.int32)

    def body(x_BTD, layer):
      block, l, window = layer
      window = windows[0] if window is None else window
      run_l = remat(cfg.remat, functools.partial(run, window=window), scanned=True)
      x_BTD, _, aux = run_l(block, x_BTD, None, l)
      return x_BTD, aux

    x_BTD, auxes = jax.lax.scan(body, x_BTD, (self.blocks, jnp.arange(cfg.layers), window_L))
    return x_BTD, None, jax.tree.map(jnp.mean, auxes)

  def logits(self, x_BTD, exact=True):
    """Head: float32 logits, soft-capped, padding columns at -1e30.

    exact: sums leave the product as float32; of logits near -100, bfloat16 keeps half a nat. Not in
    training, where that would make both backward matmuls float32, 10 to 18 % of a GPU step.
    """
    cfg = self.cfg
    table_VD = self.embed_VD if self.head_VD is None else self.head_VD
    if cfg.growth != 1:
      x_BTD = x_BTD * (1 / cfg.growth)  # muP's output multiplier
    few = platform() == 'cpu' and x_BTD.shape[0] * x_BTD.shape[1] <= FEW_ROWS
    product = nn.weights_left if few else nn.linear
    made = dict(preferred_element_type=jnp.float32) if exact else {}
    logits_BTV = product('BTD,VD->BTV', x_BTD, table_VD, **made).astype(jnp.float32)
    if cfg.logit_softcap:
      logits_BTV = cfg.logit_softcap * jnp.tanh(logits_BTV / cfg.logit_softcap)
    if cfg.V != cfg.vocab:
      in_use_V = jnp.arange(cfg.V) < cfg.vocab
      logits_BTV = jnp.where(in_use_V[None, None], logits_BTV, -1e30)
    return constrain(logits_BTV, 'BTV')


def inputs(cfg, batch):
  """What a batch holds for `hidden` besides its token ids, by the names of the arguments."""
  places = 'positions_BT3' if POSITIONS[cfg.positions].axes == 3 else 'positions_BT'
  given = {'positions_BT': batch.get(places)}
  names = ('segment_ids_BT', 'prefix_BT', 'patches_BTA', 'frames_BTM')
  return given | {name: batch[name] for name in names if name in batch}


def remat(name, fn, scanned):
  """`fn` with its residuals chosen by a row of REMAT; a scan already prevents merging them back."""
  return fn if name == 'none' else jax.checkpoint(fn, policy=REMAT[name], prevent_cse=not scanned)


def shardings(model, mesh):
  """The model's tree with a NamedSharding for each parameter; raises ValueError where none fits."""
  return nn.map_params(lambda path, p: param_sharding(mesh, p.axes, p.get_value().shape, path), model)


def create(cfg, key, mesh):
  """A model with initial values, born sharded on the mesh."""
  abstract = GPT(cfg)
  make = functools.partial(nn.initialize, abstract)
  return jax.jit(make, out_shardings=shardings(abstract, mesh))(key)


def for_sampling(model, dtype):
  """The model as the decode loop wants it: cast and sliced into layers once, outside the loop."""
  model = nn.cast(model, jnp.dtype(dtype))
  blocks = nn.unstack(model.blocks)
  model.blocks = nnx.List(map(nn.outputs_first, blocks) if platform() != 'tpu' else blocks)
  return model


def init_cache(cfg, batch, slots, dtype):
  """An empty cache: a list of dicts of k_BGSK, v_BGSK, one a layer."""
  shape = (batch, cfg.G, slots, cfg.K)
  return [
    {name: jnp.zeros(shape, jnp.dtype(dtype)) for name in ('k_BGSK', 'v_BGSK')} for _ in range(cfg.layers)
  ]


def count_params(cfg):
  """Parameters of a model, padding rows of the vocabulary left out."""
  shapes = [p.get_value().shape for _, p in nn.named_params(GPT(cfg))]
  padding = (cfg.V - cfg.vocab) * cfg.width * (1 if cfg.tied_head else 2)
  return sum(int(np.prod(shape)) for shape in shapes) - padding


def active_matmul_params(cfg):
  """Parameters that multiply a token: no position table, no untied embedding, k of E experts."""
  dense = dataclasses.replace(cfg, experts=0)
  n = count_params(dense)
  if cfg.positions == 'learned':
    n -= cfg.context * cfg.width
  if not cfg.tied_head:
    n -= cfg.vocab * cfg.width
  if cfg.experts:
    mlp = cfg.width * cfg.F * (3 if cfg.gated else 2)
    n += cfg.layers * (mlp * (cfg.experts_per_token - 1) + cfg.width * cfg.experts)
  return n


def flops_per_token(cfg, length):
  """Training FLOPs a token (forward and backward) in rows of `length` -> dict of two conventions.

  'full' counts attention scores over the whole row, as PaLM (appendix B) and nanoGPT do: 6 N + 12 L
  H K T. 'causal' counts only the keys that a query may see, windows included.
  """
  matmuls = 6 * active_matmul_params(cfg)
  per_key = 12 * cfg.heads * cfg.K
  t = np.arange(1, length + 1)
  seen = sum(float(np.minimum(t, w or length).mean()) for w in cfg.windows())
  return {'full': matmuls + per_key * length * cfg.layers, 'causal': matmuls + per_key * seen}


FEW_ROWS = 32  # up to which a CPU is faster with weights as the left operand
REMAT = {
  'full': None,
  'dots': jax.checkpoint_policies.dots_saveable,
  'dots_no_batch': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(KEPT),
  ),
}
