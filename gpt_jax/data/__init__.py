"""Records to batches: sources -> documents -> token cache -> rows -> Grain -> batches.

Importing this package is light: Grain, TFDS, Pillow and the like are imported where they are used.
"""

from gpt_jax.data.batches import ItemLoader, epoch_shuffle
from gpt_jax.data.cache import count_shared_media, token_cache
from gpt_jax.data.documents import (
  decode_media,
  encode_batch,
  examples,
  filter_readable,
  load_images,
  load_waveforms,
)
from gpt_jax.data.loader import Loader
from gpt_jax.data.mixture import DataConfig, documents, source_names
from gpt_jax.data.packing import eval_rows, eval_windows
from gpt_jax.data.row_fields import RowFields
from gpt_jax.data.sources import Source
from gpt_jax.data.splits import SPLITS
from gpt_jax.data.templates import Piece, signature

__all__ = [
  'SPLITS',
  'DataConfig',
  'ItemLoader',
  'RowFields',
  'Loader',
  'Piece',
  'Source',
  'decode_media',
  'documents',
  'encode_batch',
  'epoch_shuffle',
  'eval_rows',
  'eval_windows',
  'examples',
  'filter_readable',
  'load_images',
  'load_waveforms',
  'count_shared_media',
  'signature',
  'source_names',
  'token_cache',
]
