"""Rules of `clean`: what each removes and why, fingerprints, counts in token caches, refusals."""

import importlib.util
import json
import random
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data import DataConfig, Source, media_io, token_cache
from gpt_jax.data.clean import cleaning, duplicates, ngrams, quality
from gpt_jax.data.clean.rule import Document
from gpt_jax.data.mixture import open_split
from gpt_jax.data.templates import Piece
from tests.data_helpers import byte_tokenizers, two_lines

needs_rensa = pytest.mark.skipif(not importlib.util.find_spec('rensa'), reason='needs rensa')
needs_langid = pytest.mark.skipif(not importlib.util.find_spec('py3langid'), reason='needs py3langid')
VOCABULARY = [f'word{n}' for n in range(3000)]


def words(rng, count):
  return [rng.choice(VOCABULARY) for _ in range(count)]


def jaccard(a, b, size=5):
  """The definition, by sets of groups of words."""
  a, b = ({tuple(x[i : i + size]) for i in range(len(x) - size + 1)} for x in (a, b))
  return len(a & b) / len(a | b)


def corpus(folder, texts, name='a.jsonl', **fields):
  """A mixture of one source, x, of these texts."""
  (folder / name).write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
  return DataConfig({'x': Source('jsonl', str(folder / name), **fields)}, valid_fraction=0.0)


def left(cfg, split='train'):
  """(texts that stay, notes)."""
  notes = Counter()
  return [pieces[0].value for _, pieces in open_split(cfg, 'x', split).examples(None, notes)], notes


# ---------------------------------------------------------------------------------- duplicates


@given(st.lists(st.sampled_from('abcde'), max_size=40), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_equal_groups_of_words_have_equal_hashes_and_others_do_not(letters, size):
  hashes = ngrams.group_hashes(ngrams.word_hashes(' '.join(letters)), size)
  groups = [tuple(letters[i : i + size]) for i in range(len(letters) - size + 1)]
  assert len(hashes) == len(groups)
  assert len(set(hashes.tolist())) == len(set(groups))
  assert len(dict(zip(groups, hashes.tolist(), strict=True))) == len(set(groups))
  upper = ngrams.group_hashes(ngrams.word_hashes(' - '.join(letters).upper()), size)
  assert np.array_equal(hashes, upper)


def test_shards_give_back_every_repeated_key(monkeypatch):
  monkeypatch.setattr(ngrams, 'BUFFERED', 50)
  rng, shards = np.random.default_rng(0), ngrams.Shards()
  keys = rng.integers(0, 300, 1000).astype(np.uint64)
  for start in range(0, 1000, 30):
    shards.add(keys[start : start + 30], np.arange(start, min(start + 30, 1000)))
  seen = {}
  for records, first in shards.repeated():
    for (key, number), is_first in zip(records.tolist(), first.tolist(), strict=True):
      assert is_first == (key not in seen)
      seen.setdefault(key, []).append(number)
  shards.close()
  expected = {k: np.flatnonzero(keys == k).tolist() for k in np.unique(keys) if (keys == k).sum() > 1}
  assert seen == expected


def test_of_equal_documents_the_first_stays(tmp_path):
  texts, notes = left(corpus(tmp_path, ['b', 'a', 'b', 'B', 'a', 'c'], clean='exact'))
  assert texts == ['b', 'a', 'B', 'c'] and notes == {'documents removed by exact': 2}


@needs_rensa
def test_near_duplicates_at_the_threshold_are_found_and_others_stay(tmp_path):
  rng = random.Random(0)
  originals = [words(rng, 200) for _ in range(400)]
  near, apart = [], []
  for text in originals[:200]:
    near.append([*words(rng, 10), *text[10:188], *words(rng, 12)])
    apart.append([*words(rng, 40), *text[40:150], *words(rng, 50)])
  planted = [jaccard(*pair) for pair in zip(originals, near, strict=False)]
  assert np.mean(planted) == pytest.approx(0.8, abs=0.01)
  assert max(jaccard(*pair) for pair in zip(originals, apart, strict=False)) < 0.5
  cfg = corpus(tmp_path, [' '.join(text) for text in [*originals, *near, *apart]], clean='near=0.8')
  texts, notes = left(cfg)
  kept = set(texts)
  assert sum(' '.join(text) not in kept for text in near) >= 0.95 * len(near)
  assert sum(' '.join(text) not in kept for text in [*originals, *apart]) <= 0.01 * len(near)
  assert notes['documents removed by near'] == 800 - len(texts)


@needs_rensa
def test_a_document_is_near_one_that_stays_not_one_that_goes():
  assert duplicates._later_of(np.array([[0, 1], [1, 2]])) == {1}  # 2 is near 1 alone, which goes
  assert duplicates._later_of(np.array([[0, 1], [1, 2], [0, 2]])) == {1, 2}


def test_bands_compare_99_percent_of_the_pairs_at_the_threshold():
  for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
    rows = duplicates.band_rows(threshold)
    bands = duplicates.PERMUTATIONS // rows
    assert 1 - (1 - threshold**rows) ** bands >= 0.99


def test_passages_that_occurred_before_are_cut(tmp_path):
  rng = random.Random(1)
  passage, other = ' '.join(words(rng, 60)), ' '.join(words(rng, 49))
  a, b, c = (' '.join(words(rng, 30)) for _ in range(3))
  documents = [f'{a} {passage} {other}', f'{b}, {passage.upper()}! {c}', f'{c[::-1]} {other}', passage]
  texts, notes = left(corpus(tmp_path, documents, clean='passages=50'))
  assert texts == [documents[0], f'{b}, ! {c}', documents[2]]
  assert notes == {'passages cut by passages': 1, 'documents removed by passages: nothing left': 1}


# ------------------------------------------------------------------------------- contamination


def test_every_planted_benchmark_item_is_found_and_counted(tmp_path):
  rng = random.Random(2)
  items = [{'question': ' '.join(words(rng, n)), 'options': [' '.join(words(rng, 3))]} for n in range(9, 39)]
  (tmp_path / 'quiz.jsonl').write_text(''.join(json.dumps(item) + '\n' for item in items))
  (tmp_path / 'lines.txt').write_text(f'{" ".join(words(rng, 20))}\n\ntoo short\n')
  documents = [' '.join(words(rng, 100)) for _ in range(60)]
  for number, item in enumerate(items):
    question = item['question'].title().replace(' ', ', ')
    documents[number] = f'{documents[number][:200]}. {question}? {documents[number][200:]}'
  documents[3] += ' ' + items[29]['question']
  documents[59] += ' ' + ' '.join(items[20]['question'].split()[:12])  # one word too few
  cfg = corpus(tmp_path, documents, clean=f'decontaminate={tmp_path / "quiz.jsonl"}|{tmp_path / "lines.txt"}')
  texts, notes = left(cfg)
  assert texts == documents[30:] and notes['documents removed by decontaminate'] == 30
  name = 'overlaps with a benchmark from quiz.jsonl line {}'
  assert notes[name.format(30)] == 2 and all(notes[name.format(n)] == 1 for n in range(1, 30))


# ---------------------------------------------------------------------------- language, quality

PAGE = (
  'The quick brown fox jumps over the lazy dog and runs to the river. It was a long day, and all of the '
  'animals were tired of that. They have to be at home with the others before it is dark! "Will they be '
  'there?" asked the owl, who had seen nothing of this. Nobody knew that it would take until the morning.'
)


def verdict(rule, text):
  document = Document([Piece('text', text)], 'here')
  if rule.edits:
    document = Document([Piece('text', rule.edit(0, text, Counter()))], 'here')
  return rule.check(0, document)


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    (PAGE, None),
    ('Short.', 'few words'),
    (' '.join(['antidisestablishmentarianism'] * 60), 'mean word length'),
    (PAGE + ' #' * 20, 'symbols'),
    ('\n'.join(f'- {line}' for line in PAGE.split('. ')), 'bullets'),
    ('\n'.join(f'{line}...' for line in PAGE.split('. ')), 'ellipses'),
    (PAGE + ' 12 345' * 20, 'words without letters'),
    ('Der schnelle braune Fuchs springt sehr gern. ' * 12, 'stop words'),
  ],
)
def test_rules_of_gopher(text, reason):
  assert verdict(quality.Gopher(''), text) == reason


def test_repetition_rules_of_gopher():
  rng = random.Random(3)
  text = lambda count: ' '.join(words(rng, count))
  rule = quality.GopherRepetition('')
  assert verdict(rule, text(200)) is None and verdict(rule, PAGE) is None and verdict(rule, '') is None
  line = text(8)
  assert verdict(rule, '\n'.join([text(8), line] * 4 + [line])) == 'repeated lines'
  assert verdict(rule, '\n\n'.join([text(40), text(8) + '\n' + text(9)] + [f'{line}\n{line[::-1]}'] * 2))
  assert verdict(rule, ' '.join(f'{text(2)} good morning' for _ in range(30))) == 'top 2-gram'
  ten = text(10)
  assert verdict(rule, f'{text(20)} {ten} {text(20)} {ten}') == 'repeated 5-grams'


def test_lines_and_pages_of_c4(tmp_path):
  menu = 'Home\nAbout us and our very many products\nPlease enable Javascript to view this page.\n'
  foot = 'We use cookies to make this a better place.\nToo few words.\nA claim that is made here [12] by all.'
  texts, notes = left(
    corpus(tmp_path, [menu + PAGE + '\n' + foot, PAGE + ' {x}.', 'Lorem ipsum dolor sit amet.'], clean='c4')
  )
  assert texts == [f'{PAGE}\nA claim that is made here  by all.']
  assert notes == {
    **{f'lines removed by c4: {reason}': 1 for reason in ('javascript', 'policy', 'few words')},
    'lines removed by c4: no end mark': 2,
    'documents removed by c4: curly bracket': 1,
    'documents removed by c4: lorem ipsum': 1,
  }
  assert (
    verdict(quality.C4(''), 'One sentence is all that there is. And one more of them.') == 'few sentences'
  )


@needs_langid
def test_documents_of_another_language_are_removed(tmp_path):
  german = 'Der schnelle braune Fuchs springt über den faulen Hund und läuft dann zum Fluss.'
  texts, notes = left(corpus(tmp_path, [PAGE, german], clean='language=en|fr'))
  assert texts == [PAGE] and notes == {'documents removed by language: de': 1}


# ------------------------------------------------------------------------------- whole sources


def test_rules_apply_in_order_and_before_the_split(tmp_path):
  documents = [f'{PAGE} {n // 2}' for n in range(40)] + ['short'] * 3
  cfg = corpus(tmp_path, documents, clean='gopher,exact', scrub='phone')
  cfg = DataConfig(cfg.mixture, valid_fraction=0.5)
  (train, notes), (valid, again) = left(cfg), left(cfg, 'valid')
  assert sorted([*train, *valid]) == sorted(set(documents[:40])) and len(valid) == 10
  assert notes == {'documents removed by gopher: few words': 3, 'documents removed by exact': 20}
  assert not again  # counted once


def test_named_validation_data_are_not_filtered(tmp_path):
  (tmp_path / 'v.jsonl').write_text('{"text": "a@b.org"}\n' * 3)
  cfg = corpus(tmp_path, ['a', 'a', 'b'], clean='exact', scrub='email', valid_path=str(tmp_path / 'v.jsonl'))
  assert left(cfg)[0] == ['a', 'b']
  assert left(cfg, 'valid') == (['<EMAIL_1>'] * 3, {'email replaced': 3})
  parts = [open_split(cfg, 'x', split).describe() for split in ('train', 'valid')]
  assert 'clean' in parts[0] and 'clean' not in parts[1] and 'scrub' in parts[1]


def test_equal_pictures_are_removed(tmp_path):
  for number, value in enumerate((10, 20, 10, 30)):
    (tmp_path / f'{number}.png').write_bytes(media_io.to_png(np.full((4, 4, 1), value, np.uint8)))
  source = Source('files', str(tmp_path / '*.png'), template='{image:image}', clean='exact')
  cfg = DataConfig({'x': source}, valid_fraction=0.0, packing='first_fit')
  places = [where for where, _ in open_split(cfg, 'x', 'train').examples()]
  assert [place[-5] for place in places] == ['0', '1', '3']


def test_another_filter_makes_another_cache_and_the_same_one_keeps_its_counts(tmp_path, caplog):
  make = lambda cfg: token_cache(cfg, 'x', byte_tokenizers(), 'train', tmp_path / 'cache')
  bench = tmp_path / 'bench.txt'
  bench.write_text(' '.join(VOCABULARY[:20]) + '\n')
  documents = [PAGE, PAGE, 'mail a@b.org', ' '.join(VOCABULARY[:30])]
  settings = [
    {},
    {'scrub': 'email'},
    {'scrub': 'email,phone'},
    {'clean': 'exact'},
    {'clean': 'exact,gopher'},
    {'clean': 'gopher,exact'},
    {'clean': 'passages=50'},
    {'clean': 'passages=60'},
    {'clean': f'decontaminate={bench}'},
  ]
  caches = [make(corpus(tmp_path, documents, **fields)) for fields in settings]
  assert len({cache.path for cache in caches}) == len(settings)
  assert caches[1].notes == {'email replaced': 1}
  assert caches[3].notes == {'documents removed by exact': 1}
  assert caches[8].notes == {
    'documents removed by decontaminate': 1,
    'overlaps with a benchmark from bench.txt line 1': 1,
  }
  again = make(corpus(tmp_path, documents, clean='exact'))
  assert again.path == caches[3].path and again.notes == caches[3].notes
  moved = tmp_path / 'elsewhere.txt'
  moved.write_text(bench.read_text())
  assert make(corpus(tmp_path, documents, clean=f'decontaminate={moved}')).path == caches[8].path
  moved.write_text('another ' * 20 + '\n')
  assert make(corpus(tmp_path, documents, clean=f'decontaminate={moved}')).path != caches[8].path


def test_verdicts_are_remembered(tmp_path, monkeypatch):
  cfg = corpus(tmp_path, ['a', 'b', 'a'], clean='exact')
  left(cfg)
  monkeypatch.setattr(cleaning, 'judge', None)
  assert left(cfg)[0] == ['a', 'b']


@pytest.mark.parametrize(
  ('clean', 'word'),
  [
    ('near', 'near='),
    ('near=2', 'near=2'),
    ('near=0.4', 'near=0.4'),
    ('passages=5', 'passages=5'),
    ('passages=50.5', 'passages=50.5'),
    ('exact=1', 'no value'),
    ('exact,exact', 'twice'),
    ('exakt', 'exakt'),
    ('language=English', 'English'),
    ('decontaminate', 'no benchmark'),
    ('score=runs/x', 'threshold'),
    ('score=runs/x:bad|good<1.5', '1.5'),
    ('score=runs/x:bad|good<-0.1', '-0.1'),
    ('score=runs/x:bad<0.5', 'labels'),
  ],
)
def test_wrong_values_are_refused(clean, word):
  with two_lines(ValueError, word):
    Source(clean=clean)


def test_wrong_uses_are_refused(tmp_path, monkeypatch):
  with two_lines(ValueError, 'reads texts'):
    Source('digits', template='{image:image} -> {name}', clean='near=0.8')
  with two_lines(ValueError, 'cuts texts'):
    Source('jsonl', 'a.jsonl', template='{q} -> {a}', clean='c4')
  with two_lines(ValueError, 'leaves no document', '2 by gopher: few words'):
    left(corpus(tmp_path, ['a', 'b'], clean='gopher'))
  with two_lines(ValueError, 'no checkpoint'):
    left(corpus(tmp_path, ['a', 'b'], clean=f'score={tmp_path}:bad|good<0.5'))
  with two_lines(ValueError, 'matches no file'):
    open_split(corpus(tmp_path, ['a', 'b'], clean='decontaminate=none.txt'), 'x', 'train').describe()
  (tmp_path / 'short.txt').write_text('a b c\n')
  with two_lines(ValueError, 'no item of 8 words'):
    left(corpus(tmp_path, ['a', 'b'], clean=f'decontaminate={tmp_path / "short.txt"}'))
  for library, clean in (('rensa', 'near=0.8'), ('py3langid.langid', 'language=en')):
    quality._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with two_lines(ValueError, 'needs the package'):
      open_split(corpus(tmp_path, ['a', 'b'], clean=clean), 'x', 'train').describe()
