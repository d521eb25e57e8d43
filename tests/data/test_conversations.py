"""Conversations from records to batches, and back out of a trained model."""

import dataclasses
import io
import json
import types

import numpy as np
import pytest

from gpt_jax import config, data, train
from gpt_jax.cli import chat
from gpt_jax.data.packing import FirstFit
from gpt_jax.data.row_fields import RowFields
from gpt_jax.evaluation import trained
from gpt_jax.interop import huggingface
from gpt_jax.jobs import run_tokenizers
from gpt_jax.sampling import completions, prompts
from gpt_jax.tokenizers import TokenizerConfig, Tokenizers, text
from tests import command_line, data_helpers, models, tiny_runs
from tests.interop import test_interop
from tests.test_trust import loss_and_grads
from tests.tokenizers.test_chat_template import CHATML, write_tokenizer

CHAT = '{messages:chat}'


def records(count=24):
  """Conversations of one or two exchanges."""
  for n in range(count):
    word = 'abcdefghijkl'[n % 12]
    turns = [('user', f'say {word}'), ('assistant', word * 2), ('user', 'bye'), ('assistant', 'bye.')]
    yield {'messages': [{'role': role, 'content': text} for role, text in turns[: 4 if n % 3 else 2]]}


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def cache_of(folder, path, tokenizers, template=CHAT, kind='jsonl', **fields):
  source = data.Source(kind=kind, path=str(path), template=template, **fields)
  cfg = data.DataConfig({'chat': source}, packing='first_fit', valid_fraction=0.0)
  return cfg, data.token_cache(cfg, 'chat', tokenizers, 'train', folder)


@pytest.fixture(scope='module')
def native():
  return Tokenizers.build(text.build(TokenizerConfig('bytes')))


def reference(cache, special):
  """The targets of a stream of our own template: what stands after each assistant's header, with eot."""
  header, learned, is_reply = [special('bot'), *b'assistant\n'], [], False
  for n in range(len(cache.ids)):
    is_reply = is_reply or cache.ids[max(0, n - len(header)) : n].tolist() == header
    learned.append(int(is_reply))
    is_reply = is_reply and cache.ids[n] != special('eot')
  return np.array(learned)


def test_rows_learn_replies_alone(tmp_path, native):
  """The loss mask of packed rows is that of the stream, shifted to its targets."""
  cfg, cache = cache_of(tmp_path, write(tmp_path / 'a.jsonl', records()), native)
  expected = reference(cache, native.vocabulary.special)
  np.testing.assert_array_equal(cache.targets, expected)
  rows = FirstFit(cache, 100, row_fields=RowFields.of(cfg, native))
  batch = rows.gather(np.arange(rows.count))
  assert batch['loss_mask_BT'].sum() == expected.sum()
  assert rows.most_targets() == batch['loss_mask_BT'].sum(1).max() < 100
  [start_N, size_N, row_N] = np.asarray(rows.plan)
  mask_BT, column_B = np.zeros_like(batch['loss_mask_BT']), np.zeros(rows.count, int)
  for start, size, row in zip(start_N, size_N, row_N, strict=True):
    column = column_B[row]
    mask_BT[row, column : column + size - 1] = expected[start + 1 : start + size]
    column_B[row] += size
  np.testing.assert_array_equal(batch['loss_mask_BT'], mask_BT)


def test_packed_conversations_equal_each_alone(tmp_path, native):
  cfg, cache = cache_of(tmp_path, write(tmp_path / 'a.jsonl', records(4)), native)
  fields = RowFields.of(cfg, native)
  model = models.fill(models.tiny(vocab=native.vocabulary.size, context=128))
  packed = FirstFit(cache, 127, row_fields=fields)
  batch = packed.gather(np.arange(packed.count))
  assert (batch['segment_ids_BT'].max(1) > 1).any()
  size = 4  # rows of the batch of those alone; the packed one is filled up with rows of no weight
  ends = [*cache.offsets[1:], len(cache.ids)]
  alone = {name: np.zeros((size, *x.shape[1:]), x.dtype) for name, x in batch.items()}
  for b, (first, end) in enumerate(zip(cache.offsets, ends, strict=True)):
    ids, n = np.asarray(cache.ids[first:end], np.int32), end - first - 1
    alone['token_ids_BT'][b, :n], alone['target_ids_BT'][b, :n] = ids[:-1], ids[1:]
    alone['loss_mask_BT'][b, :n] = cache.targets[first + 1 : end]
    alone['segment_ids_BT'][b, :n], alone['positions_BT'][b, :n] = 1, np.arange(n)
  padded = {name: np.zeros_like(x) for name, x in alone.items()}
  for name, x in batch.items():
    padded[name][: len(x)] = x
  assert padded['loss_mask_BT'].sum() == alone['loss_mask_BT'].sum()
  models.assert_close(loss_and_grads(model, padded), loss_and_grads(model, alone))


def test_alpaca_is_a_question_and_an_answer():
  row = {'instruction': 'Add.', 'input': '1 + 1', 'output': '2'}
  turns = lambda question: [dict(role='user', content=question), dict(role='assistant', content='2')]
  for record, question in ((row, 'Add.\n1 + 1'), (row | {'input': ''}, 'Add.')):
    [piece] = data.templates.fill('{instruction:chat}', record, 'line 1')
    assert json.loads(piece.value) == turns(question)
  with data_helpers.two_lines(ValueError, "field 'instruction' is str 'Add.', not a list of messages"):
    data.templates.fill('{instruction:chat}', {'instruction': 'Add.'}, 'line 1')


def test_sharegpt_and_parquet_hold_the_same_conversations(tmp_path, native):
  expected = cache_of(tmp_path, write(tmp_path / 'a.jsonl', records(6)), native)[1]
  names = {'user': 'human', 'assistant': 'gpt'}
  turn = lambda message: {'from': names[message['role']], 'value': message['content']}
  rows = [{'conversations': [turn(message) for message in row['messages']]} for row in records(6)]
  path = write(tmp_path / 'b.jsonl', rows)
  shared = cache_of(tmp_path, path, native, '{conversations:chat}')[1]
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  rows = [{'messages': [{**m, 'name': None} for m in row['messages']]} for row in records(6)]
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'c.parquet')
  table = cache_of(tmp_path, tmp_path / 'c.parquet', native, kind='parquet')[1]
  for cache in (shared, table):
    np.testing.assert_array_equal(cache.ids, expected.ids)
    np.testing.assert_array_equal(cache.targets, expected.targets)


@pytest.mark.parametrize(
  ('messages', 'words'),
  [
    ('hello', 'not a list of messages'),
    ([], 'not a list of messages'),
    ([{'role': 'user'}, {'role': 'narrator', 'content': 'x'}], "'messages.1'"),
    (['hi'], 'not a message'),
    ([{'role': 'user', 'content': [{'video': 'x.mp4'}]}], 'not one of text, image, audio'),
    ([{'role': 'user', 'content': 'a\ufdd0'}], 'noncharacter'),
    ([{'role': 'user', 'content': [{'text': 'see'}, {'image': 'x.png'}]}], 'needs image tokens'),
  ],
)
def test_messages_that_cannot_be_read_are_named(tmp_path, native, messages, words):
  path = write(tmp_path / 'a.jsonl', [*records(2), {'messages': messages}])
  with data_helpers.two_lines(ValueError, 'a.jsonl line 3', words):
    cache_of(tmp_path, path, native)


def test_templates_with_something_beside_a_conversation_are_refused():
  with data_helpers.two_lines(ValueError, 'beside a conversation'):
    data.Source(kind='jsonl', path='x', template='Chat: {messages:chat}')
  with data_helpers.two_lines(ValueError, 'would cut its documents'):
    data.DataConfig({'chat': data.Source(kind='jsonl', path='x', template=CHAT)})


def test_a_conversation_longer_than_a_row_is_refused(tmp_path, native):
  cfg, cache = cache_of(tmp_path, write(tmp_path / 'a.jsonl', records(3)), native)
  with data_helpers.two_lines(ValueError, 'conversations that are longer than the 33 tokens of a row'):
    RowFields.of(cfg, native).refuse_cuts(cache, 32)


def test_a_record_that_its_template_refuses_counts_as_bad(tmp_path):
  strict = CHATML.replace(
    '{% for m in messages %}',
    "{% for m in messages %}{% if m['content'] == 'no' %}{{ raise_exception('no no') }}{% endif %}",
  )
  tokenizers = write_tokenizer(tmp_path, strict)
  path = write(tmp_path / 'a.jsonl', [{'messages': [{'role': 'user', 'content': 'no'}]}, *records(2)])
  with data_helpers.two_lines(ValueError, 'line 1: the chat template refuses', 'no no'):
    cache_of(tmp_path, path, tokenizers)
  assert cache_of(tmp_path, path, tokenizers, bad_records=1)[1].media['skipped'] == 1


def test_an_imported_tokenizer_gains_markers_only_without_a_template_of_its_own(tmp_path):
  mixture = {'chat': {'kind': 'jsonl', 'path': 'x', 'template': CHAT}}
  cfg = tiny_runs.experiment(data__mixture=mixture, data__packing='first_fit')
  for template, grows in ((CHATML, False), ('', True)):
    folder = tmp_path / str(grows)
    folder.mkdir()
    tokenizers = write_tokenizer(folder, template)
    extended = run_tokenizers._extend(tokenizers, cfg)
    assert ('eot' in dict(extended.vocabulary.specials)) == grows


# ------------------------------------------------------------------------------------------- replies


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run that learned to repeat a letter twice, and to say bye."""
  folder = tmp_path_factory.mktemp('chat')
  path = write(folder / 'a.jsonl', records())
  cfg = tiny_runs.section(
    data__mixture={'chat': {'kind': 'jsonl', 'path': path, 'template': CHAT}},
    data={'packing': 'first_fit', 'valid_fraction': 0.0},
    model={'layers': 1, 'width': 32, 'heads': 2, 'context': 96},
    optim={'lr': 1e-2, 'warmup': 10},
    train={'steps': 120, 'batch_size': 8, 'sample_every': 0},
    checkpoint={'every': 0},
    log={'every': 60},
    sample={'max_new_tokens': 20, 'temperature': 0.0},
  )
  train.train(config.build(config.Config, cfg), folder / 'run')
  return folder / 'run'


@pytest.mark.slow
def test_a_reply_ends_with_its_turn_and_streams(run):
  loaded = trained.load(run)
  messages = [{'role': 'user', 'content': 'say c'}]
  reply = loaded.chat(messages)
  assert reply == 'cc'
  assert ''.join(loaded.stream_chat(messages, temperature=0.0)) == reply
  messages += [{'role': 'assistant', 'content': reply}, {'role': 'user', 'content': 'bye'}]
  assert loaded.chat(messages) == 'bye.'
  prompt = prompts.build_chat(loaded, messages)
  ends, stop = prompts.chat_ends(loaded)
  assert ends == (loaded.tokenizers.vocabulary.special('eot'),) and stop == ()
  cfg = dataclasses.replace(loaded.cfg.sample, temperature=0.0)
  [[(text_, scores)]] = completions.complete(loaded.model, loaded.tokenizers, [prompt], cfg, stop, ends)
  assert text_ == 'bye.' and len(scores) >= 4


def test_ends_of_other_templates(tmp_path):
  class Run:
    tokenizers = write_tokenizer(tmp_path, CHATML)

  assert prompts.chat_ends(Run) == (tuple(Run.tokenizers.encode_text('<|im_end|>')), ())
  plain = CHATML.replace('<|im_start|>', '').replace('<|im_end|>', ' END')
  Run.tokenizers = write_tokenizer(tmp_path, plain)
  assert prompts.chat_ends(Run) == ((), (' END',))


@pytest.mark.slow
def test_turns_from_a_pipe(run, monkeypatch, capsys):
  lines = '/help\nsay c\nbye\n\n/reset\nsay a\n/exit\nsay b\n'
  monkeypatch.setattr('sys.stdin', io.StringIO(lines))
  call = command_line.in_process(capsys, monkeypatch)
  code, out, _ = call('chat', f'--workdir={run}', '--temperature=0')
  assert code == 0 and out.startswith('/reset begins a new conversation')
  assert out.partition('\n')[2].split() == ['cc', 'bye.', 'aa']
  code, _, err = call('chat', f'--workdir={run}', '--temperature=-1')
  assert code == 2 and 'temperature=-1.0' in err


def test_a_run_without_conversations_says_so(native):
  run = types.SimpleNamespace(cfg=config.Config(), tokenizers=native)
  with data_helpers.two_lines(ValueError, 'never trained on conversations'):
    prompts.build_chat(run, [{'role': 'user', 'content': 'hi'}])


def test_the_end_of_a_turn_may_be_sampled_and_ends_a_row(native):
  eot = native.vocabulary.special('eot')
  plain, chat = (completions.build_grammar(native, 384, ends=ends) for ends in ((), (eot,)))
  for grammar, is_end in ((plain, False), (chat, True)):
    assert grammar.ends_V[eot] == grammar.table_NV[0, eot] == is_end
    assert grammar.ends_V[native.vocabulary.special('eos')]


@pytest.mark.slow
def test_a_conversation_longer_than_the_context_is_refused(run):
  with data_helpers.two_lines(ValueError, 'context'):
    trained.load(run).chat([{'role': 'user', 'content': 'x' * 200}])


def test_ctrl_c_stops_a_reply_and_keeps_what_was_written(capsys, monkeypatch):
  def stream(messages, history, **_):
    yield 'half'
    raise KeyboardInterrupt

  monkeypatch.setattr(chat, 'sampling_overrides', dict)
  assert chat.write_reply(types.SimpleNamespace(stream_chat=stream), [], None) == 'half'
  lines = iter([KeyboardInterrupt, ' hi ', '', EOFError])

  def read(prompt):
    line = next(lines)
    if isinstance(line, str):
      return line
    raise line

  monkeypatch.setattr('builtins.input', read)
  assert list(chat.read_turns('> ')) == ['hi']


@pytest.mark.slow
@pytest.mark.parametrize(('template', 'marker'), [(CHATML, '<|im_end|>'), ('', 'eot')])
def test_an_imported_model_learns_to_reply(template, marker, tmp_path):
  """By its own template with the ids that it has, else with new markers."""
  (tmp_path / 'tokenizer').mkdir()
  tokenizers = write_tokenizer(tmp_path / 'tokenizer', template)
  test_interop.write(tmp_path / 'source', 'llama', tokenizers, context=64)
  huggingface.import_run(tmp_path / 'source', tmp_path / 'base')
  base = config.of_run(tmp_path / 'base')
  cfg = tiny_runs.section(
    data__mixture={
      'chat': {'kind': 'jsonl', 'path': write(tmp_path / 'a.jsonl', records()), 'template': CHAT}
    },
    data={'packing': 'first_fit', 'valid_fraction': 0.0},
    checkpoint={'every': 0},
  )
  cfg.model, cfg.tokenizer = config.section(base.model), config.section(base.tokenizer)
  cfg.train.update(init_from=str(tmp_path / 'base'), steps=80, sample_every=0, eval_every=0)
  cfg.optim.update(lr=1e-2, ema=0.0)
  train.train(config.build(config.Config, cfg), tmp_path / 'run')
  run = trained.load(tmp_path / 'run')
  assert run.chat([{'role': 'user', 'content': 'say c'}], temperature=0.0) == 'cc'
  [end], _ = prompts.chat_ends(run)
  known = dict(run.tokenizers.vocabulary.specials)
  assert end == (known['eot'] if marker == 'eot' else run.tokenizers.encode_text(marker)[0])
  assert run.tokenizers.vocabulary.size == tokenizers.vocabulary.size + 14 * (marker == 'eot')
