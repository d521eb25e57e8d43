"""From prompts to the padded arrays that prefill a cache.

Letters: B rows, P prompt length, A numbers of a continuous image patch, M of a group of audio
frames.
"""

from typing import Any, NamedTuple

import numpy as np

from gpt_jax.model import gpt
from gpt_jax.tokenizers import grammar as grammars


class Prompt(NamedTuple):
  """What to continue. A list of ids stands for a prompt of these ids alone."""

  ids: Any  # int [P]
  patches: Any = None  # float32 [P, A]; features at its ids `patch`, 0 elsewhere
  frames: Any = None  # float32 [P, M]; features at its ids `frame`, 0 elsewhere
  prefix: bool = False  # whether tokens up to sep see each other both ways, as they did in training


class PromptBatch(NamedTuple):
  """Prompts as the model takes them, padded on the right; numpy arrays.

  Twice as many rows are fed with guidance, the lower half with an empty condition.
  """

  ids_BP: np.ndarray  # int32
  lengths_B: np.ndarray  # int32
  input_ids_BP: np.ndarray  # int32; what the model reads, B or 2 B rows
  inputs: dict  # for model.hidden, as many rows as input_ids_BP
  guidance_B: np.ndarray | None  # float32; None without guidance
  span: grammars.GrammarState


def batch_prompts(model_cfg, prompts, cfg, grammar, P):
  """A list of Prompt -> PromptBatch padded to P tokens."""
  ids_BP = padded([p.ids for p in prompts], P)
  lengths_B = np.array([len(p.ids) for p in prompts], np.int32)
  room_B = np.full_like(lengths_B, cfg.max_new_tokens)
  span, positions_BP3 = grammars.read_prompts(grammar, ids_BP, lengths_B, room_B)
  short_B = grammars.min_new_tokens(grammar, span)
  if (short_B > room_B).any():
    raise ValueError(
      f'max_new_tokens={cfg.max_new_tokens} is too few for what is to be made: it takes '
      f'{short_B.max()} tokens\nfix: use --max_new_tokens={short_B.max()} or more'
    )
  batch = {'positions_BT3': positions_BP3}
  given_BP = grammars.condition_mask(grammar, ids_BP, lengths_B)
  if any(p.prefix for p in prompts):
    batch['prefix_BT'] = given_BP & np.array([p.prefix for p in prompts])[:, None]
  batch |= features(model_cfg, prompts, grammar, ids_BP)
  input_ids_BP, guidance_B = ids_BP, None
  if cfg.guidance != 1.0:
    input_ids_BP, batch = with_empty_condition(grammar, ids_BP, given_BP, batch, cfg.guidance)
    guidance_B = np.full(len(prompts), cfg.guidance, np.float32)
  inputs = gpt.inputs(model_cfg, batch)
  return PromptBatch(ids_BP, lengths_B, input_ids_BP, inputs, guidance_B, span)


def features(model_cfg, prompts, grammar, ids_BP):
  """The continuous inputs of prompts, as far as any has them -> dict of [B, P, A or M]."""
  found = {}
  for key, (name, place, setting) in FEATURES.items():
    values, needs_BP = [getattr(p, name) for p in prompts], ids_BP == getattr(grammar, place)
    if not needs_BP.any() and all(value is None for value in values):
      continue
    width = getattr(model_cfg, setting)
    values_BPF = np.zeros((*ids_BP.shape, width), np.float32)
    for row_PF, need_P, prompt, value in zip(values_BPF, needs_BP, prompts, values, strict=True):
      shape = np.shape(value)
      if (need_P.any() or value is not None) and shape != (len(prompt.ids), width or -1):
        raise ValueError(
          f'a prompt of {len(prompt.ids)} tokens, {need_P.sum()} of them {place}, has {name} of '
          f'shape {shape}, and model.{setting}={width}\n'
          f'fix: give a row of {name} for each token, to a model that was trained on them'
        )
      if value is not None:
        row_PF[: len(value)] = value
    found[key] = values_BPF
  return found


def with_empty_condition(grammar, ids_BP, given_BP, batch, guidance):
  """(ids, inputs) of the rows, below them those of the rows without their condition.

  What was given becomes `null`, as often as it was long: every target keeps its place.
  """
  if not given_BP.any(1).all() or grammar.null < 0:
    raise ValueError(
      f'sample.guidance={guidance} needs a condition, and a prompt has none\n'
      'fix: leave guidance at 1, or give what the target depends on'
    )
  dropped_BP = given_BP & (ids_BP != grammar.sep)
  null_BP = np.where(dropped_BP, grammar.null, ids_BP)
  lower = {name: x * ~dropped_BP[..., None] if name in FEATURES else x for name, x in batch.items()}
  return np.concatenate([ids_BP, null_BP]), {
    name: np.concatenate([x, lower[name]]) for name, x in batch.items()
  }


def padded(rows, P):
  """Lists of ids -> int32 [B, P] with zeros on the right."""
  out_BP = np.zeros((len(rows), P), np.int32)
  for row_P, ids in zip(out_BP, rows, strict=True):
    row_P[: len(ids)] = ids
  return out_BP


def check_prompts(prompts, max_new_tokens, cfg):
  """Raise ValueError for a prompt that this model cannot continue."""
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


FEATURES = {  # argument of the model: (field of Prompt, field of Grammar, field of ModelConfig)
  'patches_BTA': ('patches', 'patch', 'patch_values'),
  'frames_BTM': ('frames', 'frame', 'frame_values'),
}
