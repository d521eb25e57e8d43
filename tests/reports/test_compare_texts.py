"""Two models with different tokenizers on the same bytes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gpt_jax import sharding
from gpt_jax.evaluation import likelihood, trained
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.losses import bits
from gpt_jax.reports import compare, run_report, text_diff_part
from gpt_jax.runs import records
from tests import models, tiny_runs
from tests.tiny_runs import assert_two_lines

TEXTS = [
  'bamaf teal sooz. ' * 5,  # longer than the context of 32 bytes
  'caf\u00e9 \u2013 na\u00efve \U0001f600 <b>& more</b>',
  'x',
  'the the the kain',
]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Random models on bytes and on a trained bpe."""

  def run(name, seed, **tokenizer):
    folder = tmp_path_factory.mktemp(name)
    cfg = tiny_runs.experiment(tokenizer=tokenizer)
    toks = run_tokenizers.build(cfg, folder)
    mesh = sharding.make_mesh(cfg.mesh, jax.devices()[:1])
    model = models.fill(language_model.resolve_model(cfg, toks), seed)
    records.write_json(folder / 'config.json', records.to_json(dataclasses.asdict(cfg)))
    return trained.TrainedRun(folder, cfg, model, toks, mesh, seed)

  return run('bytes', 1, kind='bytes'), run('bpe', 2, kind='bpe', vocab=300)


def test_nats_of_bytes_add_up_to_the_scores_of_the_texts(runs):
  for run in runs:
    arrays = likelihood.byte_nats(run.subject(), TEXTS)
    assert [len(array) for array in arrays] == [len(text.encode()) for text in TEXTS]
    expected = [score.nats for score in run.score(TEXTS)]
    np.testing.assert_allclose([array.sum() for array in arrays], expected, rtol=1e-5)
  assert likelihood.byte_nats(run.subject(), [''])[0].size == 0


def test_nats_of_a_token_are_spread_over_its_bytes(runs):
  _, run = runs
  text = TEXTS[0]
  ids = run.tokenizers.encode_text(text)
  sizes = [len(run.tokenizers.decode_text([index])) for index in ids]
  assert max(sizes) > 1
  tokens = np.concatenate(likelihood.score_tokens(run.subject(), likelihood.windows(run.subject(), text)))
  [array] = likelihood.byte_nats(run.subject(), [text])
  np.testing.assert_allclose(array, np.repeat(tokens / sizes, sizes), rtol=1e-6)
  [whole] = likelihood.byte_nats(run.subject(), [TEXTS[1]])
  smiley = TEXTS[1].encode().index('\U0001f600'.encode())
  assert len({*whole[smiley : smiley + 4].tolist()}) == 1  # four tokens of one character


def test_a_tokenizer_that_loses_characters_is_refused(runs, monkeypatch):
  run, _ = runs
  decode = type(run.tokenizers).decode_text
  monkeypatch.setattr(type(run.tokenizers), 'decode_text', lambda *args: decode(*args).lower())
  with pytest.raises(ValueError) as error:
    likelihood.byte_nats(run.subject(), ['a', 'An Ox'])
  assert_two_lines(error.value, 'document 1 is not what its tokens give back')


@pytest.fixture
def report(runs, tmp_path, monkeypatch):
  """Printed lines, text_diff.jsonl and the page."""
  one, other = runs
  path = tmp_path / 'texts.jsonl'
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in TEXTS))
  monkeypatch.setattr(trained, 'load', lambda folder, key: {str(run.workdir): run for run in runs}[folder])
  lines = compare.texts_apart(str(one.workdir), str(other.workdir), path)
  page = run_report.write_report(one.workdir).read_text()
  return lines, records.read_lines(one.workdir / text_diff_part.FILE), page


def test_documents_and_spans_are_listed_by_difference(runs, report):
  lines, (total, *documents), _ = report
  scores = [[score.nats for score in run.score(TEXTS)] for run in runs]
  size = sum(len(text.encode()) for text in TEXTS)
  assert total['bytes'] == size and total['documents'] == 4 and total['steps'] == [1, 2]
  np.testing.assert_allclose(total['nats'], np.sum(scores, 1), rtol=1e-5)
  assert total['difference'] == pytest.approx(bits(np.sum(scores[0]) - np.sum(scores[1])) / size, rel=1e-4)
  assert total['interval'][0] < total['difference'] < total['interval'][1]
  gaps = [abs(line['difference']) for line in documents]
  assert gaps == sorted(gaps, reverse=True)
  for line in documents:
    text = TEXTS[line['document']]
    np.testing.assert_allclose(line['nats'], [side[line['document']] for side in scores], rtol=1e-5)
    for span in line['spans']:
      start = span['start']
      assert text.encode()[start : start + len(span['text'].encode())].decode() == span['text']
    assert ''.join(cell[0] for cell in line['characters']) == text
    np.testing.assert_allclose(np.sum([cell[1:] for cell in line['characters']], 0), line['nats'], atol=0.02)
  assert lines[0].startswith(f'{runs[0].workdir} {total["bits_per_byte"][0]:.4f} bits per byte')
  assert len(lines) == 7  # the totals, a table, and where all documents are


def test_the_page_colors_the_characters(report):
  _, _, page = report
  assert '<h2>Texts</h2>' in page and '<pre class="diff">' in page
  assert 'class="hit"' in page and 'class="miss"' in page
  assert '<b>&' not in page and '&lt;' in page


def test_one_document_has_no_interval():
  assert compare.paired_interval(np.array([1.0]), np.array([3])) == []
  low, high = compare.paired_interval(np.array([1.0, 2.0, 3.0] * 20), np.full(60, 10))
  assert low < bits(0.2) < high and high - low < 0.1
