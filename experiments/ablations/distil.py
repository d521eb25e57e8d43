"""Does a student learn more from a teacher's predictions than from the text alone?

The student is half as wide as its teacher and trains on the same tokens; its cross-entropy on held-out text
is compared, in bits per byte. Train the teacher first; its tokenizer and data are those of the students.
Command: launch.py train --config=experiments/shakespeare_char.py:small --workdir=runs/teacher
  launch.py ablate --config=experiments/ablations/distil.py --workdir=runs/distil
Arguments: teacher (a run folder).
Hardware: 1 CPU core   Minutes: 15
"""

from gpt_jax import config
from gpt_jax.ablation.design import Budget, Study


def get_study(arg=''):
  """Return the study; the module docstring lists the arguments of `arg`."""
  teacher = config.arguments(arg, teacher='runs/teacher').teacher
  distil = {'train.job': 'distil', 'distil.teacher': teacher}
  return Study(
    base='experiments/shakespeare_char.py:small',
    question="Does a student learn more from a teacher's predictions than from the text alone?",
    factors={
      'teacher': {
        'base': {},
        'forward_kl': distil,
        'forward_kl_half': distil | {'distil.weight': 0.5},
        'forward_kl_soft': distil | {'distil.temperature': 2.0},
        'reverse_kl': distil | {'distil.loss': 'reverse_kl'},
        'js': distil | {'distil.loss': 'js'},
      }
    },
    keeps_parameters=('teacher',),
    changes={'model.width': 32, 'model.heads': 2},
    metric='valid_bits_per_byte',
    budget=Budget(tokens=600_000),
  )
