"""Rematerialization: which residuals of a block are saved for its backward pass, and which recomputed."""

import jax

from gpt_jax.model.kernels import flash, fused


def rematerialize(policy):
  """A row of REMAT: save what the policy says and recompute the rest in the backward pass."""
  return lambda block, prevent_cse: jax.checkpoint(block, policy=policy, prevent_cse=prevent_cse)


REMAT = {  # name: (block, prevent_cse) -> block; inside a scan, CSE cannot undo the recomputation
  'none': lambda block, prevent_cse: block,  # all residuals are saved
  'mlp_activations': lambda block, prevent_cse: block,  # but for the activation functions: see layers.MLP
  'full': rematerialize(None),
  'dots': rematerialize(fused.save_products(jax.checkpoint_policies.dots_saveable)),
  'dots_no_batch': rematerialize(
    fused.save_products(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, flash.RESIDUALS)
  ),
}
