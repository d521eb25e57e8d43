"""From words and files to what the model was trained on, and back to words and files."""

import collections
import dataclasses
import functools
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gpt_jax import tokenizers
from gpt_jax.data import DataConfig, Source, media_io
from gpt_jax.data.templates import Piece
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import completions, output_files, prompt_batch, prompts, validate
from gpt_jax.sampling.prompt_templates import PromptTemplate, match_template, trained_templates
from gpt_jax.tokenizers.base import MediaTokenizer
from gpt_jax.tokenizers.text import CharTokenizer
from tests import models
from tests.tiny_runs import assert_two_lines

IMAGE, SOUND = 'picture', 'sound'
READ, DRAW, SPEAK = '{x:image} -> {name}', '{name} -> {x:image}', '{who}: {name} -> {x:audio}'
TRANSLATE, ASK = 'translate en de: {en} -> {de}', '{x:image} Q: {q} A: -> {a}'


def chosen(templates, text='', images=(), sounds=(), to='text'):
  """[(kind, value)] of the condition without its arrow."""
  pieces = match_template([PromptTemplate(t) for t in templates], text, images, sounds, to)
  return pieces and [(piece.kind, piece.value) for piece in pieces if piece.kind != 'arrow']


@pytest.mark.parametrize(
  ('templates', 'given', 'expected'),
  [
    ([READ, DRAW], dict(images=[IMAGE]), [('image', IMAGE)]),
    ([READ, DRAW], dict(text='five', to='image'), [('text', 'five')]),
    (['{x:patches} -> {name}'], dict(images=[IMAGE]), [('patches', IMAGE)]),
    (
      ['{x:frames} Who? -> {name}', '{x:frames} What? -> {digit}'],
      dict(text='What?', sounds=[SOUND]),
      [('frames', SOUND), ('text', ' What?')],
    ),
    ([DRAW, SPEAK], dict(text='theo: five', to='audio'), [('text', 'theo: five')]),
    ([TRANSLATE], dict(text='a cat'), [('text', 'translate en de: a cat')]),
    ([TRANSLATE], dict(text='translate en de: a'), [('text', 'translate en de: a')]),
    ([TRANSLATE, '{text} -> {summary}'], dict(text='translate en de: a'), [('text', 'translate en de: a')]),
    ([TRANSLATE, '{text} -> {summary}'], dict(text='long'), [('text', 'long')]),
    ([ASK], dict(text='why?', images=[IMAGE]), [('image', IMAGE), ('text', ' Q: why? A:')]),
    ([ASK], dict(text=' Q: why? A:', images=[IMAGE]), [('image', IMAGE), ('text', ' Q: why? A:')]),
    (
      ['{a}: {x:image} and {b} {y:audio} -> {c}'],
      dict(text='one{image}two{audio}', images=[IMAGE], sounds=[SOUND]),
      [('text', 'one: '), ('image', IMAGE), ('text', ' and two '), ('audio', SOUND)],
    ),
    (
      ['{p:parts} -> {a}'],
      dict(text='see {image}, then?', images=[IMAGE]),
      [('text', 'see '), ('image', IMAGE), ('text', ', then?')],
    ),
    (['{p:parts} -> {a}'], dict(text='why?', images=[IMAGE]), [('image', IMAGE), ('text', 'why?')]),
    (['{text}', READ], dict(text='once'), None),  # goes on as text
    (['{text}', TRANSLATE], dict(text='translate en de: a'), [('text', 'translate en de: a')]),
    (['{x:image}'], dict(to='image'), []),  # a document that begins with an image
    (['{p:parts}'], dict(text='A cat:', to='image'), [('text', 'A cat:')]),
    (['{p:parts}'], dict(text='A cat:', to='any'), [('text', 'A cat:')]),
    ([READ, '{y:image} -> {label}'], dict(images=[IMAGE]), [('image', IMAGE)]),  # read alike
  ],
)
def test_the_template_gives_order_words_and_kinds(templates, given, expected):
  assert chosen(templates, **given) == expected


@pytest.mark.parametrize(
  ('templates', 'given', 'cause', 'fix'),
  [
    ([READ, DRAW], dict(sounds=[SOUND]), 'make text from 1 audio', 'image -> text; text -> image'),
    ([READ, DRAW], dict(text='x'), 'make text from text', 'ask for one of: image -> text; text -> image'),
    ([READ], dict(images=[IMAGE, IMAGE]), 'make text from 2 image', 'ask for one of: image -> text'),
    ([READ], dict(images=[IMAGE], text='what?'), 'from text, 1 image', 'ask for one of: image -> text'),
    ([DRAW], dict(to='image'), 'make image from nothing', 'ask for one of: text -> image'),
    (['{text}'], dict(to='any', text='x'), 'make any from text', 'ask for one of: text'),
    ([SPEAK], dict(text='five', to='audio'), 'make audio from text', 'text -> audio'),
    (
      [TRANSLATE, 'summarize: {text} -> {short}'],
      dict(text='a cat'),
      "'a cat' could be meant for several templates",
      'give all the words of one, or name its source with --source: translate en de: {en} -> {de}; '
      'summarize: {text} -> {short}',
    ),
    (
      [READ, '{x:patches} -> {name}'],
      dict(images=[IMAGE]),
      '1 image could be meant for several templates',
      'name its source with --source: {x:image} -> {name}; {x:patches} -> {name}',
    ),
    (
      [ASK, '{q} {x:image} -> {a}'],
      dict(images=[IMAGE], text='why?'),
      "'why?', 1 image could be meant for several templates",
      'give all the words of one',
    ),
  ],
)
def test_untrained_formats_are_refused(templates, given, cause, fix):
  with pytest.raises(ValueError) as error:
    chosen(templates, **given)
  _, second = assert_two_lines(error.value, cause)
  assert fix in second


def test_a_source_selects_the_template_where_several_fit():
  mixture = {
    'codes': Source(template=READ),
    'more': Source(template=READ),
    'whole': Source(template='{x:patches} -> {name}'),
  }
  cfg = SimpleNamespace(data=SimpleNamespace(mixture=mixture))
  with pytest.raises(ValueError) as error:
    match_template(trained_templates(cfg), '', [IMAGE], [], 'text')
  _, fix = assert_two_lines(error.value, '1 image could be meant for several templates')
  assert fix.endswith('--source: codes {x:image} -> {name}; whole {x:patches} -> {name}')
  for source, kind in (('more', 'image'), ('whole', 'patches')):
    first, _ = match_template(trained_templates(cfg, source), '', [IMAGE], [], 'text')
    assert first == Piece(kind, IMAGE)
  with pytest.raises(ValueError) as error:
    trained_templates(cfg, 'holes')
  _, fix = assert_two_lines(error.value, '--source=holes')
  assert fix == 'fix: use codes, more, whole'


# --------------------------------------------------------------------------------- with a model


class Pixels(MediaTokenizer):
  """Images of 4 x 4 as 2 x 2 brightnesses, in two books: eighths, and the rest in halves."""

  modality, kind, codebooks = 'image', 'toy', (8, 2)
  shape, grid, positions, feature_width = (4, 4, 1), (2, 2), 4, 4

  def fields(self):
    return {}

  def files(self):
    return {}

  def features(self, images):
    cut = np.asarray(images, np.float32).reshape(-1, 2, 2, 2, 2)
    return cut.swapaxes(2, 3).reshape(-1, 4, 4) / 127.5 - 1

  def encode(self, images):
    level = np.round((self.features(images).mean(-1) + 1) * 7.5).astype(np.int32)
    return np.stack([level // 2, level % 2], -1)

  def decode(self, codes):
    level = (2 * codes[..., 0] + codes[..., 1]).astype(np.float32) * 17
    return level.astype(np.uint8).reshape(-1, 2, 2).repeat(2, 1).repeat(2, 2)[..., None]


class Loudness(MediaTokenizer):
  """Sounds at 80 Hz as mean values of ten samples."""

  modality, kind, codebooks = 'audio', 'toy', (16,)
  sample_rate, codes_per_second, max_positions, feature_width = 80, 8.0, 5, 1

  def fields(self):
    return {}

  def files(self):
    return {}

  def features(self, waves):
    return [w.reshape(-1, 10).mean(1, keepdims=True) for w in waves]

  def encode(self, waves):
    return [np.round(x * 7.5 + 7.5).astype(np.int32) for x in self.features(waves)]

  def decode(self, codes):
    return [((c[:, 0] - 7.5) / 7.5).astype(np.float32).repeat(10) for c in codes]


TEMPLATES = (
  '{text}',
  '{x:patches} -> {name}',
  '{name} -> {x:image}',
  '{x:frames} -> {name}',
  'say {name} -> {x:audio}',
  '{p:parts}',
)


@functools.cache
def run():
  """A random model of all forms."""
  text = tokenizers.text.build(tokenizers.TokenizerConfig(kind='bytes'), lambda: iter(['x']))
  toks = tokenizers.Tokenizers.build(text, Pixels(), Loudness())
  cfg = models.tiny(
    vocab=toks.vocabulary.size,
    vocab_multiple=128,
    positions='mrope',
    head_dim=8,
    context=64,
    patch_values=4,
    frame_values=1,
    layers=1,
  )
  mixture = {f's{i}': Source(template=t) for i, t in enumerate(TEMPLATES)}
  experiment = models.experiment(
    cfg,
    data=dict(mixture=mixture, packing='first_fit', prefix=True, condition_dropout=0.1),
    sample=dict(max_new_tokens=7),
  )
  return SimpleNamespace(
    cfg=experiment, tokenizers=toks, model=models.fill(cfg), raise_if_preempted=lambda: None
  )


def special(name):
  return run().tokenizers.vocabulary.special(name)


PICTURE = (np.arange(16, dtype=np.uint8) * 16).reshape(4, 4, 1)
WAVE = np.linspace(-1, 1, 30, dtype=np.float32)


def test_prompts_of_each_template():
  names = ('boi', 'eoi', 'boa', 'eoa', 'sep', 'patch', 'frame')
  boi, eoi, boa, eoa, sep, patch, frame = map(special, names)
  read = prompts.build_prompt(run(), images=[PICTURE])
  assert read.ids == [boi, *[patch] * 4, eoi, sep]
  assert read.mask == 'condition'
  np.testing.assert_array_equal(read.patches[1:5], Pixels().features(PICTURE[None])[0])
  assert (read.patches[[0, 5, 6]] == 0).all()
  assert read.frames is None

  hear = prompts.build_prompt(run(), sounds=[WAVE])
  assert hear.ids == [boa, *[frame] * 3, eoa, sep]
  np.testing.assert_array_equal(hear.frames[1:4], Loudness().features([WAVE])[0])

  draw = prompts.build_prompt(run(), 'five', to='image')
  assert draw.ids == [*b'five', sep, boi]
  say = prompts.build_prompt(run(), 'five', to='audio')
  assert say.ids == [*b'say five', sep, boa]
  assert prompts.build_prompt(run(), 'five').ids == [special('eos'), *b'five']
  assert prompts.build_prompt(run(), '').ids == [special('eos')]
  assert prompts.build_prompt(run(), 'a', begin='bos').ids == [special('bos'), 97]

  codes = run().tokenizers.encode_codes('image', Pixels().encode(PICTURE[None])[0])
  mixed = prompts.build_prompt(run(), 'a{image}b', images=[PICTURE], to='any')
  assert mixed.ids == [97, boi, *codes, eoi, 98]


def test_ids_decode_to_pieces():
  """Text, an image, and a sound that the prompt began."""
  toks = run().tokenizers
  image = toks.encode_codes('image', Pixels().encode(PICTURE[None])[0]).tolist()
  sound = toks.encode_codes('audio', Loudness().encode([WAVE])[0]).tolist()
  ids = [*sound[1:], special('eoa'), 97, 98, special('boi'), *image, special('eoi')]
  ids += [special('boi'), *image, special('eoi'), special('eos')]
  actual = prompts.decode_pieces(run(), ids, [99, special('boa'), sound[0]])
  assert [piece.kind for piece in actual] == ['audio', 'text', 'image', 'image']
  np.testing.assert_array_equal(actual[0].value, Loudness().decode(Loudness().encode([WAVE]))[0])
  assert actual[1].value == 'ab'
  expected = Pixels().decode(Pixels().encode(PICTURE[None]))[0]
  assert expected.shape == (4, 4, 1)
  for piece in actual[2:]:
    np.testing.assert_array_equal(piece.value, expected)
  assert prompts.decode_pieces(run(), [97, special('eos')], [special('boi'), *image, special('eoi')]) == [
    Piece('text', 'a')
  ]


@pytest.mark.parametrize(
  ('given', 'to', 'kinds'),
  [
    (dict(images=[PICTURE]), 'text', {'text'}),
    (dict(text='five'), 'image', {'image'}),
    (dict(text='five'), 'audio', {'audio'}),
    (dict(text='a', sounds=[WAVE]), 'any', {'text', 'image', 'audio'}),
  ],
)
def test_a_random_model_makes_the_requested_modality(given, to, kinds):
  prompt = prompts.build_prompt(run(), to=to, **given)
  cfg = prompts.resolve_max_new_tokens(run(), [prompt], run().cfg.sample, to)
  assert cfg.max_new_tokens == {'image': 9, 'audio': 6}.get(to, 7)
  [[(ids, log_probs)]] = completions.generate_ids(run().model, run().tokenizers, [prompt], cfg, to)
  assert len(ids) == len(log_probs)
  actual = prompts.decode_pieces(run(), ids, prompt.ids)
  assert {piece.kind for piece in actual} <= kinds
  if to in ('image', 'audio'):
    [piece] = actual
    assert piece.value.dtype == (np.uint8 if to == 'image' else np.float32)
    assert piece.value.shape == (4, 4, 1) if to == 'image' else piece.value.size % 10 == 0


def test_many_conditions_at_once_give_what_each_gives():
  """Batches of two, the last one filled up; rows keep their own noise."""
  conditions = [[Piece('text', word)] for word in ('one', 'two', 'three')]
  at_once = prompts.generate(run(), conditions, 'image', rows=4, seed=3)
  in_twos = prompts.generate(run(), conditions, 'image', rows=2, seed=3)
  np.testing.assert_array_equal(np.stack(at_once), np.stack(in_twos))
  assert np.stack(at_once).shape == (3, 4, 4, 1)
  [text] = prompts.generate(run(), [[Piece('patches', PICTURE)]], 'text', max_new_tokens=3)
  assert isinstance(text, str)


def test_conversions_are_noted_and_not_printed(capsys):
  """All processes of a job build the prompt; the caller prints the notes once."""
  notes = collections.Counter()
  prompts.build_prompt(run(), images=[PICTURE.repeat(3, 0)], notes=notes)
  [(note, count)] = notes.items()
  assert note.startswith('images resized') and count == 1
  assert capsys.readouterr().out == ''


def test_what_is_asked_for_beats_the_settings_of_the_run():
  """Stored settings that it leaves without effect go; one that has no effect itself is refused."""
  cfg = SampleConfig(top_k=5, top_p=0.9, min_p=0.1, num_samples=3, seed=4, max_new_tokens=7)
  override = validate.override
  assert override(cfg, temperature=0.0) == SampleConfig(temperature=0.0, max_new_tokens=7)
  assert override(cfg, temperature=0.5, seed=1) == dataclasses.replace(cfg, temperature=0.5, seed=1)
  assert override(SampleConfig(temperature=0.7, num_samples=4), beams=3) == SampleConfig(
    beams=3, num_samples=3
  )
  assert override(SampleConfig(beams=3), temperature=0.7) == SampleConfig(temperature=0.7)
  with pytest.raises(ValueError, match='beams=3 searches and does not sample: top_k has no use'):
    override(cfg, beams=3, top_k=5)
  with pytest.raises(ValueError, match='temperature=0 always takes the likeliest token: top_k has no use'):
    override(SampleConfig(temperature=0.0), top_k=5)
  filtered = {**vars(run()), 'cfg': dataclasses.replace(run().cfg, sample=dataclasses.replace(cfg, seed=0))}
  [text] = prompts.generate(SimpleNamespace(**filtered), [[Piece('patches', PICTURE)]], temperature=0.0)
  assert isinstance(text, str)


def test_guidance_needs_a_model_that_knows_the_empty_condition():
  data = dataclasses.replace(run().cfg.data, condition_dropout=0.0)
  other = SimpleNamespace(**vars(run()) | {'cfg': dataclasses.replace(run().cfg, data=data)})
  cfg = SampleConfig(guidance=2.0)
  with pytest.raises(ValueError) as error:
    prompts.resolve_max_new_tokens(other, [prompt_batch.Prompt([1])], cfg, 'text')
  assert_two_lines(error.value, 'sample.guidance=2.0', 'data.condition_dropout=0.0')
  assert prompts.resolve_max_new_tokens(run(), [prompt_batch.Prompt([1])], cfg, 'text').guidance == 2.0
  with pytest.raises(ValueError) as error:
    prompts.resolve_max_new_tokens(run(), [], SampleConfig(flow_steps=30), 'text')
  assert_two_lines(error.value, 'flow_steps=30 has no effect')


def test_beams_make_text_only():
  prompt = prompts.build_prompt(run(), 'five', to='image')
  with pytest.raises(ValueError, match='sample.beams=2 cannot make to=image\nfix: '):
    completions.generate_ids(run().model, run().tokenizers, [prompt], SampleConfig(beams=2), 'image')
  read = prompts.build_prompt(run(), images=[PICTURE])
  cfg = SampleConfig(beams=2, max_new_tokens=3)
  [[(text, score)]] = completions.complete(run().model, run().tokenizers, [read], cfg)
  assert isinstance(text, str)
  assert score < 0


def test_one_beam_reads_an_image_as_greedy_sampling_does():
  """Places after an image are past its longer side, in a search too."""
  read = prompts.build_prompt(run(), images=[PICTURE])
  greedy = SampleConfig(temperature=0.0, max_new_tokens=6)
  [[(ids, _)]] = completions.generate_ids(run().model, run().tokenizers, [read], greedy)
  [[(actual, _)]] = completions.generate_ids(
    run().model, run().tokenizers, [read], SampleConfig(beams=1, max_new_tokens=6)
  )
  assert actual == ids


def test_streamed_answers_add_up():
  read = prompts.build_prompt(run(), images=[PICTURE])
  cfg = SampleConfig(max_new_tokens=12)
  [[(text, _)]] = completions.complete(run().model, run().tokenizers, [read], cfg)
  pieces = list(completions.stream_text(run().model, run().tokenizers, read, cfg))
  assert ''.join(pieces) == text


# ------------------------------------------------------------------------------------------- files


def test_files_are_numbered_and_never_overwritten_by_default(tmp_path):
  image, sound = Piece('image', PICTURE), Piece('audio', WAVE)
  default = tmp_path / 'run' / 'samples'
  names = []
  for _ in range(2):
    files = output_files.OutputFiles('', default, 'image', 2)
    names += [files.write(image).name, files.write(sound, 80).name]
  assert names == ['sample_0.png', 'sample_1.wav', 'sample_2.png', 'sample_3.wav']
  one = output_files.OutputFiles(str(tmp_path / 'x.png'), default, 'image', 1).write(image)
  assert one == tmp_path / 'x.png'
  two = output_files.OutputFiles(str(tmp_path / 'x.png'), default, 'image', 2)
  assert [two.write(image).name, two.write(image).name] == ['x_0.png', 'x_1.png']
  folder = output_files.OutputFiles(f'{tmp_path}/new/', default, 'audio', 1).write(sound, 80)
  assert folder == tmp_path / 'new' / 'sample_0.wav'


def test_no_folder_is_made_before_there_is_a_file(tmp_path):
  output_files.OutputFiles(f'{tmp_path}/new/', '', 'any', 1)
  output_files.OutputFiles('', tmp_path / 'run' / 'samples', 'any', 1)
  assert list(tmp_path.iterdir()) == []


def test_pictures_are_enlarged_and_sounds_keep_their_rate(tmp_path):
  files = output_files.OutputFiles(str(tmp_path), '', 'any', 1)
  png = files.write(Piece('image', PICTURE))
  shown, note = media_io.read_image(str(png), (256, 256, 1))
  assert note == ''
  np.testing.assert_array_equal(shown[::64, ::64], PICTURE)
  assert (shown[:64, :64] == PICTURE[0, 0]).all()
  wave, note = media_io.read_sound(str(files.write(Piece('audio', WAVE), 80)), 80)
  assert note == ''
  np.testing.assert_allclose(wave, WAVE, atol=1e-4)


def test_sounds_are_written_as_flac(tmp_path, monkeypatch):
  sounds = [Piece('audio', np.tile(WAVE, 300) * 1.5)] * 2
  files = output_files.OutputFiles(str(tmp_path / 'x.flac'), '', 'audio', 2)
  paths = [files.write(sound, 8000) for sound in sounds]
  assert [path.name for path in paths] == ['x_0.flac', 'x_1.flac']
  assert paths[0].read_bytes()[:4] == b'fLaC'
  plain = output_files.OutputFiles(str(tmp_path / 'x.wav'), '', 'audio', 1).write(sounds[0], 8000)
  waves = [media_io.read_sound(str(path), 8000)[0] for path in (paths[0], plain)]
  np.testing.assert_array_equal(*waves)
  with pytest.raises(ValueError) as error:
    files.write(sounds[0], 10**6)
  assert_two_lines(error.value, 'FLAC cannot hold 1000000 Hz')
  monkeypatch.setitem(sys.modules, 'soundfile', None)
  with pytest.raises(ValueError) as error:
    output_files.OutputFiles(str(tmp_path / 'x.flac'), '', 'audio', 1)
  _, fix = assert_two_lines(error.value, 'FLAC needs the package soundfile')
  assert 'pip install soundfile' in fix


@pytest.mark.parametrize(
  ('out', 'to', 'cause'),
  [
    ('x.wav', 'image', '--out=x.wav does not fit --to=image'),
    ('x.flac', 'image', '--out=x.flac does not fit --to=image'),
    ('x.png', 'any', '--out=x.png does not fit --to=any'),
    ('/proc/none/x.png', 'image', '--out=/proc/none/x.png cannot be written'),
  ],
)
def test_unwritable_output_paths_are_refused(out, to, cause, tmp_path):
  with pytest.raises(ValueError) as error:
    output_files.OutputFiles(out, tmp_path, to, 1)
  assert_two_lines(error.value, cause)


def test_an_unknown_character_names_the_conditions_of_training(tmp_path):
  lines = ['{"label": "moon", "say": "a"}', '{"label": "ring", "say": "b"}', '{"label": "moon", "say": "c"}']
  (tmp_path / 'signs.jsonl').write_text('\n'.join(lines) + '\n')
  source = Source('jsonl', str(tmp_path / 'signs.jsonl'), '{label} -> {say}')
  cfg = DataConfig({'signs': source}, packing='first_fit', valid_fraction=0.0)
  assert prompts.known_conditions(cfg) == ['moon', 'ring']
  assert prompts.known_conditions(cfg, most=1) == []
  letters = tokenizers.Tokenizers.build(CharTokenizer('abcgimnor'))
  run = SimpleNamespace(cfg=SimpleNamespace(data=cfg), tokenizers=letters)
  with pytest.raises(ValueError) as error:
    prompts.build_prompt(run, 'sun')
  _, fix = assert_two_lines(error.value, "prompt 'sun': character 's'", "'abcgimnor'")
  assert fix == 'fix: use a condition of training: moon, ring'
