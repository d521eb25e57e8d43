"""Pictures as continuous patches: documents, a run that draws and reads them, and what is refused."""

import types

import numpy as np
import pytest

from gpt_jax import config, data, sample, train
from gpt_jax.data import Piece
from gpt_jax.evaluation import evaluate, trained
from gpt_jax.jobs import run_tokenizers
from gpt_jax.model import flow
from gpt_jax.sampling import completions, decoding_layout, prompts
from gpt_jax.tokenizers import Tokenizers, image, text
from tests import models, tiny_runs

DIGITS = {
  'draw': {'kind': 'digits', 'template': '{name} -> {image:image}'},
  'read': {'kind': 'digits', 'template': '{image:image} -> {name}'},
  'album': {'kind': 'digits', 'template': 'digit {name}: {image:image}'},
}


def experiment(**changes):
  loaded = tiny_runs.media()
  loaded.data.mixture, loaded.audio = (
    tiny_runs.section(data__mixture=DIGITS).data.mixture,
    config.default().audio,
  )
  loaded.image = config.default().image
  loaded.image.update(kind='continuous', height=8, width=8, patch=4)
  loaded.model.update(flow_layers=1, layers=2)
  loaded.train.update(steps=4, batch_size=8, eval_every=2, sample_every=0, eval_tokens=64)
  for name, values in changes.items():
    loaded[name].update(values)
  return config.build(config.Config, loaded)


def test_a_document_has_loss_on_the_patches_that_it_makes():
  bytes_ = text.build(config.default().tokenizer, lambda: iter(()))
  toks = Tokenizers.build(bytes_, image.ContinuousTokenizer((4, 4, 1), 2))
  patch, boi, eoi = map(toks.vocabulary.special, ('patch', 'boi', 'eoi'))
  picture = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 17
  for pieces, made in (
    ([Piece('text', '7'), Piece('image', picture)], True),
    ([Piece('text', '7'), Piece('arrow'), Piece('image', picture)], True),
    ([Piece('image', picture), Piece('arrow'), Piece('text', '7')], False),
  ):
    [encoded] = data.encode_batch(toks, [pieces])
    at = encoded.ids == patch
    assert at.sum() == 4 and encoded.patches.shape == (4, 4)
    np.testing.assert_array_equal(toks.image.decode_features(encoded.patches[None])[0], picture)
    ids_BW = encoded.ids[None]
    mask_BW = toks.layout.target_mask(ids_BW, np.ones_like(ids_BW))
    assert (mask_BW[0, at] == made).all() and mask_BW[0, encoded.ids == eoi] == made
  grammar = completions.build_grammar(toks, toks.vocabulary.padded, 'image')
  np.testing.assert_array_equal(np.flatnonzero(grammar.table_NV[1]), [patch])
  assert grammar.needs_V[boi] == 4 + 2


@pytest.mark.slow
def test_a_run_draws_reads_and_resumes(tmp_path, tmp_path_factory):
  with tiny_runs.compiled_programs(tmp_path_factory):
    assert train.train(experiment(), tmp_path / 'run', tiny_runs.stop_before(2)) is None
    result = train.train(experiment(), tmp_path / 'run')
    run = trained.load(tmp_path / 'run')
    assert run.step == 4 and 'image0' not in run.tokenizers.vocabulary.kinds
    images = run.generate(['seven', 'two'], to='image', guidance=1.5)
    assert {image.shape for image in images} == {(8, 8, 1)} and {x.dtype for x in images} == {
      np.dtype('uint8')
    }
    np.testing.assert_array_equal(run.generate(['seven'], to='image', guidance=1.5)[0], images[0])
    assert isinstance(run.generate([{'images': [images[0]]}], max_new_tokens=4)[0], str)
    rows = evaluate.run_tasks(run.subject(), ['perplexity'], limit=32)
    value = lambda metric, source: next(
      r['value'] for r in rows if (r['metric'], r['source']) == (metric, source) and 'modality' not in r
    )
    assert 0.1 < value('flow_error', 'draw') < 3 and result['valid_loss'] > 0
    assert not any(r['metric'] == 'flow_error' and r['source'] == 'read' for r in rows)
    with pytest.raises(ValueError) as error:
      evaluate.run_tasks(run.subject(), ['classify'])
    tiny_runs.assert_two_lines(error.value, '--tasks=classify needs a source')
    check_values_of_a_generation(run)


def check_values_of_a_generation(run):
  """Each sampled patch is the one of the uncached model's hidden state before it."""
  encoded, cfg = prompts.encode(run, [[Piece('text', 'one'), Piece('arrow')]], 'image'), run.cfg.sample
  cfg = prompts.resolve_max_new_tokens(run, encoded, cfg, 'image')
  model = decoding_layout.prepare_model(run.model)
  grammar = completions.build_grammar(run.tokenizers, model.cfg.V, 'image')
  keys_B = sample.row_keys(3, 1)
  state = sample.generate(model, encoded, cfg, grammar, keys_B)
  [(ids, _)] = completions.new_tokens(state, encoded, 1)
  whole = [*encoded[0].ids, *ids]
  values_TA = np.asarray(state.patches.values_BTA)[0, : len(whole)]
  at = np.flatnonzero(np.array(whole) == model.cfg.patch_id)
  assert len(at) == 4 and (np.abs(values_TA[at]).sum(1) > 0).all() and not np.delete(values_TA, at, 0).any()
  layout = run.tokenizers.layout
  positions_BT3 = layout.positions3(np.array([whole]), np.ones((1, len(whole)), np.int32))
  x_BTD, _, _ = model.trunk(
    np.array([whole], np.int32), positions_BT=positions_BT3, patches_BTA=values_TA[None]
  )
  for t in at:
    fake = state._replace(lengths_B=np.array([t], np.int32), done_B=np.array([False]), keys_B=keys_B)
    fake = fake._replace(patches=flow.Patches(x_BTD[:, t - 1], None))
    again = flow.sample_patches(model, fake, np.array([model.cfg.patch_id]), cfg)['patches_BTA'][0, 0]
    models.assert_close(np.asarray(again), values_TA[t], 1e-3)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model': {'flow_layers': 0}}, "model.flow_layers=0 does not fit image.kind='continuous'"),
    ({'image': {'kind': 'patches', 'codes': 4}}, "model.flow_layers=1 does not fit image.kind='patches'"),
    ({'loss': {'audio': 2.0}}, 'loss.audio=2.0 has no effect'),
  ],
)
def test_settings_that_do_not_fit(changes, words, tmp_path, tmp_path_factory):
  with tiny_runs.compiled_programs(tmp_path_factory), pytest.raises(ValueError) as error:
    train.train(experiment(**changes), tmp_path / 'run')
  tiny_runs.assert_two_lines(error.value, words)


def test_pictures_are_not_read_by_an_encoder_and_drawn_as_pixels():
  toks = types.SimpleNamespace(makes_patches=True, readers={'patches': None})
  with pytest.raises(ValueError) as error:
    run_tokenizers.check_flow(experiment(), toks)
  tiny_runs.assert_two_lines(error.value, 'image.kind=continuous draws patches of pixels')
  with pytest.raises(ValueError) as error:
    run_tokenizers.open_readers(experiment(model={'projector': 'pool', 'projector_parts': 2}))
  tiny_runs.assert_two_lines(error.value, 'model.projector_parts=2 would cut patches')
