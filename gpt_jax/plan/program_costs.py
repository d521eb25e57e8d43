"""Work of a compiled program: FLOPs, memory traffic and collectives, counted in its HLO text.

XLA's cost_analysis() counts a loop's body once, knows no fused attention kernel, and does not exist for
absent GPUs. Here every instruction counts as often as it runs. Figures are per device and call.
"""

import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np

from gpt_jax.plan.hlo import (
  NAME,
  SHAPE,
  arrays_of,
  bytes_of,
  first_group,
  fused_lines,
  parse,
  spanned_axes,
  trip_count,
)

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
SCATTER = 'all-reduce-scatter'  # a TPU's reduce-scatter: a fusion of an all-reduce and its slice
FLOATS = ('bf16', 'f16', 'f32')
NO_TRAFFIC = re.compile(  # instructions that move no bytes themselves
  r'parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|iota|partition-id|replica-id|'
  r'after-all|opt-barrier|async-start|async-update|(copy|async|all-gather|all-reduce|reduce-scatter|collective-permute)-done'
)
SLICES = ('dynamic-slice', 'slice', 'gather')
COPIES = {'copy', 'copy-start', 'transpose'}
MOVES = COPIES | {'parameter', 'bitcast', 'reshape'}  # a fusion of these alone is a copy
KERNELS = {  # name or target of a fused attention kernel -> FLOPs per score and head width
  'splash_mha_fwd': 4,
  'splash_mha_dkv': 10,
  'splash_mha_dq': 6,
  '__cudnn$fmhaSoftmaxBackward': 10,
  '__cudnn$fmhaSoftmax': 4,
}


class Collective(NamedTuple):
  """All calls of one kind of collective over one group of devices."""

  kind: str
  devices: int  # of a group
  axes: str  # mesh axes that the group spans
  network: bool  # whether the slower network joins the group
  dtype: str  # of most of its bytes
  count: float  # calls
  bytes: float  # of the larger of operand and result, over all calls


@dataclasses.dataclass
class ProgramCosts:
  """Work of one device in one call."""

  flops: float = 0.0  # of matrix products and fused attention
  float32_flops: float = 0.0  # those among them with a float32 operand
  traffic: float = 0.0  # bytes to and from memory
  copies: float = 0.0  # bytes written only to change their place or order
  kernels: dict = dataclasses.field(default_factory=dict)  # custom call -> number of runs
  collectives: list = dataclasses.field(default_factory=list)


def count_costs(text, mesh=None, crosses_network=None):
  """Count the ProgramCosts of a compiled program from its text.

  mesh: {axis: size}, to name the axes of a group. crosses_network: (device, device) -> whether the slower
  network joins two places of the mesh. Half of the scores of an attention kernel count: it is causal.
  """
  computations, entry = parse(text)
  instructions = {i.name: i for lines in computations.values() for i in lines}
  shapes = {name: i.shape for name, i in instructions.items()}
  result, groups, channels = ProgramCosts(), {}, set()

  def visit(name, times, fused=False):
    for i in computations.get(name, ()):
      count_products(i, times)
      if i.op.removesuffix('-start') in COLLECTIVES:
        channel = re.search(r'channel_id=(\d+)', i.rest)
        key = channel[1] if channel else i.name  # an asynchronous collective has several lines
        if key not in channels:
          channels.add(key)
          kind, size = collective(i, mesh, crosses_network)
          if SCATTER in name:
            kind = ('reduce-scatter', *kind[1:])
          count, total = groups.get(kind, (0, 0.0))
          groups[kind] = count + times, total + times * size
      elif not fused:
        result.traffic += times * traffic(i, shapes, computations)
        result.copies += times * copied_bytes(i, shapes, computations)
      if body := re.search(rf'body=({NAME})', i.rest):
        visit(body[1], times * trip_count(i, computations, instructions))
        continue
      for called in re.findall(rf'(?:calls|to_apply)=({NAME})', i.rest):
        if i.op in ('fusion', 'call', 'async-start', 'custom-call'):
          visit(called, times, fused or i.op == 'fusion')
      if branches := re.search(r'(?:branch_computations=\{|true_computation=)([^}]*)', i.rest):
        for called in re.findall(NAME, branches[1])[:1]:
          visit(called, times, fused)

  def count_products(i, times):
    flops = 0.0
    if i.op == 'dot':
      flops = dot_flops(i, shapes)
    elif i.op == 'convolution':
      flops = convolution_flops(i, shapes)
    elif i.op == 'custom-call':
      target = re.search(r'custom_call_target="([^"]*)"', i.rest)
      flops, label = custom_flops(i, target[1] if target else '', shapes)
      result.kernels[label] = result.kernels.get(label, 0) + times
    result.flops += times * flops
    operands = [arrays_of(shapes.get(name, ''), True) for name in i.operands[:2]]
    if i.op in ('dot', 'convolution') and any(o and o[0][0] == 'f32' for o in operands):
      result.float32_flops += times * flops

  visit(entry, 1)
  collectives = (Collective(*kind, count, size) for kind, (count, size) in groups.items())
  result.collectives = sorted(collectives, key=lambda c: -c.bytes)
  return result


def collective(i, mesh, crosses_network):
  """Return ((kind, devices of a group, axes, network, dtype), bytes of the larger side of one call)."""
  kind = i.op.removesuffix('-start')
  arrays = arrays_of(i.shape, True)
  if i.op.endswith('-start') and kind != 'all-reduce':  # (operands, results, signals); there just results
    arrays = arrays[len(i.operands) : 2 * len(i.operands)]
  size = sum(n for _, _, n in arrays)
  group = first_group(i.rest, math.prod(mesh.values()) if mesh else 1)
  if kind == 'reduce-scatter':
    size *= len(group)
  dtype = max(arrays, key=lambda a: a[2])[0] if arrays else ''
  axes = ' x '.join(spanned_axes(group, mesh)) if mesh else ''
  network = bool(crosses_network) and any(crosses_network(group[0], other) for other in group[1:])
  return (kind, len(group), axes, network, dtype), size


# ------------------------------------------------------------------------------------------- FLOPs


def dot_flops(i, shapes):
  """FLOPs of a dot: two per number of the result and of the contracted dimensions."""
  dims = arrays_of(shapes.get(i.operands[0], ''), True)[0][1]
  contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', i.rest)[1]
  inner = math.prod(dims[int(n)] for n in contracted.split(',') if n)
  return 2.0 * math.prod(arrays_of(i.shape, True)[0][1]) * inner


def convolution_flops(i, shapes):
  """FLOPs of a convolution, into which TPUs turn dots: products with padding do not count."""
  left, kernel, out = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', i.rest).groups()
  lhs, rhs = (arrays_of(shapes.get(name, ''), True)[0][1] for name in i.operands[:2])
  result = arrays_of(i.shape, True)[0][1]
  window = dict(re.findall(r'(\w+)=([\dx_\-]+)', (re.search(r'window=\{([^}]*)\}', i.rest) or '  ')[1]))
  spatial = sorted(letter for letter in kernel if letter.isdigit())
  defaults = {'size': '1', 'stride': '1', 'pad': '0_0', 'lhs_dilate': '1', 'rhs_dilate': '1'}
  fields = [
    window[name].split('x') if name in window else [default] * len(spatial)
    for name, default in defaults.items()
  ]
  pairs = 1
  for letter, size, stride, pad, lhs_dilate, rhs_dilate in zip(spatial, *fields, strict=True):
    at = np.arange(result[out.index(letter)])[:, None] * int(stride) - int(pad.split('_')[0])
    at = at + np.arange(int(size))[None] * int(rhs_dilate)
    inside = (at >= 0) & (at < (lhs[left.index(letter)] - 1) * int(lhs_dilate) + 1)
    pairs *= int((inside & (at % int(lhs_dilate) == 0)).sum())
  groups = re.search(r'batch_group_count=(\d+)', i.rest)
  outer = math.prod(n for letter, n in zip(out, result, strict=True) if not letter.isdigit())
  return 2.0 * outer * pairs * rhs[kernel.index('i')] / (int(groups[1]) if groups else 1)


def custom_flops(i, target, shapes):
  """(FLOPs, label) of a library's matrix product or a fused attention kernel."""
  for label, factor in KERNELS.items():
    if label in i.name or label in target:
      arrays = [array for name in i.operands for array in arrays_of(shapes.get(name, ''), True)]
      queries = next(dims for dtype, dims, _ in arrays if len(dims) > 2 and dtype in FLOATS)
      if 'fmha' in label:  # B T H K
        B, T, H, K = queries
      else:  # H T K, vmapped over rows
        T, K, H, B = *queries[-2:], queries[-3], math.prod(queries[:-3])
      return factor * B * H * T * T * K * 0.5, label
  if 'cublas' in target and 'matmul' in target or 'gemm' in target:
    lhs = arrays_of(shapes.get(i.operands[0], ''), True)[0][1]
    inner = re.search(r'"lhs_contracting_dimensions":\["(\d+)"', i.rest)
    if inner:
      return 2.0 * math.prod(arrays_of(i.shape, True)[0][1]) * lhs[int(inner[1])], target
  return 0.0, target


# ------------------------------------------------------------------------------------------- bytes


def traffic(i, shapes, computations):
  """Bytes that an instruction reads from and writes to memory; of a slice only its own bytes."""
  if NO_TRAFFIC.fullmatch(i.op):
    return 0.0
  if i.op in SLICES:
    return 2 * bytes_of(i.shape)
  if i.op in ('dynamic-update-slice', 'scatter'):
    return 2 * bytes_of(shapes.get(i.operands[-1 if i.op == 'scatter' else 1], ''))
  if lines := fused_lines(i, computations):
    return fusion_traffic(i, lines)
  return bytes_of(i.shape) + sum(bytes_of(shapes.get(name, '')) for name in i.operands)


def copied_bytes(i, shapes, computations):
  """Bytes that a copy or transpose writes, alone or as a fusion of nothing else.

  Both sides are in main memory: moving data into or out of on-chip memory is not a copy.
  """
  ops = {line.op for line in fused_lines(i, computations)} or {i.op}
  if not i.operands or not ops & COPIES or not ops <= MOVES:
    return 0.0
  result = SHAPE.search(i.shape)  # an asynchronous copy has its operand beside it
  return min(bytes_of(result[0]), bytes_of(shapes.get(i.operands[0], ''))) if result else 0.0


def fusion_traffic(i, lines):
  """Traffic of a fusion: of an operand that is only sliced or updated in place, the slices."""
  by_name = {line.name: line for line in lines}
  users = {}
  for line in lines:
    for name in line.operands:
      users.setdefault(name, []).append(line)
  updates = [line for line in lines if line.op == 'dynamic-update-slice']
  moved = 0.0
  for line in lines:
    if line.op != 'parameter':
      continue
    uses = users_of(line.name, users)
    if uses and all(u.op in SLICES for u in uses):
      moved += min(bytes_of(line.shape), sum(bytes_of(u.shape, True) for u in uses))
    elif not (uses and all(u.op == 'dynamic-update-slice' for u in uses)):
      moved += bytes_of(line.shape)
  if updates:
    slices = sum(bytes_of(by_name[u.operands[1]].shape, True) for u in updates if u.operands[1] in by_name)
    whole = sum(bytes_of(u.shape, True) for u in updates)
    return moved + slices + max(bytes_of(i.shape) - whole, 0.0)
  return moved + bytes_of(i.shape)


def users_of(name, users):
  """The instructions that use a value, through bitcasts."""
  result = []
  for user in users.get(name, ()):
    result += users_of(user.name, users) if user.op == 'bitcast' else [user]
  return result
