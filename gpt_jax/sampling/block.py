"""Block lists: words and patterns that no sampled text contains, however a tokenizer splits them.

The patterns become an automaton over characters (patterns.py), UTF-8 makes it one over bytes, and the bytes
of each token lift it to token ids: which ids keep the text free of matches, with time enough to end so.
States share rows of allowed ids: a word has about as many states as letters.

Letters: S states, K classes of characters, Y = 256 bytes, V vocabulary, Q states after a first byte, G tokens
that begin with it, R tokens that still fit.
"""

import functools
import itertools
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from gpt_jax.sampling import patterns
from gpt_jax.sampling.patterns import DEAD, START, Pattern
from gpt_jax.tokenizers.block_table import BlockTable

MOST_BYTES = 2**30  # of the rows of allowed ids
MOST_LEVELS = 64  # tokens before the end of a row in which what is allowed may change
REGEX = re.compile('/(.+)/(i?)', re.DOTALL)


def read_patterns(block):
  """Return the Patterns of sample.block: words, /patterns/, /patterns/i, and files of them as @FILE."""
  found = []
  for entry in block:
    lines = [entry]
    if entry.startswith('@'):
      try:
        lines = Path(entry[1:]).expanduser().read_text(encoding='utf-8').splitlines()
      except (OSError, ValueError) as error:
        raise ValueError(
          f'sample.block={entry} cannot be read: {getattr(error, "strerror", "") or error}\n'
          'fix: name a text file with one word or /pattern/ a line'
        ) from None
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
      raise ValueError(f'sample.block={entry!r} has no word\nfix: give words, or leave it out')
    found += [_pattern(line) for line in lines]
  return tuple(dict.fromkeys(found))


def _pattern(line):
  """A word or phrase, whole and in any case, or what stands between slashes."""
  if regex := REGEX.fullmatch(line):
    return Pattern(regex[1], bool(regex[2]))
  words = r'\s+'.join(map(re.escape, line.split()))
  return Pattern(rf'(?<!\w){words}(?!\w)', True)


def search(block_patterns):
  """Return a function: does a text contain a match?"""
  compiled = [pattern.compile() for pattern in block_patterns]
  return lambda text: any(regex.search(text) for regex in compiled)


def check_stop(block_patterns, stop):
  """Raise ValueError for a stop string that would end a text within a word that is blocked whole."""
  inside = [string for string in stop if re.match(r'\w', string)]
  if inside and not automaton(block_patterns).ends_S[1:].all():
    raise ValueError(
      f'--stop={inside[0]!r} may end a text after the first letters of a word, which sample.block would then '
      'block as a whole\nfix: begin it with a space or a sign, or block /patterns/ without word boundaries'
    )


@functools.lru_cache(8)
def automaton(block_patterns):
  """Return the Automaton of a tuple of Patterns."""
  return patterns.compile_patterns(block_patterns)


def add_block(grammar, tokenizers, block):
  """Return a text Grammar whose texts match nothing of `block`, see `read_patterns`."""
  if not block:
    return grammar
  text_V, ends_V = grammar.table_NV[0], grammar.ends_V
  key = tokenizers.hash, read_patterns(block), text_V.tobytes(), ends_V.tobytes()
  if key not in _tables:
    if len(_tables) == 8:
      _tables.clear()
    _tables[key] = build_table(automaton(key[1]), _token_bytes(tokenizers, ends_V), text_V, ends_V)
  return grammar._replace(block=_tables[key])


_tables = {}  # the last few BlockTables


def _token_bytes(tokenizers, ends_V):
  """The bytes of each id; None for ids that are no text, or end it."""
  pieces, V = tokenizers.text.token_bytes(), len(ends_V)
  pieces = [*pieces[:V], *[None] * (V - len(pieces))]
  for index in (*(i for _, i in tokenizers.vocabulary.specials), *np.flatnonzero(ends_V)):
    pieces[index] = None
  return pieces


# --------------------------------------------------------------------------------- characters to bytes


def to_bytes(characters):
  """Return (next_SY, ends_S) of an Automaton over the bytes of UTF-8; other bytes lead to DEAD.

  Its first states are those of the automaton; then come those within a character, which states share where
  the rest of the character leads to the same.
  """
  codes_U, next_SK = characters.class_U, characters.next_SK
  leaves, inverse = np.unique(codes_U.reshape(-1, 64), axis=0, return_inverse=True)
  leaf_I = inverse.reshape(-1)  # of each 64 code points; -1: no character begins so
  leaf_I = np.where((codes_U.reshape(-1, 64) < 0).any(1), -1, leaf_I)
  pairs, inverse = np.unique(leaf_I.reshape(-1, 64), axis=0, return_inverse=True)
  pair_J = inverse.reshape(-1)
  leads = {}  # leading byte -> (level, children): level 0 has classes, others the nodes below
  for byte in range(0xC2, 0xE0):
    leads[byte] = (0, leaves[leaf_I[byte - 0xC0]])
  for byte in range(0xE0, 0xF0):
    row = pairs[pair_J[byte - 0xE0]].copy()
    row[: 32 if byte == 0xE0 else 0] = -1
    leads[byte] = (1, row)
  for byte in range(0xF0, 0xF5):
    row = np.full(64, -1)
    first = (byte - 0xF0) * 64
    part = pair_J[first : first + 64]
    row[: len(part)] = part
    row[: 16 if byte == 0xF0 else 0] = -1
    leads[byte] = (2, row)
  below = {0: lambda _: (None, None), 1: lambda n: (0, leaves[n]), 2: lambda n: (1, pairs[n])}

  @functools.cache
  def classes(level, content):
    """The classes of characters that a node leads to."""
    children = np.frombuffer(content, np.int64)
    if level == 0:
      return np.unique(children)
    nodes = [below[level](n) for n in np.unique(children) if n >= 0]
    return np.unique(np.concatenate([classes(kind, _content(row)) for kind, row in nodes]))

  numbers, rows = {}, []

  def node_state(level, content, next_K):
    """The number of the state within a character, after which next_K tells what follows."""
    key = level, content, next_K[classes(level, content)].tobytes()
    if key in numbers:
      return numbers[key]
    numbers[key] = len(next_SK) + len(rows)
    row_Y = np.full(256, DEAD, np.int32)
    rows.append(row_Y)
    children = np.frombuffer(content, np.int64)
    if level == 0:
      row_Y[0x80:0xC0] = next_K[children]
      return numbers[key]
    for child in np.unique(children[children >= 0]):
      kind, below_row = below[level](child)
      row_Y[0x80:0xC0][children == child] = node_state(kind, _content(below_row), next_K)
    return numbers[key]

  own_SY = np.full((len(next_SK), 256), DEAD, np.int32)
  own_SY[:, :128] = next_SK[:, codes_U[:128]]
  contents = {byte: (level, _content(row)) for byte, (level, row) in leads.items()}
  for state, next_K in enumerate(next_SK):
    for byte, (level, content) in contents.items():
      own_SY[state, byte] = node_state(level, content, next_K) if state else DEAD
  ends_S = np.concatenate([characters.ends_S, np.zeros(len(rows), bool)])
  return np.concatenate([own_SY, np.array(rows, np.int32).reshape(-1, 256)]), ends_S


def _content(row):
  return np.ascontiguousarray(row, np.int64).tobytes()


# ------------------------------------------------------------------------------------ bytes to tokens


class _Tokens:
  """Where each token leads from each state, by first bytes."""

  def __init__(self, next_SY, pieces, text_V):
    self.next_SY, self.groups = next_SY, []
    self.empty = [i for i, piece in enumerate(pieces) if piece == b'' and text_V[i]]
    by_byte = {}
    for index, piece in enumerate(pieces):
      if piece and text_V[index]:
        by_byte.setdefault(piece[0], []).append(index)
    for byte, ids in sorted(by_byte.items()):
      states_Q, from_S = np.unique(next_SY[:, byte], return_inverse=True)
      ids = sorted(ids, key=lambda i: -len(pieces[i]))
      lengths_G = np.array([len(pieces[i]) for i in ids])
      after_QG = np.repeat(states_Q[:, None], len(ids), 1)
      for place in range(1, lengths_G[0]):
        n = int((lengths_G > place).sum())
        bytes_n = np.array([pieces[i][place] for i in ids[:n]])
        after_QG[:, :n] = next_SY[after_QG[:, :n], bytes_n[None]]
      self.groups.append((np.array(ids), from_S.reshape(-1), after_QG))

  def any_leads_into(self, into_S):
    """Whether a token leads from each state into one of `into_S`, bool [S]."""
    found_S = into_S & bool(self.empty)
    for _, from_S, after_QG in self.groups:
      found_S = found_S | into_S[after_QG].any(1)[from_S]
    return found_S

  def rows(self, into_S, ends_S, other_V):
    """-> (row of each state int32 [S], packed rows): tokens into `into_S`; `other_V` where ends_S."""
    signatures, bits = [ends_S.astype(np.int32), into_S.astype(np.int32)], []
    for _, from_S, after_QG in self.groups:
      bits_NG, of_Q = np.unique(into_S[after_QG], axis=0, return_inverse=True)
      bits.append(bits_NG)
      signatures.append(of_Q.reshape(-1)[from_S])
    distinct, row_S = np.unique(np.stack(signatures, 1), axis=0, return_inverse=True)
    packed = np.zeros((len(distinct), -(-len(other_V) // 8)), np.uint8)
    for line, (ends, into, *parts) in zip(packed, distinct, strict=True):
      row_V = other_V & bool(ends)
      row_V[self.empty] = bool(into)
      for (ids, _, _), bits_NG, part in zip(self.groups, bits, parts, strict=True):
        row_V[ids] = bits_NG[part]
      line[:] = np.packbits(row_V, bitorder='little')
    return row_S.reshape(-1).astype(np.int32), packed


def build_table(characters, pieces, text_V, ends_V):
  """Return the BlockTable of an Automaton for tokens of these bytes (None: no text).

  text_V: ids that may be sampled in a text. ends_V: ids that end it. A token is allowed if its text has no
  match and can go on, or end without one, in the tokens that still fit: a word that is blocked as a whole may
  not stand at the end, nor half a character. Raises ValueError where nothing can be said.
  """
  next_SY, ends_S = to_bytes(characters)
  is_text_V = np.array([piece is not None for piece in pieces])
  tokens = _Tokens(next_SY, pieces, text_V & is_text_V)
  has_end = bool((ends_V & text_V & ~is_text_V).any())
  can_end = [ends_S]  # with so many more tokens, at most
  while len(can_end) < 2 or (can_end[-1] != can_end[-2]).any():
    can_end.append((ends_S & has_end) | tokens.any_leads_into(can_end[-1]))
    can_end[-1][DEAD] = False
    if len(can_end) > MOST_LEVELS or not tokens.any_leads_into(can_end[-1])[START]:
      raise ValueError(
        'sample.block leaves no text that this tokenizer can write\nfix: block fewer or longer patterns'
      )
  rows, row_RS, size = [], [], 0
  for into_S in can_end[:-1]:
    row_S, packed = tokens.rows(into_S, ends_S, ~is_text_V)
    row_RS.append(row_S + size)
    rows.append(packed)
    size += len(packed)
    if size * packed.shape[1] > MOST_BYTES:
      raise ValueError(
        f'sample.block needs more than {MOST_BYTES >> 30} GiB for a vocabulary of {len(pieces)} ids\n'
        'fix: give fewer words'
      )
  counts_V = np.array([-1 if piece is None else len(piece) for piece in pieces], np.int32)
  starts = itertools.accumulate((len(piece or b'') for piece in pieces[:-1]), initial=0)
  content = np.frombuffer(b''.join(piece or b'' for piece in pieces) or b'\0', np.uint8)
  return BlockTable(
    next_SY=jnp.asarray(next_SY),
    row_RS=jnp.asarray(np.stack(row_RS)),
    allowed_NW=jnp.asarray(np.concatenate(rows)),
    bytes_N=content,
    first_V=np.array(list(starts), np.int32),
    count_V=counts_V,
    class_U=characters.class_U,
    drop_SK=characters.drop_SK,
    calm_S=characters.calm_S,
  )
