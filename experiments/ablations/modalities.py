"""How should the loss weigh text, images and sounds?

The metric is the mean of the validation losses of the five tasks of experiments/demo.py.
Result: benchmarks/results/ablations/modalities.md
Command: launch.py ablate --config=experiments/ablations/modalities.py --workdir=runs/modalities
Hardware: 1 CPU core   Minutes: 16 (25 runs)
"""

from gpt_jax.ablation.design import Study

SMALL = {
  'layers': 2,
  'model.width': 64,
  'tokenizer.vocab': 512,
  'steps': 200,
  'eval_every': 50,
  'eval_tokens': 4096,
  'sample_every': 0,
  'train.tasks': (),
}


def get_study(arg=''):
  """Return the study; it takes no arguments."""
  return Study(
    base='experiments/demo.py',
    question='How should the loss weigh text, images and sounds?',
    factors={
      'weights': {
        'tokens': {},
        'modality_mean': {'loss.balance': 'modality_mean'},
        'text_x3': {'loss.text': 3.0},
        'image_x3': {'loss.image': 3.0},
        'audio_x3': {'loss.audio': 3.0},
      }
    },
    keeps_parameters=('weights',),
    changes=SMALL,
  )
