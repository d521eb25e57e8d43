"""One id space for every modality: disjoint ranges of token ids, and names for special ids.

A `Vocabulary` is saved with every checkpoint and hashed into every token cache. Text comes first, so
that text ids start at 0 and a new modality never renumbers a text model; special ids come second, then
one range for each image and each audio codebook (the flat vocabulary of Chameleon, arXiv:2405.09818,
section 2).

Letters: V padded vocabulary.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import operator
from collections.abc import Iterable

import numpy as np

# Every text model gets these 16, so that later modalities and chat do not renumber it.
SPECIALS = (
  'pad',  # fills rows; never sampled, never trained on
  'bos',  # begin of sequence
  'eos',  # end of sequence, end of document
  'null',  # the empty condition of classifier-free guidance
  'boi',  # begin of image
  'eoi',  # end of image
  'boa',  # begin of audio
  'eoa',  # end of audio
  'sep',  # between condition and target
  'mask',  # a hidden token
  'eol',  # end of image row
  'bot',  # begin of turn
  'eot',  # end of turn
  'patch',  # placeholder of a continuous image patch
  'frame',  # placeholder of continuous audio frames
  'vector',  # placeholder of a vector of the data; older models have it as `reserved`
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Disjoint id ranges by kind, and the names of special ids.

  Raises ValueError when ranges or specials contradict each other.
  """

  ranges: tuple[tuple[str, int], ...]  # (kind, count) in id order; 'text' comes first
  specials: tuple[tuple[str, int], ...] = ()  # (name, id); an id may alias a text id
  multiple: int = 128  # the number of embedding columns is rounded up to a multiple of this

  def __post_init__(self):
    try:
      for field in ('ranges', 'specials'):
        pairs = tuple((str(name), operator.index(number)) for name, number in getattr(self, field))
        object.__setattr__(self, field, pairs)
      object.__setattr__(self, 'multiple', operator.index(self.multiple))
    except (TypeError, ValueError) as error:
      raise ValueError(
        f'{self} is malformed: {error}\n'
        'fix: ranges and specials are tuples of (name, integer), multiple is an integer'
      ) from None
    self._check_ranges()
    self._check_specials()

  def _check_ranges(self):
    kinds = [kind for kind, _ in self.ranges]
    if not kinds or min(count for _, count in self.ranges) < 1:
      raise ValueError(
        f'vocabulary ranges={self.ranges} hold no ids\n'
        'fix: give at least one range, and leave out ranges of zero ids'
      )
    if len(set(kinds)) < len(kinds) or 'text' in kinds[1:]:
      raise ValueError(
        f'vocabulary ranges={self.ranges} repeat a kind or do not put text first\n'
        "fix: name each kind once, with 'text' as the first range"
      )
    if self.multiple < 1:
      raise ValueError(
        f'vocabulary multiple={self.multiple} is not positive\n'
        'fix: give 1 (no padding) or more; 128 suits every accelerator'
      )

  def _check_specials(self):
    names = [name for name, _ in self.specials]
    kinds = {kind for kind, _ in self.ranges}
    if len(set(names)) < len(names) or kinds & set(names):
      raise ValueError(
        f'vocabulary specials={names} repeat a name, or take the name of a range {sorted(kinds)}\n'
        'fix: give every special its own name'
      )
    for name, index in self.specials:
      if not 0 <= index < self.size or self.kind(index) not in ('text', 'special'):
        raise ValueError(
          f'special {name}={index} is neither a text id nor a special id of {self.ranges}\n'
          "fix: put it in the 'special' range, or alias a text id"
        )
    pads = dict(self.specials)
    if 'pad' in pads and list(pads.values()).count(pads['pad']) > 1:
      raise ValueError(
        f'special pad={pads["pad"]} is also another special: {self.specials}\n'
        'fix: give pad an id of its own, since padding is never sampled and never trained on'
      )

  @functools.cached_property
  def _starts(self):
    return [0, *itertools.accumulate(count for _, count in self.ranges)]

  @property
  def size(self) -> int:
    """The number of ids in use."""
    return self._starts[-1]

  @property
  def padded(self) -> int:
    """The number of ids in use rounded up to `multiple`: the columns V of the embedding."""
    return -(-self.size // self.multiple) * self.multiple

  @property
  def kinds(self) -> tuple[str, ...]:
    """The kinds in id order."""
    return tuple(kind for kind, _ in self.ranges)

  def kind(self, index: int) -> str:
    """Return the kind whose range holds this id; ValueError for an id that is not in use."""
    if not 0 <= index < self.size:
      padding = ', a padding column' if self.size <= index < self.padded else ''
      raise ValueError(
        f'id {index} is outside the vocabulary of {self.size} ids{padding}\n'
        f'fix: use ids 0 to {self.size - 1}; sample under the mask of Vocabulary.allowed'
      )
    return self.ranges[bisect.bisect_right(self._starts, index) - 1][0]

  def start(self, kind: str) -> int:
    """Return the first id of a kind."""
    return self._starts[self._position(kind)]

  def count(self, kind: str) -> int:
    """Return the number of ids of a kind."""
    return self.ranges[self._position(kind)][1]

  def special(self, name: str) -> int:
    """Return the id of a special token; ValueError if the vocabulary does not have it."""
    for known, index in self.specials:
      if known == name:
        return index
    raise ValueError(
      f'the vocabulary has no special {name!r}, only {[known for known, _ in self.specials]}\n'
      'fix: name one of these, or build the tokenizers with specials=SPECIALS'
    )

  def encode(self, kind: str, codes) -> np.ndarray:
    """Map codes 0 .. count(kind) - 1 to ids, int32 of the same shape; ValueError outside."""
    codes, count = _integers(codes), self.count(kind)
    wrong = codes[(codes < 0) | (codes >= count)]
    if wrong.size:
      raise ValueError(
        f'code {wrong[0]} is outside {kind!r}, which has {count} codes\n'
        f'fix: give codes 0 to {count - 1}, or a vocabulary with a larger {kind!r} range'
      )
    return (codes.astype(np.int64) + self.start(kind)).astype(np.int32)

  def decode(self, kind: str, ids) -> np.ndarray:
    """Map ids of one kind to codes, int32 of the same shape; ValueError for other ids."""
    ids, start = _integers(ids), self.start(kind)
    stop = start + self.count(kind)
    wrong = ids[(ids < start) | (ids >= stop)]
    if wrong.size:
      raise ValueError(
        f'id {wrong[0]} is {self.kind(int(wrong[0]))!r}, not {kind!r} (ids {start} to {stop - 1})\n'
        f'fix: select the {kind!r} ids first, or decode with the vocabulary that made them'
      )
    return (ids.astype(np.int64) - start).astype(np.int32)

  def allowed(self, kinds: Iterable[str]) -> np.ndarray:
    """Return the mask of ids that may be sampled, bool [V].

    `kinds` holds kinds and names of specials: ('text', 'eos') is text that may end. A special is
    allowed only by its name or by the kind 'special', even where it aliases a text id. Padding columns
    and pad are never allowed.
    """
    if isinstance(kinds, str):
      kinds = (kinds,)
    mask_V = np.zeros(self.padded, bool)
    specials = dict(self.specials)
    named = set()
    for kind in kinds:
      if kind in specials:
        named.add(kind)
        continue
      start = self.start(kind)
      mask_V[start : start + self.count(kind)] = True
      named |= set(specials) if kind == 'special' else set()
    mask_V[list(specials.values())] = False
    mask_V[[specials[name] for name in named - {'pad'}]] = True
    return mask_V

  def hash(self) -> str:
    """Return a hex digest of the content, equal in every process and release."""
    text = json.dumps(dataclasses.asdict(self), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  @classmethod
  def from_dict(cls, fields: dict) -> 'Vocabulary':
    """Return the vocabulary of a `dataclasses.asdict`; ValueError for missing or unknown fields."""
    known = {field.name for field in dataclasses.fields(cls)}
    if set(fields) != known:
      raise ValueError(
        f'a vocabulary has the fields {sorted(known)}, not {sorted(fields)}\n'
        'fix: read a vocabulary.json that this version wrote'
      )
    return cls(**fields)

  def _position(self, kind):
    if kind not in self.kinds:
      raise ValueError(
        f'the vocabulary has no kind {kind!r}, only {list(self.kinds)}\n'
        'fix: name one of these, or build the vocabulary with that modality'
      )
    return self.kinds.index(kind)


def _integers(values):
  array = np.asarray(values)
  if array.size and not np.issubdtype(array.dtype, np.integer):
    raise ValueError(
      f'token ids and codes are integers, not {array.dtype}\n'
      'fix: convert to an integer type before encoding or decoding'
    )
  return array if array.size else array.astype(np.int64)
