"""Records to batches: sources -> documents -> token cache -> rows -> Grain -> batches.

Importing this package is light: Grain, TFDS, Pillow and the like are imported where they are used.
"""

from gpt_jax.data.cache import TokenCache, shared_media, token_cache
from gpt_jax.data.documents import Encoded, decode, encode, encode_batch, examples, images, readable, waves
from gpt_jax.data.loader import Loader
from gpt_jax.data.mixture import DataConfig, documents, source_names
from gpt_jax.data.packing import PACKING, eval_rows, eval_windows
from gpt_jax.data.row_fields import Form
from gpt_jax.data.sources import SOURCES, Source
from gpt_jax.data.splits import SPLITS
from gpt_jax.data.templates import Piece, signature

__all__ = [
  'PACKING',
  'SOURCES',
  'SPLITS',
  'DataConfig',
  'Encoded',
  'Form',
  'Loader',
  'Piece',
  'Source',
  'TokenCache',
  'decode',
  'documents',
  'encode',
  'encode_batch',
  'eval_rows',
  'eval_windows',
  'examples',
  'images',
  'readable',
  'shared_media',
  'signature',
  'source_names',
  'token_cache',
  'waves',
]
