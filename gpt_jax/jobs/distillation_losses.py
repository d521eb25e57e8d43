"""Distances of a student's predictions to its teacher's, one row of DISTIL_LOSSES each.

Letters: B batch, T length, V ids.
Sources: forward KL of softened predictions (Hinton et al. 2015), reverse KL per token (Gu et al. 2023,
"MiniLLM"), generalized Jensen-Shannon divergence (Agarwal et al. 2023, "GKD", equation 1).
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class DistilConfig:
  """The teacher and the loss of train.job=distil."""

  teacher: str = ''  # RUN or RUN@STEP of the model to learn from
  loss: str = 'forward_kl'  # row of DISTIL_LOSSES
  temperature: float = 1.0  # divides the logits of both; the loss is multiplied by its square
  weight: float = 1.0  # of the distance to the teacher; 1 - weight is that of cross-entropy
  beta: float = 0.5  # js: share of the teacher in the mixture

  def __post_init__(self):
    if self.loss not in DISTIL_LOSSES:
      raise ValueError(f'distil.loss={self.loss!r} is not known\nfix: use one of {", ".join(DISTIL_LOSSES)}')
    if not self.temperature > 0:
      raise ValueError(f'distil.temperature={self.temperature} is not positive\nfix: use a number above 0')
    if not 0 < self.weight <= 1:
      raise ValueError(
        f'distil.weight={self.weight} is not in (0, 1]\nfix: use 0 < weight <= 1, or train.job=gpt'
      )
    if not 0 < self.beta < 1:
      raise ValueError(
        f'distil.beta={self.beta} is not in (0, 1)\nfix: use 0 < beta < 1, or distil.loss=forward_kl or '
        'reverse_kl'
      )


def distance(cfg, student_BTV, teacher_BTV):
  """Return the loss of each token, BT, at distil.temperature, from float32 logits; cfg: DistilConfig."""
  soften = lambda logits_BTV: jax.nn.log_softmax(logits_BTV / cfg.temperature)
  loss_BT = DISTIL_LOSSES[cfg.loss](cfg, soften(student_BTV), soften(teacher_BTV))
  return cfg.temperature**2 * loss_BT  # else its gradient would shrink with the square


def kl(p_BTV, q_BTV):
  """Return KL(p || q) from log-probabilities."""
  return (jnp.exp(p_BTV) * (p_BTV - q_BTV)).sum(-1)


def js(cfg, student_BTV, teacher_BTV):
  """Return the generalized Jensen-Shannon divergence from log-probabilities."""
  both_BTV = jnp.logaddexp(jnp.log(cfg.beta) + teacher_BTV, jnp.log1p(-cfg.beta) + student_BTV)
  return cfg.beta * kl(teacher_BTV, both_BTV) + (1 - cfg.beta) * kl(student_BTV, both_BTV)


DISTIL_LOSSES = {
  'forward_kl': lambda cfg, student_BTV, teacher_BTV: kl(teacher_BTV, student_BTV),
  'reverse_kl': lambda cfg, student_BTV, teacher_BTV: kl(student_BTV, teacher_BTV),
  'js': js,
}
