"""Multiple choice and cloze tests against brute-force log-likelihoods of a tiny model."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import data, sharding
from gpt_jax.data import templates
from gpt_jax.evaluation import evaluate, likelihood, predictions
from gpt_jax.evaluation.subject import Subject
from gpt_jax.evaluation.tasks import choose, cloze, common
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.model import gpt
from gpt_jax.runs import records
from tests import models, tiny_runs
from tests.tiny_runs import assert_two_lines

QUESTIONS = [
  {'query': 'Ice is', 'choices': ['cold', 'hot', 'dry as sand'], 'gold': 0},
  {'query': 'Two and two are', 'choices': ['one', 'four', 'five'], 'gold': 1},
  {'query': 'A cat says', 'choices': ['a', 'b', 'c'], 'gold': 2},
  {'query': 'Grass is green and the sky', 'choices': ['is blue', 'x'], 'gold': 0},
]
SCHEMAS = [
  {
    'options': ['The dog saw the cat and the dog', 'The dog saw the cat and the cat'],
    'rest': 'ran.',
    'gold': 'B',
  },
  {'options': ['Anna', 'Otto the second'], 'rest': 'slept', 'gold': 'A'},
]
TEXTS = [{'text': 'The end of\nthe word'}, {'text': 'once upon a time'}]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('benchmarks')
  for name, lines in {'questions': QUESTIONS, 'schemas': SCHEMAS, 'texts': TEXTS}.items():
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
  return folder


def source(files, name, template, **fields):
  return {
    'kind': 'jsonl',
    'path': str(files / f'{name}.jsonl'),
    'template': template,
    'weight': 0.0,
    **fields,
  }


@pytest.fixture(scope='module')
def subject(files):
  """A model that was never trained, with random parameters, on three benchmarks and a text."""
  mixture = {
    'text': {'kind': 'synthetic', 'documents': 20},
    'questions': source(files, 'questions', 'Q: {query}\nA: {choices[gold]}'),
    'schemas': source(files, 'schemas', '{options[gold]} {rest}'),
    'texts': source(files, 'texts', '{text:cloze}'),
  }
  cfg = tiny_runs.experiment(data__mixture=mixture, tokenizer={'kind': 'bytes'}, model={'context': 64})
  toks = run_tokenizers.build(cfg, files)
  mesh = sharding.make_mesh(cfg.mesh, jax.devices()[:1])
  model = models.fill(language_model.resolve_model(cfg, toks))
  return Subject(cfg, model, toks, mesh, files, batch_size=4)


@pytest.fixture(scope='module')
def log_p(subject):
  """log_p(context, text): one row at a time, all positions, in numpy."""

  @jax.jit
  def logits(ids_BT):
    return subject.model(ids_BT).logits_BTV

  def log_p(context, text):
    ids = ([*(context or '').encode()] or likelihood.start_ids(subject))[-(65 - len(text)) :]
    row = np.array([*ids, *text.encode()])
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(row) - 1] = row[:-1]
    logits_TV = np.asarray(logits(jnp.asarray(padded))[0], np.float64)
    log_probs_TV = logits_TV - np.logaddexp.reduce(logits_TV, -1, keepdims=True)
    places = np.arange(len(ids) - 1, len(row) - 1)
    greedy = (logits_TV[places].argmax(-1) == row[len(ids) :]).all()
    return log_probs_TV[places, row[len(ids) :]].sum(), greedy

  return log_p


def values(rows):
  return {row['metric']: row['value'] for row in rows if 'control' not in row}


def test_choose_is_the_likeliest_option_by_brute_force(subject, log_p):
  rows = values(choose.run(subject, 'questions', 'valid', 0))
  hits = {'accuracy': [], 'accuracy_by_characters': [], 'accuracy_by_unconditional': []}
  bits = []
  for q in QUESTIONS:
    given = np.array([log_p(f'Q: {q["query"]}\nA:', f' {c}')[0] for c in q['choices']])
    bare = np.array([log_p('', f' {c}')[0] for c in q['choices']])
    bits.append(-given[q['gold']] / np.log(2) / len(' ' + q['choices'][q['gold']]))
    sizes = [len(c) for c in q['choices']]
    for name, scores in zip(hits, (given, given / sizes, given - bare), strict=True):
      hits[name].append(scores.argmax() == q['gold'])
  for name, expected in hits.items():
    assert rows[name] == np.mean(expected)
  np.testing.assert_allclose(rows['bits_per_byte'], np.mean(bits), rtol=1e-5)
  chance = (3 * 1 / 3 + 1 / 2) / 4
  np.testing.assert_allclose(rows['centered_accuracy'], (rows['accuracy'] - chance) / (1 - chance))


def test_text_after_the_options_is_what_is_scored(subject, log_p):
  rows = values(choose.run(subject, 'schemas', 'valid', 0))
  right = [
    np.argmax([log_p(option, f' {r["rest"]}')[0] for option in r['options']]) == 'AB'.index(r['gold'])
    for r in SCHEMAS
  ]
  assert rows['accuracy'] == rows['accuracy_by_characters'] == np.mean(right)


def test_cloze_scores_the_last_word(subject, log_p):
  rows = values(cloze.run(subject, 'texts', 'valid', 0))
  scores = [log_p('The end of\nthe', ' word'), log_p('once upon a', ' time')]
  np.testing.assert_allclose(
    rows['word_perplexity'], np.exp(-np.mean([nats for nats, _ in scores])), rtol=1e-5
  )
  assert rows['accuracy'] == np.mean([greedy for _, greedy in scores])


def test_a_word_that_greedy_decoding_gives_is_right(subject, log_p):
  ids = [*b'The end']
  [nats], [greedy], _ = likelihood.score_requests(subject, [likelihood.Request(ids, [3])])
  best = int(np.asarray(models.logits(subject.model, jnp.asarray([ids]))[0, -1]).argmax())
  assert greedy == (best == 3)
  assert likelihood.score_requests(subject, [likelihood.Request(ids, [best])]).greedy.all()


def test_requests_keep_their_order_and_may_repeat_or_share_a_row(subject, log_p):
  pairs = [('abc', 'd'), ('a', 'bcdefgh'), ('abc', 'e'), ('abc', 'd'), ('x' * 30, 'y' * 12), ('', 'q')]
  requests = [likelihood.encode_pair(subject, *pair) for pair in pairs]
  scores = likelihood.score_requests(subject, requests)
  np.testing.assert_allclose(-scores.nats, [log_p(*pair)[0] for pair in pairs], rtol=1e-5)


def test_long_contexts_lose_their_beginning(subject, log_p):
  scores = likelihood.score_requests(subject, [likelihood.encode_pair(subject, 'z' * 10 + 'y' * 61, 'abcd')])
  np.testing.assert_allclose(-scores.nats, [log_p('y' * 61, 'abcd')[0]], rtol=1e-5)
  assert scores.truncated == 1
  with pytest.raises(ValueError, match='65 tokens, and the context of the model is 64') as caught:
    likelihood.score_requests(subject, [likelihood.encode_pair(subject, 'z', 'y' * 65)])
  assert_two_lines(caught.value)


def test_bytes_are_those_that_the_targets_spell(subject):
  for context, text in (('Answer: ', 'A'), ('a\n\n', 'é'), ('', 'ab'), ('x', ' y')):
    assert likelihood.count_bytes(context, text) == len(
      likelihood.encode_pair(subject, context, text).targets
    )


def test_windows_score_each_token_once_with_a_full_context(subject):
  text = 'abcdefghij'
  start = likelihood.start_ids(subject)
  ids = list(text.encode())
  assert likelihood.windows(subject, text, 4) == [(start, ids[:4]), (ids[3:4], ids[4:8]), (ids[5:8], ids[8:])]
  assert likelihood.windows(subject, '') == []


def test_tasks_find_their_sources_and_the_mean_of_several(subject):
  assert evaluate.matching_sources(subject, 'choose', 'valid') == ['questions', 'schemas']
  assert evaluate.matching_sources(subject, 'cloze', 'valid') == ['texts']
  assert evaluate.matching_sources(subject, 'perplexity', 'valid') == ['text']
  assert data.source_names(subject.cfg.data, 'train') == ('text',)
  rows = evaluate.run_tasks(subject, ('choose', 'cloze'))
  centered = [row for row in rows if row['metric'] == 'centered_accuracy']
  assert [row['source'] for row in centered] == ['questions', 'schemas', 'texts', 'all']
  np.testing.assert_allclose(centered[-1]['value'], np.mean([row['value'] for row in centered[:3]]))
  assert centered[-1]['interval'][0] < centered[-1]['value'] < centered[-1]['interval'][1]


def test_the_mean_of_one_source_is_not_repeated():
  row = {'task': 'choose', 'source': 'a', 'value': 0.1, 'n': 2, 'chance': 0.5}
  assert common.centered_mean([row | {'metric': m} for m in ('accuracy', 'centered_accuracy')]) == []


@pytest.mark.parametrize('gold', [3, -1, True, 'D', 'cold', None])
def test_an_index_beyond_the_options_is_an_error(gold):
  with pytest.raises(ValueError, match="field 'gold' is .*, not the number of one of 3 options") as caught:
    choose.question('{query} {choices[gold]}', QUESTIONS[0] | {'gold': gold}, 'q.jsonl line 1')
  assert_two_lines(caught.value)


def test_one_option_is_no_choice():
  with pytest.raises(ValueError, match='q.jsonl line 1 has 1 options') as caught:
    choose.question('{query} {choices[gold]}', {'query': 'Q', 'choices': ['a'], 'gold': 0}, 'q.jsonl line 1')
  assert_two_lines(caught.value)


@pytest.mark.parametrize(
  'template', ['{a[b]} {c[d]}', '{text:cloze} more', '{a} -> {text:cloze}', '{a[0]}', '{a[b]c}']
)
def test_templates_that_no_task_can_score_are_errors(template):
  with pytest.raises(ValueError, match='template=') as caught:
    templates.parse(template)
  assert_two_lines(caught.value)


def test_a_template_says_its_benchmark():
  assert templates.benchmark('Q: {q} A: {c.text[key]}') == 'choose'
  assert templates.benchmark('{text:cloze}') == 'cloze'
  assert templates.benchmark('{text}') == ''
  record = {'q': 1, 'c': {'text': ['x', 'y']}, 'key': 'B'}
  [piece] = templates.fill('Q: {q} A: {c.text[key]}', record, '')
  assert piece.value == 'Q: 1 A: y'


def test_a_template_with_an_arrow_is_scored_by_its_target(subject):
  class Known:
    def target_nats(self, documents, ends=True):
      return np.array([len(common.text(d)) for d in documents], float)

  template = '{query} -> {choices[gold]}'
  questions = [choose.question(template, record, '') for record in QUESTIONS[:1]]
  log_p, bare, _ = choose.log_likelihoods(Known(), template, questions)
  assert [text for _, text in questions[0].pairs] == QUESTIONS[0]['choices']
  assert log_p.tolist() == [-len('Ice is' + text) for text in QUESTIONS[0]['choices']]
  assert bare is None


def test_bits_per_byte_leave_out_the_end_of_a_document(subject, files):
  """As they do without an arrow; a picture as the target has no bytes."""
  mixture = {'asked': source(files, 'questions', '{query} -> {choices[gold]}')}
  section = data.DataConfig(
    **{
      **vars(subject.cfg.data),
      'packing': 'first_fit',
      'mixture': {'asked': data.Source(**mixture['asked'])},
    }
  )
  asked = dataclasses.replace(subject, cfg=dataclasses.replace(subject.cfg, data=section), caches={})
  bits, special = [], subject.tokenizers.vocabulary.special
  for q in QUESTIONS:
    answer = [*q['choices'][q['gold']].encode()]
    row = np.array([*q['query'].encode(), special('sep'), *answer, special('eos')])
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(row)] = row
    nats = asked.target_nats([templates.fill(section.mixture['asked'].template, q, '')])
    logits_TV = np.asarray(subject.model(jnp.asarray(padded)).logits_BTV[0], np.float64)
    places = np.arange(len(row) - len(answer) - 2, len(row) - 1)
    log_p_TV = logits_TV[places] - np.logaddexp.reduce(logits_TV[places], -1, keepdims=True)
    each = -log_p_TV[np.arange(len(places)), row[places + 1]]
    np.testing.assert_allclose(nats, each.sum(), rtol=1e-5)
    bits.append(each[:-1].sum() / np.log(2) / len(answer))
  rows = values(choose.run(asked, 'asked', 'valid', 0))
  np.testing.assert_allclose(rows['bits_per_byte'], np.mean(bits), rtol=1e-5)


def test_answers_are_labels_where_options_have_some(subject, tmp_path):
  arc = {'choices': {'text': ['w', 'x', 'y', 'z'], 'label': ['1', '2', '3', '4']}, 'key': '1'}
  for record in (arc, arc | {'key': 1}):
    asked = choose.question('Q {choices.text[key]}', record, '')
    assert asked.gold == 0 and [d[0].value for d in asked.documents] == ['Q w', 'Q x', 'Q y', 'Q z']
  letters = {'choices': {'text': ['w', 'x'], 'label': ['A', 'B']}, 'key': 1}
  assert choose.question('Q {choices.text[key]}', letters, '').gold == 1
  with pytest.raises(ValueError, match="field 'key' is '0', not one of the labels 1, 2, 3, 4") as caught:
    choose.question('Q {choices.text[key]}', arc | {'key': '0'}, '')
  assert_two_lines(caught.value)


def test_numbers_in_text_that_may_begin_at_1_are_refused():
  example = lambda key: common.Example('', {'options': ['w', 'x', 'y'], 'key': key}, [], [])
  choose.check_numbers('{options[key]}', [example('0'), example('2')], 'asked')
  choose.check_numbers('{options[key]}', [example(1), example(2)], 'asked')
  with pytest.raises(ValueError, match="data.mixture.asked: no answer 'key' is 0") as caught:
    choose.check_numbers('{options[key]}', [example('1'), example('2')], 'asked')
  assert_two_lines(caught.value)


def test_scores_are_equal_on_any_mesh(subject):
  pairs = [('abc', 'd'), ('a', 'bcdefgh'), ('abc', 'e'), ('Q', ' yes'), ('', 'no')]
  requests = [likelihood.encode_pair(subject, *pair) for pair in pairs]
  mesh = models.mesh(data=2, tensor=2)
  model = jax.device_put(subject.model, gpt.shardings(subject.model, mesh))
  sharded = dataclasses.replace(subject, mesh=mesh, model=model)
  expected = likelihood.score_requests(subject, requests)
  np.testing.assert_allclose(likelihood.score_requests(sharded, requests).nats, expected.nats, rtol=1e-5)


def test_predictions_of_benchmarks_name_the_options(subject, tmp_path):
  files = predictions.PredictionFiles(tmp_path, 3, {})
  kept = dataclasses.replace(subject, predictions=files)
  evaluate.run_tasks(kept, ('choose', 'cloze'))
  lines = records.read_lines(tmp_path / 'predictions.jsonl')
  by_input = {line['input']: line for line in lines}
  line = by_input['Q: Ice is\nA: ']
  assert line['target'] == 'cold'
  assert line['prediction'] in QUESTIONS[0]['choices']
  assert line['right'] == (line['prediction'] == 'cold')
  assert by_input['once upon a ']['target'] == 'time'


def test_shots_are_other_records_in_the_format_of_lm_eval(subject, tmp_path):
  """The same shots as text through a task of lm-eval give its contexts."""
  found = common.examples(subject, 'questions', 'valid')
  contexts = choose.fewshot_contexts(subject, 'questions', 'valid', found, 2)
  documents = {f'Q: {q["query"]}\nA: {q["choices"][q["gold"]]}': q for q in QUESTIONS}
  shots = [[documents[text] for text in context.split('\n\n')[:-1]] for context in contexts]
  assert all(len(chosen) == 2 for chosen in shots)
  assert all(x.record not in chosen for x, chosen in zip(found, shots, strict=True))
  assert contexts == choose.fewshot_contexts(subject, 'questions', 'valid', found, 2)
  assert contexts[1:2] == choose.fewshot_contexts(subject, 'questions', 'valid', found[1:2], 2)
  pytest.importorskip('lm_eval')
  from lm_eval.tasks import TaskManager

  task = {
    'task': 'local_quiz',
    'dataset_path': 'json',
    'dataset_kwargs': {'data_files': {'test': str(subject.cache_dir / 'questions.jsonl')}},
    'test_split': 'test',
    'output_type': 'multiple_choice',
    'doc_to_text': 'Q: {{query}}\nA:',
    'doc_to_target': 'gold',
    'doc_to_choice': 'choices',
  }
  (tmp_path / 'local_quiz.yaml').write_text(json.dumps(task))
  loaded = TaskManager(include_path=str(tmp_path), include_defaults=False).load(['local_quiz'])
  task = loaded['tasks']['local_quiz']
  for x, chosen, context in zip(found, shots, contexts, strict=True):
    task.sampler = types.SimpleNamespace(sample=lambda n, eval_doc, chosen=chosen: chosen[:n])
    pair = choose.question('Q: {query}\nA: {choices[gold]}', x.record, '').pairs[0]
    assert task.fewshot_context(dict(x.record), 2) == (context + pair[0]).rstrip()


def test_shots_are_before_each_option(subject, log_p):
  rows = choose.run(subject, 'questions', 'valid', 0, shots=1)
  assert {row['shots'] for row in rows} == {1}
  found = common.examples(subject, 'questions', 'valid')
  contexts = choose.fewshot_contexts(subject, 'questions', 'valid', found, 1)
  hits = [
    np.argmax([log_p(f'{before}Q: {x.record["query"]}\nA:', f' {c}')[0] for c in x.record['choices']])
    == x.record['gold']
    for x, before in zip(found, contexts, strict=True)
  ]
  assert rows[0]['value'] == np.mean(hits)
  bits = [
    -log_p(f'{before}Q: {x.record["query"]}\nA:', f' {answer}')[0] / np.log(2) / (1 + len(answer))
    for x, before in zip(found, contexts, strict=True)
    for answer in [x.record['choices'][x.record['gold']]]
  ]
  np.testing.assert_allclose(values(rows)['bits_per_byte'], np.mean(bits), rtol=1e-5)


def test_shots_come_from_the_training_file_where_there_is_one(subject, files):
  (files / 'train.jsonl').write_text(
    json.dumps({'query': 'Who?', 'choices': ['me', 'you'], 'gold': 1}) + '\n'
  )
  named = data.Source(
    'jsonl',
    str(files / 'train.jsonl'),
    '{query} {choices[gold]}',
    0.0,
    valid_path=str(files / 'questions.jsonl'),
  )
  section = dataclasses.replace(subject.cfg.data, mixture={'named': named})
  other = dataclasses.replace(subject, cfg=dataclasses.replace(subject.cfg, data=section), caches={})
  found = common.examples(other, 'named', 'valid')
  assert choose.fewshot_contexts(other, 'named', 'valid', found, 1) == ['Who? you\n\n'] * 4
  with pytest.raises(
    ValueError, match='--shots=2 and data.mixture.named has 1 other train examples'
  ) as error:
    choose.fewshot_contexts(other, 'named', 'valid', found, 2)
  assert_two_lines(error.value)


def test_shots_are_of_tasks_that_take_them(subject):
  with pytest.raises(ValueError) as error:
    evaluate.run_tasks(subject, ('cloze',), shots=2)
  assert_two_lines(error.value, '--shots=2', '--tasks=cloze')
  arrow = dataclasses.replace(subject.cfg.data.mixture['questions'], template='{query} -> {choices[gold]}')
  section = dataclasses.replace(subject.cfg.data, mixture={'questions': arrow}, packing='first_fit')
  other = dataclasses.replace(subject, cfg=dataclasses.replace(subject.cfg, data=section), caches={})
  with pytest.raises(ValueError) as error:
    choose.fewshot_contexts(other, 'questions', 'valid', [], 1)
  assert_two_lines(
    error.value, "--shots=1 needs a plain text, and data.mixture.questions.template='{query} -> "
  )


def test_the_interval_of_the_mean_is_that_of_examples_drawn_again():
  row = lambda task, n, value, chance: [
    {
      'task': task,
      'source': task,
      'metric': 'accuracy',
      'value': value,
      'n': n,
      'chance': chance,
      'split': 'valid',
    },
    {'task': task, 'source': task, 'metric': 'centered_accuracy', 'value': 9.0},
  ]
  [mean] = common.centered_mean([*row('a', 50, 0.6, 0.25), *row('b', 80, 0.5, 0.0)])
  assert mean['value'] == pytest.approx(((0.6 - 0.25) / 0.75 + 0.5) / 2)
  rng, draws = np.random.default_rng(1), []
  rights = [np.arange(50) < 30, np.arange(80) < 40]
  for _ in range(2000):
    a, b = (rng.choice(right, len(right)).mean() for right in rights)
    draws.append(((a - 0.25) / 0.75 + b) / 2)
  np.testing.assert_allclose(mean['interval'], np.percentile(draws, (2.5, 97.5)), atol=0.02)
