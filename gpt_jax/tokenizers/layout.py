"""The layout of documents: conditions, targets and positions, computed from ids alone.

A document is `condition sep target eos`, or text without sep. Its image is `boi codes eoi`, its
sound `boa codes eoa`; ids of a media item are position-major, p0q0 p0q1 .. p1q0 .., those of a sound
in the order of its pattern. Continuous inputs have `patch` or `frame` in place of each code; vectors are
`vector vector ..`.

Letters: B rows, W tokens of a row, Q codebooks. Segments: 1, 2, .. within a row, 0 = padding.
Sources: positions of image tokens as in Qwen2-VL (Wang et al. 2024, section 2.1): text (p, p, p), the
code in row i and column j of an image that predict_start at p (p, p + i, p + j), the next token at
p + max(rows, columns).
"""

import dataclasses

import numpy as np

NONE, NOTHING = -1, -2  # the id of a special that a vocabulary lacks; the token before a row


@dataclasses.dataclass(frozen=True)
class Layout:
  """The ids and sizes of a layout. Plain numbers, so it pickles."""

  sep: int = NONE
  null: int = NONE
  eos: int = NONE
  boi: int = NONE
  eoi: int = NONE
  boa: int = NONE
  eoa: int = NONE
  patch: int = NONE
  frame: int = NONE
  vector: int = NONE
  image: tuple[int, int] = (0, 0)  # first id of the image codebooks, id after their last; or of `patch` alone
  audio: tuple[int, int] = (0, 0)  # the same for audio
  grid: tuple[int, int] = (0, 0)  # rows and columns of an image
  image_books: int = 1  # Q of images
  audio_books: int = 1  # Q of audio
  audio_positions: int = 0  # the longest sound
  pattern: str = 'flat'  # of the codes of a sound: a row of codebook_patterns.PATTERNS
  has_cells: bool = False  # pictures have grids of their own: patches bring their row and column

  @classmethod
  def of(cls, tokenizers) -> 'Layout':
    """Return the layout of a bundle of tokenizers."""
    vocabulary = tokenizers.vocabulary
    named = dict(vocabulary.specials)
    ids = {name: named[name] for name in NAMES if name in named}
    image, audio = tokenizers.image, tokenizers.audio
    if 'patches' in tokenizers.readers and 'patches' not in tokenizers.places:
      ids['grid'] = tuple(tokenizers.readers['patches'].grid)
    ids['has_cells'] = getattr(tokenizers.readers.get('patches'), 'has_cells', False)
    if image is not None:
      ids['grid'] = tuple(image.grid)
      if image.codebooks:
        ids |= dict(image=_span(vocabulary, image), image_books=len(image.codebooks))
      else:
        ids['image'] = (ids['patch'], ids['patch'] + 1)
    if audio is not None:
      ids |= dict(
        audio=_span(vocabulary, audio),
        audio_books=len(audio.codebooks),
        audio_positions=audio.max_positions,
        pattern=audio.pattern,
      )
    return cls(**ids)

  @property
  def has_images(self) -> bool:
    """Whether the vocabulary has images, or places of their patches."""
    return self.grid != (0, 0)

  @property
  def makes_patches(self) -> bool:
    """Whether patches are made, and not only read."""
    return self.patch >= 0 and self.image == (self.patch, self.patch + 1)

  def condition_mask(self, ids_BW: np.ndarray, segments_BW: np.ndarray) -> np.ndarray:
    """Return True for the tokens up to and including the last sep of their document, bool [B, W]."""
    is_sep_BW = (ids_BW == self.sep) & (segments_BW > 0)
    # The number of seps at or after a token, up to the end of its document.
    after_BW = np.cumsum(is_sep_BW[:, ::-1], 1)[:, ::-1]
    last_BW = _last(segments_BW)
    beyond_BW = np.take_along_axis(after_BW - is_sep_BW, last_BW, 1)
    return (after_BW > beyond_BW) & (segments_BW > 0)

  def target_mask(
    self, ids_BW: np.ndarray, segments_BW: np.ndarray, predict_start: bool = False
  ) -> np.ndarray:
    """Return True for the targets that carry loss, bool [B, W].

    Conditions, continuous inputs and their end markers carry none, but for patches that are made; the start
    marker right after a condition only with `predict_start`, where the model chooses the kind of its output.
    """
    previous_BW = np.concatenate([np.full_like(ids_BW[:, :1], NOTHING), ids_BW[:, :-1]], 1)
    inputs = [i for i in (self.patch, self.frame, self.vector) if i != self.patch or not self.makes_patches]
    is_input = lambda x: np.isin(x, inputs)
    is_end_BW = is_input(previous_BW) & ((ids_BW == self.eoi) | (ids_BW == self.eoa))
    starts_BW = ((ids_BW == self.boi) | (ids_BW == self.boa)) & (previous_BW == self.sep)
    condition_BW = self.condition_mask(ids_BW, segments_BW) | (starts_BW & (not predict_start))
    return (segments_BW > 0) & ~condition_BW & ~is_input(ids_BW) & ~is_end_BW

  def drop_condition(self, ids_BW: np.ndarray, dropped_BW: np.ndarray) -> np.ndarray:
    """Return the ids with `null` in place of those that are dropped; sep stays."""
    return np.where(dropped_BW & (ids_BW != self.sep), np.int32(self.null), ids_BW)

  def is_code(self, ids: np.ndarray) -> np.ndarray:
    """Return True for image codes and patches."""
    first, stop = self.image
    return ((ids >= first) & (ids < stop)) | (ids == self.patch)

  def positions3(self, ids_BW: np.ndarray, segments_BW: np.ndarray, cells_BW2=None) -> np.ndarray:
    """Return (time, row, column) of each token within its document, int32 [B, W, 3]; 0 in padding.

    cells_BW2: rows and columns of patches, with `has_cells`.
    """
    code_BW = self.is_code(ids_BW)
    start_BW = _first(segments_BW)
    has_grid = cells_BW2 is None
    if has_grid:
      cells_BW2 = self._cells(ids_BW, code_BW, start_BW)
      size_BW = max(1, *self.grid)
    else:
      size_BW = cells_BW2.max(-1) + 1  # at the last patch, the only one where it is used
    goes_on_BW = code_BW if has_grid else code_BW & cells_BW2.any(-1)  # a picture may follow another one
    ends_BW = code_BW & ~np.concatenate([goes_on_BW[:, 1:], np.zeros_like(code_BW[:, :1])], 1)
    steps_BW = np.where(code_BW, np.where(ends_BW, size_BW, 0), 1)
    clock_BW = np.cumsum(steps_BW, 1) - steps_BW
    clock_BW = clock_BW - np.take_along_axis(clock_BW, start_BW, 1)
    place_BW3 = np.pad(cells_BW2, ((0, 0), (0, 0), (1, 0)))
    positions_BW3 = clock_BW[..., None] + np.where(code_BW[..., None], place_BW3, 0)
    return np.where(segments_BW[..., None] > 0, positions_BW3, 0).astype(np.int32)

  def _cells(self, ids_BW, code_BW, start_BW):
    """Return the row and column of each code in the grid of all images."""
    columns = max(1, self.grid[1])
    # The rank of a code within its image: codes since the last other token, then by codebook.
    index_BW = np.broadcast_to(np.arange(ids_BW.shape[1]), ids_BW.shape)
    outside_BW = np.maximum.accumulate(np.where(code_BW, -1, index_BW), 1)
    rank_BW = np.where(code_BW, index_BW - np.maximum(outside_BW, start_BW - 1) - 1, 0)
    books_BW = np.where(ids_BW == self.patch, 1, self.image_books)
    rank_BW = rank_BW // books_BW
    return np.stack([rank_BW // columns, rank_BW % columns], -1)


def items_of(ids_BW, layout):
  """Return 1, 2, .. for the places of the first, second .. picture or sound of a row, 0 elsewhere.

  layout: what has the ids of places: a Layout, or a Grammar.
  """
  is_place_BW = np.isin(ids_BW, [getattr(layout, name) for name in ('patch', 'frame')])
  begins_BW = is_place_BW & ~np.pad(is_place_BW, ((0, 0), (1, 0)))[:, :-1]
  return np.where(is_place_BW, np.cumsum(begins_BW, 1), 0).astype(np.int32)


def patch_positions(layout, ids_BT, segments_BT, batch) -> np.ndarray:
  """Return `positions3` where patches bring their row and column: the last two numbers of their vectors.

  batch: arrays of rows, of which patches_BTA is read.
  """
  cells_BT2 = batch['patches_BTA'][..., -2:].astype(np.int32)
  return np.ascontiguousarray(layout.positions3(ids_BT, segments_BT, cells_BT2))


def _span(vocabulary, tokenizer) -> tuple[int, int]:
  kinds = [kind for kind, _ in tokenizer.ranges]
  return vocabulary.start(kinds[0]), vocabulary.start(kinds[-1]) + vocabulary.count(kinds[-1])


def _first(segments_BW):
  """Return the index of the first token of each token's document."""
  index_BW = np.broadcast_to(np.arange(segments_BW.shape[1]), segments_BW.shape)
  new_BW = np.ones_like(segments_BW, bool)
  new_BW[:, 1:] = segments_BW[:, 1:] != segments_BW[:, :-1]
  return np.maximum.accumulate(np.where(new_BW, index_BW, 0), 1)


def _last(segments_BW):
  """Return the index of the last token of each token's document."""
  width = segments_BW.shape[1]
  return width - 1 - _first(segments_BW[:, ::-1])[:, ::-1]


NAMES = ('sep', 'null', 'eos', 'boi', 'eoi', 'boa', 'eoa', 'patch', 'frame', 'vector')
