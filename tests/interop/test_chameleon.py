"""Chameleon: pictures as ids of the vocabulary, read and never learned; its norms; what is refused."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt_jax import train
from gpt_jax.data.documents import encode_batch
from gpt_jax.data.templates import Piece
from gpt_jax.evaluation import trained
from gpt_jax.interop import families, huggingface
from gpt_jax.model.config import ModelConfig
from gpt_jax.sampling import prompts
from tests import models, tiny_runs, wholes
from tests.interop.test_interop import hf, our_logits, their_logits
from tests.interop.test_multimodal import experiment
from tests.interop.test_multimodal import our_logits as logits_of_prompt

__all__ = ['hf']  # the fixture
PROMPT = 'what is {image} ?'


@pytest.fixture(scope='module')
def run(hf, tmp_path_factory):
  """An imported run."""
  folder = tmp_path_factory.mktemp('chameleon')
  wholes.write(hf, 'chameleon', folder / 'source')
  huggingface.import_run(folder / 'source', folder / 'run')
  return trained.load(folder / 'run')


def test_codes_are_ids_that_are_not_learned(run):
  picture, text = Piece('image', wholes.pictures()[1]), lambda string: Piece('text', string)
  question, arrow, answer = [picture, text(' what is this ?')], Piece('arrow', None), text('a cat')
  with_arrow, without = encode_batch(run.tokenizers, [[*question, arrow, answer], [*question, answer]])
  codes = run.tokenizers.readers['patches'].token_ids
  assert len(codes) == 30 and sorted(codes) != codes
  for encoded in (with_arrow, without):
    is_code = np.isin(encoded.ids, codes)
    assert is_code.sum() == 16 and encoded.patches is None
    assert not encoded.targets[is_code].any()
  learned = run.tokenizers.text.decode(with_arrow.ids[with_arrow.targets > 0])
  assert learned.split() == ['a', 'cat']
  assert without.targets.sum() == len(without.ids) - 16


@pytest.mark.slow
def test_no_code_is_sampled(run):
  """Not even where the head prefers codes."""
  run = trained.load(run.workdir)
  codes = np.array(run.tokenizers.readers['patches'].token_ids)
  run.model.head_VD.set_value(run.model.head_VD.get_value().at[codes].multiply(30.0))
  media = {'images': [wholes.pictures()[0]]}
  prompt = prompts.build_prompt(run, PROMPT, **media)
  assert logits_of_prompt(run, prompt)[-1].argmax() in codes
  [text] = run.generate([{'text': PROMPT, **media}], max_new_tokens=6, temperature=0.0)
  assert 'IMGIMG' not in text


@pytest.mark.slow
def test_it_trains_on_pictures_and_is_exported(run, tmp_path):
  cfg = experiment(run.workdir, PROMPT, tmp_path, adapter={'train': ()})
  train.train(cfg, tmp_path / 'run')
  with pytest.raises(ValueError) as error:
    train.train(
      experiment(run.workdir, PROMPT, tmp_path, adapter={'train': ()}, encoder={'train': 'frozen'}),
      tmp_path / 'x',
    )
  tiny_runs.assert_two_lines(error.value, 'are ids')
  new, media = trained.load(tmp_path / 'run'), {'images': [wholes.pictures()[0]]}
  one, two = (logits_of_prompt(r, prompts.build_prompt(r, PROMPT, **media)) for r in (run, new))
  assert np.abs(one - two).max() > 1e-3
  huggingface.export_run(tmp_path / 'run', tmp_path / 'out')
  before = load_file(run.workdir.parent / 'source/model.safetensors')
  after = load_file(tmp_path / 'out/model.safetensors')
  same = {name for name, value in before.items() if np.array_equal(after[name], value)}
  assert {name for name in before if 'vqmodel' in name} <= same < set(before)


def test_norms_behind_branches(hf, tmp_path):
  """As of the larger Chameleon."""
  theirs, _ = wholes.fill(*wholes.chameleon(hf, swin_norm=True, attention_bias=True), tmp_path / 'source')
  cfg, ours, toks = huggingface.import_model(tmp_path / 'source')
  assert cfg.norm_position == 'output' and cfg.qk_norm_over == 'each'
  ids_BT = models.tokens(2, 12, 22)
  expected = their_logits(theirs, ids_BT)
  is_shown = expected > -1e30
  assert (~is_shown).sum() == 30 * 24
  np.testing.assert_allclose(our_logits(ours, ids_BT)[is_shown], expected[is_shown], rtol=1e-4, atol=1e-4)
  assert huggingface.export_model(cfg, ours, toks, tmp_path / 'out') == 'chameleon'
  files = [load_file(tmp_path / name / 'model.safetensors') for name in ('source', 'out')]
  assert files[0].keys() == files[1].keys()
  for name, value in files[0].items():
    np.testing.assert_array_equal(files[1][name], value, err_msg=name)


def test_what_is_not_held_is_refused(hf, tmp_path):
  words = wholes.chameleon(hf)[1].tokenizer.get_vocab()
  fewer = {name: index for name, index in words.items() if name != 'IMGIMGHZ'}
  for number, (changes, error) in enumerate(
    (
      ({'rms_norm_eps': 1e-6}, 'rms_norm_eps=1e-06'),
      ({'vocabulary_map': fewer}, 'vocabulary_map with 29 codes'),
      ({'vocabulary_map': words | {'<image>': 7}}, 'vocabulary_map with <image>=7'),
    )
  ):
    wholes.write(hf, 'chameleon', tmp_path / str(number), **changes)
    with pytest.raises(ValueError) as raised:
      huggingface.import_run(tmp_path / str(number), tmp_path / 'run')
    tiny_runs.assert_two_lines(raised.value, error)
    assert not (tmp_path / 'run').exists()
  wholes.write(hf, 'chameleon', tmp_path / 'whole')
  path = tmp_path / 'whole/model.safetensors'
  lacking = {name: value for name, value in load_file(path).items() if 'vqmodel.quant_conv' not in name}
  save_file(lacking, path, {'format': 'pt'})
  with pytest.raises(ValueError) as raised:
    huggingface.import_run(tmp_path / 'whole', tmp_path / 'run')
  tiny_runs.assert_two_lines(raised.value, 'has no tensor quant_conv')
  with pytest.raises(ValueError) as raised:  # a model of one's own has no picture tokenizer
    families.write_config(ModelConfig(qk_norm=True, qk_norm_over='each', tied_head=False))
  tiny_runs.assert_two_lines(raised.value, 'no family has all these settings')
