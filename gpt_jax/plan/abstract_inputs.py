"""Abstract inputs of a run, without data: tokenizers of the right sizes, shapes of batches.

Image and audio tokenizers are those of the config without their content, so that ids, kinds of ids and
feature widths are the run's own. Of a text tokenizer only the number of ids matters.

Letters: B rows, T inputs of a row, M mel bands.
"""

import math
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from gpt_jax import data
from gpt_jax.data import row_fields
from gpt_jax.jobs import private_training, run_tokenizers
from gpt_jax.model.continuous import KINDS
from gpt_jax.tokenizers import Tokenizers, audio, audio_codes, image, readers

TEXT = {  # kind -> number of ids, and its source
  'bytes': lambda cfg: (256, 'bytes'),
  'gpt2': lambda cfg: (50257, "GPT-2's"),
  'bpe': lambda cfg: (cfg.vocab, 'tokenizer.vocab, which a small text may not fill'),
  'chars': lambda cfg: (256, 'at most, of characters'),
}
EXACT = ('bytes', 'gpt2')
NOT_HERE = 'audio.path={} does not exist: assumed to have the settings of the config'
NO_CODEC = 'audio.path={} does not exist: assumed to have 1,024 codes and 75 positions a second, as EnCodec'


class Text(NamedTuple):
  """The fields of a text tokenizer that a vocabulary reads."""

  kind: str
  size: int
  specials: dict


def tokenizers(cfg):
  """Return (Tokenizers of a config.Config without data, notes on where they may differ)."""
  images, (sounds, notes) = image_of(cfg.image), audio_of(cfg.audio)
  unknown = lambda cfg: (32000, f"a stand-in for {cfg.kind}'s")
  size, source = TEXT.get(cfg.tokenizer.kind, unknown)(cfg.tokenizer)
  specials = {'eos': size - 1} if cfg.tokenizer.kind == 'gpt2' else {}
  made = run_tokenizers.open_readers(cfg)
  toks = Tokenizers.build(Text(cfg.tokenizer.kind, size, specials), images, sounds, readers=made)
  excess = toks.vocabulary.size - cfg.model.vocab
  if not cfg.model.vocab:
    counts = {name: sum(toks.media[name].codebooks) for name in toks.media}
    codes = ''.join(f'; {count:,} {name} codes' for name, count in counts.items())
    notes = [f'vocabulary of {toks.vocabulary.size:,} ids: {source}{codes}', *notes]
  elif 0 < excess < size and cfg.tokenizer.kind not in EXACT:  # the real one has fewer ids
    text = Text(cfg.tokenizer.kind, size - excess, specials)
    toks = Tokenizers.build(text, images, sounds, readers=made)
  return toks, notes


def media(cfg, names):
  """Return the blank (image, audio) tokenizers of a config, None for one that is not named."""
  image_tokenizer = image_of(cfg.image) if 'image' in names else None
  return image_tokenizer, audio_of(cfg.audio)[0] if 'audio' in names else None


def image_of(cfg):
  """The image tokenizer of an ImageConfig with blank codes; None without images."""
  if not cfg.kind:
    return None
  if cfg.kind in image.LEARNED:
    return image.LearnedImageTokenizer(image.autoencoder_config(cfg), {})
  if cfg.kind == 'pixels' and not cfg.palette:
    return image.PixelTokenizer(cfg.shape, cfg.values)
  if cfg.kind in ('codec', 'continuous'):
    return image.build(cfg, tuple)
  blank_KC = np.zeros((cfg.codes, cfg.patch**2 * cfg.channels), np.float32)
  return image.ClusterTokenizer(cfg.kind, cfg.shape, cfg.patch, blank_KC)


def audio_of(cfg):
  """Return (audio tokenizer of an AudioConfig with blank codes or None, notes).

  A trained tokenizer has its own settings: it is read if its folder exists.
  """
  if not cfg.kind:
    return None, []
  folder = readers.find_folder(cfg.path) if cfg.kind == 'codec' else pathlib.Path(cfg.path).expanduser()
  if cfg.kind == 'codes' or (cfg.path and folder.exists()):
    return audio.build(cfg), []
  if cfg.kind == 'codec':
    blank = audio.AudioConfig(
      kind='codes', books=cfg.books, pattern=cfg.pattern, longest=math.ceil(75 * cfg.seconds)
    )
    return audio.build(blank), [NO_CODEC.format(cfg.path)]
  statistics_2M = np.ones((2, cfg.mels), np.float32)
  if cfg.kind == 'fsq':
    made = audio_codes.LearnedAudioTokenizer(cfg, statistics_2M, audio.autoencoder_config(cfg), {})
  else:
    blank = np.zeros((cfg.books, cfg.codes, cfg.stack * cfg.mels), np.float32)
    made = audio_codes.FrameTokenizer(cfg, statistics_2M, blank)
  return made, [NOT_HERE.format(cfg.path)] if cfg.path else []


def batch(cfg, toks, length, alone=False):
  """The global batch of a config.Config as {name: ShapeDtypeStruct}.

  Names, shapes and dtypes are those of data.Loader with these tokenizers and rows of T = length.
  alone: those of subject.document_rows, with a document a row.
  """
  whole, fields = alone or cfg.data.has_whole_documents, row_fields.RowFields.of(cfg.data, toks)
  entries = {'token_ids_BT': np.int32, 'target_ids_BT': np.int32, 'loss_mask_BT': np.float32}
  if whole or cfg.data.mask_documents:
    entries |= {'segment_ids_BT': np.int32, 'positions_BT': np.int32}
  if whole and fields.layout is not None:
    entries |= {'positions_BT3': np.int32} if fields.layout.has_images or fields.layout.has_cells else {}
    if fields.mask != 'causal':
      entries['prefix_BT'] = np.int32 if fields.mask == 'items' else np.bool_
    entries |= {KINDS[kind].argument: np.float32 for kind, _ in fields.features}
  if len(data.source_names(cfg.data, 'train')) > 1 and not alone:
    entries['source_ids_B'] = np.int32
  sizes = {'B': cfg.train.batch_size, 'T': length, '2': 2, '3': 3}
  if cfg.privacy.epsilon:
    entries |= private_training.ENTRIES
    sizes['B'] = private_training.count_slots(cfg)
  sizes |= {KINDS[kind].letter: width for kind, width in fields.features}
  shape = lambda name: tuple(sizes[letter] for letter in name.rsplit('_', 1)[1])
  return {name: jax.ShapeDtypeStruct(shape(name), dtype) for name, dtype in entries.items()}
