"""Tasks on real digits and tones: an oracle in the place of the model shows what each one measures.

The model itself is new and knows nothing: it shows that what it makes can be measured.
"""

import collections
import dataclasses
import math
import weakref
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import guidance
from gpt_jax import data, sharding
from gpt_jax.data import Piece, mixture, sources
from gpt_jax.data.splits import Corpus
from gpt_jax.data.synthetic import keypad
from gpt_jax.evaluation import evaluate, format, judges, metrics, text_baselines, text_metrics
from gpt_jax.evaluation.predictions import PredictionFiles
from gpt_jax.evaluation.subject import Subject
from gpt_jax.evaluation.tasks import answer, classify, common, cross, perplexity, speak
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.runs import records
from gpt_jax.sample import SampleConfig
from tests import models, tiny_runs
from tests.tiny_runs import assert_two_lines

MIXTURE = {
  'draw': {'kind': 'digits', 'template': '{name} -> {image:image}'},
  'name': {'kind': 'digits', 'template': '{image:image} -> {name}'},
  'dial': {'kind': 'keypad', 'template': '{name} -> {audio:audio}', 'documents': 120},
  'listen': {'kind': 'keypad', 'template': '{audio:audio} -> {name}', 'documents': 120},
}


class Oracle(Subject):
  """Knows every example of the mixture by its condition, and answers with its target."""

  def generate(self, conditions, to, **sampling):
    if 'known' not in self.caches:
      self.caches['known'] = {
        (x.target[0].kind, *map(identity, x.condition)): x
        for source in self.cfg.data.mixture
        for split in ('valid', 'train')  # of equal conditions a training example wins
        for x in common.examples(self, source, split)
      }
    found = [self.caches['known'][to, *map(identity, c)] for c in conditions]
    if to == 'text':
      return [common.text(x.target) for x in found]
    return list(common.images_of(self, found)) if to == 'image' else common.waves_of(self, found)

  def target_nats(self, documents, ends=True):
    """10 nats where the words fit the image, 30 where they do not."""
    words = {identity(x.target[0]): common.text(x.condition) for x in common.examples(self, 'draw', 'valid')}
    return np.array([10.0 if words[identity(d[-1])] == common.text(d[:1]) else 30.0 for d in documents])


def identity(piece):
  """A key for a piece."""
  value = piece.value.values if hasattr(piece.value, 'values') else piece.value
  return value if isinstance(value, str) else np.asarray(value).tobytes()


@pytest.fixture(scope='module')
def new(tmp_path_factory):
  """A model that was never trained, on pictures and sounds."""
  folder = tmp_path_factory.mktemp('tasks')
  cfg = tiny_runs.experiment(
    tokenizer={'kind': 'bytes'},
    image={'kind': 'pixels', 'height': 8, 'width': 8, 'patch': 1, 'values': 17},
    audio={'kind': 'frames', 'codes': 8},
    data={'packing': 'first_fit', 'condition_dropout': 0.1},
    data__mixture=MIXTURE,
    model={'layers': 1, 'width': 16, 'heads': 2, 'context': 96, 'positions': 'mrope'},
    train={'batch_size': 8},
  )
  toks = run_tokenizers.build(cfg, folder)
  mesh = sharding.make_mesh(cfg.mesh, jax.devices()[:1])
  model = models.create(language_model.resolve_model(cfg, toks), jax.random.key(0), mesh)
  return Subject(cfg, model, toks, mesh, folder, batch_size=8)


@pytest.fixture(scope='module')
def oracle(new):
  fields = {f.name: getattr(new, f.name) for f in dataclasses.fields(new)}
  return Oracle(**fields | {'caches': {}})


@pytest.fixture(scope='module', autouse=True)
def quick_judges():
  """Networks are trained in test_judges.py: here the nearest image is judge enough."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(judges.JUDGES, 'image', judges.PixelJudge)
    yield


def table(rows, **chosen):
  """{metric: row} of the rows with these values, and without other marks."""
  marks = ('of', 'control', 'modality')
  kept = [
    r
    for r in rows
    if all(r.get(k) == chosen.get(k, r.get(k) if k not in marks else None) for k in (*chosen, *marks))
  ]
  found = {row['metric']: row for row in kept}
  assert len(found) == len(kept)
  return found


# --------------------------------------------------------------------------------- what tasks share


def test_examples_are_the_same_each_time_and_know_their_record(new):
  found = common.examples(new, 'draw', 'valid', 40)
  assert len(found) == 40
  assert len({x.record['label'] for x in found}) == 10
  again = common._examples(new, 'draw', 'valid', 60)
  assert [x.where for x in again[:40]] == [x.where for x in found]
  everything = {x.where for x in common.examples(new, 'draw', 'valid')}
  assert not everything & {x.where for x in common.examples(new, 'draw', 'train')}
  for x in found[:3]:
    assert [p.kind for p in (*x.condition, *x.target)] == ['text', 'image']
    assert common.text(x.condition) == x.record['name']
    assert (x.target[0].value == x.record['image']).all()


def test_examples_are_chosen_without_holding_all_documents(new, monkeypatch):
  """The same as from a sorted list of all of them."""
  part = mixture.open_split(new.cfg.data, 'draw', 'train')
  everything = sorted(part.examples(), key=lambda found: zlib.crc32(found[0].encode()))
  begun, ended, most = [], [], []

  class Content(np.ndarray):
    """An array that is counted while it is held."""

  def counted():
    for where, [name, arrow, image] in part.examples():
      value = image.value.view(Content)
      begun.append(where)
      weakref.finalize(value, ended.append, where)
      most.append(len(begun) - len(ended))
      yield where, [name, arrow, Piece('image', value)]

  monkeypatch.setattr(mixture, 'open_split', lambda *_: dataclasses.replace(part, examples=counted))
  found = common._examples(new, 'draw', 'train', 30)
  assert [x.where for x in found] == [where for where, _ in everything[:30]]
  assert len(most) == 2 * len(everything) and max(most) <= 32


def test_labels(new):
  found = common.examples(new, 'draw', 'valid', 40)
  assert common.label_field(found) == 'label'
  assert common.labels(found) == [str(x.record['label']) for x in found]
  bare = [x._replace(record={}) for x in found]
  assert common.label_field(bare) == ''
  assert common.labels(bare) == [x.record['name'] for x in found]
  assert common.are_classes(['a', 'b'] * 3)
  assert not common.are_classes(['a', 'b', 'c'])
  assert not common.are_classes(['a'] * 5)
  assert common.chance(['a', 'b', 'b', 'c'], ['b', 'b', 'a']) == 0.5  # the commonest of training
  assert common.chance(['a', 'b', 'a', 'c'], ['b', 'b', 'a']) == 0.375  # any of training, half of 3 in 4


@pytest.mark.parametrize('answers', ['abcabc', 'aab', 'aabb', 'abcd', 'aaaab'])
def test_another_example_has_another_answer(answers):
  wanted = list(answers)
  other = common.derangement(wanted)
  assert sorted(other) == list(range(len(wanted)))
  same = sum(wanted[i] == wanted[j] for i, j in enumerate(other))
  most = max(collections.Counter(wanted).values())
  assert same == max(0, 2 * most - len(wanted))


# ----------------------------------------------------------------------------------- with an oracle


def test_what_tasks_judge_is_kept(oracle, tmp_path):
  """Right or wrong of each example adds up to the accuracy of the rows; pictures and sounds lie beside."""
  subject = dataclasses.replace(oracle, predictions=PredictionFiles(tmp_path, 1, {}))
  rows = evaluate.run_tasks(subject, ['answer', 'draw', 'speak', 'classify', 'reconstruct'], limit=8)
  groups = {}
  for line in records.read_lines(tmp_path / 'predictions.jsonl'):
    groups.setdefault((line['task'], line['source']), []).append(line)
  metric_of = {'answer': 'exact_match', 'speak': 'tone_accuracy'}
  for (task, source), lines in groups.items():
    values = [
      row['value']
      for row in rows
      if (row['task'], row['source'], row['metric']) == (task, source, metric_of.get(task, 'accuracy'))
      and not {'control', 'of'} & set(row)
    ]
    assert len(lines) == 8
    if values:
      assert values == [sum(line['right'] for line in lines) / 8]
  media = {
    key: {k: Path(v).suffix for k, v in lines[0].items() if k.endswith('media')}
    for key, lines in groups.items()
  }
  assert media['answer', 'name'] == {'input_media': '.png'}
  assert media['answer', 'listen'] == {'input_media': '.wav'}
  assert media['draw', 'draw'] == {'media': '.png', 'target_media': '.png'}
  assert media['speak', 'dial'] == {'media': '.wav', 'target_media': '.wav'}
  assert media['classify', 'draw'] == {'target_media': '.png'}
  assert media['reconstruct', 'listen'] == {'media': '.wav', 'input_media': '.wav'}
  assert evaluate.run_tasks(oracle, ['answer'], limit=8) == [r for r in rows if r['task'] == 'answer']


def test_answers(oracle):
  rows = evaluate.run_tasks(oracle, ['answer'], limit=30)
  assert {row['source'] for row in rows} == {'name', 'listen'}
  found, shuffled = table(rows, source='name'), table(rows, source='name', control='shuffled')
  exact = found['exact_match']
  assert exact['value'] == found['token_f1']['value'] == 1
  assert exact['interval'] == [pytest.approx(0.8865, abs=1e-3), 1]
  assert found['character_error_rate']['value'] == found['word_error_rate']['value'] == 0
  assert shuffled['exact_match']['value'] == 0
  assert shuffled['word_error_rate']['value'] == 1
  assert 0 < exact['chance'] < 0.3 < 0.9 < exact['baseline'] <= 1
  assert 0 < table(rows, source='listen')['exact_match']['baseline'] <= 1  # of the nearest sound


def test_answers_are_greedy_whatever_the_run_samples_with(oracle, monkeypatch):
  """The filters and the seed of the run go; beams and a temperature that is asked for stay."""
  drawn = []
  plain = Oracle.generate
  monkeypatch.setattr(Oracle, 'generate', lambda *args, **sampling: drawn.append(sampling) or plain(*args))

  def sampled(run, **sampling):
    sample = SampleConfig(**run)
    subject = dataclasses.replace(oracle, cfg=dataclasses.replace(oracle.cfg, sample=sample))
    return evaluate.run_tasks(subject, ['answer'], limit=4, **sampling)[0]['sampling']

  filters = dict(top_k=5, top_p=0.9, min_p=0.1, num_samples=3, seed=7)
  off = dict(top_k=0, top_p=1.0, min_p=0.0, seed=0)
  assert sampled(filters).items() >= (off | {'temperature': 0.0}).items()
  assert drawn[-1] == {'temperature': 0.0}
  assert sampled(filters, temperature=0.5).items() >= dict(top_k=5, seed=7, temperature=0.5).items()
  assert sampled(dict(beams=2))['temperature'] == 1.0 and drawn[-1] == {}
  assert sampled({}, num_samples=4)['num_samples'] == 4
  assert drawn[-1] == {'beams': 0, 'num_samples': 4, 'choose': metrics.consensus}
  assert sampled(dict(beams=2), num_samples=4)['beams'] == 0
  with pytest.raises(ValueError, match='num_samples=4 samples, and --beams=2 searches'):
    sampled({}, num_samples=4, beams=2)


def test_texts_from_texts(oracle, monkeypatch):
  """Each row of TASKS that makes texts of texts: what is measured is in test_text_metrics.py."""
  records = [{'en': f'A {w}. Red.', 'de': [f'ein {w}', f'das {w}']} for w in 'abcdefghijklmnopqrst']
  corpus = Corpus(lambda: ((f'line {n}', dict(r)) for n, r in enumerate(records)), lambda: 'x')
  row = sources.SOURCES['synthetic']._replace(open=lambda *_: corpus)
  monkeypatch.setitem(sources.SOURCES, 'synthetic', row)
  source = data.Source('synthetic', template='{en} -> {de.0}')
  cfg = data.DataConfig({'pairs': source}, packing='first_fit', valid_fraction=0.5)
  subject = dataclasses.replace(oracle, cfg=dataclasses.replace(oracle.cfg, data=cfg), caches={})
  second = lambda self, given, to, **_: [f'das {common.text(x)[2]}' for x in given]
  monkeypatch.setattr(Oracle, 'generate', second)
  [example, *_] = common.examples(subject, 'pairs', 'valid')
  assert common.references(example, '{en} -> {de.0}') == example.record['de']
  assert common.references(example, '{en} -> {de.0}!') == [example.record['de'][0]]
  found = table(evaluate.run_tasks(subject, ['answer']))
  assert found['exact_match']['value'] == 1 and found['word_error_rate']['value'] == 0.5
  is_right = lambda made, wanted: [m in w for m, w in zip(made, wanted, strict=True)]
  share = text_metrics.Measure(
    lambda made, wanted: {'share': dict(value=float(np.mean(is_right(made, wanted))), signature='s')},
    lambda made, wanted: {'share': text_metrics._mean_statistics(is_right(made, wanted))},
  )
  one = lambda some, train, template: [f'ein {common.text(x.condition)[2]}' for x in some]
  baselines = {'copy': text_baselines.copy_source, 'one': one}
  new = lambda: dataclasses.replace(subject, caches={})
  run = lambda **rivals: answer.run(new(), 'pairs', 'valid', 0, 'translate', share, rivals)
  [mine, shuffled] = run(copy=text_baselines.copy_source)
  assert (mine['task'], mine['value'], mine['signature']) == ('translate', 1, 's')
  assert mine['baseline'] == mine['chance'] == 0 == shuffled['value']
  assert (mine['baseline_of'], mine['difference'], mine['difference_interval']) == ('copy', 1, [1, 1])
  [mine, copy, one, shuffled] = run(**baselines)  # the better of the two, and both
  assert (mine['baseline'], mine['baseline_of'], mine['difference']) == (1, 'one', 0)
  assert (copy['of'], copy['value'], one['of'], one['value']) == ('copy', 0, 'one', 1)
  assert shuffled['control'] == 'shuffled' and shuffled['value'] == 0


@pytest.mark.parametrize(
  'before, after, suited', [(5, 1, []), (12, 10, ['translate']), (90, 12, ['summarize']), (4, 40, [])]
)
def test_all_has_the_tasks_that_suit_the_texts(monkeypatch, caplog, before, after, suited):
  monkeypatch.setattr(common, 'examples', lambda *_: [])
  monkeypatch.setattr(common, 'median_words', lambda _: (before, after))
  names = ('answer', 'translate', 'summarize')
  suits = [name for name in names if evaluate.suits_texts(None, name, 'quiz', 'valid')]
  assert suits == ['answer', *suited]
  assert ('--tasks=all leaves out translate for data.mixture.quiz' in caplog.text) == (
    'translate' not in suited
  )


def test_the_words_of_texts_are_counted():
  piece = lambda words: [data.Piece('text', words)]
  examples = [common.Example('', {}, piece('What is it?'), piece(words)) for words in ('a', 'b c', 'd')]
  assert common.median_words(examples) == (3, 1)


def test_a_task_whose_library_is_missing_is_refused_or_left_out(oracle, monkeypatch):
  monkeypatch.setattr(text_metrics, 'is_installed', lambda package: not package)
  with pytest.raises(ValueError) as error:
    evaluate.check_tasks(oracle, ['perplexity', 'translate'])
  assert_two_lines(error.value, '--tasks=translate measures with sacrebleu')
  left = set(evaluate.check_tasks(oracle, ['all']))
  on_demand = {'continue', 'canaries', 'extraction', 'membership', 'unsuitable'}
  assert set(evaluate.TASKS) - left == {'translate', 'summarize', *on_demand}


def test_drawings_that_are_real_training_images(oracle):
  """Right, varied, close to real, and caught as copies."""
  rows = evaluate.run_tasks(oracle, ['draw'], limit=60)
  found, shuffled = table(rows), table(rows, control='shuffled')
  assert set(shuffled) == {'accuracy', 'accuracy_by_pixels'}
  assert max(row['value'] for row in shuffled.values()) <= found['accuracy']['chance']
  assert found['accuracy']['n'] == 60
  assert found['accuracy']['chance'] <= 0.25
  # The same word always gets the same training image: right, but one of each.
  assert found['accuracy_by_pixels']['value'] >= 0.9
  assert found['accuracy']['value'] >= 0.8
  assert found['diversity']['value'] < 0.05
  assert found['copies']['value'] > 0.5
  assert found['nearest_train_ratio']['value'] < 0.5
  assert found['nearer_to_train']['chance'] == 0.5
  assert found['frechet_distance']['value'] > 2 * found['frechet_distance']['baseline']
  assert found['recall']['value'] < found['recall']['baseline']
  score = found['classification_accuracy_score']
  assert score['chance'] < score['value'] < score['baseline'] + 0.1


def test_drawings_are_compared_with_reconstructions(oracle):
  rows = evaluate.run_tasks(oracle, ['draw'], limit=40)
  lossless = table(rows, of='reconstructions')
  assert lossless['accuracy']['value'] == table(rows)['accuracy']['baseline']
  distance = lossless['frechet_distance']
  assert distance['value'] == pytest.approx(distance['baseline'])


def test_descriptions_are_ranked_by_retrieval(oracle, monkeypatch):
  monkeypatch.setattr(common, 'MAX_CLASSES', 5)
  real = common.images_of(oracle, common.examples(oracle, 'draw', 'valid', 30))
  monkeypatch.setattr(Oracle, 'generate', lambda *args, **kwargs: list(real))
  rows = evaluate.run_tasks(oracle, ['draw'], limit=30)
  found, shuffled = table(rows), table(rows, control='shuffled')
  assert found['mrr']['value'] == found['recall@1']['value'] == 1
  assert shuffled['recall@1']['value'] == 0 and shuffled['mrr']['value'] < 0.5
  assert found['mrr']['chance'] == pytest.approx(sum(1 / k for k in range(1, 31)) / 30)
  assert found['recall@5']['chance'] == pytest.approx(5 / 30)
  assert 'accuracy' not in found


def test_speech(oracle):
  rows = evaluate.run_tasks(oracle, ['speak'], limit=12)
  found = table(rows)
  assert found['tone_accuracy']['value'] == 1
  assert table(rows, control='shuffled')['tone_accuracy']['value'] == 0
  assert 'accuracy' not in found  # the source has an exact decoder, which no judge need guess at
  distance = found['mel_cepstral_distortion']
  assert distance['value'] < distance['chance']
  copied, coded = (
    table(rows, of=of)['mel_cepstral_distortion']['value'] for of in ('copy-synthesis', 'reconstructions')
  )
  assert 0 < copied < coded < distance['chance']
  frechet = [table(rows, of=of)['frechet_distance'] for of in ('copy-synthesis', 'reconstructions')]
  assert 0 < frechet[0]['value'] < frechet[1]['value']
  assert found['frechet_distance']['value'] < frechet[1]['value']  # real sounds of the training
  assert len({row['baseline'] for row in (*frechet, found['frechet_distance'])}) == 1
  assert 0.6 < found['length_ratio']['value'] < 1.5
  # The same word always gets the same training sound.
  assert found['copies']['value'] == 1 and found['nearest_train_ratio']['value'] < 0.5
  assert table(rows, of='copy-synthesis')['voicing_error']['value'] < 0.3


def test_a_recognizer_hears_what_was_said(oracle, monkeypatch):
  """Another run's model; here one that hears tones right, of the codes and of nothing else."""
  listen = dataclasses.replace(oracle.cfg.data.mixture['listen'], template='{sound:frames} of -> {name}!')
  section = data.DataConfig({'listen': listen}, packing='first_fit')
  ear = dataclasses.replace(oracle, cfg=dataclasses.replace(oracle.cfg, data=section))
  dialled = common.examples(oracle, 'dial', 'train')
  names = {str(x.record['label']): x.record['name'] for x in dialled}

  def generate(self, conditions, to, **sampling):
    assert (to, sampling) == ('text', {'temperature': 0.0})
    assert {tuple(p.kind for p in pieces) for pieces in conditions} == {('frames', 'text')}
    return [names[keypad.decode(*pieces[0].value)] + '!' for pieces in conditions]

  rows = common.Rows('speak', 'dial', 'valid', n=6)
  found = common.examples(oracle, 'dial', 'valid', 6)
  real = common.waves_of(oracle, found)
  monkeypatch.setattr(Oracle, 'generate', generate)
  sounds = {'': [*real[1:], real[0] * 3], 'copy-synthesis': real}
  speak.add_recognition(rows, ear, found, real, sounds, 8000)
  copied = table(rows, of='copy-synthesis')
  assert set(copied) == {'word_error_rate', 'character_error_rate'}
  assert {(r['value'], r['baseline'], r['recognizer']) for r in copied.values()} == {
    (0, 0, oracle.cache_dir.parent.name)
  }
  digits = [x.record['name'] for x in found]
  wrong = sum(a != b for a, b in zip(digits, digits[1:] + digits[:1], strict=True))
  assert wrong and table(rows)['word_error_rate']['value'] == wrong / 6
  deaf = dataclasses.replace(
    oracle, cfg=dataclasses.replace(oracle.cfg, data=data.DataConfig({'t': data.Source('synthetic')}))
  )
  mistakes = (deaf, 'speak', 'no text of a sound'), (ear, 'draw', 'no effect')
  for recognizer, task, cause in mistakes:
    with pytest.raises(ValueError) as error:
      evaluate.run_tasks(oracle, [task], recognizer=recognizer)
    assert_two_lines(error.value, f'--recognizer={oracle.cache_dir.parent}', cause)


def test_speakers(oracle, monkeypatch):
  """Without an exact decoder what is said is judged, and with a speaker the voice, too."""
  monkeypatch.setattr(speak, 'EXACT', {})
  plain = common._examples

  def with_speaker(*args):
    found = plain(*args)
    return [x._replace(record=x.record | {'speaker': x.record['label'] % 2}) for x in found]

  monkeypatch.setattr(common, '_examples', with_speaker)
  subject = dataclasses.replace(oracle, caches={})
  rows = evaluate.run_tasks(subject, ['speak'], limit=12)
  found, shuffled = table(rows), table(rows, control='shuffled')
  assert shuffled['accuracy']['value'] == shuffled['accuracy_by_neighbor']['value'] == 0
  assert shuffled['speaker_accuracy']['value'] <= found['speaker_accuracy']['chance']
  assert 'tone_accuracy' not in found
  assert found['accuracy']['value'] == found['accuracy_by_neighbor']['value'] == 1
  assert found['speaker_accuracy']['value'] > found['speaker_accuracy']['chance']


def test_generative_classification(oracle, monkeypatch):
  rows = evaluate.run_tasks(oracle, ['classify'], limit=30)
  found = table(rows, source='draw')
  shuffled = table(rows, source='draw', control='shuffled')
  assert found['accuracy']['value'] == 1 and shuffled['accuracy']['value'] == 0
  assert shuffled['information']['value'] < -20  # 20 nats less for the wrong one
  information = found['information']
  assert information['value'] == pytest.approx(math.log2(10), abs=0.3)
  assert information['baseline'] == pytest.approx(math.log2(10), abs=0.01)
  flat = lambda self, documents: np.ones(len(documents))
  monkeypatch.setattr(Oracle, 'target_nats', flat)
  found = table(evaluate.run_tasks(oracle, ['classify'], limit=30), source='draw')
  assert found['information']['value'] == pytest.approx(0)
  assert found['accuracy']['value'] < 0.4


@pytest.fixture(autouse=True)
def words_for_sounds(monkeypatch):
  """The oracle's likelihoods are those of images; sounds get none."""
  known = Oracle.target_nats

  def target_nats(self, documents, ends=True):
    if documents[0][-1].kind == 'audio':
      return np.ones(len(documents))
    return known(self, documents)

  monkeypatch.setattr(Oracle, 'target_nats', target_nats)


def test_reconstruction(oracle):
  rows = evaluate.run_tasks(oracle, ['reconstruct'], limit=20)
  images = table(rows, source='draw', modality='image')
  assert images['psnr']['value'] == 100
  assert images['ssim']['value'] == pytest.approx(1)
  assert images['code_usage']['value'] <= 1
  assert 1 < images['code_perplexity']['value'] < images['code_perplexity']['codes'] == 17
  assert images['accuracy']['value'] == images['accuracy']['baseline']
  sounds = table(rows, source='listen', modality='audio')
  assert sounds['resynthesis_rmse']['value'] > 0
  assert sounds['code_perplexity']['value'] <= 8
  assert sounds['codes_per_second']['value'] == pytest.approx(20, rel=0.15)


def test_composition(oracle, monkeypatch):
  """Pictures to tones and tones to pictures, by the labels that both sources have."""
  assert list(cross.pairs(oracle, 'valid')) == [
    ('image', 'name', 'audio', 'dial'),
    ('audio', 'listen', 'image', 'draw'),
  ]
  spoken = {str(x.record['label']): x for x in common.examples(oracle, 'dial', 'train')}
  drawn = {str(x.record['label']): x for x in common.examples(oracle, 'draw', 'train')}

  def generate(self, conditions, to, **sampling):
    assert all(len(condition) == 1 for condition in conditions)
    source = {'audio': 'name', 'image': 'listen'}[to]
    by_value = {
      identity(x.condition[0]): str(x.record['label']) for x in common.examples(self, source, 'valid')
    }
    names = [by_value[identity(c[0])] for c in conditions]
    if to == 'audio':
      return common.waves_of(self, [spoken[name] for name in names])
    return list(common.images_of(self, [drawn[name] for name in names]))

  monkeypatch.setattr(Oracle, 'generate', generate)
  rows = evaluate.run_tasks(oracle, ['cross'], limit=20)
  found = {row['way']: row for row in rows if 'control' not in row}
  shuffled = {row['way']: row['value'] for row in rows if 'control' in row}
  assert shuffled == {'image to audio': 0, 'audio to image': pytest.approx(0, abs=0.15)}
  assert set(found) == {'image to audio', 'audio to image'}
  assert found['image to audio']['value'] == 1
  assert found['audio to image']['value'] >= 0.7
  assert found['image to audio']['judged_by'] == 'dial'
  assert found['image to audio']['baseline'] == 1


def test_a_trained_direction_is_not_composed(oracle):
  mixture = oracle.cfg.data.mixture
  both = dataclasses.replace(mixture['draw'], template='{image:image} -> {audio:audio}')
  cfg = data.DataConfig({**mixture, 'both': both}, packing='first_fit')
  subject = dataclasses.replace(oracle, cfg=dataclasses.replace(oracle.cfg, data=cfg), caches={})
  assert list(cross.pairs(subject, 'valid')) == [('audio', 'listen', 'image', 'draw')]


# ------------------------------------------------------------------------------- with a real model


def test_nats_of_documents_are_those_of_packed_rows(new):
  """One document a row or many, the sum over a source is the same."""
  for source in ('draw', 'listen'):
    found = common.examples(new, source, 'valid')
    documents = [[*x.condition, Piece('arrow'), *x.target] for x in found]
    nats = new.target_nats(documents)
    assert nats.shape == (len(found),)
    total = 0.0
    for batch in data.eval_rows(new.cache(source, 'valid'), 96, 8, row_fields=new.row_fields):
      total += float(new.score_rows(batch)['restricted'].sum())
    assert nats.sum() == pytest.approx(total, rel=1e-5)
    assert new.target_nats(documents[:1]) == pytest.approx(nats[:1], rel=1e-5)


def test_perplexity_of_documents(new):
  rows = evaluate.run_tasks(new, ['perplexity'])
  everything = {
    row['source']: row for row in rows if row['metric'] == 'nats_per_token' and 'modality' not in row
  }
  assert set(everything) == set(MIXTURE)
  parts = [r for r in rows if r['source'] == 'draw' and r.get('modality')]
  nats = {r['modality']: r for r in parts if r['metric'] == 'nats_per_token'}
  documents = len(common.examples(new, 'draw', 'valid'))
  assert nats['image']['tokens'] == documents * 65
  assert nats['text']['tokens'] == documents  # eos alone: the words are the condition
  assert sum(r['tokens'] for r in nats.values()) == everything['draw']['tokens']
  mean = sum(r['tokens'] * r['value'] for r in nats.values()) / everything['draw']['tokens']
  assert everything['draw']['value'] == pytest.approx(mean)
  # A new model knows nothing of 17 gray values, and the grammar leaves 17 ids and then 1.
  [dim] = [r['value'] for r in parts if r['metric'] == 'bits_per_dim']
  assert dim == pytest.approx(math.log2(17), rel=0.05)
  assert nats['image']['value'] == pytest.approx(math.log(new.tokenizers.vocabulary.size), rel=0.05)
  assert [r for r in rows if r['source'] == 'name' and 'modality' in r] == []
  in_bits = {r['modality']: r['value'] for r in parts if r['metric'] == 'bits_per_token'}
  assert in_bits == {m: pytest.approx(r['value'] / math.log(2)) for m, r in nats.items()}
  with pytest.raises(ValueError) as error:
    evaluate.run_tasks(new, ['perplexity'], stride=4)
  assert_two_lines(error.value, 'stride=4')


def test_plain_text_is_scored_under_the_softmax_of_its_training(new):
  """With loss.restrict over the ids that can stand there, else over all."""
  mixture = new.cfg.data.mixture | {'text': data.Source('synthetic', documents=20)}
  section, nats = data.DataConfig(mixture, packing='first_fit'), {}
  for restricted in (False, True):
    loss = dataclasses.replace(new.cfg.loss, restrict=restricted)
    cfg = dataclasses.replace(new.cfg, data=section, loss=loss)
    subject = dataclasses.replace(new, cfg=cfg, caches={})
    rows = perplexity.run(subject, 'text', 'valid', 2000)
    [nats[restricted]] = [row['value'] for row in rows if row['metric'] == 'nats_per_token']
  everything, possible = new.tokenizers.vocabulary.size, new.tokenizers.groups()[1][0].sum()
  expected = math.log(everything / possible)
  assert nats[False] - nats[True] == pytest.approx(expected, rel=0.3) and expected > 0.05


def test_a_scale_is_chosen_on_validation_data(oracle, monkeypatch):
  right = {1.0: 20, 2.0: 40, 3.0: 30}  # of 40 drawn right

  def generate(self, conditions, to, guidance, **_):
    found = common.examples(self, 'draw', 'valid', 40)
    shown = [found[i if i < right[guidance] else (i + 1) % 40] for i in range(40)]
    return list(common.images_of(self, shown))

  monkeypatch.setattr(Oracle, 'generate', generate)
  best, values = guidance.choose_scale(oracle, 'draw', 'accuracy_by_pixels', (1.0, 2.0, 3.0), 40)
  assert best == 2.0 and values[2.0] > values[3.0] > values[1.0]


def test_bits_per_dim_only_where_nothing_is_lost(new, monkeypatch):
  subject = dataclasses.replace(new, caches={})
  plain = new.tokenizers.image.decode
  monkeypatch.setattr(type(new.tokenizers.image), 'decode', lambda self, c: plain(c) // 2)
  assert not perplexity.is_lossless(subject, 'draw', 'valid')


def test_samples_of_an_untrained_model_can_be_scored(new):
  rows = evaluate.run_tasks(new, ['draw', 'speak', 'answer'], limit=9, temperature=0.9)
  assert all(math.isfinite(row['value']) for row in rows)
  drawn = [row for row in rows if row['task'] == 'draw']
  assert {row['temperature'] for row in drawn} == {0.9}
  assert {row['task'] for row in rows} == {'draw', 'speak', 'answer'}
  fields = {f.name for f in dataclasses.fields(SampleConfig)} - {'num_samples', 'begin'}
  assert all(set(row['sampling']) == fields for row in rows)
  assert {row['sampling']['temperature'] for row in rows} == {0.9}
  assert not any('top_p' in row or 'sampling' in format.format_row(row) for row in rows)
  for row in rows:
    assert format.format_row(row).startswith(row['task'])


def test_several_samples_give_the_answer_most_like_the_others(new):
  """Equal to choosing by hand, in whatever batches; the tasks that make one image of each take no number."""
  conditions = [[Piece('text', text)] for text in ('seven', 'one', 'two')]
  sampling = dict(num_samples=5, max_new_tokens=4, temperature=0.9)
  groups = new.generate(conditions, 'text', choose=list, **sampling)
  assert [len(group) for group in groups] == [5] * 3 and len({*groups[0]}) > 1
  chosen = new.generate(conditions, 'text', rows=2, choose=metrics.consensus, **sampling)
  assert chosen == [metrics.consensus(group) for group in groups]
  assert new.generate(conditions, 'text', **sampling) == [group[0] for group in groups]
  with pytest.raises(ValueError, match='num_samples=5 has no effect on --tasks=draw'):
    evaluate.run_tasks(new, ['draw'], num_samples=5)
  rows = evaluate.run_tasks(new, ['draw', 'answer'], limit=4, temperature=0.9, num_samples=2)
  assert {row['task']: row.get('num_samples') for row in rows} == {'draw': None, 'answer': 2}


def test_equal_conditions_give_different_drawings(new):
  conditions = [[Piece('text', 'seven')]] * 9  # as many as above: nothing is compiled again
  made = new.generate(conditions, 'image', temperature=0.9)
  assert len(made) == 9
  assert {(x.shape, x.dtype.name) for x in made} == {((8, 8, 1), 'uint8')}
  assert len({x.tobytes() for x in made}) == 9


# ----------------------------------------------------------------------------------------- mistakes


def test_tasks_that_fit_no_source_are_refused(oracle):
  text = data.DataConfig(mixture={'text': data.Source('synthetic')})
  subject = dataclasses.replace(oracle, cfg=dataclasses.replace(oracle.cfg, data=text), caches={})
  with pytest.raises(ValueError) as error:
    evaluate.run_tasks(subject, ['draw'])
  cause, _ = assert_two_lines(error.value, '--tasks=draw', "text '{text}'", '{image:image}')
  with pytest.raises(ValueError) as error:
    evaluate.run_tasks(oracle, ['draw'], split='test')
  assert_two_lines(error.value, '--tasks=draw', 'test', 'nothing')


def test_ineffective_options_are_refused(oracle):
  for tasks, options in (
    (['perplexity'], {'guidance': 2.0}),
    (['reconstruct', 'classify'], {'top_k': 3}),
    (['draw'], {'stride': 4}),
  ):
    with pytest.raises(ValueError) as error:
      evaluate.run_tasks(oracle, tasks, **options)
    [(name, value)] = options.items()
    assert_two_lines(error.value, f'{name}={value}', ','.join(tasks))


def test_retrieval_among_candidates():
  rows = common.Rows('classify', 'emoji', 'test', n=2)
  rows.add_retrieval(np.array([[3.0, 1.0], [3.0, 1.0]]), np.array([0, 1]))
  found = {row['metric']: row for row in rows}
  assert found['mrr']['value'] == 0.75 and found['mrr']['chance'] == 0.75
  assert found['recall@1']['value'] == found['recall@1']['chance'] == 0.5
  assert 'recall@5' not in found and found['mrr']['candidates'] == 2
  assert found['median_rank']['value'] == found['median_rank']['chance'] == 1.5


def test_descriptions_are_ranked_not_classified(oracle, monkeypatch):
  monkeypatch.setattr(classify, 'MAX_CONDITIONS', 5)
  found = table(evaluate.run_tasks(oracle, ['classify'], limit=30), source='draw')
  assert 'accuracy' not in found
  assert found['recall@1']['value'] == 1 > 2 * found['recall@1']['chance']
