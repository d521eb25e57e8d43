"""Clips: frames as pictures in a row, from films, lists of files and arrays."""

import io
import json
import types

import numpy as np
import pytest
from PIL import Image

from gpt_jax import config, data
from gpt_jax.data import clips, content, media_io
from gpt_jax.data.documents import encode_batch
from gpt_jax.data.sources import Source, open_source
from gpt_jax.data.templates import Piece, fill, parse
from gpt_jax.jobs import run_tokenizers
from gpt_jax.sampling import prompts
from gpt_jax.tokenizers.layout import Layout
from tests import tiny_runs

LEVELS = (0, 50, 100, 150, 200, 250)


def frames(levels=LEVELS, size=(8, 8)):
  """Frames uint8 [Y, X, 3] of one gray level each."""
  return [np.full((*size, 3), level, np.uint8) for level in levels]


def film(kind='GIF', levels=LEVELS):
  """The bytes of a film of these gray levels."""
  first, *rest = map(Image.fromarray, frames(levels))
  file = io.BytesIO()
  first.save(file, kind, save_all=True, append_images=rest, **({'lossless': True} if kind == 'WEBP' else {}))
  return file.getvalue()


def levels_of(value, spec='video'):
  """The gray levels of the frames of a field's clip."""
  [piece] = fill(f'{{clip:{spec}}}', {'clip': value}, 'here')
  assert piece.kind == 'patches'
  return [int(frame.reshape(-1)[0]) for frame in clips.read(piece.value, 'here')]


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'WEBP', 'TIFF'])
def test_films(kind):
  assert levels_of(film(kind)) == list(LEVELS)
  assert levels_of({'bytes': film(kind), 'path': None}, 'video,every=2') == [0, 100, 200]
  assert levels_of(film(kind, LEVELS[:1])) == [0]


@pytest.mark.parametrize(
  ('spec', 'expected'),
  [
    ('video', list(LEVELS)),
    ('video,every=4', [0, 200]),
    ('video,frames=3', [0, 100, 250]),
    ('video,frames=1', [0]),
    ('video,frames=9', list(LEVELS)),
    ('video,every=2,frames=2', [0, 200]),
  ],
)
@pytest.mark.parametrize('form', ['array', 'gray', 'list', 'objects', 'films'])
def test_chosen_frames(spec, expected, form):
  array = np.stack(frames())
  files = [media_io.to_png(frame) for frame in array]
  value = {
    'array': array,
    'gray': array[..., 0],
    'list': files,
    'objects': np.array([*files, None], object)[:-1],
    'films': [film(levels=LEVELS[:2]), film(levels=LEVELS[2:])],
  }
  assert levels_of(value[form], spec) == expected


@pytest.mark.parametrize(
  ('template', 'words'),
  [
    ('{clip:video,size=3}', "'size=3', which is no setting of a clip"),
    ('{clip:video,frames=0}', "'frames=0', which is no setting of a clip"),
    ('{name} -> {clip:video}', "asks for 'clip' as patches, which can be read but not made"),
  ],
)
def test_templates_that_are_refused(template, words):
  with pytest.raises(ValueError) as error:
    parse(template)
  tiny_runs.assert_two_lines(error.value, words)


@pytest.mark.parametrize(
  ('value', 'words'),
  [
    ([], "f.jsonl line 7 field 'clip' is '', not a path"),
    (np.zeros((2, 2), np.uint8), "f.jsonl line 7 field 'clip': a clip has the shape (2, 2)"),
    ('no.gif', 'f.jsonl line 7: there is no file no.gif'),
    (film('PNG')[:200], 'f.jsonl line 7: a file of 200 bytes is not a whole film'),
  ],
)
def test_clips_that_cannot_be_read(value, words):
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    clips.read(fill('{clip:video}', {'clip': value}, 'f.jsonl line 7')[0].value, 'f.jsonl line 7')
  tiny_runs.assert_two_lines(error.value, words)


def test_too_many_pixels_say_so(monkeypatch):
  monkeypatch.setattr(clips, 'MOST_PIXELS', 3 * 64)
  assert levels_of(film(), 'video,frames=3') == [0, 100, 250]
  with pytest.raises(ValueError) as error:
    levels_of(film())
  tiny_runs.assert_two_lines(error.value, 'the frames of a clip have 256 pixels or more')


def write_rows(folder, count=6):
  """Write films that grow lighter or darker, and rows that name them."""
  rows = []
  for number in range(count):
    levels = sorted(np.random.default_rng(number).choice(250, 3, False).tolist(), reverse=number % 2)
    (folder / f'{number}.gif').write_bytes(film(levels=levels))
    rows.append({'clip': f'{number}.gif', 'way': ('lighter', 'darker')[number % 2]})
  (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def source(folder, **changes):
  template = '{clip:video,frames=2} Lighter? -> {way}'
  return {'kind': 'jsonl', 'path': str(folder / 'rows.jsonl'), 'template': template, **changes}


def test_a_clip_counts_by_its_bytes(tmp_path):
  write_rows(tmp_path)
  [clip, *_] = fill('{clip:video}', {'clip': str(tmp_path / '0.gif')}, 'here')
  others = [Piece('patches', clips.Clip((str(tmp_path / f'{n}.gif'),))) for n in (0, 1)]
  assert content.digest([clip]) == content.digest(others[:1]) != content.digest(others[1:])
  before = open_source(Source(**source(tmp_path)), 'train').content()
  (tmp_path / '0.gif').write_bytes(film())
  assert open_source(Source(**source(tmp_path)), 'train').content() != before


def clip_config(folder, **changes):
  """The Config of a model that reads pixels of clips."""
  cfg = config.default()
  cfg.tokenizer.kind = 'bytes'
  cfg.image.update(kind='patches', height=8, width=8, channels=1, patch=4, codes=4)
  cfg.model.update(layers=1, width=16, heads=2, context=48)
  cfg.data.mixture = {'clips': source(folder, root=str(folder), **changes)}
  cfg.data.update(packing='first_fit', valid_fraction=0.34)
  return config.build(config.Config, cfg)


def test_caches_and_prompts_have_the_frames(tmp_path):
  write_rows(tmp_path)
  cfg = clip_config(tmp_path)
  assert cfg.data.features == ('patches',)
  toks = run_tokenizers.build(cfg, tmp_path / 'run')
  for split, documents in (('train', 4), ('valid', 2)):
    cache = data.token_cache(cfg.data, 'clips', toks, split, tmp_path / 'cache')
    patches_PA, places = cache.features['patches']
    assert patches_PA.shape == (documents * 2 * 4, 16) and len(places) == len(patches_PA)
  run = types.SimpleNamespace(cfg=cfg, tokenizers=toks)
  build = lambda images: prompts.build_prompt(run, 'Lighter?', images=images)
  prompt = build([str(tmp_path / '1.gif')])
  assert prompt.patches.any(1).sum() == 2 * 4
  stills = frames((20, 30, 40))
  apart, whole = build(stills), build([np.stack(stills)])
  assert apart.ids == whole.ids == prompt.ids and np.array_equal(apart.patches, whole.patches)
  pieces = fill('{clip:video,frames=2} Lighter? -> {way}', {'clip': np.stack(stills), 'way': 'x'}, 'here')
  [encoded] = encode_batch(toks, [pieces])
  np.testing.assert_array_equal(encoded.patches, apart.patches[apart.patches.any(1)])


def test_a_broken_film_is_a_bad_record(tmp_path):
  write_rows(tmp_path)
  (tmp_path / '3.gif').write_bytes(film('PNG')[:200])
  cfg = clip_config(tmp_path, bad_records=1)
  toks = run_tokenizers.build(cfg, tmp_path / 'run')
  caches = [
    data.token_cache(cfg.data, 'clips', toks, split, tmp_path / 'cache') for split in ('train', 'valid')
  ]
  assert sum(len(cache.offsets) for cache in caches) == 5
  with pytest.raises(ValueError, match=r'3.gif is not a whole film(.|\n)*bad_records=1'):
    run_tokenizers.build(clip_config(tmp_path), tmp_path / 'run')


def test_pictures_without_words_between_them_follow_each_other():
  """Cells of (0, 0) begin a picture, where pictures have grids of their own."""
  layout = Layout(patch=9, grid=(1, 1))
  cells = [(0, 0), (0, 1), (0, 2), (0, 0), (1, 0), (0, 0)]
  cells_BW2 = np.array([[(0, 0), *cells, (0, 0)]])
  ids_BW = np.array([[1, *[9] * 6, 2]])
  actual = layout.positions3(ids_BW, np.ones_like(ids_BW), cells_BW2)[0].tolist()
  expected = [(1, 1, 1), (1, 1, 2), (1, 1, 3), (4, 4, 4), (4, 5, 4), (6, 6, 6)]
  assert actual == [[0, 0, 0], *map(list, expected), [7, 7, 7]]
