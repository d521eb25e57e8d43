"""Answers that need no model, from the condition's text and training examples: what a score must exceed.

Each takes examples, training examples and the template, and returns an answer for each example.

Sources: Dice's coefficient as a lexicon (Melamed 2000, section 2), the first sentence as a summary (Nenkova
2005), the sliding window over a passage (Richardson et al. 2013, MCTest, algorithm 1).
"""

import collections
import math
import re
import statistics
import zlib

from gpt_jax.data import templates
from gpt_jax.evaluation import metrics
from gpt_jax.evaluation.tasks import common

WORDS = re.compile(r'\w+|[^\w\s]')
MAX_COUNTS = 20_000_000  # pairs of words that the dictionary counts; about 10 s
TRIED = 200  # training examples that choose the length of a span


def copy_source(examples, train, template):
  """Return the condition itself."""
  return [common.text(example.condition) for example in examples]


def dictionary(examples, train, template):
  """Replace each word by the one of training targets with the largest Dice coefficient; unseen words stay."""
  texts = [WORDS.findall(common.text(example.condition)) for example in examples]
  needed, counts = {word for words in texts for word in words}, 0
  source, target, both = (
    collections.Counter(),
    collections.Counter(),
    collections.defaultdict(collections.Counter),
  )
  for example in train:
    sides = common.text(example.condition), common.text(example.target)
    before, after = (set(WORDS.findall(side)) for side in sides)
    before &= needed
    if counts > MAX_COUNTS:
      break
    counts += len(before) * len(after)
    source.update(before)
    target.update(after)
    for word in before:
      both[word].update(after)
  dice = lambda word: lambda other: (2 * both[word][other] / (source[word] + target[other]), other)
  lexicon = {word: max(others, key=dice(word)) for word, others in both.items() if others}
  return [' '.join(lexicon.get(word, word) for word in words) for words in texts]


def sentences(text):
  """Return the sentences of a text."""
  return re.split(r'(?<=[.!?])\s+', text.strip())


def first_sentence(examples, train, template):
  """Return the first sentence of each condition."""
  return [sentences(common.text(example.condition))[0] for example in examples]


def random_sentence(examples, train, template):
  """Return a sentence of each condition, chosen by a hash of its text."""
  texts = [common.text(example.condition) for example in examples]
  hashes = [zlib.crc32(text.encode(errors='surrogatepass')) for text in texts]
  return [(all_ := sentences(text))[n % len(all_)] for text, n in zip(texts, hashes, strict=True)]


def window(examples, train, template):
  """Return the span of a passage whose neighborhood shares most with the question; None without a passage.

  The passage is the longest field of the condition. The span is one, two or four times as long as the median
  answer of training, whichever has the best F1 there. Words count by their rarity in the passage, and against
  a span that holds them itself: a question does not name its answer.
  """
  fields = [
    field for kind, field in templates.parse(template.partition(templates.ARROW)[0]) if kind == 'text'
  ]
  if len(fields) < 2 or not train:
    return None
  median = max(1, round(statistics.median(len(common.text(x.target).split()) for x in train)))
  tried = [(*passage_and_question(x, fields), common.text(x.target)) for x in train[:TRIED]]
  f1 = lambda size: sum(metrics.token_f1(best_span(p, q, size), answer) for p, q, answer in tried)
  size = max((median, 2 * median, 4 * median), key=f1)
  return [best_span(*passage_and_question(example, fields), size) for example in examples]


def passage_and_question(example, fields):
  """Return the words of the longest field, and the set of normalized words of the others."""
  texts = [templates.text_of(example.record, field, example.where) for field in fields]
  passage = max(texts, key=len)
  others = [text for text in texts if text is not passage]
  return passage.split(), {word for text in others for word in metrics.normalize(text).split()}


def best_span(words, question, size):
  """Return the `size` words whose neighborhood shares most with the words of a question."""
  names = [metrics.normalize(word) for word in words]
  count, reach = collections.Counter(names), max(1, len(question))
  weight = {name: math.log(1 + 1 / n) if name in question else 0.0 for name, n in count.items()}

  def score(start):
    around = set(names[max(0, start - reach) : start + size + reach])
    return sum(weight[name] for name in around) - 2 * sum(
      weight[name] for name in names[start : start + size]
    )

  start = max(range(max(1, len(words) - size + 1)), key=lambda n: (score(n), -n))
  return ' '.join(words[start : start + size]).strip('.,;:!?()"\'')
