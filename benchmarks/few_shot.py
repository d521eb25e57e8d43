"""Compare a run with the model that it began from, which sees worked examples in its prompt instead.

`python -m benchmarks.few_shot --workdir=RUN --task=summarize --name=NAME`, after `launch.py evaluate` of the
same task on the test split and `benchmarks.record`. Answers the conditions of RUN's predictions by its base
(the run folder of train.init_from) for each number of --shots, and adds to results/NAME.json:

  few_shot   scores of the base, and the run's score minus the base's on the same examples
  examples   a few conditions with all answers side by side

Worked examples are the shortest of training, the same ones for every question; an answer of the base ends
with its line.
"""

import argparse
import json
from pathlib import Path

from benchmarks.record import RESULTS
from gpt_jax.evaluation import text_metrics, trained
from gpt_jax.evaluation.tasks import common
from gpt_jax.runs import ancestry, records
from gpt_jax.sampling import completions, validate
from gpt_jax.sampling.prompts import build_prompt

TASKS = {  # name: (measure, word before an answer)
  'answer': (text_metrics.ANSWERS, 'Answer'),
  'summarize': (text_metrics.SUMMARIES, 'Summary in one sentence'),
}
SIDE_BY_SIDE = 6  # examples in the result
BATCH = 20  # prompts decoded at once


def build_prompts(conditions, train, shots, word):
  """Return a prompt for each condition, after the `shots` shortest training examples with their answers."""
  fill = lambda condition, answer='': f'{condition.strip()}\n{word}:{answer}'
  texts = sorted(((common.text(x.condition), common.text(x.target)) for x in train), key=lambda t: len(t[0]))
  before = ''.join(fill(condition, f' {answer}') + '\n\n' for condition, answer in texts[:shots])
  return [before + fill(condition) for condition in conditions]


def answer(run, prompts, max_new_tokens, stop='\n'):
  """Return (greedy answer, its number of tokens) of each prompt, BATCH of similar lengths at a time.

  stop: a text ends before it; '' = none.
  """
  cfg = validate.override(run.cfg.sample, temperature=0.0, max_new_tokens=max_new_tokens)
  encoded = [build_prompt(run, text=prompt, to='text', begin='bos') for prompt in prompts]
  order, texts = sorted(range(len(prompts)), key=lambda n: len(encoded[n].ids)), {}
  for first in range(0, len(order), BATCH):
    some = order[first : first + BATCH]
    options = dict(stop=(stop,), ends=run.tokenizers.encode_text(stop)) if stop else {}
    groups = completions.complete(run.model, run.tokenizers, [encoded[n] for n in some], cfg, **options)
    texts |= {n: (text.strip(), len(log_probs)) for n, [(text, log_probs)] in zip(some, groups, strict=True)}
  return [texts[n] for n in range(len(prompts))]


def main():
  """Write the comparison into a result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  for name in ('workdir', 'task', 'name'):
    parser.add_argument(f'--{name}', required=True)
  parser.add_argument('--shots', type=int, nargs='+', default=[0, 2])
  parser.add_argument('--max_new_tokens', type=int, default=60)
  args = parser.parse_args()
  measure, word = TASKS[args.task]
  tuned = trained.load(args.workdir)
  lines = records.read_lines(Path(args.workdir) / 'predictions.jsonl')
  lines = [line for line in lines if line['task'] == args.task and line['split'] == 'test']
  conditions, texts = ([line[key] for line in lines] for key in ('input', 'prediction'))
  references = [line['target'] if isinstance(line['target'], list) else [line['target']] for line in lines]
  [source] = {line['source'] for line in lines}
  train = common.examples(tuned.subject(), source, 'train')
  base = trained.load(*ancestry.parse_run(tuned.cfg.train.init_from))
  rows, answers = [], {'run': texts}
  if 'baseline' in lines[0]:
    answers['baseline'] = [line['baseline'] for line in lines]
  for shots in args.shots:
    prompts = build_prompts(conditions, train, shots, word)
    others = [text for text, _ in answer(base, prompts, args.max_new_tokens)]
    answers[f'base, {shots} shots'] = others
    differences = text_metrics.paired_differences(measure, texts, others, references)
    for metric, row in measure.score(others, references).items():
      difference, interval = differences[metric]
      row = dict(metric=metric, shots=shots, n=len(texts), **row)
      rows.append(row | {'run_minus_base': difference, 'difference_interval': interval})
      print(rows[-1], flush=True)
  path = RESULTS / f'{args.name}.json'
  columns = {'source': [source] * len(lines), 'condition': conditions, 'references': references, **answers}
  count = min(SIDE_BY_SIDE, len(lines))
  examples = [{name: column[n] for name, column in columns.items()} for n in range(count)]
  content = json.loads(path.read_text()) | {'few_shot': rows, 'examples': examples}
  path.write_text(json.dumps(records.to_json(content), indent=1, ensure_ascii=False) + '\n')


if __name__ == '__main__':
  main()
