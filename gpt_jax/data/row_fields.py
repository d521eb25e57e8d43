"""The arrays of rows of documents with media or a condition: positions, prefixes, features.

They follow from the ids by the `Layout` of the tokenizers. Only targets carry loss. In a dropped
condition each token but sep is `null` and features are 0, which trains both models of classifier-free
guidance (Ho and Salimans 2022, arXiv:2207.12598).

Letters: B rows, T inputs of a row, W = T + 1 tokens of a row, A numbers of a feature. Batches gain
positions_BT3 int32 where the vocabulary has images (time, row, column), prefix_BT where tokens see each other
both ways, and continuous inputs such as frames_BTM float32 where a template has them (0
elsewhere).
"""

from dataclasses import dataclass, replace

import numpy as np

from gpt_jax.data import templates
from gpt_jax.model.continuous import KINDS
from gpt_jax.tokenizers.layout import Layout, items_of, patch_positions


def mask_of(cfg, tokenizers) -> str:
  """Return which tokens attend to each other both ways in the rows of a DataConfig, and in prompts.

  causal: none. condition: those up to sep, with it (data.prefix). Of an imported model (processors.Places)
  prefix: all of a prompt; items: those of each picture or sound.
  """
  mask = getattr(tokenizers, 'mask', 'causal')
  return 'condition' if mask == 'causal' and cfg.prefix else mask


@dataclass(frozen=True)
class RowFields:
  """The arrays that rows have. Plain numbers, since worker processes get it."""

  layout: Layout | None = None  # None: documents are one text each, without more arrays
  mask: str = 'causal'  # see mask_of
  dropout: float = 0.0  # share of conditions that are dropped
  features: tuple[tuple[str, int], ...] = ()  # (a row of KINDS, width)
  predict_start: bool = False  # loss on a start marker after sep: targets of several kinds

  @classmethod
  def of(cls, cfg, tokenizers) -> 'RowFields':
    """Return the fields of the rows of a DataConfig and the tokenizers of a run."""
    has_images = getattr(tokenizers, 'image', None) or 'patches' in getattr(tokenizers, 'readers', ())
    if cfg.has_only_text and not has_images:
      return cls()
    known = dict(tokenizers.vocabulary.specials)
    if cfg.condition_dropout and 'null' not in known:
      raise ValueError(
        f'data.condition_dropout={cfg.condition_dropout}, but the vocabulary has no null\n'
        'fix: set data.condition_dropout=0.0, or use tokenizers built with specials=SPECIALS'
      )
    if lacking := [kind for kind in cfg.features if tokenizers.reader(kind) is None]:
      raise ValueError(
        f'a template asks for {lacking[0]}, but the model has no tokenizer that makes them\n'
        f'fix: set {templates.MAKERS[lacking[0]]} in the config, or use another template'
      )
    own = getattr(tokenizers, 'places', ())  # conversations, too, may have what an imported model reads
    own = (*own, *(['patches'] if getattr(tokenizers, 'makes_patches', False) else []))
    kinds = [kind for kind in KINDS if kind in cfg.features or kind in own]
    kinds = [kind for kind in kinds if not getattr(tokenizers.reader(kind), 'token_ids', ())]
    features = tuple((kind, int(tokenizers.reader(kind).feature_width)) for kind in kinds)
    return cls(Layout.of(tokenizers), mask_of(cfg, tokenizers), cfg.condition_dropout, features)

  def of_template(self, template: str) -> 'RowFields':
    """Return the fields of the documents of one source."""
    condition, target = templates.signature(template)
    alone = target in (('text',), ('image',), ('audio',), ('codes',))
    return replace(self, predict_start=self.layout is not None and bool(condition) and not alone)

  def refuse_cuts(self, cache, length: int) -> None:
    """Raise ValueError if documents with media or a condition are longer than a row."""
    if self.layout is None:
      return
    names = ('sep', 'boi', 'boa', 'patch', 'frame')
    marks = [mark for name in names if (mark := getattr(self.layout, name)) >= 0]
    ends = np.append(cache.offsets[1:], len(cache.ids))
    too_long = np.flatnonzero(ends - cache.offsets > length + 1)
    whole = getattr(cache, 'targets', None) is not None  # conversations
    cut = [n for n in too_long if whole or np.isin(cache.ids[cache.offsets[n] : ends[n]], marks).any()]
    if cut:
      kind = 'conversations' if whole else 'documents with media or a condition'
      longest = int((ends - cache.offsets)[cut].max())
      raise ValueError(
        f'data.mixture.{cache.name} has {len(cut)} of {len(ends)} {kind} '
        f'that are longer than the {length + 1} tokens of a row, the longest {longest}\n'
        f'fix: raise train.length (model.context) to {longest - 1}, or leave these documents out'
      )

  def add(self, batch, ids_BW, segments_BW, dropped_BW, place_BW, cache) -> dict[str, np.ndarray]:
    """Return the arrays of a batch that are changed or added.

    dropped_BW: documents whose condition is dropped. place_BW int64: index in the stream.
    """
    layout = self.layout
    condition_BW = layout.condition_mask(ids_BW, segments_BW)
    target_BT = layout.target_mask(ids_BW, segments_BW, self.predict_start)[:, 1:]
    if (targets := getattr(cache, 'targets', None)) is not None:
      is_target_BW = (place_BW >= 0) & (np.asarray(targets)[place_BW] > 0)
      target_BT = target_BT & is_target_BW[:, 1:]
      condition_BW = (segments_BW > 0) & ~is_target_BW if self.mask == 'prefix' else condition_BW
    input_BW = layout.drop_condition(ids_BW, dropped_BW & condition_BW).astype(np.int32)
    arrays = {
      'token_ids_BT': np.ascontiguousarray(input_BW[:, :-1]),
      'target_ids_BT': np.ascontiguousarray(input_BW[:, 1:]),
      'loss_mask_BT': batch['loss_mask_BT'] * target_BT,
    }
    if layout.has_images:
      positions_BW3 = layout.positions3(ids_BW, segments_BW)
      arrays['positions_BT3'] = np.ascontiguousarray(positions_BW3[:, :-1])
    if self.mask == 'items':
      arrays['prefix_BT'] = items_of(arrays['token_ids_BT'], layout)
    elif self.mask != 'causal':
      arrays['prefix_BT'] = np.ascontiguousarray(condition_BW[:, :-1])
    for kind, width in self.features:
      at_BT = arrays['token_ids_BT'] == getattr(layout, KINDS[kind].place)
      rows_BTA = np.zeros((*at_BT.shape, width), np.float32)
      if at_BT.any() and kind in cache.features:
        features, places = cache.features[kind]
        rows_BTA[at_BT] = features[np.searchsorted(places, place_BW[:, :-1][at_BT])]
      arrays[KINDS[kind].argument] = rows_BTA
    if layout.has_cells:
      arrays['positions_BT3'] = patch_positions(layout, input_BW[:, :-1], segments_BW[:, :-1], arrays)
    return arrays


PLAIN = RowFields()


def spread(count_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return, for counts (2, 3), the index (0, 0, 1, 1, 1) and the rank within it (0, 1, 0, 1, 2)."""
  which = np.repeat(np.arange(len(count_N)), count_N)
  return which, np.arange(len(which)) - (np.cumsum(count_N) - count_N)[which]
