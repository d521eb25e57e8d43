"""What do duplicates in the training data cost, and how much of them is memorized?

A 25th of the text fills 10, 25 or 50 % of the training rows instead of its own share: it is seen as
often as that takes; Hernandez et al. 2022 (arXiv:2205.10487) repeat a part of their data in this way.
`valid_loss/text` is the loss of other documents, `valid_loss/memorized` that of the repeated ones, and
`equal_tokens` how long greedy continuations of these are the documents themselves.
Command: launch.py ablate --config=experiments/ablations/duplicates.py --workdir=runs/duplicates
Hardware: 1 CPU core   Minutes: 20
"""

from pydoc_data.topics import topics

from gpt_jax.ablation.design import Study

REPEATED = ('raise', 'with', 'class', 'dict', 'for', 'global', 'booleans')
HELD_OUT = ('execmodel', 'strings', 'import', 'try', 'calls')
UNSEEN = ('binary', 'subscriptions', 'exceptions', 'augassign')  # beside the repeated ones, for extraction
OTHERS = tuple(sorted(topics.keys() - {*REPEATED, *HELD_OUT, *UNSEEN}))


def named(names):
  """Return the filter of records that have one of these names."""
  return f'name={"|".join(names)}'


def size(names):
  """Return the characters of these documents."""
  return sum(len(topics[name]) for name in names)


OWN_SHARE = round(size(REPEATED) / size(REPEATED + OTHERS), 3)  # of the rows, if nothing is repeated
MIXTURE = {
  'text': {'kind': 'builtin', 'keep': named(OTHERS), 'valid_keep': named(HELD_OUT), 'weight': 1 - OWN_SHARE},
  'repeated': {'kind': 'builtin', 'keep': named(REPEATED), 'valid_keep': named(UNSEEN), 'weight': OWN_SHARE},
  'memorized': {'kind': 'builtin', 'keep': named(REPEATED), 'weight': 0.0},  # for evaluation
}


def share(of_rows):
  """Return the level in which the repeated documents fill this share of the rows."""
  return {'data.mixture.text.weight': 1 - of_rows, 'data.mixture.repeated.weight': of_rows}


def get_study(arg=''):
  """Return the study; it takes no arguments."""
  return Study(
    base='experiments/shakespeare_char.py:small',
    question='What do duplicates in the training data cost, and how much of them is memorized?',
    factors={'duplicates': {'0%': {}, '10%': share(0.1), '25%': share(0.25), '50%': share(0.5)}},
    keeps_parameters=('duplicates',),
    changes={
      'data.mixture': MIXTURE,
      'data.valid_fraction': 0.0,
      'train.steps': 240,
      'train.eval_every': 120,
      'train.eval_tokens': 0,
      'train.tasks': ('extraction',),
    },
    seeds=3,
    metric='valid_loss/text',
    outcomes={'valid_loss/memorized': ('higher', 0.05), 'extraction/repeated/equal_tokens': ('lower', 0.5)},
  )
