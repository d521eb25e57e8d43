"""Which projector between a speech encoder and a language model?

Spoken digits (FSDD) of four encoder outputs in a place, read by a small model from scratch. Each kind is
tuned over four learning rates; the figure to compare is the loss of validation.
Command: launch.py ablate --config=experiments/ablations/hearing.py --workdir=runs/hearing
Hardware: 2 CPU cores   Minutes: 53 on one core, after the encoder's run over the recordings
Needs: whisper-base, the folder of an encoder; base=RUN makes the arms adapters of an imported model.
Arguments: encoder, base, steps.
"""

from gpt_jax import config as configs
from gpt_jax.ablation.design import Study


def get_study(arg=''):
  """Return the study; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, encoder='whisper-base', base='', steps=200)
  parts = {'model.projector_parts': 4}
  return Study(
    base=f'experiments/hear.py:encoder={args.encoder},base={args.base},task=transcribe,projector=linear,text=',
    question='Which projector reads a speech encoder best?',
    factors={
      'projector': {
        'linear': {},
        'mlp': {'model.projector': 'mlp'},
        'pool': {'model.projector': 'pool', **parts},
        'resampler': {'model.projector': 'resampler', **parts},
      }
    },
    sweep='full',
    seeds=3,
    tune={'optim.lr': [1e-3, 3e-3, 1e-2, 3e-2]},
    changes={'steps': args.steps, 'eval_every': 50, 'sample_every': 0},
  )
