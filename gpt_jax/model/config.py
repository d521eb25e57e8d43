"""The Transformer's settings: ModelConfig and the sizes derived from them.

validate.py refuses impossible settings; presets.py has gpt2, llama, modern; costs.py counts FLOPs.

Sources: GPT-2's initialization (Radford et al. 2019, section 2.3); maximal update parametrization, muP
(Yang et al. 2022, table 8; optim.py has its learning rates).
"""

import dataclasses
from typing import Any

from gpt_jax.cluster.meshes import platform
from gpt_jax.model import validate
from gpt_jax.model.layers import GATED, INITS


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """One decoder-only Transformer. Sizes of 0 are derived from the others."""

  layers: int = 4  # blocks
  width: int = 128  # D
  heads: int = 4  # H, query heads
  kv_heads: int = 0  # G, key/value heads; 0 = heads; 1 = multi-query
  head_dim: int = 0  # K; 0 = width / heads
  hidden: int = 0  # F; 0 = 4 width, or 8/3 width rounded up to 64 when gated
  vocab: int = 0  # ids; 0 = as many as the tokenizer has
  vocab_multiple: int = 128  # rows of the embedding table are padded to a multiple of this
  context: int = 256  # tokens; the longest row that the model is made for
  patch_values: int = 0  # A, numbers in a continuous image patch; a run takes it from its data
  frame_values: int = 0  # M, numbers in a continuous group of audio frames; likewise
  vector_values: int = 0  # U, numbers in a vector of the data; likewise
  patch_id: int = -1  # id of a patch that the flow head makes, -1 = it makes none; likewise
  encoders: tuple[str, ...] = ()  # pretrained encoders in the model, JSON of towers.Tower; likewise
  flow_layers: int = 0  # blocks of the flow head, which image.kind=continuous needs; see model/flow.py
  flow_width: int = 0  # hidden width of the flow head; 0 = width
  projector: str = 'linear'  # a row of PROJECTORS: from these numbers to the width
  projector_parts: int = 1  # vectors side by side that pool and resampler make one of

  positions: str = 'rope'  # a row of POSITIONS
  rope_theta: float = 10000.0  # base of the RoPE frequencies
  rope_local_theta: float = 0.0  # base in layers of letter S, unscaled (Gemma 3); 0 = rope_theta
  rope_fraction: float = 1.0  # share of a head that is rotated: its first dimensions (GPT-NeoX)
  rope_sections: tuple[int, ...] = ()  # pairs of time, row and column (mrope); () = alternating
  rope_scaling: str = 'none'  # a row of ROPE_SCALINGS
  rope_factor: float = 1.0  # context now / context at training
  rope_original_context: int = 0  # tokens; context at training (yarn, llama3)
  rope_beta_fast: float = 32.0  # turns over the original context (yarn)
  rope_beta_slow: float = 1.0  # turns over the original context (yarn)
  rope_low_frequency: float = 1.0  # original context / wavelength (llama3)
  rope_high_frequency: float = 4.0  # original context / wavelength (llama3)
  rope_attention_factor: float = 0.0  # yarn's factor on q and k; 0 = 0.1 ln(rope_factor) + 1

  norm: str = 'rmsnorm'  # a row of NORMS
  norm_position: str = 'pre'  # pre, post, sandwich, output (of branches) or parallel (branches abreast)
  norm_eps: float = 1e-5  # added to the variance
  norm_bias: bool = True  # LayerNorm only
  mlp: str = 'swiglu'  # a row of ACTIVATIONS
  attention_bias: bool = False  # on q, k, v and the output
  mlp_bias: bool = False  # on both MLP matrices
  qk_norm: bool = False  # a norm over each query and key head, before RoPE
  qk_norm_over: str = 'head'  # head; all = one norm over all heads (OLMo 2); each = LayerNorms (Chameleon)
  query_scale: float = 0.0  # factor on query-key products; 0 = 1/sqrt(K)
  attention_softcap: float = 0.0  # scores -> cap tanh(scores / cap); 0 = off
  logit_softcap: float = 0.0  # the same for the head's logits; 0 = off
  window: int = 0  # keys each query attends to, itself included; 0 = all before it
  layer_pattern: str = ''  # repeated, such as SSSL: S = window, L = all keys, N = all, no RoPE; '' = S

  tied_head: bool = True  # the head is the embedding table
  embed_scale: float = 1.0  # embeddings are multiplied by this; 0 = sqrt(width)
  residual_scale: float = 1.0  # each branch is multiplied by this
  logit_scale: float = 1.0  # logits are multiplied by this, before their soft-cap
  init_std: float = 0.02  # of every matrix
  init_projections: str = 'scaled'  # a row of INITS: std of the two matrices that write to the residual
  mup_base: int = 0  # base width, at which lr was tuned: muP is the identity there; 0 = no muP
  dropout: float = 0.0  # probability; after the embedding and each branch
  attention_dropout: float = 0.0  # probability; of attention weights (kernel xla only)

  experts: int = 0  # E; 0 = a dense MLP
  experts_per_token: int = 2  # k of top-k routing
  router_renormalize: bool = True  # the k probabilities of a token are divided by their sum
  capacity_factor: float = 0.0  # slots an expert has, over its fair share; 0 = nothing is dropped

  kernel: str = 'auto'  # attention kernel: auto, xla, blocks, chunks, cudnn or splash
  unroll: str = 'auto'  # layers as a Python loop: on, off; auto = on for GPU
  remat: str = 'auto'  # a row of REMAT; auto = dots_no_batch on CPU, else mlp_activations if unrolled
  dtype: str = 'auto'  # of the computation; auto = bfloat16 on GPU and TPU, float32 on CPU
  param_dtype: str = 'float32'  # of the stored parameters; float16 is for sampling, not for training

  def __post_init__(self):
    validate.check_model(self)

  check_effective = validate.check_effective  # of what a user wrote; derived configs may hold more

  @property
  def G(self):
    """Key/value heads."""
    return self.kv_heads or self.heads

  @property
  def K(self):
    """Head width."""
    return self.head_dim or self.width // self.heads

  @property
  def rotary_dim(self):
    """Dimensions of a head that RoPE rotates: an even number."""
    return int(self.K * self.rope_fraction) // 2 * 2

  @property
  def F(self):
    """Feed-forward width."""
    return self.hidden or (-(-8 * self.width // 3 // 64) * 64 if self.gated else 4 * self.width)

  @property
  def V(self):
    """Rows of the embedding table: vocab padded to vocab_multiple."""
    return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple

  @property
  def gated(self):
    """Whether the MLP has a gate matrix."""
    return self.mlp in GATED

  @property
  def growth(self):
    """Width over the base width of muP; 1 without muP.

    The base model has the same proportions. Heads grow in number if head_dim is set, else in width.
    """
    return self.width / self.mup_base if self.mup_base else 1.0

  @property
  def matrix_std(self):
    """Initial std of the matrices whose inputs grow with the width; tables have init_std."""
    return self.init_std * self.growth**-0.5

  @property
  def projection_std(self):
    """Initial std of the matrices that write to the residual stream."""
    return INITS[self.init_projections](self) * self.growth**-0.5

  @property
  def attention_scale(self):
    """Factor on query-key products: 1/sqrt(K); with muP sqrt(base K)/K where K grows with the width."""
    return self.query_scale or self.K**-0.5 * (1.0 if self.head_dim else self.growth**-0.5)

  @property
  def dims(self):
    """Letter -> size, for `param`."""
    own = dict(L=self.layers, D=self.width, H=self.heads, E=self.experts, G=self.G, K=self.K, F=self.F)
    return dict(own, A=self.patch_values, M=self.frame_values, U=self.vector_values, T=self.context, V=self.V)

  def layer_letters(self):
    """The letter of each layer, from layer_pattern."""
    pattern = self.layer_pattern or 'S'
    return [pattern[l % len(pattern)] for l in range(self.layers)]

  def windows(self):
    """The window of each layer: how many keys a query attends to; 0 = all before it."""
    return [self.window if letter == 'S' else 0 for letter in self.layer_letters()]

  def resolved(self, backend=None):
    """The config with every `auto` decided for a backend ('cpu', 'gpu', 'tpu'; default: the current one).

    `kernel` stays auto: whether a kernel supports a call also depends on its mask (kernels/choice.py).
    """
    backend = backend or platform()
    is_cpu, unroll = backend == 'cpu', self.unroll
    if unroll == 'auto':
      unroll = 'on' if backend in ('gpu', 'cuda', 'rocm') else 'off'
    remat = 'mlp_activations' if unroll == 'on' else 'none'
    auto = dict(remat='dots_no_batch' if is_cpu else remat, dtype='float32' if is_cpu else 'bfloat16')
    chosen: dict[str, Any] = {key: value for key, value in auto.items() if getattr(self, key) == 'auto'}
    return dataclasses.replace(self, unroll=unroll, **chosen)
