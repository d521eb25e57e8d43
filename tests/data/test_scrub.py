"""Personal data: what each pattern finds and what it must not, placeholders, counts in caches and runs."""

import json
import sys
import time
import types
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data import DataConfig, Source
from gpt_jax.data.clean import national_ids, patterns, scrub
from gpt_jax.data.mixture import open_split
from gpt_jax.data.templates import Piece
from gpt_jax.evaluation.tasks import common
from gpt_jax.runs import secrets
from tests.data_helpers import byte_tokenizers, two_lines

ALL = scrub.parse('all')
FOUND = {
  'email': ['a.b+c@mail.example.org', 'X_1@a-b.co.uk'],
  'phone': [
    *(
      '+49 30 1234567',
      '+1-212-555-0187',
      '001-212-555-0187x123',
      '(212)555-0187',
      '212.555.0187',
      '2125550187',
    ),
    *(
      '0113 496 0123',
      '(01144) 960123',
      '+44(0)113 496 0123',
      '0171/1234567',
      '01712345678',
      '06 12 34 56 78',
    ),
  ],
  'card': [
    '4111 1111 1111 1111',
    '5500-0000-0000-0004',
    '378282246310005',
    '6011111111111117',
    '30569309025904',
  ],
  'iban': ['DE89 3704 0044 0532 0130 00', 'GB82WEST12345698765432', 'NO9386011117947'],
  'ip': ['8.8.8.8', '192.168.1.20', '2001:db8::ff00:42:8329', '2001:0db8:85a3:0000:0000:8a2e:0370:7334'],
  'url': [
    'https://joe:pw@host.org/x',
    'postgres://u:p@db:5432/main',
    'https://a.org/x?access_token=abcdef1',
    'ftp://joe:pa/ss@h.org',
  ],
  'key': [
    *('AKIAIOSFODNN7EXAMPLE', 'ghp_abcdEFGH0123456789abcdEFGH0123456789', 'hf_abcdefghijklmnopqrstuvwx'),
    *('sk-ant-REDACTED', 'Bearer abcdefghijkl0123456789'),
  ],
  'id': [
    *('123-45-6789', 'AB 12 34 56 C', '12345678Z', 'X1234567L', '1 85 05 78 006 084 91', 'RSSMRA85T10A562S'),
    *('529.982.247-25', '11010519491231002X'),
  ],
}
STAYS = {
  'email': ['a@b', '@name', 'a @ b.org', 'def@decorator', 'x@1.2.3'],
  'phone': [
    *(
      '2024-01-15',
      '1700000000',
      '978-3-16-148410-0',
      '3.14159265358',
      '12:30:45',
      '$1,234,567.00',
      '100-200',
    ),
    *(
      '1914-1918',
      '1:1-16',
      '00000000000',
      '555-1234',
      '0.1234567890',
      '2024-01-15T10:20:30',
      '1/2/2003',
      '+1',
    ),
  ],
  'card': [
    '4111 1111 1111 1112',
    '0000000000000000',
    '1234567890123',
    '4.111111111111111',
    '7111111111111111',
  ],
  'iban': ['DE88 3704 0044 0532 0130 00', 'XX89370400440532013000', 'DE8937040044', 'AB12 CDEF GHIJ KLMN'],
  'ip': [
    *('1.2.3', '256.1.1.1', '1.2.3.4.5', 'v1.2.3.4', 'version 1.2.3.4', '12:30:45', 'std::vector', 'a::b'),
    *('127.0.0.1', '::1', '0.0.0.0', '00:1A:2B:3C:4D:5E', 'Dead::beef'),
  ],
  'url': [
    'https://host.org/a:b@c',
    'https://host.org/x?page=2',
    'ssh://git@host.org/x',
    'http://host:8080/x',
    'https://host:443/@scope/package',
  ],
  'key': [
    'sk-a',
    'hf_',
    'da39a3ee5e6b4b0d3255bfef95601890afd80709',
    'key',
    'max_new_tokens=20',
    'basic instruction',
  ],
  'id': [
    '000-12-3456',
    '123-00-4567',
    '912-34-5678',
    '12345678A',
    '529.982.247-26',
    'BG123456A',
    '123-456-7890',
  ],
}


@pytest.mark.parametrize('row', FOUND)
def test_patterns_find_whole_values_and_nothing_else(row):
  assert [*FOUND] != [] and {*FOUND, 'names'} == {*patterns.PATTERNS}
  for value in FOUND[row]:
    for text in (value, f'It is {value}, really.', f'({value})', f'{value}\n{value}', f'"{value}".'):
      spans = [text[start:end] for start, end in patterns.PATTERNS[row](text)]
      assert spans and set(spans) == {value}, (text, spans)
  for value in STAYS[row]:
    for text in (value, f'It is {value}, really.'):
      assert not list(patterns.PATTERNS[row](text)), text


@given(
  st.lists(st.sampled_from([*(v for row in FOUND.values() for v in row), ' ', 'x ' * 45, ', ', '7', 'a ']))
)
@settings(max_examples=100, deadline=None)
def test_parts_near_digits_hold_all_values_with_digits(pieces):
  text = ''.join(pieces)
  for row in patterns.WITH_DIGIT:
    parts = [span for part in patterns.regions(text) for span in patterns.PATTERNS[row](text, *part)]
    assert parts == list(patterns.PATTERNS[row](text))


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_has_ordered_separate_spans_and_placeholders(text):
  spans = scrub.find(text, ALL)
  assert all(0 <= a.start < a.end <= len(text) for a in spans)
  assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))
  assert len(scrub.mask(text, spans)) == len(text)
  assert spans or scrub.Scrubber(ALL).replace(text) == text


@given(st.lists(st.integers(0, 9), min_size=11, max_size=17), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_wrong_digit_of_a_card_is_noticed(digits, change):
  number = '4' + ''.join(map(str, digits))
  number += next(str(d) for d in range(10) if patterns.luhn(f'{number}{d}'))
  assert patterns.luhn(number)
  for place in range(len(number)):
    wrong = f'{number[:place]}{(int(number[place]) + change) % 10}{number[place + 1 :]}'
    assert not patterns.luhn(wrong)


def test_check_digits_of_national_ids():
  for name, value, wrong in (
    ('ES', '12345678Z', '12345679Z'),
    ('FR', '185057800608491', '185057800608492'),
    ('IT', 'RSSMRA85T10A562S', 'RSSMRA85T11A562S'),
    ('BR', '529.982.247-25', '529.982.247-24'),
    ('CN', '11010519491231002X', '110105194912310021'),
  ):
    check = national_ids.FORMS[name][1]
    assert check(value) and not check(wrong), name


def test_time_is_linear_in_the_length_of_hostile_texts():
  for text in (
    'a.' * 40_000 + '@',
    '1' * 80_000,
    '+1 ' * 30_000,
    '1.' * 40_000,
    'a:' * 40_000,
    'DE12 ' * 16_000,
  ):
    assert isinstance(scrub.find(text, ALL), list)


def test_time_is_linear_in_the_number_of_values():
  text = ' '.join(f'user{n}@example.org, +49 30 {1_000_000 + n}' for n in range(20_000))
  start = time.process_time()
  scrubber = scrub.Scrubber(('email', 'phone'))
  assert scrubber.replace(text).endswith('<EMAIL_20000>, <PHONE_20000>')
  assert time.process_time() - start < 20  # comparing all pairs takes minutes


def test_a_value_within_another_of_its_row_leaves_no_rest():
  for value in ('Bearer ya29.a0AfH6SMBabcdefghijkl0.RESTrest99xyz', 'Bearer sk-abcdefgh12345678/RESTrest'):
    assert (
      scrub.Scrubber(ALL).replace(f'Authorization: {value} and so on') == 'Authorization: <KEY_1> and so on'
    )
    assert scrub.mask(value, scrub.find(value, ALL)).count('rest') == 0


def test_what_stands_beside_a_number_does_not_hide_it():
  for text, expected in (
    ('4111 1111 1111 1111 12/26', '<CARD_1> 12/26'),
    ('5500-0000-0000-0004 123', '<CARD_1> 123'),
    ('3782 822463 10005 4321', '<CARD_1> 4321'),
    ('4111111111111111 12/26', '<CARD_1> 12/26'),
    ('4111 1111 1111 1112 12/26', '4111 1111 1111 1112 12/26'),
    ('Tel:+49 30 1234567, fax=+1-212-555-0187', 'Tel:<PHONE_1>, fax=<PHONE_2>'),
    ('at 10:+49 30 1234567', 'at 10:+49 30 1234567'),
  ):
    assert scrub.Scrubber(('card', 'phone')).replace(text) == expected


def test_keys_are_those_that_run_records_redact():
  assert {*patterns.KEYS} | {'password in a URL', 'token in a URL'} == {*secrets.FORMATS}
  assert {*patterns.SIGNS} == {*patterns.KEYS}
  for kind, value in (('AWS key', FOUND['key'][0]), ('GitHub token', FOUND['key'][1])):
    assert any(sign in value for sign in patterns.SIGNS[kind])
    assert f'[redacted: {kind}]' == secrets.redact(value)


def test_equal_values_of_a_document_have_one_placeholder():
  scrubber = scrub.Scrubber(ALL)
  text = 'Ann@a.org, bob@a.org and ann@a.org; +49 30 1234567 or +49-30-1234567.'
  assert scrubber.replace(text) == '<EMAIL_1>, <EMAIL_2> and <EMAIL_1>; <PHONE_1> or <PHONE_1>.'
  assert scrubber.replace('bob@a.org') == '<EMAIL_2>'  # the same document goes on
  assert scrubber.counts['email'] == 4 and scrubber.counts['phone'] == 2
  assert scrub.Scrubber(ALL).replace('bob@a.org') == '<EMAIL_1>'
  assert scrub.Scrubber(('phone',)).replace('a@b.org') == 'a@b.org'


def test_the_first_row_of_overlapping_values_counts():
  text = 'https://joe:secret99@mail.example.org/x?y=1'
  assert scrub.Scrubber(ALL).replace(text) == '<URL_1>'
  assert scrub.Scrubber(ALL).replace('4111 1111 1111 1111') == '<CARD_1>'


def test_what_overlaps_in_part_leaves_no_rest(monkeypatch):
  """A span of a later row that begins before, ends behind, or holds those of the first row."""
  text = 'abc DEF ghi JKL mno.'
  first, later = [(4, 7), (12, 15)], [(2, 5), (6, 14), (14, 19)]
  monkeypatch.setitem(patterns.PATTERNS, 'email', lambda text: first)
  monkeypatch.setitem(patterns.PATTERNS, 'key', lambda text: later)
  spans = scrub.find(text, ('email', 'key'))
  assert [(text[s.start : s.end], s.row) for s in spans] == [
    ('c ', 'key'),
    ('DEF', 'email'),
    (' ghi ', 'key'),
    ('JKL', 'email'),
    (' mno', 'key'),
  ]
  monkeypatch.setitem(patterns.PATTERNS, 'key', lambda text: [(3, 12)])  # signs alone are no value
  assert [s.row for s in scrub.find('abc:DEF:::::JKL mno.', ('email', 'key'))] == ['email', 'email']


def test_numbers_in_the_arguments_of_tools_are_scrubbed():
  call = {
    'name': 'pay',
    'arguments': {'card': 4111111111111111, 'cents': 500, 'now': True, 'to': ['a@b.org']},
  }
  piece = Piece('chat', json.dumps([{'role': 'assistant', 'tool_calls': [{'function': call}]}]))
  [replaced] = scrub.Scrubber(ALL).pieces([piece])
  [message] = json.loads(replaced.value)
  expected = {'card': '<CARD_1>', 'cents': 500, 'now': True, 'to': ['<EMAIL_1>']}
  assert message['tool_calls'][0]['function']['arguments'] == expected
  assert '4111111111111111' in [*scrub.texts([piece])]


def write(folder, documents, name='a.jsonl'):
  (folder / name).write_text(''.join(json.dumps(document) + '\n' for document in documents))
  return str(folder / name)


def test_messages_and_both_sides_of_a_template_are_scrubbed(tmp_path):
  messages = [
    {'role': 'user', 'content': 'I am a@b.org, "quoted"'},
    {'role': 'assistant', 'content': 'Hello a@b.org'},
  ]
  path = write(tmp_path, [{'messages': messages, 'q': 'Who is c@d.org?', 'a': 'c@d.org is Carl'}])
  chat = Source('jsonl', path, template='{messages:chat}', scrub='email')
  pair = Source('jsonl', path, template='{q} -> {a}', scrub='email')
  cfg = DataConfig({'chat': chat, 'pair': pair}, valid_fraction=0.0, packing='first_fit')
  [(_, [piece])] = open_split(cfg, 'chat', 'train').examples()
  contents = [message['content'] for message in json.loads(piece.value)]
  assert contents == ['I am <EMAIL_1>, "quoted"', 'Hello <EMAIL_1>']
  notes = Counter()
  [(_, pieces)] = open_split(cfg, 'pair', 'train').examples(None, notes)
  assert [p.value for p in pieces] == ['Who is <EMAIL_1>?', '', '<EMAIL_1> is Carl']
  assert notes == {'email replaced': 2}


def test_tasks_read_scrubbed_records(tmp_path):
  path = write(tmp_path, [{'q': 'Who is c@d.org?', 'a': ['e@f.org', 'c@d.org', 'x@y.org']}] * 2)
  source = Source('jsonl', path, template='{q} -> {a.0}', scrub='email')
  cfg = DataConfig({'x': source}, valid_fraction=0.0, packing='first_fit')
  subject = types.SimpleNamespace(
    cfg=types.SimpleNamespace(data=cfg), tokenizers=byte_tokenizers(), caches={}
  )
  first, _ = common.examples(subject, 'x', 'train')
  assert common.text(first.target) == '<EMAIL_2>'
  assert common.references(first, source.template) == ['<EMAIL_2>', '<EMAIL_1>', '<EMAIL_3>']


def test_one_text_is_scrubbed_before_it_is_cut(tmp_path):
  (tmp_path / 'a.txt').write_text('x' * 85 + ' a@b.org ' + 'y' * 6)
  source = Source('text', str(tmp_path / 'a.txt'), scrub='email')
  cfg = DataConfig({'x': source}, valid_fraction=0.1)
  parts = [next(open_split(cfg, 'x', split).texts()) for split in ('train', 'valid')]
  assert ''.join(parts) == 'x' * 85 + ' <EMAIL_1> ' + 'y' * 6


def test_names_are_found_by_presidio(monkeypatch):
  results = [types.SimpleNamespace(start=0, end=3), types.SimpleNamespace(start=11, end=14)]
  engine = lambda: types.SimpleNamespace(analyze=lambda text, entities, language: results)
  module = types.SimpleNamespace(AnalyzerEngine=engine)
  monkeypatch.setitem(sys.modules, 'presidio_analyzer', module)
  patterns._name_finder.cache_clear()
  assert scrub.Scrubber(('names',)).replace('Ann, a@b.c Ann') == '<NAME_1>, a@b.c <NAME_1>'
  patterns._name_finder.cache_clear()


def test_wrong_settings_are_refused(tmp_path, monkeypatch):
  with two_lines(ValueError, 'mail'):
    Source(scrub='mail')
  with two_lines(ValueError, 'email twice'):
    Source(scrub='all,email')
  with two_lines(ValueError, 'no text'):
    Source('digits', template='{image:image}', scrub='all')
  monkeypatch.setitem(sys.modules, 'presidio_analyzer', None)
  path = write(tmp_path, [{'text': 'a'}, {'text': 'b'}])
  cfg = DataConfig({'x': Source('jsonl', path, scrub='names')}, valid_fraction=0.0)
  with two_lines(ValueError, 'presidio-analyzer'):
    open_split(cfg, 'x', 'train').describe()
