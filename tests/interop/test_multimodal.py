"""Models of several modalities equal those of transformers: random weights of odd shapes, each family."""

import dataclasses
import json
import re
import types

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from gpt_jax import config, data, train
from gpt_jax.data import media_io, templates
from gpt_jax.data.documents import decode_media, encode_batch
from gpt_jax.data.templates import Piece
from gpt_jax.evaluation import trained
from gpt_jax.interop import huggingface, multimodal
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.model import continuous, native_encoder, towers
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import completions, prompt_batch, prompts
from gpt_jax.tokenizers import processors, readers
from gpt_jax.training import encoders as pretrained
from tests import models, tiny_runs, wholes
from tests.interop.test_interop import hf

__all__ = ['hf']  # the fixture
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # PaliGemma's
PROMPTS = {
  'llava': 'USER : {image} \n what is this ? ASSISTANT :',
  'llava_next': 'USER : {image} \n what is {image} ? ASSISTANT :',
  'llava_onevision': 'USER : {image} \n what is this ? ASSISTANT :',
  'paligemma': '{image} what is this',
  'gemma3': 'what is this ? {image} and {image} \n one',  # two pictures: each sees itself both ways
  **dict.fromkeys(('qwen2_vl', 'qwen2_5_vl'), 'USER : <begin> {image} <end> is <begin> {image} <end> one ?'),
  'idefics3': 'USER : {image} what is this ?',
  'smolvlm': 'USER : {image} what is this ?',
  'chameleon': 'USER : {image} what is {image} ?',
  'voxtral': 'USER : [BEGIN] {audio} what is this ?',
  'qwen2_audio': '<begin> {audio} <end> \n what is this ?',
}
NEW = 8  # tokens


SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in PROMPTS if family != 'llava']


@pytest.fixture(scope='module', params=['llava', *SLOW])
def whole(request, hf, tmp_path_factory):
  """(transformers' model and processor, source folder, run folder, prompt)."""
  folder = tmp_path_factory.mktemp(request.param)
  source, workdir = folder / 'source', folder / 'run'
  theirs = wholes.write(hf, request.param, source)
  huggingface.import_run(source, workdir)
  return *theirs, source, workdir, PROMPTS[request.param]


def media_of(prompt, number):
  """Arguments of `build_prompt`: as many pictures or sounds as a prompt has places."""
  if '{audio}' in prompt:
    several = 4 if 'BEGIN' in prompt else 1  # windows of Voxtral
    return {'sounds': [np.tile(wholes.sounds()[number], several)]}
  return {'images': [wholes.pictures()[number], wholes.pictures(1)[0]][: prompt.count('{image}')]}


def their_inputs(processor, run, prompt, images=(), sounds=()):
  """The batch of transformers' processor."""
  mark = next(iter(run.tokenizers.places.values())).mark
  media = {'audio': list(sounds), 'sampling_rate': 16_000} if sounds else {'images': list(images)}
  text = prompt.replace('{image}', mark).replace('{audio}', mark)
  return processor(text=text, **media, return_tensors='pt')


def our_logits(run, prompt):
  """The logits [T, V] of a Prompt in one forward pass."""
  grammar = completions.build_grammar(run.tokenizers, run.model.cfg.V)
  batch = prompt_batch.batch_prompts(
    run.model.cfg, [prompt], SampleConfig(max_new_tokens=1), grammar, len(prompt.ids)
  )
  return np.asarray(run.model(batch.input_ids_BP, **batch.inputs).logits_BTV)[0]


def test_logits_and_texts_equal_those_of_transformers(whole):
  import torch

  model, processor, _, workdir, prompt = whole
  run = trained.load(workdir)
  vocabulary = run.tokenizers.vocabulary
  # The ids that a grammar excludes: specials, places of pictures, and rows that no token has.
  never = np.flatnonzero(
    ~vocabulary.allowed(['text', 'eos'])[: model.config.get_text_config().vocab_size]
  ).tolist()
  media = media_of(prompt, 1)
  inputs = their_inputs(processor, run, prompt, **media)
  ours = prompts.build_prompt(run, prompt, **media)
  ids = inputs['input_ids'][0].clone()
  if hasattr(model, 'get_image_tokens'):  # Chameleon reads the codes themselves
    ids[ids == model.config.image_token_id] = model.get_image_tokens(inputs['pixel_values']).flatten().long()
    assert len(ids.unique()) > 15
  assert ours.ids == ids.tolist()
  with torch.no_grad():
    expected = model(**inputs).logits[0].numpy()
    new = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, suppress_tokens=never)
  actual = our_logits(run, ours)[:, : expected.shape[1]]
  is_shown = expected > -1e30  # of Chameleon, ids of codes are not
  assert expected[is_shown].std() > 0.1
  np.testing.assert_allclose(actual[is_shown], expected[is_shown], rtol=1e-4, atol=1e-4)
  [[(ids, _)]] = completions.generate_ids(
    run.model, run.tokenizers, [ours], SampleConfig(max_new_tokens=NEW, temperature=0.0)
  )
  assert ids == new[0, len(ours.ids) :].tolist()
  text = run.generate([{'text': prompt, **media}], max_new_tokens=NEW, temperature=0.0)
  assert text[0].split() == run.tokenizers.decode_text(ids).split()


def test_media_are_prepared_as_by_transformers(whole):
  _, processor, _, workdir, prompt = whole
  run = trained.load(workdir)
  if '{audio}' in prompt:
    for media in (media_of(prompt, number) for number in range(4)):
      expected = their_inputs(processor, run, prompt, **media)['input_ids'][0].tolist()
      assert prompts.build_prompt(run, prompt, **media).ids == expected
    return
  pixels = processors.Pixels(*run.tokenizers.readers['patches'].pixels)
  rng = np.random.default_rng(2)
  pictures = wholes.pictures(3, [tuple(rng.integers(7, 80, 2)) for _ in range(20)])
  for picture in pictures:
    repeated = [picture] * prompt.count('{image}')
    expected = np.asarray(their_inputs(processor, run, prompt, images=repeated)['pixel_values'])
    [piece] = decode_media(run.tokenizers, [Piece('image', picture)])
    tiles = run.tokenizers.readers['patches'].cut(piece.value)
    tiles = [tiles[-1], *tiles[:-1]] if pixels.sizes else tiles  # LLaVA-NeXT has the whole picture first
    if pixels.area:  # patches of squares, twice: two frames
      patches, _ = native_encoder.cut_patches(
        pixels.normalize(piece.value), run.tokenizers.readers['patches'].spec
      )
      twice = np.stack([patches.reshape(len(patches), 3, 3, 3).transpose(0, 3, 1, 2)] * 2, 2)
      np.testing.assert_array_equal(np.tile(twice.reshape(len(twice), -1), (len(repeated), 1)), expected)
      continue
    actual = np.moveaxis(np.stack([pixels.normalize(tile) for tile in tiles]), 3, 1)
    expected = expected.reshape(-1, *expected.shape[-3:])
    assert len(expected) == len(tiles) * len(repeated)
    np.testing.assert_array_equal(actual, expected[: len(tiles)])


def test_an_export_has_the_same_bytes_and_logits(whole, hf, tmp_path):
  import torch

  model, processor, source, workdir, prompt = whole
  huggingface.export_run(workdir, tmp_path / 'out')
  before, after = (load_file(folder / 'model.safetensors') for folder in (source, tmp_path / 'out'))
  assert before.keys() == after.keys()
  for name, value in before.items():
    np.testing.assert_array_equal(after[name], value)
  again = type(model).from_pretrained(tmp_path / 'out').eval()
  theirs = type(processor).from_pretrained(tmp_path / 'out')
  run, media = trained.load(workdir), media_of(prompt, 0)
  with torch.no_grad():
    expected = model(**their_inputs(processor, run, prompt, **media)).logits
    actual = again(**their_inputs(theirs, run, prompt, **media)).logits
  assert torch.equal(actual, expected)


def experiment(base, prompt, folder, **changes):
  """The Config of adapters on an imported model, on four rows with a picture or a sound each."""
  [mark] = {'{image}', '{audio}'} & set(re.findall('{.*?}', prompt))
  rows, kind = [], {'{image}': 'patches', '{audio}': 'frames'}[mark]
  for number in range(4):
    [value, *_] = next(iter(media_of(prompt, number).values()))
    name = f'{number}.{"wav" if value.ndim == 1 else "png"}'
    content = media_io.to_wav(value, 16_000) if value.ndim == 1 else media_io.to_png(value)
    (folder / name).write_bytes(content)
    rows.append({'item': name, 'name': ('a cat', 'a dog')[number % 2]})
  (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  before, _, after = prompt.partition(mark)
  template = f'{before}{{item:{kind}}}{after.replace(mark, "")} -> {{name}}'
  cfg = config.default()
  config.start_from(cfg, str(base), 2, length=40)
  cfg.adapter.train = (f'^{continuous.KINDS[kind].place}_',)
  cfg.data.mixture = {
    'see': {'kind': 'jsonl', 'path': str(folder / 'rows.jsonl'), 'root': str(folder), 'template': template}
  }
  cfg.data.update(packing='first_fit', valid_fraction=0.0)
  cfg.optim.update(lr=1e-2, warmup=0)
  cfg.train.update(steps=2, batch_size=8, eval_every=0, sample_every=0, sample_prompts=())
  for name, values in changes.items():
    cfg[name].update(values)
  return config.build(config.Config, cfg)


@pytest.mark.slow
@pytest.mark.parametrize('whole', ['llava'], indirect=True)
def test_adapters_and_the_projector_train_and_are_exported(whole, tmp_path):
  _, _, source, base, prompt = whole
  train.train(experiment(base, prompt, tmp_path), tmp_path / 'run')
  old, new = trained.load(base), trained.load(tmp_path / 'run')
  assert new.tokenizers.vocabulary == old.tokenizers.vocabulary
  media = media_of(prompt, 0)
  one, two = (our_logits(run, prompts.build_prompt(run, prompt, **media)) for run in (old, new))
  assert np.abs(one - two).max() > 1e-3
  huggingface.export_run(tmp_path / 'run', tmp_path / 'out')
  changed = load_file(tmp_path / 'out/model.safetensors')
  same = {
    name for name, value in load_file(source / 'model.safetensors').items() if (changed[name] == value).all()
  }
  assert {name for name in changed if name.startswith(('vision_tower.', 'audio_tower.'))} <= same
  assert not any(name.startswith('multi_modal_projector.') for name in same)


@pytest.mark.slow
@pytest.mark.parametrize('whole', ['llava'], indirect=True)
def test_the_encoder_trains_in_the_step(whole, tmp_path):
  _, _, _, base, prompt = whole
  train.train(experiment(base, prompt, tmp_path, encoder={'train': 'adapters'}), tmp_path / 'run')
  old, new = trained.load(base), trained.load(tmp_path / 'run')
  media = media_of(prompt, 0)
  one, two = (our_logits(run, prompts.build_prompt(run, prompt, **media)) for run in (old, new))
  assert np.abs(one - two).max() > 1e-3
  before, after = pretrained.weights(new.model.cfg), models.params(new.model)
  changed = {path for path, value in before.items() if not np.array_equal(after[path], value)}
  assert changed == {path for path in before if re.search(r'attention/w|mlp/(up_DF|down_FD)', path)}
  with pytest.raises(ValueError) as error:
    huggingface.export_run(tmp_path / 'run', tmp_path / 'out')
  tiny_runs.assert_two_lines(error.value, 'holds an encoder')
  with pytest.raises(ValueError) as error:
    train.train(experiment(tmp_path / 'run', prompt, tmp_path), tmp_path / 'again')
  tiny_runs.assert_two_lines(error.value, 'has the encoder in the model')


@pytest.mark.parametrize('whole', ['llava'], indirect=True)
def test_a_conversation_has_the_ids_of_transformers(whole):
  _, processor, _, workdir, _ = whole
  run, picture = trained.load(workdir), wholes.pictures()[1]
  question = [{'type': 'image'}, {'type': 'text', 'text': 'what is this ?'}]
  theirs = [{'role': 'user', 'content': question}]
  ours = [{'role': 'user', 'content': [{'image': picture}, {'text': 'what is this ?'}]}]
  text = processor.apply_chat_template(theirs, add_generation_prompt=True)
  expected = processor(text=text, images=[picture], add_special_tokens=False)['input_ids'][0]
  prompt = prompts.build_chat(run, ours)
  assert prompt.ids == list(expected) and prompt.patches.any(1).sum() == 9
  pieces = templates.chat_pieces([*ours, {'role': 'assistant', 'content': 'a cat'}], 'messages', 'a test')
  [encoded] = encode_batch(run.tokenizers, [pieces])
  assert encoded.ids[: len(expected)].tolist() == list(expected) and encoded.patches.shape == (9, 16)
  learned = run.tokenizers.text.decode(encoded.ids[encoded.targets > 0])
  assert learned.split() == ['a', 'cat', '</s>']


@pytest.mark.parametrize(
  'family, changes, error',
  [
    ('llava', {'vision_feature_layer': [-2, -1]}, 'one layer of the encoder is read'),
    ('llava', {'projector_hidden_act': 'relu'}, 'the projector has exact GELU'),
    ('llava', {'image_token_index': 47}, 'the tokenizer has no token of this id'),
    ('llava_next', {'vision_feature_select_strategy': 'full'}, 'a tile gives its patches and no others'),
    ('llava_next', {'image_grid_pinpoints': [[15, 20]]}, 'it is not made of tiles of 15x15'),
    ('llava_next', {'image_grid_pinpoints': [[15, 30]]}, 'the processor cuts pictures of'),
    ('voxtral', {'projector_hidden_act': 'relu'}, 'the projector has exact GELU'),
    ('gemma3', {'mm_tokens_per_image': 9}, 'squares of 4x4 patches do not give it'),
  ],
)
def test_what_is_not_held_is_refused_before_anything_is_written(family, changes, error, hf, tmp_path):
  wholes.write(hf, family, tmp_path / 'source', **changes)
  with pytest.raises(ValueError, match=error):
    huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_run_that_moves_takes_its_encoder_along(hf, tmp_path):
  wholes.write(hf, 'llava', tmp_path / 'source')
  huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  (tmp_path / 'run').rename(tmp_path / 'moved')
  reader = trained.load(tmp_path / 'moved').tokenizers.readers['patches']
  assert reader.path == str(tmp_path / 'moved/encoder')
  assert reader.features(wholes.pictures(sizes=[(15, 15)]))[0].shape == (9, 16)


def test_a_center_is_cut_out():
  image = wholes.pictures(sizes=[(40, 23)])[0]
  whole, _ = media_io.read_image(image, (46, 23 * 46 // 40, 3))
  cut, note = media_io.read_image(image, (15, 15, 3, processors.BICUBIC, 15, 0))
  assert cut.shape == (15, 15, 3) and note == 'resized from 23x40, cut from 15x26'
  expected = np.asarray(Image.fromarray(image).resize((15, 26), Image.Resampling.BICUBIC))[5:20]
  np.testing.assert_array_equal(cut, expected)
  assert whole.shape == (46, 26, 3)
  larger, _ = media_io.read_image(image, (15, 15, 3, processors.BICUBIC, 20, 0))
  again, note = media_io.read_image(larger, (15, 15, 3, processors.BICUBIC, 20, 0))
  assert again is larger and not note  # it is not cut twice


def test_an_encoder_alone_follows_its_processor(hf, tmp_path):
  hf.CLIPVisionModel(hf.CLIPVisionConfig(**wholes.VISION, projection_dim=8)).save_pretrained(tmp_path)
  side = {'height': 15, 'width': 15}
  hf.CLIPImageProcessorPil(size={'shortest_edge': 20}, crop_size=side).save_pretrained(tmp_path)
  reader = readers.EncoderReader.open(str(tmp_path), readers.EncoderConfig(image=str(tmp_path)), 'patches')
  assert reader.form == (15, 15, 3, processors.BICUBIC, 20, 0)


# ------------------------------------------------------------------------- documents of such a model


def run_config(base, template, **mixture):
  """The config of adapters on an imported model."""
  cfg = config.default()
  config.start_from(cfg, str(base), 2, length=40)
  cfg.data.mixture = {'see': {'kind': 'jsonl', 'path': 'rows.jsonl', 'template': template, **mixture}}
  cfg.data.update(packing='first_fit', valid_fraction=0.0)
  return cfg


@pytest.mark.parametrize('whole', ['llava'], indirect=True)
@pytest.mark.parametrize('template', ['{x:patches} -> {y}', '{x:image} -> {y}', '{m:chat}', '{p:parts}'])
def test_an_encoder_in_the_step_reads_the_pictures_of_any_template(whole, template, tmp_path):
  section = run_config(whole[3], template)
  section.encoder.train = 'frozen'
  cfg = config.build(config.Config, section)
  toks = run_tokenizers.build(cfg, tmp_path)
  model_cfg = language_model.resolve_model(cfg, toks)
  [tower] = towers.towers(model_cfg)
  assert dict(data.RowFields.of(cfg.data, toks).features) == {'patches': tower.input_width}
  assert model_cfg.patch_values == tower.output_width


def test_what_config_json_leaves_out_of_an_encoder_is_as_its_family_has_it(tmp_path):
  hf = {'model_type': 'llava', 'vision_config': {'model_type': 'clip_vision_model'}, 'image_token_index': 3}
  files = types.SimpleNamespace(hf=hf, path=tmp_path)
  words = types.SimpleNamespace(vocab=lambda: {'<image>': 3})
  reader = multimodal.open_reader(multimodal.find(hf), files, words, None)
  assert reader.spec.cfg.layers == 11  # the last but one of 12
  # Of a model with an encoder that is not known the text decoder is imported.
  assert multimodal.find(hf | {'vision_config': {'model_type': 'pixtral'}}) is None


@pytest.mark.parametrize('whole', ['llava'], indirect=True)
def test_every_token_of_a_cache_has_its_target(whole, tmp_path):
  """A conversation without a reply has nothing to learn, and moves the targets of no other."""
  _, _, _, base, _ = whole
  reply = {'role': 'assistant', 'content': 'a cat'}
  rows = [[{'role': 'user', 'content': 'what is this ?'}, *more] for more in ([], [reply])]
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps({'m': row}) + '\n' for row in rows))
  cfg = run_config(base, '{m:chat}', root=str(tmp_path))
  cfg.data.mixture.see.path = str(tmp_path / 'rows.jsonl')
  toks = trained.load(base).tokenizers
  built = config.build(config.Config, cfg)
  cache = data.token_cache(built.data, 'see', toks, 'train', tmp_path / 'cache')
  assert len(cache.targets) == len(cache.ids)
  learned = np.asarray(cache.ids)[np.asarray(cache.targets) > 0]
  assert toks.text.decode(learned).split() == ['a', 'cat', '</s>']


@pytest.mark.parametrize('whole', ['llava'], indirect=True)
def test_the_likelihood_of_a_target_has_the_end_that_training_learns(whole):
  _, _, _, base, _ = whole
  run = trained.load(base)
  cfg = config.build(config.Config, run_config(base, '{item:image} what -> {name}'))
  subject = dataclasses.replace(run.subject(), cfg=cfg)
  picture = Piece('image', wholes.pictures()[0])
  document = [picture, Piece('text', ' what'), Piece('arrow'), Piece('text', 'a cat')]
  with_end, without = (subject.target_nats([document], ends=ends)[0] for ends in (True, False))
  assert with_end > without + 0.1


@pytest.mark.parametrize('whole', ['llava'], indirect=True)
def test_a_reply_ends_as_the_template_of_typed_parts_ends_it(whole):
  run = trained.load(whole[3])
  assert prompts.chat_ends(run) != ((), ())


@pytest.mark.parametrize('whole', ['llava'], indirect=True)
def test_words_that_stand_for_pictures_are_refused_by_record(whole):
  toks = trained.load(whole[3]).tokenizers
  with pytest.raises(ValueError) as error:
    decode_media(toks, [Piece('text', 'a <image> here')], 'rows.jsonl line 3')
  tiny_runs.assert_two_lines(error.value, 'rows.jsonl line 3 has <image> in its words')


@pytest.mark.parametrize('whole', ['llava'], indirect=True)
@pytest.mark.parametrize(
  'template, changes, words',
  [
    ('{v:vectors} -> {name}', {}, 'has vectors, and the imported model reads patches alone'),
    ('{name} -> {x:codes}', {}, 'has codes, and the imported model reads patches alone'),
    (
      '{x:image} -> {name}',
      {'image': {'kind': 'patches', 'codes': 4}},
      'image.kind=patches is not supported',
    ),
    ('{x:image} -> {name}', {'encoder': {'image': 'eye'}}, 'encoder.image=eye is not supported'),
    ('{x:image} -> {name}', {'data': {'prefix': True}}, 'data.prefix=True is not supported'),
    (
      '{x:image} -> {name}',
      {'data': {'condition_dropout': 0.1}},
      'data.condition_dropout=0.1 is not supported',
    ),
    ('{m:chat}', {}, 'has conversations, and the imported model has no chat template'),
  ],
)
def test_settings_that_an_imported_model_cannot_honor(whole, template, changes, words, monkeypatch):
  cfg = run_config(whole[3], template)
  for name, values in changes.items():
    cfg[name].update(values)
  toks = trained.load(whole[3]).tokenizers
  monkeypatch.setattr(type(toks.text), 'chat_template', '')
  with pytest.raises(ValueError) as error:
    run_tokenizers.check_places(toks, config.build(config.Config, cfg))
  tiny_runs.assert_two_lines(error.value, words)


def test_an_import_that_fails_writes_nothing(hf, tmp_path):
  wholes.write(hf, 'llava', tmp_path / 'source')
  path = tmp_path / 'source/model.safetensors'
  lacking = {name: value for name, value in load_file(path).items() if 'self_attn.q_proj' not in name}
  save_file(lacking, path, {'format': 'pt'})
  with pytest.raises(ValueError, match='missing'):
    huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('family', 'name'),
  [('llava', 'layers.0.mlp.fc1.bias'), ('qwen2_vl', 'blocks.0.norm1.bias'), ('qwen2_audio', 'conv2.weight')],
)
def test_an_encoder_that_is_not_complete_is_an_error_that_names_the_tensor(family, name, hf, tmp_path):
  source = tmp_path / 'source'
  wholes.write(hf, family, source)
  path = source / 'model.safetensors'
  lacking = {key: value for key, value in load_file(path).items() if not key.endswith(f'.{name}')}
  save_file(lacking, path, {'format': 'pt'})
  with pytest.raises(ValueError) as error:
    huggingface.import_run(source, tmp_path / 'run')
  tiny_runs.assert_two_lines(error.value, f'{source} has no tensor ', name)
  assert not (tmp_path / 'run').exists()


def test_a_model_of_sounds_is_imported_and_reads_them(hf, tmp_path):
  wholes.write(hf, 'qwen2_audio', tmp_path / 'source')
  huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  run, [wave, *_] = trained.load(tmp_path / 'run'), wholes.sounds()
  prompt = prompts.build_prompt(run, PROMPTS['qwen2_audio'], sounds=[wave])
  assert prompt.frames.any(1).sum() == 25  # 16,000 samples: 50 outputs, means of two
