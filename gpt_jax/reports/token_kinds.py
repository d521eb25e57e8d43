"""Losses by kind of token: where one model predicts better than another.

Letters: B rows, T tokens, K kinds.
"""

import numpy as np

TEXT_KINDS = ('start of a word', 'inside a word', 'number', 'punctuation', 'white space')
PAIRS = ('a pair seen before in the row', 'a new pair')


def describe_tokens(ids, tokenizers):
  """Return {id: (its text, its kind in the vocabulary)} of these ids."""
  vocabulary = tokenizers.vocabulary
  specials = {index for _, index in vocabulary.specials}
  described = {}
  for index in map(int, ids):
    kind = 'special' if index in specials else vocabulary.kind(index)
    described[index] = (tokenizers.decode_text([index]) if kind == 'text' else '', kind)
  return described


def label_tokens(token_ids_BT, target_ids_BT, tokenizers):
  """Return {kind: mask BT} of the targets; a target is in one kind of text or modality, and one of PAIRS."""
  described = describe_tokens(np.unique([token_ids_BT, target_ids_BT]), tokenizers)
  labels_BT = np.empty(target_ids_BT.shape, object)
  pairs_BT = np.empty(target_ids_BT.shape, object)
  for b, (before_T, target_T) in enumerate(zip(token_ids_BT.tolist(), target_ids_BT.tolist(), strict=True)):
    seen = set()
    for t, pair in enumerate(zip(before_T, target_T, strict=True)):
      labels_BT[b, t] = kind_of(described[pair[1]], described[pair[0]])
      pairs_BT[b, t] = PAIRS[pair not in seen]
      seen.add(pair)
  every = dict.fromkeys([*np.unique(labels_BT.astype(str)), *PAIRS])
  return {kind: (labels_BT == kind) | (pairs_BT == kind) for kind in every}


def kind_of(token, before):
  """Return the kind of a token after another, each (text, kind in the vocabulary)."""
  text, kind = token
  if kind != 'text':
    return kind
  if not text.strip():
    return 'white space'
  if any(map(str.isdigit, text)):
    return 'number'
  if not any(map(str.isalnum, text)):
    return 'punctuation'
  is_start = text[0].isspace() or not before[0][-1:].isalnum()
  return 'start of a word' if is_start else 'inside a word'


def compare_kinds(nats_BT, other_BT, mask_BT, kinds):
  """Return [{kind, targets, nats: [own, other], difference, error, share}], the largest sums first.

  nats_BT, other_BT: of two models. kinds: of `label_tokens`. difference: own less other, a target. error:
  standard error of the difference over rows. share: of the sum of all differences.
  """
  gap_BT = (nats_BT - other_BT) * mask_BT
  rows = []
  for kind, own_BT in kinds.items():
    own_BT = own_BT * mask_BT
    counts_B, sums_B = own_BT.sum(1), (gap_BT * own_BT).sum(1)
    if not (count := counts_B.sum()):
      continue
    mean, B = sums_B.sum() / count, len(counts_B)
    spread = np.square(sums_B - mean * counts_B).sum() * B / (B - 1) if B > 1 else np.nan
    means = [float((x * own_BT).sum() / count) for x in (nats_BT, other_BT)]
    row = {'kind': kind, 'targets': int(count), 'nats': means, 'difference': float(mean)}
    rows.append(row | {'error': float(spread**0.5 / count), 'share': float(sums_B.sum() / gap_BT.sum())})
  return sorted(rows, key=lambda row: -abs(row['difference'] * row['targets']))


def format_kinds(rows):
  """Return rows of `compare_kinds` as cells of a table: kind, targets, both means, difference, share."""
  return [
    (
      row['kind'],
      f'{row["targets"]:,}',
      *(f'{nats:.4f}' for nats in row['nats']),
      f'{row["difference"]:+.4f} \u00b1 {row["error"]:.4f}',
      f'{row["share"]:.0%}',
    )
    for row in rows
  ]
