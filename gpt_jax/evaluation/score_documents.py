"""Judge documents by a trained run: `python -m gpt_jax.evaluation.score_documents RUN LABELS`.

The program that data/clean/score.py starts. LABELS is a JSON list. Each line of the input is a JSON list of
{"text": ..} or {"image": base64}; each line of the output holds [least, most] of each document: the
probability of the first label among all labels, over the parts of a text that is longer than the context.
"""

import json
import sys

from gpt_jax.evaluation import trained
from gpt_jax.evaluation.label_judge import Judge


def main(workdir, labels):
  """Answer each line of the input; errors are two lines, as those of launch.py."""
  try:
    judge = Judge(trained.load(workdir), json.loads(labels))
    for line in sys.stdin:
      print(json.dumps(judge.probabilities(json.loads(line))), flush=True)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
