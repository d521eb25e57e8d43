"""Documents are what their template says, media are read once, and broken ones do not hide."""

import json
import logging
import subprocess
import sys
import types
import zipfile
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax import config, data, sharding
from gpt_jax.data import DataConfig, Piece, Source, documents, encode_batch, templates, token_cache
from gpt_jax.data.content import digest
from gpt_jax.data.media_io import to_png, to_wav
from gpt_jax.data.splits import Record
from gpt_jax.data.templates import Samples, modalities, parse, signature
from gpt_jax.jobs import language_model
from gpt_jax.sampling import prompts
from tests import command_line
from tests.data_helpers import TinyImages, media_tokenizers, two_lines

ROOT = Path(__file__).parents[2]
IMAGE = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 16
SOUND = np.full(25, 0.5, np.float32)


def encode(tokenizers, pieces):
  [document] = encode_batch(tokenizers, [pieces])
  return document


def cause_of(error):
  cause, fix = str(error.value).split('\n')
  assert fix.startswith('fix: ')
  return cause


@pytest.mark.parametrize(
  ('template', 'expected'),
  [
    ('{text}', ((), ('text',))),
    ('Q: {q}\nA: {a}', ((), ('text',))),
    ('{image:image} -> {name}', (('image',), ('text',))),
    ('{name} -> {image:image}', (('text',), ('image',))),
    ('{speaker}: {text} -> {audio:audio}', (('text',), ('audio',))),
    ('{image:patches} {audio:frames} what? -> {a.0}', (('patches', 'frames', 'text'), ('text',))),
    ('{image:image} {audio:audio}', ((), ('image', 'audio'))),
    ('a cat -> {x:image}', (('text',), ('image',))),
    ('{p:parts}', ((), ('parts',))),
    ('{p:parts} -> {q:parts}', (('parts',), ('parts',))),
    ('x->{text}', ((), ('text',))),
  ],
)
def test_signatures(template, expected):
  assert signature(template) == expected


@pytest.mark.parametrize(
  ('template', 'cause'),
  [
    ('{a} -> {b} -> {c}', '2 arrows'),
    ('{a} -> ', '1 arrows, or nothing on one side'),
    (' -> {a}', 'nothing on one side'),
    ('{a} -> {x:patches}', "asks for 'x' as patches, which can be read but not made"),
    ('{a} -> {x:frames}', "asks for 'x' as frames"),
    ('{x:picture}', 'not a plain name'),
    ('{x:image!r}', 'not a plain name'),
    ('see {p:parts}', 'something beside a list of parts'),
    ('{p:parts} -> {q:parts}!', 'something beside a list of parts'),
    ('a -> b', 'names no field'),
  ],
)
def test_malformed_templates(template, cause):
  with pytest.raises(ValueError) as error:
    parse(template)
  assert cause in cause_of(error)


def test_pieces():
  record = {'q': 'why', 'a': 3, 'x': 'x.png', 's': b'RIFF', 'v': IMAGE, 'none': ''}
  assert templates.fill('Q {q} -> A {a}', record, '') == [
    Piece('text', 'Q why'),
    Piece('arrow'),
    Piece('text', 'A 3'),
  ]
  assert templates.fill('{x:image}{q}{a}{s:frames}', record, '') == [
    Piece('image', 'x.png'),
    Piece('text', 'why3'),
    Piece('frames', b'RIFF'),
  ]
  assert templates.fill('{none} -> {x:image}', record, '') == [Piece('arrow'), Piece('image', 'x.png')]
  assert templates.fill('{none}', record, '') == [Piece('text', '')]
  [piece] = templates.fill('{v:image}', record, '')
  assert piece.value is IMAGE
  assert modalities('{v:patches} -> {s:audio}') == {'image', 'audio'}


def test_paths_lie_below_the_root_of_a_record():
  record = Record({'x': 'a/b.png', 'y': '/media.zip/./c.png', 'w': np.zeros(3)}, root='/media.zip')
  record.rate = 50
  values = [piece.value for piece in templates.fill('{x:image}{y:patches}{w:audio}', record, '')]
  assert values[:2] == ['/media.zip/a/b.png', '/media.zip/c.png']
  assert isinstance(values[2], Samples) and values[2].rate == 50
  for path in ('/c.png', '../c.png', 'a/../../c.png', '~/c.png', '/media.zip2/c.png'):
    with two_lines(ValueError, "here field 'x' is", "c.png', which is not below /media.zip"):
      templates.fill('{x:image}', Record({'x': path}, root='/media.zip'), 'here')


def test_parts():
  parts = [{'text': 'a'}, {'text': 'b'}, {'image': 'x.png'}, {'audio': 's.wav'}, {'text': 'c'}]
  record = Record({'p': parts, 'q': [{'text': 'd'}]}, root='r')
  assert templates.fill('{p:parts} -> {q:parts}', record, '') == [
    Piece('text', 'ab'),
    Piece('image', 'r/x.png'),
    Piece('audio', 'r/s.wav'),
    Piece('text', 'c'),
    Piece('arrow'),
    Piece('text', 'd'),
  ]


@pytest.mark.parametrize(
  ('template', 'record', 'cause'),
  [
    ('{x:image}', {'x': 7}, "here field 'x' is 7, not a path or the content of media"),
    ('{x:image}', {'x': ''}, "field 'x' is ''"),
    ('{x:audio}', {'x': None}, "field 'x' is None"),
    ('{x:image}', {'y': 'a'}, "here has no field 'x'"),
    ('{x:parts}', {'x': 'text'}, "here field 'x' is str 'text', not a list of parts"),
    ('{x:parts}', {'x': []}, 'not a list of parts'),
    ('{x:parts}', {'x': [{'text': 'a', 'image': 'b'}]}, 'has a part 0 that is not one of'),
    ('{x:parts}', {'x': [{'text': 'a'}, {'video': 'b'}]}, 'has a part 1 that is not one of'),
    ('{x:parts}', {'x': [{'text': None}]}, "field 'x.0.text' is null"),
  ],
)
def test_bad_records(template, record, cause):
  with pytest.raises(ValueError) as error:
    templates.fill(template, record, 'here')
  assert cause in cause_of(error)


# ------------------------------------------------------------------------------------- to ids


@pytest.mark.parametrize('books', [1, 2])
def test_encode(books):
  made = media_tokenizers(books)
  special = made.vocabulary.special
  codes = made.image.encode(IMAGE[None])[0]
  sound = made.audio.encode([SOUND])[0]
  assert sound.shape == (3, 2)
  pieces = [
    Piece('text', 'é'),
    Piece('image', IMAGE),
    Piece('audio', SOUND),
    Piece('arrow'),
    Piece('text', 'x'),
  ]
  encoded = encode(made, pieces)
  assert encoded.ids.dtype == np.int32
  assert encoded.patches is None and encoded.frames is None
  assert encoded.ids.tolist() == [
    *'é'.encode(),
    special('boi'),
    *made.encode_codes('image', codes),
    special('eoi'),
    special('boa'),
    *made.encode_codes('audio', sound),
    special('eoa'),
    special('sep'),
    ord('x'),
  ]
  assert made.encode_codes('image', codes).shape == (4 * books,)


def test_a_condition_follows_the_bos_of_an_imported_model(tmp_path, monkeypatch):
  made = media_tokenizers()
  bos, sep, eos = map(made.vocabulary.special, ('bos', 'sep', 'eos'))
  (tmp_path / 'quiz.jsonl').write_text('{"q": "a", "a": "b"}\n')
  cfg = DataConfig(
    {'x': Source('jsonl', str(tmp_path / 'quiz.jsonl'), '{q} -> {a}')},
    packing='first_fit',
    valid_fraction=0.0,
  )
  alone = make(cfg, made)
  assert alone.ids.tolist() == [ord('a'), sep, ord('b'), eos]
  monkeypatch.setattr(made.text, 'begin', lambda: [bos], raising=False)
  begun = make(cfg, made)
  assert begun.ids.tolist() == [bos, *alone.ids] and begun.path != alone.path
  question = [Piece('text', 'a'), Piece('arrow')]
  subject = types.SimpleNamespace(tokenizers=made, cfg=types.SimpleNamespace(data=cfg))
  assert prompts.encode(subject, [question], 'text')[0].ids == [bos, ord('a'), sep]
  assert encode(made, [Piece('text', 'a')]).ids.tolist() == [ord('a')]  # the token cache adds it to texts


def test_encode_continuous():
  made = media_tokenizers()
  special = made.vocabulary.special
  media = [Piece('patches', IMAGE), Piece('frames', SOUND), Piece('patches', IMAGE[::-1])]
  encoded = encode(made, [*media, Piece('arrow'), Piece('text', 'y')])
  image = [special('boi'), *[special('patch')] * 4, special('eoi')]
  frames = [special('boa'), *[special('frame')] * 3, special('eoa')]
  assert encoded.ids.tolist() == [*image, *frames, *image, special('sep'), ord('y')]
  both = made.image.features(np.stack([IMAGE, IMAGE[::-1]])).reshape(8, 4)
  np.testing.assert_array_equal(encoded.patches, both)
  np.testing.assert_array_equal(encoded.frames, made.audio.features([SOUND])[0])


PIECES = st.one_of(
  st.builds(Piece, st.just('text'), st.text(max_size=5)),
  st.builds(
    lambda kind, level: Piece(kind, np.full((4, 4, 1), level, np.uint8)),
    st.sampled_from(['image', 'patches']),
    st.integers(0, 255),
  ),
  st.builds(
    lambda kind, size: Piece(kind, np.linspace(0, 1, size, dtype=np.float32)),
    st.sampled_from(['audio', 'frames']),
    st.integers(1, 40),
  ),
)


@given(batch=st.lists(st.lists(PIECES, min_size=1, max_size=5), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_a_batch_encodes_like_its_documents(batch):
  made = media_tokenizers()
  together = encode_batch(made, batch)
  images = sum(piece.kind == 'image' for document in batch for piece in document)
  assert made.image.calls == ([images] if images else [])
  for one, document in zip(together, batch, strict=True):
    alone = encode(media_tokenizers(), document)
    for key in ('ids', 'patches', 'frames'):
      np.testing.assert_array_equal(getattr(one, key), getattr(alone, key))


def test_media_are_decoded_to_the_formats_of_the_tokenizers(tmp_path):
  """Paths, bytes and arrays of other sizes and rates, and what was converted."""
  made, notes = media_tokenizers(), Counter()
  (tmp_path / 'x.png').write_bytes(to_png(IMAGE))
  loud, large = np.full(500, 16384, np.int16), IMAGE.repeat(2, 0).repeat(2, 1)
  pieces = [
    Piece('image', str(tmp_path / 'x.png')),
    Piece('image', to_png(large)),
    Piece('patches', IMAGE),
    Piece('audio', to_wav(SOUND, 100)),
    Piece('frames', Samples(loud, 200)),
    Piece('text', 'x'),
  ]
  read = [piece.value for piece in data.decode_media(made, pieces, 'here', notes)]
  np.testing.assert_array_equal(read[0], IMAGE)
  assert read[1].shape == (4, 4, 1)
  assert read[3].shape == (25,) and read[4].shape == (250,)
  assert notes == {'images resized from 8x8': 1, 'sounds resampled from 200 Hz': 1}
  with pytest.raises(ValueError, match=r'^here: the sound lasts 5 s.*\nfix: '):
    data.decode_media(made, [Piece('audio', Samples(loud, 100))], 'here')


# ------------------------------------------------------------------------------- caches of media


@pytest.fixture
def pictures(tmp_path):
  """Seven pictures in a folder with captions; the template of a config to be chosen."""
  lines = []
  for n in range(7):
    image = np.random.default_rng(n).integers(0, 256, (4, 4, 1), np.uint8)
    (tmp_path / f'{n}.png').write_bytes(to_png(image))
    (tmp_path / f'{n}.wav').write_bytes(to_wav(np.full(10 + n, 0.1 * n), 100))
    lines.append(json.dumps({'x': f'{n}.png', 's': f'{n}.wav', 'name': f'picture {n}'}))
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))

  def config(template='{x:image} -> {name}', valid_fraction=0.0, **fields):
    source = Source('jsonl', str(tmp_path / 'a.jsonl'), template, **fields)
    return DataConfig({'x': source}, packing='first_fit', valid_fraction=valid_fraction)

  config.folder = tmp_path
  return config


def make(cfg, tokenizers=None, split='train'):
  folder = cfg.mixture['x'].path.rsplit('/', 1)[0] + '/cache'
  return token_cache(cfg, 'x', tokenizers or media_tokenizers(), split, folder)


def document(cache, number):
  return cache.ids[cache.offsets[number] : [*cache.offsets[1:], len(cache.ids)][number]].tolist()


def test_cache_of_documents(pictures, monkeypatch):
  made = media_tokenizers()
  monkeypatch.setattr('gpt_jax.data.cache.BATCH_MEDIA', 3)
  cache = make(pictures(), made)
  assert made.image.calls == [3, 3, 1]
  assert cache.media == {'images': 7, 'sounds': 0, 'skipped': 0}
  assert cache.bytes == 7 * len('picture 0')
  eos = made.vocabulary.special('eos')
  for n, (_, document_) in enumerate(data.examples(pictures(), 'x', 'train')):
    assert document(cache, n) == [*encode(made, document_).ids, eos]
  assert make(pictures()).path == cache.path
  assert make(pictures('{name} -> {x:image}')).path != cache.path
  assert make(pictures(), media_tokenizers(2)).path != cache.path


def test_a_changed_picture_makes_another_cache(pictures):
  first = make(pictures()).path
  text = make(pictures('{name}'), media_tokenizers(image=False, audio=False)).path
  (pictures.folder / '3.png').write_bytes(to_png(255 - IMAGE))
  assert make(pictures()).path != first
  assert make(pictures('{name}'), media_tokenizers(image=False, audio=False)).path == text


def test_features_match_their_places_in_the_stream(pictures):
  cache = make(pictures('{x:patches}{s:frames}{x:patches} -> {name}'))
  made = media_tokenizers()
  for kind, special in (('patches', 'patch'), ('frames', 'frame')):
    rows, at = cache.features[kind]
    assert isinstance(rows, np.memmap) and rows.dtype == np.float16
    ids = np.flatnonzero(cache.ids == made.vocabulary.special(special))
    np.testing.assert_array_equal(at, ids)
    media = [e for _, e in data.examples(pictures('{x:patches}{s:frames}'), 'x', 'train')]
    if kind == 'frames':
      want = np.concatenate([encode(made, pieces).frames for pieces in media])
    else:
      want = np.concatenate([np.tile(encode(made, pieces).patches, (2, 1)) for pieces in media])
    np.testing.assert_array_equal(rows, want.astype(np.float16))


@pytest.mark.parametrize('damage', ['gone', 'cut'])
def test_broken_features_are_rewritten(pictures, damage, caplog):
  cfg = pictures('{x:patches} -> {name}')
  path = make(cfg).path.with_suffix('.patches.npy')
  good = path.read_bytes()
  path.unlink() if damage == 'gone' else path.write_bytes(good[:-8])
  with caplog.at_level(logging.WARNING):
    make(cfg)
  assert 'rewriting the token cache' in caplog.text
  assert path.read_bytes() == good


def test_a_failure_leaves_no_file(pictures):
  (pictures.folder / '6.png').write_bytes(b'no picture')
  with pytest.raises(ValueError) as error:
    make(pictures('{x:patches} -> {name}'))
  cause = cause_of(error)
  assert cause.startswith('data.mixture.x: ') and '6.png is not a picture' in cause
  assert 'a.jsonl line 7' in cause
  assert 'data.mixture.x.bad_records' in str(error.value)
  assert not list((pictures.folder / 'cache').iterdir())


def test_bad_records_are_skipped_up_to_a_number(pictures, caplog):
  (pictures.folder / '2.png').write_bytes(b'no picture')
  (pictures.folder / '4.png').unlink()
  with caplog.at_level(logging.WARNING):
    cache = make(pictures(bad_records=2))
  assert cache.media == {'images': 5, 'sounds': 0, 'skipped': 2}
  assert len(cache.offsets) == 5
  assert 'line 3' in caplog.text and 'line 5' in caplog.text
  assert 'data.mixture.x (train): 2 unreadable records skipped' in caplog.text
  names = [bytes(i for i in document(cache, n) if i < 256).decode() for n in range(5)]
  assert names == [f'picture {n}' for n in (0, 1, 3, 5, 6)]
  with pytest.raises(ValueError, match=r'x has 2 unreadable records or more, .*line 3(.|\n)*now 1'):
    make(pictures(bad_records=1))
  assert data.load_images(pictures(bad_records=2), (4, 4, 1)).shape == (5, 4, 4, 1)
  cfg = pictures(bad_records=2)
  kept = data.filter_readable(cfg, 'x', media_tokenizers(), data.examples(cfg, 'x', 'train'))
  assert [where.rpartition(' ')[2] for where, _ in kept] == ['1', '2', '4', '6', '7']
  with pytest.raises(ValueError, match=r'now 1'):
    data.load_images(pictures(bad_records=1), (4, 4, 1))


@pytest.mark.parametrize('template', ['{name}', '{x:image} -> {name}'])
def test_broken_lines_and_missing_fields_are_skipped_too(pictures, caplog, template):
  path = pictures.folder / 'a.jsonl'
  good, fields = path.read_text(), {'valid_keep': 'part=b', 'names': ('one', 'two')}
  lines = [
    json.dumps(json.loads(line) | {'label': 0, 'part': 'ab'[n > 4]})
    for n, line in enumerate(good.split('\n'))
  ]
  lines[1] = '{"name": '
  lines[2] = '[1]'
  lines[3] = json.dumps({'x': '3.png', 'label': 1, 'part': 'a', 'named': 'x'})
  lines[4] = json.dumps({'x': '4.png', 'label': 0, 'name': 'of no part'})
  path.write_text('\n'.join(lines))
  with pytest.raises(ValueError, match=r'a.jsonl line 2 is not JSON'):
    make(pictures(template))
  for broken, causes in (
    ({}, ['line 2 is not JSON', 'line 3 is a JSON list', "line 4 has no field 'name'"]),
    (fields, ['line 2 is not JSON', 'line 3 is a JSON list', "line 5 has no field 'part'"]),
  ):
    caplog.clear()
    cfg = pictures(template, bad_records=3, **broken)
    train = make(cfg)
    assert train.media['skipped'] == 3 and len(train.offsets) == (4 if not broken else 2)
    said = [record.getMessage() for record in caplog.records]
    assert all(cause in line for cause, line in zip(causes, said, strict=False)), said
    assert said[3] == 'data.mixture.x (train): 3 unreadable records skipped'
    assert len(said) == 4
    with pytest.raises(ValueError, match=r'x has 3 unreadable records or more, .*line 2 is not(.|\n)*now 2'):
      make(pictures(template, bad_records=2, **broken))
  valid = make(cfg, split='valid')  # they are counted once, where the rest is
  assert len(valid.offsets) == 2 and not valid.media.get('skipped')
  halves = pictures(template, bad_records=3, valid_fraction=0.5)
  assert [len(make(halves, split=split).offsets) for split in ('train', 'valid')] == [2, 2]


def test_tasks_skip_the_records_that_a_cache_skips(pictures):
  """Also a sound that can be read, but is longer than the tokenizer's longest."""
  short, long = ([Piece('audio', np.zeros(n, np.float32))] for n in (25, 100 * 600))
  cfg, toks = pictures(bad_records=1), media_tokenizers()
  kept = data.filter_readable(cfg, 'x', toks, iter([('short', short), ('long', long)]))
  assert [where for where, _ in kept] == ['short']
  with pytest.raises(ValueError, match='lasts'):
    encode(toks, long)


READS = """
from gpt_jax import data
from tests import data_helpers

source = data.Source('jsonl', {path!r}, '{{x:image}} -> {{name}}', bad_records=1)
cfg = data.DataConfig({{'x': source}}, packing='first_fit', valid_fraction=0.3)
if {learn}:
  data.load_images(cfg, (4, 4, 1))
for split in ('train', 'valid'):
  data.token_cache(cfg, 'x', data_helpers.media_tokenizers(), split, {folder!r})
"""


def test_a_process_logs_each_conversion_once(pictures):
  """Where nothing has set logging up, and also if the tokens were made before."""
  for n in range(6):
    (pictures.folder / f'{n}.png').write_bytes(to_png(IMAGE.repeat(2, 0).repeat(2, 1) + n))
  (pictures.folder / '6.png').write_bytes(b'no picture')
  said = []
  for learn in (True, False):
    folder = str(pictures.folder)
    code = READS.format(path=f'{folder}/a.jsonl', folder=folder, learn=learn)
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said.append(sorted(done.stderr.strip().split('\n')))
  converted = {
    'data.mixture.x (train): 4 images resized from 8x8',
    'data.mixture.x (valid): 2 images resized from 8x8',
    'data.mixture.x (train): 1 unreadable records skipped',
  }
  assert set(said[1]) == converted
  assert set(said[0]) > converted and len(said[0]) == 4
  assert '6.png is not a picture' in said[0][2]


def test_the_only_document_of_a_source_with_media_ends_with_eos(pictures):
  path = pictures.folder / 'a.jsonl'
  path.write_text(path.read_text().split('\n')[0])
  assert document(make(pictures()), 0)[-1] == media_tokenizers().vocabulary.special('eos')
  with pytest.raises(ValueError) as error:
    make(pictures(valid_fraction=0.5))
  assert cause_of(error).startswith('data.mixture.x has one document, and one with media')


def test_documents_are_split_by_the_content_of_files(pictures):
  def names(split):
    cfg = pictures('{x:image}{name}', valid_fraction=0.4)
    return [text for _, text in documents(cfg, split)]

  train, valid = names('train'), names('valid')
  assert sorted(train + valid) == [f'picture {n}' for n in range(7)]
  assert len(valid) == 3
  content = (pictures.folder / '0.png').read_bytes()
  as_path = [Piece('image', str(pictures.folder / '0.png')), Piece('arrow')]
  assert digest(as_path) == digest([Piece('image', content), Piece('arrow')])
  # The same picture is on the same side whatever it is read as, and whatever is said of it.
  assert digest(as_path) == digest([Piece('text', 'a'), Piece('patches', content)])
  assert digest(as_path) != digest([Piece('image', content + b' ')])
  assert digest([Piece('image', IMAGE)]) != digest([Piece('image', IMAGE[::-1])])
  gone = [Piece('image', str(pictures.folder / 'gone.png'))]
  assert digest(gone) == digest(gone)


def test_texts_of_documents(pictures):
  cfg = pictures('a {x:image} {name} -> {s:audio}')
  assert next(documents(cfg, 'train')) == ('x', 'a  picture 0')
  assert next(documents(pictures('say {name} -> it'), 'train')) == ('x', 'say picture 0it')


def test_load_images_and_waveforms(pictures):
  cfg = pictures('{x:image} -> {name}', valid_fraction=0.4)
  train, valid = (data.load_images(cfg, (4, 4, 1), split) for split in ('train', 'valid'))
  assert (train.shape, valid.shape) == ((4, 4, 4, 1), (3, 4, 4, 1))
  assert train.dtype == np.uint8
  sounds = data.load_waveforms(pictures('{name} -> {s:audio}'), 100)
  assert [len(wave) for wave in sounds] == list(range(10, 17))
  assert data.load_waveforms(pictures('{s:frames} -> {name}'), 200)[0].shape == (20,)
  with pytest.raises(ValueError) as error:
    data.load_images(pictures('{name} -> {s:audio}'), (4, 4, 1))
  assert cause_of(error) == 'no source of data.mixture has image data to learn a tokenizer from'


def test_an_error_names_media_that_are_all_held_out(pictures):
  """Which of two lines is for validation goes by their hashes: the one with the picture."""
  sides = []
  for number in range(20):
    parts = [[{'image': '0.png'}], [{'text': f'alone {number}'}]]
    (pictures.folder / 'a.jsonl').write_text('\n'.join(json.dumps({'p': p}) for p in parts))
    cfg = pictures('{p:parts}', valid_fraction=0.1)
    try:
      sides.append(len(data.load_images(cfg, (4, 4, 1))))
    except ValueError as error:
      sides.append(0)
      cause, fix = str(error).split('\n')
      assert 'x has image data in its valid documents only, and none in train' in cause
      assert 'data.valid_fraction=0.1' in cause and 'data.valid_fraction=0.0' in fix
  assert set(sides) == {0, 1}


LINES = """{"parts": [{"text": "A cat: "}, {"image": "cat.png"}, {"text": " It says "}, {"audio": "cat.wav"}]}
{"parts": [{"text": "Text alone."}]}
"""
CODE = """
config.image.update(kind='patches', height=32, width=32, channels=3, codes=16)
config.audio.update(kind='frames', codes=16)
config.data.update(packing='first_fit', valid_fraction=0.0)
config.data.mixture = {'mine': {'kind': 'jsonl', 'path': 'mine/data.jsonl', 'template': '{parts:parts}'}}
"""


@pytest.fixture
def example(tmp_path, monkeypatch):
  """Code that configures a data set of two documents, in a folder that has its files."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/data.jsonl').write_text(LINES)
  noise = np.random.default_rng(0)
  picture = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
  (tmp_path / 'mine/cat.png').write_bytes(to_png(picture))
  (tmp_path / 'mine/cat.wav').write_bytes(to_wav(noise.normal(0, 0.1, 16000), 16000))
  return CODE


def test_a_document_of_texts_pictures_and_sounds(example, tmp_path):
  made = config.default()
  exec(example, {'config': made})
  cfg = config.build(config.Config, made)
  mesh = sharding.make_mesh(cfg.mesh, jax.devices()[:1])
  job = language_model.LanguageModelJob(cfg, tmp_path / 'run', mesh)
  assert job.loader.caches['mine'].media == {'images': 1, 'sounds': 1, 'skipped': 0}
  assert len(job.loader.caches['mine'].offsets) == 2


@pytest.mark.slow
def test_a_run_logs_its_conversions(example, tmp_path):
  """Once: where it begins, and where it goes on with the tokens that it has."""
  (tmp_path / 'x.py').write_text(f"""from gpt_jax import config as configs

def get_config(arg=''):
  config = configs.default()
  exec({example!r}, {{'config': config}})
  config.model.update(layers=1, width=16, heads=2)
  config.train.update(steps=1, batch_size=2, sample_every=0)
  config.data.mixture['mine']['path'] = {str(tmp_path / 'mine/data.jsonl')!r}
  return config
""")
  words = ('train', f'--config={tmp_path}/x.py', f'--workdir={tmp_path}/run')
  for _ in range(2):
    code, output = command_line.launch(*words, folder=tmp_path)
    assert code == 0, output
    said = [line for line in output.split('\n') if 'data.mixture.mine' in line]
    assert [line.partition('data.mixture.mine (train): ')[2] for line in said] == [
      '1 images resized from 64x48',
      '1 sounds resampled from 16000 Hz',
    ]


def test_templates_without_their_tokenizers_are_refused(pictures):
  with pytest.raises(ValueError) as error:
    make(pictures(), media_tokenizers(image=False))
  assert 'needs image tokens, which the model does not have' in cause_of(error)
  parts = {'p': [{'image': '0.png'}]}
  (pictures.folder / 'a.jsonl').write_text(f'{json.dumps(parts)}\n' * 2)
  with pytest.raises(ValueError) as error:
    make(pictures('{p:parts}', bad_records=9), media_tokenizers(image=False))
  assert 'line 1 needs image tokens' in cause_of(error)
  assert len(make(pictures('{p:parts}')).offsets) == 2
  bare = type(media_tokenizers()).build(media_tokenizers().text, TinyImages(), specials=('eos',))
  with pytest.raises(ValueError) as error:
    make(pictures('{p.0.image:image} -> it'), bare)
  assert 'needs the special tokens boi, eoi, patch, sep, which' in cause_of(error)


@pytest.mark.parametrize(('path', 'root'), [('m.zip/in/a.wav', ''), ('in/a.wav', 'm.zip')])
def test_media_in_a_zip_beside_the_records(tmp_path, path, root):
  with zipfile.ZipFile(tmp_path / 'm.zip', 'w') as archive:
    archive.writestr('in/a.wav', to_wav(SOUND, 100))
  (tmp_path / 'a.jsonl').write_text(json.dumps({'s': path, 'text': 'x'}))
  source = Source('jsonl', str(tmp_path / 'a.jsonl'), '{s:audio} -> {text}', root=root)
  cfg = DataConfig({'x': source}, packing='first_fit', valid_fraction=0.0)
  [sound] = data.load_waveforms(cfg, 100)
  np.testing.assert_allclose(sound, SOUND, atol=1e-4)
  assert make(cfg).media['sounds'] == 1
