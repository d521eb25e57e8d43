"""Keys and values that outlive a generation: the next prompt is computed from where it differs.

Letters: B = 1 row, P padded length of the new tokens, S cache slots.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import sample
from gpt_jax.model.continuous import KINDS
from gpt_jax.model.positions import POSITIONS
from gpt_jax.sampling import prompt_batch


class History:
  """The state of the last generation of one row; `completions.stream` keeps it here."""

  state = None  # sample.SampleState; None before the first

  def start(self, model, prompts, cfg, grammar, keys_B=None):
    """Return what `sample.start` returns for one prompt, by the keys and values that the state has of it.

    Slots are a power of two: a conversation that grows compiles few programs.
    """
    [prompt], (state, self.state) = map(prompt_batch.as_prompt, prompts), (self.state, None)
    if cfg.num_samples > 1 or cfg.guidance != 1:
      return sample.start(model, [prompt], cfg, grammar, keys_B)
    prompt_batch.check_prompts([prompt.ids], cfg.max_new_tokens, model.cfg)
    count = len(prompt.ids)
    slots = prompt_batch.round_up_prompt(count + cfg.max_new_tokens, model.cfg.context)
    new = count - shared_tokens(state, prompt, model.cfg)
    P = prompt_batch.round_up_prompt(new, slots)
    first = min(count - new, slots - P)  # padding, too, has slots
    padded = prompt_batch.round_up_prompt(count, slots)
    batch = prompt_batch.batch_prompts(model.cfg, [prompt], cfg, grammar, padded)
    keys_B = sample.row_keys(cfg.seed, 1) if keys_B is None else keys_B
    if not first:
      return sample.jit_prefill(model, batch, keys_B, slots)
    batch = batch._replace(input_ids_BP=prompt_batch.pad_right([prompt.ids[first:]], P))
    return sample.jit_prefill(model, batch, keys_B, slots, _resize(state.cache, slots), np.int32(first))


def shared_tokens(state, prompt, cfg):
  """Count the tokens of a prompt that a state begins with, but for the last; 0 where more than ids differ."""
  is_text = all(getattr(prompt, kind) is None for kind in KINDS) and prompt.mask == 'causal'
  if state is None or not is_text or POSITIONS[cfg.positions].axes > 1:
    return 0
  size = min(int(state.lengths_B[0]), len(prompt.ids) - 1)
  differs = np.asarray(state.token_ids_BT[0, :size]) != np.asarray(prompt.ids[:size])
  return int(differs.argmax()) if differs.any() else size


@functools.partial(jax.jit, static_argnames='slots')
def _resize(cache, slots):
  """Return a cache with this many slots."""
  resize = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, max(0, slots - x.shape[2])), (0, 0)))[:, :, :slots]
  return jax.tree.map(resize, cache)
