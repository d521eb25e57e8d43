"""What can be asked of the Transformer: ModelConfig, its presets, and what a model costs.

Sources: GPT-2 (Radford et al. 2019, table 2), Llama (Touvron et al. 2023), `modern` after the
modded-nanogpt speedrun; FLOPs as in PaLM (Chowdhery et al. 2022, appendix B); maximal update
parametrization, muP (Yang et al. 2022, table 8; optim.py has its learning rates).
"""

import dataclasses

from gpt_jax.cluster.meshes import platform
from gpt_jax.model.layers import ACTIVATIONS, GATED, NORMS
from gpt_jax.model.positions import POSITIONS, ROPE_SCALINGS

KERNEL_NAMES = ('auto', 'xla', 'blocks', 'chunks', 'cudnn', 'splash')
ROTATING = ('rope', 'mrope')
REMAT_NAMES = ('auto', 'none', 'full', 'dots', 'dots_no_batch')
INITS = {
  'scaled': lambda cfg: cfg.init_std / (2 * cfg.layers) ** 0.5,  # GPT-2, section 2.3
  'same': lambda cfg: cfg.init_std,
  'zero': lambda cfg: 0.0,
}


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

  positions: str = 'rope'  # a row of POSITIONS
  rope_theta: float = 10000.0  # base of the RoPE frequencies
  rope_scaling: str = 'none'  # a row of ROPE_SCALINGS
  rope_factor: float = 1.0  # context now / context at training
  rope_original_context: int = 0  # tokens; context at training (yarn, llama3)
  rope_beta_fast: float = 32.0  # turns over the original context (yarn)
  rope_beta_slow: float = 1.0  # turns over the original context (yarn)
  rope_low_frequency: float = 1.0  # original context / wavelength (llama3)
  rope_high_frequency: float = 4.0  # original context / wavelength (llama3)
  rope_attention_factor: float = 0.0  # yarn's factor on q and k; 0 = 0.1 ln(rope_factor) + 1

  norm: str = 'rmsnorm'  # a row of NORMS
  norm_position: str = 'pre'  # pre, post or sandwich
  norm_eps: float = 1e-5  # added to the variance
  norm_bias: bool = True  # LayerNorm only
  mlp: str = 'swiglu'  # a row of ACTIVATIONS
  attention_bias: bool = False  # on q, k, v and the output
  mlp_bias: bool = False  # on both MLP matrices
  qk_norm: bool = False  # a norm over each query and key head, before RoPE
  attention_softcap: float = 0.0  # scores -> cap tanh(scores / cap); 0 = off
  logit_softcap: float = 0.0  # the same for the head's logits; 0 = off
  window: int = 0  # keys that a query sees, itself included; 0 = all before it
  window_pattern: str = ''  # e.g. SSSL, repeated over the layers: S = window, L = all; '' = S everywhere

  tied_head: bool = True  # the head is the embedding table
  embed_scale: float = 1.0  # embeddings are multiplied by this; 0 = sqrt(width)
  residual_scale: float = 1.0  # each branch is multiplied by this
  init_std: float = 0.02  # of every matrix
  init_projections: str = 'scaled'  # a row of INITS: std of the two matrices that write to the residual
  mup_base: int = 0  # width at which muP changes nothing, where the learning rate was tuned; 0 = no muP
  dropout: float = 0.0  # probability; after the embedding and each branch
  attention_dropout: float = 0.0  # probability; of attention weights (kernel xla only)

  experts: int = 0  # E; 0 = a dense MLP
  experts_per_token: int = 2  # k of top-k routing
  capacity_factor: float = 0.0  # slots an expert has, over its fair share; 0 = nothing is dropped

  kernel: str = 'auto'  # attention kernel: auto, xla, blocks, chunks, cudnn or splash
  unroll: str = 'auto'  # layers as a Python loop: on, off; auto = on for GPU
  remat: str = 'auto'  # a row of REMAT; auto = dots_no_batch on CPU, none elsewhere
  dtype: str = 'auto'  # of the computation; auto = bfloat16 on GPU and TPU, float32 on CPU
  param_dtype: str = 'float32'  # of the stored parameters

  def __post_init__(self):
    for key, rows in CHOICES.items():
      if getattr(self, key) not in rows:
        raise ValueError(
          f'model.{key}={getattr(self, key)!r} is not known\nfix: use one of {", ".join(rows)}'
        )
    for key, low in LIMITS.items():
      if not low <= getattr(self, key) < float('inf'):  # NaN is refused too
        raise ValueError(f'model.{key}={getattr(self, key)} is too small\nfix: use at least {low}')
      if isinstance(low, int) and getattr(self, key) > (most := MOST.get(key, MOST_OF_OTHERS)):
        raise ValueError(f'model.{key}={getattr(self, key)} is too large\nfix: use at most {most}')
    for key in ('dropout', 'attention_dropout'):
      if not 0 <= getattr(self, key) < 1:
        raise ValueError(f'model.{key}={getattr(self, key)} is not a probability\nfix: use 0 <= p < 1')
    if not self.head_dim and self.width % self.heads:
      raise ValueError(
        f'model.heads={self.heads} does not divide model.width={self.width}\n'
        f'fix: use one of {", ".join(map(str, divisors(self.width)))}, or set model.head_dim'
      )
    if self.heads % self.G:
      raise ValueError(
        f'model.kv_heads={self.G} does not divide model.heads={self.heads}\n'
        f'fix: use one of {", ".join(map(str, divisors(self.heads)))}'
      )
    self._check_combinations()

  def _check_combinations(self):
    """Refuse what no kernel or layer could honor."""
    if self.rope_scaling == 'ntk' and self.K < 4:
      raise ValueError('model.rope_scaling=ntk needs a head width of 4 or more\nfix: fewer heads')
    if self.positions in ROTATING and self.K % 2:
      raise ValueError(
        f'model.positions={self.positions} needs an even head width, and it is {self.K}\n'
        'fix: choose model.heads so that width / heads is even, or other positions'
      )
    if self.positions == 'mrope' and self.K < 8:
      raise ValueError(
        f'model.positions=mrope needs a head width of 8 or more for time, rows and columns, and it '
        f'is {self.K}\nfix: choose fewer model.heads, or other positions'
      )
    if self.rope_scaling != 'none' and self.positions not in ROTATING:
      raise ValueError(
        f'model.rope_scaling={self.rope_scaling} scales nothing with '
        f'model.positions={self.positions}\n'
        'fix: set model.positions=rope, or model.rope_scaling=none'
      )
    if self.rope_scaling in ('yarn', 'llama3') and not self.rope_original_context:
      raise ValueError(
        f'model.rope_scaling={self.rope_scaling} needs the context of the original training\n'
        'fix: set model.rope_original_context'
      )
    if self.mup_base and not self.embed_scale:
      raise ValueError(
        'model.embed_scale=0 grows with the width, which muP does not allow '
        f'(model.mup_base={self.mup_base})\n'
        f'fix: set model.embed_scale={self.mup_base**0.5:.4g}, what it is at the base'
      )
    if self.window_pattern and (set(self.window_pattern) - set('SL') or not self.window):
      raise ValueError(
        f'model.window_pattern={self.window_pattern!r} with model.window={self.window} '
        'says no pattern\n'
        'fix: use letters S (window) and L (all keys) and set model.window > 0'
      )
    if self.experts and not 1 <= self.experts_per_token <= self.experts:
      raise ValueError(
        f'model.experts_per_token={self.experts_per_token} with model.experts={self.experts}\n'
        f'fix: use 1 to {self.experts}'
      )
    if self.capacity_factor and not self.experts:
      raise ValueError(
        f'model.capacity_factor={self.capacity_factor} has no use with model.experts=0\n'
        'fix: set model.experts, or capacity_factor=0'
      )
    if self.rope_factor != 1.0 and self.rope_scaling == 'none':
      raise ValueError(
        f'model.rope_factor={self.rope_factor} has no use with model.rope_scaling=none\n'
        'fix: choose a rope_scaling, or rope_factor=1'
      )
    if self.experts and self.mlp_bias:
      raise ValueError('model.mlp_bias=True has no place in a mixture of experts\nfix: set it False')

  @property
  def G(self):
    """Key/value heads."""
    return self.kv_heads or self.heads

  @property
  def K(self):
    """Head width."""
    return self.head_dim or self.width // self.heads

  @property
  def F(self):
    """Feed-forward width."""
    if self.hidden:
      return self.hidden
    return -(-8 * self.width // 3 // 64) * 64 if self.gated else 4 * self.width

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
    """How many times wider than the base of muP; 1 without muP.

    The base has the same proportions: what is as wide as the residual stream grows with it. Of the
    heads, their number grows if head_dim is set, and their width if it is 0.
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
    """Times queries on keys: 1/sqrt(K), and with muP 1/K where K grows with the width."""
    return self.K**-0.5 * (1.0 if self.head_dim else self.growth**-0.5)

  @property
  def dims(self):
    """Letter -> size, for `param`."""
    names = dict(L='layers', D='width', H='heads', T='context', E='experts')
    sizes = {letter: getattr(self, name) for letter, name in names.items()}
    sizes |= dict(A=self.patch_values, M=self.frame_values)
    return sizes | dict(G=self.G, K=self.K, F=self.F, V=self.V)

  def windows(self):
    """For each layer, how many keys a query sees; 0 = all before it."""
    pattern = self.window_pattern or 'S'
    return [self.window if pattern[l % len(pattern)] == 'S' else 0 for l in range(self.layers)]

  def resolved(self, backend=None):
    """The config with every `auto` decided for a backend ('cpu', 'gpu', 'tpu'; default: this one).

    `kernel` stays auto: whether a kernel can honor a call also depends on its masks (see
    attention.py).
    """
    backend = backend or platform()
    auto = {
      'unroll': 'on' if backend in ('gpu', 'cuda', 'rocm') else 'off',
      'remat': 'dots_no_batch' if backend == 'cpu' else 'none',
      'dtype': 'float32' if backend == 'cpu' else 'bfloat16',
    }
    chosen = {key: value for key, value in auto.items() if getattr(self, key) == 'auto'}
    return dataclasses.replace(self, **chosen)


def divisors(n):
  """All divisors of n, ascending."""
  return [d for d in range(1, n + 1) if n % d == 0]


def of_size(sizes, size):
  """A row of a table of sizes; ValueError for a size that it does not have."""
  if size not in sizes:
    raise ValueError(f'size={size} is not one of this preset\nfix: use one of {", ".join(sizes)}')
  return sizes[size]


def gpt2(size='small', **overrides):
  """GPT-2 exactly: sizes small (124M), medium (355M), large (774M), xl (1558M)."""
  layers, width, heads = of_size(GPT2_SIZES, size)
  base = ModelConfig(
    layers=layers,
    width=width,
    heads=heads,
    vocab=50257,
    context=1024,
    positions='learned',
    norm='layernorm',
    mlp='gelu',
    attention_bias=True,
    mlp_bias=True,
    tied_head=True,
  )
  return dataclasses.replace(base, **overrides)


def llama(size='small', **overrides):
  """Llama-like: RMSNorm, RoPE, SwiGLU, grouped heads, no biases, untied head."""
  layers, width, heads, kv_heads, hidden = of_size(LLAMA_SIZES, size)
  base = ModelConfig(
    layers=layers,
    width=width,
    heads=heads,
    kv_heads=kv_heads,
    hidden=hidden,
    vocab=32000,
    context=2048,
    init_projections='same',
    tied_head=False,
  )
  return dataclasses.replace(base, **overrides)


def modern(size='small', **overrides):
  """GPT-2's sizes with RMSNorm, RoPE, QK-norm, ReLU^2, zero-init projections, soft-cap 15."""
  layers, width, heads = of_size(GPT2_SIZES, size)
  base = ModelConfig(
    layers=layers,
    width=width,
    heads=heads,
    vocab=50257,
    context=1024,
    mlp='relu2',
    qk_norm=True,
    init_projections='zero',
    logit_softcap=15.0,
    tied_head=False,
  )
  return dataclasses.replace(base, **overrides)


GPT2_SIZES = {'small': (12, 768, 12), 'medium': (24, 1024, 16), 'large': (36, 1280, 20), 'xl': (48, 1600, 25)}
LLAMA_SIZES = {
  'small': (12, 768, 12, 4, 2048),
  '1b': (16, 2048, 32, 8, 8192),
  '7b': (32, 4096, 32, 32, 11008),
  '8b': (32, 4096, 32, 8, 14336),
}
PRESETS = {'gpt2': gpt2, 'llama': llama, 'modern': modern}

# No machine has room for more; a file that says so is wrong, or made to harm.
MOST, MOST_OF_OTHERS = {'layers': 10_000, 'context': 2**31 - 1}, 2**24
LIMITS = {  # the least value of each number
  **dict.fromkeys(('layers', 'width', 'heads', 'context', 'vocab_multiple'), 1),
  **dict.fromkeys(('patch_values', 'frame_values', 'mup_base'), 0),
  **dict.fromkeys(('kv_heads', 'head_dim', 'hidden', 'vocab', 'window', 'experts'), 0),
  **dict.fromkeys(('capacity_factor', 'attention_softcap', 'logit_softcap', 'init_std'), 0),
  **dict.fromkeys(('embed_scale', 'rope_original_context', 'rope_attention_factor'), 0),
  **dict.fromkeys(('rope_theta', 'rope_factor', 'norm_eps', 'rope_beta_slow'), 1e-12),
  'residual_scale': -1e6,
}
CHOICES = {
  'positions': tuple(POSITIONS),
  'rope_scaling': tuple(ROPE_SCALINGS),
  'norm': tuple(NORMS),
  'norm_position': ('pre', 'post', 'sandwich'),
  'mlp': tuple(ACTIVATIONS),
  'init_projections': tuple(INITS),
  'kernel': KERNEL_NAMES,
  'unroll': ('auto', 'on', 'off'),
  'remat': REMAT_NAMES,
  'dtype': ('auto', 'float32', 'bfloat16'),
  'param_dtype': ('float32', 'bfloat16'),
}
