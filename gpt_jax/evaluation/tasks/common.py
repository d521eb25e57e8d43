"""Shared parts of tasks: matching sources, held-out examples, labels, raw media, judges and result rows."""

import collections
import dataclasses
import itertools
import zlib
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import data
from gpt_jax.data import mixture, record_fields, sources, templates
from gpt_jax.data.clean import scrub
from gpt_jax.data.documents import media_forms
from gpt_jax.evaluation import attacks, judges, metrics
from gpt_jax.runs.metric_names import METRICS
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import validate

FEWSHOT_SEED = 1234  # of the examples in a prompt, as in lm-eval
LIMIT = 500  # examples of a source where no limit is given
TRAIN_LIMIT = 20_000  # real examples that judges and baselines learn from
LABELS = ('label', 'name', 'digit', 'text')  # fields of a record that name its class, by rank
BOOTSTRAPS = 1000  # draws for intervals of means over benchmarks
MIN_SET = 4  # examples that sets are compared by
MAX_CLASSES = 50  # more different labels are descriptions, not classes
UNUSED_SAMPLING = ('num_samples', 'begin')  # fields of a run's SampleConfig that tasks do not use
IMAGES, SOUNDS = ('image', 'patches'), ('audio', 'frames')  # kinds of pieces


class Task(NamedTuple):
  """A row of evaluate.TASKS."""

  run: Any  # (subject, source name, split, limit, **options) -> rows
  fits: Any  # (kinds of the condition, kinds of the target) -> bool
  example_template: str  # one that fits, for messages
  options: tuple = ('sampling',)  # of evaluate.run_tasks; judge, num_samples: those of sample, too
  package: str = ''  # the optional package that it measures with
  suits: Any = None  # (words of a condition, of a target) -> whether `all` has it; None: always, False: never
  benchmark: bool = False  # whether a template must be made for it: templates.benchmark names the task
  kind: str = ''  # of its sources, which it scores whatever the split; '' = any
  needs_codes: bool = False  # whether it reads codes of images, or likelihoods, which continuous ones lack
  on_training: bool = False  # whether it compares the model's training documents with others


class Example(NamedTuple):
  """A document of a source, and the record that it was made from."""

  where: str
  record: dict
  condition: list  # of Piece, without arrow; [] where there is none
  target: list  # of Piece


def delta(subject):
  """Return the delta of lower bounds on epsilon: that of a private run, so that they compare with its own."""
  privacy = subject.cfg.privacy
  return privacy.delta if privacy.epsilon else attacks.DELTA


def proved(subject, *units):
  """Return the field `proved` of a row with a lower bound on epsilon: the guarantee of a private run.

  units: names of privacy.unit whose data the attack tells apart; {} where the guarantee is for another unit,
  whose epsilon does not bound this attack.
  """
  privacy = subject.cfg.privacy
  return {'proved': privacy.epsilon} if privacy.epsilon and privacy.unit in units else {}


class Rows(list):
  """Result rows of a task on one source: dicts with task, metric, value, source, split and `shared`."""

  def __init__(self, task, source, split, **shared):
    super().__init__()
    self.first, self.last = {'task': task}, {'source': source, 'split': split, **shared}

  def add(self, metric, value, **fields):
    """Add a row; `of` names what is scored, '' stands for the model's own samples."""
    fields = {name: field for name, field in fields.items() if name != 'of' or field}
    unit = {'unit': METRICS[metric].unit} if metric in METRICS and METRICS[metric].unit else {}
    plain = {k: float(v) if isinstance(v, np.floating) else v for k, v in fields.items()}
    self.append({**self.first, 'metric': metric, 'value': float(value), **self.last, **unit, **plain})

  def add_accuracy(self, metric, predictions, labels, **fields):
    """Add a row for an accuracy with its interval."""
    value, interval = metrics.accuracy(list(predictions), list(labels))
    self.add(metric, value, interval=list(interval), **fields)

  def add_judged(self, metric, predictions, labels, **fields):
    """Add rows for the accuracy of what a model made of its conditions, and for the control.

    The control uses the labels of other examples: it falls to chance or below where conditions are
    used, and needs no new samples.
    """
    self.add_accuracy(metric, predictions, labels, **fields)
    if not fields.get('of') and (other := shuffled(labels)):
      self.add_accuracy(metric, predictions, other, control='shuffled')

  def add_centered(self, row, chance):
    """Add the accuracy of a row relative to chance: 0 is guessing, 1 is always right."""
    scale = lambda value: (value - chance) / (1 - chance)
    self.add('centered_accuracy', scale(row['value']), interval=[scale(x) for x in row['interval']])

  def add_retrieval(self, scores_NC, truth_N, **fields):
    """Add rows for the rank of the true one of C candidates, beside those of a random order.

    The control is the rank of another example's candidate.
    """
    count = scores_NC.shape[1]
    chances = {'mrr': float(np.mean(1 / np.arange(1, count + 1))), 'median_rank': (count + 1) / 2}
    for name, value in metrics.retrieval(scores_NC, truth_N).items():
      chance = chances[name] if name in chances else int(name.partition('@')[2]) / count
      self.add(name, value, chance=chance, candidates=count, **fields)
    if not fields and len(set(truth_N)) > 1:
      self.add_retrieval(scores_NC, truth_N[derangement(truth_N)], control='shuffled')

  def add_frechet(self, train_ND, real_ND, sets):
    """Add rows for the Frechet distance of each of `sets` {of: [N, D]} to as many training examples.

    The baseline is that of real held-out examples. The features are our own: it is not FID.
    """
    baseline = metrics.frechet_distance(train_ND, real_ND)
    for of, set_ND in sets.items():
      value = metrics.frechet_distance(train_ND, set_ND)
      self.add('frechet_distance', value, baseline=baseline, of=of)

  def add_memorization(self, samples_ND, held_out_ND, train_ND, real_ND):
    """Add rows for the distance of samples to training examples, relative to held-out ones.

    held_out_ND: reconstructions, as samples are decoded, too: what a tokenizer blurs is nearer to anything.
    real_ND: the held-out examples themselves, which compete with as many training examples for being nearest.
    """
    result = metrics.memorization(samples_ND, held_out_ND, train_ND)
    fields = dict(p=round(result['p'], 4), test='one-sided Kolmogorov-Smirnov')
    self.add('nearest_train_ratio', result['ratio'], baseline=1.0, **fields)
    self.add('copies', result['copies'], baseline=0.01)
    nearer_N = metrics.nearer_to_train(samples_ND, real_ND, train_ND).tolist()
    self.add_accuracy('nearer_to_train', nearer_N, [True] * len(nearer_N), chance=0.5)


def centered_mean(rows):
  """The mean centered accuracy of two or more benchmarks as a list of one row, [] for fewer.

  Each has equal weight, as in DCLM's CORE. The interval draws the examples of each with replacement.
  """
  centered = {(row['task'], row['source']) for row in rows if row['metric'] == 'centered_accuracy'}
  rows = [row for row in rows if (row['task'], row['source']) in centered and row['metric'] == 'accuracy']
  rows = [row for row in rows if 'control' not in row]
  if len(rows) < 2:
    return []
  share_T, n_T, chance_T = (np.array([row[key] for row in rows]) for key in ('value', 'n', 'chance'))
  center = lambda share: (share - chance_T) / (1 - chance_T)
  draws_DT = np.random.default_rng(0).binomial(n_T, share_T, (BOOTSTRAPS, len(rows))) / n_T
  low, high = np.percentile(center(draws_DT).mean(1), (2.5, 97.5))
  result = Rows('choose', 'all', rows[0]['split'], n=int(n_T.sum()), sources=len(rows))
  interval = [float(low), float(high)]
  result.add('centered_accuracy', center(share_T).mean(), interval=interval, chance=0.0)
  return result


# ---------------------------------------------------------------------------------------- examples


def matching_sources(subject, fits, split, benchmark='', kind='', on_training=False):
  """Names of the sources with data for `split` whose template fits a task.

  benchmark: the task's name if templates must be made for it. Other tasks leave out sources that are
  benchmarks and nothing else. kind, on_training: as in Task.
  """
  mixture = subject.cfg.data.mixture

  def matches(source):
    if kind not in ('', source.kind) or (on_training and not source.weight):
      return False
    if benchmark and templates.benchmark(source.template) != benchmark:
      return False
    return (benchmark or not source.is_benchmark) and fits(*templates.signature(source.template))

  split = 'train' if kind else split
  return [name for name in data.source_names(subject.cfg.data, split) if matches(mixture[name])]


def examples(subject, source, split, limit=0):
  """Return the examples of a split, all or `limit`, chosen by a hash of their places.

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
  if limit:  # only the content of the chosen ones is held in memory
    order_N = order_N[: limit + cfg.mixture[source].bad_records]
  places = set(order_N.tolist())
  whole = {n: example for n, example in enumerate(part.examples()) if n in places}
  ranked = data.filter_readable(cfg, source, subject.tokenizers, (whole[n] for n in order_N.tolist()))
  chosen = list(itertools.islice(ranked, limit or None))
  chosen_places = {where for where, _ in chosen}
  corpus = sources.open_source(cfg.mixture[source], split)
  records = {where: record for where, record in corpus.records() if where in chosen_places}
  records = {where: _scrub(cfg.mixture[source], record, where) for where, record in records.items()}
  return [Example(where, records[where], *templates.split(pieces)) for where, pieces in chosen]


def _scrub(source, record, where):
  """Return a record without the personal data that `scrub` replaces in its document."""
  if not (rows := scrub.parse(source.scrub)):
    return record
  scrubber = scrub.Scrubber(rows)
  scrubber.pieces(templates.fill(source.template, record, where))  # numbers placeholders as the document does
  return scrubber.record(record)


def held_out_and_train(subject, source, split, limit):
  """The held-out examples to score, and training examples for judges and baselines."""
  held_out = examples(subject, source, split, limit or LIMIT)
  return held_out, examples(subject, source, 'train', TRAIN_LIMIT)


def median_words(examples):
  """The median numbers of words of conditions and of targets."""
  return tuple(
    float(np.median([len(text(getattr(example, part)).split()) for example in examples]))
    for part in ('condition', 'target')
  )


def random_subset(train, n):
  """n training examples, the same ones each time."""
  return train[np.random.default_rng(1).permutation(len(train))[:n]]


def shared_prefix(a, b):
  """The number of first items that two lists share."""
  return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def text(pieces):
  """The text of pieces, media left out."""
  return ''.join(piece.value for piece in pieces if piece.kind == 'text')


def describe(pieces):
  """The text of pieces; media by their names."""
  return ''.join(piece.value if piece.kind == 'text' else f'[{piece.kind}]' for piece in pieces)


def references(example, template):
  """The right answers: the whole list where the target is `{field.0}`, else the target's text alone."""
  slots = templates.parse(template)
  kind, field = slots[-1]
  listed, _, place = field.rpartition('.')
  alone = slots[-2:-1] in ((), (('arrow', ''),))
  if kind == 'text' and place == '0' and alone:
    return [
      templates.text_of(example.record, f'{listed}.{n}', example.where)
      for n in range(len(record_fields.lookup(example.record, listed, example.where)))
    ]
  return [text(example.target)]


def has_kind(pieces, kinds):
  """Whether a piece, or a kind of a signature, is among `kinds`."""
  return any(getattr(piece, 'kind', piece) in kinds for piece in pieces)


def images_of(subject, examples):
  """The first image of each example at the size of the tokenizer, uint8 [N, Y, X, A]."""
  return np.stack(_first(subject, examples, IMAGES))


def waves_of(subject, examples):
  """The first sound of each example at the rate of the tokenizer, list of float32 [N]."""
  return _first(subject, examples, SOUNDS)


def vectors_of(subject, examples):
  """The first vectors of each example, list of float32 [N, U]."""
  return _first(subject, examples, ('vectors',))


def rate_of(subject, examples):
  """The rate in Hz of the sounds of `waves_of`."""
  kind = next(p.kind for p in (*examples[0].condition, *examples[0].target) if p.kind in SOUNDS)
  return media_forms(subject.tokenizers)[kind][0]


def _first(subject, examples, kinds):
  """The first piece of these kinds of each example, decoded."""
  firsts = [next(p for p in (*x.condition, *x.target) if p.kind in kinds) for x in examples]
  decoded = [
    data.decode_media(subject.tokenizers, [p], x.where) for p, x in zip(firsts, examples, strict=True)
  ]
  return [piece.value for [piece] in decoded]


# ------------------------------------------------------------------------------ labels and judges


def label_field(examples):
  """The first of LABELS that every record has as a word or a number; '' if there is none."""
  for field in LABELS:
    values = [example.record.get(field) for example in examples]
    if all(isinstance(v, (str, int, np.integer)) for v in values) and len(set(map(str, values))) > 1:
      return field
  return ''


def labels(examples, field=None):
  """The label of each example as text: a field of its record, else the text beside its media."""
  field = label_field(examples) if field is None else field
  if field:
    return [str(example.record[field]) for example in examples]
  return [text(example.condition) or text(example.target) for example in examples]


def are_classes(names):
  """Whether labels repeat and are few, so that a judge can learn them."""
  return 2 <= len(set(names)) <= min(MAX_CLASSES, len(names) // 2)


def most_frequent(values):
  """The commonest value, and its share: what guessing without the input achieves."""
  [(value, count)] = collections.Counter(values).most_common(1)
  return value, count / len(values)


def chance(names, train_names):
  """Accuracy on `names` without looking: of the commonest label of training, or of any of its labels.

  The better of the two, as the commonest label of training is often rare in a small held-out part.
  """
  guess, _ = most_frequent(train_names)
  labels = set(train_names)
  right = max(sum(name == guess for name in names), sum(name in labels for name in names) / len(labels))
  return right / len(names)


def matches(predictions, names):
  """Whether each prediction is right."""
  return [bool(prediction == name) for prediction, name in zip(predictions, names, strict=True)]


def derangement(answers):
  """For each example the index of another one, with another answer where there is one."""
  n = len(answers)
  order = np.argsort(np.array(answers), kind='stable')
  largest = max(np.unique(np.array(answers), return_counts=True)[1])
  shift = largest if largest < n else n // 2  # sorted by answer, another answer is this far on
  other = np.empty(n, int)
  other[order] = np.roll(order, -shift)
  return other


def shuffled(names):
  """The label of another example for each; None where all are equal."""
  return [names[i] for i in derangement(names)] if len(set(names)) > 1 else None


def judge(subject, kind, inputs, names):
  """The judge JUDGES[kind] of real training data, cached in the run's cache folder."""
  settings = {'rate': subject.tokenizers.audio.sample_rate} if kind.startswith('sound') else {}
  return judges.fit_cached(kind, subject.cache_dir, inputs, names, **settings)


def answer_decoding(cfg):
  """The fields of SampleConfig by which texts are answered: greedily, unless cfg searches with beams."""
  return {} if cfg.beams else {'temperature': 0.0}


def sampling_fields(subject, sampling):
  """The fields of rows that tell how samples were drawn.

  `sampling` holds all fields of SampleConfig; those that differ from its defaults stand alone, too.
  """
  cfg = dataclasses.asdict(validate.override(subject.cfg.sample, **sampling))
  cfg = {name: value for name, value in cfg.items() if name not in UNUSED_SAMPLING or name in sampling}
  minor = ('max_new_tokens', 'seed', 'length_penalty')  # only in `sampling`
  changed = {k: v for k, v in cfg.items() if v != getattr(SampleConfig, k) and k not in minor}
  return {**changed, 'sampling': cfg}
