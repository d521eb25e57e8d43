"""Layers of codecs on batches of sounds of different lengths.

A layer is a tuple that says which tensors it reads and what it does with them; `apply` runs a row of them.
What lies beyond the end of a sound never counts: every convolution pads each sound at its own end, so that a
batch gives what each sound gives alone, and one program serves all lengths up to that of its arrays.

Letters: B sounds, N samples or positions, C channels; of a convolution W its width, I inputs, O outputs;
D width of an LSTM.

Sources: Defossez et al. 2022 (EnCodec, appendix A); Kumar et al. 2023 (DAC, section 3.1: Snake).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NUMBERS = ('NWC', 'WIO', 'NWC')
NORM_EPS, PART = 1e-5, 256


class Conv(NamedTuple):
  """A convolution over time with a bias."""

  name: str
  inputs: int
  outputs: int
  width: int
  stride: int = 1
  dilation: int = 1
  padding: tuple = (0, 0)  # samples before and after
  mode: str = 'zero'  # a row of PADDINGS
  is_whole: bool = False  # whether more is padded after the end, until no sample is left over
  bias: bool = True
  norm: bool = False  # whether the outputs of a sound are normalized together

  @property
  def tensors(self):
    """The shapes of its tensors."""
    return {f'{self.name}.weight': (self.outputs, self.inputs, self.width)} | vectors_of(self)

  def length(self, n):
    """Return the length of its outputs for n inputs."""
    room = n + sum(self.padding) - self.reach
    return (-(-room // self.stride) if self.is_whole else room // self.stride) + 1

  @property
  def reach(self) -> int:
    """Samples from the first to the last that an output reads."""
    return (self.width - 1) * self.dilation + 1

  def __call__(self, params, x_BNI, lengths_B):
    """Return (outputs, their lengths) of inputs and their lengths."""
    out_B = self.length(lengths_B)
    size = (self.length(x_BNI.shape[1]) - 1) * self.stride + self.reach
    after_B = (out_B - 1) * self.stride + self.reach - self.padding[0] - lengths_B
    x_BNI = PADDINGS[self.mode](x_BNI, lengths_B, self.padding[0], after_B, size)
    w_WIO = params[f'{self.name}.weight'].transpose(2, 1, 0)
    y_BNO = jax.lax.conv_general_dilated(
      x_BNI, w_WIO, (self.stride,), 'VALID', rhs_dilation=(self.dilation,), dimension_numbers=NUMBERS
    )
    return finish(self, params, y_BNO, out_B), out_B


class Transposed(NamedTuple):
  """A transposed convolution over time."""

  name: str
  inputs: int
  outputs: int
  width: int
  stride: int
  cut: tuple = (0, 0)  # outputs that are cut off before and after
  groups: int = 1
  bias: bool = True
  norm: bool = False  # as of Conv; outputs that are cut off are normalized with the others

  @property
  def tensors(self):
    """The shapes of its tensors."""
    return {f'{self.name}.weight': (self.inputs, self.outputs // self.groups, self.width)} | vectors_of(self)

  def length(self, n):
    """Return the length of its outputs for n inputs."""
    return (n - 1) * self.stride + self.width - sum(self.cut)

  def __call__(self, params, x_BNI, lengths_B):
    """Return (outputs, their lengths) of inputs and their lengths."""
    groups, W = self.groups, self.width
    w = params[f'{self.name}.weight'].reshape(groups, self.inputs // groups, self.outputs // groups, W)
    w_WIO = w.transpose(3, 1, 0, 2).reshape(W, self.inputs // groups, self.outputs)[::-1]
    y_BNO = jax.lax.conv_general_dilated(
      masked(x_BNI, lengths_B),
      w_WIO,
      (1,),
      [(self.width - 1, self.width - 1)],
      lhs_dilation=(self.stride,),
      dimension_numbers=NUMBERS,
      feature_group_count=self.groups,
    )
    y_BNO = finish(self, params, y_BNO, (lengths_B - 1) * self.stride + self.width)
    return y_BNO[:, self.cut[0] : y_BNO.shape[1] - self.cut[1]], self.length(lengths_B)


def norm_name(layer):
  """Return the name of the norm of a convolution."""
  return layer.name.removesuffix('conv') + 'norm'


def vectors_of(layer):
  """Return the shapes of the bias and the norm of a convolution by their names."""
  shapes = {f'{layer.name}.bias': (layer.outputs,)} if layer.bias else {}
  return shapes | (
    {f'{norm_name(layer)}.{x}': (layer.outputs,) for x in ('weight', 'bias')} if layer.norm else {}
  )


def finish(layer, params, y_BNC, lengths_B):
  """Add the bias of a convolution, and normalize its outputs if it does."""
  y_BNC = y_BNC + params[f'{layer.name}.bias'][None, None] if layer.bias else y_BNC
  if not layer.norm:
    return y_BNC
  weight_C, bias_C = (params[f'{norm_name(layer)}.{x}'][None, None] for x in ('weight', 'bias'))
  count_B11 = (lengths_B * y_BNC.shape[-1]).astype(jnp.float32)[:, None, None]
  y_BNC = masked(y_BNC - total(masked(y_BNC, lengths_B)) / count_B11, lengths_B)
  return y_BNC * jax.lax.rsqrt(total(jnp.square(y_BNC)) / count_B11 + NORM_EPS) * weight_C + bias_C


def total(x_BNC):
  """Return the sums of sounds [B, 1, 1], of parts first: in one row, millions of numbers lose digits."""
  x_BN = x_BNC.sum(-1)
  x_BN = jnp.pad(x_BN, ((0, 0), (0, -x_BN.shape[1] % PART)))
  return x_BN.reshape(len(x_BN), -1, PART).sum(-1).sum(-1)[:, None, None]


class Residual(NamedTuple):
  """The sum of what a row of layers and another one give."""

  body: tuple
  shortcut: tuple = ()

  @property
  def tensors(self):
    """The shapes of the tensors of both."""
    return tensors_of((*self.body, *self.shortcut))

  def __call__(self, params, x_BNC, lengths_B):
    """Return (outputs, their lengths) of inputs and their lengths."""
    y_BNC, _ = apply(self.body, params, x_BNC, lengths_B)
    return apply(self.shortcut, params, x_BNC, lengths_B)[0] + y_BNC, lengths_B


class Pointwise(NamedTuple):
  """A function of each number: a row of FUNCTIONS."""

  function: str
  tensors = {}

  def __call__(self, params, x_BNC, lengths_B):
    """Return (outputs, their lengths) of inputs and their lengths."""
    return FUNCTIONS[self.function](x_BNC), lengths_B


class Snake(NamedTuple):
  """x + sin(a x)^2 / a, a by channel."""

  name: str
  channels: int

  @property
  def tensors(self):
    """The shape of its tensor."""
    return {f'{self.name}.alpha': (1, self.channels, 1)}

  def __call__(self, params, x_BNC, lengths_B):
    """Return (outputs, their lengths) of inputs and their lengths."""
    alpha_C = params[f'{self.name}.alpha'].reshape(1, 1, -1)
    return x_BNC + 1 / (alpha_C + 1e-9) * jnp.square(jnp.sin(alpha_C * x_BNC)), lengths_B


class Lstm(NamedTuple):
  """LSTM layers whose outputs are added to their inputs."""

  name: str
  width: int
  layers: int

  @property
  def tensors(self):
    """The shapes of its tensors."""
    shapes = {'weight_ih': (4 * self.width, self.width), 'weight_hh': (4 * self.width, self.width)}
    shapes |= {'bias_ih': (4 * self.width,), 'bias_hh': (4 * self.width,)}
    return {f'{self.name}.{n}_l{layer}': shape for layer in range(self.layers) for n, shape in shapes.items()}

  def __call__(self, params, x_BND, lengths_B):
    """Return (outputs, their lengths) of inputs and their lengths."""
    y_BND = x_BND
    for layer in range(self.layers):
      names = ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
      y_BND = lstm(y_BND, *(params[f'{self.name}.{name}_l{layer}'] for name in names))
    return y_BND + x_BND, lengths_B


def lstm(x_BND, w_in, w_state, b_in, b_state):
  """Run one LSTM; the gates of its matrices [4 D, D] are input, forget, cell, output."""

  def step(carry, gates):
    state_BD, cell_BD = carry
    enter, forget, new, leave = jnp.split(gates + state_BD @ w_state.T, 4, axis=-1)
    cell_BD = jax.nn.sigmoid(forget) * cell_BD + jax.nn.sigmoid(enter) * jnp.tanh(new)
    state_BD = jax.nn.sigmoid(leave) * jnp.tanh(cell_BD)
    return (state_BD, cell_BD), state_BD

  gates = (x_BND @ w_in.T + (b_in + b_state)[None, None]).swapaxes(0, 1)
  zeros_BD = jnp.zeros((x_BND.shape[0], x_BND.shape[2]), x_BND.dtype)
  return jax.lax.scan(step, (zeros_BD, zeros_BD), gates)[1].swapaxes(0, 1)


def apply(row, params, x_BNC, lengths_B):
  """Run layers in their order -> (outputs, their lengths)."""
  for layer in row:
    x_BNC, lengths_B = layer(params, x_BNC, lengths_B)
  return x_BNC, lengths_B


def tensors_of(row) -> dict[str, tuple]:
  """Return the shapes of the tensors of layers by their names."""
  return {name: shape for layer in row for name, shape in layer.tensors.items()}


def masked(x_BNC, lengths_B):
  """Return zeros beyond the ends."""
  return jnp.where(jnp.arange(x_BNC.shape[1])[None, :, None] < lengths_B[:, None, None], x_BNC, 0)


# ------------------------------------------------------------------------------------------ padding


def pad_with_zeros(x_BNC, lengths_B, before, after_B, size):
  """Return [B, size, C]: `before` zeros, the sound, zeros."""
  x_BNC = jnp.pad(
    masked(x_BNC, lengths_B), ((0, 0), (before, max(0, size - before - x_BNC.shape[1])), (0, 0))
  )
  return x_BNC[:, :size]


def pad_with_edges(x_BNC, lengths_B, before, after_B, size):
  """Return [B, size, C]: the first sample `before` times, the sound, its last sample."""
  place_1S = jnp.arange(size)[None] - before
  return _take(x_BNC, jnp.clip(place_1S, 0, lengths_B[:, None] - 1))


def pad_by_reflection(x_BNC, lengths_B, before, after_B, size):
  """Return [B, size, C]: mirrored at the first and the last sample, as torch does.

  EnCodec first appends zeros to a sound that is shorter than its padding.
  """
  mirror_B1 = jnp.maximum(lengths_B, jnp.maximum(before, after_B) + 1)[:, None] - 1
  place_1S = jnp.arange(size)[None] - before
  place_BS = mirror_B1 - jnp.abs(mirror_B1 - jnp.abs(place_1S))
  inside_BS1 = (place_BS < lengths_B[:, None])[..., None]
  return jnp.where(inside_BS1, _take(x_BNC, place_BS), 0)


def _take(x_BNC, place_BS):
  index_BS1 = jnp.clip(place_BS, 0, x_BNC.shape[1] - 1)[..., None]
  return jnp.take_along_axis(x_BNC, index_BS1, axis=1)


PADDINGS = {
  'zero': pad_with_zeros,
  'constant': pad_with_zeros,
  'replicate': pad_with_edges,
  'reflect': pad_by_reflection,
}
FUNCTIONS = {'elu': jax.nn.elu, 'tanh': jnp.tanh}
