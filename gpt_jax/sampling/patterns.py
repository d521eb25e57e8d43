"""Patterns of blocked text as one deterministic automaton over characters.

The syntax is that of Python's `re`, without what needs memory: groups, alternatives, classes, repetitions and
word boundaries. The set of each single character is asked of `re` itself, case folding included.

Letters: S states, K classes of characters that no pattern tells apart.

Source: subset construction (Rabin and Scott 1959); a word boundary becomes a condition on the next character.
"""

import collections
import functools
import re
from typing import NamedTuple

import numpy as np

MOST_STATES = 30_000
MOST_NODES = 200_000  # of the patterns with their repetitions written out
CODEPOINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)
ANY, WORD, OTHER, NEVER = range(4)  # what the next character must be: in \w, not in \w
ACCEPT = 0  # node: a match ends here
DEAD = 0  # state: the text has a match
START = 1  # state: nothing precedes
REFUSED = (
  (r'\(\?<?=', 'a lookaround'),
  (r'\(\?<?!', 'a lookaround'),
  (r'\(\?\(', 'a conditional'),
  (r'\(\?P=|\\[1-9]', 'a backreference'),
  (r'\(\?P<', 'a named group'),
  (r'\(\?>|[*+?}]\+', 'a possessive match'),
  (r'\(\?', 'a flag inside'),
  (r'[$^]|\\[AZ]', 'an anchor of the text'),
)
GUARDS = {  # assertion: what the next character must be after one not in \w, and after one in \w
  r'\b': (WORD, OTHER),
  r'\B': (OTHER, WORD),
  r'(?<!\w)': (ANY, NEVER),
  r'(?!\w)': (OTHER, OTHER),
}
ATOM = re.compile(
  r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|0[0-7]{0,2}|.)|\[\^?\]?(?:\\.|[^\]\\])*\]|.',
  re.DOTALL,
)
REPEAT = re.compile(r'(?:(\*)|(\+)|(\?)|\{(\d+)\}|\{(\d*),(\d*)\})\??')


class Pattern(NamedTuple):
  """A regular expression."""

  source: str
  ignore_case: bool = False

  def compile(self):
    """Return what `re` makes of it."""
    return re.compile(self.source, re.IGNORECASE if self.ignore_case else 0)

  def problem(self, cause, fix='write it with groups, |, classes, repetitions and word boundaries alone'):
    """Return the ValueError of a pattern that cannot be blocked."""
    return ValueError(f'sample.block has the pattern {self.source!r:.200}, {cause}\nfix: {fix}')


class Automaton(NamedTuple):
  """States of a text, by its characters so far. DEAD has no way out."""

  class_U: np.ndarray  # int32; the class of each code point, -1 for surrogates
  next_SK: np.ndarray  # int32
  drop_SK: np.ndarray  # int32; the same where a match is forgotten, as in a prompt
  ends_S: np.ndarray  # bool; the text may end here
  calm_S: np.ndarray  # int32; the state without a match that the next character would complete

  def read(self, text):
    """Return the state after a text whose own matches do not count."""
    state = START
    for character in text:
      state = int(self.drop_SK[state, self.class_U[ord(character)]])
    return int(self.calm_S[state])


@functools.cache
def _all_characters():
  codes = np.delete(np.arange(CODEPOINTS, dtype='<u4'), np.array(SURROGATES))
  return codes.tobytes().decode('utf-32-le')


@functools.cache
def character_ranges(atom, ignore_case=False):
  """Return the characters that an atom of a regular expression matches, as (first, last + 1) in order."""
  runs = re.findall(f'(?:{atom})+', _all_characters(), re.IGNORECASE if ignore_case else 0)
  codes = np.frombuffer(''.join(runs).encode('utf-32-le'), '<u4').astype(np.int64)
  cuts = np.flatnonzero(np.diff(codes) != 1) + 1
  return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(codes, cuts) if len(run))


# ------------------------------------------------------------------------------------------ parsing


def parse(pattern):
  """Return the tree of a Pattern: nested (kind, ...) tuples; ValueError for what no bounded automaton has."""
  try:
    pattern.compile()
  except re.error as error:
    raise pattern.problem(f'which is not a regular expression: {error}', 'correct it') from None
  tree, place = _alternatives(pattern, 0)
  assert place == len(pattern.source)
  return tree


def _alternatives(pattern, place):
  """-> (tree, place after it)."""
  source, branches, parts = pattern.source, [], []
  while place < len(source) and source[place] != ')':
    if source[place] == '|':
      branches.append(('cat', parts))
      parts, place = [], place + 1
      continue
    part, place = _part(pattern, place)
    if repeat := REPEAT.match(source, place):
      part, place = ('repeat', part, *_bounds(repeat)), repeat.end()
    parts.append(part)
    if place and source[place : place + 1] == '+' and repeat:
      raise pattern.problem('which has a possessive match')
  branches.append(('cat', parts))
  return branches[0] if len(branches) == 1 else ('or', branches), place


def _part(pattern, place):
  """-> (tree, place after it) of one atom, group or assertion."""
  source = pattern.source
  for text, needs in GUARDS.items():
    if source.startswith(text, place):
      return ('guard', needs), place + len(text)
  if source.startswith('(?:', place) or (source[place] == '(' and source[place + 1] != '?'):
    tree, place = _alternatives(pattern, place + (3 if source[place + 1] == '?' else 1))
    return tree, place + 1
  for refused, name in REFUSED:
    if re.compile(refused).match(source, place):
      raise pattern.problem(f'which has {name}')
  atom = ATOM.match(source, place)
  text = re.escape(atom[0]) if atom[0] in '{}' else atom[0]
  return ('set', character_ranges(text, pattern.ignore_case)), atom.end()


def _bounds(repeat):
  """(least, most or None) of a match of REPEAT."""
  star, plus, maybe, exact, least, most = repeat.groups()
  if star or plus or maybe:
    return (1 if plus else 0), (1 if maybe else None)
  if exact is not None:
    return int(exact), int(exact)
  return int(least or 0), int(most) if most else None


# --------------------------------------------------------------------------------- nondeterministic


class _Nodes:
  """The nodes of all patterns: (ranges, next), a tuple of nexts, or (needs, next) of an assertion."""

  def __init__(self, patterns):
    self.kinds, self.values, self.nexts = ['accept'], [None], [()]
    trees = [(pattern, parse(pattern)) for pattern in patterns]
    self.closure = functools.cache(self._closure)
    self.starts = [self.build(pattern, tree, ACCEPT) for pattern, tree in trees]

  def add(self, pattern, kind, value=None, nexts=()):
    """Add a node and return its number."""
    if len(self.kinds) == MOST_NODES:
      raise pattern.problem(f'whose repetitions make more than {MOST_NODES} parts', 'repeat less')
    self.kinds.append(kind)
    self.values.append(value)
    self.nexts.append(tuple(nexts))
    return len(self.kinds) - 1

  def build(self, pattern, tree, after):
    """Add a tree that `after` follows -> its first node."""
    kind, *rest = tree
    if kind in ('set', 'guard'):
      return self.add(pattern, kind, rest[0], [after])
    if kind == 'cat':
      for part in reversed(rest[0]):
        after = self.build(pattern, part, after)
      return after
    if kind == 'or':
      return self.add(pattern, 'or', None, [self.build(pattern, branch, after) for branch in rest[0]])
    part, least, most = rest
    if most is None:
      loop = self.add(pattern, 'or')
      self.nexts[loop] = (self.build(pattern, part, loop), after)
      after = loop
    for _ in range((most or least) - least):
      after = self.add(pattern, 'or', None, [self.build(pattern, part, after), after])
    for _ in range(least):
      after = self.build(pattern, part, after)
    return after

  def _closure(self, start, after_word):
    """Return the items that a node stands for: (set node or ACCEPT, what the next character must be)."""
    items, seen, stack = set(), set(), [(start, ANY)]
    while stack:
      node, need = stack.pop()
      if (node, need) in seen or need == NEVER:
        continue
      seen.add((node, need))
      if self.kinds[node] == 'guard':
        more = self.values[node][after_word]
        need = more if need == ANY else need if more in (ANY, need) else NEVER
      if self.kinds[node] in ('set', 'accept'):
        items.add((node, need))
      else:
        stack += [(after, need) for after in self.nexts[node]]
    return frozenset(items)


def _classes(sets):
  """Return (class_U, {set: its classes}, is_word_K): the coarsest partition that every set respects."""
  edges = sorted({0, CODEPOINTS, SURROGATES[0], SURROGATES[-1] + 1, *(e for s in sets for r in s for e in r)})
  starts = np.array(edges[:-1])
  members = np.zeros((len(sets), len(starts)), bool)
  for member, ranges in zip(members, sets, strict=True):
    bounds = np.array(ranges).reshape(-1, 2)
    member[:] = np.searchsorted(bounds[:, 0], starts, 'right') > np.searchsorted(
      bounds[:, 1], starts, 'right'
    )
  distinct, class_N = np.unique(members, axis=1, return_inverse=True)
  class_U = np.repeat(class_N.reshape(-1), np.diff(edges)).astype(np.int32)
  class_U[SURROGATES[0] : SURROGATES[-1] + 1] = -1
  return class_U, {s: np.flatnonzero(row).tolist() for s, row in zip(sets, distinct, strict=True)}


def compile_patterns(patterns):
  """Return the Automaton of texts that no Pattern matches anywhere."""
  nodes, word = _Nodes(patterns), character_ranges(r'\w')
  class_U, classes = _classes(list({word: None, **dict.fromkeys(v for v in nodes.values if _is_set(v))}))
  K, words = int(class_U.max()) + 1, set(classes[word])
  is_word_K = [k in words for k in range(K)]
  every = {ANY: range(K), WORD: sorted(words), OTHER: [k for k in range(K) if k not in words]}

  def moves(items):
    """Items after each class of characters: {class: set}; ACCEPT in it: a match ended before this one."""
    after = collections.defaultdict(set)
    for node, need in items:
      if node == ACCEPT:
        for k in every[need]:
          after[k].add((ACCEPT, ANY))
        continue
      for k in classes[nodes.values[node]]:
        if need == ANY or is_word_K[k] == (need == WORD):
          after[k] |= nodes.closure(nodes.nexts[node][0], is_word_K[k])
    return after

  for pattern, start in zip(patterns, nodes.starts, strict=True):
    if any(node == ACCEPT for after_word in (False, True) for node, _ in nodes.closure(start, after_word)):
      raise pattern.problem('which matches without a character, so that it blocks every text', 'leave it out')
  begin = [moves(frozenset().union(*(nodes.closure(s, p) for s in nodes.starts))) for p in (False, True)]
  numbers = {None: DEAD, (frozenset(), False): START}
  queue, rows, drops = [*numbers], [[DEAD] * K], [[DEAD] * K]

  def number(items, after_word):
    key = items, after_word
    if key not in numbers:
      if len(numbers) == MOST_STATES:
        raise ValueError(
          f'sample.block needs more than {MOST_STATES} states\nfix: give fewer words, or patterns with '
          'shorter repetitions'
        )
      numbers[key] = len(numbers)
      queue.append(key)
    return numbers[key]

  calm, ends = [DEAD], [False]
  place = 1
  while place < len(queue):
    items, after_word = queue[place]
    place += 1
    own, first = moves(items), begin[after_word]
    row, drop = [], []
    for k in range(K):
      after = frozenset(own.get(k, ())) | frozenset(first.get(k, ()))
      kept = after - {(ACCEPT, ANY)}
      drop.append(number(kept, is_word_K[k]))
      row.append(DEAD if len(kept) < len(after) else drop[-1])
    rows.append(row)
    drops.append(drop)
    ends.append(not any(node == ACCEPT for node, _ in items))
    calm.append(number(frozenset(item for item in items if item[0] != ACCEPT), after_word))
  arrays = (np.array(x, np.int32) for x in (rows, drops))
  return Automaton(class_U, *arrays, np.array(ends), np.array(calm, np.int32))


def _is_set(value):
  return isinstance(value, tuple) and bool(value) and isinstance(value[0], tuple)
