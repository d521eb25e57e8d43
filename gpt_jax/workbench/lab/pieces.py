"""Token ids in words: the piece of text, the name of a special, or the code of a picture or a sound."""

import base64

from gpt_jax.data import media_io


def describe(tokenizers, ids):
  """Return [{id, kind, piece}] of ids; kind: text, special, image or audio."""
  specials = {index: name for name, index in reversed(tokenizers.vocabulary.specials)}
  known, rows = {}, []
  for index in map(int, ids):
    if index not in known:
      known[index] = _describe(tokenizers, specials, index)
    rows.append({'id': index, **known[index]})
  return rows


def _describe(tokenizers, specials, index):
  if index in specials:
    return {'kind': 'special', 'piece': specials[index]}
  if index >= tokenizers.vocabulary.size:
    return {'kind': 'special', 'piece': 'unused'}
  kind = tokenizers.vocabulary.kind(index)
  if kind == 'text':
    return {'kind': 'text', 'piece': tokenizers.decode_text([index])}
  code = index - tokenizers.vocabulary.start(kind)
  return {'kind': kind.rstrip('0123456789'), 'piece': f'{kind}:{code}'}


def png_uri(image):
  """Return a picture, uint8 [Y, X, A], as a data address, enlarged by a whole factor."""
  content = media_io.to_png(image, max(1, 192 // max(image.shape[:2])))
  return 'data:image/png;base64,' + base64.b64encode(content).decode()


def wav_uri(wave, rate):
  """Return a sound, float [N], as a data address."""
  return 'data:audio/wav;base64,' + base64.b64encode(media_io.to_wav(wave, rate)).decode()
