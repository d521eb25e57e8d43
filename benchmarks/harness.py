"""lm-eval on the same weights through our adapter and through its own Hugging Face model, and `choose`.

  python -m benchmarks.harness [--source=FOLDER] [--data=FOLDER] [--tasks=copa,...] [--limit=200]

--source is a folder as save_pretrained writes it (default: GPT_JAX_GEMMA; '' is a GPT-2 with random weights).
--data (default: GPT_JAX_DATA) holds mc_evals/*.jsonl (llm-foundry's format) and
lambada/lambada_test.jsonl; task files are written for them. Each side answers every example: `equal` is the
share of equal answers, `difference` the largest one of two log-likelihoods, in nats. Needs
`pip install -e '.[harness,interop]' accelerate peft`.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record

QUESTION = '{query}\nAnswer: {choices[gold]}'
# Task -> (file below the data folder, template of ours).
TASKS = {
  'arc_easy': ('mc_evals/arc_easy.jsonl', QUESTION),
  'piqa': ('mc_evals/piqa.jsonl', QUESTION),
  'boolq': ('mc_evals/boolq.jsonl', QUESTION),
  'copa': ('mc_evals/copa.jsonl', '{query} {choices[gold]}'),
  'openbook_qa': ('mc_evals/openbook_qa.jsonl', '{query} {choices[gold]}'),
  'winogrande': ('mc_evals/winogrande.jsonl', '{context_options[gold]} {continuation}'),
  'lambada': ('lambada/lambada_test.jsonl', '{text:cloze}'),
}
METRICS = {
  'accuracy': 'acc',
  'accuracy_by_characters': 'acc_norm',
  'accuracy_by_unconditional': 'acc_mutual_info',
}
BATCH = 8  # rows at once, as an imported run has


def task_file(name, data):
  """The task of lm-eval for one of TASKS, as the content of a YAML file (JSON is YAML)."""
  file, template = TASKS[name]
  task = {
    'task': f'local_{name}',
    'dataset_path': 'json',
    'dataset_kwargs': {'data_files': {'test': str(Path(data).expanduser().resolve() / file)}},
    'test_split': 'test',
    'metadata': {'version': 1},
  }
  metrics = ['acc']
  if name == 'lambada':
    word = 'text.split()[-1]'
    task |= {
      'output_type': 'loglikelihood',
      'doc_to_text': f'{{{{text[:text|length - {word}|length]}}}}',
      'doc_to_target': f'{{{{{word}}}}}',
      'target_delimiter': '',
    }
    metrics.append('perplexity')
  elif name == 'winogrande':
    task |= {
      'output_type': 'multiple_choice',
      'doc_to_text': 'gold',
      'doc_to_target': 'continuation',
      'doc_to_choice': 'context_options',
    }
  else:
    text = '{{query}}\nAnswer:' if template == QUESTION else '{{query}}'
    task |= {
      'output_type': 'multiple_choice',
      'doc_to_text': text,
      'doc_to_target': 'gold',
      'doc_to_choice': 'choices',
    }
    metrics += ['acc_norm', 'acc_mutual_info']
  task['metric_list'] = [
    {
      'metric': m,
      'aggregation': 'perplexity' if m == 'perplexity' else 'mean',
      'higher_is_better': m != 'perplexity',
    }
    for m in metrics
  ]
  return json.dumps(task, indent=1)


def write_task_files(folder, data, names=TASKS):
  """Write local_NAME.yaml for each task; return their names for --harness."""
  Path(folder).mkdir(parents=True, exist_ok=True)
  for name in names:
    (Path(folder) / f'local_{name}.yaml').write_text(task_file(name, data))
  return [f'local_{name}' for name in names]


def answers(model, name, folder, limit):
  """Run a task of lm-eval -> (seconds, {metric: value}, responses of each example)."""
  from lm_eval.tasks import TaskManager

  from gpt_jax.evaluation import harness

  loaded = TaskManager(include_path=str(folder), include_defaults=False).load([name])
  start = time.perf_counter()
  results = harness.evaluate(model, loaded, limit=limit)
  seconds = time.perf_counter() - start
  return seconds, results['results'][name], [sample['filtered_resps'] for sample in results['samples'][name]]


def compare(run, source, data, names=TASKS, limit=200):
  """Compare both sides: a trained.TrainedRun and the folder `source` of the same weights -> {task: facts}."""
  from lm_eval.models.huggingface import HFLM

  from gpt_jax.evaluation import harness

  subject = run.subject()
  peer = HFLM(pretrained=str(source), device='cpu', dtype='float32', batch_size=BATCH)
  facts = {}
  for name in names:
    with tempfile.TemporaryDirectory() as folder:
      [task] = write_task_files(folder, data, [name])
      sides = [answers(model, task, folder, limit) for model in (harness.adapter(subject), peer)]
    (seconds, own, own_samples), (peer_seconds, theirs, peer_samples) = sides
    pairs = list(zip(own_samples, peer_samples, strict=True))
    equal = [choice(a) == choice(b) for a, b in pairs]
    gaps = [abs(float(x[0]) - float(y[0])) for a, b in pairs for x, y in zip(a, b, strict=True)]
    numbers = lambda result: {k: v for k, v in result.items() if isinstance(v, float)}
    facts[name] = {
      'examples': len(pairs),
      'equal': float(np.mean(equal)),
      'difference': max(gaps),
      'seconds': seconds,
      'seconds_hf': peer_seconds,
      'ours': numbers(own),
      'hf': numbers(theirs),
    }
  return facts


def choice(responses):
  """The answer to an example: the likeliest option, or whether the only one is greedy."""
  values = [float(response[0]) for response in responses]
  return int(np.argmax(values)) if len(values) > 1 else str(responses[0][1])


def own_scores(run, data, names=TASKS, limit=0):
  """The metrics of `choose` and `cloze` on the same files -> {task: {metric: value}}."""
  import dataclasses

  from gpt_jax.data import Source
  from gpt_jax.evaluation import evaluate

  root = Path(data).expanduser().resolve()
  scores = {}
  for name in names:
    file, template = TASKS[name]
    source = Source('jsonl', path=str(root / file), template=template, weight=0.0)
    cfg = dataclasses.replace(run.cfg, data=dataclasses.replace(run.cfg.data, mixture={name: source}))
    subject = run._replace(cfg=cfg).subject()
    start = time.perf_counter()
    task = 'cloze' if name == 'lambada' else 'choose'
    rows = evaluate.run_tasks(subject, (task,), limit=limit)
    values = {row['metric']: row['value'] for row in rows if 'control' not in row}
    scores[name] = values | {'seconds': time.perf_counter() - start}
  return scores


def random_gpt2(folder, data, seed=0):
  """Save a GPT-2 of 2 layers with random weights, large enough that answers are clear, and its tokenizer."""
  import torch
  import transformers

  files = Path(data).expanduser() / 'gpt2_bpe'
  tokenizer = transformers.GPT2Tokenizer(
    vocab=str(files / 'encoder.json'), merges=str(files / 'vocab.bpe'), model_max_length=512
  )
  torch.manual_seed(seed)
  sizes = dict(n_layer=2, n_embd=64, n_head=4, n_positions=512, initializer_range=0.3)
  model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(tokenizer), **sizes))
  model.save_pretrained(folder)
  tokenizer.save_pretrained(folder)


def main():
  """Write results/NAME.json."""
  from gpt_jax.evaluation import trained
  from gpt_jax.interop import huggingface

  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--source', default=os.environ.get('GPT_JAX_GEMMA', ''), help="Hugging Face folder; '' is random weights"
  )
  parser.add_argument('--data', default=os.environ.get('GPT_JAX_DATA', '../shared/data'))
  parser.add_argument('--tasks', default=','.join(TASKS))
  parser.add_argument('--limit', type=int, default=200)
  parser.add_argument('--name', default='interop/harness')
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    source, model = arguments.source, 'the model of GPT_JAX_GEMMA'
    if not source:
      source, model = f'{folder}/source', 'a GPT-2 of 2 layers with random weights'
      random_gpt2(source, arguments.data)
    huggingface.import_run(source, f'{folder}/run')
    run = trained.load(f'{folder}/run')
    names = arguments.tasks.split(',')
    numbers = compare(run, source, arguments.data, names, arguments.limit)
  numbers['peers'] = record.peer_versions('lm-eval', 'torch', 'transformers')
  claim = f'lm-eval through our adapter and through its own Hugging Face model: {model}'
  record.write_result(arguments.name, claim, numbers)


if __name__ == '__main__':
  main()
