"""Grammar masks: which token ids are valid next, and at which position, for host and device.

An image is exactly its grid of codes and its end marker; a sound is whole positions in the order of its
pattern (codebook_patterns), and ends when the model samples the end marker or at the longest sound.
Nothing starts that the room of the row cannot hold, so whatever is sampled under the mask can be
decoded, at any temperature.

The grammar is a few small arrays and the state four numbers a row: both go through
`lax.while_loop`. `advance` and `position3` also take numpy arrays, so that prompts are read on the
host by the same rules.

Letters: B rows, P prompt length, V vocabulary, N situations (rows of the mask table), 3 the time,
row and column of a token (see tokenizers/layout.py).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.tokenizers import block_table
from gpt_jax.tokenizers.codebook_patterns import SoundTable, most_after_begin, sound_table, tail_book

TEXT, IMAGE, AUDIO = 0, 1, 2  # modes of a row
STAY = -1  # the token does not change the mode


class Grammar(NamedTuple):
  """Rules as arrays. Situations: text; each image codebook, the end of an image; then those of
  SoundTable.row_S: each audio codebook, a choice, the tail or the end, the end of a sound.
  """

  table_NV: np.ndarray  # bool; the ids allowed in each situation
  opens_V: np.ndarray  # int32; the mode after a token: TEXT, IMAGE, AUDIO or STAY
  counts_V: np.ndarray  # int32; codes that a token stands for
  needs_V: np.ndarray  # int32; tokens from this one until the row can be decoded
  in_grid_V: np.ndarray  # bool; image codes and patches, which have a row and column
  ends_V: np.ndarray  # bool; a row ends with any of these
  paced_V: np.ndarray  # bool; the end of a sound, whose probability guidance does not change
  image_books: np.int32 = np.int32(1)  # codebooks of images
  columns: np.int32 = np.int32(1)  # of an image
  image_codes: np.int32 = np.int32(1)  # in a whole image
  image_time: np.int32 = np.int32(1)  # time that an image takes
  book_V: np.ndarray | None = None  # int32; codebook of an audio code, else -1
  sound: SoundTable | None = None  # None: no sounds
  sep: np.int32 = np.int32(-1)  # ids; -1: the vocabulary has none
  null: np.int32 = np.int32(-1)
  patch: np.int32 = np.int32(-1)
  frame: np.int32 = np.int32(-1)
  vector: np.int32 = np.int32(-1)
  block: block_table.BlockTable | None = None  # texts that must not be sampled


class GrammarState(NamedTuple):
  """The state of each row before its next token."""

  mode_B: jax.Array  # int32; TEXT, IMAGE or AUDIO
  count_B: jax.Array  # int32; codes since the image began; state of the sound
  clock_B: jax.Array  # int32; time of the next token; within an image the time of its first code
  room_B: jax.Array  # int32; tokens that still fit into the row
  text_B: jax.Array | None = None  # int32; state of the text so far in Grammar.block


def build(vocabulary, layout, columns, to='text'):
  """Build the Grammar of sequences that end with a `to`.

  vocabulary, layout: of the tokenizers. columns: V of the model. to: row of END_MARKERS; `any` is text
  with images and sounds in it. Raises ValueError for a modality that the vocabulary has no codes of.
  """
  if to not in END_MARKERS:
    raise ValueError(f'to={to} is not a modality to make\nfix: use one of {", ".join(END_MARKERS)}')
  has = {'image': layout.image != (0, 0), 'audio': layout.audio_positions > 0}
  if not has.get(to, True):
    known = ', '.join(['text', *(name for name in has if has[name])])
    raise ValueError(f'to={to}: this model has no {to} tokens, only {known}\nfix: use --to=text')
  books = {name: _codebooks(vocabulary, name) if has[name] else [[]] for name in has}
  if layout.makes_patches:
    books['image'] = [[layout.patch]]
  starts = [START_MARKERS[name] for name in has if has[name] and to in (name, 'any')]
  # An imported model may have several: eos, eos2, eos3.
  ends = [name for name, _ in vocabulary.specials if name.rstrip('0123456789') in END_MARKERS[to]]
  words = ['text', *ends] if to in ('text', 'any') else []
  between = _sound_ends(layout, books['audio']) if has['audio'] else [[], [], []]
  rows = [np.flatnonzero(vocabulary.allowed([*words, *starts]))]
  rows += [*books['image'], [layout.eoi] if has['image'] else [], *books['audio'], *between]
  table_NV = np.zeros((len(rows), columns), bool)
  for allowed_V, ids in zip(table_NV, rows, strict=True):
    allowed_V[[i for i in ids if i < columns]] = True
  stop_ids = [vocabulary.special(name) for name in ends]
  named = {name: np.int32(getattr(layout, name)) for name in ('sep', 'null', *PLACES)}
  grammar = plain(table_NV[0], stop_ids)._replace(table_NV=table_NV, **named)
  if layout.has_images:
    grammar = _with_images(grammar, layout, books['image'])
  if has['audio']:
    grammar = _with_audio(grammar, layout, books['audio'])
  if to == 'image' and has['audio']:  # a sound that a prompt began leaves room for the image
    grammar.needs_V[list(books['audio'][0])] += grammar.needs_V[layout.boi]
  return grammar


def plain(allowed_V, stop_ids=()):
  """The Grammar of text alone: any of these ids (bool [V]), ended by one of `stop_ids`."""
  V = len(allowed_V)
  ends_V = np.zeros(V, bool)
  ends_V[list(stop_ids)] = True
  return Grammar(
    table_NV=np.concatenate([np.asarray(allowed_V, bool)[None], np.zeros((6, V), bool)]),
    opens_V=np.full(V, STAY, np.int32),
    counts_V=np.zeros(V, np.int32),
    needs_V=np.ones(V, np.int32),
    in_grid_V=np.zeros(V, bool),
    ends_V=ends_V,
    paced_V=np.zeros(V, bool),
  )


def _codebooks(vocabulary, modality):
  """The ids of each codebook."""
  kinds = [kind for kind in vocabulary.kinds if kind.rstrip('0123456789') == modality]
  return [range(vocabulary.start(k), vocabulary.start(k) + vocabulary.count(k)) for k in kinds]


def _with_images(grammar, layout, books):
  """Add the rules of image tokens."""
  rows, columns = layout.grid
  codes = rows * columns * len(books)
  grammar.opens_V[[layout.boi, layout.eoi]] = IMAGE, TEXT
  grammar.needs_V[layout.boi] = codes + 2
  for book in books:
    grammar.counts_V[list(book)] = 1
    grammar.in_grid_V[list(book)] = True
  if layout.patch >= 0:  # one in the place of all codes of a position; or there are no codes
    grammar.counts_V[layout.patch] = len(books)
    grammar.in_grid_V[layout.patch] = True
  return grammar._replace(
    image_books=np.int32(len(books)),
    columns=np.int32(columns),
    image_codes=np.int32(codes),
    image_time=np.int32(max(rows, columns)),
  )


def _with_audio(grammar, layout, books):
  """Add the rules of audio tokens."""
  grammar.opens_V[[layout.boa, layout.eoa]] = AUDIO, TEXT
  most = most_after_begin(layout.pattern, len(books))
  grammar.needs_V[layout.boa] = most + 2
  grammar.needs_V[list(books[0])] = most + 1
  grammar.paced_V[layout.eoa] = True
  book_V = np.full_like(grammar.opens_V, -1)
  for number, book in enumerate(books):
    grammar.counts_V[list(book)] = 1
    book_V[list(book)] = number
  if layout.frame >= 0:
    grammar.counts_V[layout.frame] = len(books)
  table = sound_table(layout.pattern, layout.audio_positions, len(books))
  return grammar._replace(book_V=book_V, sound=table)


def _sound_ends(layout, books):
  """The ids at a choice, of the tail or the end, and of the end of a sound; see SoundTable.row_S."""
  tail = tail_book(layout.pattern, len(books))
  ends = [layout.eoa] if tail < 0 else [*books[tail]]
  return [[*books[0], *ends], ends, [layout.eoa]]


# ------------------------------------------------------------------------------ on host and device


def allowed(grammar, state):
  """Return the ids allowed next, bool [B, V]; none where the row has no room."""
  books, count_B = grammar.image_books, state.count_B
  in_image_B = 1 + jnp.where(count_B < grammar.image_codes, count_B % books, books)
  row_B = jnp.where(state.mode_B == IMAGE, in_image_B, 0)
  if grammar.sound is not None:
    in_audio_B = 2 + grammar.image_books + _of_sound(jnp, grammar.sound.row_S, count_B)
    row_B = jnp.where(state.mode_B == AUDIO, in_audio_B, row_B)
  table_NV, needs_V = jnp.asarray(grammar.table_NV), jnp.asarray(grammar.needs_V)
  allowed_BV = table_NV[row_B] & (needs_V[None] <= state.room_B[:, None])
  if grammar.block is None:
    return allowed_BV
  return allowed_BV & block_table.allowed(grammar.block, state.text_B, state.room_B, len(needs_V))


def advance(grammar, state, token_B):
  """Return the GrammarState after one more token."""
  xp = jnp if isinstance(token_B, jax.Array) else np
  opens_B, codes_B = grammar.opens_V[token_B], grammar.counts_V[token_B]
  in_grid_B = grammar.in_grid_V[token_B]
  after_B = _time_after_codes(xp, grammar, state, in_grid_B)
  count_B = state.count_B + codes_B
  if grammar.sound is not None:
    book_B, last = xp.asarray(grammar.book_V)[token_B], len(grammar.sound.row_S) - 1
    leaves_B = (book_B >= 0) & (book_B != _of_sound(xp, grammar.sound.book_S, state.count_B))
    exit_B = _of_sound(xp, grammar.sound.exit_S, state.count_B)
    in_sound_B = xp.where(leaves_B, exit_B, xp.minimum(count_B, last))
    count_B = xp.where(state.mode_B == AUDIO, in_sound_B, count_B)
  return GrammarState(
    mode_B=xp.where(opens_B == STAY, state.mode_B, opens_B),
    count_B=xp.where(opens_B == STAY, count_B, 0),
    clock_B=xp.where(in_grid_B, state.clock_B, after_B + 1),
    room_B=xp.maximum(state.room_B - 1, 0),
    text_B=None if state.text_B is None else block_table.advance(grammar.block, state.text_B, token_B),
  )


def position3(grammar, state, token_B):
  """Return (time, row, column) of the next token of each row, int32 [B, 3]."""
  xp = jnp if isinstance(token_B, jax.Array) else np
  in_grid_B = grammar.in_grid_V[token_B]
  k_B = state.count_B // grammar.image_books
  place_3B = xp.stack([xp.zeros_like(k_B), k_B // grammar.columns, k_B % grammar.columns])
  elsewhere_B = _time_after_codes(xp, grammar, state, in_grid_B)
  return xp.where(in_grid_B[None], state.clock_B[None] + place_3B, elsewhere_B[None]).T


def _of_sound(xp, array_S, count_B):
  """Look up states of sounds; rows outside of sounds give anything."""
  return xp.asarray(array_S)[xp.clip(count_B, 0, len(array_S) - 1)]


def _time_after_codes(xp, grammar, state, in_grid_B):
  """The time of a token outside of a grid: after the image that it may end."""
  leaves_B = (state.mode_B == IMAGE) & (state.count_B > 0) & ~in_grid_B
  return state.clock_B + xp.where(leaves_B, grammar.image_time, 0)


# ------------------------------------------------------------------------------------ on the host


def read_prompts(grammar, ids_BP, lengths_B, room_B):
  """Read prompts, padded on the right -> (GrammarState after each, positions_BP3); numpy."""
  B, P = ids_BP.shape
  zeros_B = np.zeros(B, np.int32)
  room_B = np.asarray(room_B, np.int32)
  text_B = None if grammar.block is None else block_table.read_prompts(grammar.block, ids_BP, lengths_B)
  if (grammar.opens_V[ids_BP] == STAY).all():  # text: no need to look at each token
    places_P = np.arange(P, dtype=np.int32)
    positions_BP3 = np.broadcast_to(places_P[None, :, None], (B, P, 3))
    state = GrammarState(zeros_B, zeros_B, np.asarray(lengths_B, np.int32), room_B, text_B)
    return state, positions_BP3
  positions_BP3 = np.zeros((B, P, 3), np.int32)
  state = GrammarState(zeros_B, zeros_B, zeros_B, zeros_B)
  for t in range(int(max(lengths_B))):
    positions_BP3[:, t] = position3(grammar, state, ids_BP[:, t])
    after = advance(grammar, state, ids_BP[:, t])
    keep = lambda new, old, there_B=t < lengths_B: np.where(there_B, new, old)
    state = jax.tree.map(keep, after, state)
  return state._replace(room_B=room_B, text_B=text_B), positions_BP3


def condition_mask(grammar, ids_BP, lengths_B):
  """Mask the tokens of each prompt up to and including its last sep, bool [B, P]; numpy."""
  places_BP = np.arange(ids_BP.shape[1])[None]
  is_sep_BP = (ids_BP == grammar.sep) & (places_BP < np.asarray(lengths_B)[:, None])
  last_B = np.where(is_sep_BP, places_BP, -1).max(1)
  return places_BP <= last_B[:, None]


def min_new_tokens(grammar, state):
  """Fewest tokens after which each row can be decoded, int32 [B]; numpy."""
  whole_B = _codes_to_come(grammar, state, 'least_S')
  image_B = np.maximum(grammar.image_codes - state.count_B, 0)
  return _remaining_tokens(grammar, state, image_B, whole_B, _required_media_tokens(grammar))


def max_new_tokens(grammar, state):
  """Most tokens of each row's image or sound, int32 [B]; 0 where a text decides the length. Numpy."""
  required = _required_media_tokens(grammar)
  if required and (grammar.table_NV[0] & (grammar.opens_V == AUDIO)).any():
    required = int(grammar.sound.most_S[0]) + 2
  image_B = np.maximum(grammar.image_codes - state.count_B, 0)
  audio_B = _codes_to_come(grammar, state, 'most_S')
  tokens_B = _remaining_tokens(grammar, state, image_B, audio_B, required)
  ends_as_text = not required and not (grammar.ends_V & (grammar.table_NV[1:].any(0))).any()
  return np.zeros_like(tokens_B) if ends_as_text else tokens_B


def _codes_to_come(grammar, state, field):
  """Fewest or most codes of each row's sound that are to come; anything outside of sounds."""
  return 0 if grammar.sound is None else _of_sound(np, getattr(grammar.sound, field), state.count_B)


def _required_media_tokens(grammar):
  """Tokens of the shortest image or sound that must follow outside of media; 0 if text may follow."""
  needed = grammar.needs_V[grammar.table_NV[0]].min(initial=1 << 30)
  return int(needed) if needed > 1 else 0


def _remaining_tokens(grammar, state, image_B, audio_B, required):
  """Tokens of rows whose current image or sound has so many codes to come."""
  image_end, audio_end = grammar.table_NV[1 + grammar.image_books], grammar.table_NV[-1]
  after = lambda end_V: 1 + (0 if (end_V & grammar.ends_V).any() else required)
  inside_B = np.where(state.mode_B == IMAGE, image_B + after(image_end), audio_B + after(audio_end))
  return np.where(state.mode_B == TEXT, required, inside_B).astype(np.int32)


PLACES = ('patch', 'frame', 'vector')  # of continuous inputs
START_MARKERS = {'image': 'boi', 'audio': 'boa'}
END_MARKERS = {'text': ('eos',), 'image': ('eoi',), 'audio': ('eoa',), 'any': ('eos',)}
