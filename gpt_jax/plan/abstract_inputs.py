"""What a run would read, without data: tokenizers of the right sizes and the shapes of its batches.

Image and audio tokenizers are those of the config without their content, so that ids, kinds of ids
and feature widths are the run's own. Of a text tokenizer only the number of ids matters.

Letters: B rows, T inputs of a row, M mel bands.
"""

import pathlib
from typing import NamedTuple

import jax
import numpy as np

from gpt_jax import data
from gpt_jax.data import row_fields
from gpt_jax.tokenizers import Tokenizers, audio, audio_codes, image

TEXT = {  # kind -> ids, and how that is known
  'bytes': lambda cfg: (256, 'bytes'),
  'gpt2': lambda cfg: (50257, "GPT-2's"),
  'bpe': lambda cfg: (cfg.vocab, 'tokenizer.vocab, which a small text may not fill'),
  'chars': lambda cfg: (256, 'at most, of characters'),
}
EXACT = ('bytes', 'gpt2')
NOT_HERE = 'audio.path={} is not here: taken to have the settings of the config'


class Text(NamedTuple):
  """What a vocabulary asks of a text tokenizer."""

  kind: str
  size: int
  specials: dict


def tokenizers(cfg):
  """The Tokenizers of a config.Config without data -> (them, notes on what they may differ in)."""
  pictures, (sounds, notes) = image_of(cfg.image), audio_of(cfg.audio)
  unknown = lambda cfg: (32000, f"a stand-in for {cfg.kind}'s")
  size, how = TEXT.get(cfg.tokenizer.kind, unknown)(cfg.tokenizer)
  own = {'eos': size - 1} if cfg.tokenizer.kind == 'gpt2' else {}
  made = Tokenizers.build(Text(cfg.tokenizer.kind, size, own), pictures, sounds)
  over = made.vocabulary.size - cfg.model.vocab
  if not cfg.model.vocab:
    counts = {name: sum(made.media[name].codebooks) for name in made.media}
    codes = ''.join(f'; {count:,} {name} codes' for name, count in counts.items())
    notes = [f'vocabulary of {made.vocabulary.size:,} ids: {how}{codes}', *notes]
  elif 0 < over < size and cfg.tokenizer.kind not in EXACT:  # the real one has fewer ids
    made = Tokenizers.build(Text(cfg.tokenizer.kind, size - over, own), pictures, sounds)
  return made, notes


def image_of(cfg):
  """The image tokenizer of an ImageConfig, all of its codes alike; None without images."""
  if not cfg.kind:
    return None
  if cfg.kind in image.LEARNED:
    return image.LearnedImageTokenizer(image.autoencoder_config(cfg), {})
  if cfg.kind == 'pixels' and not cfg.palette:
    return image.PixelTokenizer(cfg.shape, cfg.values)
  blank_KC = np.zeros((cfg.codes, cfg.patch**2 * cfg.channels), np.float32)
  return image.ClusterTokenizer(cfg.kind, cfg.shape, cfg.patch, blank_KC)


def audio_of(cfg):
  """The audio tokenizer of an AudioConfig, all of its codes alike; None without sound -> notes.

  One that is trained brings its own settings: it is read where it is there.
  """
  if not cfg.kind:
    return None, []
  if cfg.path and pathlib.Path(cfg.path).expanduser().exists():
    return audio.build(cfg), []
  statistics_2M = np.ones((2, cfg.mels), np.float32)
  if cfg.kind == 'fsq':
    made = audio_codes.LearnedAudioTokenizer(cfg, statistics_2M, audio.autoencoder_config(cfg), {})
  else:
    blank = np.zeros((cfg.books, cfg.codes, cfg.stack * cfg.mels), np.float32)
    made = audio_codes.FrameTokenizer(cfg, statistics_2M, blank)
  return made, [NOT_HERE.format(cfg.path)] if cfg.path else []


def batch(cfg, toks, length):
  """What a batch of a config.Config looks like: {name: ShapeDtypeStruct}, over all processes.

  The same names, shapes and dtypes as of data.Loader with these tokenizers and rows of T = length.
  """
  whole, look = cfg.data.packing == 'first_fit', row_fields.RowFields.of(cfg.data, toks)
  entries = {'token_ids_BT': np.int32, 'target_ids_BT': np.int32, 'loss_mask_BT': np.float32}
  if whole or cfg.data.mask_documents:
    entries |= {'segment_ids_BT': np.int32, 'positions_BT': np.int32}
  if whole and look.layout is not None:
    entries |= {'positions_BT3': np.int32} if look.layout.has_images else {}
    entries |= {'prefix_BT': np.bool_} if look.prefix else {}
    entries |= {row_fields.KEYS[kind]: np.float32 for kind, _ in look.features}
  if len(data.source_names(cfg.data, 'train')) > 1:
    entries['source_ids_B'] = np.int32
  sizes = {'B': cfg.train.batch_size, 'T': length, '3': 3}
  sizes |= {row_fields.KEYS[kind][-1]: width for kind, width in look.features}
  shape = lambda name: tuple(sizes[letter] for letter in name.rsplit('_', 1)[1])
  return {name: jax.ShapeDtypeStruct(shape(name), dtype) for name, dtype in entries.items()}
