"""What is shown of a model during training: files that Pillow and soundfile open, lines of text."""

import dataclasses
import io

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image

from gpt_jax import config, sharding
from gpt_jax.data import media_io
from gpt_jax.evaluation import panels
from gpt_jax.evaluation.subject import Subject
from gpt_jax.evaluation.tasks import common
from gpt_jax.jobs import language_model, run_tokenizers
from tests import models, tiny_runs


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def new(tmp_path_factory):
  """A model that was never trained, on pictures, sounds, and tasks that are not shown."""
  folder = tmp_path_factory.mktemp('samples')
  more = {
    'plain': {'kind': 'synthetic', 'documents': 40},
    'picture': {'kind': 'digits', 'template': '{image:image}'},
    'both': {'kind': 'digits', 'template': '{name} -> {image:image} {label}'},
  }
  mixture = tiny_runs.MEDIA['data.mixture'] | more
  cfg = config.build(config.Config, tiny_runs.media(data__mixture=mixture, train__batch_size=8))
  toks = run_tokenizers.build(cfg, folder)
  mesh = sharding.make_mesh(cfg.mesh, jax.devices()[:1])
  model = models.create(language_model.resolve_model(cfg, toks), jax.random.key(0), mesh)
  return Subject(cfg, model, toks, mesh, folder, batch_size=8)


@pytest.fixture(scope='module')
def made(new):
  """{name of the source: (content, suffix)}; the captions of pictures and sounds come after them."""
  contents = {}
  for content, name, suffix in panels.sample_conditions(new):
    contents.setdefault(name, (content, suffix))
  return contents


def conditions(subject, name, split='valid'):
  """[(words of the condition, words of the target)] of the first of a source."""
  chosen = common.examples(subject, name, split, panels.MAX_CONDITIONS)
  return [(common.text(x.condition), common.text(x.target)) for x in chosen]


def test_conditions_are_a_fixed_choice_of_all_classes_decoded_greedily(new, monkeypatch):
  calls = []

  def generate(run, given, to, **decoding):
    calls.append(decoding)
    return ['?'] * len(given)

  monkeypatch.setattr(panels.prompts, 'generate', generate)
  first, again = ([text for text, *_ in panels.sample_conditions(only(new, 'read'))] for _ in range(2))
  assert first == again and calls == [{'temperature': 0.0}] * 2
  assert len({line.partition('not ')[2] for line in first[0].split('\n')}) > 4


def test_each_source_with_a_condition_and_one_thing_to_make_is_shown(made):
  assert {name: suffix for name, (_, suffix) in made.items()} == {
    'read': '.txt',
    'listen': '.txt',
    'draw': '.png',
    'dial': '.wav',
  }


def test_pictures_stand_beside_each_other(made, new):
  picture = Image.open(io.BytesIO(made['draw'][0]))
  assert picture.format == 'PNG' and picture.mode == 'L'
  # Rows of 8 pictures of 8 x 8 pixels, a pixel between them; each pixel is a square of 12.
  assert picture.size == ((8 * 9 - 1) * 12, (2 * 9 - 1) * 12)
  pixels = np.asarray(picture)[::12, ::12]
  assert (pixels[8] == 255).all() and (pixels[:, 8] == 255).all()
  tokenizer, first = new.tokenizers.image, pixels[:8, :8, None]
  codes = tokenizer.encode(first[None])
  np.testing.assert_array_equal(tokenizer.decode(codes)[0], first)  # made of codes
  assert len({pixels[:8, 9 * i : 9 * i + 8].tobytes() for i in range(8)}) > 1


def test_sounds_follow_each_other(made, new):
  sound, rate = soundfile.read(io.BytesIO(made['dial'][0]))
  assert rate == new.tokenizers.audio.sample_rate == 8000 and sound.ndim == 1
  count, pause = len(conditions(new, 'dial')), round(0.15 * 8000)
  codes = (len(sound) - count * pause) / new.tokenizers.audio.samples_per_code
  assert codes == round(codes) and count <= codes <= count * 24
  assert np.isfinite(sound).all() and (sound[-pause:] == 0).all()


@pytest.mark.parametrize('name, shown', [('read', '[image]'), ('listen', '[audio]')])
def test_texts_stand_beside_their_targets(made, new, name, shown):
  text = made[name][0]
  wanted = conditions(new, name)
  assert text.count(f'{shown} -> ') == len(wanted) == (16 if name == 'read' else 6)
  for _, answer in wanted:
    assert f'not {answer!r}' in text  # a new model is never right
  assert len(text.split('\n')) == len(wanted)


def test_a_right_answer_is_not_corrected(new, monkeypatch):
  answers = [answer for _, answer in conditions(new, 'read')]
  right = lambda run, given, to, **_: [answers[0], *['wrong'] * (len(given) - 1)]
  monkeypatch.setattr(panels.prompts, 'generate', right)
  [text] = [content for content, name, _ in panels.sample_conditions(only(new, 'read'))]
  first, second, *_ = text.split('\n')
  assert first == f'[image] -> {answers[0]!r}'
  assert second == f"[image] -> 'wrong'  not {answers[1]!r}"


def only(subject, name, **changes):
  """The subject with one source of its mixture."""
  mixture = {name: subject.cfg.data.mixture[name]}
  data_ = dataclasses.replace(subject.cfg.data, mixture=mixture, **changes)
  return dataclasses.replace(subject, cfg=dataclasses.replace(subject.cfg, data=data_), caches={})


def test_conditions_of_training_where_nothing_is_held_out(new, monkeypatch):
  seen = []

  def generate(run, given, to, **_):
    seen.extend(given)
    return [np.zeros((8, 8, 1), np.uint8)] * len(given)

  monkeypatch.setattr(panels.prompts, 'generate', generate)
  [_, (caption, *_)] = panels.sample_conditions(only(new, 'draw', valid_fraction=0.0))
  assert len(seen) == panels.MAX_CONDITIONS
  assert len({common.text(pieces) for pieces in seen}) > 4
  words = [common.text(pieces) for pieces in seen]
  assert caption == '\t'.join(words[:8]) + '\n' + '\t'.join(words[8:])  # as the pictures stand


def test_a_source_without_conditions_gives_nothing(new):
  assert list(panels.sample_conditions(only(new, 'picture', condition_dropout=0.0))) == []


def test_continued_prompts(new):
  subject = only(new, 'plain', condition_dropout=0.0, packing='crop')
  blocks = panels.continue_prompts(subject, ('abc', 'd' * 30)).split('\n---\n')
  assert len(blocks) == 2 and blocks[0].startswith('abc') and blocks[1].startswith('d' * 30)


def test_tiles_and_waves_are_what_the_files_hold():
  """The helpers agree with Pillow and soundfile."""
  picture = np.arange(12, dtype=np.uint8).reshape(3, 4, 1) * 20
  opened = Image.open(io.BytesIO(media_io.to_png(picture, scale=2)))
  np.testing.assert_array_equal(np.asarray(opened)[::2, ::2], picture[..., 0])
  wave = np.sin(np.arange(800) / 5).astype(np.float32) / 2
  sound, rate = soundfile.read(io.BytesIO(media_io.to_wav(wave, 8000)))
  assert rate == 8000
  np.testing.assert_allclose(sound, wave, atol=1e-4)
