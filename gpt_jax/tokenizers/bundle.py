"""The tokenizers of a model, bundled with the vocabulary whose id ranges they share."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from gpt_jax.model.continuous import KINDS
from gpt_jax.tokenizers import audio as audio_tokenizers
from gpt_jax.tokenizers import base, chat_template, readers, text
from gpt_jax.tokenizers import image as image_tokenizers
from gpt_jax.tokenizers.base import MODALITIES, MediaTokenizer, StreamDecoder, TextTokenizer
from gpt_jax.tokenizers.codebook_patterns import PATTERNS, tail_book
from gpt_jax.tokenizers.layout import Layout
from gpt_jax.tokenizers.processors import Places
from gpt_jax.tokenizers.vocabulary import SPECIALS, Vocabulary


@dataclasses.dataclass(frozen=True)
class Tokenizers:
  """The tokenizers of a model and their vocabulary.

  The text range starts at 0, so text ids are the text tokenizer's own ids. Each codebook of an image or
  audio tokenizer has a range of its own. Continuous inputs come from readers, or from these tokenizers.
  """

  vocabulary: Vocabulary
  text: TextTokenizer
  image: MediaTokenizer | None = None
  audio: MediaTokenizer | None = None
  readers: dict[str, Any] = dataclasses.field(default_factory=dict)  # a row of KINDS -> readers.Reader

  def __post_init__(self):
    grids = [tuple(x.grid) for x in (self.image, self.readers.get('patches')) if x is not None]
    if len(set(grids)) > 1:
      raise ValueError(
        f'images have {grids[0]} codes and {grids[1]} patches of encoder.image\n'
        'fix: leave image.kind out, or choose image.height, width and patch with the same grid'
      )
    if self.vocabulary.start('text') or self.vocabulary.count('text') != self.text.size:
      raise ValueError(
        f'the vocabulary has {self.vocabulary.count("text")} text ids, but the {self.text.kind} '
        f'tokenizer has {self.text.size}\n'
        'fix: use Tokenizers.build, or load both from one folder'
      )
    wanted = [pair for tokenizer in self.media.values() for pair in tokenizer.ranges]
    if sorted(wanted) != sorted(p for p in self.vocabulary.ranges if p[0] not in ('text', 'special')):
      raise ValueError(
        f'the vocabulary has the ranges {self.vocabulary.ranges}, but the image and audio '
        f'tokenizers have the codebooks {wanted}\n'
        'fix: use Tokenizers.build, or load all from one folder'
      )

  @classmethod
  def build(
    cls,
    tokenizer: TextTokenizer,
    image: MediaTokenizer | None = None,
    audio: MediaTokenizer | None = None,
    specials: tuple[str, ...] = SPECIALS,
    multiple: int = 128,
    readers: dict | None = None,
  ) -> 'Tokenizers':
    """Put text first, the specials after it, then image and audio codes.

    A special that the text tokenizer already has keeps its id. An imported model has no new specials,
    `specials=()`, until `extend` adds them.
    """
    own = dict(tokenizer.specials)
    new = [name for name in specials if name not in own]
    ids = {**own, **{name: tokenizer.size + i for i, name in enumerate(new)}}
    names = (*specials, *(name for name in own if name not in specials))
    ranges = (('text', tokenizer.size), ('special', len(new)))[: 2 if new else 1]
    codes = [pair for media in (image, audio) if media is not None for pair in media.ranges]
    vocabulary = Vocabulary((*ranges, *codes), tuple((n, ids[n]) for n in names), multiple)
    return cls(vocabulary, tokenizer, image, audio, readers or {})

  def extend(
    self,
    image: MediaTokenizer | None = None,
    audio: MediaTokenizer | None = None,
    readers: dict | None = None,
  ) -> 'Tokenizers':
    """Append the specials that are missing, then image and audio codes; ids in use keep their meaning.

    Missing specials take ids that the text tokenizer reserves, where these suffice: the embedding stays as
    it is, so that text alone needs no new rows.
    """
    old, size = self.vocabulary, self.vocabulary.size
    if 'vector' not in dict(old.specials):  # of before it was one
      rename = {'reserved': 'vector'}
      specials = tuple((rename.get(name, name), index) for name, index in old.specials)
      old = dataclasses.replace(old, specials=specials)
    new = [name for name in SPECIALS if name not in dict(old.specials)]
    free = [index for index in self.text.reserved if index not in dict(old.specials).values()]
    reused = dict(zip(new, free, strict=False)) if len(new) <= len(free) else {}
    new = [name for name in new if name not in reused]
    if new and 'special' in old.kinds:
      raise ValueError(
        f'the vocabulary has some special tokens and lacks {", ".join(new)}\n'
        'fix: start from a model whose vocabulary has all of them, or from an imported model'
      )
    codes = [pair for media in (image, audio) if media is not None for pair in media.ranges]
    ranges = (*old.ranges, *([('special', len(new))] if new else ()), *codes)
    specials = (*old.specials, *reused.items(), *((name, size + i) for i, name in enumerate(new)))
    vocabulary = Vocabulary(ranges, specials, old.multiple)
    readers = self.readers | (readers or {})
    return Tokenizers(vocabulary, self.text, image or self.image, audio or self.audio, readers)

  @property
  def media(self) -> dict[str, MediaTokenizer]:
    """The image and audio tokenizers of the model by modality."""
    return {name: getattr(self, name) for name in MODALITIES if getattr(self, name) is not None}

  def reader(self, kind: str):
    """Return what makes a kind of media or of continuous input, or None if nothing does."""
    modality = {'codes': 'audio'}.get(kind, KINDS[kind].modality if kind in KINDS else kind)
    reader = self.readers.get(self.kind_of(kind)) or self.media.get(modality)
    lacks = {
      'audio': lambda: not getattr(reader, 'sample_rate', 1),
      'frames': lambda: not hasattr(reader, 'feature_width'),
    }
    return None if reader is not None and kind in lacks and lacks[kind]() else reader

  def kind_of(self, kind: str) -> str:
    """Return the kind as which media are read: an imported model may read images only as patches."""
    own = {KINDS[name].modality: name for name in self.places}
    return kind if kind in self.media else own.get(kind, kind)

  @property
  def places(self) -> dict[str, Places]:
    """How media stand in the texts of an imported model of several modalities, by kind; {} for others."""
    places = {kind: getattr(reader, 'places', None) for kind, reader in self.readers.items()}
    return {kind: place for kind, place in places.items() if place is not None}

  def vector_kinds(self, kinds) -> list[str]:
    """Return those of some kinds that the model reads as vectors, and not as ids of its vocabulary."""
    return [kind for kind in KINDS if kind in kinds and not getattr(self.reader(kind), 'token_ids', ())]

  @property
  def media_marks(self) -> tuple[tuple[str, str], ...]:
    """Pairs (what stands for an item in the chat template of an imported model, character of MEDIA)."""
    own = {KINDS[kind].modality: place.mark for kind, place in self.places.items()}
    return tuple((mark, chat_template.MEDIA[modality]) for modality, mark in own.items())

  @property
  def mask(self) -> str:
    """The mask of prompts: of Places, causal for others."""
    return next((place.mask for place in self.places.values()), 'causal')

  @property
  def makes_patches(self) -> bool:
    """Whether images are made as continuous patches, and not as codes."""
    return self.image is not None and not self.image.codebooks

  @property
  def modalities(self) -> tuple[str, ...]:
    """The modalities of the model, text first, in the order of `modality_V`."""
    return ('text', *self.media)

  @functools.cached_property
  def layout(self) -> Layout:
    """The layout of documents of these ids."""
    return Layout.of(self)

  @property
  def start(self) -> str:
    """The special before a text that nothing precedes: bos if the tokenizer begins texts so, else eos."""
    begin = getattr(self.text, 'begin', list)()[:1]
    return 'bos' if begin and begin[0] == dict(self.vocabulary.specials).get('bos') else 'eos'

  def modality_V(self) -> np.ndarray:
    """Return the index in `modalities` of each id, int32 [V]; end markers belong to their modality."""
    vocabulary = self.vocabulary
    of_V = np.zeros(vocabulary.padded, np.int32)
    for number, (modality, tokenizer) in enumerate(self.media.items(), 1):
      for kind, count in tokenizer.ranges:
        of_V[vocabulary.start(kind) : vocabulary.start(kind) + count] = number
      for name in ENDS[modality]:
        of_V[vocabulary.special(name)] = number
    return of_V

  def groups(self) -> tuple[np.ndarray, np.ndarray]:
    """Return groups of ids that are valid in the same places: group of each id int32 [V], ids bool [N, V].

    Group 0 holds text and markers. Each codebook is a group; where the first codebook of a sound is
    valid, eoa is too, or the codebook with which the tail of its pattern begins. After the last code of an
    image only eoi is valid.
    """
    vocabulary = self.vocabulary
    group_V, rows = np.zeros(vocabulary.padded, np.int32), [None]

    def add(*kinds):
      members = vocabulary.allowed(kinds)
      group_V[members] = len(rows)
      rows.append(members)

    for modality, tokenizer in self.media.items():
      kinds = [kind for kind, _ in tokenizer.ranges]
      tail = tail_book(tokenizer.pattern, len(kinds)) if modality == 'audio' else -1
      for kind in kinds:
        choice = {'audio0': 'eoa'} if tail < 0 else {'audio0': kinds[tail], kinds[tail]: 'audio0'}
        add(kind, *([choice[kind]] if kind in choice else []))
      if not kinds:
        add('patch')
      for name in ['eoi'] * (modality == 'image') + ['eoa'] * (tail >= 0):
        add(name)
    rows[0] = (group_V == 0) & (np.arange(vocabulary.padded) < vocabulary.size)
    return group_V, np.stack(rows)

  def encode_codes(self, modality: str, codes_PQ) -> np.ndarray:
    """Map codes [P, Q] of a media tokenizer to ids int32 [P Q], in the order of its pattern."""
    tokenizer = self._tokenizer(modality)
    kinds = [kind for kind, _ in tokenizer.ranges]
    columns = [self.vocabulary.encode(kind, codes_PQ[:, q]) for q, kind in enumerate(kinds)]
    return np.stack(columns, 1)[tuple(PATTERNS[tokenizer.pattern](len(codes_PQ), len(kinds)).T)]

  def decode_codes(self, modality: str, ids) -> np.ndarray:
    """Invert `encode_codes`; ValueError for ids that are not whole positions."""
    kinds = [kind for kind, _ in self._tokenizer(modality).ranges]
    ids = np.asarray(ids)
    if ids.size % len(kinds):
      raise ValueError(
        f'{ids.size} {modality} ids are not a whole number of positions of {len(kinds)} codes\n'
        'fix: decode all ids between the start and the end marker'
      )
    cells = PATTERNS[self.media[modality].pattern](ids.size // len(kinds), len(kinds))
    ids_PQ = np.empty((ids.size // len(kinds), len(kinds)), ids.dtype)
    ids_PQ[tuple(cells.T)] = ids
    columns = [self.vocabulary.decode(kind, ids_PQ[:, q]) for q, kind in enumerate(kinds)]
    return np.stack(columns, 1)

  def _tokenizer(self, modality):
    if modality not in self.media:
      raise ValueError(
        f'this model has no {modality} tokens, only {", ".join(self.modalities)}\n'
        f'fix: train one with {modality}.kind set in its config'
      )
    return self.media[modality]

  def encode_text(self, string: str) -> list[int]:
    """Return the token ids of a text, without specials."""
    return self.text.encode(string)

  def decode_text(self, ids) -> str:
    """Return the text of ids [T] without specials; ValueError for ids of another modality."""
    ids = np.array(base.checked_ids(ids, self.vocabulary.size), np.int32)
    special = np.isin(ids, [index for _, index in self.vocabulary.specials])
    return self.text.decode(self.vocabulary.decode('text', ids[~special]))

  def stream_decoder(self) -> StreamDecoder:
    """Return a decoder of text during generation: push ids, get the completed text."""
    return StreamDecoder(self.decode_text)

  @functools.cached_property
  def hash(self) -> str:
    """A hex digest of everything that decides the meaning of ids."""
    media = [tokenizer.hash for tokenizer in self.media.values()]
    others = [[kind, reader.hash] for kind, reader in sorted(self.readers.items())]
    return base.digest(base.to_json([self.vocabulary.hash(), self.text.hash, *media, *others]))

  def save(self, folder) -> None:
    """Write vocabulary.json and the files of the tokenizers into a folder."""
    self.text.save(folder)
    for tokenizer in self.media.values():
      tokenizer.save(folder)
    if self.readers:
      readers.save(self.readers, folder)
    content = {**dataclasses.asdict(self.vocabulary), 'hash': self.vocabulary.hash()}
    base.write_file(pathlib.Path(folder) / 'vocabulary.json', base.to_json(content, indent=2))

  @classmethod
  def load(cls, folder, run=None) -> 'Tokenizers':
    """Read what `save` wrote; FileNotFoundError or ValueError if it was altered.

    run: the run folder, where the folder is not in it.
    """
    fix = 'name a folder that Tokenizers.save wrote, and restore it if a file was altered'
    path = pathlib.Path(folder).expanduser() / 'vocabulary.json'
    saved = base.read_json(path, fix)
    fields = dict(saved) if isinstance(saved, dict) else {}
    digest = fields.pop('hash', '')
    vocabulary = Vocabulary.from_dict(fields)
    if vocabulary.hash() != digest:
      raise ValueError(
        f'{path} was altered after it was saved: its hash is {vocabulary.hash()}, '
        f'saved was {digest!r}\nfix: {fix}'
      )
    has = {kind.rstrip('0123456789') for kind in vocabulary.kinds}
    has_image = 'image' in has or (path.parent / 'image.json').exists()  # continuous ones have no ids
    image = image_tokenizers.load(folder) if has_image else None
    audio = audio_tokenizers.load(folder) if 'audio' in has else None
    return cls(vocabulary, text.load(folder), image, audio, readers.load(folder, run))


ENDS = {'image': ('eoi', 'patch'), 'audio': ('eoa', 'frame')}
