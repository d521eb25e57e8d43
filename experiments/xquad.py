"""Questions about paragraphs of Wikipedia (XQuAD), answered in words: by an imported model with adapters.

Command: launch.py import --source=google/gemma-3-270m --workdir=runs/gemma
  launch.py train --config=experiments/xquad.py:from_model=runs/gemma --workdir=runs/xquad
  launch.py evaluate --workdir=runs/xquad --split=test --tasks=answer
SQuAD's exact match is `normalized_match`; `baseline` is the best span beside the words of the question.
The 48 articles become JSON lines in runs/xquad_data: 32 to train, 8 for validation, 8 for the test, the same
ones in every language. Split by question, paragraphs would leak. For scale: mBERT, which marks the answer in
the paragraph and learned from 88,000 English questions, has 83.5 F1 on all of them (published).
Without from_model a small model starts from scratch: 800 questions teach it the form of answers alone.
Needs: xquad/ in GPT_JAX_DATA.
Arguments: language (en, de, zh, hi), from_model (a run folder; '' trains from scratch), adapter (rank; 0
trains all parameters), steps, seed, runlocal.
"""

import json
import os

from gpt_jax import config as configs
from gpt_jax.data.files import candidates

LANGUAGES, FOLDER = ('en', 'de', 'zh', 'hi'), 'runs/xquad_data'
PARTS = {'train': (0, 32), 'valid': (32, 40), 'test': (40, 48)}  # articles, in the order of the file
CONTEXTS = {'hi': 2304}  # tokens of the longest paragraph, of a tokenizer trained on these texts


def convert(path, language):
  """Write the questions of a file in SQuAD's form as JSON lines, a file for each split."""
  with open(path, encoding='utf-8') as file:
    articles = json.load(file)['data']
  os.makedirs(f'{FOLDER}/{language}', exist_ok=True)
  for split, (first, end) in PARTS.items():
    with open(f'{FOLDER}/{language}/{split}.jsonl', 'w', encoding='utf-8') as file:
      for paragraph in (p for article in articles[first:end] for p in article['paragraphs']):
        for question in paragraph['qas']:
          answers = [answer['text'] for answer in question['answers']]
          fields = {'context': paragraph['context'], 'question': question['question'], 'answers': answers}
          file.write(json.dumps(fields, ensure_ascii=False) + '\n')


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg,
    {'adapter': 'from_model'},
    language='en',
    from_model='',
    adapter=16,
    steps=150,
    seed=0,
    runlocal=False,
  )
  if args.language not in LANGUAGES:
    raise ValueError(
      f'config argument language={args.language} is not a language of these files\n'
      f'fix: use one of {", ".join(LANGUAGES)}'
    )
  if path := next(filter(os.path.isfile, candidates(f'xquad/xquad.{args.language}.json')), ''):
    convert(path, args.language)
  config = configs.default()
  config.data.mixture = {
    'questions': dict(
      kind='jsonl',
      path=f'{FOLDER}/{args.language}/train.jsonl',
      valid_path=f'{FOLDER}/{args.language}/valid.jsonl',
      test_path=f'{FOLDER}/{args.language}/test.jsonl',
      template='{context} {question} -> {answers.0}',
    )
  }
  config.data.packing = 'first_fit'
  config.train.update(steps=args.steps, batch_size=4, eval_every=50, sample_every=150, eval_tokens=16384)
  config.train.update(seed=args.seed, sample_prompts=())
  config.sample.max_new_tokens = 40
  if args.from_model:
    configs.start_from(config, args.from_model, args.adapter, length=896)
    config.optim.update(lr=3e-4 if args.adapter else 3e-5, warmup=10, schedule='linear', final_lr=0.0)
  else:
    config.tokenizer.update(kind='bpe', vocab=4096)
    config.data.prefix = True
    config.model.update(
      layers=4, width=192, heads=4, context=CONTEXTS.get(args.language, 896), mlp='relu2', qk_norm=True
    )
    config.optim.update(name='muon', lr=3e-3, warmup=20, schedule='linear', final_lr=0.0)
  if args.runlocal:
    config.train.update(steps=4, eval_every=2, sample_every=4, eval_tokens=2048)
  return config
