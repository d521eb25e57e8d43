"""Frozen weights as integers of 8 or 4 bits with a scale for each block, multiplied out where they are used.

  W = scale x code      scale: the largest |W| of the block / 127 or 7

A block is up to 64 weights along the last input axis, for one output. Two codes of 4 bits share a byte.

Letters: g blocks; the others as in layers.py.
Sources: blockwise absmax (Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", section 2.1);
a quantized base under adapters (Dettmers et al. 2023, "QLoRA"), here with uniform codes and float32 scales.
"""

import jax
import jax.numpy as jnp
from flax import nnx

BLOCK = 64  # most weights that share a scale: 0.5 bit a weight for a float32 scale
TYPES = {'int8': 'int8', 'int4': 'uint8'}  # adapter.base_dtype -> type of an array of codes
LARGEST = {'int8': 127, 'uint8': 7}  # its codes are -LARGEST .. LARGEST


class Quantized(nnx.Module):
  """A frozen weight in the place of a parameter of the GPT; `layers.linear` calls `project`."""

  def __init__(self, codes, scales, axis, dtype):
    """codes, scales: Params; axis: see `quantize`; dtype: of the weight where it is not multiplied."""
    self.codes, self.scales, self.axis, self.dtype = codes, scales, axis, dtype

  def __getitem__(self, index):
    return dequantize(self.codes[...], self.scales[...], self.axis, self.dtype)[index]

  def project(self, subscripts, x, **options):
    """einsum(subscripts, x, W). The gradient computes W again: storing it would undo the quantization."""

    @jax.checkpoint
    def multiply(x, codes, scales):
      return jnp.einsum(subscripts, x, dequantize(codes, scales, self.axis, x.dtype), **options)

    return multiply(x, self.codes[...], self.scales[...])


def declare(p, axis, dtype, path):
  """Return the abstract Params (codes, scales) of a declared parameter."""
  shape = p.get_value().shape
  if dtype == 'int4' and shape[axis] % 2:
    raise ValueError(
      f'adapter.base_dtype=int4 packs two codes into a byte, and {path} has {shape[axis]} inputs\n'
      'fix: use adapter.base_dtype=int8'
    )
  sized = lambda size: shape[:axis] + (size,) + shape[len(shape) + axis + 1 :]
  codes = jax.ShapeDtypeStruct(sized(shape[axis] // (2 if dtype == 'int4' else 1)), TYPES[dtype])
  scales = jax.ShapeDtypeStruct(sized(shape[axis] // block_size(shape[axis])), jnp.float32)
  letters = p.axes[:axis] + 'g' + p.axes[len(p.axes) + axis + 1 :]
  return [nnx.Param(x, axes=a, std=0.0, mean=0.0) for x, a in ((codes, p.axes), (scales, letters))]


def block_size(size):
  """Return the largest divisor of an axis up to BLOCK."""
  return next(n for n in range(min(BLOCK, size), 0, -1) if size % n == 0)


def quantize(weight, axis, dtype):
  """Return (codes, scales) of a weight.

  axis: the last of the inputs, counted from the end. dtype: of codes, int8, or uint8 for two of 4 bits each.
  """
  blocks = split_blocks(
    weight.astype(jnp.float32), axis, weight.shape[axis] // block_size(weight.shape[axis])
  )
  scales = jnp.abs(blocks).max(axis, keepdims=True) / LARGEST[jnp.dtype(dtype).name]
  codes = jnp.round(blocks / jnp.where(scales == 0, 1, scales)).astype(jnp.int8).reshape(weight.shape)
  if jnp.dtype(dtype) == jnp.uint8:
    low, high = (jnp.take(codes, jnp.arange(n, codes.shape[axis], 2), axis) for n in (0, 1))
    codes = (low + 8).astype(jnp.uint8) | ((high + 8).astype(jnp.uint8) << 4)
  return codes, scales.squeeze(axis)


def dequantize(codes, scales, axis, dtype):
  """Return the weight of (codes, scales) in a floating type."""
  if codes.dtype == jnp.uint8:
    pair = jnp.stack([codes & 15, codes >> 4], codes.ndim + axis + 1).astype(jnp.int8) - 8
    codes = pair.reshape(unpacked_shape(codes, axis))
  blocks = split_blocks(codes.astype(jnp.float32), axis, scales.shape[axis])
  return (blocks * jnp.expand_dims(scales, axis)).reshape(codes.shape).astype(dtype)


def unpacked_shape(codes, axis):
  """Return the shape of the weight of an array of codes."""
  packed = 2 if codes.dtype == jnp.uint8 else 1
  return codes.shape[:axis] + (packed * codes.shape[axis],) + codes.shape[codes.ndim + axis + 1 :]


def split_blocks(x, axis, count):
  """Cut an axis into `count` blocks, whose weights are then on the axis of this number from the end."""
  return x.reshape(*x.shape[:axis], count, -1, *x.shape[x.ndim + axis + 1 :])
