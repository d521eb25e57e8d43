"""Prompts as the padded arrays that prefill a cache.

Letters: B rows, P prompt length; A, M, U numbers of a continuous input: a patch, a frame, a vector.
"""

from typing import Any, NamedTuple

import numpy as np

from gpt_jax.model import gpt, towers
from gpt_jax.model.continuous import KINDS
from gpt_jax.model.projectors import PROJECTORS
from gpt_jax.tokenizers import grammar as grammars
from gpt_jax.tokenizers import layout
from gpt_jax.tokenizers.layout import NOTHING, Layout, patch_positions


class Prompt(NamedTuple):
  """A sequence to continue. A list of ids stands for a prompt of these ids alone."""

  ids: Any  # int [P]
  patches: Any = None  # float32 [P, A]; features at its `patch` ids, 0 elsewhere
  frames: Any = None  # float32 [P, M]; features at its `frame` ids, 0 elsewhere
  mask: str = 'causal'  # see row_fields.mask_of
  vectors: Any = None  # float32 [P, U]; features at its `vector` ids, 0 elsewhere


class PromptBatch(NamedTuple):
  """Prompts padded on the right for prefill; numpy arrays.

  With guidance the model reads 2 B rows; the lower half has an empty condition.
  """

  ids_BP: np.ndarray  # int32
  lengths_B: np.ndarray  # int32
  input_ids_BP: np.ndarray  # int32; B or 2 B rows
  inputs: dict  # for model.hidden, as many rows as input_ids_BP
  guidance_B: np.ndarray | None  # float32; None without guidance
  span: grammars.GrammarState


def as_prompt(prompt):
  """Return a Prompt of a Prompt or a list of ids."""
  return prompt if isinstance(prompt, Prompt) else Prompt(prompt)


def round_up_prompt(n, limit):
  """Round a prompt length up to a power of two (at least 32): few shapes, few compilations."""
  return min(max(32, 1 << (n - 1).bit_length()), limit)


def round_up_slots(n, limit):
  """Round cache slots up to one of four sizes per octave: each token reads all slots."""
  step = max(32, (1 << (n - 1).bit_length()) // 8)
  return min(-(-n // step) * step, limit)


def batch_prompts(model_cfg, prompts, cfg, grammar, P):
  """Make the PromptBatch of a list of Prompt, padded to P tokens.

  Raises ValueError where cfg.max_new_tokens is too few for the image or sound to make.
  """
  ids_BP = pad_right([p.ids for p in prompts], P)
  lengths_B = np.array([len(p.ids) for p in prompts], np.int32)
  room_B = np.full_like(lengths_B, cfg.max_new_tokens)
  span, positions_BP3 = grammars.read_prompts(grammar, ids_BP, lengths_B, room_B)
  needed_B = grammars.min_new_tokens(grammar, span)
  if (needed_B > room_B).any():
    raise ValueError(
      f'max_new_tokens={cfg.max_new_tokens} is too few for what is to be made: it takes '
      f'{needed_B.max()} tokens\nfix: use --max_new_tokens={needed_B.max()} or more'
    )
  batch = {'positions_BT3': positions_BP3}
  condition_BP = grammars.condition_mask(grammar, ids_BP, lengths_B)
  if any(p.mask != 'causal' for p in prompts):
    batch['prefix_BT'] = prefix_groups(prompts, ids_BP, condition_BP, grammar)
  batch |= continuous_inputs(model_cfg, prompts, grammar, ids_BP)
  if PROJECTORS[model_cfg.projector].has_cells and 'patches_BTA' in batch:
    batch['positions_BT3'], clock_B = cell_positions(grammar, ids_BP, lengths_B, batch)
    span = span._replace(clock_B=clock_B)
  input_ids_BP, guidance_B = ids_BP, None
  if cfg.guidance != 1.0:
    input_ids_BP, batch = add_unconditional_rows(grammar, ids_BP, condition_BP, batch, cfg.guidance)
    guidance_B = np.full(len(prompts), cfg.guidance, np.float32)
  inputs = gpt.inputs(model_cfg, batch)
  return PromptBatch(ids_BP, lengths_B, input_ids_BP, inputs, guidance_B, span)


def prefix_groups(prompts, ids_BP, condition_BP, places):
  """Return the groups of tokens that see each other both ways, int32 [B, P], of rows that begin with prompts.

  places: what has the ids of places of media: a Grammar, or a Layout.
  """
  lengths_B1 = np.array([[len(p.ids)] for p in prompts])
  groups = {
    'condition': condition_BP,
    'prefix': np.arange(ids_BP.shape[1])[None] < lengths_B1,
    'items': layout.items_of(ids_BP, places),
    'causal': condition_BP * 0,
  }
  return np.stack([groups[p.mask][row] for row, p in enumerate(prompts)]).astype(np.int32)


def cell_positions(grammar, ids_BP, lengths_B, batch):
  """Return (positions_BP3, time of the next token) of prompts whose patches bring their row and column."""
  patches_BPA = np.pad(batch['patches_BTA'], ((0, 0), (0, 1), (0, 0)))  # and the next token, no patch
  ids_BW = np.pad(ids_BP, ((0, 0), (0, 1)))
  places_BW = np.arange(ids_BW.shape[1])[None]
  ids_BW = np.where(places_BW < lengths_B[:, None], ids_BW, NOTHING)
  segments_BW = (places_BW <= lengths_B[:, None]).astype(np.int32)
  own = Layout(patch=int(grammar.patch))
  positions_BW3 = patch_positions(own, ids_BW, segments_BW, {'patches_BTA': patches_BPA})
  clock_B = np.take_along_axis(positions_BW3[..., 0], lengths_B[:, None], 1)[:, 0]
  return positions_BW3[:, :-1] * (places_BW < lengths_B[:, None])[:, :-1, None], clock_B


def continuous_inputs(model_cfg, prompts, grammar, ids_BP):
  """Return the prompts' continuous inputs [B, P, A] by model argument; {} where none has any."""
  inputs = {}
  for name, (_, place, key, setting) in KINDS.items():
    values, at_BP = [getattr(p, name) for p in prompts], ids_BP == getattr(grammar, place)
    if not at_BP.any() and all(value is None for value in values):
      continue
    width = towers.input_width(model_cfg, name)
    values_BPF = np.zeros((*ids_BP.shape, width), np.float32)
    for row_PF, at_P, prompt, value in zip(values_BPF, at_BP, prompts, values, strict=True):
      shape = np.shape(value)
      if (at_P.any() or value is not None) and shape != (len(prompt.ids), width or -1):
        raise ValueError(
          f'a prompt of {len(prompt.ids)} tokens, {at_P.sum()} of them {place}, has {name} of '
          f'shape {shape}, and model.{setting}={width}\n'
          f'fix: give a row of {name} for each token, to a model that was trained on them'
        )
      if value is not None:
        row_PF[: len(value)] = value
    inputs[key] = values_BPF
  return inputs


def add_unconditional_rows(grammar, ids_BP, condition_BP, batch, guidance):
  """Return (ids, batch) with 2 B rows; in the lower half `null` replaces each token of the condition.

  The number of tokens stays, so that targets keep their positions.
  """
  if not condition_BP.any(1).all() or grammar.null < 0:
    raise ValueError(
      f'sample.guidance={guidance} needs a condition, and a prompt has none\n'
      'fix: leave guidance at 1, or give what the target depends on'
    )
  dropped_BP = condition_BP & (ids_BP != grammar.sep)
  null_BP = np.where(dropped_BP, grammar.null, ids_BP)
  features = {kind.argument for kind in KINDS.values()}
  lower = {name: x * ~dropped_BP[..., None] if name in features else x for name, x in batch.items()}
  return np.concatenate([ids_BP, null_BP]), {
    name: np.concatenate([x, lower[name]]) for name, x in batch.items()
  }


def pad_right(rows, P):
  """Pad lists of ids with zeros on the right, int32 [B, P]."""
  out_BP = np.zeros((len(rows), P), np.int32)
  for row_P, ids in zip(out_BP, rows, strict=True):
    row_P[: len(ids)] = ids
  return out_BP


def check_prompts(prompts, max_new_tokens, cfg):
  """Raise ValueError for a prompt (a list of ids) that a model of ModelConfig `cfg` cannot continue."""
  for prompt in prompts:
    if len(prompt) == 0:
      raise ValueError('the prompt is empty\nfix: give at least one token')
    wrong = [i for i in prompt if not 0 <= i < cfg.vocab]
    if wrong:
      raise ValueError(
        f'token id {wrong[0]} is out of range: the model has {cfg.vocab} ids\n'
        'fix: use the tokenizer that the model was trained with'
      )
    room = cfg.context - len(prompt)
    if room < 1:
      raise ValueError(
        f'the prompt has {len(prompt)} tokens and the context is {cfg.context}\n'
        f'fix: give at most {cfg.context - 1} tokens'
      )
    if max_new_tokens > room:
      raise ValueError(
        f'max_new_tokens={max_new_tokens} after {len(prompt)} prompt tokens exceeds the context of '
        f'{cfg.context}\nfix: use --max_new_tokens={room} or less'
      )
