"""The lab's pages that use a model or its data, on tiny trained runs."""

import base64
import io
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gpt_jax.data import media_io
from gpt_jax.data.templates import Piece
from gpt_jax.evaluation import trained
from gpt_jax.interop import huggingface
from gpt_jax.model import attention
from gpt_jax.reports import compare
from gpt_jax.sampling import completions, validate
from gpt_jax.sampling.prompt_batch import Prompt
from gpt_jax.tokenizers import Tokenizers
from gpt_jax.tokenizers.audio import AudioConfig
from gpt_jax.tokenizers.codec import CodeTokenizer
from gpt_jax.training import probes
from gpt_jax.workbench.lab import app, inside, pieces, playground
from gpt_jax.workbench.lab import models as lab_models
from tests import models, tiny_runs
from tests.tokenizers.test_chat_template import CHATML, write_tokenizer

pytest.importorskip('starlette', reason='starlette is not installed: pip install .[lab]')
testclient = pytest.importorskip('starlette.testclient', reason='httpx is not installed: pip install httpx')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The folder of two trained runs."""
  text, media = (make(tmp_path_factory) for make in (tiny_runs.finished, tiny_runs.media_finished))
  assert text.parent == media.parent
  return text.parent


@pytest.fixture(scope='module')
def client(runs):
  return testclient.TestClient(app.build_app(runs), base_url='http://127.0.0.1')


def post(client, path, **body):
  response = client.post(path, json=body)
  assert response.status_code == 200, response.text
  return response


def lines(response):
  return [json.loads(line) for line in response.text.splitlines()]


def get(client, path, **query):
  response = client.get(path, params=query)
  assert response.status_code == 200, response.text
  return response.json()


def test_models_say_what_they_read_and_make(client):
  by_name = {model['name']: model for model in get(client, '/api/models')['models']}
  assert by_name['finished']['inputs'] == by_name['finished']['outputs'] == ['text']
  assert by_name['media']['inputs'] == by_name['media']['outputs'] == ['audio', 'image', 'text']
  assert set(by_name['media']['sources']) == {'read', 'draw', 'listen', 'dial'}


def test_losses_and_alternatives_are_those_of_the_model(client, runs):
  found = post(client, '/api/inside', run='finished', text='the cat sat').json()
  run = trained.load(runs / 'finished')
  ids = np.array([[token['id'] for token in found['tokens']]], np.int32)
  log_probs = np.asarray(jax.nn.log_softmax(run.model(ids).logits_BTV, -1))[0]
  nats = [-log_probs[t, i] for t, i in enumerate(ids[0, 1:])]
  np.testing.assert_allclose([token['nats'] for token in found['tokens'][1:]], nats, rtol=1e-4)
  assert found['tokens'][0]['nats'] is None
  best = found['next'][0]
  assert best['id'] == log_probs[-1].argmax()
  assert math.isclose(best['p'], math.exp(log_probs[-1].max()), rel_tol=1e-4)
  # The lens of the last layer is the model itself.
  np.testing.assert_allclose([nats for _, _, nats in found['lens'][-1]][:-1], nats, rtol=1e-4)
  shape = found['layers'], found['heads'], len(ids[0]), len(ids[0])
  weights_LHTS = np.frombuffer(base64.b64decode(found['attention']), '<u2').reshape(shape) / 65535
  np.testing.assert_allclose(weights_LHTS.sum(-1), 1, atol=1e-3)
  assert (np.triu(weights_LHTS, 1) == 0).all()


@pytest.mark.parametrize('variant', ['grouped', 'window', 'softcap', 'alibi', 'gemma', 'parallel'])
def test_weights_of_attention_are_those_of_the_definition(variant, monkeypatch):
  """The definition averages the rows of an identity matrix: as many tokens as a head is wide."""
  cfg, expected = models.tiny(**models.VARIANTS[variant]), []
  model = models.fill(cfg)

  def attend(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
    eye_BSGK = jnp.broadcast_to(jnp.eye(cfg.K)[None, :, None], v_BSGK.shape)
    expected.append(attention.xla_attention(cfg, q_BTHK, k_BSGK, eye_BSGK, mask).swapaxes(1, 2))
    return attention.xla_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask)

  monkeypatch.setattr(attention, 'attend', attend)
  ids = jax.random.randint(jax.random.key(0), (2, cfg.K), 0, 50)
  measure = lambda model, ids: probes.activations(model, {'token_ids_BT': ids}, with_weights=True)
  outputs, weights = jax.jit(lambda model, ids: (measure(model, ids), tuple(expected)))(model, ids)
  assert len(weights) == cfg.layers
  for l, weights_BHTS in enumerate(weights):
    np.testing.assert_allclose(outputs[f'blocks/{l}/attention/weights'], weights_BHTS, atol=1e-6)


def test_a_text_under_two_models(client, runs):
  text = 'the cat sat'
  found = post(client, '/api/difference', run=['finished', 'media'], text=text).json()
  for name, nats in zip(found['runs'], found['nats'], strict=True):
    assert math.isclose(nats, trained.load(runs / name).score([text])[0].nats, rel_tol=1e-4)
  assert found['bytes'] == len(text.encode())
  assert 'class="diff"' in found['html']
  assert client.post('/api/difference', json={'run': ['media'], 'text': text}).status_code == 400


def test_where_activations_part(runs, tmp_path):
  for name, source in (('end', 'finished'), ('before', 'finished'), ('media', 'media')):
    shutil.copytree(runs / source, tmp_path / name)
  last = max(int(path.name) for path in (tmp_path / 'before/checkpoints').iterdir() if path.name.isdecimal())
  shutil.rmtree(tmp_path / f'before/checkpoints/{last}')
  client = testclient.TestClient(app.build_app(tmp_path), base_url='http://127.0.0.1')
  reply = post(client, '/api/activations', run=['end', 'before']).json()
  rows = {row['path']: row['relative'] for row in reply['activations']}
  assert [*rows][0] == 'blocks/0/attention' and [*rows][-1] == 'logits' and min(rows.values()) > 0
  a, b = (trained.load(tmp_path / name) for name in ('end', 'before'))
  _, batch, expected = compare.activations_apart(a, b)
  assert list(rows.values()) == [relative for _, _, relative in expected]
  assert [reply['rows'], reply['tokens']] == list(batch['token_ids_BT'].shape)
  response = client.post('/api/activations', json={'run': ['end', 'media']})
  assert response.status_code == 400 and 'have different tokenizers' in response.json()['error']


def picture():
  file = io.BytesIO()
  Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(file, 'PNG')
  return base64.b64encode(file.getvalue()).decode()


def test_inside_of_a_picture_and_of_a_sound(client):
  found = post(client, '/api/inside', run='media', images=[picture()], answer='seven').json()
  kinds = [token['kind'] for token in found['tokens']]
  assert kinds.count('image') == 16
  [shown] = found['media']
  assert kinds[shown['start'] : shown['end'] + 1] == ['special', *['image'] * 16, 'special']
  assert shown['grid'] == [4, 4]
  codes = [int(token['piece'].partition(':')[2]) for token in found['tokens'] if token['kind'] == 'image']
  assert [code for [code] in shown['codes']] == codes
  condition = 1 + [token['piece'] for token in found['tokens']].index('sep')
  assert [token['given'] for token in found['tokens']] == [t < condition for t in range(len(found['tokens']))]
  assert ''.join(token['piece'] for token in found['tokens'] if token['kind'] == 'text').endswith('seven')
  sound = base64.b64encode(media_io.to_wav(np.sin(np.arange(800) / 3), 8000)).decode()
  found = post(client, '/api/inside', run='media', sounds=[sound]).json()
  [shown] = found['media']
  assert len(shown['codes']) == [token['kind'] for token in found['tokens']].count('audio') > 0
  assert shown['spectrogram'].startswith('data:image/png;base64,')


def test_a_prompt_has_the_mask_that_it_is_sampled_with(runs):
  """Of an imported model the whole prompt, or each picture, sees itself both ways."""
  run = trained.load(runs / 'media')
  patch, sep = run.tokenizers.layout.patch, run.tokenizers.layout.sep
  ids = [1, patch, patch, 2, patch, sep, 3]
  for mask, groups in (('condition', [1] * 6 + [0]), ('prefix', [1] * 7), ('items', [0, 1, 1, 0, 2, 0, 0])):
    batch = inside.batch_of(run, Prompt(ids, mask=mask), [*ids, 4])
    assert batch['prefix_BT'][0, :8].tolist() == [*groups, 0] and not batch['prefix_BT'][0, 8:].any()
  assert 'prefix_BT' not in inside.batch_of(run, Prompt(ids), ids)
  assert inside.condition(run, Prompt([1, 2], mask='prefix'), [1, 2, 3]) == [True, True, False]
  assert inside.condition(run, Prompt([1, 2]), [1, 2, 3]) == [False] * 3


def test_codes_without_a_codec_are_shown_as_numbers(runs):
  run = trained.load(runs / 'media')
  codec = AudioConfig(kind='codes', codes=8, books=2, longest=4)
  toks = Tokenizers.build(run.tokenizers.text, None, CodeTokenizer(codec))
  codes_PQ = np.array([[1, 2], [3, 4]], np.int32)
  ids = [toks.layout.boa, *toks.encode_codes('audio', codes_PQ), toks.layout.eoa]
  assert pieces.media(toks, ids, 1) == [{'kind': 'audio', 'start': 0, 'end': 5, 'codes': [[1, 2], [3, 4]]}]
  assert playground.to_reply(Piece('codes', codes_PQ), 0) == ('text', '[[1, 2], [3, 4]]')


def test_an_imported_model_reads_pictures_that_no_template_has(tmp_path):
  assert lab_models.abilities({}, tmp_path)['inputs'] == ['text']
  (tmp_path / 'tokenizer').mkdir()
  for places, inputs in (({'token': '<image>'}, ['image', 'text']), (None, ['text'])):
    content = {'patches': {'places': places}}
    (tmp_path / 'tokenizer/readers.json').write_text(json.dumps(content))
    assert lab_models.abilities({}, tmp_path)['inputs'] == inputs


@pytest.mark.slow
def test_an_imported_chat_model_converses_by_its_own_template_and_end(tmp_path):
  source = tmp_path / 'source'
  source.mkdir()
  toks = write_tokenizer(source, CHATML)
  cfg = models.tiny(vocab=toks.vocabulary.size, context=128)
  huggingface.export_model(cfg, models.fill(cfg), toks, tmp_path / 'hf')
  huggingface.import_run(tmp_path / 'hf', tmp_path / 'runs/chat')
  client = testclient.TestClient(app.build_app(tmp_path / 'runs'), base_url='http://127.0.0.1')
  [facts] = get(client, '/api/models')['models']
  assert facts['chat'] and facts['inputs'] == ['text']
  run, sampling = trained.load(tmp_path / 'runs/chat'), {'max_new_tokens': 64, 'temperature': 1.0}
  text = '<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n'
  prompt, [end] = Prompt(run.tokenizers.encode_text(text)), run.tokenizers.encode_text('<|im_end|>')
  ended = []
  for seed in range(8):
    chosen = sampling | {'seed': seed}
    messages = [{'role': 'user', 'content': 'the cat'}]
    answer = lines(post(client, '/api/sample', run='chat', messages=messages, sampling=chosen))
    reply, cfg = ''.join(line.get('text', '') for line in answer), validate.override(run.cfg.sample, **chosen)
    stream = lambda *ends, cfg=cfg: ''.join(
      completions.stream_text(run.model, run.tokenizers, prompt, cfg, (), ends)
    )
    assert reply == stream(end)
    ended.append(reply != stream())
  assert any(ended)  # by the template's own token


def test_a_text_longer_than_the_context_is_cut(client):
  found = post(client, '/api/inside', run='finished', text='a' * 100).json()
  assert len(found['tokens']) == 32
  assert found['cut'] == 100 + found['tokens'][0]['kind'].count('special') - 32


def test_the_playground_samples_as_the_command_line_does(client, runs):
  sampling = {'temperature': 0.8, 'seed': 3, 'max_new_tokens': 8}
  answer = lines(post(client, '/api/sample', run='finished', text='the', sampling=sampling))
  assert answer[-1]['done']['samples'] == 1
  text = ''.join(line.get('text', '') for line in answer)
  assert text == trained.load(runs / 'finished').generate(['the'], **sampling)[0]
  several = lines(
    post(client, '/api/sample', run='finished', text='the', sampling=sampling | {'num_samples': 3})
  )
  assert [line['sample'] for line in several[:-1]] == [0, 1, 2]


def test_the_playground_draws_and_speaks(client, runs):
  answer = lines(post(client, '/api/sample', run='media', text='seven', to='image', sampling={'seed': 1}))
  image = Image.open(io.BytesIO(base64.b64decode(answer[0]['image'].partition(',')[2])))
  [expected] = trained.load(runs / 'media').generate(['seven'], 'image', seed=1)
  np.testing.assert_array_equal(np.asarray(image.resize((8, 8), Image.NEAREST)), expected[..., 0])
  answer = lines(post(client, '/api/sample', run='media', text='seven', to='audio'))
  assert answer[0]['audio'].startswith('data:audio/wav;base64,')


@pytest.mark.parametrize(
  ('body', 'part'),
  [
    ({'run': 'nowhere'}, 'there is no run'),
    ({'run': 'finished', 'to': 'image'}, 'was not trained to make image'),
    ({'run': 'finished', 'sampling': {'temperature': -1}}, 'temperature is not a number from 0 to 10'),
    ({'run': 'finished', 'sampling': {'temperature': 'nan'}}, 'temperature is not a number'),
    ({'run': 'finished', 'sampling': {'judge': 'runs/x:a|b'}}, 'unknown settings'),
    ({'run': 'finished', 'images': ['%%%']}, 'not base64'),
    ({'run': 'finished', 'text': 7}, 'text is not a text'),
    ({'run': 'finished', 'messages': [{'role': 'user', 'content': 'hi'}]}, 'never trained on conversations'),
  ],
)
def test_wrong_requests_get_a_cause_and_a_fix(client, body, part):
  response = client.post('/api/sample', json=body)
  assert response.status_code in (400, 404)
  assert part in response.json()['error']
  assert response.json()['fix']


def test_a_stopped_stream_frees_the_model(client):
  for _ in range(3):
    with client.stream('POST', '/api/sample', json={'run': 'finished', 'text': 'a'}) as response:
      next(response.iter_lines())
  assert post(client, '/api/inside', run='finished', text='a').json()['tokens']


def test_data_are_shown_as_training_packs_them(client, runs):
  before = tiny_runs.snapshot(runs / 'media')
  found = get(client, '/api/data', run='media')
  assert found['packing'] == 'first_fit'
  caches = {(cache['source'], cache['split']): cache for cache in found['caches']}
  assert set(caches) == {(s, p) for s in ('read', 'draw', 'listen', 'dial') for p in ('train', 'valid')}
  file = caches['draw', 'train']['file']
  answer = get(client, '/api/data/rows', run='media', file=file)
  row = answer['rows'][0]
  kinds = [token['kind'] for token in row['tokens']]
  assert kinds.count('image') == 16 * len(row['media'])
  assert row['media'][0]['kind'] == 'image'
  assert row['trained'] == sum(token['loss'] for token in row['tokens'])
  assert any(not token['loss'] for token in row['tokens'] if token['segment'])  # its condition
  hits = get(client, '/api/data/search', run='media', file=file, text='SEVEN')
  assert hits['hits']
  assert all(hit['hit'] == 'seven' for hit in hits['hits'])
  document = get(client, '/api/data/document', run='media', file=file, document=hits['hits'][0]['document'])
  assert len(document['tokens']) == hits['hits'][0]['tokens']
  assert client.get('/api/data/rows', params={'run': 'media', 'file': '../config.json'}).status_code == 404
  text = get(client, '/api/data', run='finished')['caches'][0]
  assert get(client, '/api/data/rows', run='finished', file=text['file'])['rows'][0]['tokens']
  assert tiny_runs.snapshot(runs / 'media') == before  # nothing is written
