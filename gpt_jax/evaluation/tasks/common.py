"""What tasks share: which sources fit, their held-out examples, labels, raw media and judges."""

import collections
import dataclasses
import itertools
import zlib
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import data
from gpt_jax.data import mixture, sources, templates
from gpt_jax.evaluation import judges, metrics
from gpt_jax.sample import SampleConfig

LIMIT = 500  # examples of a source where no limit is given
TRAIN_LIMIT = 20_000  # real examples that judges and baselines learn from
LABELS = ('label', 'name', 'digit', 'text')  # fields that name what an example shows, by rank
FEWEST = 4  # examples that sets are compared by
MOST_CLASSES = 50  # more different labels are descriptions, not classes
NOT_DRAWN = ('num_samples', 'begin')  # fields of SampleConfig that tasks do not use
IMAGES, SOUNDS = ('image', 'patches'), ('audio', 'frames')  # kinds of pieces


class Example(NamedTuple):
  """A document of a source, and the record that it was made from."""

  where: str
  record: dict
  condition: list  # of Piece, () without arrow
  target: list  # of Piece


class Task(NamedTuple):
  """A task as `evaluate.run_tasks` needs it."""

  run: Any  # (subject, source name, split, limit, **options) -> rows
  fits: Any  # (kinds of the condition, kinds of the target) -> bool
  form: str  # a template that fits, for messages
  draws: bool = True  # whether it takes fields of SampleConfig as options
  needs: str = ''  # the package that it measures with


def matching_sources(subject, fits, split):
  """Names of the sources with data for `split` whose template fits a task."""
  mixture = subject.cfg.data.mixture
  return [
    name
    for name in data.source_names(subject.cfg.data, split)
    if fits(*templates.signature(mixture[name].template))
  ]


def examples(subject, source, split, limit=0):
  """Examples of a split, all or `limit` by a choice that depends on their places alone.

  Files may be sorted by class, so the first few would not do.
  """
  key = 'examples', source, split, limit
  if key not in subject.caches:
    subject.caches[key] = _examples(subject, source, split, limit)
  return subject.caches[key]


def _examples(subject, source, split, limit):
  cfg = subject.cfg.data
  part = mixture.open_split(cfg, source, split)
  rank_N = np.array([zlib.crc32(where.encode()) for where, _ in part.examples()], np.uint32)
  order_N = rank_N.argsort(kind='stable')
  if limit:  # of the others no content is held
    order_N = order_N[: limit + cfg.mixture[source].bad_records]
  kept = set(order_N.tolist())
  whole = {n: example for n, example in enumerate(part.examples()) if n in kept}
  ranked = data.filter_readable(cfg, source, subject.tokenizers, (whole[n] for n in order_N.tolist()))
  chosen = list(itertools.islice(ranked, limit or None))
  wanted = {where for where, _ in chosen}
  corpus = sources.open_source(subject.cfg.data.mixture[source], split)
  records = {where: record for where, record in corpus.records() if where in wanted}
  return [Example(where, records[where], *templates.split(pieces)) for where, pieces in chosen]


def text(pieces):
  """The text of pieces, media left out."""
  return ''.join(piece.value for piece in pieces if piece.kind == 'text')


def references(example, template):
  """The texts that would do as target: where it is `{field.0}` the whole list, else its own one."""
  slots = templates.parse(template)
  kind, field = slots[-1]
  listed, _, place = field.rpartition('.')
  alone = slots[-2:-1] in ((), (('arrow', ''),))
  if kind == 'text' and place == '0' and alone:
    return [
      templates.text_of(example.record, f'{listed}.{n}', example.where)
      for n in range(len(templates.lookup(example.record, listed, example.where)))
    ]
  return [text(example.target)]


def label_field(found):
  """The first of LABELS that every record has as a word or a number; '' if there is none."""
  for field in LABELS:
    values = [example.record.get(field) for example in found]
    if all(isinstance(v, (str, int, np.integer)) for v in values) and len(set(map(str, values))) > 1:
      return field
  return ''


def labels(found, field=None):
  """What each example shows, as text: a field of its record, else the text beside its media."""
  field = label_field(found) if field is None else field
  if field:
    return [str(example.record[field]) for example in found]
  return [text(example.condition) or text(example.target) for example in found]


def are_classes(names):
  """Whether labels repeat and are few, so that a judge can learn them."""
  return 2 <= len(set(names)) <= min(MOST_CLASSES, len(names) // 2)


def most_frequent(values):
  """The commonest value: the best answer of whoever does not look at the question."""
  return collections.Counter(values).most_common(1)[0][0]


def chance(names):
  """Accuracy of the commonest label."""
  return collections.Counter(names).most_common(1)[0][1] / len(names)


def derangement(wanted):
  """For each example another one, with another answer where there is one."""
  n = len(wanted)
  order = np.argsort(np.array(wanted), kind='stable')
  largest = max(np.unique(np.array(wanted), return_counts=True)[1])
  shift = largest if largest < n else n // 2  # sorted by answer, this far on stands another answer
  other = np.empty(n, int)
  other[order] = np.roll(order, -shift)
  return other


def shuffled(names):
  """The label of another example for each; None where all are equal."""
  return [names[i] for i in derangement(names)] if len(set(names)) > 1 else None


def pixels(subject, found):
  """The first image of each example at the size of the tokenizer, uint8 [N, Y, X, A]."""
  return np.stack(_first(subject, found, IMAGES))


def waves(subject, found):
  """The first sound of each example at the rate of the tokenizer, list of float32 [N]."""
  return _first(subject, found, SOUNDS)


def _first(subject, found, kinds):
  """The first piece of these kinds of each example, decoded."""
  firsts = [next(p for p in (*x.condition, *x.target) if p.kind in kinds) for x in found]
  decoded = [data.decode_media(subject.tokenizers, [p], x.where) for p, x in zip(firsts, found, strict=True)]
  return [piece.value for [piece] in decoded]


def has(pieces, kinds):
  """Whether a piece or a kind of a signature is among `kinds`."""
  return any(getattr(piece, 'kind', piece) in kinds for piece in pieces)


def judge(subject, kind, inputs, names):
  """The judge JUDGES[kind] of real training data, kept in the cache folder of the run."""
  settings = {}
  if kind.startswith('sound'):
    settings['rate'] = subject.tokenizers.audio.sample_rate
  return judges.fit_cached(kind, subject.cache_dir, inputs, names, **settings)


def drawn(subject, sampling):
  """How it was drawn: {'sampling': all fields of SampleConfig}, and those not at their defaults.

  Of max_new_tokens images, sounds and short contexts take what they have use for.
  """
  chosen = dataclasses.asdict(dataclasses.replace(subject.cfg.sample, **sampling))
  chosen = {name: value for name, value in chosen.items() if name not in NOT_DRAWN}
  untold = ('max_new_tokens', 'seed', 'length_penalty')  # of little interest beside a figure
  differing = {
    name: value
    for name, value in chosen.items()
    if value != getattr(SampleConfig, name) and name not in untold
  }
  return {**differing, 'sampling': chosen}


def rows(task, source, split, n, **about):
  """-> (list of rows, function that adds one: metric, value and what belongs to it)."""
  made = []

  def add(metric, value, **more):
    row = dict(task=task, metric=metric, value=float(value), source=source, split=split, n=n)
    plain = {k: float(v) if isinstance(v, np.floating) else v for k, v in more.items()}
    made.append({**row, **about, **plain})

  return made, add


def add_retrieval(add, scores_NC, truth_N, **more):
  """Add rows of where the true one of C candidates ranks, beside those of a random order.

  And, as a control, of where another example's stands.
  """
  count = scores_NC.shape[1]
  chances = {'mrr': float(np.mean(1 / np.arange(1, count + 1))), 'median_rank': (count + 1) / 2}
  for name, value in metrics.retrieval(scores_NC, truth_N).items():
    chance = chances[name] if name in chances else int(name.partition('@')[2]) / count
    add(name, value, chance=chance, candidates=count, **more)
  if not more and len(set(truth_N)) > 1:
    add_retrieval(add, scores_NC, truth_N[derangement(truth_N)], control='shuffled')


def some_of(train, n):
  """n training examples by a choice that is the same each time."""
  return train[np.random.default_rng(1).permutation(len(train))[:n]]


def add_frechet(add, ref_ND, real_ND, sets):
  """Add rows of the Frechet distance of each of `sets` {of: [N, D]} to as many training examples.

  Of features of our own, so that it is no FID; the baseline is that of real held-out examples.
  """
  floor = metrics.frechet_distance(ref_ND, real_ND)
  for of, some_ND in sets.items():
    about = {'of': of} if of else {}
    add('frechet_distance', metrics.frechet_distance(ref_ND, some_ND), baseline=floor, **about)


def add_memorization(add, made_ND, held_ND, train_ND):
  """Add rows of how near samples are to training examples, beside what held-out ones are."""
  found = metrics.memorization(made_ND, held_ND, train_ND)
  add('nearest_train_ratio', found['ratio'], baseline=1.0)
  add('copies', found['copies'], baseline=0.01, p=round(found['p'], 4))


def add_accuracy(add, metric, found, wanted, **more):
  """Add a row of an accuracy with its interval."""
  value, interval = metrics.accuracy(list(found), list(wanted))
  add(metric, value, interval=list(interval), **more)


def add_judged(add, metric, found, wanted, **more):
  """The same of what a model made or chose by its conditions, and the control.

  That holds it against the labels of other examples, as if it had been made of their conditions: it
  falls to chance or below where conditions are used, and nothing new need be made.
  """
  add_accuracy(add, metric, found, wanted, **more)
  if other := shuffled(wanted):
    add_accuracy(add, metric, found, other, control='shuffled')
