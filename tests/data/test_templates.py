"""Templates render records and name what is wrong with them."""

import numpy as np
import pytest

from gpt_jax.data.templates import fill, parse

RECORD = {
  'question': 'Why?',
  'answers': {'text': ['a', 'b']},
  'n': np.int64(3),
  'raw': 'é'.encode(),
  'none': None,
}


@pytest.mark.parametrize(
  ('template', 'text'),
  [
    ('{question}', 'Why?'),
    ('Q: {question}\nA: {answers.text.1}', 'Q: Why?\nA: b'),
    ('{{{n}}} {raw}', '{3} é'),
    ('{answers.text.*}!', 'a b!'),
  ],
)
def test_text_templates(template, text):
  [piece] = fill(template, RECORD, 'here')
  assert (piece.kind, piece.value) == ('text', text)


@pytest.mark.parametrize('template', ['', 'no field', '{', 'a}b{c}', '{}', '{n:3d}', '{n!r}', '{a[0]}'])
def test_malformed_templates(template):
  with pytest.raises(ValueError, match=r'template=(.|\n)*\nfix: '):
    parse(template)


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    ('{title}', r"f.jsonl line 7 has no field 'title'.*question, answers, n, raw, none"),
    ('{answers.text.2}', r"'answers.text.2': at '2' it has list value"),
    ('{answers.*}', r"no field 'answers.\*': at '\*' it has text"),
    ('{answers.title}', r"no field 'answers.title'.*it has text"),
    ('{answers}', r"field 'answers' is a dict, not text"),
    ('{none}', r"field 'none' is null, not text"),
    ('{bad}', r"field 'bad' is not UTF-8 at byte 1"),
    ('{half}', r'half a surrogate pair at character 1'),
  ],
)
def test_bad_records(template, message):
  record = RECORD if 'bad' not in template and 'half' not in template else {}
  record = {**record, **({'bad': b'a\xff'} if 'bad' in template else {})}
  record = {**record, **({'half': 'x\ud800'} if 'half' in template else {})}
  with pytest.raises(ValueError, match=message) as caught:
    fill(template, record, 'f.jsonl line 7')
  assert str(caught.value).count('\n') == 1
  assert str(caught.value).startswith('f.jsonl line 7 ')
