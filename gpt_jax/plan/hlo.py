"""What a compiled program does, read from its text: multiplications, memory traffic, collectives.

A compiler's own cost analysis counts a loop's body once and knows no fused kernel, and for absent
GPUs there is none. Here every instruction counts as often as it runs. Figures are of one device and
one call.

Source: the HLO text format (openxla.org/xla/operation_semantics).
"""

import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np

BYTES = {'pred': 1, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 'c64': 8}
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
SCATTER = 'all-reduce-scatter'  # a TPU's reduce-scatter: a fusion of an all-reduce and its slice
FLOATS = ('bf16', 'f16', 'f32')
NO_TRAFFIC = {  # moves nothing itself
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'while',
  'conditional',
  'call',
  'iota',
  'partition-id',
  'replica-id',
  'after-all',
  'opt-barrier',
  'copy-done',
  'async-start',
  'async-update',
  'async-done',
  'all-gather-done',
  'all-reduce-done',
  'collective-permute-done',
}
COPIES = {'copy', 'copy-start', 'transpose'}
MOVES = COPIES | {'parameter', 'bitcast', 'reshape'}  # all that a fusion may hold to be a copy
KERNELS = {  # name or target of a fused attention -> multiplications a score and head width
  'splash_mha_fwd': 4,
  'splash_mha_dkv': 10,
  'splash_mha_dq': 6,
  '__cudnn$fmhaSoftmaxBackward': 10,
  '__cudnn$fmhaSoftmax': 4,
}
LINE = re.compile(r'\s*(?:ROOT )?(%[\w.\-]+) = (.*)')
SHAPE = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')


class Collective(NamedTuple):
  """Collectives of one kind over one group of devices, of one device and call."""

  kind: str
  devices: int  # of a group
  axes: str  # of the mesh, that the group spans
  network: bool  # whether the group is joined by the slower network
  dtype: str  # of most of its bytes
  count: float  # calls
  bytes: float  # of the larger of its operand and result, all calls together


@dataclasses.dataclass
class Costs:
  """What one device does in one call."""

  flops: float = 0.0  # of matrix products and fused attention
  float32_flops: float = 0.0  # those among them with a float32 operand
  traffic: float = 0.0  # bytes to and from memory
  copies: float = 0.0  # bytes that are written only to lie elsewhere or in another order
  kernels: dict = dataclasses.field(default_factory=dict)  # custom call -> times that it runs
  collectives: list = dataclasses.field(default_factory=list)


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  shape: str
  op: str
  operands: tuple
  inside: str  # what stands in its parentheses
  rest: str  # attributes


def parse(text):
  """-> ({computation: [Instruction]}, name of the entry)."""
  computations, current, entry = {}, None, ''
  for line in text.splitlines():
    if line.endswith('{') and (line.startswith(('%', 'ENTRY'))):
      name = re.search(r'%[\w.\-]+', line)[0]
      current = computations.setdefault(name, [])
      entry = name if line.startswith('ENTRY') else entry
    elif current is not None and (found := LINE.match(line)):
      current.append(instruction(found[1], found[2]))
  return computations, entry


def closing(text):
  """Where the parenthesis that is open at the start of a text closes."""
  depth = 1
  for end, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return end
  return len(text)


def instruction(name, body):
  """One line, apart from its name -> Instruction."""
  end = closing(body[1:]) + 2 if body.startswith('(') else body.find(' ')  # a tuple's shape
  shape, (op, _, rest) = body[:end], body[end:].lstrip().partition('(')
  end = closing(rest)
  inside = rest[:end]
  operands = tuple(re.findall(r'%[\w.\-]+', inside))
  return Instruction(name, shape, op, operands, inside, rest[end + 1 :])


def sizes(shape, on_chip=False):
  """List of (dtype, dimensions, bytes) of a shape's arrays; without those in on-chip memory."""
  found = []
  for dtype, dims, layout in SHAPE.findall(shape):
    if 'S(' in layout and not on_chip:
      continue
    dims = tuple(map(int, filter(None, dims.split(','))))
    width = BYTES.get(dtype) or int(re.sub(r'\D', '', dtype[:3]) or 8) / 8
    found.append((dtype, dims, math.prod(dims) * width))
  return found


def total(shape, on_chip=False):
  """Bytes of a shape."""
  return sum(n for _, _, n in sizes(shape, on_chip))


def costs(text, mesh=None, far=None, causal=True):
  """Costs of a compiled program's text.

  mesh: {axis: size}, to name the axes of a group. far: (device, device) -> whether the slower
  network joins two places of the mesh. causal: half of the scores of an attention kernel count.
  """
  computations, entry = parse(text)
  shapes = {i.name: i.shape for lines in computations.values() for i in lines}
  made, groups, seen = Costs(), {}, set()

  def visit(name, times, fused=False):
    for i in computations.get(name, ()):
      multiplications(i, times)
      if i.op.removesuffix('-start') in COLLECTIVES:
        channel = re.search(r'channel_id=(\d+)', i.rest)
        key = channel[1] if channel else i.name  # an asynchronous one is told in several pieces
        if key not in seen:
          seen.add(key)
          kind, group = collective(i, mesh, far)
          if SCATTER in name:
            kind = ('reduce-scatter', *kind[1:])
          old = groups.get(kind, (0, 0.0))
          groups[kind] = old[0] + times, old[1] + times * group
      elif not fused:
        made.traffic += times * traffic(i, shapes, computations)
        made.copies += times * copied(i, shapes, computations)
      body = re.search(r'body=(%[\w.\-]+)', i.rest)
      if body:
        visit(body[1], times * trips(i, computations))
        continue
      inner = fused or i.op == 'fusion'
      for called in re.findall(r'(?:calls|to_apply)=(%[\w.\-]+)', i.rest):
        if i.op in ('fusion', 'call', 'async-start', 'custom-call'):
          visit(called, times, inner)
      if branches := re.search(r'(?:branch_computations=\{|true_computation=)([^}]*)', i.rest):
        for called in re.findall(r'%[\w.\-]+', branches[1])[:1]:
          visit(called, times, fused)

  def multiplications(i, times):
    flops = 0.0
    if i.op == 'dot':
      flops = dot_flops(i, shapes)
    elif i.op == 'convolution':
      flops = convolution_flops(i, shapes)
    elif i.op == 'custom-call':
      goal = re.search(r'custom_call_target="([^"]*)"', i.rest)
      goal = goal[1] if goal else ''
      flops, label = custom_flops(i, goal, shapes, causal)
      made.kernels[label] = made.kernels.get(label, 0) + times
    made.flops += times * flops
    operands = [sizes(shapes.get(name, ''), True) for name in i.operands[:2]]
    if i.op in ('dot', 'convolution') and any(o and o[0][0] == 'f32' for o in operands):
      made.float32_flops += times * flops

  visit(entry, 1)
  made.collectives = sorted(
    (Collective(*kind, count, size) for kind, (count, size) in groups.items()), key=lambda c: -c.bytes
  )
  return made


def trips(i, computations):
  """How often a while loop runs: as the compiler notes, or by the bound of its condition."""
  if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', i.rest):
    return int(known[1])
  condition = re.search(r'condition=(%[\w.\-]+)', i.rest)
  lines = computations.get(condition[1], ()) if condition else ()
  bounds = [int(line.inside) for line in lines if line.op == 'constant' and line.inside.isdigit()]
  return max(bounds, default=1)


def dot_flops(i, shapes):
  """Of a dot: two for each number of the result and of the contracted dimensions."""
  dims = sizes(shapes.get(i.operands[0], ''), True)[0][1]
  contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', i.rest)[1]
  inner = math.prod(dims[int(n)] for n in contracted.split(',') if n)
  return 2.0 * math.prod(sizes(i.shape, True)[0][1]) * inner


def convolution_flops(i, shapes):
  """Of a convolution, which is what TPUs make of dots: only products with no padding count."""
  left, kernel, out = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', i.rest).groups()
  lhs, rhs = (sizes(shapes.get(name, ''), True)[0][1] for name in i.operands[:2])
  result = sizes(i.shape, True)[0][1]
  window = dict(re.findall(r'(\w+)=([\dx_\-]+)', (re.search(r'window=\{([^}]*)\}', i.rest) or '  ')[1]))
  spatial = sorted(letter for letter in kernel if letter.isdigit())
  field = lambda name, default: window[name].split('x') if name in window else [default] * len(spatial)
  pairs = 1
  options = zip(
    spatial,
    field('size', '1'),
    field('stride', '1'),
    field('pad', '0_0'),
    field('lhs_dilate', '1'),
    field('rhs_dilate', '1'),
    strict=True,
  )
  for letter, size, stride, pad, spread, step in options:
    at = np.arange(result[out.index(letter)])[:, None] * int(stride) - int(pad.split('_')[0])
    at = at + np.arange(int(size))[None] * int(step)
    inside = (at >= 0) & (at < (lhs[left.index(letter)] - 1) * int(spread) + 1)
    pairs *= int((inside & (at % int(spread) == 0)).sum())
  groups = re.search(r'batch_group_count=(\d+)', i.rest)
  outer = math.prod(n for letter, n in zip(out, result, strict=True) if not letter.isdigit())
  return 2.0 * outer * pairs * rhs[kernel.index('i')] / (int(groups[1]) if groups else 1)


def custom_flops(i, goal, shapes, causal):
  """Of a library's matrix product or a fused attention -> (FLOPs, what to call it)."""
  for word, factor in KERNELS.items():
    if word in i.name or word in goal:
      arrays = [array for name in i.operands for array in sizes(shapes.get(name, ''), True)]
      queries = next(dims for dtype, dims, _ in arrays if len(dims) > 2 and dtype in FLOATS)
      if 'fmha' in word:  # B T H K
        B, T, H, K = queries
      else:  # H T K, vmapped over rows
        T, K, H, B = *queries[-2:], queries[-3], math.prod(queries[:-3])
      return factor * B * H * T * T * K * (0.5 if causal else 1), word
  if 'cublas' in goal and 'matmul' in goal or 'gemm' in goal:
    lhs = sizes(shapes.get(i.operands[0], ''), True)[0][1]
    inner = re.search(r'"lhs_contracting_dimensions":\["(\d+)"', i.rest)
    if inner:
      return 2.0 * math.prod(sizes(i.shape, True)[0][1]) * lhs[int(inner[1])], goal
  return 0.0, goal


def traffic(i, shapes, computations):
  """Bytes that an instruction reads from and writes to memory; slices count, not what they cut."""
  if i.op in NO_TRAFFIC:
    return 0.0
  if i.op in ('dynamic-slice', 'slice', 'gather'):
    return 2 * total(i.shape)
  if i.op in ('dynamic-update-slice', 'scatter'):
    return 2 * total(shapes.get(i.operands[-1 if i.op == 'scatter' else 1], ''))
  called = re.search(r'calls=(%[\w.\-]+)', i.rest) if i.op == 'fusion' else None
  if not called or called[1] not in computations:
    return total(i.shape) + sum(total(shapes.get(name, '')) for name in i.operands)
  return fusion_traffic(i, computations[called[1]])


def copied(i, shapes, computations):
  """Bytes that a copy or transpose writes, alone or as a fusion of nothing else.

  Both sides lie in the large memory: what comes to a chip's own or leaves it is moved to be used.
  """
  called = re.search(r'calls=(%[\w.\-]+)', i.rest) if i.op == 'fusion' else None
  ops = {line.op for line in computations.get(called[1], ())} if called else {i.op}
  if not i.operands or not ops & COPIES or not ops <= MOVES:
    return 0.0
  result = SHAPE.search(i.shape)  # an asynchronous copy has its operand beside it
  return min(total(result[0]), total(shapes.get(i.operands[0], ''))) if result else 0.0


def fusion_traffic(i, lines):
  """Of a fusion: of an operand that is only sliced, the slices; of one updated in place, those."""
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
    used = follow(line.name, users)
    if used and all(u.op in ('dynamic-slice', 'slice', 'gather') for u in used):
      moved += min(total(line.shape), sum(total(u.shape, True) for u in used))
    elif not (used and all(u.op == 'dynamic-update-slice' for u in used)):
      moved += total(line.shape)
  if updates:
    slices = sum(total(by_name[u.operands[1]].shape, True) for u in updates if u.operands[1] in by_name)
    whole = sum(total(u.shape, True) for u in updates)
    return moved + slices + max(total(i.shape) - whole, 0.0)
  return moved + total(i.shape)


def follow(name, users):
  """The instructions that use a value, looking through bitcasts."""
  found = []
  for user in users.get(name, ()):
    found += follow(user.name, users) if user.op == 'bitcast' else [user]
  return found


def collective(i, mesh, far):
  """-> (kind, devices of a group, axes, network, dtype), bytes of the larger side of one call."""
  kind = i.op.removesuffix('-start')
  arrays = sizes(i.shape, True)
  if i.op.endswith('-start') and kind in ('all-gather', 'collective-permute', 'all-to-all'):
    arrays = arrays[len(i.operands) : 2 * len(i.operands)]  # operands, results, and signals
  size = sum(n for _, _, n in arrays)
  group = first_group(i.rest, math.prod(mesh.values()) if mesh else 1)
  if kind == 'reduce-scatter':
    size *= len(group)
  dtype = max(arrays, key=lambda a: a[2])[0] if arrays else ''
  axes = ' x '.join(spanned(group, mesh)) if mesh else ''
  network = bool(far) and any(far(group[0], other) for other in group[1:])
  return (kind, len(group), axes, network, dtype), size


def first_group(rest, devices):
  """The first group of devices of a collective, by place in the mesh."""
  if pairs := re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', rest):
    return [int(pairs[1]), int(pairs[2])]
  if named := re.search(r'replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}', rest):
    return mesh_group(*named.groups())
  if plain := re.search(r'replica_groups=\{\{([\d,]+)\}', rest):
    return [int(n) for n in plain[1].split(',')]
  if iota := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest):
    numbers = lambda text: [int(n) for n in text.split(',')]
    ids = np.arange(math.prod(numbers(iota[2]))).reshape(numbers(iota[2]))
    ids = ids.transpose(numbers(iota[3])) if iota[3] else ids
    return ids.reshape(numbers(iota[1]))[0].tolist()
  return list(range(devices))


def mesh_group(axes, order, chosen):
  """The first group by a collective's own mesh: "'a'=8,'b'=2", '', "'a'" -> 0, 2, 4, ...

  order: which device stands where, such as 'device_ids=([2,4]T(1,0))'; '' = in order. A part of an
  axis is "'a':(2)4": 4 of its places, of which 2 are outside.
  """
  parts = dict.fromkeys(re.findall(r"'([^']+)'", chosen), (1, None))
  for name, outer, size in re.findall(r"'([^']+)':\((\d+)\)(\d+)", chosen):
    parts[name] = int(outer), int(size)
  shape, at = [], []
  for name, n in re.findall(r"'([^']+)'=(\d+)", axes):
    outer, size = parts.get(name, (1, 1))
    size = size or int(n)
    shape += [outer, size, int(n) // outer // size]
    at += [0, slice(None), 0]
  ids = np.arange(math.prod(shape))
  if placed := re.search(r'device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)', order):
    dims, transposed = ([int(n) for n in text.split(',')] for text in placed.groups())
    ids = ids.reshape(dims).transpose(transposed)
  return ids.reshape(shape)[tuple(at)].ravel().tolist()


def spanned(group, mesh):
  """The mesh axes along which the members of a group differ."""
  places = np.stack(np.unravel_index(group, tuple(mesh.values())), 1)
  return [axis for axis, n in zip(mesh, (places != places[:1]).any(0), strict=True) if n]
