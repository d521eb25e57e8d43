"""Digests of documents by their content: which documents, and which images and sounds, are equal."""

import hashlib

import numpy as np

from gpt_jax.data import clips, media_io, templates
from gpt_jax.data.templates import Piece


def digest(pieces: list[Piece]) -> int:
  """Return 64 bits of the content of a document; for one text, of its UTF-8 bytes.

  Of documents with media only the media count, so that sources with the same pictures have each
  picture on the same side of the split, whatever their templates. Sources that share some of their
  pictures, or pair them with sounds, need valid_keep or valid_path: a run warns of media that its
  token caches share.
  """
  media = [piece for piece in pieces if piece.kind in templates.MODALITY]
  if len(pieces) == 1 and pieces[0].kind == 'text':
    content = [pieces[0].value.encode()]
  else:
    content = [part for pair in sorted(map(of_piece, media or pieces)) for part in pair]
  return of_bytes(content)


def digest_whole(pieces: list[Piece]) -> int:
  """Return 64 bits of all pieces of a document in their order."""
  return of_bytes([part for piece in pieces for part in of_piece(piece)])


def of_bytes(parts: list[bytes]) -> int:
  """Return 64 bits of the concatenation of some bytes."""
  total = hashlib.blake2b(digest_size=8, key=b'0')
  for part in parts:
    total.update(part)
  return int.from_bytes(total.digest())


def of_piece(piece: Piece) -> tuple[bytes, bytes]:
  """Return a heading and the bytes of a piece; a missing file counts by its name."""
  value = piece.value
  if isinstance(value, clips.Clip):
    data = b''.join(part for file in value.files for part in of_piece(Piece(piece.kind, file)))
  elif isinstance(value, str) and piece.kind in templates.MODALITY:
    try:
      data = media_io.open_bytes(value)
    except (OSError, ValueError):  # reported where it is decoded
      data = value.encode()
  elif isinstance(value, (str, bytes)):
    data = value.encode() if isinstance(value, str) else value
  else:
    values = value.values if isinstance(value, templates.Samples) else value
    data = str((values.dtype.str, values.shape)).encode() + np.ascontiguousarray(values).tobytes()
  kind = templates.MODALITY.get(piece.kind, piece.kind)
  return f'{kind} {len(data)} '.encode(), data
