"""Token ids in words: the piece of text, the name of a special, or the code of a picture or a sound."""

import base64

import numpy as np

from gpt_jax.data import media_io
from gpt_jax.model.continuous import KINDS


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


def media(tokenizers, ids, most):
  """Return the first pictures and sounds whose codes are all among these ids, in their order.

  Each is {kind, start, end: places of the markers around its codes, address: decoded, codes: [positions]
  [codebooks]}; a picture also has grid (rows, columns), a sound spectrogram: the address of a picture of its
  log-mel frames, low bands below. Codes without a codec have neither address nor spectrogram. Continuous
  inputs have no codes.
  """
  layout, media, start = tokenizers.layout, [], None
  places = [getattr(layout, kind.place) for kind in KINDS.values()]
  kinds = {layout.boi: ('image', layout.eoi), layout.boa: ('audio', layout.eoa)} if tokenizers.media else {}
  kinds.pop(-1, None)  # a modality that the vocabulary lacks
  for place, index in enumerate(map(int, ids)):
    if index in kinds:
      start, (kind, end) = place, kinds[index]
    elif start is not None and index == end:
      codes = np.asarray(ids[start + 1 : place])
      if len(media) < most and len(codes) and not np.isin(codes, places).any():
        where = {'kind': kind, 'start': start, 'end': place}
        media.append(where | DECODED[kind](getattr(tokenizers, kind), tokenizers.decode_codes(kind, codes)))
      start = None
  return media


def _picture(tokenizer, codes_PQ):
  image = tokenizer.decode(codes_PQ[None])[0]
  return {'address': png_uri(image), 'codes': codes_PQ.tolist(), 'grid': list(tokenizer.grid)}


def _sound(tokenizer, codes_PQ):
  if not tokenizer.sample_rate:  # no codec plays them
    return {'codes': codes_PQ.tolist()}
  address = wav_uri(tokenizer.decode([codes_PQ])[0], tokenizer.sample_rate)
  mel_JM = np.asarray(tokenizer.decode_mel([codes_PQ])[0])
  mel_MJ = mel_JM.T[::-1]
  shades = 255 * (mel_MJ - mel_MJ.min()) / max(float(np.ptp(mel_MJ)), 1e-6)
  picture = png_uri(shades.astype(np.uint8), scale=1)
  return {'address': address, 'codes': codes_PQ.tolist(), 'spectrogram': picture}


DECODED = {'image': _picture, 'audio': _sound}


def png_uri(image, scale=0):
  """Return a picture, uint8 [Y, X, A] or [Y, X], as a data address. scale: of its pixels; 0: to about 192."""
  content = media_io.to_png(image, scale or max(1, 192 // max(image.shape[:2])))
  return 'data:image/png;base64,' + base64.b64encode(content).decode()


def wav_uri(wave, rate):
  """Return a sound, float [N], as a data address."""
  return 'data:audio/wav;base64,' + base64.b64encode(media_io.to_wav(wave, rate)).decode()
