"""Free text: how often continuations of held-out text repeat themselves, and how varied they are.

Each prompt is a part of a held-out text; `baseline` is the text's own continuation of as many tokens. A
model that loops has more repetition, one that always says the same has less diversity and a higher self-BLEU.
Read them beside bits per byte (task perplexity): noise is varied, too.

Sources: repetition (seq-rep-n of Welleck et al. 2020), distinct n-grams (Li et al. 2016), self-BLEU (Zhu et
al. 2018). N-grams are of words, so that tokenizers can be compared.
"""

import numpy as np

from gpt_jax import sample
from gpt_jax.data import Piece
from gpt_jax.evaluation import metrics, text_metrics
from gpt_jax.evaluation.tasks import common
from gpt_jax.sampling import completions, validate

LIMIT = 64  # continuations where no limit is given, and those that are sampled at once
PROMPT = 64  # tokens of a prompt, at most a quarter of the context


def fits(condition, target):
  """Plain text."""
  return not condition and target == ('text',)


def run(subject, source, split, limit, **sampling):
  """Rows for one source, each beside the score of the held-out text itself."""
  tokenizers, context = subject.tokenizers, subject.model.cfg.context - len(begin_ids(subject))
  cfg = validate.override(subject.cfg.sample, **{'num_samples': 1} | sampling)
  length = min(PROMPT, context // 4)
  pairs = prompts_and_continuations(
    subject.cache(source, split), length, min(cfg.max_new_tokens, context - length), limit or LIMIT
  )
  texts = decode_all(tokenizers, pairs, continue_all(subject, cfg, pairs))
  own = decode_all(tokenizers, pairs, [ids for _, ids in pairs])
  rows = common.Rows('continue', source, split, n=len(pairs), **common.sampling_fields(subject, sampling))
  baselines = text_scores(own)
  for metric, value in text_scores(texts).items():
    rows.add(metric, value, baseline=baselines[metric])
  examples = prompt_examples(subject, source, pairs, own)
  subject.record(rows, examples, targets=own, predictions=texts)
  return rows


def begin_ids(subject):
  """The ids before each prompt, at most one: as `launch.py sample` has them."""
  tokenizers = subject.tokenizers
  name = completions.begin_special(subject.cfg, tokenizers)
  name = name or ('bos' if tokenizers.start == 'bos' else '')
  return [tokenizers.vocabulary.special(name)] if name else []


def continue_all(subject, cfg, pairs):
  """Return the ids that the model generates after the prompt of each pair."""
  tokenizers, ids, begin = subject.tokenizers, [], begin_ids(subject)
  prompts = [[*begin, *prompt] for prompt, _ in pairs]
  keys_B = sample.row_keys(cfg.seed, len(prompts))
  for first in range(0, len(prompts), LIMIT):
    index = slice(first, first + LIMIT)
    groups = completions.generate_ids(subject.model, tokenizers, prompts[index], cfg, 'text', keys_B[index])
    ids += [list(group[0][0]) for group in groups]
    subject.raise_if_preempted()
  return ids


def decode_all(tokenizers, pairs, continuations):
  """Return the text of ids after the prompt of each pair."""
  return [
    completions.decode_continuation(tokenizers, prompt, ids)
    for (prompt, _), ids in zip(pairs, continuations, strict=True)
  ]


def prompt_examples(subject, source, pairs, texts):
  """Return an Example of each prompt with the text that follows it."""
  decode, pieces = subject.tokenizers.decode_text, lambda text: [Piece('text', text)]
  return [
    common.Example(f'{source} part {n}', {}, pieces(decode(prompt)), pieces(text))
    for n, ((prompt, _), text) in enumerate(zip(pairs, texts, strict=True))
  ]


def prompts_and_continuations(cache, length, new, limit):
  """Return up to `limit` pairs (ids of a prompt, the `new` ids after it), spread over a split."""
  size, ends = length + new, [*cache.offsets[1:].tolist(), len(cache.ids)]
  documents = zip(cache.offsets.tolist(), ends, strict=True)
  starts = [start for first, end in documents for start in range(first, end - size + 1, size)]
  if not starts:
    raise ValueError(
      f'{cache.name} has no text of {size} tokens to continue\n'
      f'fix: lower sample.max_new_tokens={new}, or give longer texts'
    )
  chosen = np.linspace(0, len(starts) - 1, min(limit, len(starts))).round().astype(int)
  ids = lambda first, count: np.asarray(cache.ids[first : first + count]).tolist()
  return [(ids(start, length), ids(start + length, new)) for start in (starts[n] for n in chosen)]


def text_scores(texts):
  """{metric: value} of repetition and diversity; self-BLEU where sacreBLEU is installed."""
  words = [text.split() for text in texts]
  scores = {f'repetition_{n}': metrics.repetition(words, n) for n in (2, 4)}
  scores |= {f'distinct_{n}': metrics.distinct(words, n) for n in (1, 2)}
  if len(texts) > 1 and text_metrics.is_installed('sacrebleu'):
    scores['self_bleu'] = text_metrics.self_bleu(texts)
  return scores
