"""Judge instruction tuning on held-out instructions: a base, a run tuned on answers, one on preferences.

`python -m benchmarks.instructions --base=RUN --tuned=RUN --preferred=RUN --name=NAME` reads the test split of
the runs' data (instruction, input, output, chosen, rejected) and writes results/NAME.json:

  nats_per_token   of the reference answers; likelier: the share of them that a run finds likelier
  stops            the share of answers that end by themselves in fewer than --max_new_tokens tokens
  token_f1         of the answers against the references
  prefers          the share of pairs whose chosen answer has the larger log-probability; margin: their mean
  reward_accuracy  of a run against the one before: the share of pairs whose margin has grown, which is DPO's
                   accuracy of its implicit reward with that one as the reference; 0.5 = no preference learned

The base, which knows no separator, reads the instruction and `Answer:` on a line of its own, and ends with
that line. Intervals: 95 %, bootstrap over instructions; differences are paired.
"""

import argparse

import numpy as np

from benchmarks import record
from benchmarks.few_shot import answer
from gpt_jax.data import Piece
from gpt_jax.evaluation import metrics, trained
from gpt_jax.evaluation.tasks import common

FIELDS = ('output', 'chosen', 'rejected')
SIDE_BY_SIDE = 12


def question(example):
  """The text before an answer, as experiments/prefer.py writes it."""
  return f'{example.record["instruction"]} {example.record["input"]}'


def answer_nats(run, examples, field, is_base):
  """Nats of a field of each record as an answer, float64 [N]; without the end of the text."""
  texts = [example.record[field] for example in examples]
  if is_base:
    contexts = [f'{question(example).strip()}\nAnswer:' for example in examples]
    return np.array([score.nats for score in run.score([f' {text}' for text in texts], contexts)])
  documents = [
    [Piece('text', question(example)), Piece('arrow', ''), Piece('text', text)]
    for example, text in zip(examples, texts, strict=True)
  ]
  return run.subject().target_nats(documents, ends=False)


def answers(run, examples, is_base, limit):
  """Return (greedy answer, whether it ended by itself) of each instruction."""
  if is_base:
    prompts = [f'{question(example).strip()}\nAnswer:' for example in examples]
  else:
    prompts = [question(example) for example in examples]
  texts, lengths = zip(*answer(run, prompts, limit, '\n' if is_base else ''), strict=True)
  return texts, [n < limit for n in lengths]


def mean_row(values):
  """{value, interval} of a mean over examples."""
  return {
    'value': float(np.mean(values)),
    'interval': list(metrics.bootstrap_mean(np.asarray(values, float))),
  }


def main():
  """Write the comparison."""
  parser = argparse.ArgumentParser(description=__doc__)
  for name in ('base', 'tuned', 'name'):
    parser.add_argument(f'--{name}', required=True)
  parser.add_argument('--preferred', default='')
  parser.add_argument('--max_new_tokens', type=int, default=60)
  parser.add_argument('--limit', type=int, default=0, help='instructions; 0 = all of the test split')
  args = parser.parse_args()
  names = [name for name in ('base', 'tuned', 'preferred') if getattr(args, name)]
  runs = {name: trained.load(getattr(args, name)) for name in names}
  [source] = runs[names[-1]].cfg.data.mixture
  examples = common.examples(runs[names[-1]].subject(), source, 'test', args.limit)
  references = [example.record['output'] for example in examples]
  tokens_N = np.array([len(runs['base'].tokenizers.encode_text(text)) for text in references])
  numbers, texts, nats = {'examples': len(examples)}, {}, {}
  for name, run in runs.items():
    is_base = name == 'base'
    nats[name] = {field: answer_nats(run, examples, field, is_base) for field in FIELDS}
    texts[name], stops = answers(run, examples, is_base, args.max_new_tokens)
    margin_N = nats[name]['rejected'] - nats[name]['chosen']
    numbers[name] = {
      'run': getattr(args, name),
      'step': run.step,
      'nats_per_token': float(nats[name]['output'].sum() / tokens_N.sum()),
      'stops': mean_row(stops),
      'token_f1': mean_row(list(map(metrics.token_f1, texts[name], references))),
      'prefers': mean_row(margin_N > 0),
      'margin': mean_row(margin_N),
    }
    print(name, numbers[name], flush=True)
  pairs = {name: nats[name]['rejected'] - nats[name]['chosen'] for name in names}
  for first, second in zip(names, names[1:], strict=False):
    numbers[f'{second} against {first}'] = {
      'likelier': mean_row(nats[second]['output'] < nats[first]['output']),
      'prefers': mean_row((pairs[second] > 0).astype(float) - (pairs[first] > 0)),
      'margin': mean_row(pairs[second] - pairs[first]),
      'reward_accuracy': mean_row(pairs[second] > pairs[first]),
    }
  numbers['answers'] = [
    {'instruction': question(example).strip(), 'reference': reference}
    | {name: texts[name][n] for name in names}
    for n, (example, reference) in enumerate(zip(examples, references, strict=True))
  ][:SIDE_BY_SIDE]
  claim = f'Instruction tuning judged on {len(examples)} held-out instructions'
  record.write_result(args.name, claim, numbers)


if __name__ == '__main__':
  main()
