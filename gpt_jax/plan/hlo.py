"""HLO text of a compiled program: instructions, shapes, and the device groups of collectives.

Source: the HLO text format (openxla.org/xla/operation_semantics).
"""

import math
import re
from typing import NamedTuple

import numpy as np

BYTES = {'pred': 1, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 'c64': 8}
NAME = r'%[\w.\-]+'
LINE = re.compile(rf'\s*(?:ROOT )?({NAME}) = (.*)')
SHAPE = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  shape: str
  op: str
  operands: tuple
  inside: str  # text in its parentheses
  rest: str  # attributes


def parse(text):
  """Return ({computation: [Instruction]}, name of the entry computation)."""
  computations, current, entry = {}, None, ''
  for line in text.splitlines():
    if line.endswith('{') and (line.startswith(('%', 'ENTRY'))):
      name = re.search(NAME, line)[0]
      current = computations.setdefault(name, [])
      entry = name if line.startswith('ENTRY') else entry
    elif current is not None and (match := LINE.match(line)):
      current.append(parse_instruction(match[1], match[2]))
  return computations, entry


def parse_instruction(name, body):
  """The Instruction of a line without its name."""
  end = closing(body[1:]) + 2 if body.startswith('(') else body.find(' ')  # a tuple's shape
  shape, (op, _, rest) = body[:end], body[end:].lstrip().partition('(')
  end = closing(rest)
  return Instruction(name, shape, op, tuple(re.findall(NAME, rest[:end])), rest[:end], rest[end + 1 :])


def closing(text):
  """Index of the parenthesis that closes the one open at the start of a text."""
  depth = 1
  for end, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return end
  return len(text)


def arrays_of(shape, on_chip=False):
  """List of (dtype, dimensions, bytes) of a shape's arrays; on_chip: also those in on-chip memory."""
  arrays = []
  for dtype, dims, layout in SHAPE.findall(shape):
    if 'S(' in layout and not on_chip:
      continue
    dims = tuple(map(int, filter(None, dims.split(','))))
    width = BYTES.get(dtype) or int(re.sub(r'\D', '', dtype[:3]) or 8) / 8
    arrays.append((dtype, dims, math.prod(dims) * width))
  return arrays


def bytes_of(shape, on_chip=False):
  """Bytes of a shape."""
  return sum(size for _, _, size in arrays_of(shape, on_chip))


def trip_count(loop, computations, instructions):
  """Iterations of a while loop: noted by the compiler, or counted from its counter's start, step and bound.

  instructions: {name: Instruction} of all computations. A step may be more than one: a TPU's ring product
  (a matmul whose weight shards travel by collective-permute) does two hops per iteration.
  """
  if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.rest):
    return int(known[1])
  called = {kind: re.search(rf'{kind}=({NAME})', loop.rest) for kind in ('condition', 'body')}
  condition, body = (computations.get(name and name[1], ()) for name in called.values())
  bounds = [int(line.inside) for line in condition if line.op == 'constant' and line.inside.isdigit()]
  bound = max(bounds, default=1)
  counters = {tuple_index(line) for line in condition if line.op == 'get-tuple-element'}
  if len(counters) != 1 or not body or body[-1].op != 'tuple':
    return bound
  (counter,) = counters
  initial = instructions.get(loop.operands[0])
  update = instructions.get(body[-1].operands[counter])
  if not initial or initial.op != 'tuple' or not update or update.op != 'add':
    return bound
  start = integer(initial.operands[counter], initial, instructions)
  addends = [instructions.get(name) for name in update.operands]
  steps = [integer(i.name, initial, instructions) for i in addends if i and tuple_index(i) != counter]
  return math.ceil((bound - (start or 0)) / steps[0]) if len(steps) == 1 and steps[0] else bound


def tuple_index(i):
  """The index of a get-tuple-element; None for any other instruction."""
  return int(re.search(r'index=(\d+)', i.rest)[1]) if i.op == 'get-tuple-element' else None


def integer(name, initial, instructions):
  """The integer constant behind a name, or None; initial: the tuple in which the loop carries it, perhaps."""
  i = instructions.get(name)
  if i is None:
    return None
  if i.op == 'get-tuple-element':
    return integer(initial.operands[tuple_index(i)], initial, instructions)
  if i.op in ('copy', 'bitcast', 'convert'):
    return integer(i.operands[0], initial, instructions)
  return int(i.inside) if i.op == 'constant' and i.inside.isdigit() else None


def fused_lines(i, computations):
  """The instructions inside a fusion; () for anything else."""
  called = re.search(rf'calls=({NAME})', i.rest) if i.op == 'fusion' else None
  return computations.get(called[1], ()) if called else ()


# ------------------------------------------------------------------------------- groups of devices


def first_group(rest, devices):
  """The first group of devices of a collective, by place in the mesh."""
  integers = lambda text: [int(n) for n in text.split(',')]
  if pairs := re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', rest):
    return [int(pairs[1]), int(pairs[2])]
  if named := re.search(r'replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}', rest):
    return mesh_group(*named.groups())
  if plain := re.search(r'replica_groups=\{\{([\d,]+)\}', rest):
    return integers(plain[1])
  if iota := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest):
    ids = np.arange(math.prod(integers(iota[2]))).reshape(integers(iota[2]))
    ids = ids.transpose(integers(iota[3])) if iota[3] else ids
    return ids.reshape(integers(iota[1]))[0].tolist()
  return list(range(devices))


def mesh_group(axes, order, members):
  """The first group in a collective's own mesh notation: "'a'=8,'b'=2", '', "'a'" -> 0, 2, 4, ...

  order: the arrangement of devices, such as 'device_ids=([2,4]T(1,0))'; '' = in order. A part of an
  axis is "'a':(2)4": 4 of its places, with 2 outside of them.
  """
  parts = dict.fromkeys(re.findall(r"'([^']+)'", members), (1, None))
  for name, outer, size in re.findall(r"'([^']+)':\((\d+)\)(\d+)", members):
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


def spanned_axes(group, mesh):
  """The mesh axes along which the members of a group differ."""
  places = np.stack(np.unravel_index(group, tuple(mesh.values())), 1)
  return [axis for axis, n in zip(mesh, (places != places[:1]).any(0), strict=True) if n]
